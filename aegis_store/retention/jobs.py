"""The prunes that nobody asks for by name: the startup job and the maintenance. They obey the policy's mode, and log a line."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from aegis_store.database import Database
from aegis_store.errors import plural, shown
from aegis_store.retention.plan import PrunePlan
from aegis_store.retention.prune import Guard, PruneReport, carry_out, report_only
from aegis_store.retention.runs import Totals, Trigger

log: Final = logging.getLogger("aegis_store")

_NAMES: Final[dict[str, str]] = {"startup": "startup job", "maintenance": "maintenance"}


def run_job(db: Database, plan: PrunePlan, *, trigger: Trigger, guard: Guard | None = None) -> None:
    """Carry the plan out, or in mode `warn` say what it would remove. One line in the log if there is anything to say.

    What is left of deleted sessions goes in either mode: somebody asked for that by name.
    """
    if not plan.truncations and not plan.settled:
        return
    store, name = shown(str(db.target)), _NAMES[trigger]
    if plan.policy.mode == "warn":
        rest = replace(plan, truncations=tuple(each for each in plan.truncations if each.session_id is not None))
        plan = replace(plan, truncations=tuple(each for each in plan.truncations if each.session_id is None), settled=())
        if rest.truncations:
            report_only(db, rest, trigger=trigger)
            log.warning("%s would remove %s from %s: mode is warn, so it stays", name, _of_plan(rest), store)
        if not plan.truncations:
            return
    report = carry_out(db, plan, trigger=trigger, guard=guard)
    if report.events_removed or report.sessions_forgotten:
        log.info("%s removed %s in %.2f s from %s", name, _of_report(report), report.duration_s, store)


def _of_plan(plan: PrunePlan) -> str:
    totals = Totals.of(plan)
    return _words(totals.events, totals.bytes, totals.sessions, totals.sessions_forgotten, totals.by_reason)


def _of_report(report: PruneReport) -> str:
    removed = (report.events_removed, report.bytes_removed, report.sessions_pruned, report.sessions_forgotten)
    return _words(*removed, report.events_by_reason)


def _words(events: int, size: int, sessions: int, records: int, reasons: Mapping[str, int]) -> str:
    forgotten = f" and {plural(records, 'session record')}" if records else ""
    why = ", ".join(f"{reason} {number}" for reason, number in reasons.items()) or "no events"
    return f"{plural(events, 'event')} ({plural(size, 'byte')}) of {plural(sessions, 'session')}{forgotten} ({why})"
