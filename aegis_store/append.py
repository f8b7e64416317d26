"""The write path: an event becomes a row in one statement, which is one transaction.

    INSERT INTO event … SELECT last_seq + 1 … FROM session WHERE session_id = … RETURNING seq, position

The triggers count it and keep the cap (see `schema`). When the statement inserts nothing (no such session, another
`last_seq` than expected, a deploy has moved the store) or is refused (`event_id` known, payload too large), `_settle` finds out
which, inside one write transaction, so that the answer is true at one moment.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, Text, bindparam, func, insert, literal_column, select, text

from aegis_store import payload as payloads
from aegis_store.any_database import AnyDatabase
from aegis_store.checksum import NEXT_SUM_SQL, STORE_NUMBER, content_sum
from aegis_store.driver_text import driver_text
from aegis_store.errors import EventIdConflict, EventTooLarge, InvalidEvent, SequenceConflict, shown
from aegis_store.events import Event, Json, NewEvent, checked_text, from_us, to_us
from aegis_store.read import event_of
from aegis_store.redaction import Redact, redacted
from aegis_store.schema import AT_HEAD_SQL, event, session, store
from aegis_store.scope import Scope
from aegis_store.sessions import OWN, known_id, known_in_scope, row_of
from aegis_store.settings import MAX_PAYLOAD_REF_BYTES
from aegis_store.sqlite_errors import ConstraintRefused, damaged


def _compiled_insert(*conditions: ColumnElement[bool]) -> str:
    """The statement of an append, as text for the driver; into a session that is found under these conditions, too."""
    given = ("type", "occurred_at", "recorded_at", "event_id", "run_id", "payload_ref", "payload")
    times = ("occurred_at", "recorded_at")
    expected = bindparam("expected_seq", type_=BigInteger)
    row = select(
        session.c.id,
        session.c.last_seq + literal_column("1"),
        session.c.total_bytes,
        *(bindparam(name, type_=BigInteger if name in times else Text) for name in given),
        literal_column(NEXT_SUM_SQL),
    ).where(
        session.c.session_id == bindparam("session_id", type_=Text),
        session.c.last_seq == func.coalesce(expected, session.c.last_seq),
        text(AT_HEAD_SQL),
        *conditions,
    )
    statement = (
        insert(event)
        .from_select(["session", "seq", "bytes_before", *given, "checksum"], row, include_defaults=False)
        .returning(event.c.seq, event.c.position)
    )
    return driver_text(statement)


# On PostgreSQL the session's row is locked before its counter is read: another writer of it waits, and sees what this one has
# made of it. Nothing is inserted where SQLite's guards raise, since an error ends the whole transaction there.
_POSTGRESQL_INSERT: Final = f"""
WITH s AS (
  SELECT id, last_seq, total_bytes FROM session
  WHERE session_id = %(session_id)s::text AND last_seq = coalesce(%(expected_seq)s::bigint, last_seq)
    AND {AT_HEAD_SQL}{{conditions}} FOR UPDATE
)
INSERT INTO event (
  session, seq, bytes_before, type, occurred_at, recorded_at, event_id, run_id, payload_ref, payload, checksum
) SELECT
  id, last_seq + 1, total_bytes, %(type)s::text, %(occurred_at)s::bigint, %(recorded_at)s::bigint, %(event_id)s::text,
  %(run_id)s::text, %(payload_ref)s::text, %(payload)s::text, %(checksum)s::bigint
FROM s WHERE octet_length(%(payload)s::text) <= (SELECT max_event_bytes FROM store)
ON CONFLICT DO NOTHING RETURNING seq, position
"""

APPEND_SQL: Final = _compiled_insert()
APPEND_ON: Final = {"sqlite": APPEND_SQL, "postgresql": _POSTGRESQL_INSERT.format(conditions="")}
"""The statement of an append by the dialect."""

_APPEND_IN_SCOPE: Final = {
    "sqlite": _compiled_insert(OWN),
    "postgresql": _POSTGRESQL_INSERT.format(conditions=" AND tenant = %(tenant)s::text AND owner = %(owner)s::text"),
}


class Prepared(NamedTuple):
    """An event that was checked and encoded; only the store's numbers are missing."""

    session_id: str
    payload: Json
    payload_bytes: int
    occurred_at: datetime
    recorded_at: datetime
    parameters: dict[str, Any]
    sql: Mapping[str, str] = APPEND_ON
    scope: Scope | None = None

    def __repr__(self) -> str:
        return f"<Prepared of session {shown(self.session_id)}>"

    def stored(self, seq: int, position: int) -> Event:
        given = self.parameters
        return Event(
            self.session_id,
            seq,
            position,
            given["type"],
            self.payload,
            self.occurred_at,
            self.recorded_at,
            given["event_id"],
            given["run_id"],
            given["payload_ref"],
        )


def prepare(
    session_id: str,
    type: str,
    payload: Json,
    event_id: str | None,
    expected_seq: int | None,
    occurred_at: datetime | None,
    run_id: str | None,
    payload_ref: str | None,
    recorded_at: datetime | None = None,
    *,
    redact: Redact | None = None,
    scope: Scope | None = None,
) -> Prepared:
    """Check and encode an event, recorded now or, when it is imported, at `recorded_at`; what `redact` gives, if there is one.
    With a scope it is for a session of that alone.

    Raises `InvalidEvent`, `SessionNotFound` for an id that no session can have, `RedactionFailed`.
    """
    if redact is not None:
        payload = redacted(redact, known_id(session_id), checked_text("type", type, InvalidEvent), payload)
    text, encoded = payloads.encode(payload)
    recorded_us = time.time_ns() // 1000 if recorded_at is None else to_us(recorded_at)
    recorded_at = from_us(recorded_us)
    if occurred_at is None:
        occurred_us, occurred_at = recorded_us, recorded_at
    else:
        occurred_us = checked_moment(occurred_at)
        occurred_at = from_us(occurred_us)
    parameters: dict[str, Any] = {
        "session_id": known_id(session_id),
        "type": checked_text("type", type, InvalidEvent),
        "payload": text,
        "occurred_at": occurred_us,
        "recorded_at": recorded_us,
        "event_id": None if event_id is None else checked_text("event_id", event_id, InvalidEvent),
        "run_id": None if run_id is None else checked_text("run_id", run_id, InvalidEvent),
        "payload_ref": None if payload_ref is None else checked_payload_ref(payload_ref),
        "expected_seq": None if expected_seq is None else _checked_seq(expected_seq),
    }
    given = parameters
    parameters["checksum"] = content_sum(
        given["session_id"],
        given["type"],
        encoded,
        occurred_us,
        recorded_us,
        given["event_id"],
        given["run_id"],
        given["payload_ref"],
    )
    if scope is None:
        return Prepared(parameters["session_id"], payload, len(encoded), occurred_at, recorded_at, parameters)
    parameters |= scope._asdict()
    named = parameters["session_id"]
    return Prepared(named, payload, len(encoded), occurred_at, recorded_at, parameters, _APPEND_IN_SCOPE, scope)


def checked_moment(moment: datetime) -> int:
    """`occurred_at` in microseconds since the epoch; `InvalidEvent` if it is not an aware datetime."""
    if not isinstance(moment, datetime):
        raise InvalidEvent.at("occurred_at", f"must be a datetime, not {type(moment).__name__}")
    try:
        return to_us(moment)
    except ValueError as error:
        raise InvalidEvent.at("occurred_at", str(error)) from None


def checked_payload_ref(value: str) -> str:
    return checked_text("payload_ref", value, InvalidEvent, MAX_PAYLOAD_REF_BYTES)


def _checked_seq(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidEvent.at("expected_seq", f"must be a whole number from 0 on, not {shown(value)}")
    return value


def append(db: AnyDatabase, prepared: Prepared) -> Event:
    """Append one event, committed when this returns."""
    try:
        rows = db.execute_alone(prepared.sql[db.dialect], prepared.parameters, prepared.payload_bytes)
    except ConstraintRefused:
        rows = []
    return prepared.stored(*rows[0]) if rows else settle(db, prepared)


def settle(db: AnyDatabase, prepared: Prepared) -> Event:
    """What became of an append that inserted nothing; see above."""
    with db.write() as conn:
        standing = _settle(conn, prepared)
        # If nothing stands in the way any more: the session was created, or the limit raised, since.
        event = standing or insert_one(conn, prepared)
    db.metrics.committed(0 if standing else 1)
    return event


def append_many(db: AnyDatabase, session_id: str, prepared: Sequence[Prepared], expected_seq: int | None) -> list[Event]:
    """Append all in one transaction, or none. Events whose `event_id` is known come back as they stand."""
    if expected_seq is not None:
        _checked_seq(expected_seq)
    with db.write() as conn:
        row = row_of(conn, session_id)
        standing = [_standing_of_many(conn, row.id, event, index) for index, event in enumerate(prepared)]
        if expected_seq not in (None, row.last_seq) and (None in standing or not prepared):
            raise SequenceConflict(session_id=session_id, expected=expected_seq or 0, actual=row.last_seq)
        events: list[Event] = []
        for event, known in zip(prepared, standing, strict=True):
            events.append(known or _insert_of_many(conn, event, events))
    db.metrics.committed(standing.count(None))
    return events


def _standing_of_many(conn: Connection, session: int, prepared: Prepared, index: int) -> Event | None:
    try:
        return _standing(conn, session, prepared)
    except EventIdConflict as error:
        raise error.below(f"events[{index}]") from None


def _insert_of_many(conn: Connection, prepared: Prepared, before: Sequence[Event]) -> Event:
    """`before`: what has become of the events of the batch that come before it."""
    path = f"events[{len(before)}]"
    try:
        return insert_one(conn, prepared)
    except EventTooLarge as error:
        raise error.below(path) from None
    except EventIdConflict as error:  # with one of them, whose seq nobody will see
        other = [event.seq for event in before].index(error.seq or 0)
        raise error.below(path, other_path=f"events[{other}]") from None


def insert_one(conn: Connection, prepared: Prepared) -> Event:
    """Append inside your transaction. An error leaves the transaction as it was before."""
    cursor = conn.connection.cursor()
    try:
        rows = cursor.execute(prepared.sql[conn.dialect.name], prepared.parameters).fetchall()
    except conn.dialect.loaded_dbapi.IntegrityError:
        rows = []
    finally:
        cursor.close()
    if rows:
        return prepared.stored(*rows[0])
    standing = _settle(conn, prepared)
    if standing is None:
        raise damaged(conn, f"the schema refuses an event of session {shown(prepared.session_id)} that should fit")
    return standing


def _settle(conn: Connection, prepared: Prepared) -> Event | None:
    """Why an append inserted nothing: the event that stands already, or an error. None: nothing is in its way."""
    given = prepared.parameters
    if prepared.scope is not None:
        known_in_scope(conn, prepared.scope, prepared.session_id)
    row = row_of(conn, prepared.session_id)
    standing = _standing(conn, row.id, prepared)
    if standing is not None:
        return standing
    if given["expected_seq"] not in (None, row.last_seq):
        raise SequenceConflict(session_id=prepared.session_id, expected=given["expected_seq"], actual=row.last_seq)
    limit = conn.execute(select(store.c.max_event_bytes)).scalar_one()
    if prepared.payload_bytes > limit:
        raise EventTooLarge(payload_bytes=prepared.payload_bytes, max_event_bytes=limit)
    return None


def _standing(conn: Connection, session: int, prepared: Prepared) -> Event | None:
    """The stored event of the same `event_id`, if there is one. `EventIdConflict` if its content is another."""
    given = prepared.parameters
    if given["event_id"] is None:
        return None
    query = select(event, STORE_NUMBER).where(event.c.session == session, event.c.event_id == given["event_id"])
    row = conn.execute(query).one_or_none()
    if row is None:
        return None
    found = event_of(conn, prepared.session_id, row)
    if found.event_id != given["event_id"]:
        raise damaged(conn, f"its index leads from event_id {shown(given['event_id'])} to another event")
    content = tuple(given[name] for name in ("type", "run_id", "payload_ref"))
    if (row.type, row.run_id, row.payload_ref) != content or not payloads.same_text(row.payload, given["payload"]):
        raise EventIdConflict(session_id=prepared.session_id, event_id=given["event_id"], seq=row.seq)
    return found


def prepare_all(session_id: str, events: Iterable[NewEvent], redact: Redact | None = None) -> list[Prepared]:
    """Check and encode each, redacted. `InvalidEvent` names the place in the sequence."""
    prepared = []
    if not isinstance(events, Iterable):
        raise InvalidEvent.at("events", f"must be an iterable of NewEvent, not {type(events).__name__}")
    for index, new in enumerate(events):
        if not isinstance(new, NewEvent):
            raise InvalidEvent.at(f"events[{index}]", f"must be a NewEvent, not {type(new).__name__}")
        try:
            prepared.append(
                prepare(
                    session_id,
                    new.type,
                    new.payload,
                    new.event_id,
                    None,
                    new.occurred_at,
                    new.run_id,
                    new.payload_ref,
                    redact=redact,
                )
            )
        except InvalidEvent as error:
            raise error.below(f"events[{index}]") from None
    return prepared
