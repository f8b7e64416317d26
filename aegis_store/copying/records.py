"""Sessions and what is left of deleted ones, from store to store. What stands in the target must be part of the source."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select, update

from aegis_store.any_database import AnyDatabase, keep_appends_out, streamed
from aegis_store.errors import InvalidInput, shown
from aegis_store.record_copy import intact
from aegis_store.retention.truncate import settle
from aegis_store.schema import NAMED, prune_run, session, tombstone
from aegis_store.sessions import RECORD, check_first
from aegis_store.sqlite_errors import check_intact
from aegis_store.transfer.line_rows import BATCH_BYTES, BATCH_LINES

NEVER_CHANGE: Final = ("session_id", "tenant", "owner", "created_at")
MAY_CHANGE: Final = ("status", "max_events", "hold", "metadata", "ended_at", "updated_at")
BEGINNING: Final = ("first_seq", "removed_at", "removed_reason")
GRAVE: Final = ("session_id", "tenant", "owner", "last_seq", "total_bytes", "removed_at", "removed_reason")

_SESSIONS: Final = RECORD.where(NAMED)
_GRAVES: Final = select(tombstone, intact("tombstone"))
_RUNS: Final = select(*(column for column in prune_run.c if column.name not in ("id", "record_copy")), intact("prune_run"))


def batches(rows: Iterable[Row[Any]], bytes_of: Callable[[Row[Any]], int]) -> Iterator[list[Row[Any]]]:
    """As many at a time as one transaction takes."""
    batch: list[Row[Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += bytes_of(row)
        if len(batch) >= BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def sessions_of(conn: Connection) -> Iterator[list[Row[Any]]]:
    """All of them that have a name, in the order in which they were made. `StoreCorrupt` for one that is damaged."""
    with streamed(conn, _SESSIONS.order_by(session.c.id)) as rows:
        for batch in batches(rows, lambda row: len(row.metadata)):
            for row in batch:
                check_intact(conn, row.intact, f"session {shown(row.session_id)}")
                check_first(conn, row)
            yield batch


def sessions_named(conn: Connection, batch: Sequence[Row[Any]]) -> dict[str, Row[Any]]:
    """Those of the same names as these."""
    rows = conn.execute(_SESSIONS.where(session.c.session_id.in_([row.session_id for row in batch])))
    return {row.session_id: row for row in rows}


def graves_of(conn: Connection) -> Iterator[list[Row[Any]]]:
    """The tombstones. `StoreCorrupt` for one that is damaged."""
    with streamed(conn, _GRAVES.order_by(tombstone.c.session_id)) as rows:
        for batch in batches(rows, lambda row: 0):
            for row in batch:
                check_intact(conn, row.intact, f"session {shown(row.session_id)}")
            yield batch


def graves_named(conn: Connection, batch: Sequence[Row[Any]]) -> dict[str, Row[Any]]:
    """Those of the same names as these."""
    rows = conn.execute(_GRAVES.where(tombstone.c.session_id.in_([row.session_id for row in batch])))
    return {row.session_id: row for row in rows}


def number_of(conn: Connection) -> tuple[int, int, int]:
    """How many sessions have a name, how many tombstones there are, how many sessions are being deleted."""
    named = select(func.count(session.c.session_id)).scalar_subquery()
    nameless = select(func.count()).select_from(session).where(session.c.session_id.is_(None)).scalar_subquery()
    graves = select(func.count()).select_from(tombstone).scalar_subquery()
    return tuple(conn.execute(select(named, graves, nameless)).one())


def refuse_others(source: Connection, target: Connection) -> None:
    """`InvalidInput` if the target holds anything that is no part of the source, as a copy that was begun leaves it."""
    if number_of(target)[2]:
        raise _refused("sessions of it are being deleted")
    for batch in sessions_of(target):
        ours = sessions_named(source, batch)
        for there in batch:
            _check_part(ours.get(there.session_id), there)
    for batch in graves_of(target):
        ours = graves_named(source, batch)
        for there in batch:
            if there.session_id not in ours:
                raise _refused(f"it has deleted session {shown(there.session_id)}, and the source has not")


def _check_part(row: Row[Any] | None, there: Row[Any]) -> None:
    """Refuse a session of the target that the copy cannot bring to what the source holds."""
    name = shown(there.session_id)
    if row is None:
        raise _refused(f"it holds session {name}, and the source does not")
    if any(getattr(row, column) != getattr(there, column) for column in NEVER_CHANGE):
        raise _refused(f"its session {name} is another one than that of the source")
    if there.last_seq > row.last_seq or there.first_seq > row.first_seq:
        ranges = f"{there.first_seq} to {there.last_seq}, and that of the source {row.first_seq} to {row.last_seq}"
        raise _refused(f"its session {name} has gone on by itself: it has seq {ranges}")
    if there.last_seq and row.first_seq > there.last_seq + 1:
        raise _refused(f"the source has meanwhile removed events of session {name} that were not copied yet")


def _refused(why: str) -> InvalidInput:
    return InvalidInput(f"the target is no copy of the source that was begun ({why}): copy into a store that is new")


# Writing


def bring_sessions(source: Connection, target: AnyDatabase) -> None:
    """Make those that are missing, without events yet, and bring the records of the others up to date."""
    for batch in sessions_of(source):
        with target.writes() as write:
            for part in target.parts(batch, attrgetter("session_id")):
                with write() as conn:
                    keep_appends_out(conn)
                    _bring_sessions(conn, part)


def _bring_sessions(conn: Connection, rows: Sequence[Row[Any]]) -> None:
    standing = sessions_named(conn, rows)
    new = [_new(row) for row in rows if row.session_id not in standing]
    if new:
        conn.execute(insert(session), new)
    for row in rows:
        if row.session_id in standing:
            _update(conn, standing[row.session_id], row)


def _new(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in (*NEVER_CHANGE, *MAY_CHANGE)} | _beginning(row)


def _beginning(row: Row[Any]) -> dict[str, Any]:
    """Where the session begins, without an event so far."""
    return {name: getattr(row, name) for name in BEGINNING} | {
        "last_seq": row.first_seq - 1,
        "total_bytes": row.removed_bytes,
        # Events bring it along. Given before them, it would look as if the clock had gone back.
        "last_event_at": None if row.first_seq <= row.last_seq else row.last_event_at,
    }


def _update(conn: Connection, there: Row[Any], row: Row[Any]) -> None:
    _check_part(row, there)
    changes: Mapping[str, Any] = {name: getattr(row, name) for name in MAY_CHANGE}
    if row.first_seq > there.first_seq:
        begins = there.last_seq == 0
        changes = {**changes, **(_beginning(row) if begins else {name: getattr(row, name) for name in BEGINNING})}
    if any(getattr(there, name) != value for name, value in changes.items()):
        conn.execute(update(session).where(session.c.id == there.id).values(**changes))
        settle(conn, there.id)


def bring_graves(source: Connection, target: AnyDatabase) -> int:
    """Make the tombstones that are missing; how many there are."""
    total = 0
    for batch in graves_of(source):
        total += len(batch)
        with target.writes() as write:
            for part in target.parts(batch, attrgetter("session_id")):
                with write() as conn:
                    standing = graves_named(conn, part)
                    new = [{name: getattr(row, name) for name in GRAVE} for row in part if row.session_id not in standing]
                    if new:
                        conn.execute(insert(tombstone), new)
    return total


def bring_runs(source: Connection, target: AnyDatabase) -> None:
    """What prunes have done, a thousand rows at the most; they get numbers of the target."""
    rows = source.execute(_RUNS.order_by(prune_run.c.id)).all()
    for row in rows:
        check_intact(source, row.intact, "a prune")
    with target.write() as conn:
        standing = set(conn.execute(select(prune_run.c.started_at)).scalars())
        new = [{name: value for name, value in row._mapping.items() if name != "intact"} for row in rows]
        missing = [values for values in new if values["started_at"] not in standing]
        if missing:
            conn.execute(insert(prune_run), missing)
