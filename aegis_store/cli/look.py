"""The commands that list: `sessions`, `events`."""

from typing import TYPE_CHECKING, Annotated

import typer

from aegis_store.cli.nouns import event_fields, preview, session_fields, show_missed
from aegis_store.cli.options import AsJson, Db, open_to_look

if TYPE_CHECKING:
    from aegis_store.events import Event, Session
    from aegis_store.read import OnGap
    from aegis_store.store import EventStore

_SHOWN_SESSIONS = 20
_SHOWN_EVENTS = 20


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
