"""A store, and a session, at a glance: what an operator wants to see first, from looks that do not grow with the events."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from aegis_store import activity, read, sessions, stats
from aegis_store.activity import EventRate, EventSample, PayloadSizes
from aegis_store.any_database import AnyDatabase
from aegis_store.events import Event, Health, Session, StoreStats, Unlimited, from_us_within
from aegis_store.retention import limits, runs
from aegis_store.retention.health import health
from aegis_store.retention.maintenance import MaintenanceState
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.retention.runs import PruneRun
from aegis_store.schema import event, session
from aegis_store.settings import OVERVIEW_PRUNES, SAMPLE_EVENTS_OF_SESSION

_SPANS: Final = ((timedelta(minutes=1), 60), (timedelta(hours=1), 24))
_ROW: Final = select(session.c.id, session.c.first_seq, session.c.last_seq, session.c.total_bytes).where(
    session.c.session_id == bindparam("name")
)
_RECORDED_AT: Final = select(event.c.recorded_at).where(event.c.session == bindparam("key"), event.c.seq == bindparam("place"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOverview:
    """The store at a glance, `at` one moment. `database` is what it stands on, with its version.

    `stats` are those of `EventStore.stats`; where more than 1,000 sessions have lost some of their events, `retained_bytes` and
    `removed_bytes` in it are estimates, and `bytes_are_estimates` says so. `sessions_at_cap` hold as many events as they may.
    `last_hour` and `last_day` say how many events came each minute and hour. `newest` are the newest 2,000 events. `prunes` are
    the newest 100 runs at the most, the newest first.
    """

    at: datetime
    database: str
    stats: StoreStats
    bytes_are_estimates: bool
    sessions_at_cap: int
    policy: RetentionPolicy
    health: Health
    last_hour: EventRate
    last_day: EventRate
    newest: EventSample
    prunes: tuple[PruneRun, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOverview:
    """A session at a glance, `at` one moment.

    `max_events` is the cap in force, the session's own or the policy's. `first_event_at` is when the oldest retained event was
    recorded, None without one. `newest` and `sizes` are of the newest 1,000 events, `last_events` the last of them as `read`
    gives them, oldest first.
    """

    at: datetime
    session: Session
    max_events: int | Unlimited
    first_event_at: datetime | None
    newest: EventSample
    sizes: PayloadSizes
    last_events: tuple[Event, ...]


def of_store(conn: Connection, db: AnyDatabase, maintenance: MaintenanceState | None) -> StoreOverview:
    """See `EventStore.overview`."""
    now = datetime.now(UTC)
    numbers = stats.numbers(conn, db)
    last_hour, last_day = activity.rates(conn, now, _SPANS)
    return StoreOverview(
        at=now,
        database=db.version,
        stats=numbers.stats,
        bytes_are_estimates=numbers.bytes_are_estimates,
        sessions_at_cap=numbers.at_cap,
        policy=limits.policy_in_force(conn),
        health=health(conn, db, maintenance),
        last_hour=last_hour,
        last_day=last_day,
        newest=activity.newest(conn),
        prunes=tuple(runs.history(conn, OVERVIEW_PRUNES)),
    )


def of_session(conn: Connection, session_id: str, last: int) -> SessionOverview:
    """See `EventStore.session_overview`."""
    found = sessions.get(conn, session_id)
    row: Any = conn.execute(_ROW, {"name": session_id}).one()
    sample, sizes = activity.newest_of_session(conn, row, SAMPLE_EVENTS_OF_SESSION)
    first_us = conn.execute(_RECORDED_AT, {"key": row.id, "place": row.first_seq}).scalar()
    events: list[Event] = []
    if last:
        after = max(row.last_seq - last, row.first_seq - 1)
        events = read.page(conn, session_id, after_seq=after, limit=last, types=None, on_gap="raise").events
    return SessionOverview(
        at=datetime.now(UTC),
        session=found,
        max_events=limits.policy_in_force(conn).max_events if found.max_events is None else found.max_events,
        first_event_at=None if first_us is None else from_us_within(first_us),
        newest=sample,
        sizes=sizes,
        last_events=tuple(events),
    )
