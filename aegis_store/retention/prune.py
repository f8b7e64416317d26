"""Carrying out a plan: session by session, slice by slice, each slice a transaction of its own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from aegis_store.database import Database
from aegis_store.retention.limits import policy_in_force
from aegis_store.retention.plan import PrunePlan, Truncation, state_of
from aegis_store.retention.truncate import Removed, let_writers_through, truncate_slice
from aegis_store.schema import session

OnProgress = Callable[[int, int], None]
"""Called with (events removed so far, events in the plan) after each slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What a prune removed. `bytes_removed` counts payloads; `sessions_pruned` are those that lost events."""

    now: datetime
    events_removed: int
    bytes_removed: int
    sessions_pruned: int
    duration_s: float


def carry_out(db: Database, plan: PrunePlan, on_progress: OnProgress | None) -> PruneReport:
    """Remove what the plan says, no more, and only where it still holds: each slice looks at the session anew.

    Each slice is committed by itself: interrupted at any point, what went is accounted for, and the next prune goes on.
    """
    started = time.monotonic()
    planned, events, size, sessions = plan.events, 0, 0, 0
    for truncation in plan.truncations:
        before = events
        while True:
            slice_started = time.monotonic()
            with db.write() as conn:
                removed = _next_slice(conn, plan, truncation)
            if not removed.events:
                break
            events += removed.events
            size += removed.bytes
            if on_progress is not None:
                on_progress(events, planned)
            let_writers_through(time.monotonic() - slice_started)
        sessions += events > before
    return PruneReport(
        now=plan.now,
        events_removed=events,
        bytes_removed=size,
        sessions_pruned=sessions,
        duration_s=time.monotonic() - started,
    )


def _next_slice(conn: Connection, plan: PrunePlan, truncation: Truncation) -> Removed:
    row = conn.execute(select(session).where(session.c.session_id == truncation.session_id)).one_or_none()
    if row is None:
        return Removed(0, 0)
    # What the policy asked for then and still asks for: the session may have been reopened or held, the policy changed.
    state = state_of(row)
    decisions = [policy.keep_from(state, plan.now) for policy in (plan.policy, policy_in_force(conn))]
    least = min((decision for decision in decisions if decision), default=None)
    if least is None or None in decisions:
        return Removed(0, 0)
    # Events that came after the plan are not part of it.
    return truncate_slice(conn, row, min(least.keep_from_seq, truncation.keep_from_seq), least.reason)
