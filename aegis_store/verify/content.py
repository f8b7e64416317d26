"""What only we know of a store: each session's events are one range, in order, as they were written, and its counters agree."""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, func, select

from aegis_store import payload as payloads
from aegis_store.any_database import Readable, streamed
from aegis_store.checksum import STORE_NUMBER, event_is_intact
from aegis_store.errors import StoreCorrupt, shown
from aegis_store.events import from_us
from aegis_store.read import last_position
from aegis_store.record_copy import intact
from aegis_store.schema import event, prune_run, session, store, tombstone
from aegis_store.verify.report import Problem

_EVENTS_AT_ONCE: Final = 500
"""Events of a snapshot: short, so that the write-ahead log can be begun anew in between."""

_SESSION: Final = select(session, intact("session")).where(session.c.id == bindparam("key"))
_EVENTS: Final = (
    select(event, STORE_NUMBER)
    .where(event.c.session == bindparam("key"), event.c.seq >= bindparam("start"))
    .order_by(event.c.seq)
    .limit(_EVENTS_AT_ONCE)
)
_MAX_EVENTS: Final = select(store.c.max_events)


# Records


def damaged_records(conn: Connection) -> Iterator[Problem]:
    """The policy, tombstones and runs of prunes that are not what was written; ids that stand twice."""
    if conn.execute(select(func.count()).select_from(store)).scalar_one() != 1:
        yield Problem("record", "the policy does not stand in one row")
    if not all(conn.execute(select(intact("store")).select_from(store)).scalars()):
        yield Problem("record", "the policy, or the note of what was removed last, is not what was written")
    for row in conn.execute(select(tombstone.c.session_id).where(~intact("tombstone"))):
        yield Problem("record", "its tombstone is not what was written", row.session_id)
    for row in conn.execute(select(prune_run.c.id).where(~intact("prune_run"))):
        yield Problem("record", f"run {row.id} of a prune is not what was written")
    both = select(session.c.session_id).join(tombstone, tombstone.c.session_id == session.c.session_id)
    for row in conn.execute(both):
        yield Problem("record", "it has a session and a tombstone", row.session_id)


def wrong_totals(conn: Connection) -> Iterator[Problem]:
    """What the store counts over all sessions, held against its rows, at one moment."""
    row = conn.execute(select(store.c.removed_position, store.c.retained_bytes)).one()
    if not isinstance(row.removed_position, int):  # its record is damaged, which was told
        return
    above = select(func.count()).select_from(event).where(event.c.position > row.removed_position)
    wanted = max(last_position(conn) - row.removed_position, 0)
    found = conn.execute(above).scalar_one()
    if found != wanted:
        yield Problem("range", f"above position {row.removed_position} there are {found:,} events, and were {wanted:,}")
    if isinstance(row.retained_bytes, int):
        held = conn.exec_driver_sql("SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM event").scalar_one()
        if held != row.retained_bytes:
            yield Problem("record", f"the budget counts {row.retained_bytes:,} bytes of payloads, and {held:,} are there")


# Sessions


class _Last(NamedTuple):
    """The event that was looked at last, and what follows from it for the next."""

    seq: int
    position: int
    recorded_at: int
    end_bytes: int


class SessionCheck:
    """One session, looked at a stretch at a time. Writers and prunes go on meanwhile: what they remove is passed over."""

    def __init__(self, db: Readable, key: int) -> None:
        self.events = 0
        self.without_checksum = 0
        self._db = db
        self._key = key
        self._name: str | None = None
        self._last: _Last | None = None

    def stretches(self) -> Iterator[list[Problem]]:
        """The problems of the record and of the events, as they are met."""
        try:
            while True:
                before = self.events
                with self._db.read() as conn:
                    problems = list(self._stretch(conn))
                yield problems
                if self.events - before < _EVENTS_AT_ONCE:
                    return
        except StoreCorrupt as error:
            where = self._last.seq + 1 if self._last else None
            yield [Problem("structure", f"it cannot be read from here on: {error.detail}", self._name, where)]

    def _stretch(self, conn: Connection) -> Iterator[Problem]:
        """What one snapshot shows of the session: its record, and its next events, one by one."""
        row = conn.execute(_SESSION, {"key": self._key}).one_or_none()
        if row is None:  # deleted meanwhile
            return
        self._name = row.session_id
        if not all(isinstance(number, int) for number in (row.first_seq, row.last_seq, row.total_bytes, row.unsorted_seq)):
            yield self._problem("record", "its record has text where a number belongs")
            return
        if self._last is None:
            yield from self._of_record(row, conn.execute(_MAX_EVENTS).scalar())
        elif row.first_seq > self._last.seq + 1:
            self._last = None  # what lay between was removed meanwhile
        start, before = self._last.seq + 1 if self._last else row.first_seq, self.events
        with streamed(conn, _EVENTS.params(key=self._key, start=start)) as events:
            yield from self._of_events(row, events)
        if self.events - before < _EVENTS_AT_ONCE:
            yield from self._of_end(row)

    def _of_record(self, row: Row[Any], max_events: int | None) -> Iterator[Problem]:
        if not row.intact:
            yield self._problem("record", "its record is not what was written")
        held, cap = row.last_seq - row.first_seq + 1, max_events if row.max_events is None else row.max_events
        if row.session_id is not None and held > _number(cap) > 0:
            yield self._problem("record", f"it holds {held:,} events, and its cap is {cap:,}")
        if held and row.oldest_at is None:
            yield self._problem("note", "it has events, and no note of how old the oldest is")
        if not _are_times(row.created_at, row.updated_at, row.ended_at, row.last_event_at, row.removed_at):
            yield self._problem("record", "it has a time before the year 1 or after 9999")
        try:
            payloads.decode(row.metadata)
        except (ValueError, TypeError) as error:
            yield self._problem("record", f"its metadata is no JSON: {error}")

    def _of_events(self, row: Row[Any], events: Iterable[Row[Any]]) -> Iterator[Problem]:
        for each in events:
            last = self._last
            expected = last.seq + 1 if last else row.first_seq
            seq, position, recorded_at, before = map(_number, (each.seq, each.position, each.recorded_at, each.bytes_before))
            if seq != expected:
                yield self._problem("range", f"event {expected} is missing, the next is {seq}", expected)
            elif last and (position <= last.position or before != last.end_bytes):
                yield self._problem("range", "it does not follow the event before it", seq)
            yield from self._of_event(row, each, last)
            self._last = _Last(seq, position, recorded_at, before + _size(each.payload))
            self.events += 1

    def _of_event(self, row: Row[Any], each: Row[Any], last: _Last | None) -> Iterator[Problem]:
        seq = _number(each.seq)
        self.without_checksum += each.checksum is None
        if row.session_id is not None and not event_is_intact(row.session_id, each):
            yield self._problem("event", "it is not what was written: its checksum differs, or its columns are shifted", seq)
            return
        try:
            payloads.decode(each.payload)
        except (ValueError, TypeError) as error:
            yield self._problem("event", f"its payload is no JSON: {error}", seq)
        if None in (each.occurred_at, each.recorded_at) or not _are_times(each.occurred_at, each.recorded_at):
            yield self._problem("event", "it has no time of the years 1 to 9999", seq)
            return
        went_back = last is not None and each.recorded_at < last.recorded_at and seq > row.unsorted_seq
        if went_back or (row.oldest_at is not None and each.recorded_at < _number(row.oldest_at)):
            yield self._problem("note", "it was recorded earlier than the session notes", seq)

    def _of_end(self, row: Row[Any]) -> Iterator[Problem]:
        seq = self._last.seq + 1 if self._last else row.first_seq
        if seq <= row.last_seq:
            yield self._problem("range", f"events {seq} to {row.last_seq} are missing", seq)
        elif seq > row.last_seq + 1:
            yield self._problem("range", f"its record knows of no event after {row.last_seq}", row.last_seq + 1)
        elif self._last is None:
            return
        elif self._last.end_bytes != row.total_bytes:
            detail = f"its record counts {row.total_bytes:,} bytes of payloads, its events {self._last.end_bytes:,}"
            yield self._problem("record", detail)
        elif self._last.recorded_at != row.last_event_at:
            yield self._problem("record", "its record tells another time of its last event than that does")

    def _problem(self, kind: str, detail: str, seq: int | None = None) -> Problem:
        where = "" if self._name is not None else f" (session number {shown(self._key)}, which was deleted)"
        return Problem(kind, detail + where, self._name, seq)


def _are_times(*moments_us: int | None) -> bool:
    """Whether each can be read, if it is there: a shell may write any number."""
    try:
        return all(us is None or from_us(us) for us in moments_us)
    except (OverflowError, TypeError):
        return False


def _number(column: object) -> int:
    """It, if it is a number: in a row whose columns are shifted it may be anything."""
    return column if isinstance(column, int) else 0


def _size(payload: object) -> int:
    return len(payload.encode()) if isinstance(payload, str) else 0
