"""The store, and a session, at a glance: what is told, and that telling it does not grow with the store."""

import random
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    AegisStoreError,
    EventStore,
    InvalidInput,
    NewEvent,
    RetentionPolicy,
    SessionNotFound,
    StoreCorrupt,
    activity,
    driver,
    overview,
    stats,
)
from aegis_store.events import to_us
from tests.conftest import OpenStore
from tests.test_sessions import vm_steps

NOW = datetime(2026, 5, 22, 9, 0, tzinfo=UTC)
MINUTE_US = 60_000_000
FREED = ("event_guards_insert", "event_guards_update", "event_guards_delete", "event_counts", "session_guards_counters")


def many(count: int, type: str = "t") -> list[NewEvent]:
    return [NewEvent(type=type, payload=f"{number:04}") for number in range(count)]


def put(shell: sqlite3.Connection, minutes_ago: Sequence[float], session: int = 1) -> None:
    """Events of that session, recorded so long before NOW."""
    for trigger in FREED:
        shell.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    shell.execute("BEGIN IMMEDIATE")  # a turn of the maintenance may be at work
    first = shell.execute("SELECT coalesce(max(seq), 0) + 1 FROM event WHERE session = ?", (session,)).fetchone()[0]
    shell.executemany(
        "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
        " VALUES (?, ?, 't', 1, ?, 0, '1')",
        [(session, first + n, to_us(NOW) - int(ago * MINUTE_US)) for n, ago in enumerate(minutes_ago)],
    )
    shell.execute("COMMIT")


def in_the_last_hour(store: EventStore, minutes: int = 60) -> activity.EventRate:
    with store._db.read() as conn:
        (rate,) = activity.rates(conn, NOW, [(timedelta(minutes=1), minutes)])
    return rate


@pytest.fixture
def an_hour_old(store: EventStore, shell: sqlite3.Connection) -> None:
    """A session that was made an hour before NOW."""
    store.create_session("s", max_events=UNLIMITED)
    shell.execute("UPDATE session SET created_at = ?", (to_us(NOW) - 60 * MINUTE_US,))


# How many events came when


@pytest.mark.usefixtures("an_hour_old")
def test_events_are_counted_in_the_minute_in_which_they_were_recorded(store: EventStore, shell: sqlite3.Connection) -> None:
    put(shell, [90, 59.5, 30.2, 30.1, 30.0, 0.5])
    rate = in_the_last_hour(store)
    assert {place: count for place, count in enumerate(rate.counts) if count} == {0: 1, 29: 2, 30: 1, 59: 1}
    assert (len(rate.counts), rate.until, rate.step, rate.is_estimate) == (60, NOW, timedelta(minutes=1), False)


@pytest.mark.usefixtures("an_hour_old")
def test_counts_are_exact_to_a_thousandth_of_all(store: EventStore, shell: sqlite3.Connection) -> None:
    put(shell, [60 - number * 60 / 30_000 for number in range(30_000)])
    rate = in_the_last_hour(store)
    assert sum(rate.counts) == 30_000
    assert all(abs(count - 500) <= 30 for count in rate.counts)


@pytest.mark.usefixtures("an_hour_old")
def test_events_that_were_removed_count_too_spread_over_the_time_between_those_that_are_left(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    put(shell, [59.5, *[45] * 98, 29.5])
    shell.execute("DELETE FROM event WHERE seq BETWEEN 2 AND 99")
    rate = in_the_last_hour(store)
    assert sum(rate.counts) == 100
    assert set(rate.counts[1:30]) <= {3, 4}
    assert set(rate.counts[31:]) == {0}
    assert rate.is_estimate


@pytest.mark.usefixtures("an_hour_old")
def test_events_that_were_removed_to_the_last_came_between_the_first_session_and_the_removal(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    put(shell, [45] * 90)
    shell.execute("DELETE FROM event")
    shell.execute("UPDATE store SET removed_at = ?", (to_us(NOW) - 30 * MINUTE_US,))
    rate = in_the_last_hour(store)
    assert sum(rate.counts[:30]) == 90
    assert set(rate.counts[:30]) == {3}
    assert rate.is_estimate


@pytest.mark.usefixtures("an_hour_old")
def test_a_clock_that_went_back_makes_an_estimate_and_no_negative_count(store: EventStore, shell: sqlite3.Connection) -> None:
    put(shell, [40, 39, 38, 10, 9, 55, 54, 53, 52, 51, 50, 3, 2])
    rate = in_the_last_hour(store)
    assert rate.is_estimate
    assert min(rate.counts) == 0
    assert sum(rate.counts) == 13


@pytest.mark.usefixtures("an_hour_old")
def test_events_from_the_future_or_beyond_all_calendars_are_not_in_the_last_hour(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    put(shell, [10, -5, -(2**62) / MINUTE_US])
    assert sum(in_the_last_hour(store).counts) == 1
    assert store.overview().newest.events == 3


def test_a_store_without_events_has_a_rate_of_nothing(store: EventStore) -> None:
    found = store.overview()
    assert (sum(found.last_hour.counts), sum(found.last_day.counts)) == (0, 0)
    assert (found.newest.events, found.newest.since, found.newest.types, found.newest.sessions) == (0, None, (), ())
    assert not found.last_hour.is_estimate


def test_what_is_appended_now_is_in_the_last_minute_and_the_last_hour(store: EventStore) -> None:
    store.create_session("s", max_events=5)
    store.append_many("s", many(3))
    for _ in range(20):
        store.append("s", "t", 1)
    found = store.overview()
    assert (sum(found.last_hour.counts[-2:]), sum(found.last_day.counts[-2:])) == (23, 23)
    assert (len(found.last_hour.counts), len(found.last_day.counts)) == (60, 24)


# The newest events


def test_types_and_sessions_of_the_newest_events_come_with_their_bytes_those_with_most_first(store: EventStore) -> None:
    for name, counts in {"a": {"x": 2, "y": 3}, "b": {"x": 4}}.items():
        store.create_session(name)
        for type_, count in counts.items():
            store.append_many(name, many(count, type_))
    sample = store.overview().newest
    assert [(share.name, share.events, share.bytes) for share in sample.types] == [("x", 6, 36), ("y", 3, 18)]
    assert [(share.name, share.events, share.bytes) for share in sample.sessions] == [("a", 5, 30), ("b", 4, 24)]
    assert sample.events == 9
    first = store.read_all()[0].recorded_at
    assert sample.since == first


def test_no_more_than_ten_names_are_told(store: EventStore) -> None:
    for number in range(12):
        store.create_session(f"s{number}")
        store.append(f"s{number}", f"t{number}", 1)
    sample = store.overview().newest
    assert (len(sample.types), len(sample.sessions), sample.events) == (10, 10, 12)


def test_events_of_a_session_that_is_being_deleted_are_not_told(store: EventStore, shell: sqlite3.Connection) -> None:
    for name in ("gone", "stays"):
        store.create_session(name)
        store.append(name, "t", 1)
    shell.execute("UPDATE session SET session_id = NULL WHERE session_id = 'gone'")
    sample = store.overview().newest
    assert [share.name for share in sample.sessions] == ["stays"]
    assert sample.events == 1


# Counts, caps, bytes


def test_an_overview_has_the_numbers_of_stats_health_policy_and_history(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=5, max_total_bytes=10_000))
    for name in ("full", "half", "ended", "empty"):
        store.create_session(name)
    store.append_many("full", many(5))
    for number in range(4):
        store.append("full", "t", number)
    store.append_many("half", many(2))
    store.append("ended", "t", 1)
    store.set_status("ended", "failed")
    store.prune()
    found = store.overview()
    assert (found.stats, found.policy) == (store.stats(), store.retention_policy())
    assert found.health.max_total_bytes == 10_000
    assert (found.health.retained_bytes, found.stats.retained_bytes) == (22, 22)
    assert (found.stats.events, found.stats.removed_events, found.sessions_at_cap) == (7, 5, 1)
    assert list(found.prunes) == store.prune_history()
    assert [dict(run.by_reason) for run in found.prunes] == [{"terminal_grace": 1}]
    assert not found.bytes_are_estimates


def test_a_session_with_a_cap_of_its_own_is_at_that(store: EventStore) -> None:
    store.create_session("small", max_events=2)
    store.create_session("large", max_events=UNLIMITED)
    for name in ("small", "large"):
        store.append_many(name, many(2))
    assert store.overview().sessions_at_cap == 1


def test_stats_are_exact_whatever_was_removed(store: EventStore, shell: sqlite3.Connection) -> None:
    """Sessions that hold all, none and some of their events, revived ones, deleted ones: against a sum over the events."""
    store.create_session("whole")
    store.append_many("whole", many(3))
    store.create_session("some", max_events=3)
    for number in range(10):
        store.append("some", "t", "x" * number)
    for name in ("ended", "deleted", "revived"):
        store.create_session(name)
        store.append_many(name, many(4))
    store.set_status("ended", "closed")
    store.prune()
    store.delete_session("deleted")
    store.delete_session("revived")
    store.create_session("revived")
    store.append("revived", "t", 1)
    store.create_session("empty")
    found = store.stats()
    held = shell.execute("SELECT count(*), sum(length(CAST(payload AS BLOB))) FROM event").fetchone()
    assert (found.events, found.retained_bytes) == held
    removed = sum(len(f'"{"x" * number}"') for number in range(7)) + 3 * 4 * 6
    assert (found.removed_events, found.removed_bytes) == (7 + 12, removed)


def test_where_it_would_take_many_looks_removed_bytes_are_estimated(store: EventStore) -> None:
    for name in ("a", "b"):
        store.create_session(name, max_events=2)
        for _ in range(8):
            store.append(name, "t", "1234")
    with store._db.read() as conn:
        found = stats.numbers(conn, store._db, looks=1)
        exact = stats.numbers(conn, store._db, looks=2)
    assert (found.bytes_are_estimates, exact.bytes_are_estimates) == (True, False)
    assert found.stats == exact.stats == store.stats()  # since all payloads are alike


# A session


def test_counters_that_no_number_can_sum_up_are_damage(store: EventStore, shell: sqlite3.Connection) -> None:
    for session_id in ("a", "b"):
        store.create_session(session_id)
    shell.execute("UPDATE session SET total_bytes = 9223372036854775807")
    with pytest.raises(StoreCorrupt, match="integer overflow"):
        store.overview()
    with pytest.raises(StoreCorrupt, match="integer overflow"):
        store.stats()


def test_a_session_overview_has_its_record_its_life_and_its_newest_events(store: EventStore) -> None:
    store.create_session("s", max_events=4)
    for number in range(6):
        store.append("s", f"t{number % 2}", "x" * number * 20)
    found = store.session_overview("s", last=2)
    assert found.session == store.get_session("s")
    events = store.read("s").events
    assert found.first_event_at == found.newest.since == events[0].recorded_at
    assert list(found.last_events) == events[-2:]
    assert [(share.name, share.events) for share in found.newest.types] == [("t1", 2), ("t0", 2)]
    assert (found.sizes.bytes, found.sizes.largest) == (found.session.retained_bytes, 102)
    assert found.sizes.up_to == ((64, 2), (256, 2))
    assert (found.max_events, store.session_overview("s", last=0).last_events) == (4, ())


def test_the_cap_in_force_is_the_sessions_own_or_that_of_the_policy(store: EventStore) -> None:
    store.create_session("own", max_events=UNLIMITED)
    store.create_session("inherits")
    assert store.session_overview("own").max_events is UNLIMITED
    assert store.session_overview("inherits").max_events == 1000


def test_a_session_without_events_has_an_overview(store: EventStore) -> None:
    store.create_session("s")
    found = store.session_overview("s")
    assert (found.first_event_at, found.newest.events, found.sizes.up_to, found.last_events) == (None, 0, (), ())


@pytest.mark.parametrize("last", [-1, 1001, "3", True])
def test_a_number_of_last_events_that_cannot_be_is_refused(store: EventStore, last: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidInput, match="last must be"):
        store.session_overview("s", last=last)


def test_an_unknown_session_is_told(store: EventStore) -> None:
    with pytest.raises(SessionNotFound):
        store.session_overview("none")


def test_damage_to_the_record_or_to_an_event_that_is_shown_is_told(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    store.append_many("s", many(3))
    shell.execute("DROP TRIGGER event_guards_update")
    shell.execute("UPDATE event SET payload = '\"other\"' WHERE seq = 3")
    with pytest.raises(StoreCorrupt, match="event 3"):
        store.session_overview("s")
    assert store.session_overview("s", last=0).newest.events == 3


@pytest.mark.parametrize("rounds", [150, pytest.param(20_000, marks=pytest.mark.torture)])
def test_a_changed_byte_is_told_as_damage_or_does_no_harm(
    store: EventStore, path: Path, tmp_path: Path, chance: random.Random, rounds: int
) -> None:
    for number in range(4):
        store.create_session(f"s{number}", max_events=5)
        store.append_many(f"s{number}", [NewEvent(type="t", payload=n) for n in range(4 + number % 2)])
        store.append(f"s{number}", "other", {"x": "y" * 30})
    store.set_status("s1", "failed")
    store.prune()
    store.delete_session("s2")
    store.close()
    content = path.read_bytes()
    written = [place for place, byte in enumerate(content) if byte]
    damaged = tmp_path / "damaged.db"
    for _ in range(rounds):
        changed = bytearray(content)
        changed[chance.choice(written)] ^= 1 << chance.randrange(8)
        damaged.write_bytes(changed)
        with suppress(AegisStoreError), EventStore.open(damaged, read_only=True) as opened:
            for look in (opened.overview, opened.stats, lambda: opened.session_overview("s0")):
                with suppress(AegisStoreError):
                    look()


def write_damage(path: Path, statement: str) -> None:
    """Run it in a store that guards nothing any more, so that a column may hold what a damaged row does."""
    shell = driver.dbapi.connect(str(path), isolation_level=None)
    for (trigger,) in shell.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        shell.execute(f"DROP TRIGGER {trigger}")
    shell.execute("PRAGMA ignore_check_constraints = ON")
    shell.execute("PRAGMA writable_schema = ON")
    shell.execute("UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE type = 'table'")
    shell.close()
    shell = driver.dbapi.connect(str(path), isolation_level=None)
    shell.execute("PRAGMA ignore_check_constraints = ON")
    shell.execute(statement)
    shell.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE event SET recorded_at = x'31'",
        "UPDATE event SET type = x'31'",
        "UPDATE event SET bytes_before = 'x'",
        "UPDATE session SET total_bytes = 'x'",
        "UPDATE session SET created_at = 'x'",
        "UPDATE session SET status = 'odd'",
    ],
)
def test_a_row_with_something_else_in_a_column_is_told_as_damage(path: Path, store: EventStore, damage: str) -> None:
    store.create_session("s")
    store.append("s", "t", 1)
    store.close()
    write_damage(path, damage)
    with EventStore.open(path, read_only=True) as opened, pytest.raises(StoreCorrupt):
        opened.overview()


# What it costs


def steps_of(store: EventStore, shell: sqlite3.Connection, work: Callable[[], object], events: int) -> tuple[int, int]:
    """The steps of `work` with so many events of a day, and with ten times as many."""
    put(shell, [1440 - number * 1440 / events for number in range(events)])
    shell.execute("UPDATE session SET last_seq = ?, total_bytes = 0", (events,))
    few = vm_steps(store, work)
    shell.execute("DELETE FROM event")
    put(shell, [1440 - number * 1440 / (10 * events) for number in range(10 * events)])
    shell.execute("UPDATE session SET last_seq = ?", (10 * events,))
    return few, vm_steps(store, work)


@pytest.mark.usefixtures("an_hour_old")
def test_an_overview_costs_about_the_same_with_ten_times_the_events(store: EventStore, shell: sqlite3.Connection) -> None:
    def work() -> None:
        with store._db.read() as conn:
            activity.newest(conn)
            activity.rates(conn, NOW, overview._SPANS)

    few, more = steps_of(store, shell, work, 3000)
    assert few > 10_000
    assert more < 1.5 * few  # the halving goes a little deeper


@pytest.mark.usefixtures("an_hour_old")
def test_a_session_overview_costs_the_same_with_ten_times_the_events(store: EventStore, shell: sqlite3.Connection) -> None:
    def work() -> None:
        with store._db.read() as conn:
            row = conn.execute(overview._ROW, {"name": "s"}).one()
            activity.newest_of_session(conn, row, 1000)

    few, more = steps_of(store, shell, work, 2000)
    assert abs(more - few) < 100


def test_stats_look_at_events_only_of_sessions_that_have_lost_some(store: EventStore, shell: sqlite3.Connection) -> None:
    for number in range(50):
        store.create_session(f"s{number}", max_events=2)
        store.append_many(f"s{number}", many(2))
    whole = vm_steps(store, store.stats)
    for number in range(50):
        store.append(f"s{number}", "t", 1)
    assert vm_steps(store, store.stats) - whole > 50 * 5
    with store._db.read() as conn:
        assert not stats.numbers(conn, store._db).bytes_are_estimates


def test_every_look_at_events_goes_by_an_index_or_by_position(store: EventStore, shell: sqlite3.Connection) -> None:
    bounds = {"most": 1, "session": 1, "after": 0, "low": 0, "middle": 1, "high": 2}
    plans = {
        sql: [row[3] for row in shell.execute(f"EXPLAIN QUERY PLAN {sql}", bounds)]
        for sql in (activity._NEWEST, activity._NEWEST_OF_SESSION, activity._DOWN, activity._UP, str(stats._BY_STATUS))
    }
    assert plans[activity._NEWEST] == ["SCAN event", "SEARCH session USING INTEGER PRIMARY KEY (rowid=?)"]  # backwards, LIMIT
    assert plans[activity._NEWEST_OF_SESSION] == ["SEARCH event USING INDEX sqlite_autoindex_event_1 (session=? AND seq>?)"]
    for sql in (activity._DOWN, activity._UP):
        assert plans[sql] == ["SEARCH event USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"]
    (by_status,) = plans[str(stats._BY_STATUS)]
    assert by_status.endswith(" INDEX session_by_status")  # which holds all that it takes


def test_a_read_only_store_has_an_overview(store: EventStore, open_store: OpenStore) -> None:
    store.create_session("s")
    store.append("s", "t", 1)
    looked = open_store(read_only=True)
    assert looked.overview().stats.sessions == store.stats().sessions
    assert looked.session_overview("s").session == store.get_session("s")
