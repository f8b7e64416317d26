"""What imports share: a file is held against what stands in the store, and a session that cannot be taken is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, select

from aegis_store import append, payload
from aegis_store.errors import EventIdConflict, EventTooLarge, InvalidInput, SessionExists, shown
from aegis_store.events import Json, to_us
from aegis_store.schema import event
from aegis_store.sessions import after_tombstone
from aegis_store.settings import MAX_REFUSALS, MAX_TEXT_BYTES

_CONTENT: Final = ("type", "occurred_at", "recorded_at", "event_id", "run_id", "payload_ref")


class Refused(Exception):
    """The session cannot be taken; the message says why."""


REFUSING: Final = (Refused, InvalidInput, EventIdConflict)
"""What refuses a session when it comes up while the session is checked or written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A session that was not taken, and why. Nothing of it was written, or the reason says what."""

    session_id: str
    reason: str


@dataclass(slots=True, kw_only=True)
class BroughtIn:
    """What came in.

    `events_added` counts what was written, of which `events_capped` went again at once because of the session's cap.
    `events_standing` were in the store already, equal; `events_pruned` were once, and do not return. `sessions_deleted` were
    deleted or forgotten here, the file has nothing newer of them, and they do not return either. `refused` are the first
    thousand that were, `more_refused` counts those beyond.
    """

    sessions_added: int = 0
    sessions_updated: int = 0
    sessions_unchanged: int = 0
    sessions_deleted: int = 0
    events_added: int = 0
    events_capped: int = 0
    events_standing: int = 0
    events_pruned: int = 0
    refused: list[Refusal] = field(default_factory=list)
    more_refused: int = 0

    def refuse(self, session_id: Json, reason: str) -> None:
        """Name one more: by its id, if it can be one, else as it may stand in a message."""
        if len(self.refused) >= MAX_REFUSALS:
            self.more_refused += 1
            return
        could_be = isinstance(session_id, str) and len(session_id) <= MAX_TEXT_BYTES
        self.refused.append(Refusal(session_id=session_id if could_be else shown(session_id), reason=reason))

    def add(self, other: "BroughtIn") -> None:
        """Add the counts of a part: once its transaction has come to its end."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_COUNTS: Final = tuple(each.name for each in fields(BroughtIn) if each.type is int)

EventCount = Literal["events_added", "events_standing", "events_pruned"]


def check_scope(standing: Row[Any], tenant: str, owner: str) -> None:
    """Refuse a session that the store holds for somebody else."""
    if (standing.tenant, standing.owner) != (tenant, owner):
        raise Refused("its id is taken in the store by another tenant or owner")


def grave_of(conn: Connection, values: Mapping[str, Any]) -> dict[str, Any]:
    """Where a session goes on that the store has deleted or forgotten; empty for one that it never had.

    What was deleted does not return: a session comes again only with events that are newer.
    """
    try:
        return after_tombstone(conn, values)
    except SessionExists:
        raise Refused("its id is taken in the store by another tenant or owner") from None


def bring_event(conn: Connection, row: Row[Any], last_seq: int, seq: int, prepared: append.Prepared) -> EventCount:
    """Append the event if it is the session's next one. The count of a report to which it belongs.

    `last_seq` is the session's by now, `row` may be older. One that stands must be equal. Otherwise `Refused` and what
    `append` raises; the transaction is then as it was before.
    """
    if seq < row.first_seq:
        return "events_pruned"
    if seq <= last_seq:
        compare_event(conn, row.id, seq, prepared)
        return "events_standing"
    if seq > last_seq + 1:
        raise Refused(f"a gap: the store holds it up to seq {last_seq}, the file begins at {seq}")
    try:
        stored = append.insert_one(conn, prepared)
    except EventTooLarge as error:
        raise Refused(f"the event at seq {seq}: {error}") from None
    if stored.seq != seq:
        raise Refused(f"eventId of seq {seq} stands at seq {stored.seq} already")
    return "events_added"


def compare_event(conn: Connection, session: int, seq: int, prepared: append.Prepared) -> None:
    """Refuse a file that says something else of an event than the store does. An event that went meanwhile is passed over."""
    stored = conn.execute(select(event).where(event.c.session == session, event.c.seq == seq)).one_or_none()
    if stored is None:
        return
    for name in _CONTENT:
        if getattr(stored, name) != prepared.parameters[name]:
            raise Refused(f"the store has another {name} for the event at seq {seq}")
    if not payload.same_text(stored.payload, prepared.parameters["payload"]):
        raise Refused(f"the store has another payload for the event at seq {seq}")


def moment_of(value: Json) -> datetime:
    """The UTC datetime that `value` is as ISO 8601 text with its zone. `ValueError` if it is not."""
    try:
        moment = datetime.fromisoformat(value)
        to_us(moment)
        return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be an ISO 8601 time with its zone") from None
