"""The nouns of the library as commands show them: in JSON under the same names, and in words."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import timedelta

    from aegis_store.activity import EventRate, EventSample, PayloadSizes
    from aegis_store.events import Event, Health, Session
    from aegis_store.overview import SessionOverview, StoreOverview
    from aegis_store.retention.policy import RetentionPolicy
    from aegis_store.retention.runs import PruneRun

_PREVIEW_CHARACTERS = 400


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


def overview_fields(overview: "StoreOverview") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "at": overview.at,
        **asdict(overview.stats),
        "bytes_are_estimates": overview.bytes_are_estimates,
        "sessions_at_cap": overview.sessions_at_cap,
        "policy": policy_fields(overview.policy),
        "health": health_fields(overview.health),
        "last_hour": _rate_fields(overview.last_hour),
        "last_day": _rate_fields(overview.last_day),
        "newest": _sample_fields(overview.newest),
        "prunes": [_run_fields(run) for run in overview.prunes],
    }


def session_overview_fields(overview: "SessionOverview") -> dict[str, Any]:
    """The fields of the session itself, and beside them what else is known of it."""
    return {
        **session_fields(overview.session),
        "at": overview.at,
        "cap": cap_field(overview.max_events),
        "first_event_at": overview.first_event_at,
        "newest": _sample_fields(overview.newest),
        "sizes": _sizes_fields(overview.sizes),
        "last_events": [event_fields(event) for event in overview.last_events],
    }


def _rate_fields(rate: "EventRate") -> dict[str, Any]:
    return {
        "counts": list(rate.counts),
        "step_s": rate.step.total_seconds(),
        "until": rate.until,
        "is_estimate": rate.is_estimate,
    }


def _sample_fields(sample: "EventSample") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(sample)


def _sizes_fields(sizes: "PayloadSizes") -> dict[str, Any]:
    return {
        "bytes": sizes.bytes,
        "largest": sizes.largest,
        "up_to": [{"bytes": bound, "events": number} for bound, number in sizes.up_to],
    }


def _run_fields(run: "PruneRun") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(run)


def preview(payload: Any) -> str:
    import json

    return json.dumps(payload, ensure_ascii=False)[:_PREVIEW_CHARACTERS]


def show_missed(missed: int, first_seq: int) -> None:
    from aegis_store.cli.terminal import console, plural

    console(stderr=True).print(f"{plural(missed, 'event')} before seq {first_seq} were removed.")
