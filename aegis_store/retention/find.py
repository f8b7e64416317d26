"""Finding what the policy asks to remove: by indexes over the sessions that have something to lose, never by a scan."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, and_

from aegis_store.errors import InvalidInput, shown
from aegis_store.events import from_us, to_us
from aegis_store.retention import budget
from aegis_store.retention.history import SESSION_ROW, over_bytes, state_of
from aegis_store.retention.limits import policy_in_force
from aegis_store.retention.plan import PrunePlan, Truncation, truncation_of
from aegis_store.retention.policy import RetentionPolicy, moment_before
from aegis_store.schema import AGEING, FORGETTABLE, OVERSIZE, PRUNABLE, session
from aegis_store.scope import Scope
from aegis_store.sessions import OWN, keys_in_scope
from aegis_store.sqlite_errors import check_intact


def plan(
    conn: Connection, now: datetime | None, policy: RetentionPolicy | None = None, scope: Scope | None = None
) -> PrunePlan:
    """The plan for `now` (by default the present), by the policy in force or, to see what it would do, by another.

    That of a scope leaves the budget alone: whose events it takes is a matter of the whole store.
    """
    now = checked_now(now)
    in_force = policy_in_force(conn)
    policy = policy or in_force
    decided = decide(conn, policy, now, in_force=policy.max_bytes == in_force.max_bytes, scope=scope)
    if scope is not None:
        return PrunePlan(
            now=now, policy=policy, truncations=tuple(decided.truncations.values()), settled=tuple(decided.settled)
        )
    truncations, over = budget.add_to(conn, policy, now, decided.truncations)
    settled = tuple(key for key in decided.settled if key not in truncations)
    return PrunePlan(now=now, policy=policy, truncations=tuple(truncations.values()), budget=over, settled=settled)


def within_scope(conn: Connection, plan: PrunePlan, scope: Scope) -> PrunePlan:
    """What of the plan concerns the scope."""
    by_limits = [each for each in plan.truncations if each.reason != "max_total_bytes"]
    own = keys_in_scope(conn, scope, [*(each.key for each in by_limits), *plan.settled])
    truncations = tuple(each for each in by_limits if each.key in own)
    return replace(plan, truncations=truncations, budget=None, settled=tuple(key for key in plan.settled if key in own))


def checked_now(now: datetime | None) -> datetime:
    """`now`, by default the present, in UTC. `InvalidInput` if it is not an aware datetime."""
    if now is None:
        return datetime.now(UTC)
    if not isinstance(now, datetime):
        raise InvalidInput(f"now must be a datetime, not {type(now).__name__}")
    try:
        return from_us(to_us(now))
    except ValueError as error:
        raise InvalidInput(f"now {error}") from None


class Decided(NamedTuple):
    """Truncations by the key of their session, and the sessions that were looked at in vain."""

    truncations: dict[int, Truncation]
    settled: list[int]


def decide(conn: Connection, policy: RetentionPolicy, now: datetime, *, in_force: bool, scope: Scope | None = None) -> Decided:
    """What the limits of single sessions ask for; `in_force`: `policy` is the store's own, whose marks can be gone by.

    Costs in proportion to the sessions that lose something, and a few look-ups in each, however many events it has.
    """
    queries = work_queries(policy, now, in_force=in_force)
    if scope is not None:
        queries = [query.where(OWN).params(**scope._asdict()) for query in queries]
    found = {row.id: row for query in queries for row in conn.execute(query)}
    decided = Decided({}, [])
    for row in sorted(found.values(), key=lambda row: (row.ended_at is None, row.ended_at or 0, row.id)):
        check_intact(conn, row.intact, f"session {shown(row.session_id)}")
        truncation = _truncation(conn, policy, now, row)
        if truncation is None:
            decided.settled.append(row.id)
        else:
            decided.truncations[row.id] = truncation
    return decided


def work_queries(policy: RetentionPolicy, now: datetime, *, in_force: bool) -> list[Select[Any]]:
    """For each limit the sessions that it may concern, found by an index of their own (see `schema`)."""
    conditions: list[Any] = [session.c.session_id.is_(None)]
    if policy.terminal_grace:
        conditions.append(and_(PRUNABLE, session.c.ended_at <= to_us(moment_before(now, policy.terminal_grace))))
    else:
        conditions.append(PRUNABLE)
    if policy.max_age is not None:
        conditions.append(and_(AGEING, session.c.oldest_at < to_us(moment_before(now, policy.max_age))))
    if policy.max_bytes is not None:
        conditions.append(OVERSIZE if in_force else and_(session.c.hold == 0, over_bytes(policy.max_bytes)))
    if policy.forget_sessions_after is not None:
        ended_by = to_us(moment_before(now, policy.forget_sessions_after))
        conditions.append(and_(FORGETTABLE, session.c.ended_at <= ended_by))
    return [SESSION_ROW.where(condition) for condition in conditions]


def _truncation(conn: Connection, policy: RetentionPolicy, now: datetime, row: Row[Any]) -> Truncation | None:
    state = state_of(conn, row)
    decision = policy.keep_from(state, now)
    keep_from_seq, reason = decision or (row.first_seq, "forget_sessions_after")
    forgets = keep_from_seq > row.last_seq and (state.is_deleted or policy.forgets(state, now))
    if decision is None and not forgets:
        return None
    return truncation_of(conn, row, keep_from_seq, "deleted" if state.is_deleted else reason, forgets=forgets)
