"""The store at a glance on PostgreSQL: the same as on SQLite, but for what it takes on disk."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aegis_store import EventStore, NewEvent, RetentionPolicy
from aegis_store.events import StoreStats
from tests.migrations.test_migrations import alembic, finished
from tests.postgres.server import Postgres, connect

OF_ALL_TABLES = """
SELECT sum(pg_total_relation_size(oid)) FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'
"""


def live(store: EventStore) -> None:
    """Sessions that hold all, some and none of their events, deleted and revived ones."""
    store.set_retention_policy(RetentionPolicy(max_events=5, max_total_bytes=10_000))
    for name in ("full", "half", "ended", "gone", "again"):
        store.create_session(name, metadata={"name": name})
        store.append_many(name, [NewEvent(type=f"t{number % 3}", payload="ü" * number) for number in range(4)])
    for number in range(7):
        store.append("full", "u", number)
    store.set_status("ended", "failed")
    store.prune()
    for name in ("gone", "again"):
        store.delete_session(name)
    store.create_session("again")
    store.append("again", "t", [1])


def told(store: EventStore) -> dict[str, Any]:
    """What an overview tells, but for times and sizes on disk."""
    found = store.overview()
    return {
        "stats": without_sizes(found.stats),
        "at cap": (found.sessions_at_cap, found.bytes_are_estimates, found.policy),
        "health": (found.health.problems, found.health.retained_bytes, found.health.max_total_bytes),
        "rates": (sum(found.last_hour.counts), sum(found.last_day.counts)),
        "newest": (found.newest.events, found.newest.types, found.newest.sessions),
        "prunes": [(run.trigger, run.events, run.bytes, run.sessions, run.by_reason, run.outcome) for run in found.prunes],
    }


def without_sizes(stats: StoreStats) -> StoreStats:
    return replace(stats, file_bytes=0, wal_bytes=0, free_bytes=0, append_seconds=stats.commit_events)


def told_of_session(store: EventStore) -> tuple[Any, ...]:
    found = store.session_overview("full", last=2)
    events = [(event.seq, event.type, event.payload) for event in found.last_events]
    return found.max_events, found.newest.events, found.newest.types, found.sizes, events, found.session.removed_bytes


def test_stats_and_overviews_tell_what_they_tell_on_sqlite(store: EventStore, path: Path) -> None:
    with EventStore.open(path, maintain_every=None) as other:
        live(store)
        live(other)
        assert told(store) == told(other)
        assert told_of_session(store) == told_of_session(other)
        assert without_sizes(store.stats()) == without_sizes(other.stats())


def test_removed_bytes_are_estimated_by_the_same_mean(store: EventStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_store.stats.numbers.__kwdefaults__", {"looks": 0})
    with EventStore.open(path, maintain_every=None) as other:
        live(store)
        live(other)
        here, there = store.overview(), other.overview()
        assert here.bytes_are_estimates
        assert abs(here.stats.removed_bytes - there.stats.removed_bytes) <= 2  # one rounds, the other cuts


def test_the_size_is_that_of_all_tables_and_indexes(store: EventStore, postgres_url: str) -> None:
    live(store)
    with connect(postgres_url) as shell:
        assert (store.stats().file_bytes,) == shell.execute(OF_ALL_TABLES).fetchone()
    assert store.health().file_bytes == store.stats().file_bytes
    assert (store.stats().wal_bytes, store.stats().free_bytes) == (0, 0)


def test_partitions_are_part_of_the_size(postgres: Postgres) -> None:
    with postgres.database() as url:
        finished(alembic("-x", f"url={url}", "-x", "partitions=3", "upgrade", "head"))
        with EventStore.open(url, maintain_every=None) as store, connect(url) as shell:
            live(store)
            assert (store.stats().file_bytes,) == shell.execute(OF_ALL_TABLES).fetchone()


def test_events_that_were_removed_to_the_last_came_before_the_removal(store: EventStore, postgres_url: str) -> None:
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload=number) for number in range(90)])
    store.set_status("s", "completed")
    store.prune()
    now = datetime.now(UTC)
    with connect(postgres_url) as shell:
        freed(shell, "UPDATE session SET created_at = %s", now - timedelta(minutes=59))
        freed(shell, "UPDATE session SET removed_at = %s", now - timedelta(minutes=30))
    rate = store.overview().last_hour
    assert sum(rate.counts[:30]) == sum(rate.counts) == 90
    assert rate.is_estimate


def freed(shell: "psycopg.Connection[Any]", statement: str, moment: datetime) -> None:
    shell.execute("SET session_replication_role = replica")
    shell.execute(statement.encode(), (int(moment.timestamp() * 1e6),))


def test_health_and_overview_are_there_read_only(open_store: Callable[..., EventStore]) -> None:
    live(open_store())
    store = open_store(read_only=True)
    assert store.health().ok
    assert store.overview().stats.events == store.stats().events == 10
