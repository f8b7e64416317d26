"""What of a store, and of a session, is shown at a glance: the panels of `inspect`."""

import shlex
from typing import TYPE_CHECKING, Any, Final

from aegis_store.cli.nouns import cap_words, policy_words, preview
from aegis_store.cli.pictures import Bar, Cells, Fact, Panel, Row, Span, Spark
from aegis_store.cli.terminal import count, plural, size, when, when_utc
from aegis_store.settings import OVERVIEW_PRUNES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from aegis_store.activity import EventRate, PayloadSizes, Share
    from aegis_store.events import Event, Health
    from aegis_store.overview import SessionOverview, StoreOverview

_NEARLY_FULL: Final = 0.9
_WORTH_RECLAIMING: Final = 0.1
_HOUR_S: Final = 3600
_SHOWN_SHARES: Final = 6
_SHOWN_PRUNES: Final = 3


def of_store(overview: "StoreOverview", place: str, versions: str) -> list[Panel]:
    """The panels of a store that is called `place`."""
    panels = [Panel(place, _store_rows(overview, place, versions))]
    if overview.stats.sessions:
        panels.append(Panel("Sessions by status", _status_rows(overview)))
    if overview.newest.events or overview.stats.removed_events:
        panels.append(Panel("Events appended", [*_rate_rows(overview.last_hour), *_rate_rows(overview.last_day)]))
    if overview.newest.events:
        panels.append(Panel(f"Types of {_newest(overview)}", _share_rows(overview.newest.types, overview.newest.events)))
        sessions = _share_rows(overview.newest.sessions, overview.newest.events)
        panels.append(Panel(f"Busiest sessions of {_newest(overview, since=False)}", sessions))
    if overview.prunes or overview.stats.removed_events:
        panels.append(_removed(overview))
    return panels


def of_session(overview: "SessionOverview") -> list[Panel]:
    """The panels of a session."""
    session = overview.session
    panels = [Panel(session.session_id, _session_rows(overview)), Panel("Its life", _life_rows(overview))]
    if overview.newest.events:
        panels += [
            Panel(f"Types of {_newest(overview)}", _share_rows(overview.newest.types, overview.newest.events)),
            Panel(f"Payload sizes of {_newest(overview, since=False)}", _size_rows(overview.sizes, overview.newest.events)),
        ]
    if overview.last_events:
        panels.append(Panel("Last events", [_event_cells(event) for event in overview.last_events], is_wide=True))
    return panels


# A store


def _store_rows(overview: "StoreOverview", place: str, versions: str) -> list[Row]:
    stats, health = overview.stats, overview.health
    about = "about " if overview.bytes_are_estimates else ""
    last_prune = f"{when_utc(health.last_prune_at)}, {health.last_prune_outcome}" if health.last_prune_at else "none"
    rows: list[Row] = [
        Fact("sessions", count(sum(stats.sessions.values()))),
        Fact("events", f"{count(stats.events)} retained, {count(stats.removed_events)} removed"),
        Fact("payloads", f"{about}{size(stats.retained_bytes)} retained, {about}{size(stats.removed_bytes)} removed"),
        *_budget_rows(health),
        *_cap_rows(overview),
        Fact("on disk", _disk_words(overview)),
        *_reclaim_rows(overview, place),
        Fact("policy", policy_words(overview.policy)),
        Fact("last prune", last_prune),
    ]
    if health.problems:
        rows.append(Fact("to look at", "; ".join(health.problems)))
    return [*rows, Fact("schema", versions)]


def _disk_words(overview: "StoreOverview") -> str:
    stats = overview.stats
    if overview.database.startswith("SQLite"):
        return f"{size(stats.file_bytes)}, {size(stats.free_bytes)} of it free pages"
    return f"{size(stats.file_bytes)} of tables and indexes"


def _cap_rows(overview: "StoreOverview") -> list[Row]:
    at_cap, total = overview.sessions_at_cap, sum(overview.stats.sessions.values())
    return [_full_bar("at the cap", at_cap, total, f"{count(at_cap)} of {plural(total, 'session')}")] if at_cap else []


def _full_bar(name: str, used: int, full: int, text: str) -> Bar:
    part = used / full
    return Bar(name, part, f"{part:.0%}, {text}", of_all=True)


def _budget_rows(health: "Health") -> list[Row]:
    if health.budget_used is None:
        return []
    used, full = health.retained_bytes or 0, health.max_total_bytes or 1
    kind: Any = "full" if used > full * _NEARLY_FULL else "plain"
    return [Bar("budget", used / full, f"{used / full:.0%}, {size(used)} of {size(full)}", of_all=True, kind=kind)]


def _reclaim_rows(overview: "StoreOverview", place: str) -> list[Row]:
    free, whole = overview.stats.free_bytes, overview.health.file_bytes or 1
    if free < whole * _WORTH_RECLAIMING:
        return []
    return [
        Bar("to reclaim", free / whole, f"{free / whole:.0%} of the file", of_all=True, kind="gone"),
        Fact("", f"aegis-store reclaim --db {shlex.quote(place)}"),
    ]


def _status_rows(overview: "StoreOverview") -> list[Row]:
    found = sorted(overview.stats.sessions.items(), key=lambda item: -item[1])
    most = max(found[0][1], 1)
    return [Bar(str(status), number / most, count(number)) for status, number in found]


def _rate_rows(rate: "EventRate") -> list[Row]:
    is_hour = rate.step.total_seconds() < _HOUR_S
    name, each, shown = ("last hour", "a minute", slice(11, 16)) if is_hour else ("last day", "an hour", slice(5, 16))
    total = sum(rate.counts)
    if not total:
        return [Fact(name, "none")]
    about = "about " if rate.is_estimate else ""
    since = when(rate.until - rate.step * len(rate.counts))[shown]
    text = f"{about}{plural(total, 'event')}, at most {count(max(rate.counts))} {each}"
    return [Spark(name, rate.counts, f"{text}, since {since} UTC")]


def _newest(overview: "StoreOverview | SessionOverview", *, since: bool = True) -> str:
    what = f"the newest {plural(overview.newest.events, 'event')}"
    return f"{what} (since {when_utc(overview.newest.since)})" if since else what


def _share_rows(shares: "Iterable[Share]", total: int) -> list[Row]:
    found = list(shares)[:_SHOWN_SHARES]
    others = total - sum(share.events for share in found)
    most = max([others, *(share.events for share in found)])
    rows: list[Row] = [
        Bar(share.name, share.events / most, f"{count(share.events)} ({share.events / total:.0%}), {size(share.bytes)}")
        for share in found
    ]
    return [*rows, Bar("(others)", others / most, f"{count(others)} ({others / total:.0%})")] if others else rows


def _removed(overview: "StoreOverview") -> Panel:
    """What prunes removed, by reason, and what went otherwise."""
    reasons: dict[str, int] = {}
    for run in overview.prunes:
        if run.outcome != "reported":
            for reason, events in run.by_reason.items():
                reasons[reason] = reasons.get(reason, 0) + events
    found = [(reason, events, plural(events, "event")) for reason, events in sorted(reasons.items(), key=lambda item: -item[1])]
    other = overview.stats.removed_events - sum(reasons.values())
    if other > 0:
        found.append(("otherwise", other, f"{plural(other, 'event')}: caps, deletions{_before(overview)}"))
    most = max((events for _, events, _ in found), default=1)
    rows: list[Row] = [Bar(name, events / most, text, kind="gone") for name, events, text in found]
    for run in overview.prunes[:_SHOWN_PRUNES]:
        words = f"{run.trigger}: {plural(run.events, 'event')}, {size(run.bytes)}, {run.outcome or 'not ended'}"
        rows.append(Fact("prune", f"{when_utc(run.started_at)}, {words}"))
    return Panel("Removed, and why", rows)


def _before(overview: "StoreOverview") -> str:
    return ", earlier prunes" if len(overview.prunes) >= OVERVIEW_PRUNES else ""


# A session


def _session_rows(overview: "SessionOverview") -> list[Row]:
    session = overview.session
    retained = f"{session.first_seq} to {session.last_seq}" if session.event_count else "none"
    removed = f"{count(session.removed_events)}, {size(session.removed_bytes)}"
    if session.removed_reason:
        removed += f", last {when_utc(session.removed_at)} ({session.removed_reason})"
    own = "that of the policy" if session.max_events is None else "its own"
    rows: list[Row] = [
        Fact("status", f"{session.status}{', on hold' if session.hold else ''}"),
        Fact("tenant, owner", f"{session.tenant}, {session.owner}"),
        Fact("updated", when_utc(session.updated_at)),
        Fact("events", f"{count(session.event_count)}, {size(session.retained_bytes)}, seq {retained}"),
        Fact("removed", removed),
    ]
    if isinstance(overview.max_events, int):
        full = f"{count(session.event_count)} of {plural(overview.max_events, 'event')} ({own})"
        rows.append(_full_bar("cap", session.event_count, overview.max_events, full))
    else:
        rows.append(Fact("cap", f"{cap_words(overview.max_events)} ({own})"))
    return [*rows, Fact("metadata", preview(session.metadata))]


def _life_rows(overview: "SessionOverview") -> list[Row]:
    session = overview.session
    end = session.ended_at or overview.at
    first, last = overview.first_event_at, session.last_event_at
    moments = [moment for moment in (session.created_at, first, last, session.removed_at, end) if moment]
    begin, span = min(moments), max(moments) - min(moments)

    def place(moment: "datetime") -> float:
        return (moment - begin) / span if span else 0.0

    rows: list[Row] = [Span("created", place(session.created_at), place(session.created_at), when_utc(session.created_at))]
    if session.removed_events:
        until = first or session.removed_at or end
        text = f"seq 1 to {count(session.first_seq - 1)}, {session.removed_reason or 'reason not known'}"
        rows.append(Span("removed", place(session.created_at), place(until), text, kind="gone"))
    if first and last:
        text = f"seq {count(session.first_seq)} to {count(session.last_seq)}"
        rows.append(Span("retained", min(place(first), place(last)), place(last), text))
        rows.append(Span("first event", place(first), place(first), when_utc(first)))
    if last:
        rows.append(Span("last event", place(last), place(last), when_utc(last)))
    return [*rows, Span("ended" if session.ended_at else "now", place(end), place(end), when_utc(end))]


def _size_rows(sizes: "PayloadSizes", events: int) -> list[Row]:
    most = max(number for _, number in sizes.up_to)
    rows: list[Row] = [Bar(f"up to {size(bound)}", number / most, count(number)) for bound, number in sizes.up_to]
    return [Fact("mean", size(sizes.bytes // events)), Fact("largest", size(sizes.largest)), *rows]


def _event_cells(event: "Event") -> Cells:
    return Cells((count(event.seq), when(event.recorded_at), event.type, preview(event.payload)))
