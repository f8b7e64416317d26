"""What a prune would remove: found by an index over the sessions that have something to lose, never by a scan."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, select, true

from aegis_store.errors import InvalidInput
from aegis_store.events import Status, from_us, to_us
from aegis_store.retention.limits import policy_in_force
from aegis_store.retention.policy import RetentionPolicy, SessionState
from aegis_store.schema import PRUNABLE, event, session

_FIRST: Final = event.alias("first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """One session's part of a plan: its events `first_seq` to `keep_from_seq - 1` go, because of `reason`."""

    session_id: str
    status: Status
    first_seq: int
    keep_from_seq: int
    events: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What `prune` would remove, decided at `now` by `policy`. Sessions that ended first come first."""

    now: datetime
    policy: RetentionPolicy
    truncations: tuple[Truncation, ...]

    @property
    def events(self) -> int:
        return sum(truncation.events for truncation in self.truncations)

    @property
    def bytes(self) -> int:
        """Payload bytes that go."""
        return sum(truncation.bytes for truncation in self.truncations)


def plan(conn: Connection, now: datetime | None) -> PrunePlan:
    """The plan for `now` (by default the present). Costs in proportion to the sessions that lose something."""
    now = datetime.now(UTC) if now is None else _checked(now)
    policy = policy_in_force(conn)
    return PrunePlan(now=now, policy=policy, truncations=tuple(_truncations(conn, policy, now)))


def _checked(now: datetime) -> datetime:
    if not isinstance(now, datetime):
        raise InvalidInput(f"now must be a datetime, not {type(now).__name__}")
    try:
        return from_us(to_us(now))
    except ValueError as error:
        raise InvalidInput(f"now {error}") from None


def _truncations(conn: Connection, policy: RetentionPolicy, now: datetime) -> Iterator[Truncation]:
    for row in conn.execute(prunable(policy, now)):
        decision = policy.keep_from(state_of(row), now)
        if decision is not None:
            yield Truncation(
                session_id=row.session_id,
                status=Status(row.status),
                first_seq=row.first_seq,
                keep_from_seq=decision.keep_from_seq,
                events=decision.keep_from_seq - row.first_seq,
                bytes=row.total_bytes - row.bytes_before,
                reason=decision.reason,
            )


def prunable(policy: RetentionPolicy, now: datetime) -> Any:
    """The query for the sessions that have something to lose. Its conditions are those of the index `session_prunable`."""
    ended_by = policy.ended_by(now)
    due = true() if ended_by is None else session.c.ended_at <= to_us(ended_by)
    return (
        select(session, _FIRST.c.bytes_before)
        .join_from(session, _FIRST, and_(_FIRST.c.session == session.c.id, _FIRST.c.seq == session.c.first_seq))
        .where(PRUNABLE, due)
        .order_by(session.c.ended_at)
    )


def state_of(row: Row[Any]) -> SessionState:
    """What a policy may know, from a row of the table `session`."""
    return SessionState(
        status=Status(row.status),
        hold=bool(row.hold),
        first_seq=row.first_seq,
        last_seq=row.last_seq,
        ended_at=None if row.ended_at is None else from_us(row.ended_at),
    )
