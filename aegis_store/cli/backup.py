"""The commands `backup` and `restore`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_store.cli.options import AsJson, Db, open_to_look, place_of

if TYPE_CHECKING:
    from aegis_store.backup import BackupReport


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file to write; nothing may stand there.", metavar="FILE")],
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Copy the store to a file, beside running writers.

    It is the store of one moment. FILE appears only when the copy was read to its end and found undamaged, with mode 0600; no
    file is overwritten. `aegis-store restore` makes a store of it.

    Example: aegis-store backup agents.backup --db agents.db
    """
    from aegis_store.cli.terminal import progress

    with open_to_look(context, db) as store, progress(transfer=True) as bar:
        task = bar.add_task("Copying, verifying", total=None)
        report = store.backup(file, on_progress=lambda done, size: bar.update(task, completed=done, total=size))
    _print(report, f"Backed up {place_of(context, db)} to {file}", str(file), as_json=as_json)


def restore(
    context: typer.Context,
    backup: Annotated[Path, typer.Argument(help="A file of `backup`, which stays as it is.", metavar="BACKUP")],
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Make a store of a backup, where none stands.

    The copy is read to its end before it gets its name; a damaged one is refused, and no store is overwritten. Events that came
    after the backup are gone: readers that have seen them are told that their cursor is ahead.

    Example: aegis-store restore saved.backup --db restored.db
    """
    from aegis_store.cli.terminal import progress
    from aegis_store.store import EventStore

    place = place_of(context, db)
    with progress(transfer=True) as bar:
        task = bar.add_task("Copying, verifying", total=None)
        report = EventStore.restore(backup, place, on_progress=lambda done, size: bar.update(task, completed=done, total=size))
    _print(report, f"Restored {place} from {backup}", place, as_json=as_json)


def _print(report: "BackupReport", title: str, file: str, *, as_json: bool) -> None:
    from aegis_store.cli.terminal import count, show_facts, show_json, size

    if as_json:
        show_json({**asdict(report), "file": file})
        return
    facts = {
        "sessions": count(report.sessions),
        "events": f"{count(report.events)}, each verified",
        "size": f"{size(report.bytes)}, in {report.duration_s:.1f} s",
    }
    show_facts(facts, title=title)
