"""The lines of a file as rows for the store: their values are checked and encoded, before a transaction begins."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aegis_store import append
from aegis_store.checksum import content_sum
from aegis_store.errors import InvalidInput, InvalidSession, SessionNotFound, shown
from aegis_store.events import UNLIMITED, Json, checked_text, to_us
from aegis_store.line_reader import EventLine, LinesReader, SessionLine
from aegis_store.redaction import Redact
from aegis_store.sessions import new_record
from aegis_store.transfer.standing import Refused, moment_of

# A transaction of an import: other writers wait for it, about 30 ms. By bytes too, since an event may have 16 MiB.
BATCH_LINES: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ready:
    """A line whose values were checked: `values` is a row or an event, or `problem` says what is wrong with it."""

    line: SessionLine | EventLine
    values: Any
    problem: str | None


def batches(reader: LinesReader, hold: bool, redact: Redact | None) -> Iterator[list[Ready]]:
    """The lines of the file, checked and encoded before a transaction begins. Decoded payloads are not kept."""
    batch: list[Ready] = []
    size = 0
    for line in reader.lines():
        size += len(line.payload_text) if isinstance(line, EventLine) else 0
        batch.append(_ready(line, hold, redact))
        if len(batch) >= BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def _ready(line: SessionLine | EventLine, hold: bool, redact: Redact | None) -> Ready:
    values: Any = None
    problem = None
    try:
        values = _prepared(line, redact) if isinstance(line, EventLine) else _session_values(line, hold)
    except (Refused, InvalidInput, SessionNotFound) as error:
        where = f"the event at seq {line.seq}: " if isinstance(line, EventLine) else ""
        problem = f"{where}{error} (line {line.number})"
    line.fields.clear()
    return Ready(line, values, problem)


def _session_values(line: SessionLine, hold: bool) -> dict[str, Any]:
    """A session of the file as a row without events. Raises `Refused`, `InvalidSession`, `InvalidPolicy`."""
    fields = line.fields
    if not isinstance(fields["metadata"], dict) or not isinstance(fields["hold"], bool):
        raise Refused("metadata must be an object and hold true or false")
    cap = fields["max_events"]
    values = new_record(
        line.session_id,
        tenant=fields["tenant"],
        owner=fields["owner"],
        status=fields["status"],
        metadata=fields["metadata"],
        max_events=UNLIMITED if cap == UNLIMITED.value else cap,
    )
    is_terminal, reason = values["ended_at"] is not None, fields["removed_reason"]
    for name in ("created_at", "updated_at"):
        values[name] = _us(fields, name)
    for name in ("ended_at", "last_event_at", "removed_at"):
        values[name] = None if fields[name] is None else _us(fields, name)
    if is_terminal != (values["ended_at"] is not None):
        raise Refused(f"status {values['status']} with ended_at {shown(fields['ended_at'])} cannot be")
    return values | {
        "hold": int(hold or fields["hold"]),
        "removed_reason": None if reason is None else checked_text("removed_reason", reason, InvalidSession),
        "first_seq": line.first_seq,
        "last_seq": line.first_seq - 1,
        "total_bytes": line.removed_bytes,
        # Events bring it along. Given before them, it would look as if the clock had gone back.
        "last_event_at": None if line.first_seq <= line.last_seq else values["last_event_at"],
    }


def _us(fields: Mapping[str, Json], name: str) -> int:
    try:
        return to_us(moment_of(fields[name]))
    except ValueError as error:
        raise Refused(f"{name} {error}, not {shown(fields[name])}") from None


def _prepared(line: EventLine, redact: Redact | None) -> append.Prepared:
    """The event with its payload in the words of the file, so that it takes as many bytes as it did, unless it was redacted."""
    fields = line.fields
    try:
        occurred_at, recorded_at = (moment_of(fields[name]) for name in ("occurred_at", "recorded_at"))
    except ValueError as error:
        raise Refused(f"occurred_at and recorded_at {error}") from None
    prepared = append.prepare(
        line.session_id,
        fields["type"],
        fields["payload"],
        fields["event_id"],
        line.seq - 1,
        occurred_at,
        fields["run_id"],
        fields["payload_ref"],
        recorded_at,
        redact=redact,
    )
    if prepared.payload is not fields["payload"]:
        return prepared._replace(payload=None)
    text = line.payload_text
    encoded, given = text.encode(), prepared.parameters
    times, ids = (given["occurred_at"], given["recorded_at"]), (given["event_id"], given["run_id"], given["payload_ref"])
    checksum = content_sum(given["session_id"], given["type"], encoded, *times, *ids)
    parameters = {**given, "payload": text, "checksum": checksum}
    return prepared._replace(payload=None, payload_bytes=len(encoded), parameters=parameters)
