"""The command `reclaim`."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_store.cli.options import AsJson, Db, open_to_change, place_of

if TYPE_CHECKING:
    from aegis_store.retention.compact import CompactReport
    from aegis_store.retention.reclaim import ReclaimReport


def reclaim(
    context: typer.Context,
    max_seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Stop after so many seconds; the next run goes on.", show_default=False),
    ] = None,
    free_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="R", min=0, max=1, help="Leave so much of the file free for new events; 0 if left out.", show_default=False
        ),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Pack half-empty pages too. No one may have the store open meanwhile.")
    ] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Give the room that pruning freed back to the disk.

    In small steps, beside running writers. Removes no events.

    Reads the store to its end first, which --max-seconds does not count: one that is damaged is refused, and left as it is.

    Example: aegis-store reclaim --free-ratio 0.1 --max-seconds 60
    """
    from aegis_store.errors import InvalidInput

    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise InvalidInput(f"--max-seconds must be a number over 0, not {max_seconds:g}")
    if compact:
        if max_seconds is not None or free_ratio is not None:
            raise InvalidInput("--compact packs the whole store at once: leave out --max-seconds and --free-ratio")
        _print_compacted(_compact(place_of(context, db)), as_json=as_json)
    else:
        _print_reclaimed(_reclaim(context, db, max_seconds, 0.0 if free_ratio is None else free_ratio), as_json=as_json)


def _reclaim(context: typer.Context, db: str | None, max_seconds: float | None, free_ratio: float) -> "ReclaimReport":
    from aegis_store.cli.terminal import progress

    with open_to_change(context, db) as store, progress() as bar:
        task = bar.add_task("Giving pages back", total=None)
        return store.reclaim(
            max_seconds=max_seconds,
            free_ratio=free_ratio,
            check=True,
            on_progress=lambda done, pages: bar.update(task, completed=done, total=pages),
        )


def _compact(place: str) -> "CompactReport":
    from aegis_store.cli.terminal import progress
    from aegis_store.store import EventStore

    with progress(transfer=True) as bar:
        task = bar.add_task("Copying, verifying, writing back", total=None)
        return EventStore.compact(place, on_progress=lambda done, size: bar.update(task, completed=done, total=size))


def _print_reclaimed(report: "ReclaimReport", *, as_json: bool) -> None:
    from aegis_store.cli.terminal import show_json, show_prose, size

    if as_json:
        show_json({**asdict(report), "complete": report.complete})
        return
    show_prose(
        f"Before: {size(report.bytes_before)} on disk, {size(report.free_bytes_before)} of it free.",
        f"Now:    {size(report.bytes_after)} on disk, {size(report.free_bytes_after)} of it free "
        f"(in {report.duration_s:.1f} s).",
    )
    if report.outcome == "time_over":
        show_prose("The time was over before all was given back: run it again to go on.")
    elif report.outcome == "held_up":
        show_prose("A reader with an old snapshot keeps the file from getting shorter: run it again once that has ended.")


def _print_compacted(report: "CompactReport", *, as_json: bool) -> None:
    from aegis_store.cli.terminal import plural, show_json, show_prose, size

    if as_json:
        show_json(asdict(report))
        return
    show_prose(
        f"Before: {size(report.bytes_before)} on disk.",
        f"Now:    {size(report.bytes_after)} on disk (in {report.duration_s:.1f} s), with the same "
        f"{plural(report.events, 'event')} of {plural(report.sessions, 'session')}, compared one by one.",
    )
