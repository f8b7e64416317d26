"""The command `prune`."""

import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_store.cli.options import AsJson, Db, open_to_change, open_to_look, place_to_type
from aegis_store.settings import MAX_PRUNE_RUNS

if TYPE_CHECKING:
    from aegis_store.retention.plan import PrunePlan, Truncation
    from aegis_store.retention.prune import PruneReport
    from aegis_store.retention.runs import PruneRun
    from aegis_store.store import EventStore

_SHOWN_SESSIONS = 10
_SHOWN_RUNS = 20
_FAILURES = {
    "StoreCorrupt": "store damaged",
    "StoreBusy": "store busy",
    "StoreFull": "disk full",
    "StoreUnavailable": "store unusable",
    "FileUnavailable": "archive failed",
}
"""How a run failed, by the name of the error that the history keeps."""


def parse_directory(text: str) -> Path:
    """A directory that is there, or that can be made."""
    directory = Path(text)
    if not text:
        raise typer.BadParameter("a directory needs a name, not ''")
    if directory.exists() and not directory.is_dir():
        raise typer.BadParameter(f"a file stands at {text!r}: name a directory")
    return directory


def prune(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Carry the plan out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan, even with --yes.")] = False,
    archive: Annotated[
        Path | None,
        typer.Option(
            parser=parse_directory,
            metavar="DIR",
            help="First write what goes there, as compressed JSON lines.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Show what earlier runs removed, newest first.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=MAX_PRUNE_RUNS, help="How many runs --history shows; 20 if left out.", show_default=False
        ),
    ] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Show what the policy asks to remove; with --yes, remove it.

    Example: aegis-store prune --yes --archive pruned-events
    """
    from aegis_store.cli.terminal import show, show_json
    from aegis_store.errors import InvalidInput

    if history:
        if yes or dry_run or archive:
            raise InvalidInput("--history only looks back, and removes nothing: leave out --yes, --dry-run and --archive")
        _show_history(context, db, _SHOWN_RUNS if limit is None else limit, as_json=as_json)
        return
    if limit is not None:
        raise InvalidInput("--limit is how many runs --history shows: leave it out, or give --history too")
    acts = yes and not dry_run
    with (open_to_change if acts else open_to_look)(context, db) as store:
        plan = store.plan_prune()
        if not as_json:
            _show_plan(plan)
        report = _carry_out(store, plan, archive) if acts else None
        free_bytes = report.reclaimable_bytes if report else store.health().free_bytes
    if as_json:
        show_json({"plan": plan_fields(plan), "report": asdict(report) if report else None})
        return
    place = place_to_type(context, db)
    if report and plan.truncations:
        _show_report(report)
    elif plan.truncations:
        archiving = f" --archive {shlex.quote(str(archive))}" if archive else ""
        show("Nothing was removed. To remove this:", f"aegis-store prune --yes{archiving}{place}")
    _show_reclaimable(free_bytes, place)


def _carry_out(store: "EventStore", plan: "PrunePlan", archive: Path | None) -> "PruneReport":
    from aegis_store.cli.exits import Interrupted
    from aegis_store.cli.terminal import count, plural, progress

    removed = 0
    with progress() as bar:
        task = bar.add_task("Removing events", total=plan.events)

        def tell(done: int, _: int) -> None:
            nonlocal removed
            removed = done
            bar.update(task, completed=done)

        try:
            return store.prune(plan, archive_dir=archive, on_progress=tell, trigger="cli")
        except KeyboardInterrupt:
            told = f"interrupted: removed {count(removed)} of {plural(plan.events, 'event')}; run it again to go on"
            raise Interrupted(told) from None


def _show_plan(plan: "PrunePlan") -> None:
    from aegis_store.cli.terminal import count, plural, show, show_prose, show_table, size, table

    if not plan.truncations:
        show("Nothing to remove.")
        return
    biggest = sorted(plan.truncations, key=lambda t: -t.events)[:_SHOWN_SESSIONS]
    rows = ((_name(t), count(t.events), size(t.bytes), t.reason) for t in biggest)
    show_table(table("*session", ">events", ">bytes", "reason"), rows)
    rest = len(plan.truncations) - len(biggest)
    if rest:
        show(f"… and {plural(rest, 'session')} more.")
    totals = [(reason, *total) for reason, total in plan.by_reason().items()]
    totals.append(("in all", len(plan.truncations), plan.events, plan.bytes))
    rows = ((reason, count(sessions), count(events), size(bytes_)) for reason, sessions, events, bytes_ in totals)
    show_table(table("*to remove by", ">sessions", ">events", ">bytes"), rows)
    if plan.sessions_forgotten:
        show(f"The records of {plural(plan.sessions_forgotten, 'session')} go too; a tombstone keeps the seq of each.")
    if plan.budget is not None:
        show_prose(str(plan.budget))
    if plan.policy.mode == "warn":
        show("The policy's mode is warn: only an explicit prune, as this, removes anything.")


def _name(truncation: "Truncation") -> str:
    return "(a deleted session)" if truncation.session_id is None else truncation.session_id


def _show_report(report: "PruneReport") -> None:
    from aegis_store.cli.terminal import plural, show_prose, size

    show_prose(
        f"Removed {plural(report.events_removed, 'event')} ({size(report.bytes_removed)}) "
        f"of {plural(report.sessions_pruned, 'session')} in {report.duration_s:.1f} s."
    )
    if report.sessions_forgotten:
        show_prose(f"The records of {plural(report.sessions_forgotten, 'session')} went too.")
    if report.archived:
        folder = Path(report.archived[0]).parent
        show_prose(f"Archived before in {plural(len(report.archived), 'file')} in {folder} (aegis-store import reads them).")


def _show_reclaimable(free_bytes: int, place: str) -> None:
    from aegis_store.cli.terminal import show, size

    if free_bytes:
        show(f"{size(free_bytes)} of the file are free pages. To give them back:", f"aegis-store reclaim{place}")


def _show_history(context: typer.Context, db: str | None, limit: int, *, as_json: bool) -> None:
    """The newest runs that had something to do; as JSON the newest, whatever they had to do."""
    from aegis_store.cli.terminal import count, plural, show, show_json, show_table, size, table, when

    with open_to_look(context, db) as store:
        newest = store.prune_history(limit=limit if as_json else MAX_PRUNE_RUNS)
    if as_json:
        for run in newest:
            show_json(asdict(run))
        return
    found = [run for run in newest if run.events or run.sessions_forgotten or run.outcome != "done"]
    runs, more = found[:limit], len(found) > limit
    if not runs:
        show("No prune has removed anything yet.")
        return
    rows = (
        (when(r.started_at), r.trigger, count(r.events), size(r.bytes), count(r.sessions_forgotten), _outcome(r)) for r in runs
    )
    show_table(table("started (UTC)", "trigger", ">events", ">bytes", ">records", "outcome"), rows)
    if more:
        show(f"There are more: --limit {min(limit * 2, MAX_PRUNE_RUNS)} shows twice as many.")
    totals: Counter[str] = Counter()
    for run in runs:
        if run.outcome != "reported":  # by mode warn: nothing went
            totals.update(run.by_reason)
    show(*(f"{plural(events, 'event')} went by {reason}." for reason, events in totals.most_common() if events))
    if any(run.sessions_forgotten for run in runs if run.outcome != "reported"):
        show("Records went by forget_sessions_after; a tombstone keeps the seq of each.")


def _outcome(run: "PruneRun") -> str:
    """In a word or two: they have to fit in a line."""
    if run.outcome is None:
        return "not ended"
    error = run.outcome.removeprefix("failed: ")
    return _FAILURES.get(error, error)


def plan_fields(plan: "PrunePlan") -> dict[str, Any]:
    def fields(truncation: "Truncation") -> dict[str, Any]:
        return {name: value for name, value in asdict(truncation).items() if name != "key"}

    return {
        "now": plan.now,
        "events": plan.events,
        "bytes": plan.bytes,
        "sessions_forgotten": plan.sessions_forgotten,
        "by_reason": {reason: total._asdict() for reason, total in plan.by_reason().items()},
        "budget": asdict(plan.budget) if plan.budget else None,
        "sessions": [fields(truncation) for truncation in plan.truncations],
    }
