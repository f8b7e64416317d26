"""The commands `export`, `import` and `import-aegis`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from aegis_store.cli.options import AsJson, Db, RedactBy, open_to_change, open_to_look, place_shown, redact_hook

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis_store.retention.policy import RetentionPolicy
    from aegis_store.transfer.aegis_import import ImportReport
    from aegis_store.transfer.bring_lines import LinesReport
    from aegis_store.transfer.standing import BroughtIn


def export(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="The file to write: .jsonl, .jsonl.gz (gzip) or .jsonl.zst (zstd).", metavar="FILE")
    ],
    session: Annotated[
        list[str] | None,
        typer.Option(
            "--session", metavar="SESSION", help="Only this session; may be given again. Without it all of the store."
        ),
    ] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> int:
    """Write the store, or some sessions, to a file of JSON lines.

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
        show_facts(facts, title=f"Exported {place_shown(context, db)} to {file}")
    return exits.DONE


def import_lines(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(help="Files of `export`, or archives of `prune`.", metavar="FILE", exists=True, dir_okay=False),
    ],
    hold: Annotated[
        bool, typer.Option("--hold", help="Put the sessions of the files on hold, so that no prune touches them.")
    ] = False,
    redact: RedactBy = None,
    db: Db = None,
    as_json: AsJson = False,
) -> int:
    """Import sessions from files that `export` or `prune` wrote.

    With --json, one report a file and line.

    All files are checked to their end before anything is written: if one cannot be read, none is imported. (Without the older
    events of a session its newer ones could come in, and the older ones not any more.) They come in by the time at which they
    were written, in whatever order they are given.

    Sessions that contradict the store are named and left out. Run again, also after an interruption, it adds what is new in
    the files and nothing twice. A store that holds no session and has the default policy takes over the policy of the file,
    and the output says so.

    Example: aegis-store import old-events/*.jsonl.gz --db copy.db
    """
    from aegis_store.cli import exits
    from aegis_store.cli.terminal import progress, show_json

    hook = redact_hook(redact)
    with progress(transfer=True) as bar:
        task = bar.add_task("Checking, then writing", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        checked = _checked(files, tell)  # before the store is opened: a file that cannot be read makes none
        with open_to_change(context, db, create=True, redact=hook) as store:
            reports = [store.import_lines(each.file, hold=hold, on_bytes=tell) for each in checked]
    if as_json:
        for each, report in zip(checked, reports, strict=True):
            show_json(_lines_fields(each, report))
    else:
        _show_lines(checked, reports, place_shown(context, db))
    return exits.NOT_ALL_IMPORTED if any(report.refused for report in reports) else exits.DONE


class _Checked(NamedTuple):
    """A file that was found good, and the policy that it brings."""

    written_at: str
    file: Path
    policy: "RetentionPolicy | None"


def _checked(files: list[Path], tell: "Callable[[int, int], None]") -> list[_Checked]:
    """The files, those that were written first before the others. Raises `ImportRejected` for the first that is not good."""
    from aegis_store.errors import ImportRejected
    from aegis_store.retention.stored import policy_from_fields
    from aegis_store.transfer.line_order import check

    found = []
    for file in dict.fromkeys(files):
        try:
            header = check(file, tell)
            found.append(_Checked(str(header.get("written_at")), file, policy_from_fields(header.get("policy"), file)))
        except ImportRejected as error:
            others = len(set(files)) - 1
            raise ImportRejected(file=error.file, place=error.place, detail=error.detail, others=others) from None
    return sorted(found, key=lambda each: each.written_at)


def _lines_fields(checked: _Checked, report: "LinesReport") -> dict[str, Any]:
    """The report, with the policy of the file under the names that all commands use."""
    from aegis_store.cli.nouns import policy_fields

    policy = checked.policy and policy_fields(checked.policy)
    return {"file": str(checked.file), **asdict(report), "policy": policy}


def _show_lines(checked: list[_Checked], reports: "list[LinesReport]", place: str) -> None:
    """All of them in one summary. What was refused names its file, if there are several."""
    from aegis_store.cli.nouns import policy_words
    from aegis_store.cli.terminal import plural, show_facts
    from aegis_store.transfer.standing import BroughtIn

    several = len(checked) > 1
    total, adopted = BroughtIn(), {}
    for each, report in zip(checked, reports, strict=True):
        total.add(report)
        where = f" ({each.file.name})" if several else ""
        for each_refused in report.refused:
            total.refuse(each_refused.session_id, f"{each_refused.reason}{where}")
        if report.policy_adopted and each.policy:
            adopted["policy"] = f"that of the file now: {policy_words(each.policy)}"
    what = f"{plural(len(checked), 'file')} " if several else ""
    show_facts({**_facts(total), **adopted}, title=f"Imported {what}into {place}")
    _show_refused(total)


def import_aegis(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="The state file, .json or .json.gz.", metavar="FILE", exists=True, dir_okay=False)
    ],
    rest: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A new file for what an event log does not take (actions, pauseInterventions): a JSON object, each part "
            "byte for byte as it stands.",
        ),
    ] = None,
    redact: RedactBy = None,
    db: Db = None,
    as_json: AsJson = False,
) -> int:
    """Import a state file of the orchestrator.

    Run again, it adds what is new in the file and nothing twice.

    Example: aegis-store import-aegis aegis-state.json.gz --rest rest.json
    """
    from aegis_store.cli import exits
    from aegis_store.cli.terminal import progress, show_json
    from aegis_store.transfer.aegis_file import staged

    hook = redact_hook(redact)
    with progress(transfer=True) as bar:
        reading, writing = (bar.add_task(step, total=None) for step in ("Reading the file", "Writing sessions"))
        # In this order: a file that cannot be read makes no store.
        with (
            staged(file, lambda done, total: bar.update(reading, completed=done, total=total), rest=rest) as state,
            open_to_change(context, db, create=True, redact=hook) as store,
        ):
            report = store.import_aegis(state, on_sessions=lambda done, total: bar.update(writing, completed=done, total=total))
    if as_json:
        show_json({**asdict(report), "rest": None if rest is None else str(rest)})
    else:
        _show(report, place_shown(context, db), rest)
    return exits.NOT_ALL_IMPORTED if report.refused else exits.DONE


def _show(report: "ImportReport", place: str, rest: Path | None) -> None:
    from aegis_store.cli.terminal import count, show_facts

    facts = _facts(report)
    for name, number in report.not_taken.items():
        facts[f"not taken: {name}"] = f"{count(number)} (no part of an event log)"
    if rest is not None:
        facts["the rest"] = f"written to {rest}"
    show_facts(facts, title=f"Imported into {place}")
    _show_refused(report)


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


def _show_refused(report: "BroughtIn") -> None:
    from aegis_store.cli.terminal import count, plural, show, show_table, table

    if report.refused:
        show("", f"{plural(len(report.refused) + report.more_refused, 'session')} refused:")
        show_table(table("session", "~reason"), [(refusal.session_id, refusal.reason) for refusal in report.refused])
    if report.more_refused:
        show(f"... and {count(report.more_refused)} more.")
