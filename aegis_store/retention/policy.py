"""The retention policy: a value, and the decisions that follow from it. No SQL, no clock."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from aegis_store.errors import InvalidPolicy, shown
from aegis_store.events import UNLIMITED, Status, Unlimited
from aegis_store.schema import NO_CAP
from aegis_store.settings import (
    DEFAULT_MAX_EVENT_BYTES,
    DEFAULT_MAX_EVENTS,
    DEFAULT_TERMINAL_GRACE,
    MAX_EVENT_BYTES_LIMIT,
)

_LONGEST: Final = timedelta(days=365_000)


class SessionState(NamedTuple):
    """What a decision may know of a session."""

    status: Status
    hold: bool
    first_seq: int
    last_seq: int
    ended_at: datetime | None


class Decision(NamedTuple):
    """Keep the session's events from this seq on; `reason` names the knob that says so."""

    keep_from_seq: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """The limits of a store, kept in its database, so that all writers, the triggers and the CLI agree.

    `max_events`: the newest events that a session keeps, exact, at every append; a session may have a limit of its own.
    `max_event_bytes`: payloads over this many bytes of JSON are refused; at most 16 MiB.
    `terminal_grace`: how long a terminal session keeps its events after it ended; 0 means until the next prune, and the
    clock is not asked then.

    Raises `InvalidPolicy` for values that cannot be.
    """

    max_events: int | Unlimited = DEFAULT_MAX_EVENTS
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES
    terminal_grace: timedelta = DEFAULT_TERMINAL_GRACE

    def __post_init__(self) -> None:
        if self.max_events is not UNLIMITED:
            _whole_number("max_events", self.max_events, NO_CAP - 1, "or UNLIMITED")
        _whole_number("max_event_bytes", self.max_event_bytes, MAX_EVENT_BYTES_LIMIT, "as larger payloads need payload_ref")
        grace = self.terminal_grace
        if not isinstance(grace, timedelta) or not timedelta(0) <= grace <= _LONGEST:
            raise InvalidPolicy(f"terminal_grace must be a timedelta from 0 to {_LONGEST.days:,} days, not {shown(grace)}")

    def keep_from(self, session: SessionState, now: datetime) -> Decision | None:
        """From which seq the session keeps its events at `now`; None if all of them stay.

        The cap is no part of it: it holds at every append.
        """
        if session.hold or session.first_seq > session.last_seq:
            return None
        decisions = [decide(self, session, now) for decide in _LIMITS]
        return max((found for found in decisions if found), default=None)

    def ended_by(self, now: datetime) -> datetime | None:
        """Terminal sessions that ended at this moment or before keep nothing; None: all terminal sessions."""
        if not self.terminal_grace:
            return None
        try:
            return now - self.terminal_grace
        except OverflowError:  # before the year 1, when nothing had ended yet
            return datetime.min.replace(tzinfo=UTC)


def _after_terminal_grace(policy: RetentionPolicy, session: SessionState, now: datetime) -> Decision | None:
    if not session.status.is_terminal or session.ended_at is None:
        return None
    ended_by = policy.ended_by(now)
    if ended_by is not None and session.ended_at > ended_by:
        return None
    return Decision(session.last_seq + 1, "terminal_grace")


_Limit = Callable[[RetentionPolicy, SessionState, datetime], Decision | None]
_LIMITS: Final[tuple[_Limit, ...]] = (_after_terminal_grace,)


def _whole_number(name: str, value: Any, high: int, remark: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise InvalidPolicy(f"{name} must be a whole number from 1 to {high:,} ({remark}), not {shown(value)}")
