"""The nouns of the store: what it takes, what it gives. No SQL, no decisions."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

from aegis_store.errors import InvalidEvent, InvalidInput, InvalidSession, shown
from aegis_store.settings import MAX_TEXT_BYTES

Json = Any
"""A JSON value: None, bool, int, float, str, a list of such, or a dict of such by str."""


class Unlimited(enum.Enum):
    UNLIMITED = "unlimited"

    def __repr__(self) -> str:
        return "UNLIMITED"


UNLIMITED: Final = Unlimited.UNLIMITED
"""No limit. As `max_events`: the session keeps all of its events until it is pruned by another limit."""


class Unchanged(enum.Enum):
    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged.UNCHANGED
"""As an argument of `update_session`: leave this field as it is."""


class Status(enum.StrEnum):
    """Where a session stands. `closed`, `completed` and `failed` are terminal."""

    INITIALIZING = "initializing"
    IDLE = "idle"
    RUNNING = "running"
    PAUSED = "paused"
    INTERVENING = "intervening"
    CLOSING = "closing"
    CLOSED = "closed"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_STATUSES

    @classmethod
    def of(cls, value: str) -> "Status":
        """The status of that name; `InvalidSession` if there is none."""
        try:
            return cls(value)
        except ValueError:
            known = ", ".join(cls)
            raise InvalidSession(f"status {shown(value)} is not one of {known}") from None


TERMINAL_STATUSES: Final = (Status.CLOSED, Status.COMPLETED, Status.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event to append; the arguments of `EventStore.append` as a value, for `append_many`."""

    type: str
    payload: Json = field(repr=False)
    event_id: str | None = None
    occurred_at: datetime | None = None
    run_id: str | None = None
    payload_ref: str | None = None


class Event(NamedTuple):
    """A stored event. Use the names: later versions may add fields at the end.

    A named tuple since making one takes a fifth of the time of a frozen dataclass, on every append and for every
    event of a page (0.4 against 1.9 µs).
    """

    session_id: str
    seq: int
    position: int
    type: str
    payload: Json
    occurred_at: datetime
    recorded_at: datetime
    event_id: str | None
    run_id: str | None
    payload_ref: str | None

    def __repr__(self) -> str:
        """All but the payload, which may hold secrets: what is shown ends up in logs."""
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields if name != "payload")
        return f"Event({shown})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some events of a session, by rising `seq`, and what was retained at the moment of reading.

    `next_after_seq` is the cursor for the next page. `has_more` says that events beyond it were stored by then.
    `missed` counts the events between the cursor and `first_seq` that were removed (only with `on_gap="skip"`).
    """

    events: list[Event]
    first_seq: int
    last_seq: int
    next_after_seq: int
    has_more: bool
    missed: int


class StorePage(list[Event]):
    """Events of several sessions, by rising `position`: a list, which knows where it ends.

    `next_after_position` is the cursor for the next page. `has_more` says that events beyond it were stored by then; in a
    scope they may be those of others, so that a page may be short, or empty, and have more.
    """

    def __init__(self, events: Iterable[Event] = (), *, next_after_position: int = 0, has_more: bool = False) -> None:
        super().__init__(events)
        self.next_after_position = next_after_position
        self.has_more = has_more


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsMissed:
    """In the stream of `EventStore.follow(on_gap="skip")`: events after the cursor `after` were removed before they were read.

    Of a session: all below `first_seq`, `count` of them (of every type); the stream goes on with `first_seq`. Of the whole
    store (`session_id` None): some below `first_position`, how many is not known; from there on nothing is missing, and what
    is left of those below comes before. `removed_at` and `reason` are those of the last removal, None where not known.
    """

    session_id: str | None
    after: int
    first_seq: int | None
    first_position: int | None
    count: int | None
    removed_at: datetime | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as it stood when it was read.

    `first_seq` to `last_seq` are retained, none when `first_seq` is `last_seq + 1`. Numbers below `first_seq` were
    removed (`removed_events` of them; `removed_bytes` counts the payloads of those that this store held), the last
    time at `removed_at` because of `removed_reason`. `max_events` None inherits the policy's.
    """

    session_id: str
    tenant: str
    owner: str
    status: Status
    metadata: Mapping[str, Json] = field(repr=False)
    first_seq: int
    last_seq: int
    retained_bytes: int
    max_events: int | Unlimited | None
    hold: bool
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    last_event_at: datetime | None
    removed_bytes: int
    removed_at: datetime | None
    removed_reason: str | None

    @property
    def event_count(self) -> int:
        """How many events are retained."""
        return self.last_seq - self.first_seq + 1

    @property
    def removed_events(self) -> int:
        """How many events have gone in the session's life."""
        return self.first_seq - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """Some sessions, newest update first. `cursor` continues the list; None at its end."""

    sessions: list[Session]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How a number was distributed: how often it came, its sum, and how often it was at most so much.

    `buckets` has that by the bound as text, rising, up to "+Inf", where it is `count`: each counts those before it too.
    """

    count: int
    sum: float
    buckets: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """The store at a glance, at one moment, and what this `EventStore` has done since it was opened.

    Of the store: `sessions` counts by status. `retained_bytes` are payloads alone; `file_bytes` is what the database and its
    write-ahead log take on disk, `wal_bytes` the latter alone, `free_bytes` how much of it is empty pages; on PostgreSQL the
    first is what tables and indexes take, and the others are 0: log and free room are the server's. `removed_events` and
    `removed_bytes` count all that ever went, whoever removed it.

    Of this `EventStore`, which other processes do not add to: `appended_events` are new events that `append` and
    `append_many` committed, `append_seconds` how long these calls took until they returned what was asked for (those that
    raised do not count), `commit_events` how many new events one commit held: threads and tasks share them. `prunes` are runs
    that came to an end, `pruned_events` what they removed. `truncated_reads` are reads by `read`, `read_all` and `follow` that
    met events which had been removed unread, whether they raised `EventsTruncated` or went on.
    """

    sessions: Mapping[Status, int]
    events: int
    retained_bytes: int
    removed_events: int
    removed_bytes: int
    file_bytes: int
    wal_bytes: int
    free_bytes: int
    appended_events: int
    append_seconds: Histogram
    commit_events: Histogram
    prunes: int
    pruned_events: int
    truncated_reads: int

    def as_metrics(self) -> dict[str, float | Histogram]:
        """The same as a plain mapping, for the metrics of a host: counters, whose names end in `_total`, gauges, histograms.

        The names are those of the fields; sessions are `sessions_running` and so on, each status, none left out.
        """
        return {
            **{f"sessions_{status}": self.sessions.get(status, 0) for status in Status},
            "events": self.events,
            "retained_bytes": self.retained_bytes,
            "removed_events_total": self.removed_events,
            "removed_bytes_total": self.removed_bytes,
            "file_bytes": self.file_bytes,
            "wal_bytes": self.wal_bytes,
            "free_bytes": self.free_bytes,
            "appended_events_total": self.appended_events,
            "append_seconds": self.append_seconds,
            "commit_events": self.commit_events,
            "prunes_total": self.prunes,
            "pruned_events_total": self.pruned_events,
            "truncated_reads_total": self.truncated_reads,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether the store is well, and what to look at if not. `problems` are in words; empty: nothing is wrong.

    `file_bytes`, `wal_bytes`, `free_bytes` are on disk: the database, its write-ahead log, and empty pages in the former (on
    PostgreSQL its tables and indexes, 0 and 0).
    `budget_used` is the part of `max_total_bytes` that payloads take (1.0: full); None without a budget.
    `maintained_at` is when a maintenance of any process was last at work; `maintenance_error` is what went wrong in the last
    turn of this process's own, None if nothing did. `last_prune_*` tell of the newest run that left a row. `spooled_events`
    wait in the spool of this user to be recorded, `rejected_events` were set aside there.
    """

    problems: tuple[str, ...]
    file_bytes: int
    wal_bytes: int
    free_bytes: int
    retained_bytes: int | None
    max_total_bytes: int | None
    maintain_every: timedelta | None
    maintained_at: datetime | None
    maintenance_error: str | None
    last_prune_at: datetime | None
    last_prune_outcome: str | None
    spooled_events: int
    rejected_events: int

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def budget_used(self) -> float | None:
        if self.max_total_bytes is None or self.retained_bytes is None:
            return None
        return self.retained_bytes / self.max_total_bytes


EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST_US: Final = (datetime.min.replace(tzinfo=UTC) - EPOCH) // _MICROSECOND
_LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - EPOCH) // _MICROSECOND


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch, exact. `ValueError` for a datetime without a time zone, or one that UTC cannot hold."""
    if moment.utcoffset() is None:
        raise ValueError("has no time zone: pass an aware datetime, for instance datetime.now(UTC)")
    us = (moment - EPOCH) // _MICROSECOND
    if not _FIRST_US <= us <= _LAST_US:
        raise ValueError("lies outside of the years 1 to 9999 in UTC")
    return us


def from_us(us: int) -> datetime:
    """The aware UTC datetime of that many microseconds since the epoch, exact."""
    return EPOCH + timedelta(0, 0, us)


def from_us_within(us: int) -> datetime:
    """The same, or the nearest that a datetime can hold: a plain SQL shell can write any number."""
    return from_us(min(max(us, _FIRST_US), _LAST_US))


def checked_text(name: str, value: object, error: type[InvalidInput], max_bytes: int = MAX_TEXT_BYTES) -> str:
    """`value` if it can be an id or a type: 1 to `max_bytes` bytes of UTF-8, no control characters, no surrogates."""
    if type(value) is not str and not isinstance(value, str):
        raise _invalid(error, name, f"must be text, not {type(value).__name__}")
    text = str.__str__(value)
    # A text that is too long is not looked at further, and does not get into the cache.
    problem = f"must be 1 to {max_bytes} bytes of UTF-8" if len(text) > max_bytes else _text_problem(text, max_bytes)
    if problem:
        raise _invalid(error, name, problem)
    return text


@lru_cache(maxsize=4096)  # types and ids come again and again; looked up in 0.1 µs, checked in 1.5
def _text_problem(value: str, max_bytes: int) -> str | None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "holds a lone surrogate, half of an emoji for instance: cut text between characters"
    if not 1 <= size <= max_bytes:
        return f"must be 1 to {max_bytes} bytes of UTF-8, not {size}"
    control = next((c for c in value if c < " " or "\x7f" <= c <= "\x9f"), None)
    return f"holds the control character {control!r}" if control is not None else None


def _invalid(error: type[InvalidInput], name: str, problem: str) -> InvalidInput:
    return error.at(name, problem) if issubclass(error, InvalidEvent) else error(f"{name} {problem}")


def checked_count(name: str, value: object, low: int, high: int) -> int:
    """`value` if it is a whole number from `low` to `high`; `InvalidInput` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(f"{name} must be a whole number from {low:,} to {high:,}, not {shown(value)}")
    return value
