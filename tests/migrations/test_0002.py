"""From 0001 to this schema: a store that an old release has filled is moved whole or not at all, and works on."""

import gzip
import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.util import CommandError

from aegis_store import (
    UNLIMITED,
    EventIdConflict,
    EventStore,
    EventsTruncated,
    NewEvent,
    RetentionPolicy,
    SchemaMismatch,
    SequenceConflict,
    SessionExists,
    driver,
    migrate,
    schema,
)
from aegis_store.events import EPOCH
from aegis_store.target import Target
from aegis_store.triggers import SQLITE_TRIGGERS
from tests.migrations.test_migrations import (
    alembic,
    connect,
    differences,
    failed,
    finished,
    revision,
    shape_of_file,
    url_of,
)

FROZEN = Path(__file__).parent / "frozen" / "0001.db.gz"
Refused: type[Exception] = driver.dbapi.IntegrityError

LAST_POSITION = 132
"""That of the newest event in the frozen store."""
STARTED = datetime(2026, 11, 24, tzinfo=EPOCH.tzinfo)
"""The frozen events were recorded on that day, whatever day it is today."""
DAY = timedelta(days=1)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as the release before left it."""
    path = tmp_path / "old.db"
    path.write_bytes(gzip.decompress(FROZEN.read_bytes()))
    return path


@pytest.fixture
def moved(old: Path) -> Path:
    """The same, moved to the schema of this library."""
    EventStore.upgrade(old)
    return old


def opened(path: Path) -> EventStore:
    """The store, for one who wants to see all that came over."""
    return EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None)


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(connect(path)) as connection:
        found: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return found


def content(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that both schemas have a place for."""
    store = "id, max_events, max_event_bytes, terminal_grace_us, removed_position, removed_at, removed_reason"
    session = (
        "id, session_id, tenant, owner, status, max_events, hold, first_seq, last_seq, total_bytes, created_at, updated_at, "
        "ended_at, last_event_at, removed_at, removed_reason, metadata"
    )
    event = "position, session, seq, type, occurred_at, recorded_at, event_id, run_id, payload_ref, bytes_before, payload"
    return {
        "store": rows(path, f"SELECT {store} FROM store"),
        "session": rows(path, f"SELECT {session} FROM session ORDER BY id"),
        "event": rows(path, f"SELECT {event} FROM event ORDER BY position"),
        "sqlite_sequence": rows(path, "SELECT * FROM sqlite_sequence WHERE name IN ('session', 'event') ORDER BY name"),
    }


def seqs(store: EventStore, session_id: str) -> list[int]:
    return [event.seq for event in store.read(session_id, limit=1000).events]


# Before


@pytest.mark.parametrize("options", [{}, {"read_only": True}, {"create": False}])
def test_a_store_of_the_release_before_is_refused_with_the_command_to_run(old: Path, options: dict[str, bool]) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        EventStore.open(old, **options)  # type: ignore[arg-type]
    assert (caught.value.found, caught.value.expected) == ("0001", schema.HEAD)
    assert "aegis-store upgrade" in str(caught.value)


def test_a_store_that_was_refused_is_left_byte_for_byte_as_it_was(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(SchemaMismatch):
        EventStore.open(old)
    assert old.read_bytes() == before
    assert [entry.name for entry in old.parent.iterdir()] == ["old.db"]


# The move

Move = Callable[[Path], object]
MOVES: dict[str, Move] = {
    "EventStore.upgrade": EventStore.upgrade,
    "alembic upgrade head": lambda path: finished(alembic(*url_of(path), "upgrade", "head")),
}


def test_upgrade_says_from_where_to_where(old: Path) -> None:
    assert EventStore.upgrade(old) == ("0001", schema.HEAD)
    assert EventStore.upgrade(old) == (schema.HEAD, schema.HEAD)


@pytest.mark.parametrize("move", MOVES.values(), ids=list(MOVES))
def test_the_content_comes_over_as_it_was(old: Path, move: Move) -> None:
    before = content(old)
    move(old)
    assert revision(old) == [schema.HEAD]
    assert content(old) == before


@pytest.mark.parametrize("move", MOVES.values(), ids=list(MOVES))
def test_the_schema_is_that_of_a_new_store(old: Path, template: Path, move: Move) -> None:
    move(old)
    assert differences(shape_of_file(old), shape_of_file(template)) == set()


def test_the_file_is_sound_after_the_move(moved: Path) -> None:
    assert rows(moved, "PRAGMA integrity_check") == [("ok",)]
    assert rows(moved, "PRAGMA foreign_key_check") == []


@pytest.mark.parametrize(
    ("pragma", "value"), [("application_id", 0x41454753), ("auto_vacuum", 2), ("page_size", 8192), ("journal_mode", "wal")]
)
def test_the_settings_of_the_file_stay(moved: Path, pragma: str, value: object) -> None:
    assert rows(moved, f"PRAGMA {pragma}") == [(value,)]


def test_a_second_move_changes_nothing(moved: Path) -> None:
    before = content(moved)
    for move in MOVES.values():
        move(moved)
    assert (content(moved), revision(moved)) == (before, [schema.HEAD])


def test_the_new_knobs_are_at_their_defaults_and_the_old_ones_as_they_were(moved: Path) -> None:
    with opened(moved) as store:
        assert store.retention_policy() == RetentionPolicy(max_events=50, max_event_bytes=5000, terminal_grace=3 * DAY)


def test_the_sessions_come_over(moved: Path) -> None:
    with opened(moved) as store:
        found = {session.session_id: session for session in store.list_sessions().sessions}
    assert list(found) == ["empty", "ended", "held", "unlimited", "running"]
    assert {name: (s.first_seq, s.last_seq, s.status.value, s.hold) for name, s in found.items()} == {
        "running": (11, 60, "running", False),
        "unlimited": (1, 70, "paused", False),
        "held": (1, 1, "failed", True),
        "ended": (1, 1, "completed", False),
        "empty": (1, 0, "running", False),
    }
    running = found["running"]
    assert (running.tenant, running.owner, running.metadata) == ("t", "o", {"note": "é\ud83d"})
    assert (running.removed_events, running.removed_bytes, running.removed_reason) == (10, 160, "max_events")
    assert (running.max_events, found["unlimited"].max_events) == (None, UNLIMITED)


def test_the_events_come_over(moved: Path) -> None:
    with opened(moved) as store:
        events = store.read("running", limit=1000).events
    assert [(event.seq, event.event_id, event.payload["n"]) for event in events] == [(n + 1, f"e{n}", n) for n in range(10, 60)]
    assert {(event.run_id, event.payload_ref) for event in events} == {("r", "ref")}
    assert all(math.copysign(1, event.payload["x"]) == -1 for event in events)


def test_a_reader_goes_on_where_it_was(moved: Path) -> None:
    with opened(moved) as store:
        assert store.read("running", after_seq=59).events[0].seq == 60
        assert [event.position for event in store.read_all(after_position=130)] == [131, 132]
        with pytest.raises(EventsTruncated) as caught:
            store.read("running", after_seq=9)
        assert (caught.value.first_seq, caught.value.reason) == (11, "max_events")
        with pytest.raises(EventsTruncated):
            store.read_all(after_position=9)


def test_no_notes_of_the_release_before_say_more_than_is_known(moved: Path) -> None:
    unknown = rows(moved, "SELECT session_id, unsorted_seq FROM session WHERE oldest_at < 0 ORDER BY id")
    assert unknown == [("running", 60), ("unlimited", 70), ("held", 1), ("ended", 1)]
    assert rows(moved, "SELECT session_id FROM session WHERE oldest_at IS NULL AND unsorted_seq = 0") == [("empty",)]


# Afterwards


def test_seq_and_position_go_on_where_they_were(moved: Path) -> None:
    with opened(moved) as store:
        event = store.append("running", "t", 1, expected_seq=60)
        assert (event.seq, event.position) == (61, LAST_POSITION + 1)
        assert store.append("empty", "t", 1).seq == 1


def test_the_cap_goes_on(moved: Path) -> None:
    with opened(moved) as store:
        store.append("running", "t", 1)
        assert seqs(store, "running") == list(range(12, 62))


def test_event_ids_are_still_known(moved: Path) -> None:
    with opened(moved) as store:
        again = store.append("running", "t", {"n": 59, "x": -0.0}, event_id="e59", run_id="r", payload_ref="ref")
        assert again.seq == 60
        with pytest.raises(EventIdConflict):
            store.append("running", "t", "other", event_id="e59")


def test_a_wrong_seq_is_still_refused(moved: Path) -> None:
    with opened(moved) as store, pytest.raises(SequenceConflict):
        store.append("running", "t", 1, expected_seq=50)


def test_the_number_of_a_session_is_not_used_again(moved: Path) -> None:
    with opened(moved) as store:
        store.create_session("new")
    assert rows(moved, "SELECT id FROM session WHERE session_id = 'new'") == [(6,)]


def test_neither_number_is_used_again_though_the_newest_of_both_go(moved: Path) -> None:
    with opened(moved) as store:
        for session_id in ("empty", "ended"):
            store.delete_session(session_id)
        store.create_session("new")
        assert store.append("new", "t", 1).position == LAST_POSITION + 1
    assert rows(moved, "SELECT id FROM session WHERE session_id = 'new'") == [(6,)]


def test_a_grace_removes_what_ended_before_the_move_and_nothing_else(moved: Path) -> None:
    with opened(moved) as store:
        assert store.prune(store.plan_prune(now=STARTED + 2 * DAY)).events_removed == 0
        report = store.prune(store.plan_prune(now=STARTED + 5 * DAY))
        assert (report.events_removed, dict(report.events_by_reason)) == (1, {"terminal_grace": 1})
        assert store.get_session("ended").event_count == 0


def test_max_age_removes_events_from_before_the_move(moved: Path) -> None:
    with opened(moved) as store:
        store.set_retention_policy(RetentionPolicy(max_events=50, max_age=DAY, terminal_grace=100 * DAY))
        assert store.prune(store.plan_prune(now=STARTED)).events_removed == 0
        report = store.prune(store.plan_prune(now=STARTED + 3 * DAY))
        assert (report.events_removed, dict(report.events_by_reason)) == (50 + 70 + 1, {"max_age": 121})
        assert store.get_session("held").event_count == 1


def test_max_age_keeps_events_from_before_the_move_to_the_microsecond(moved: Path) -> None:
    with opened(moved) as store:
        store.set_retention_policy(RetentionPolicy(max_events=50, max_age=DAY, terminal_grace=100 * DAY))
        event = store.read("unlimited", after_seq=39, limit=1).events[0]
        older = [e for e in store.read("unlimited", limit=1000).events if e.recorded_at < event.recorded_at]
        plan = store.plan_prune(now=event.recorded_at + DAY)
        assert [t.events for t in plan.truncations if t.session_id == "unlimited"] == [len(older)]
        store.prune(plan)
        assert store.get_session("unlimited").first_seq == len(older) + 1


def test_max_age_counts_events_from_before_and_after_the_move_alike(moved: Path) -> None:
    with opened(moved) as store:
        store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED, max_age=DAY, terminal_grace=100 * DAY))
        new = store.append("unlimited", "t", "new")
        now = max(new.recorded_at, STARTED + DAY) + 2 * DAY
        store.prune(store.plan_prune(now=now))
        assert store.get_session("unlimited").event_count == 0


def test_max_age_believes_no_clock_that_went_back_before_the_move(old: Path) -> None:
    with closing(connect(old)) as connection:
        connection.execute("DROP TRIGGER event_guards_update")
        connection.execute("UPDATE event SET recorded_at = 0 WHERE session = 2 AND seq = 30")
        connection.execute(
            "CREATE TRIGGER event_guards_update BEFORE UPDATE ON event BEGIN"
            " SELECT RAISE(ABORT, 'aegis: events do not change'); END"
        )
    EventStore.upgrade(old)
    with opened(old) as store:
        store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED, max_age=DAY, terminal_grace=100 * DAY))
        assert store.prune(store.plan_prune(now=STARTED)).events_removed == 0
        assert seqs(store, "unlimited") == list(range(1, 71))


def test_max_bytes_holds_for_what_stood_before_the_move(moved: Path) -> None:
    with opened(moved) as store:
        store.set_retention_policy(RetentionPolicy(max_events=50, max_bytes=1020, terminal_grace=100 * DAY))
        report = store.prune(store.plan_prune(now=STARTED))
        assert dict(report.events_by_reason) == {"max_bytes": 60}
        assert seqs(store, "unlimited") == list(range(61, 71))


def test_a_budget_counts_what_stood_before_the_move(moved: Path) -> None:
    stored = rows(moved, "SELECT sum(length(CAST(payload AS BLOB))) FROM event")[0][0]
    with opened(moved) as store:
        store.set_retention_policy(RetentionPolicy(max_events=50, max_total_bytes=stored - 1, terminal_grace=100 * DAY))
        assert store.health().retained_bytes == stored
        store.prune(store.plan_prune(now=STARTED))
        assert (store.health().retained_bytes or 0) <= (stored - 1) * 8 // 10
        assert store.get_session("held").event_count == 1


def test_a_session_that_ended_before_the_move_can_be_forgotten(moved: Path) -> None:
    with opened(moved) as store:
        store.set_retention_policy(RetentionPolicy(forget_sessions_after=DAY))
        report = store.prune(store.plan_prune(now=STARTED + 5 * DAY))
        assert (report.sessions_forgotten, report.events_removed) == (1, 1)
        assert store.ensure_session("ended").last_seq == 1


def test_a_lower_cap_holds_for_what_stood_before_the_move(moved: Path) -> None:
    with opened(moved) as store:
        store.set_retention_policy(RetentionPolicy(max_events=5))
        assert seqs(store, "running") == list(range(56, 61))
        assert len(seqs(store, "unlimited")) == 70


def test_a_session_from_before_the_move_can_be_deleted_and_goes_on(moved: Path) -> None:
    with opened(moved) as store:
        store.delete_session("running")
        with pytest.raises(SessionExists):
            store.create_session("running")
        again = store.create_session("running", tenant="t", owner="o")
        assert (again.last_seq, again.removed_bytes) == (60, 1010)
        assert store.append("running", "t", 1, event_id="e59").seq == 61


def test_opening_a_moved_store_prunes_as_ever(moved: Path) -> None:
    with opened(moved) as store:
        store.set_retention_policy(RetentionPolicy(max_events=50))  # no grace: the clock is not asked
    EventStore.open(moved).close()
    with opened(moved) as store:
        assert {s.session_id: s.event_count for s in store.list_sessions().sessions if s.event_count} == {
            "running": 50,
            "unlimited": 70,
            "held": 1,
        }


BREACHES = {
    "an event out of order": (
        "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
        " VALUES (1, 99, 't', 1, 1, 1010, '0')"
    ),
    "a change of an event": "UPDATE event SET payload = '0'",
    "a deletion from the middle": "DELETE FROM event WHERE seq = 30",
    "a session erased": "DELETE FROM session WHERE id = 1",
    "a lower first_seq": "UPDATE session SET first_seq = 1 WHERE id = 1",
    "a cap below what is held": "UPDATE store SET max_events = 1",
}


@pytest.mark.parametrize("statement", BREACHES.values(), ids=list(BREACHES))
def test_the_triggers_stand_guard_after_the_move_against(moved: Path, statement: str) -> None:
    with closing(connect(moved)) as shell, pytest.raises(Refused, match="aegis: "):
        shell.execute(statement)


# Several at once, and half way


def test_two_moves_at_once_are_as_one(old: Path) -> None:
    before = content(old)
    processes = [alembic(*url_of(old), "upgrade", "head") for _ in range(2)]
    for process in processes:
        finished(process)
    assert (content(old), revision(old)) == (before, [schema.HEAD])


def test_a_move_waits_for_a_writer_of_the_release_before(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connected, connect_to_move = threading.Event(), migrate._connect

    def connect_and_tell(target: Target) -> object:
        connection = connect_to_move(target)
        connected.set()
        return connection

    monkeypatch.setattr(migrate, "_connect", connect_and_tell)
    with closing(driver.dbapi.connect(str(old), isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE session SET metadata = '{\"last\":\"word\"}' WHERE session_id = 'empty'")
        mover = threading.Thread(target=EventStore.upgrade, args=(old,))
        mover.start()
        assert connected.wait(60)
        writer.execute("COMMIT")
        mover.join(60)
    with opened(old) as store:
        assert store.get_session("empty").metadata == {"last": "word"}


APPEND_OF_0001 = """
    INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)
    SELECT id, last_seq + 1, 't', 1, 1, total_bytes, '"late"' FROM session WHERE session_id = ? RETURNING seq
"""


def test_a_writer_of_the_release_before_that_was_left_open_is_held_to_the_new_rules(old: Path) -> None:
    with closing(connect(old)) as writer:
        assert writer.execute(APPEND_OF_0001, ("running",)).fetchall() == [(61,)]
        EventStore.upgrade(old)
        with opened(old) as store:
            assert writer.execute(APPEND_OF_0001, ("running",)).fetchall() == [(62,)]
            store.set_retention_policy(RetentionPolicy(max_events=3, max_total_bytes=10**6))
            assert writer.execute(APPEND_OF_0001, ("running",)).fetchall() == [(63,)]
            assert seqs(store, "running") == [61, 62, 63]
            store.delete_session("running")
            assert writer.execute(APPEND_OF_0001, ("running",)).fetchall() == []
            assert store.health().retained_bytes == rows(old, "SELECT sum(length(payload)) FROM event")[0][0]


def test_a_move_that_fails_at_any_statement_leaves_the_store_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, shape_before = content(old), shape_of_file(old)
    connect_plainly = driver.dbapi.connect
    left = 0

    def connect_watched(*arguments: Any, **options: Any) -> Any:
        connection = connect_plainly(*arguments, **options)

        def authorize(action: int, *_: Any) -> int:
            nonlocal left
            if action in (driver.dbapi.SQLITE_INSERT, driver.dbapi.SQLITE_DELETE):
                left -= 1
            return 1 if left < 0 else 0  # SQLITE_DENY, SQLITE_OK

        connection.set_authorizer(authorize)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(driver.dbapi, "connect", connect_watched)
        failures = 0
        for allowed in range(0, 400, 12):
            left = allowed
            try:
                EventStore.upgrade(old)
            except Exception:  # noqa: BLE001 - whatever SQLite makes of it
                failures += 1
            else:
                break
            left = 10**9
            assert (content(old), shape_of_file(old), revision(old)) == (before, shape_before, ["0001"])
    assert failures > 5
    assert revision(old) == [schema.HEAD]


# As SQL


@pytest.fixture(scope="module")
def script() -> str:
    return finished(alembic("upgrade", "head", "--sql"))


def test_the_move_as_sql_contains_every_trigger(script: str) -> None:
    for name, text in SQLITE_TRIGGERS.items():
        assert " ".join(text.split()) in " ".join(script.split()), name


def test_the_move_as_sql_contains_every_table_and_index(script: str, template: Path) -> None:
    for kind, name in shape_of_file(template):
        if kind == "table" and not name.startswith("sqlite_"):
            assert f"CREATE TABLE {name} (" in script or f"RENAME TO {name}" in script, name
        if kind == "index" and not name.startswith("sqlite_"):
            assert f"INDEX {name} ON" in script, name


def test_the_move_as_sql_makes_the_same_schema(script: str, tmp_path: Path, template: Path) -> None:
    sql = "\n".join(line for line in script.splitlines() if not line.startswith("INFO"))
    with closing(sqlite3_of(tmp_path / "by-hand.db")) as shell:
        shell.executescript(sql)
    assert differences(shape_of_file(tmp_path / "by-hand.db"), shape_of_file(template)) == set()


def test_the_move_as_sql_from_0001_moves_a_store_as_alembic_does(old: Path, template: Path) -> None:
    before = content(old)
    said = finished(alembic("upgrade", f"0001:{schema.HEAD}", "--sql"))
    sql = "\n".join(line for line in said.splitlines() if not line.startswith("INFO"))
    with closing(sqlite3_of(old)) as shell:
        shell.executescript(sql)
    assert differences(shape_of_file(old), shape_of_file(template)) == set()
    assert (content(old), revision(old)) == (before, [schema.HEAD])


def sqlite3_of(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    connection.execute("PRAGMA foreign_keys = OFF")
    return connection


# Back


def test_a_store_without_sessions_goes_back_to_the_schema_of_0001(path: Path, old: Path) -> None:
    finished(alembic(*url_of(path), "downgrade", "0001"))
    assert revision(path) == ["0001"]
    assert differences(shape_of_file(path), shape_of_file(old)) == set()


def test_a_store_that_went_back_can_be_moved_again(path: Path, template: Path) -> None:
    finished(alembic(*url_of(path), "downgrade", "0001"))
    assert EventStore.upgrade(path) == ("0001", schema.HEAD)
    assert differences(shape_of_file(path), shape_of_file(template)) == set()
    with opened(path) as store:
        store.create_session("s")
        assert store.append("s", "t", 1).seq == 1


def test_a_store_that_goes_back_keeps_its_policy(path: Path) -> None:
    with opened(path) as store:
        store.set_retention_policy(RetentionPolicy(max_events=50, max_event_bytes=5000, terminal_grace=3 * DAY))
    finished(alembic(*url_of(path), "downgrade", "0001"))
    assert rows(path, "SELECT max_events, max_event_bytes, terminal_grace_us FROM store") == [(50, 5000, 259_200_000_000)]


HELD = {
    # (events, deleted)
    "a session": (3, False),
    "a session without events": (0, False),
    "a tombstone": (3, True),
    "a tombstone of a session without events": (0, True),
}


@pytest.mark.parametrize(("events", "deleted"), HELD.values(), ids=list(HELD))
def test_a_store_does_not_go_back_that_holds(path: Path, events: int, deleted: bool) -> None:
    with opened(path) as store:
        store.create_session("s")
        store.append_many("s", [NewEvent(type="t", payload=number) for number in range(events)])
        if deleted:
            store.delete_session("s")
    before, shape_before = content(path), shape_of_file(path)
    said = failed(alembic(*url_of(path), "downgrade", "0001"))
    assert "sessions or tombstones" in said
    assert (content(path), shape_of_file(path), revision(path)) == (before, shape_before, [schema.HEAD])


LOST = {
    # what the policy says, of which that revision knows nothing, and the words that set it back
    "max_bytes": ("0001", RetentionPolicy(max_bytes=5000), "--max-bytes none"),
    "max_age": ("0001", RetentionPolicy(max_age=DAY), "--max-age none"),
    "max_total_bytes": ("0001", RetentionPolicy(max_total_bytes=10_000), "--max-total-bytes none"),
    "forget_sessions_after": ("0001", RetentionPolicy(forget_sessions_after=DAY), "--forget-sessions-after none"),
    "mode": ("0001", RetentionPolicy(mode="warn"), "--mode enforce"),
    "two of them": ("base", RetentionPolicy(max_bytes=5000, mode="warn"), "--max-bytes none --mode enforce"),
    "max_events": ("base", RetentionPolicy(max_events=UNLIMITED), "--max-events 1000"),
    "max_event_bytes": ("base", RetentionPolicy(max_event_bytes=5000), "--max-event-bytes 1048576"),
    "terminal_grace": ("base", RetentionPolicy(terminal_grace=DAY), "--terminal-grace 0"),
}


@pytest.mark.parametrize(("target", "policy", "words"), LOST.values(), ids=list(LOST))
def test_a_store_does_not_go_back_where_its_policy_would_be_lost(
    path: Path, target: str, policy: RetentionPolicy, words: str
) -> None:
    with opened(path) as store:
        store.set_retention_policy(policy)
    before, shape_before = rows(path, "SELECT * FROM store"), shape_of_file(path)
    with pytest.raises(CommandError, match=f"has no place for all of the retention policy.*aegis-store policy set {words}$"):
        command.downgrade(migrate.config_for(Target.of(path)), target)
    assert (rows(path, "SELECT * FROM store"), shape_of_file(path), revision(path)) == (before, shape_before, [schema.HEAD])


def test_it_goes_back_once_the_policy_was_given_up_by_the_command_that_is_told(path: Path) -> None:
    with opened(path) as store:
        policies = {name: getattr(policy, name) for name, (_, policy, _) in LOST.items() if hasattr(policy, name)}
        store.set_retention_policy(RetentionPolicy(**policies))
    for _ in ("0001", "base"):
        with pytest.raises(CommandError) as caught:
            command.downgrade(migrate.config_for(Target.of(path)), "base")
        words = str(caught.value).partition(" aegis-store ")[2].split()
        program = "from aegis_store.cli import main; main()"
        subprocess.run([sys.executable, "-c", program, *words, "--db", str(path)], check=True, stdout=subprocess.DEVNULL)
    command.downgrade(migrate.config_for(Target.of(path)), "base")
    assert revision(path) == []


def test_the_way_back_is_not_written_as_sql_which_could_not_look() -> None:
    assert "cannot tell whether anything would be lost" in failed(alembic("downgrade", "0002:0001", "--sql")).splitlines()[-1]


def test_a_moved_store_does_not_go_back(moved: Path) -> None:
    before = content(moved)
    failed(alembic(*url_of(moved), "downgrade", "0001"))
    assert (content(moved), revision(moved)) == (before, [schema.HEAD])


def test_a_new_store_is_made_in_both_steps_one_after_the_other(tmp_path: Path, template: Path) -> None:
    path = tmp_path / "new.db"
    finished(alembic(*url_of(path), "upgrade", "0001"))
    assert revision(path) == ["0001"]
    finished(alembic(*url_of(path), "upgrade", "head"))
    assert differences(shape_of_file(path), shape_of_file(template)) == set()


def test_the_frozen_store_is_that_of_0001(old: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    finished(alembic(*url_of(fresh), "upgrade", "0001"))
    assert differences(shape_of_file(old), shape_of_file(fresh)) == set()
