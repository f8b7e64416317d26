"""The command `verify`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from aegis_store.cli.exits import DONE, STORE_UNUSABLE
from aegis_store.cli.options import AsJson, Db, open_to_look

if TYPE_CHECKING:
    from aegis_store.verify.report import VerifyReport

_SHOWN = 20


def verify(context: typer.Context, db: Db = None, as_json: AsJson = False) -> int:
    """Tell what in the store is not what was written.

    Reads all of it. Changes nothing; works beside writers.

    Exit code 0: all is well. 5: it is damaged, or cannot be opened; what to do is said.

    Example: aegis-store verify --json
    """
    from aegis_store.cli.terminal import progress, show_json

    with open_to_look(context, db) as store, progress() as bar:
        task = bar.add_task("Reading the structure, then the events", total=None)
        report = store.verify(on_progress=lambda done, events: bar.update(task, completed=done, total=events))
    if as_json:
        problems = [problem._asdict() for problem in report.problems]
        show_json({"ok": report.ok, **asdict(report), "problems": problems, "advice": report.advice})
    else:
        _print(report)
    return DONE if report.ok else STORE_UNUSABLE


def _print(report: "VerifyReport") -> None:
    from aegis_store.cli.terminal import plural, show_prose, show_table, table

    looked_at = f"{plural(report.events, 'event')} of {plural(report.sessions, 'session')} in {report.duration_s:.1f} s"
    if report.ok:
        show_prose(f"All is well: {looked_at}, nothing missing, nothing changed.")
    else:
        rows = [(p.kind, p.session_id or "-", "-" if p.seq is None else p.seq, p.detail) for p in report.problems[:_SHOWN]]
        show_table(table("kind", "<session", ">seq", "~what is wrong"), rows)
        more = len(report.problems) - len(rows) + report.more_problems
        if more:
            show_prose(f"And {plural(more, 'problem')} more: --json tells of the first thousand.")
        show_prose(f"Looked at {looked_at}.")
    if report.events_without_checksum:
        unchecked = plural(report.events_without_checksum, "event")
        show_prose(f"{unchecked} without a checksum: stored before schema 0003, or by another program.")
    for each in report.not_looked_at:
        show_prose(f"Not looked at: {each}.")
    if report.advice:
        show_prose(report.advice)
