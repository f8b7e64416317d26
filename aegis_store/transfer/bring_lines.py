"""Bringing a file of JSON lines (see `lines`) into a store: read twice, first to check all of it, then to write it.

The writing goes by the file, in small transactions, and each event that stands already is passed over: so it may be
interrupted anywhere and run again, and is then where it would have been.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from aegis_store import append
from aegis_store.any_database import AnyDatabase, locking
from aegis_store.errors import EventTooLarge, ImportRejected, StoreUnavailable, shown
from aegis_store.events import Json
from aegis_store.line_reader import EventLine, LinesReader, SessionLine
from aegis_store.record_copy import intact
from aegis_store.schema import event, session, store
from aegis_store.sessions import check_found
from aegis_store.sqlite_errors import ConstraintRefused, check_intact
from aegis_store.transfer.ledger import Entry, Held, Ledger, ledger
from aegis_store.transfer.line_order import LineOrder
from aegis_store.transfer.line_rows import Ready, batches
from aegis_store.transfer.standing import REFUSING, BroughtIn, Refused, bring_event, check_scope, compare_event, grave_of

OnBytes = Callable[[int, int], None]
"""Called with (bytes read so far, bytes to read). The file is read twice, so that is twice its size."""

OnChecked = Callable[[Mapping[str, Json] | None], bool]
"""Called with the policy in the file, if it has one, when the file was found good and nothing of it is written yet. Whether
that is now the policy of the store."""


@dataclass(slots=True, kw_only=True)
class LinesReport(BroughtIn):
    """What an import did. `policy` is what the file says of the policy of the store that it came from; `policy_adopted`:
    this store was new, and has taken it over.
    """

    policy: Mapping[str, Json] | None = None
    policy_adopted: bool = False


def bring_in(
    db: AnyDatabase,
    file: str | os.PathLike[str],
    *,
    hold: bool = False,
    on_bytes: OnBytes | None = None,
    on_checked: OnChecked | None = None,
) -> LinesReport:
    """Import `file`, .jsonl, plain, gzip or zstd. Session records and events come in as they were; positions are new, and
    keep their order.

    The file is first read to its end and checked, in flat memory. A session that contradicts the store (another tenant or
    owner, other events, a gap in between) or has a value that cannot be is named in the report with the reason, and nothing
    of it is written; the others come in. Then they are written, at most 500 lines or 4 MiB at a time: in one transaction, or,
    on PostgreSQL, in one for each session, as they follow each other in the file. A session that stands takes over the record
    of the file if that is the newer one, and the events that it has not; what was pruned does not return, and over its cap the
    newest stay. A session that another writer changes meanwhile, so that it contradicts, is refused from there on, and its
    reason says so. `hold` puts every session of the file on hold, so that no prune touches it.

    Raises `ImportRejected` with the number of the line when the file is malformed or cut off: nothing was written, and
    `on_checked` was not called. `StoreUnavailable` if the file changes while it is read again, `StoreFull` and `StoreBusy`
    when it cannot go on: what was written so far stays. Then, or interrupted anyhow, import again: the rest comes in.
    """
    db.check_writable()
    with LinesReader(file) as reader, ledger() as notes:
        _check(db, reader, notes, hold, on_bytes)
        adopted = on_checked is not None and on_checked(reader.header.get("policy"))
        with db.read() as conn:
            _refuse_oversized(conn, notes)
        report = LinesReport(policy=reader.header.get("policy"), policy_adopted=adopted)
        try:
            _write(db, reader, notes, hold, report, on_bytes)
        except ImportRejected as error:
            raise _changed(error) from None
        for outcome, count in notes.outcomes().items():
            setattr(report, outcome, count)
        for session_id, reason in notes.refusals():
            report.refuse(session_id, reason)
    return report


def _changed(error: ImportRejected) -> StoreUnavailable:
    return StoreUnavailable(
        store=error.file,
        detail=f"the file changed while it was imported ({error.detail}, {error.place}): what came in stays, import it again",
    )


# Checking


def _check(db: AnyDatabase, reader: LinesReader, notes: Ledger, hold: bool, on_bytes: OnBytes | None) -> None:
    """Read the file to its end. Nothing is written but the notes."""
    for batch in batches(reader, hold, db.redact):
        with db.read() as conn:
            checking = _Checking(conn, reader, notes)
            for ready in batch:
                checking.take(ready)
        if on_bytes is not None:
            on_bytes(reader.bytes_read, 2 * reader.size_bytes)
    LineOrder(reader, notes).end()


class _Checking:
    """A part of the file beside one snapshot of the store."""

    def __init__(self, conn: Connection, reader: LinesReader, notes: Ledger) -> None:
        self._conn = conn
        self._order = LineOrder(reader, notes)
        self._notes = notes

    def take(self, ready: Ready) -> None:
        if isinstance(ready.line, SessionLine):
            self._take_session(ready.line, ready)
        else:
            self._take_event(ready.line, ready)

    def _take_session(self, line: SessionLine, ready: Ready) -> None:
        held, reason = None, ready.problem
        if reason is None:
            try:
                held = _held(self._conn, line.session_id, ready.values)
            except Refused as refused:
                reason = str(refused)
        self._order.take_session(line, held, reason)

    def _take_event(self, line: EventLine, ready: Ready) -> None:
        entry = self._order.take_event(line)
        if entry.reason is not None:
            return
        try:
            if ready.problem is not None:
                raise Refused(ready.problem)
            self._check_content(entry, line, ready.values)
        except Refused as refused:
            self._notes.refuse(entry.number, str(refused))

    def _check_content(self, entry: Entry, line: EventLine, prepared: append.Prepared) -> None:
        event_id = prepared.parameters["event_id"]
        if event_id is not None and not self._notes.is_new_id(entry.number, event_id):
            raise Refused(f"event_id {shown(event_id)} of seq {line.seq} stands twice in the file")
        if line.seq > (entry.store_last_seq or 0):
            self._notes.note_size(entry.number, line.seq, prepared.payload_bytes)
            if entry.store_id is not None and event_id is not None:
                _check_id(self._conn, entry.store_id, line.seq, event_id)
        elif entry.store_id is not None and line.seq >= (entry.store_first_seq or 0):
            compare_event(self._conn, entry.store_id, line.seq, prepared)


def _held(conn: Connection, session_id: str, values: Mapping[str, Any]) -> Held | None:
    """What the store holds of a session, or held before it was deleted. Refuses what contradicts it."""
    standing = _standing(conn, session_id)
    if standing is not None:
        _check_standing(conn, standing, values)
        return Held(standing.id, standing.first_seq, standing.last_seq)
    grave = grave_of(conn, values)
    _check_grave(grave, values)
    return Held(None, grave["last_seq"] + 1, grave["last_seq"]) if grave else None


def _check_standing(conn: Connection, standing: Row[Any], values: Mapping[str, Any]) -> None:
    """Refuse what the file says of a session that contradicts what the store has."""
    check_scope(standing, values["tenant"], values["owner"])
    if standing.last_seq > 0 and values["first_seq"] > standing.last_seq + 1:
        raise Refused(f"a gap: the store holds it up to seq {standing.last_seq}, the file begins at {values['first_seq']}")
    if values["updated_at"] > standing.updated_at:
        cap = conn.execute(select(func.coalesce(values["max_events"], store.c.max_events))).scalar_one()
        held = standing.last_seq - standing.first_seq + 1
        if held > cap:
            raise Refused(f"the file sets its max_events to {cap}, and the store holds {held} of its events: lower that first")


def _check_grave(grave: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    if grave and values["first_seq"] > grave["last_seq"] + 1:
        raise Refused(f"a gap: the store held it up to seq {grave['last_seq']}, the file begins at {values['first_seq']}")


def _check_id(conn: Connection, session_number: int, seq: int, event_id: str) -> None:
    """Refuse an event whose `event_id` the session has already, unless the cap would have removed that one by then."""
    cap = func.coalesce(session.c.max_events, select(store.c.max_events).scalar_subquery())
    query = (
        select(event.c.seq)
        .join_from(event, session, session.c.id == event.c.session)
        .where(event.c.session == session_number, event.c.event_id == event_id, event.c.seq > seq - 1 - cap)
    )
    found = conn.execute(query).scalar()
    if found is not None:
        raise Refused(f"event_id {shown(event_id)} of seq {seq} stands at seq {found} already")


def _refuse_oversized(conn: Connection, notes: Ledger) -> None:
    limit = conn.execute(select(store.c.max_event_bytes)).scalar_one()
    for number, payload_bytes, seq in notes.larger_than(limit):
        error = EventTooLarge(payload_bytes=payload_bytes, max_event_bytes=limit)
        notes.refuse(number, f"the event at seq {seq}: {error}")


# Writing


def _write(
    db: AnyDatabase, reader: LinesReader, notes: Ledger, hold: bool, report: LinesReport, on_bytes: OnBytes | None
) -> None:
    """Write what was not refused, a batch at a time. What is committed of it counts."""
    for batch in batches(reader, hold, db.redact):
        with db.writes() as write:
            for part in db.parts(batch, lambda ready: ready.line.session_id):
                with write() as conn:
                    counts = _Writing(db, conn, reader, notes, hold).take_all(part)
                report.add(counts)
        if on_bytes is not None:
            on_bytes(reader.size_bytes + reader.bytes_read, 2 * reader.size_bytes)


@dataclass(slots=True)
class _State:
    """A session inside a transaction of ours, in which nobody else changes it."""

    row: Row[Any]
    last_seq: int


class _Writing:
    """One transaction of the import."""

    def __init__(self, db: AnyDatabase, conn: Connection, reader: LinesReader, notes: Ledger, hold: bool) -> None:
        self._db = db
        self._hold = hold
        self._conn = conn
        self._reader = reader
        self._notes = notes
        self._states: dict[int, _State] = {}
        self._counts = BroughtIn()

    def take_all(self, part: Sequence[Ready]) -> BroughtIn:
        """Write these lines; the counts of their events."""
        for ready in part:
            self._take(ready)
        return self._finished()

    def _take(self, ready: Ready) -> None:
        entry = self._notes.entry(ready.line.session_id)
        if entry is None:
            raise self._reader.rejected("a session that was not there before", ready.line.number)
        if entry.reason is not None:
            return
        try:
            if ready.problem is not None:
                raise Refused(ready.problem)
            if isinstance(ready.line, SessionLine):
                self._take_session(entry, ready.line, ready.values)
            else:
                self._take_event(entry, ready.line, ready.values)
        except REFUSING as refused:
            came_in = "" if entry.outcome is None else " (another writer changed it meanwhile; what came in before stays)"
            self._notes.refuse(entry.number, f"{refused}{came_in}")

    def _finished(self) -> BroughtIn:
        for state in self._states.values():
            self._counts.events_capped += max(state.last_seq + 1 - state.row.cap - state.row.first_seq, 0)
        return self._counts

    def _take_session(self, entry: Entry, line: SessionLine, values: dict[str, Any]) -> None:
        standing = _standing(self._conn, line.session_id)
        grave = grave_of(self._conn, values) if standing is None else {}
        if grave and line.last_seq <= grave["last_seq"]:
            outcome = "sessions_deleted"
        elif standing is None:
            _insert_session(self._db, self._conn, {**values, **grave})
            outcome = "sessions_added"
        else:
            _check_standing(self._conn, standing, values)
            changes = _changes(standing, values, self._hold)
            _update_session(self._db, self._conn, standing, changes)
            outcome = "sessions_updated" if changes else "sessions_unchanged"
        self._notes.settle(entry.number, outcome)

    def _take_event(self, entry: Entry, line: EventLine, prepared: append.Prepared) -> None:
        state = self._state(entry, line.session_id)
        if state is None:
            self._counts.events_pruned += 1
            return
        count = bring_event(self._conn, state.row, state.last_seq, line.seq, prepared)
        setattr(self._counts, count, getattr(self._counts, count) + 1)
        if count == "events_added":
            state.last_seq += 1
            if entry.outcome == "sessions_unchanged":
                self._notes.settle(entry.number, "sessions_updated")

    def _state(self, entry: Entry, session_id: str) -> _State | None:
        """The session as it is by now; None for one that was deleted, and of which the file has nothing newer."""
        known = self._states.get(entry.number)
        if known is None:
            row = _standing(self._conn, session_id)
            if row is None:
                if entry.outcome not in ("sessions_unchanged", "sessions_deleted"):
                    raise Refused("it was deleted from the store")
                return None
            known = self._states[entry.number] = _State(row, row.last_seq)
        return known


# Made once: to put it together would take as long as to carry it out.
_CAP: Final = func.coalesce(session.c.max_events, select(store.c.max_events).scalar_subquery())
_STANDING: Final = select(session, intact("session"), _CAP.label("cap")).where(session.c.session_id == bindparam("session_id"))


def _standing(conn: Connection, session_id: str) -> Row[Any] | None:
    """The session; where writers do not take turns it stays as it is until a transaction that writes ends."""
    row = conn.execute(locking(conn, _STANDING), {"session_id": session_id}).one_or_none()
    if row is not None:
        check_found(conn, row, session_id)
        check_intact(conn, row.intact, f"session {shown(row.session_id)}")
    return row


def _insert_session(db: AnyDatabase, conn: Connection, values: Mapping[str, Any]) -> None:
    """Make the session, without events yet. `Refused` if the schema does not take it."""
    try:
        with db.errors(), conn.begin_nested():
            conn.execute(insert(session).values(**values))
    except ConstraintRefused as error:
        raise Refused(f"the store does not take it: {error}") from None


def _changes(standing: Row[Any], values: Mapping[str, Any], hold: bool) -> dict[str, Any]:
    """The columns of a session that stands which change: its record if that of the file is newer, where its events begin if
    it has none so far, and hold if that was asked for.
    """
    changes: dict[str, Any] = {}
    if standing.last_seq == 0 and values["first_seq"] > 1:
        names: tuple[str, ...] = ("first_seq", "last_seq", "total_bytes", "last_event_at", "removed_at", "removed_reason")
        changes |= {name: values[name] for name in names}
    if values["updated_at"] > standing.updated_at:
        names = ("status", "metadata", "max_events", "hold", "ended_at", "updated_at")
        changes |= {name: values[name] for name in names}
    elif hold and not standing.hold:
        changes["hold"] = 1
    return changes


def _update_session(db: AnyDatabase, conn: Connection, standing: Row[Any], changes: Mapping[str, Any]) -> None:
    if not changes:
        return
    try:
        with db.errors(), conn.begin_nested():
            conn.execute(update(session).where(session.c.id == standing.id).values(**changes))
    except ConstraintRefused as error:
        raise Refused(f"the store does not take its record: {error}") from None
