"""The prunes that nobody asks for by name: the startup job and the maintenance. They obey the policy's mode, and log a line."""

import logging
from dataclasses import asdict, replace
from typing import Final

from aegis_store.any_database import AnyDatabase
from aegis_store.errors import plural, shown
from aegis_store.log import log
from aegis_store.retention.plan import PrunePlan
from aegis_store.retention.prune import Guard, PruneReport, carry_out, report_only
from aegis_store.retention.runs import Totals, Trigger

_NAMES: Final[dict[str, str]] = {"startup": "startup job", "maintenance": "maintenance"}


def run_job(db: AnyDatabase, plan: PrunePlan, *, trigger: Trigger, guard: Guard | None = None) -> None:
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
            due = Totals.of(rest)
            told = "%s would remove %s from %s: mode is warn, so it stays"
            log(logging.WARNING, "prune_reported", db.target, told, name, _words(due), store, trigger=trigger, **asdict(due))
        if not plan.truncations:
            return
    report = carry_out(db, plan, trigger=trigger, guard=guard)
    if report.events_removed or report.sessions_forgotten:
        removed = _totals(report)
        fields = {"trigger": trigger, **asdict(removed), "duration_s": report.duration_s, "run_id": report.run_id}
        told = "%s removed %s in %.2f s from %s"
        log(logging.INFO, "prune", db.target, told, name, _words(removed), report.duration_s, store, **fields)


def _totals(report: PruneReport) -> Totals:
    return Totals(
        events=report.events_removed,
        bytes=report.bytes_removed,
        sessions=report.sessions_pruned,
        sessions_forgotten=report.sessions_forgotten,
        by_reason=report.events_by_reason,
    )


def _words(totals: Totals) -> str:
    records = totals.sessions_forgotten
    forgotten = f" and {plural(records, 'session record')}" if records else ""
    why = ", ".join(f"{reason} {number}" for reason, number in totals.by_reason.items()) or "no events"
    events, size, sessions = plural(totals.events, "event"), plural(totals.bytes, "byte"), plural(totals.sessions, "session")
    return f"{events} ({size}) of {sessions}{forgotten} ({why})"
