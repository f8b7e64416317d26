"""The one act that removes events beside the cap's trigger: raise a session's `first_seq`, a slice at a time."""

import time
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select, update

from aegis_store.schema import event, session
from aegis_store.sessions import now_us
from aegis_store.settings import PRUNE_PAUSE_MAX_S, PRUNE_PAUSE_MIN_S, PRUNE_SLICE_EVENTS


class Removed(NamedTuple):
    """How much went."""

    events: int
    bytes: int


def truncate_slice(conn: Connection, row: Row[Any], keep_from_seq: int, reason: str) -> Removed:
    """Remove the oldest events of the session below `keep_from_seq`, one slice at the most.

    `row` is the session's row, read in this transaction. The schema's trigger deletes what lies below the new `first_seq`.
    """
    new_first_seq = min(keep_from_seq, row.first_seq + PRUNE_SLICE_EVENTS, row.last_seq + 1)
    if new_first_seq <= row.first_seq:
        return Removed(0, 0)
    removed_bytes = _bytes_before(conn, row, new_first_seq) - _bytes_before(conn, row, row.first_seq)
    conn.execute(
        update(session)
        .where(session.c.id == row.id)
        .values(first_seq=new_first_seq, removed_at=now_us(), removed_reason=reason)
    )
    return Removed(new_first_seq - row.first_seq, removed_bytes)


def _bytes_before(conn: Connection, row: Row[Any], seq: int) -> int:
    if seq > row.last_seq:
        return int(row.total_bytes)
    return int(conn.execute(select(event.c.bytes_before).where(event.c.session == row.id, event.c.seq == seq)).scalar_one())


def let_writers_through(slice_took_s: float) -> None:
    """Sleep between two slices, so that other processes, which poll for the lock, find it free half of the time."""
    time.sleep(min(max(slice_took_s, PRUNE_PAUSE_MIN_S), PRUNE_PAUSE_MAX_S))
