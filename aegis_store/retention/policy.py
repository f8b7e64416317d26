"""The retention policy: a value, and the decisions that follow from it. No SQL, no clock.

Each limit is a small value with one method: from which seq on a session keeps its events. The highest answer counts, so that
the first limit that bites wins, and only the oldest events ever go.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, Protocol

from aegis_store.errors import InvalidPolicy, shown
from aegis_store.events import UNLIMITED, Status, Unlimited
from aegis_store.schema import NO_CAP
from aegis_store.settings import (
    BUDGET_LOW_WATER_PERCENT,
    DEFAULT_MAX_EVENT_BYTES,
    DEFAULT_MAX_EVENTS,
    DEFAULT_TERMINAL_GRACE,
    MAX_EVENT_BYTES_LIMIT,
)

Mode = Literal["enforce", "warn"]

_LONGEST: Final = timedelta(days=365_000)
_MOST_BYTES: Final = 2**62
_NOTHING: Final = timedelta(0)
_BEFORE_ALL: Final = datetime.min.replace(tzinfo=UTC)


class History(Protocol):
    """What a limit may ask of a session's retained events. Answers lie in `first_seq` to `last_seq + 1`."""

    def since(self, moment: datetime, from_seq: int) -> int:
        """The lowest seq, from `from_seq` on, recorded at `moment` or later; `last_seq + 1` if there is none."""

    def within(self, payload_bytes: int) -> int:
        """The lowest seq from which on the payloads take `payload_bytes` at the most."""


class SessionState(NamedTuple):
    """What a decision may know of a session."""

    status: Status
    hold: bool
    first_seq: int
    last_seq: int
    ended_at: datetime | None
    history: History
    is_deleted: bool = False


class Decision(NamedTuple):
    """Keep the session's events from this seq on; `reason` names the knob that says so."""

    keep_from_seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class MaxEvents:
    """The newest so many events stay. The schema holds it at every append; this is for lowering it."""

    count: int

    def keep_from(self, session: SessionState, now: datetime) -> int:
        return session.last_seq + 1 - self.count


@dataclass(frozen=True, slots=True)
class MaxBytes:
    """The newest events stay whose payloads take so many bytes together."""

    payload_bytes: int

    def keep_from(self, session: SessionState, now: datetime) -> int:
        return session.history.within(self.payload_bytes)


@dataclass(frozen=True, slots=True)
class MaxAge:
    """Events recorded longer ago than this go, up to the first that was not: so no newer one goes, whatever the clock did."""

    span: timedelta

    def keep_from(self, session: SessionState, now: datetime) -> int:
        return session.history.since(moment_before(now, self.span), session.first_seq)


@dataclass(frozen=True, slots=True)
class TerminalGrace:
    """Sessions that ended so long ago keep nothing. 0: none that ended does, and the clock is not asked."""

    span: timedelta

    def keep_from(self, session: SessionState, now: datetime) -> int:
        if session.ended_at is None or not session.status.is_terminal:
            return session.first_seq
        if self.span and session.ended_at > moment_before(now, self.span):
            return session.first_seq
        return session.last_seq + 1


class Limit(Protocol):
    """One knob of a policy."""

    def keep_from(self, session: SessionState, now: datetime) -> int:
        """The session keeps its events from this seq on. Pure: the same input gives the same answer."""


def moment_before(now: datetime, span: timedelta) -> datetime:
    """`now - span`, or the beginning of time."""
    try:
        return now - span
    except OverflowError:
        return _BEFORE_ALL


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """The limits of a store, kept in its database, so that all writers, the triggers and the CLI agree.

    `max_events`: the newest events that a session keeps, exact, at every append; a session may have a limit of its own.
    `max_bytes`: payload bytes that a session keeps; None: no limit. `max_age`: events recorded longer ago go; None: never.
    `max_event_bytes`: payloads over this many bytes of JSON are refused; at most 16 MiB.
    `terminal_grace`: how long a terminal session keeps its events after it ended; 0 means until the next prune, and the
    clock is not asked then.
    `max_total_bytes`: a budget of payload bytes for the whole store. Over it, events of terminal sessions go first, those
    that ended first before the others, then the oldest of the rest, until 80 % of the budget are left; None: no budget.
    `forget_sessions_after`: how long after its end the record of a terminal session without events stays; None: for ever. A
    tombstone keeps its seq.
    `mode`: "enforce", or "warn": the startup job and the maintenance only report; the cap and an explicit prune act.

    What is over `max_bytes`, `max_age`, `terminal_grace` or `max_total_bytes` goes with the next prune. A session on hold
    is touched by its cap alone. Raises `InvalidPolicy` for values that cannot be.
    """

    max_events: int | Unlimited = DEFAULT_MAX_EVENTS
    max_bytes: int | None = None
    max_age: timedelta | None = None
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES
    terminal_grace: timedelta = DEFAULT_TERMINAL_GRACE
    max_total_bytes: int | None = None
    forget_sessions_after: timedelta | None = None
    mode: Mode = "enforce"

    def __post_init__(self) -> None:
        if self.max_events is not UNLIMITED:
            _whole_number("max_events", self.max_events, NO_CAP - 1, " (or unlimited)")
        _whole_number("max_event_bytes", self.max_event_bytes, MAX_EVENT_BYTES_LIMIT, " (keep more behind a payload_ref)")
        for name in ("max_bytes", "max_total_bytes"):
            if getattr(self, name) is not None:
                _whole_number(name, getattr(self, name), _MOST_BYTES, " (or none)")
        _span("terminal_grace", self.terminal_grace, _NOTHING)
        if self.max_age is not None:
            _span("max_age", self.max_age, timedelta(microseconds=1))
        if self.forget_sessions_after is not None:
            _span("forget_sessions_after", self.forget_sessions_after, _NOTHING)
        if self.mode not in ("enforce", "warn"):
            raise InvalidPolicy.of("mode", "must be 'enforce' or 'warn'", shown(self.mode))

    def limits(self) -> dict[str, Limit]:
        """The limits that a prune carries out, by the name of their knob. The cap is not among them: it always holds."""
        found: dict[str, Limit] = {"terminal_grace": TerminalGrace(self.terminal_grace)}
        if self.max_age is not None:
            found["max_age"] = MaxAge(self.max_age)
        if self.max_bytes is not None:
            found["max_bytes"] = MaxBytes(self.max_bytes)
        return found

    def keep_from(self, session: SessionState, now: datetime) -> Decision | None:
        """From which seq the session keeps its events at `now`; None if all of them stay."""
        if session.first_seq > session.last_seq:
            return None
        if session.is_deleted:
            return Decision(session.last_seq + 1, "deleted")
        if session.hold:
            return None
        decision: Decision | None = None
        while True:
            answers = [Decision(limit.keep_from(session, now), name) for name, limit in self.limits().items()]
            highest = max(answers, key=lambda answer: answer.keep_from_seq)
            if highest.keep_from_seq <= session.first_seq:
                return decision
            # What goes by one limit may have stood before events that are too old: they are now the oldest, so once more.
            decision, session = highest, session._replace(first_seq=highest.keep_from_seq)

    def forgets(self, session: SessionState, now: datetime) -> bool:
        """Whether the session's record may go at `now`, once its events have gone."""
        if self.forget_sessions_after is None or session.hold or session.ended_at is None:
            return False
        return session.ended_at <= moment_before(now, self.forget_sessions_after)

    @property
    def budget_target_bytes(self) -> int | None:
        """What a store over its budget is brought down to: 80 % of it."""
        return None if self.max_total_bytes is None else self.max_total_bytes * BUDGET_LOW_WATER_PERCENT // 100

    def over_budget(self, retained_bytes: int) -> int:
        """How many payload bytes a store that retains so many has to give up; 0 within its budget."""
        if self.max_total_bytes is None or self.budget_target_bytes is None or retained_bytes <= self.max_total_bytes:
            return 0
        return retained_bytes - self.budget_target_bytes


def _whole_number(name: str, value: Any, high: int, remark: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise InvalidPolicy.of(name, f"must be a whole number from 1 to {high:,}{remark}", shown(value))


def _span(name: str, value: Any, least: timedelta) -> None:
    if not isinstance(value, timedelta):
        raise InvalidPolicy.of(name, "must be a timedelta", shown(value))
    if not least <= value <= _LONGEST:
        start = "over 0" if least else "0 or more"
        raise InvalidPolicy.of(name, f"must be {start} and at most {_LONGEST.days:,} days", str(value))
