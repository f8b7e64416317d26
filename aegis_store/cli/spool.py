"""The commands `spool show` and `spool flush`: events that `record --lenient` could not record."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_store.cli.options import AsJson, Db, RedactBy, place_of, print_help_without_command, redact_hook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis_store.recording import FlushReport

app = typer.Typer(
    help="Events that wait to be recorded.\n\nExample: aegis-store spool show",
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def spool(context: typer.Context) -> None:
    print_help_without_command(context)


@app.command()
def show(context: typer.Context, db: Db = None, as_json: AsJson = False) -> None:
    """Show what waits, and what was set aside. With --json, one event a line.

    The store is not opened. A file that was set aside can be removed, or moved up into the directory of those that wait, once
    what was in its way is gone.

    Example: aegis-store spool show --db agents.db
    """
    from aegis_store.any_database import place_at
    from aegis_store.cli.terminal import show_json
    from aegis_store.spool import Spool

    found = Spool(place_at(place_of(context, db)))
    waiting, rejected = found.waiting(), found.rejected()
    if as_json:
        for fields in _fields(waiting, rejected):
            show_json(fields)
    else:
        _show(waiting, rejected)


@app.command()
def flush(
    context: typer.Context,
    busy_timeout: Annotated[
        float, typer.Option(min=0, max=3600, metavar="SECONDS", help="How long to wait for other writers.")
    ] = 10,
    redact: RedactBy = None,
    db: Db = None,
    as_json: AsJson = False,
) -> int:
    """Bring in what waits, in order, each event once.

    It may be interrupted and run again, and run beside others. What the store will never take is set aside and named; the
    exit code is then 7. A file that cannot be read or removed is named too, and waits on; the exit code is then 1.

    Example: aegis-store spool flush --db agents.db
    """
    from aegis_store import recording
    from aegis_store.any_database import place_at
    from aegis_store.cli import exits
    from aegis_store.cli.terminal import progress, show_json

    hook = redact_hook(redact)
    with progress() as bar:
        task = bar.add_task("Bringing events in", total=None)
        report = recording.flush(
            place_at(place_of(context, db)),
            busy_timeout_ms=int(busy_timeout * 1000),
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            redact=hook,
        )
    if as_json:
        rejected = [str(file) for file in report.rejected]
        stuck = {str(file): reason for file, reason in report.stuck.items()}
        show_json({"recorded": report.recorded, "rejected": rejected, "waiting": report.waiting, "stuck": stuck})
    else:
        _show_report(report)
    if report.stuck:
        return exits.FAILED
    return exits.NOT_ALL_IMPORTED if report.rejected else exits.DONE


def _show_report(report: "FlushReport") -> None:
    from aegis_store.cli.terminal import plural, show, show_prose

    if not report.recorded and not report.rejected and not report.stuck:
        show("No event waits.")
        return
    show(f"{plural(report.recorded, 'event')} brought in.")
    if report.rejected:
        show_prose(f"{plural(len(report.rejected), 'event')} set aside; `aegis-store spool show` tells why:")
        show(*(f"  {file}" for file in report.rejected))
    for file, reason in report.stuck.items():
        show_prose(f"{file} waits on: {reason}")


def _show(waiting: list[Path], rejected: list[Path]) -> None:
    from aegis_store.cli.terminal import plural, show, show_prose, show_table, table

    if not waiting and not rejected:
        show("No event waits.")
    for files, what in ((waiting, "waiting"), (rejected, "set aside, which the store would not take")):
        if files:
            show_prose(f"{plural(len(files), 'event')} {what}, in {', '.join(dict.fromkeys(str(f.parent) for f in files))}:")
            columns = table("received (UTC)", "<session", "<type", "~reason")
            show_table(columns, ((f["received_at"][:19], f["session"], f["type"], f["reason"]) for f in _fields(files, [])))


def _fields(waiting: list[Path], rejected: list[Path]) -> "Iterator[dict[str, Any]]":
    from aegis_store.errors import InvalidEvent
    from aegis_store.recording import names_of
    from aegis_store.spool import read

    for number, file in enumerate((*waiting, *rejected)):
        fields = dict.fromkeys(("received_at", "event_id", "session", "type", "reason"), "-")
        try:
            received = read(file)
            fields |= {"received_at": received.received_at.isoformat(sep=" "), "event_id": received.event_id}
            fields["reason"] = received.reason or "-"
            fields["session"], fields["type"] = names_of(received)
        except InvalidEvent:
            pass  # the reason says what is wrong with it
        except (OSError, ValueError) as error:
            fields["reason"] = str(error)
        yield {"file": str(file), "rejected": number >= len(waiting), **fields}
