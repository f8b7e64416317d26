"""Bringing a state file of the orchestrator into a store: each session in one transaction, whole or not at all."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from aegis_store import append, payload
from aegis_store.any_database import AnyDatabase, locking
from aegis_store.errors import InvalidEvent, shown
from aegis_store.events import Json, Status
from aegis_store.redaction import Redact
from aegis_store.schema import session
from aegis_store.sessions import check_found, new_record
from aegis_store.sqlite_errors import ConstraintRefused
from aegis_store.transfer.aegis_file import StagedState
from aegis_store.transfer.standing import REFUSING, BroughtIn, Refused, bring_event, check_scope, grave_of, moment_of
from aegis_store.transfer.standing import Refusal as Refusal

OnSessions = Callable[[int, int], None]
"""Called with (sessions done, sessions in the file)."""

BEFORE_IMPORT: Final = "before_import"
"""`removed_reason` of a session whose first events the file does not hold any more."""

_MAX_SEQ: Final = 10**12  # the schema's own bound: sums over all sessions stay within 64 bits
_LAST_MS: Final = 253_402_300_799_999  # the year 9999, where datetime ends
_EVENT_FIELDS: Final = {
    *("sessionId", "tenantId", "ownerKeyId", "eventSeq", "eventId", "backendRunId"),
    *("eventType", "occurredAt", "ingestedAt", "payload", "payloadRef"),
}


@dataclass(slots=True, kw_only=True)
class ImportReport(BroughtIn):
    """What an import did. `not_taken` counts the items of other parts of the file."""

    not_taken: Mapping[str, int] = field(default_factory=dict)


def bring_in(db: AnyDatabase, state: StagedState, on_sessions: OnSessions | None = None) -> ImportReport:
    """Import each session of the staged file. Those that cannot be taken are named in the report, the others come in."""
    report = ImportReport(not_taken=state.not_taken)
    total = state.session_count()
    for done, (record, count) in enumerate(state.sessions(), 1):
        name = record.get("id")
        try:
            if count > 1:
                raise Refused("its id stands twice in the file")
            with db.write() as conn:
                _bring_session(conn, record, state.events(name), report, db.redact)
        except (*REFUSING, ConstraintRefused) as refusal:
            report.refuse(name, str(refusal))
        if on_sessions is not None:
            on_sessions(done, total)
    for name, count in state.ownerless():
        report.refuse(name, f"{count} events, but no session of that id in the file")
    return report


def _bring_session(
    conn: Connection, record: dict[str, Json], events: Iterator[Json], report: ImportReport, redact: Redact | None
) -> None:
    values = _session_values(record)
    query = select(session).where(session.c.session_id == values["session_id"])
    standing = conn.execute(locking(conn, query)).one_or_none()
    if standing is not None:
        check_found(conn, standing, values["session_id"])
        check_scope(standing, values["tenant"], values["owner"])
    counts = ImportReport()  # of this session alone: they count only if its transaction comes to its end
    first = next(events, None)
    grave = grave_of(conn, values) if standing is None else {}
    while grave and first is not None and _seq_of(first) <= grave["last_seq"]:
        counts.events_pruned += 1
        first = next(events, None)
    if grave and first is None:
        counts.sessions_deleted = 1
        report.add(counts)
        return
    if standing is None:
        row = _insert_session(conn, values, 1 if first is None else _seq_of(first), grave)
        counts.sessions_added = 1
    else:
        row = _update_session(conn, standing, values, counts)
        if first is not None and standing.last_seq == 0:
            row = _start_at(conn, row, _seq_of(first))
    if first is not None:
        prepared = ((_seq_of(event), _prepared(event, values, redact)) for event in _chained(first, events))
        _bring_events(conn, row, prepared, counts)
    if not counts.sessions_added:
        counts.sessions_updated = int(counts.sessions_updated or counts.events_added > 0)
        counts.sessions_unchanged = 1 - counts.sessions_updated
    report.add(counts)


def _chained(first: Json, rest: Iterator[Json]) -> Iterator[Json]:
    yield first
    yield from rest


# The session's record


def _session_values(record: dict[str, Json]) -> dict[str, Any]:
    """A session of the file as a row. Fields that a session of the store does not have go to `metadata`."""
    rest = dict(record)
    status = rest.pop("status", None)
    if not isinstance(status, str):
        raise Refused(f"status must be text, not {shown(status)}")
    values = new_record(
        rest.pop("id", None) or "",
        tenant=rest.pop("tenantId", None),
        owner=rest.pop("ownerKeyId", None),
        status=status,
        metadata={},
        max_events=None,
    )
    values["created_at"] = _ms(rest.pop("createdAt", None), "createdAt")
    values["updated_at"] = _ms(rest.pop("updatedAt", None), "updatedAt")
    if Status(status).is_terminal:
        ended = next((name for name in (f"{status}At", "closedAt", "failedAt") if name in rest), None)
        values["ended_at"] = values["updated_at"] if ended is None else _ms(rest.pop(ended), ended)
    values["metadata"] = payload.encode_metadata(rest)
    return values


def _ms(value: Json, name: str) -> int:
    """Milliseconds of the file as microseconds."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LAST_MS:
        raise Refused(f"{name} must be milliseconds since the epoch, not {shown(value)}")
    return value * 1000


def _insert_session(conn: Connection, values: dict[str, Any], first_seq: int, grave: dict[str, Any]) -> Row[Any]:
    """Make the session, without events yet: where the file's events begin, or where a deleted one left off."""
    reason = BEFORE_IMPORT if first_seq > 1 else None
    start = {"first_seq": first_seq, "last_seq": first_seq - 1, "removed_reason": reason}
    conn.execute(insert(session).values(**values | (grave or start)))
    return _row(conn, values["session_id"])


def _start_at(conn: Connection, row: Row[Any], first_seq: int) -> Row[Any]:
    """A session that stands without an event so far: it begins where the file's events begin."""
    if first_seq > 1:
        start = {"last_seq": first_seq - 1, "first_seq": first_seq, "removed_reason": BEFORE_IMPORT}
        conn.execute(update(session).where(session.c.id == row.id).values(**start))
    return _row(conn, row.session_id)


def _update_session(conn: Connection, standing: Row[Any], values: dict[str, Any], counts: ImportReport) -> Row[Any]:
    """Take over the file's record if it is the newer one."""
    changing = {name: values[name] for name in ("status", "ended_at", "metadata", "updated_at")}
    if values["updated_at"] > standing.updated_at:
        conn.execute(update(session).where(session.c.id == standing.id).values(**changing))
        counts.sessions_updated = 1
    return _row(conn, standing.session_id)


def _row(conn: Connection, session_id: str) -> Row[Any]:
    return conn.execute(select(session).where(session.c.session_id == session_id)).one()


# Its events


def _bring_events(conn: Connection, row: Row[Any], events: Iterator[tuple[int, append.Prepared]], counts: ImportReport) -> None:
    previous: int | None = None
    for seq, prepared in events:
        if previous is not None and seq != previous + 1:
            raise Refused(f"seq {seq} stands twice" if seq == previous else f"a gap: seq {seq} follows {previous}")
        previous = seq
        count = bring_event(conn, row, row.last_seq + counts.events_added, seq, prepared)
        setattr(counts, count, getattr(counts, count) + 1)
    counts.events_capped = _row(conn, row.session_id).first_seq - row.first_seq


def _seq_of(record: Json) -> int:
    seq = record.get("eventSeq")
    if isinstance(seq, bool) or not isinstance(seq, int) or not 1 <= seq <= _MAX_SEQ:
        raise Refused(f"eventSeq must be a whole number from 1 to {_MAX_SEQ:,}, not {shown(seq)}")
    return seq


def _prepared(record: dict[str, Json], values: Mapping[str, Any], redact: Redact | None) -> append.Prepared:
    seq = record["eventSeq"]
    unknown = sorted(record.keys() - _EVENT_FIELDS)
    if unknown:
        raise Refused(f"the event at seq {seq} has a field that the store has no place for: {shown(unknown[0])}")
    if "payload" not in record:
        raise Refused(f"the event at seq {seq} has no payload")
    for name, ours in (("tenantId", "tenant"), ("ownerKeyId", "owner")):
        if record.get(name) != values[ours]:
            raise Refused(f"the event at seq {seq} belongs to another {name}, {shown(record.get(name))}")
    try:
        return append.prepare(
            values["session_id"],
            record.get("eventType"),  # type: ignore[arg-type]  # checked there
            record["payload"],
            record.get("eventId"),
            None,
            _moment(record, "occurredAt"),
            record.get("backendRunId"),
            record.get("payloadRef"),
            _moment(record, "ingestedAt"),
            redact=redact,
        )
    except InvalidEvent as error:
        raise Refused(f"the event at seq {seq}: {error}") from None


def _moment(record: dict[str, Json], name: str) -> datetime:
    try:
        return moment_of(record.get(name))
    except ValueError as error:
        raise Refused(f"the event at seq {record['eventSeq']}: {name} {error}") from None
