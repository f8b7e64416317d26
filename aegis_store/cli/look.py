"""Commands that only look: `inspect`, `sessions`, `events`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_store.cli.options import AsJson, Db, open_to_look, place_of

if TYPE_CHECKING:
    from datetime import timedelta

    from aegis_store.events import Event, Health, Session
    from aegis_store.read import OnGap
    from aegis_store.retention.policy import RetentionPolicy
    from aegis_store.store import EventStore

_SHOWN_SESSIONS = 20
_SHOWN_EVENTS = 20
_PREVIEW_CHARACTERS = 400
_BAR_CHARACTERS = 20


def inspect(
    context: typer.Context,
    session: Annotated[str | None, typer.Argument(metavar="SESSION", help="A session, by its id.", show_default=False)] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """The store at a glance; with a session, that session.

    Example: aegis-store inspect --db aegis-demo.db
    """
    with open_to_look(context, db) as store:
        if session is None:
            inspect_store(store, place_of(context, db), as_json=as_json)
        else:
            _inspect_session(store, session, as_json=as_json)


def inspect_store(store: "EventStore", name: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from aegis_store.cli.terminal import count, show_facts, show_json, show_table, size, table, when_utc
    from aegis_store.schema import HEAD

    stats, policy, health = store.stats(), store.retention_policy(), store.health()
    if as_json:
        about = {"store": name, "schema": HEAD, "sqlite": store.sqlite_version}
        show_json({**about, **asdict(stats), "policy": policy_fields(policy), "health": health_fields(health)})
        return
    facts = {
        "sessions": count(sum(stats.sessions.values())),
        "events": f"{count(stats.events)} retained, {count(stats.removed_events)} removed",
        "payloads": f"{size(stats.retained_bytes)} retained, {size(stats.removed_bytes)} removed",
        **({"budget": budget_words(health)} if health.budget_used is not None else {}),
        "on disk": f"{size(stats.file_bytes)}, {size(stats.free_bytes)} of it free pages",
        "policy": policy_words(policy),
        "last prune": f"{when_utc(health.last_prune_at)}, {health.last_prune_outcome}" if health.last_prune_at else "none",
        **({"to look at": "; ".join(health.problems)} if health.problems else {}),
        "schema": f"{HEAD}, SQLite {store.sqlite_version}",
    }
    show_facts(facts, title=name)
    if stats.sessions:
        rows = sorted(stats.sessions.items(), key=lambda item: -item[1])
        show_table(table("status", ">sessions"), [(status, count(number)) for status, number in rows])


def _inspect_session(store: "EventStore", session_id: str, *, as_json: bool) -> None:
    from aegis_store.cli.terminal import count, show_facts, show_json, size, when_utc

    session = store.get_session(session_id)
    if as_json:
        show_json(session_fields(session))
        return
    retained = f"{session.first_seq} to {session.last_seq}" if session.event_count else "none"
    removed = f"{count(session.removed_events)}, {size(session.removed_bytes)}"
    if session.removed_reason:
        removed += f", last {when_utc(session.removed_at)} ({session.removed_reason})"
    facts = {
        "status": f"{session.status}{', on hold' if session.hold else ''}",
        "tenant, owner": f"{session.tenant}, {session.owner}",
        "created": when_utc(session.created_at),
        "updated": when_utc(session.updated_at),
        "ended": when_utc(session.ended_at),
        "last event": when_utc(session.last_event_at),
        "events": f"{count(session.event_count)}, {size(session.retained_bytes)}, seq {retained}",
        "removed": removed,
        "cap": "that of the policy" if session.max_events is None else cap_words(session.max_events),
        "metadata": preview(session.metadata),
    }
    show_facts(facts, title=session.session_id)


def sessions(
    context: typer.Context,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status", metavar="STATUS", help="Only sessions of this status; may be given again.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at the most.")] = _SHOWN_SESSIONS,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """List sessions, newest update first. With --json, one session a line.

    Example: aegis-store sessions --status failed --limit 50
    """
    from aegis_store.cli.terminal import age, count, show, show_json, show_prose, show_table, size, table

    with open_to_look(context, db) as store:
        found, more = _newest_sessions(store, status or None, limit)
    if as_json:
        for session in found:
            show_json(session_fields(session))
    elif found:
        columns = table("*session", "status", ">events", ">bytes", ">updated")
        rows = ((s.session_id, s.status, count(s.event_count), size(s.retained_bytes), age(s.updated_at)) for s in found)
        show_table(columns, rows)
    else:
        show("No session has that status." if status else "The store holds no session.")
    if more:
        show_prose(f"There are more: --limit {limit * 2} shows twice as many.", stderr=as_json)


def _newest_sessions(store: "EventStore", statuses: list[str] | None, limit: int) -> "tuple[list[Session], bool]":
    from aegis_store.settings import MAX_PAGE_EVENTS

    found: list[Session] = []
    cursor = None
    while len(found) < limit:
        page = store.list_sessions(statuses=statuses, limit=min(limit - len(found), MAX_PAGE_EVENTS), cursor=cursor)
        found += page.sessions
        cursor = page.cursor
        if cursor is None:
            break
    return found, cursor is not None


def events(
    context: typer.Context,
    session: Annotated[str, typer.Argument(metavar="SESSION", help="A session, by its id.")],
    after: Annotated[
        int | None,
        typer.Option(
            metavar="SEQ", help="Begin after this seq; without it with the oldest retained event.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at the most.")] = _SHOWN_EVENTS,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only events of this type; may be given again.", show_default=False),
    ] = None,
    skip_gap: Annotated[bool, typer.Option("--skip-gap", help="Go on where events after --after were removed.")] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Print the events of a session, oldest first. With --json, one event a line.

    Example: aegis-store events run-42 --after 120 --json | jq .payload
    """
    from aegis_store.cli.terminal import count, plural, show_json, show_prose

    _check_cursor_and_types(after, type_ or [])
    with open_to_look(context, db) as store:
        shown: list[Event] = []
        on_gap: OnGap = "skip" if skip_gap else "raise"
        seen = after
        while True:
            page = store.read(session, after_seq=seen, limit=min(limit - len(shown), 1000), types=type_ or None, on_gap=on_gap)
            if page.missed:
                show_missed(page.missed, page.first_seq)
            if as_json:
                for event in page.events:
                    show_json(event_fields(event))
                shown += [event._replace(payload=None) for event in page.events]  # only counted from here on
            else:
                shown += page.events
            seen = page.next_after_seq
            if not page.has_more or len(shown) >= limit:
                break
    if after is None and page.first_seq > 1:
        show_prose(f"{plural(page.first_seq - 1, 'event')} before seq {count(page.first_seq)} were removed.", stderr=as_json)
    if not as_json:
        _show_events(shown, after, type_)
    if page.has_more:
        show_prose(f"There are more, up to seq {count(page.last_seq)}: go on with --after {seen}.", stderr=as_json)


def _show_events(shown: "list[Event]", after: int | None, types: list[str] | None) -> None:
    from aegis_store.cli.terminal import show, show_table, table, when

    if not shown:
        what = "No event of that type" if types else "No event"
        where = "in the session" if after is None else f"after seq {after}"
        show(f"{what} {where}.")
        return
    rows = ((event.seq, when(event.recorded_at), event.type, preview(event.payload)) for event in shown)
    show_table(table(">seq", "recorded (UTC)", "<type", "*payload"), rows)


def _check_cursor_and_types(after: int | None, types: list[str]) -> None:
    """What the library checks too, by the names that they have here."""
    from aegis_store.errors import InvalidInput
    from aegis_store.events import checked_text
    from aegis_store.read import checked_cursor

    if after is not None:
        checked_cursor("--after", after)
    for type_ in types:
        checked_text("--type", type_, InvalidInput)


def show_missed(missed: int, first_seq: int) -> None:
    from aegis_store.cli.terminal import console, plural

    console(stderr=True).print(f"{plural(missed, 'event')} before seq {first_seq} were removed.")


def preview(payload: Any) -> str:
    import json

    return json.dumps(payload, ensure_ascii=False)[:_PREVIEW_CHARACTERS]


# The same nouns in JSON as in the library


def policy_fields(policy: "RetentionPolicy") -> dict[str, Any]:
    return {
        "max_events": cap_field(policy.max_events),
        "max_bytes": policy.max_bytes,
        "max_age_s": _seconds(policy.max_age),
        "max_event_bytes": policy.max_event_bytes,
        "terminal_grace_s": _seconds(policy.terminal_grace),
        "max_total_bytes": policy.max_total_bytes,
        "forget_sessions_after_s": _seconds(policy.forget_sessions_after),
        "mode": policy.mode,
    }


def _seconds(span: "timedelta | None") -> float | None:
    return None if span is None else span.total_seconds()


def cap_field(max_events: Any) -> int | str | None:
    return max_events if max_events is None or isinstance(max_events, int) else "unlimited"


def cap_words(max_events: Any) -> str:
    return f"{max_events:,} events a session" if isinstance(max_events, int) else "no limit of events"


def policy_words(policy: "RetentionPolicy") -> str:
    from aegis_store.cli.terminal import duration, size

    grace = f"kept {duration(policy.terminal_grace)}" if policy.terminal_grace else "removed at the next prune"
    words = [cap_words(policy.max_events)]
    if policy.max_bytes is not None:
        words.append(f"{size(policy.max_bytes)} a session")
    if policy.max_age is not None:
        words.append(f"no older than {duration(policy.max_age)}")
    words += [f"{size(policy.max_event_bytes)} an event", f"events of ended sessions {grace}"]
    if policy.max_total_bytes is not None:
        words.append(f"{size(policy.max_total_bytes)} in all")
    if policy.forget_sessions_after is not None:
        words.append(f"records of ended sessions kept {duration(policy.forget_sessions_after)}")
    if policy.mode == "warn":
        words.append("mode warn: no prune but an explicit one removes anything")
    return ", ".join(words)


def budget_words(health: "Health") -> str:
    """How full the budget is, as a bar and in numbers."""
    from aegis_store.cli.terminal import size

    used, full = health.retained_bytes or 0, health.max_total_bytes or 1
    filled = min(round(used / full * _BAR_CHARACTERS), _BAR_CHARACTERS)
    return f"[{'#' * filled}{'.' * (_BAR_CHARACTERS - filled)}] {used / full:.0%}, {size(used)} of {size(full)}"


def health_fields(health: "Health") -> dict[str, Any]:
    from dataclasses import asdict

    found = asdict(health)
    found["maintain_every_s"] = _seconds(found.pop("maintain_every"))
    return {**found, "ok": health.ok, "budget_used": health.budget_used}


def session_fields(session: "Session") -> dict[str, Any]:
    from dataclasses import fields

    found = {field.name: getattr(session, field.name) for field in fields(session)}
    found |= {"max_events": cap_field(session.max_events), "status": str(session.status)}
    return found | {"event_count": session.event_count, "removed_events": session.removed_events}


def event_fields(event: "Event") -> dict[str, Any]:
    return event._asdict()
