"""The command `import-aegis`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_store.cli.options import AsJson, Db, open_to_change, place_of

if TYPE_CHECKING:
    from aegis_store.transfer.aegis_import import ImportReport


def import_aegis(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="The state file, .json or .json.gz.", metavar="FILE", exists=True, dir_okay=False)
    ],
    db: Db = None,
    as_json: AsJson = False,
) -> int:
    """Import a state file of the orchestrator.

    Run again, it adds what is new in the file and nothing twice.

    Example: aegis-store import-aegis aegis-state.json.gz --db aegis.db
    """
    from aegis_store.cli import exits
    from aegis_store.cli.terminal import progress, show_json

    with open_to_change(context, db, create=True) as store, progress(transfer=True) as bar:
        reading = bar.add_task("Reading the file", total=None)
        writing = bar.add_task("Writing sessions", total=None)
        report = store.import_aegis(
            file,
            on_bytes=lambda done, total: bar.update(reading, completed=done, total=total),
            on_sessions=lambda done, total: bar.update(writing, completed=done, total=total),
        )
    if as_json:
        show_json(asdict(report))
    else:
        _show(report, place_of(context, db))
    return exits.NOT_ALL_IMPORTED if report.refused else exits.DONE


def _show(report: "ImportReport", place: str) -> None:
    from aegis_store.cli.terminal import count, plural, show, show_facts, show_table, table

    facts = {
        "sessions": f"{count(report.sessions_added)} added, {count(report.sessions_updated)} updated, "
        f"{count(report.sessions_unchanged)} as they were",
        "events": f"{count(report.events_added)} added, {count(report.events_standing)} there already",
    }
    if report.events_capped:
        facts["over the cap"] = f"{plural(report.events_capped, 'event')} went again, the oldest first"
    if report.events_pruned:
        facts["pruned before"] = f"{plural(report.events_pruned, 'event')}, which do not return"
    for name, number in report.not_taken.items():
        facts[f"not taken: {name}"] = f"{count(number)} (no part of an event log)"
    show_facts(facts, title=f"Imported into {place}")
    if report.refused:
        show("", f"{plural(len(report.refused), 'session')} refused, nothing of them was written:")
        show_table(table("session", "~reason"), [(refusal.session_id, refusal.reason) for refusal in report.refused])
