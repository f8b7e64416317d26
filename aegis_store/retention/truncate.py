"""The one act that removes events beside the cap's trigger: raise a session's `first_seq`, a slice at a time."""

import time
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, delete, select, update

from aegis_store.retention.history import StoredHistory, session_row
from aegis_store.schema import NO_CAP, session, store
from aegis_store.sessions import now_us
from aegis_store.settings import PRUNE_PAUSE_MAX_S, PRUNE_PAUSE_MIN_S, PRUNE_SLICE_BYTES, PRUNE_SLICE_EVENTS

# Built once: SQLAlchemy takes longer to build a statement than SQLite to carry it out.
_TRUNCATE: Final = (
    update(session)
    .where(session.c.id == bindparam("key"))
    .values(first_seq=bindparam("new_first_seq"), removed_at=bindparam("at"), removed_reason=bindparam("why"))
)
_MAX_BYTES: Final = select(store.c.max_bytes)


class Removed(NamedTuple):
    """How much went, and where the session begins now."""

    events: int
    bytes: int
    first_seq: int = 0


NOTHING = Removed(0, 0)


def truncate_slice(conn: Connection, row: Row[Any], keep_from_seq: int, reason: str, most_events: int | None = None) -> Removed:
    """Remove the oldest events of the session below `keep_from_seq`, one slice at the most, or `most_events` if that is less.

    `row` is the session's row, read in this transaction. The schema's trigger deletes what lies below the new `first_seq`.
    """
    most = PRUNE_SLICE_EVENTS if most_events is None else min(most_events, PRUNE_SLICE_EVENTS)
    new_first_seq = min(keep_from_seq, row.first_seq + most, row.last_seq + 1)
    if new_first_seq <= row.first_seq:
        return NOTHING
    history = StoredHistory(conn, row)
    start, end = history.bytes_before(row.first_seq), history.bytes_before(new_first_seq)
    if end - start > PRUNE_SLICE_BYTES:
        new_first_seq = max(history.reaching(start + PRUNE_SLICE_BYTES + 1) - 1, row.first_seq + 1)
        end = history.bytes_before(new_first_seq)
    conn.execute(_TRUNCATE, {"key": row.id, "new_first_seq": new_first_seq, "at": now_us(), "why": reason})
    if keep_from_seq <= new_first_seq <= row.last_seq:
        settle(conn, row.id)
    return Removed(new_first_seq - row.first_seq, end - start, new_first_seq)


def settle(conn: Connection, key: int) -> None:
    """Bring up to date what the session's row notes for the next plan: how old and how large its events are."""
    row = session_row(conn, key)
    if row is None or row.first_seq > row.last_seq:
        return  # nothing is left; the schema's trigger has noted it
    history = StoredHistory(conn, row)
    max_bytes = conn.execute(_MAX_BYTES).scalar_one()
    first = history.event(row.first_seq)
    oversize = int(max_bytes is not None and row.total_bytes - first.bytes_before > max_bytes)
    # Where the clock went back among the retained events, the first need not be the oldest: what was noted stays right.
    oldest_at = first.recorded_at if row.first_seq >= row.unsorted_seq else row.oldest_at
    if (oldest_at, oversize) != (row.oldest_at, row.oversize):
        conn.execute(update(session).where(session.c.id == key).values(oldest_at=oldest_at, oversize=oversize))


def bury(conn: Connection, row: Row[Any], reason: str) -> None:
    """Take the session's name: from now on it does not exist, and a tombstone keeps its seq. Its events go later, in slices.

    Without a cap of the policy, which would stand in the way of lowering that.
    """
    values = {"session_id": None, "removed_at": now_us(), "removed_reason": reason, "hold": 0, "max_events": NO_CAP}
    conn.execute(update(session).where(session.c.id == row.id).values(values))


def forget(conn: Connection, key: int) -> None:
    """Delete the row of a session that has neither a name nor events any more."""
    conn.execute(delete(session).where(session.c.id == key))


def let_writers_through(slice_took_s: float) -> None:
    """Sleep between two slices, so that others who wait for the store get it: longer after a slice that took long."""
    time.sleep(min(max(slice_took_s / 16, PRUNE_PAUSE_MIN_S), PRUNE_PAUSE_MAX_S))
