"""The command `tail`: the last events, and those that come."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_store.cli.nouns import event_fields, preview, show_missed
from aegis_store.cli.options import AsJson, Db, open_to_look

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis_store.events import Event, EventsMissed

_SHOWN_EVENTS = 20
_WIDTH_OF_NAMES = 32


def tail(
    context: typer.Context,
    session: Annotated[
        str | None,
        typer.Argument(metavar="SESSION", help="A session, by its id; without it the whole store.", show_default=False),
    ] = None,
    number: Annotated[
        int, typer.Option("-n", "--number", min=0, metavar="N", help="How many of the last events.")
    ] = _SHOWN_EVENTS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Print the last events; with --follow, then what comes.

    Of a session, or of the whole store; one a line, oldest first. Events that were removed before they could be printed are
    told on stderr.

    Example: aegis-store tail run-42 -n 5 --follow
    """
    from aegis_store.cli.terminal import show
    from aegis_store.events import EventsMissed

    show_event = _show_as_json if as_json else _line_printer(with_session=session is None)
    is_empty = True
    with open_to_look(context, db) as store:
        for event in store.follow(session, last=number, timeout=None if follow else 0, on_gap="skip"):
            is_empty = False
            if isinstance(event, EventsMissed):
                _show_gap(event)
            else:
                show_event(event)
            if follow:
                sys.stdout.flush()
    if is_empty and number and not (follow or as_json):
        show("The store holds no event." if session is None else "The session holds no event.")


def _show_as_json(event: "Event") -> None:
    from aegis_store.cli.terminal import show_json

    show_json(event_fields(event))


def _line_printer(*, with_session: bool) -> "Callable[[Event], None]":
    from aegis_store.cli.terminal import console, fitted, show, when

    screen = console()
    width = _WIDTH_OF_NAMES // 2 if with_session else _WIDTH_OF_NAMES

    def show_line(event: "Event") -> None:
        names = (event.session_id, event.type) if with_session else (event.type,)
        columns = [f"{event.seq:>6}", when(event.recorded_at), *(fitted(name, width) for name in names)]
        show(fitted("  ".join([*columns, preview(event.payload)]), screen.width).rstrip())

    return show_line


def _show_gap(missed: "EventsMissed") -> None:
    from aegis_store.cli.terminal import console

    if missed.count is not None and missed.first_seq is not None:
        show_missed(missed.count, missed.first_seq)
    else:
        console(stderr=True).print(f"Events between positions {missed.after} and {missed.first_position} were removed.")
