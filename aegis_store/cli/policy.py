"""The commands `policy show` and `policy set`."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aegis_store.cli.options import AsJson, Db, open_to_change, open_to_look, print_help_without_command

if TYPE_CHECKING:
    from datetime import timedelta

    from aegis_store.retention.limits import PolicyLoss
    from aegis_store.retention.plan import PrunePlan
    from aegis_store.retention.policy import RetentionPolicy

app = typer.Typer(
    help="Show or change the retention policy.\n\nExample: aegis-store policy show",
    rich_markup_mode=None,
    invoke_without_command=True,
)

_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_TIME_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}

NO_LIMIT: Final = "none"


@app.callback()
def policy(context: typer.Context) -> None:
    print_help_without_command(context)


def parse_cap(text: str) -> Any:
    """A number of events, or `unlimited`."""
    from aegis_store.events import UNLIMITED

    if text in ("unlimited", NO_LIMIT):
        return UNLIMITED
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise typer.BadParameter(f"{text!r:.60} is neither a whole number nor 'unlimited' (or 'none')")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes, as 1048576, 500MB or 2GiB."""
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]i?B|B)?", text, re.IGNORECASE)
    if not match:
        raise typer.BadParameter(f"{text!r:.60} is no size such as 1048576, 500MB or 2GiB")
    return int(match[1]) * _SIZE_UNITS[(match[2] or "").upper()]


def parse_size_or_none(text: str) -> Any:
    return _or_none(parse_size, text)


def parse_duration(text: str) -> "timedelta":
    """A time, as 30d, 12h, 90m, 45s or 0."""
    from datetime import timedelta

    match = re.fullmatch(r"([0-9]{1,8})([dhms])", text) or re.fullmatch(r"(0)()", text)
    if not match:
        raise typer.BadParameter(f"{text!r:.60} is no duration such as 30d, 12h, 90m or 45s")
    return timedelta(**{_TIME_UNITS.get(match[2], "seconds"): int(match[1])})


def parse_duration_or_none(text: str) -> Any:
    return _or_none(parse_duration, text)


def _or_none(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return text if text == NO_LIMIT else parse(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{error.message}; '{NO_LIMIT}' takes the limit away") from None


@app.command("show")
def show_policy(context: typer.Context, db: Db = None, as_json: AsJson = False) -> None:
    """Show the policy in force.

    Example: aegis-store policy show --json
    """
    from aegis_store.cli.nouns import policy_fields
    from aegis_store.cli.terminal import show_facts, show_json

    with open_to_look(context, db) as store:
        found = store.retention_policy()
    if as_json:
        show_json(policy_fields(found))
    else:
        show_facts(_words(found))


def _knob(name: str, parse: Callable[[str], Any], metavar: str, help_text: str) -> Any:
    """The option for a knob of the policy, which knows what its value must be."""

    def parsed(text: str) -> Any:
        from aegis_store.errors import InvalidPolicy
        from aegis_store.retention.policy import RetentionPolicy

        value = parse(text)
        knob: dict[str, Any] = {name: None if value == NO_LIMIT else value}
        try:
            RetentionPolicy(**knob)
        except InvalidPolicy as error:
            raise typer.BadParameter(f"{error.rule}, not {text!r:.60}") from None
        return value

    return typer.Option(parser=parsed, metavar=metavar, help=help_text, show_default=False)


@app.command("set")
def set_policy(
    context: typer.Context,
    max_events: Annotated[Any, _knob("max_events", parse_cap, "N|unlimited", "Newest events kept per session, exact.")] = None,
    max_bytes: Annotated[Any, _knob("max_bytes", parse_size_or_none, "SIZE|none", "Payload bytes kept per session.")] = None,
    max_age: Annotated[
        Any, _knob("max_age", parse_duration_or_none, "DURATION|none", "Older events go, as 30d, 12h, 90m.")
    ] = None,
    max_event_bytes: Annotated[Any, _knob("max_event_bytes", parse_size, "SIZE", "Largest payload, as 500KB or 1MiB.")] = None,
    terminal_grace: Annotated[
        Any, _knob("terminal_grace", parse_duration, "DURATION", "How long ended sessions keep their events.")
    ] = None,
    max_total_bytes: Annotated[
        Any, _knob("max_total_bytes", parse_size_or_none, "SIZE|none", "Budget of the store: payload bytes, as 500MB or 2GiB.")
    ] = None,
    forget_sessions_after: Annotated[
        Any,
        _knob(
            "forget_sessions_after",
            parse_duration_or_none,
            "DURATION|none",
            "Ended sessions without events: their record goes.",
        ),
    ] = None,
    mode: Annotated[Any, _knob("mode", str, "enforce|warn", "warn: no prune but an explicit one acts.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Change it even if events go at once.")] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Change the knobs that are given; show old and new, and what goes.

    SIZE is a number of bytes, or one with KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of 1024): 500MB, 2GiB.
    DURATION is a number with d, h, m or s: 30d, 12h, 90m, 45s; or 0, but for --max-age.
    none takes a limit away, unlimited the cap.

    A lower --max-events removes events at once, so it asks for --yes. What the other limits ask for goes with the next prune.

    Example: aegis-store policy set --max-age 30d --max-total-bytes 2GiB
    """
    from dataclasses import fields, replace

    from aegis_store.errors import InvalidPolicy
    from aegis_store.retention.policy import RetentionPolicy

    given = {field.name: context.params[field.name] for field in fields(RetentionPolicy)}
    changes: dict[str, Any] = {name: None if value == NO_LIMIT else value for name, value in given.items() if value is not None}
    if not changes:
        knobs = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidPolicy(f"say what to change: {knobs}")
    with open_to_change(context, db) as store:
        old = store.retention_policy()
        new = replace(old, **changes)
        loss, plan = store.plan_policy(new), store.plan_prune(policy=new)
        if loss.events and not yes:
            raise InvalidPolicy(f"this would remove {_loss_words(loss)} now: add --yes if that is what you want")
        store.set_retention_policy(new)
    _show_change(old, new, loss, plan, as_json=as_json)


def _show_change(
    old: "RetentionPolicy", new: "RetentionPolicy", loss: "PolicyLoss", plan: "PrunePlan", *, as_json: bool
) -> None:
    from aegis_store.cli.nouns import policy_fields
    from aegis_store.cli.terminal import plural, show, show_json, show_table, size, table

    if as_json:
        next_prune = {"events": plan.events, "bytes": plan.bytes, "sessions_forgotten": plan.sessions_forgotten}
        removed = {"removed_now": loss._asdict(), "next_prune": next_prune}
        show_json({**policy_fields(new), "before": policy_fields(old), **removed})
        return
    before, now = _words(old), _words(new)
    rows = [(name, before[name], now[name], "-" if before[name] == now[name] else "yes") for name in now]
    show_table(table("knob", "~before", "~now", "changed"), rows)
    if loss.events:
        show(f"The lower cap removed {_loss_words(loss)}.")
    if not plan.truncations:
        show("The next prune removes nothing.")
        return
    show(f"The next prune removes {plural(plan.events, 'event')}, {size(plan.bytes)} (aegis-store prune shows them):")
    for reason, total in plan.by_reason().items():
        if total.events:
            show(f"  by {reason}: {plural(total.events, 'event')} of {plural(total.sessions, 'session')}")
    if plan.sessions_forgotten:
        show(f"  by forget_sessions_after: {plural(plan.sessions_forgotten, 'session record')}")


def _loss_words(loss: "PolicyLoss") -> str:
    from aegis_store.cli.terminal import plural

    return f"{plural(loss.events, 'event')} of {plural(loss.sessions, 'session')}"


def _words(policy: "RetentionPolicy") -> dict[str, str]:
    """Each knob as a person reads it, in the order of the table in the README."""
    from aegis_store.cli.nouns import cap_field
    from aegis_store.cli.terminal import duration, size

    def bytes_words(limit: int | None) -> str:
        return NO_LIMIT if limit is None else f"{limit} ({size(limit)})"

    def span_words(span: "timedelta | None") -> str:
        return NO_LIMIT if span is None else duration(span)

    return {
        "max_events": str(cap_field(policy.max_events)),
        "max_bytes": bytes_words(policy.max_bytes),
        "max_age": span_words(policy.max_age),
        "max_event_bytes": bytes_words(policy.max_event_bytes),
        "terminal_grace": duration(policy.terminal_grace),
        "max_total_bytes": bytes_words(policy.max_total_bytes),
        "forget_sessions_after": span_words(policy.forget_sessions_after),
        "mode": policy.mode,
    }
