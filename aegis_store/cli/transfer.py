"""The commands `export`, `import` and `import-aegis`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_store.cli.options import AsJson, Db, open_to_change, open_to_look, place_of

if TYPE_CHECKING:
    from aegis_store.retention.policy import RetentionPolicy
    from aegis_store.transfer.aegis_import import ImportReport
    from aegis_store.transfer.bring_lines import LinesReport
    from aegis_store.transfer.standing import BroughtIn, Refusal


def export(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="The file to write: .jsonl, .jsonl.gz (gzip) or .jsonl.zst (zstd).", metavar="FILE")
    ],
    session: Annotated[
        list[str] | None,
        typer.Option("--session", metavar="ID", help="Only this session; may be given again. Without it all of the store."),
    ] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> int:
    """Write the store, or some of its sessions, to a file of JSON lines.

    It is the store of one moment, while others go on writing. No file is overwritten, and FILE appears only when it is
    complete, synced and read back. `aegis-store import` brings it into a store.

    Example: aegis-store export agents.jsonl.zst --db agents.db
    """
    from aegis_store.cli import exits
    from aegis_store.cli.terminal import count, progress, show_facts, show_json, size

    with open_to_look(context, db) as store, progress(transfer=True) as bar:
        task = bar.add_task("Writing events", total=None)
        report = store.export(
            file, session_ids=session or None, on_progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if as_json:
        show_json({**asdict(report), "file": str(file)})
    else:
        facts = {"sessions": count(report.sessions), "events": count(report.events), "size": size(report.file_bytes)}
        show_facts(facts, title=f"Exported {place_of(context, db)} to {file}")
    return exits.DONE


def import_lines(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(help="A file of `export`, or an archive of `prune`.", metavar="FILE", exists=True, dir_okay=False),
    ],
    hold: Annotated[
        bool, typer.Option("--hold", help="Put the sessions of the file on hold, so that no prune touches them.")
    ] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> int:
    """Import sessions from a file of JSON lines, as `export` writes it.

    All of the file is checked before anything is written. Sessions that contradict the store are named and left out. Run
    again, also after an interruption, it adds what is new in the file and nothing twice. A store that holds no session and has
    the default policy takes over the policy of the file, and the output says so.

    Example: aegis-store import agents.jsonl.zst --db copy.db
    """
    from aegis_store.cli import exits
    from aegis_store.cli.look import policy_words
    from aegis_store.cli.terminal import progress, show_facts, show_json
    from aegis_store.retention.stored import policy_from_fields
    from aegis_store.transfer.line_order import check

    with progress(transfer=True) as bar:
        task = bar.add_task("Checking, then writing", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        # In this order: a file that cannot be read makes no store.
        policy = policy_from_fields(check(file, tell).get("policy"), file)
        with open_to_change(context, db, create=True) as store:
            report = store.import_lines(file, hold=hold, on_bytes=tell)
    if as_json:
        show_json(_lines_fields(report, policy))
    else:
        adopted = {"policy": f"that of the file now: {policy_words(policy)}"} if policy and report.policy_adopted else {}
        show_facts({**_facts(report), **adopted}, title=f"Imported into {place_of(context, db)}")
        _show_refused(report.refused)
    return exits.NOT_ALL_IMPORTED if report.refused else exits.DONE


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
    from aegis_store.transfer.aegis_file import staged

    with progress(transfer=True) as bar:
        reading, writing = (bar.add_task(step, total=None) for step in ("Reading the file", "Writing sessions"))
        # In this order: a file that cannot be read makes no store.
        with (
            staged(file, lambda done, total: bar.update(reading, completed=done, total=total)) as state,
            open_to_change(context, db, create=True) as store,
        ):
            report = store.import_aegis(state, on_sessions=lambda done, total: bar.update(writing, completed=done, total=total))
    if as_json:
        show_json(asdict(report))
    else:
        _show(report, place_of(context, db))
    return exits.NOT_ALL_IMPORTED if report.refused else exits.DONE


def _lines_fields(report: "LinesReport", policy: "RetentionPolicy | None") -> dict[str, Any]:
    """The report, with the policy of the file under the names that all commands use."""
    from aegis_store.cli.look import policy_fields

    return {**asdict(report), "policy": policy and policy_fields(policy)}


def _show(report: "ImportReport", place: str) -> None:
    from aegis_store.cli.terminal import count, show_facts

    facts = _facts(report)
    for name, number in report.not_taken.items():
        facts[f"not taken: {name}"] = f"{count(number)} (no part of an event log)"
    show_facts(facts, title=f"Imported into {place}")
    _show_refused(report.refused)


def _facts(report: "BroughtIn") -> dict[str, str]:
    from aegis_store.cli.terminal import count, plural

    facts = {
        "sessions": f"{count(report.sessions_added)} added, {count(report.sessions_updated)} updated, "
        f"{count(report.sessions_unchanged)} as they were",
        "events": f"{count(report.events_added)} added, {count(report.events_standing)} there already",
    }
    if report.events_capped:
        facts["over the cap"] = f"{plural(report.events_capped, 'event')} went again, the oldest first"
    if report.sessions_deleted:
        facts["deleted here"] = f"{plural(report.sessions_deleted, 'session')}, not brought back: import into another store"
    if report.events_pruned:
        facts["pruned before"] = f"{plural(report.events_pruned, 'event')}, which do not return"
    return facts


def _show_refused(refused: "list[Refusal]") -> None:
    from aegis_store.cli.terminal import plural, show, show_table, table

    if refused:
        show("", f"{plural(len(refused), 'session')} refused:")
        show_table(table("session", "~reason"), [(refusal.session_id, refusal.reason) for refusal in refused])
