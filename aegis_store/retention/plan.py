"""A plan: which events of which sessions a prune removes, because of which knob. Values that print; `find` makes them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row

from aegis_store.errors import plural, shown
from aegis_store.events import Status
from aegis_store.retention.history import StoredHistory
from aegis_store.retention.policy import RetentionPolicy

_PRINTED_SESSIONS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """One session's part of a plan: its events `first_seq` to `keep_from_seq - 1` go, because of `reason`.

    `reason` is the knob that bites first, or "deleted" for what is left of a deleted session (`session_id` is None then).
    `forgets`: the session's record goes as well, once its events have. `bytes` counts payloads.
    """

    session_id: str | None
    status: Status
    first_seq: int
    keep_from_seq: int
    events: int
    bytes: int
    reason: str
    forgets: bool = False
    key: int = field(repr=False)


class Total(NamedTuple):
    """What goes because of one knob."""

    sessions: int
    events: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPlan:
    """How a plan brings the store back into its budget. All figures are payload bytes.

    `freed_bytes` goes because of the budget alone; short of `target_bytes` where the rest is on hold.
    """

    retained_bytes: int
    max_total_bytes: int
    target_bytes: int
    freed_bytes: int
    left_bytes: int

    def __str__(self) -> str:
        short = ""
        if self.left_bytes > self.target_bytes:
            short = f" Short of that by {self.left_bytes - self.target_bytes:,} bytes, since what is left is on hold."
        return (
            f"The store holds {self.retained_bytes:,} bytes of payloads, its budget (max_total_bytes) is "
            f"{self.max_total_bytes:,}. To get down to {self.target_bytes:,}, events of ended sessions go first, those that "
            f"ended first before the others, then the oldest of the rest; sessions on hold keep theirs.{short}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What `prune` would remove, decided at `now` by `policy`.

    Sessions that ended first come first, then the others; last what the budget takes, in the order in which it goes. It
    names sessions and ranges, so it is as large as the number of sessions that lose something. `print(plan)` tells it.
    """

    now: datetime
    policy: RetentionPolicy
    truncations: tuple[Truncation, ...]
    budget: BudgetPlan | None = None
    settled: tuple[int, ...] = field(default=(), repr=False)
    """Sessions that were looked at and lose nothing: `prune` notes that, and the next plan does not look at them."""

    @property
    def events(self) -> int:
        return sum(truncation.events for truncation in self.truncations)

    @property
    def bytes(self) -> int:
        """Payload bytes that go."""
        return sum(truncation.bytes for truncation in self.truncations)

    @property
    def sessions_forgotten(self) -> int:
        """Sessions whose record goes."""
        return sum(truncation.forgets for truncation in self.truncations)

    def by_reason(self) -> Mapping[str, Total]:
        """What goes by knob, the most events first."""
        totals: dict[str, Total] = {}
        for each in self.truncations:
            before = totals.get(each.reason, Total(0, 0, 0))
            totals[each.reason] = Total(before.sessions + 1, before.events + each.events, before.bytes + each.bytes)
        return dict(sorted(totals.items(), key=lambda item: -item[1].events))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        when = self.now.isoformat(sep=" ", timespec="seconds")
        if not self.truncations:
            yield f"Nothing to prune at {when}."
            if self.budget is not None:
                yield f"  {self.budget}"
            return
        sessions = plural(len(self.truncations), "session")
        yield f"To prune at {when}: {_amount(self.events, self.bytes)}, of {sessions}."
        for reason, total in self.by_reason().items():
            yield f"  by {reason}: {_amount(total.events, total.bytes)}, of {plural(total.sessions, 'session')}"
        if self.budget is not None:
            yield f"  {self.budget}"
        for each in sorted(self.truncations, key=lambda t: -t.events)[:_PRINTED_SESSIONS]:
            record = ", and its record" if each.forgets else ""
            name = "(a deleted session)" if each.session_id is None else shown(each.session_id)
            span = f"seq {each.first_seq}..{each.keep_from_seq - 1}" if each.events else "no events"
            yield f"  {name}: {span}, {_amount(each.events, each.bytes)}, by {each.reason}{record}"
        if len(self.truncations) > _PRINTED_SESSIONS:
            yield f"  … and {plural(len(self.truncations) - _PRINTED_SESSIONS, 'session')} more"


def _amount(events: int, size_bytes: int) -> str:
    return f"{plural(events, 'event')}, {plural(size_bytes, 'byte')}"


def truncation_of(conn: Connection, row: Row[Any], keep_from_seq: int, reason: str, *, forgets: bool) -> Truncation:
    history = StoredHistory(conn, row)
    return Truncation(
        session_id=row.session_id,
        status=Status(row.status),
        first_seq=row.first_seq,
        keep_from_seq=keep_from_seq,
        events=keep_from_seq - row.first_seq,
        bytes=history.bytes_before(keep_from_seq) - history.bytes_before(row.first_seq),
        reason=reason,
        forgets=forgets,
        key=row.id,
    )
