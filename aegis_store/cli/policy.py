"""The commands `policy show` and `policy set`."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_store.cli.options import AsJson, Db, open_to_change, open_to_look, print_help_without_command

if TYPE_CHECKING:
    from datetime import timedelta

    from aegis_store.retention.policy import RetentionPolicy

app = typer.Typer(help="Show or change the retention policy.", rich_markup_mode=None, invoke_without_command=True)

_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TIME_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


@app.callback()
def policy(context: typer.Context) -> None:
    print_help_without_command(context)


def parse_cap(text: str) -> Any:
    """A number of events, or `unlimited`."""
    from aegis_store.events import UNLIMITED

    if text == "unlimited":
        return UNLIMITED
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise typer.BadParameter(f"{text!r:.60} is neither a whole number nor 'unlimited'")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes, as 1048576, 500MB or 2GiB."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]i?B|B)?", text, re.IGNORECASE)
    if not match:
        raise typer.BadParameter(f"{text!r:.60} is no size such as 500KB or 1MiB")
    return int(match[1]) * _SIZE_UNITS[(match[2] or "").upper()]


def parse_duration(text: str) -> "timedelta":
    """A time, as 30d, 12h, 90m or 0."""
    from datetime import timedelta

    match = re.fullmatch(r"([0-9]{1,9})([dhms])", text) or re.fullmatch(r"(0)()", text)
    if not match:
        raise typer.BadParameter(f"{text!r:.60} is no duration such as 30d, 12h or 90m")
    return timedelta(**{_TIME_UNITS.get(match[2], "seconds"): int(match[1])})


@app.command("show")
def show_policy(context: typer.Context, db: Db = None, as_json: AsJson = False) -> None:
    """Show the policy in force.

    Example: aegis-store policy show --json
    """
    with open_to_look(context, db) as store:
        _show(store.retention_policy(), as_json=as_json)


@app.command("set")
def set_policy(
    context: typer.Context,
    max_events: Annotated[
        Any, typer.Option(parser=parse_cap, metavar="N|unlimited", help="Newest events kept per session.", show_default=False)
    ] = None,
    max_event_bytes: Annotated[
        Any, typer.Option(parser=parse_size, metavar="SIZE", help="Largest payload, as 500KB or 1MiB.", show_default=False)
    ] = None,
    terminal_grace: Annotated[
        Any,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How long ended sessions keep their events, as 30d, 12h or 0.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Change it even if events go at once.")] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Change what is given, leave the rest. A lower --max-events removes events at once, so it asks for --yes.

    Example: aegis-store policy set --max-events 5000 --terminal-grace 7d
    """
    from dataclasses import replace

    from aegis_store.cli.terminal import plural, show
    from aegis_store.errors import InvalidPolicy

    given = {"max_events": max_events, "max_event_bytes": max_event_bytes, "terminal_grace": terminal_grace}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise InvalidPolicy("say what to change: --max-events, --max-event-bytes or --terminal-grace")
    with open_to_change(context, db) as store:
        old = store.retention_policy()
        new = replace(old, **changes)
        loss = store.plan_policy(new)
        if loss.events and not yes:
            raise InvalidPolicy(
                f"this would remove {plural(loss.events, 'event')} of {plural(loss.sessions, 'session')} now: "
                "add --yes if that is what you want"
            )
        store.set_retention_policy(new)
    if not as_json:
        show("Before:")
        _show(old, as_json=False)
        show("Now:")
    _show(new, as_json=as_json)


def _show(policy: "RetentionPolicy", *, as_json: bool) -> None:
    from aegis_store.cli.look import cap_field, policy_fields
    from aegis_store.cli.terminal import duration, show_facts, show_json, size

    if as_json:
        show_json(policy_fields(policy))
        return
    show_facts(
        {
            "max_events": cap_field(policy.max_events),
            "max_event_bytes": f"{policy.max_event_bytes} ({size(policy.max_event_bytes)})",
            "terminal_grace": duration(policy.terminal_grace),
        }
    )
