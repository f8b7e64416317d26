"""What commands share: the options that name the store and the form of the output."""

import os
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from aegis_store.redaction import Redact
    from aegis_store.store import EventStore

URL_VARIABLE: Final = "AEGIS_STORE_URL"
DEFAULT_PATH: Final = "aegis.db"

Db = Annotated[
    str | None,
    typer.Option(
        "--db", metavar="PATH|URL", help=f"The store. Without it ${URL_VARIABLE}, else {DEFAULT_PATH} here.", show_default=False
    ),
]
REDACT_VARIABLE: Final = "AEGIS_STORE_REDACT"

RedactBy = Annotated[
    str | None,
    typer.Option(
        "--redact",
        metavar="MODULE:FUNCTION",
        help=f"What takes secrets out of payloads before they are stored. Without it ${REDACT_VARIABLE}, else nothing.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def place_of(context: typer.Context, db: str | None) -> str:
    """The store that was named: after the command, before it, by the environment, or by default."""
    named = named_place(context, db)
    return named if named is not None else os.environ.get(URL_VARIABLE) or DEFAULT_PATH


def place_shown(context: typer.Context, db: str | None) -> str:
    """The same as it may be printed: a URL without its password."""
    from aegis_store.target import masked

    return masked(place_of(context, db))


def place_to_type(context: typer.Context, db: str | None) -> str:
    """The option that names the store once more in a command to type, " --db PATH"; no password comes up in it."""
    import shlex

    place, shown = place_of(context, db), place_shown(context, db)
    if place == shown:
        return f" --db {shlex.quote(place)}"
    return "" if named_place(context, db) is None else " --db URL"  # nothing: it is in the environment


def named_place(context: typer.Context, db: str | None) -> str | None:
    """The store that was named on the command line, if one was."""
    above: str | None = context.find_root().params.get("db")
    named = db if db is not None else above
    if named == "":
        raise typer.BadParameter("a store needs a path or a URL, not ''", param_hint="'--db'")
    return named


def print_help_without_command(context: typer.Context) -> None:
    """What a group does when it is called without one of its commands."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def open_to_look(context: typer.Context, db: str | None) -> "EventStore":
    """The store, for a command that changes nothing."""
    from aegis_store.store import EventStore

    return EventStore.open(place_of(context, db), read_only=True)


def redact_hook(path: str | None) -> "Redact | None":
    """The hook that was named by the option, or by the environment. Raises `InvalidInput` where it cannot be had."""
    path = path if path is not None else os.environ.get(REDACT_VARIABLE) or None
    if path is None:
        return None
    from aegis_store import redaction

    return redaction.named(path)


def open_to_change(
    context: typer.Context, db: str | None, *, create: bool = False, redact: "Redact | None" = None
) -> "EventStore":
    """The store, for a command that writes. Opening it removes nothing: only `prune` and `demo` prune."""
    from aegis_store.store import EventStore

    return EventStore.open(place_of(context, db), create=create, prune_on_open=False, maintain_every=None, redact=redact)
