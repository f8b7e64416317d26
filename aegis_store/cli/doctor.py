"""The command `doctor`."""

import typer

from aegis_store.cli.options import AsJson, Db, place_of


def doctor(context: typer.Context, db: Db = None, as_json: AsJson = False) -> int:
    """Look over the store and what it stands on.

    SQLite, file system, permissions, log, readers, free pages, budget, clock, files left behind: each ok, a warning or a
    problem, with what to do. Changes nothing; works beside writers, and on a store that does not open. What events hold is
    looked at by `aegis-store verify`.

    Exit code 0: no problem, warnings perhaps. 5: a problem.

    Example: aegis-store doctor --json
    """
    from aegis_store.cli.exits import DONE, STORE_UNUSABLE
    from aegis_store.cli.terminal import show_json, show_prose, show_table, table
    from aegis_store.store import EventStore

    report = EventStore.doctor(place_of(context, db))
    if as_json:
        findings = [finding._asdict() for finding in report.findings]
        show_json({"store": report.store, "state": report.state, "findings": findings})
    else:
        show_prose(report.store)
        rows = [
            (each.name, each.state, each.found if each.advice is None else f"{each.found}. What to do: {each.advice}")
            for each in report.findings
        ]
        show_table(table("looked at", "state", "~found"), rows)
    return STORE_UNUSABLE if report.state == "problem" else DONE
