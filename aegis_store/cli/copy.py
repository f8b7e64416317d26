"""The command `copy`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_store.cli.options import AsJson

if TYPE_CHECKING:
    from aegis_store.copying.run import CopyReport

_Source = Annotated[str, typer.Argument(help="The store to copy: a path, or a URL of PostgreSQL.", metavar="FROM")]
_Target = Annotated[str, typer.Argument(help="Where to: the same. What is missing is made.", metavar="TO")]


def copy(source: _Source, target: _Target, as_json: AsJson = False) -> None:
    """Copy a store into another, from SQLite to PostgreSQL, say.

    Each is a path, or a URL such as postgresql+psycopg://me@db.example.com/agents. All comes along: seq, positions, times, ids,
    records, tombstones, the policy. It is the store of one moment, while others go on writing to FROM; nobody is to use TO
    before it is done. In the end both are compared, each record and event.

    Run again after an interruption, or when FROM has got more, it goes on after what is there. A TO that holds anything else
    is refused.

    Example: aegis-store copy agents.db moved.db
    """
    from aegis_store.cli.terminal import count, plural, show_facts, show_json
    from aegis_store.target import masked

    report = _copy(source, target)
    places = {"from": masked(source), "to": masked(target)}
    if as_json:
        show_json({**asdict(report), **places})
        return
    before = f" ({count(report.events_standing)} there before)" if report.events_standing else ""
    facts = {
        "sessions": count(report.sessions),
        "events": f"{count(report.events)}, each compared{before}",
        "took": f"{report.duration_s:.1f} s",
    }
    if report.tombstones:
        facts["deleted"] = f"{plural(report.tombstones, 'session')}, whose seq is kept"
    show_facts(facts, title=f"Copied {places['from']} to {places['to']}")


def _copy(source: str, target: str) -> "CopyReport":
    from aegis_store.cli.exits import Interrupted
    from aegis_store.cli.terminal import count, plural, progress
    from aegis_store.store import EventStore

    written, events = 0, 0
    with progress() as bar:
        task = bar.add_task("Copying, then comparing", total=None)

        def tell(done: int, total: int) -> None:
            nonlocal written, events
            written, events = min(done, total // 2), total // 2
            bar.update(task, completed=done, total=total)

        try:
            return EventStore.copy(source, target, on_progress=tell)
        except KeyboardInterrupt:
            told = f"interrupted: {count(written)} of {plural(events, 'event')} are there; run it again to go on"
            raise Interrupted(told) from None
