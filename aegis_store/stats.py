"""The store at a glance: numbers from the session records alone, without looking at the events."""

import os

from sqlalchemy import Connection, and_, func, select

from aegis_store.events import Status, StoreStats
from aegis_store.metrics import Metrics
from aegis_store.schema import event, session, tombstone
from aegis_store.target import Target


def stats(conn: Connection, target: Target, metrics: Metrics) -> StoreStats:
    """See `StoreStats`. Costs in proportion to the number of sessions, standing and deleted, whatever that of events."""
    named = session.c.session_id.is_not(None)  # the others were deleted, and their events are going
    by_status = conn.execute(select(session.c.status, func.count()).where(named).group_by(session.c.status)).all()
    first = event.alias("first")
    removed_bytes = func.coalesce(first.c.bytes_before, session.c.total_bytes)
    sums = select(
        func.coalesce(func.sum(session.c.last_seq - session.c.first_seq + 1), 0).label("events"),
        func.coalesce(func.sum(session.c.total_bytes - removed_bytes), 0).label("retained_bytes"),
        func.coalesce(func.sum(session.c.first_seq - 1), 0).label("removed_events"),
        func.coalesce(func.sum(removed_bytes), 0).label("removed_bytes"),
    ).join_from(session, first, and_(first.c.session == session.c.id, first.c.seq == session.c.first_seq), isouter=True)
    row = conn.execute(sums.where(named)).one()
    buried = conn.execute(
        select(func.coalesce(func.sum(tombstone.c.last_seq), 0), func.coalesce(func.sum(tombstone.c.total_bytes), 0))
    ).one()
    wal_bytes = size_of(target, "-wal")
    return StoreStats(
        sessions={Status(status): count for status, count in by_status},
        events=row.events,
        retained_bytes=row.retained_bytes,
        removed_events=row.removed_events + buried[0],
        removed_bytes=row.removed_bytes + buried[1],
        file_bytes=size_of(target, "") + wal_bytes,
        wal_bytes=wal_bytes,
        free_bytes=free_bytes(conn),
        **metrics.shown(),
    )


def free_bytes(conn: Connection) -> int:
    """Empty pages of the file, in bytes."""
    page_bytes = int(conn.exec_driver_sql("PRAGMA page_size").scalar_one())
    return page_bytes * int(conn.exec_driver_sql("PRAGMA freelist_count").scalar_one())


def size_of(target: Target, suffix: str) -> int:
    try:
        return os.stat(target.side_file(suffix)).st_size  # by path: opening the file would drop its locks
    except FileNotFoundError:
        return 0
