"""Carrying out a plan: session by session, slice by slice, each slice a transaction of its own."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row

from aegis_store.any_database import AnyDatabase, Write
from aegis_store.retention import budget
from aegis_store.retention.archive import Archive
from aegis_store.retention.history import StoredHistory, session_row, state_of
from aegis_store.retention.limits import policy_in_force
from aegis_store.retention.plan import PrunePlan, Truncation
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.retention.runs import Run, Totals, Trigger
from aegis_store.retention.truncate import NOTHING, Removed, bury, forget, let_writers_through, settle, truncate_slice
from aegis_store.settings import (
    ARCHIVE_FILE_EVENTS,
    PRUNE_CHECKPOINT_EVENTS,
    PRUNE_FIRST_SLICE_EVENTS,
    PRUNE_SLICE_EVENTS,
    PRUNE_SLICE_S,
)

OnProgress = Callable[[int, int], None]
"""Called with (events removed so far, events in the plan) after each slice."""

Guard = Callable[[Connection], str | None]
"""Asked in each slice's transaction whether the run may go on: None, or the outcome with which it stops."""

_SETTLED_AT_ONCE: Final = 200


class Stopped(Exception):
    """The guard says that the run is over; with what outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What a prune removed. `bytes_removed` counts payloads; `sessions_pruned` are those that lost events.

    `sessions_forgotten` are those whose record went, `events_by_reason` counts by knob. `archived` names the archive files,
    in the order of their writing. `reclaimable_bytes` are free pages of the file, which `reclaim` gives back to the disk.
    `run_id` is the run's number in `prune_history`; None: it had nothing to do and left no row.
    """

    now: datetime
    events_removed: int
    bytes_removed: int
    sessions_pruned: int
    duration_s: float
    sessions_forgotten: int = 0
    events_by_reason: Mapping[str, int] = field(default_factory=dict)
    archived: tuple[str, ...] = ()
    reclaimable_bytes: int = 0
    run_id: int | None = None


def carry_out(
    db: AnyDatabase,
    plan: PrunePlan,
    *,
    trigger: Trigger,
    on_progress: OnProgress | None = None,
    archive: Archive | None = None,
    guard: Guard | None = None,
) -> PruneReport:
    """Remove what the plan says, no more, and only where it still holds: each slice looks at the session anew.

    Each slice is committed by itself: interrupted at any point, what went is accounted for, and the next prune goes on.
    """
    run = Run(plan.now, trigger)
    work = _Work(db, plan, run, on_progress, archive, guard)
    try:
        for truncation in plan.truncations:
            work.carry_out(truncation)
        work.settle()
    except Stopped as stopped:
        run.finish(db, str(stopped))
    except BaseException as error:
        _finish_in_vain(db, run, error)
        raise
    else:
        if plan.truncations or trigger in ("api", "cli"):
            run.finish(db, "done")
    with db.read() as conn:
        reclaimable_bytes = db.sizes(conn).free_bytes
    return PruneReport(
        now=plan.now,
        events_removed=run.totals.events,
        bytes_removed=run.totals.bytes,
        sessions_pruned=run.totals.sessions,
        duration_s=run.duration_s,
        sessions_forgotten=run.totals.sessions_forgotten,
        events_by_reason=run.totals.by_reason,
        archived=tuple(str(file) for file in archive.files) if archive else (),
        reclaimable_bytes=reclaimable_bytes,
        run_id=run.id,
    )


def report_only(db: AnyDatabase, plan: PrunePlan, *, trigger: Trigger) -> None:
    """Leave word of what the plan would remove, and remove nothing: what mode `warn` asks for."""
    run = Run(plan.now, trigger)
    run.totals = Totals.of(plan)
    run.finish(db, "reported")


def _finish_in_vain(db: AnyDatabase, run: Run, error: BaseException) -> None:
    """Leave word of a run that ends early. If that fails too, its row says so by having no outcome."""
    outcome = f"failed: {type(error).__name__}" if isinstance(error, Exception) else "interrupted"
    try:
        run.finish(db, outcome)
    except Exception as second:  # noqa: BLE001 - the first error is the one to tell
        error.add_note(f"the run could not be recorded either: {type(second).__name__}")


class _Due(NamedTuple):
    """What is to go of a session at this moment: its events below `keep_from_seq`."""

    row: Row[Any]
    keep_from_seq: int
    reason: str


class _Work:
    """One run at work."""

    def __init__(
        self,
        db: AnyDatabase,
        plan: PrunePlan,
        run: Run,
        on_progress: OnProgress | None,
        archive: Archive | None,
        guard: Guard | None,
    ) -> None:
        self._db = db
        self._plan = plan
        self._run = run
        self._planned = plan.events
        self._on_progress = on_progress
        self._archive = archive
        self._guard = guard
        self._since_checkpoint = 0
        self._slice_events = min(PRUNE_FIRST_SLICE_EVENTS, PRUNE_SLICE_EVENTS)
        self._is_over_budget = False

    def carry_out(self, truncation: Truncation) -> None:
        began_with = self._run.totals.events
        for keep_from_seq in self._stretches(truncation):
            while True:
                started = time.monotonic()
                removed = self._slice(truncation, keep_from_seq, first=self._run.totals.events == began_with)
                if not removed.events:
                    break
                took_s = time.monotonic() - started
                if self._on_progress is not None:
                    self._on_progress(self._run.totals.events, self._planned)
                # First those who wait, whose fsync would else meet that of the checkpoint.
                let_writers_through(took_s)
                self._checkpoint(removed)
                if removed.first_seq >= keep_from_seq:
                    break
        if truncation.forgets:
            self._forget(truncation)

    def _checkpoint(self, removed: Removed) -> None:
        """Now and then: little at a time, so that no writer meets a long fsync."""
        self._since_checkpoint += removed.events
        if self._since_checkpoint >= PRUNE_CHECKPOINT_EVENTS:
            self._since_checkpoint = 0
            self._db.checkpoint()

    def _stretches(self, truncation: Truncation) -> Iterator[int]:
        """How far to remove at a time: all at once, or as far as was archived just before.

        What is left of a deleted session is not archived: who deletes one does not want it kept elsewhere.
        """
        if self._archive is None:
            yield truncation.keep_from_seq
            return
        while True:
            with self._db.read() as conn:
                due = self._due(conn, truncation, ARCHIVE_FILE_EVENTS)
                if due is None:
                    return
                is_deleted = due.row.session_id is None
                archived_to = due.keep_from_seq if is_deleted else self._archive.write(conn, due.row, due.keep_from_seq)
            before = self._run.totals.events
            yield archived_to
            if self._run.totals.events == before:
                return  # it is no longer due: what was archived stays in the store as well

    def _slice(self, truncation: Truncation, keep_from_seq: int, *, first: bool) -> Removed:
        with self._db.write() as conn:
            began_s = time.monotonic()  # once the store was free
            due = self._due(conn, truncation, self._slice_events)
            self._check_guard(conn)  # after the session's row: an append takes the two in this order
            if due is None:
                return NOTHING
            keep_from_seq = min(due.keep_from_seq, keep_from_seq)
            removed = truncate_slice(conn, due.row, keep_from_seq, due.reason, self._slice_events)
            if not removed.events:
                return NOTHING
            totals = self._run.totals.plus(removed, due.reason, first_of_session=first)
            made = self._run.write(conn, totals)
        self._run.committed(made, totals)
        self._db.metrics.pruned(removed.events)
        self._adapt(time.monotonic() - began_s)
        return removed

    def _adapt(self, slice_took_s: float) -> None:
        """Make the next slice as large as fits in its time on this disk beside these writers: fast down, slowly up."""
        least, most = PRUNE_FIRST_SLICE_EVENTS // 2, PRUNE_SLICE_EVENTS
        factor = max(PRUNE_SLICE_S / slice_took_s, 0.5) if slice_took_s > PRUNE_SLICE_S else 1.25
        self._slice_events = min(max(int(self._slice_events * factor), least), most)

    def _check_guard(self, conn: Connection) -> None:
        outcome = self._guard(conn) if self._guard is not None else None
        if outcome is not None:
            raise Stopped(outcome)

    def _due(self, conn: Connection, truncation: Truncation, events: int) -> _Due | None:
        """What the policy asked for then and still asks for: the session may have been reopened or held, the policy changed.

        As far as `events` go at once: if more are due, it need not know how many.
        """
        row = session_row(conn, truncation.key)
        if row is None:
            return None
        in_force = policy_in_force(conn)
        state = state_of(conn, row, row.first_seq + events + 1)
        decisions = [policy.keep_from(state, self._plan.now) for policy in (self._plan.policy, in_force)]
        least = min((decision for decision in decisions if decision), default=None)
        due = _Due(row, row.first_seq, "")
        if least is not None and None not in decisions:
            due = _Due(row, min(least.keep_from_seq, truncation.keep_from_seq), least.reason)
        if truncation.reason == "max_total_bytes" and not state.hold:
            due = max(due, self._due_by_budget(conn, in_force, truncation, row), key=lambda each: each.keep_from_seq)
        return due if due.keep_from_seq > row.first_seq else None

    def _due_by_budget(self, conn: Connection, in_force: RetentionPolicy, truncation: Truncation, row: Row[Any]) -> _Due:
        """As much of what was planned as the store is still over the mark that the budget is to be brought down to."""
        target = in_force.budget_target_bytes
        retained = 0 if target is None else budget.retained_bytes(conn)
        self._is_over_budget = self._is_over_budget or in_force.over_budget(retained) > 0
        excess = retained - target if target is not None and self._is_over_budget else 0
        reopened = truncation.status.is_terminal and row.ended_at is None
        if excess <= 0 or reopened or row.first_seq > row.last_seq:
            return _Due(row, row.first_seq, "")
        history = StoredHistory(conn, row)
        enough = history.reaching(history.bytes_before(row.first_seq) + excess)
        return _Due(row, min(truncation.keep_from_seq, enough), "max_total_bytes")

    def _forget(self, truncation: Truncation) -> None:
        """Delete the record of a session whose events have gone, if that is still asked for."""
        with self._db.write() as conn:
            row = session_row(conn, truncation.key)
            self._check_guard(conn)
            if row is None or row.first_seq <= row.last_seq:
                return
            if row.session_id is not None:
                state = state_of(conn, row)
                if not all(policy.forgets(state, self._plan.now) for policy in (self._plan.policy, policy_in_force(conn))):
                    return
                bury(conn, row, "forget_sessions_after")
            forget(conn, row.id)
            totals = replace(self._run.totals, sessions_forgotten=self._run.totals.sessions_forgotten + 1)
            made = self._run.write(conn, totals)
        self._run.committed(made, totals)

    def settle(self) -> None:
        """Note of the sessions that were looked at in vain that they need not be looked at next time."""
        keys = self._plan.settled
        for start in range(0, len(keys), _SETTLED_AT_ONCE):
            with self._db.writes() as write:
                for part in self._db.parts(keys[start : start + _SETTLED_AT_ONCE], lambda key: key):
                    self._settle(write, part)

    def _settle(self, write: Write, keys: Sequence[int]) -> None:
        with write() as conn:
            self._check_guard(conn)
            for key in keys:
                settle(conn, key)
