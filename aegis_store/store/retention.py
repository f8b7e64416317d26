"""The part of `EventStore` that concerns what goes, and what is left of it."""

import os
from datetime import datetime
from typing import Literal

from aegis_store.errors import InvalidInput
from aegis_store.retention import find, limits, runs
from aegis_store.retention.archive import Archive
from aegis_store.retention.limits import PolicyLoss
from aegis_store.retention.plan import PrunePlan
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.retention.prune import OnProgress, PruneReport, carry_out
from aegis_store.retention.reclaim import OnProgress as OnReclaimed
from aegis_store.retention.reclaim import ReclaimReport, reclaim
from aegis_store.retention.runs import PruneRun
from aegis_store.server import Server
from aegis_store.settings import DEFAULT_PAGE_EVENTS
from aegis_store.store.base import OpenStore


class Retention(OpenStore):
    """Retention: the policy, plans, prunes, and giving the space back."""

    def retention_policy(self) -> RetentionPolicy:
        """The policy in force."""
        with self._db.read() as conn:
            return limits.policy_in_force(conn)

    def set_retention_policy(self, policy: RetentionPolicy) -> None:
        """Put a policy in force, for all processes at once.

        A lower `max_events` removes the oldest events of the sessions that it affects in slices first, each committed by
        itself, and is set with the last one: interrupted, some have gone and the old policy stands. Raises `InvalidPolicy`.
        """
        limits.set_policy(self._db, policy)

    def plan_policy(self, policy: RetentionPolicy) -> PolicyLoss:
        """What putting `policy` in force would remove at once, because its cap is lower. Removes nothing."""
        with self._db.read() as conn:
            return limits.loss(conn, policy)

    def plan_prune(self, *, now: datetime | None = None, policy: RetentionPolicy | None = None) -> PrunePlan:
        """What `prune` would remove at `now` (an aware datetime, by default the present). Removes nothing.

        `policy`: what it would remove if that were in force. The plan prints, and `prune` carries it out. Costs in proportion
        to the sessions that lose something (and, over the budget, to the events that go). Raises `InvalidInput`.
        """
        with self._db.read() as conn:
            return find.plan(conn, now, None if policy is None else limits.checked(policy))

    def prune(
        self,
        plan: PrunePlan | None = None,
        *,
        archive_dir: str | os.PathLike[str] | None = None,
        on_progress: OnProgress | None = None,
        trigger: Literal["api", "cli"] = "api",
    ) -> PruneReport:
        """Carry out `plan`, by default a fresh one.

        Works in small transactions that let writers through, and looks at each session again before it removes anything: one
        that was reopened or put on hold since keeps its events, so do events that came after the plan, and so does what the
        policy in force keeps. `on_progress` is called with (events removed, events planned) after each transaction.
        Interrupted, what went is accounted for and the next prune does the rest; a second one with the same plan removes
        nothing. The run is recorded, with `trigger`, in `prune_history`.

        `archive_dir`: what will go is first written there as compressed JSON lines, one file per run and range of a session,
        synced and read back, and only then removed; `import_lines` reads it. Sessions that were deleted are not archived.
        Two archiving prunes at once may archive the same events twice; nothing is lost, and importing both brings each in once.
        Raises `InvalidInput` for what is no path, `StoreFull` or `FileUnavailable` if it cannot be written: nothing was removed
        that is not archived.
        """
        self._db.check_writable()
        if plan is not None and not isinstance(plan, PrunePlan):
            raise InvalidInput(f"plan must be a PrunePlan, as plan_prune gives it, not {type(plan).__name__}")
        archive = None if archive_dir is None else Archive.at(archive_dir)
        plan = self.plan_prune() if plan is None else plan
        return carry_out(self._db, plan, trigger=trigger, on_progress=on_progress, archive=archive)

    def prune_history(self, *, limit: int = DEFAULT_PAGE_EVENTS) -> list[PruneRun]:
        """The newest prune runs first, `limit` (1 to 1,000) of them; the store keeps the newest 1,000.

        A startup job or maintenance that finds nothing to do leaves no row. Raises `InvalidInput`.
        """
        with self._db.read() as conn:
            return runs.history(conn, limit)

    def reclaim(
        self,
        *,
        max_seconds: float | None = None,
        free_ratio: float = 0.0,
        check: bool = False,
        on_progress: OnReclaimed | None = None,
    ) -> ReclaimReport:
        """Give the pages that pruning freed back to the disk, in steps of a few ms that let writers through.

        Until free pages are `free_ratio` (0 to 1) of the file or less, or `max_seconds` are over. The report says how large
        the file was and is, and whether that was reached: a reader that stays in one place can hold the file's end.
        `check` verifies the whole store first, for which no one waits, and raises `StoreCorrupt` before a page of a damaged one
        is moved; `max_seconds` does not count it. `on_progress` is called with (pages given back, pages to give back).
        Interrupted, what was given back stays so. What is left of pages that are partly filled, `EventStore.compact` packs.
        Raises `InvalidInput`, also on PostgreSQL, where VACUUM does that.
        """
        Server.refuse(self._db.target, "reclaim")
        return reclaim(self._db, max_seconds=max_seconds, free_ratio=free_ratio, check=check, on_progress=on_progress)
