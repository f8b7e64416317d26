"""The command `prune`."""

import shlex
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_store.cli.options import AsJson, Db, open_to_change, open_to_look, place_of

if TYPE_CHECKING:
    from aegis_store.retention.plan import PrunePlan
    from aegis_store.retention.prune import PruneReport
    from aegis_store.store import EventStore

_SHOWN_SESSIONS = 10


def prune(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Carry the plan out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan, even with --yes.")] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Show what the policy asks to remove; with --yes, remove it.

    Example: aegis-store prune, then aegis-store prune --yes
    """
    from aegis_store.cli.terminal import plural, show, show_json, size

    acts = yes and not dry_run
    with (open_to_change if acts else open_to_look)(context, db) as store:
        plan = store.plan_prune()
        if not as_json:
            _show_plan(plan)
        report = _carry_out(store, plan) if acts else None
    if as_json:
        show_json({"plan": plan_fields(plan), "report": asdict(report) if report else None})
    elif report and plan.truncations:
        show(
            f"Removed {plural(report.events_removed, 'event')} ({size(report.bytes_removed)}) "
            f"of {plural(report.sessions_pruned, 'session')} in {report.duration_s:.1f} s."
        )
    elif plan.truncations:
        command = f"aegis-store prune --yes --db {shlex.quote(place_of(context, db))}"
        show("Nothing was removed. To remove this:", command)


def _carry_out(store: "EventStore", plan: "PrunePlan") -> "PruneReport":
    from aegis_store.cli.terminal import progress

    with progress() as bar:
        task = bar.add_task("Removing events", total=plan.events)
        return store.prune(plan, on_progress=lambda done, _: bar.update(task, completed=done))


def _show_plan(plan: "PrunePlan") -> None:
    from aegis_store.cli.terminal import count, plural, show, show_table, size, table

    if not plan.truncations:
        show("Nothing to remove.")
        return
    biggest = sorted(plan.truncations, key=lambda t: -t.events)[:_SHOWN_SESSIONS]
    rows = ((t.session_id, count(t.events), size(t.bytes), t.reason) for t in biggest)
    show_table(table("*session", ">events", ">bytes", "reason"), rows)
    rest = len(plan.truncations) - len(biggest)
    if rest:
        show(f"… and {plural(rest, 'session')} more.")
    events, sizes = Counter[str](), Counter[str]()
    for truncation in plan.truncations:
        events[truncation.reason] += truncation.events
        sizes[truncation.reason] += truncation.bytes
    for reason, number in events.most_common():
        show(f"To remove by {reason}: {plural(number, 'event')}, {size(sizes[reason])}.")


def plan_fields(plan: "PrunePlan") -> dict[str, Any]:
    return {
        "now": plan.now,
        "events": plan.events,
        "bytes": plan.bytes,
        "sessions": [asdict(truncation) for truncation in plan.truncations],
    }
