"""The command `inspect`: the store, or a session, at a glance; as a picture, refreshed or once, as a page, as JSON."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_store.cli.options import AsJson, Db, open_to_look, place_shown

if TYPE_CHECKING:
    from aegis_store.cli.pictures import Panel
    from aegis_store.store import EventStore

_EVERY_S = 2.0
_SHORTEST_S = 0.1


def inspect(
    context: typer.Context,
    session: Annotated[str | None, typer.Argument(metavar="SESSION", help="A session, by its id.", show_default=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 seconds, until Ctrl-C.")] = False,
    every_s: Annotated[
        float | None,
        typer.Option(
            "--every", metavar="SECONDS", min=_SHORTEST_S, max=86_400, help="With --watch: so often.", show_default=False
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page for a browser instead, which needs nothing else."),
    ] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """The store at a glance; with a session, that session.

    What it holds and how full it is, when events came, the types and sessions of the newest ones, what was removed and why.
    It looks at the newest events only, however many there are.

    Example: aegis-store inspect --db aegis-demo.db
    """
    _check_together(watch, every_s, html, as_json)
    with open_to_look(context, db) as store:
        place = place_shown(context, db)
        if as_json:
            _print_json(store, session, place)
            return

        def look() -> "list[Panel]":
            return _panels(store, session, place)

        if html is not None:
            _write_page(html, session or place, look())
        elif watch:
            _watch(look, every_s or _EVERY_S)
        else:
            _print(look())


def show_store(store: "EventStore", place: str) -> None:
    """Print a store at a glance."""
    _print(_panels(store, None, place))


def _check_together(watch: bool, every_s: float | None, html: Path | None, as_json: bool) -> None:
    import sys

    given = [name for name, is_given in (("--watch", watch), ("--html", html is not None), ("--json", as_json)) if is_given]
    if len(given) > 1:
        raise typer.BadParameter(f"not together with {given[1]}", param_hint=f"'{given[0]}'")
    if html is not None and not html.name:
        raise typer.BadParameter(f"a file needs a name, not '{html}'", param_hint="'--html'")
    if every_s is not None and not watch:
        raise typer.BadParameter("it goes with --watch", param_hint="'--every'")
    if watch and not sys.stdout.isatty():
        raise typer.BadParameter("it draws on a terminal, and the output is none: leave it out", param_hint="'--watch'")


def _panels(store: "EventStore", session: str | None, place: str) -> "list[Panel]":
    from aegis_store.cli import glance
    from aegis_store.schema import HEAD

    if session is not None:
        return glance.of_session(store.session_overview(session))
    overview = store.overview()
    return glance.of_store(overview, place, f"{HEAD}, {overview.database}")


def _print_json(store: "EventStore", session: str | None, place: str) -> None:
    from aegis_store.cli.nouns import overview_fields, session_overview_fields
    from aegis_store.cli.terminal import show_json
    from aegis_store.schema import HEAD

    if session is not None:
        show_json(session_overview_fields(store.session_overview(session)))
    else:
        overview = store.overview()
        database, _, version = overview.database.partition(" ")
        show_json({"store": place, "schema": HEAD, database.lower(): version, **overview_fields(overview)})


def _print(panels: "list[Panel]") -> None:
    from aegis_store.cli.pictures import Painter
    from aegis_store.cli.terminal import console

    screen = console()
    for line in Painter(screen).lines(panels):
        screen.print(line, soft_wrap=True)


def _watch(look: "Callable[[], list[Panel]]", every_s: float) -> None:
    """Draw again and again, in a screen of its own, until Ctrl-C."""
    import time

    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from aegis_store.cli.pictures import Painter
    from aegis_store.cli.terminal import console

    screen = console()

    def picture() -> Group:
        lines = Painter(screen).lines(look())
        hidden = len(lines) - screen.height
        if hidden > 0:
            lines = [*lines[: screen.height - 1], Text(f"({hidden + 1} more lines: make the terminal larger)")]
        return Group(*lines)

    with Live(picture(), console=screen, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(picture(), refresh=True)


def _write_page(file: Path, title: str, panels: "list[Panel]") -> None:
    from aegis_store.cli import page
    from aegis_store.cli.terminal import show_prose, size

    written = page.write(file, title, panels)
    show_prose(f"Written to {file}, {size(written)}.")
