"""`verify` finds what is not as it was written, says where, and calls nothing damaged that is well."""

import sqlite3
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from aegis_store import EventStore, NewEvent, Problem, RetentionPolicy, StoreCorrupt, VerifyReport, driver
from tests.conftest import OpenStore


@pytest.fixture
def filled(store: EventStore) -> EventStore:
    """Sessions live, capped, ended, empty, deleted and created again; a budget; runs of prunes."""
    store.set_retention_policy(
        RetentionPolicy(max_events=20, max_total_bytes=10**6, max_bytes=10**5, terminal_grace=timedelta(days=1))
    )
    for name in ("live", "capped", "ended", "empty", "again", "gone"):
        store.create_session(name, metadata={"of": name})
    for name, count in {"live": 12, "capped": 50, "ended": 7, "again": 5, "gone": 3}.items():
        store.append_many(name, [NewEvent(type="hook", payload={"n": n}, event_id=f"{name} {n}") for n in range(count)])
    store.set_status("ended", "failed")
    for name in ("again", "gone"):
        store.delete_session(name)
    store.create_session("again")
    store.append("again", "t", None)
    store.prune()
    return store


def problems(report: VerifyReport) -> set[tuple[str, str | None, int | None]]:
    return {(problem.kind, problem.session_id, problem.seq) for problem in report.problems}


def test_a_sound_store_is_well(filled: EventStore) -> None:
    report = filled.verify()
    assert (report.ok, report.problems, report.more_problems, report.advice) == (True, (), 0, None)
    assert (report.sessions, report.events, report.events_without_checksum) == (5, 12 + 20 + 7 + 1, 0)


def test_an_empty_store_is_well(store: EventStore) -> None:
    assert (store.verify().ok, store.verify().events) == (True, 0)


def test_a_session_that_is_being_deleted_is_no_damage(filled: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("UPDATE session SET session_id = NULL WHERE session_id = 'live'")
    assert filled.verify().problems == ()


@pytest.mark.parametrize("care", ["ANALYZE", "REINDEX", "VACUUM"])
def test_what_sqlite_does_for_its_own_good_is_no_damage(filled: EventStore, shell: sqlite3.Connection, care: str) -> None:
    shell.execute(care)
    assert filled.verify().problems == ()


def test_events_of_a_shell_are_counted_as_not_checked(filled: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute(
        "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
        " SELECT id, last_seq + 1, 't', 2000000000000000, 2000000000000000, total_bytes, '1' FROM session"
        " WHERE session_id = 'live'"
    )
    report = filled.verify()
    assert (report.problems, report.events_without_checksum) == ((), 1)


LIVE = "(SELECT id FROM session WHERE session_id = 'live')"
Wrong = tuple[str, set[tuple[str, str | None, int | None]]]
DAMAGE: dict[str, Wrong] = {
    "a payload": (f"UPDATE event SET payload = '{{\"n\":9}}' WHERE session = {LIVE} AND seq = 3", {("event", "live", 3)}),
    "a type": (f"UPDATE event SET type = 'hooc' WHERE session = {LIVE} AND seq = 3", {("event", "live", 3)}),
    "a time": (f"UPDATE event SET occurred_at = occurred_at + 1 WHERE session = {LIVE} AND seq = 3", {("event", "live", 3)}),
    "no event_id": (f"UPDATE event SET event_id = NULL WHERE session = {LIVE} AND seq = 3", {("event", "live", 3)}),
    "an event of another session": (
        f"UPDATE event SET session = {LIVE}, seq = 13 WHERE position = (SELECT max(position) FROM event)",
        {("event", "live", 13), ("range", "again", 6)},
    ),
    "a gap": (f"DELETE FROM event WHERE session = {LIVE} AND seq = 3", {("range", "live", 3)}),
    "the last event": (
        f"DELETE FROM event WHERE session = {LIVE} AND seq = 12",
        {("range", "live", 12)},
    ),
    "an event that its session does not know of": (
        "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
        " SELECT id, 1, 't', 1, 1, 0, '1' FROM session WHERE session_id = 'empty'",
        {("range", "empty", 1)},
    ),
    "a counter": ("UPDATE session SET total_bytes = total_bytes + 1 WHERE session_id = 'live'", {("record", "live", None)}),
    "an owner": ("UPDATE session SET owner = 'x' WHERE session_id = 'live'", {("record", "live", None)}),
    "metadata": ("UPDATE session SET metadata = '{\"of\":1}' WHERE session_id = 'live'", {("record", "live", None)}),
    "where it begins": ("UPDATE session SET first_seq = 2 WHERE session_id = 'live'", {("record", "live", None)}),
    "the policy": ("UPDATE store SET terminal_grace_us = 0", {("record", None, None)}),
    "the budget": ("UPDATE store SET retained_bytes = retained_bytes - 1", {("record", None, None)}),
    "a tombstone": ("UPDATE tombstone SET last_seq = 0", {("record", "gone", None)}),
    "a run": ("UPDATE prune_run SET events = 0 WHERE id = 1", {("record", None, None)}),
    "an age": ("UPDATE session SET oldest_at = oldest_at + 3600000000 WHERE session_id = 'live'", {("note", "live", 1)}),
}


@pytest.mark.parametrize(("statement", "expected"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_found_where_it_is(
    filled: EventStore, shell: sqlite3.Connection, statement: str, expected: set[tuple[str, str | None, int | None]]
) -> None:
    without_triggers(shell, lambda: shell.execute(statement))
    report = filled.verify()
    assert expected <= problems(report)
    assert {problem.kind for problem in report.problems} <= {kind for kind, _, _ in expected} | {"range", "record", "note"}
    assert not report.ok
    assert report.advice is not None


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE session SET updated_at = 1 << 62 WHERE session_id = 'live'", ("record", "live", None)),
        (
            "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
            " SELECT id, last_seq + 1, 't', 1 << 62, last_event_at, total_bytes, '1' FROM session WHERE session_id = 'live'",
            ("event", "live", 13),
        ),
    ],
)
def test_a_time_that_cannot_be_read_is_told(
    filled: EventStore, shell: sqlite3.Connection, statement: str, where: tuple[str, str, int | None]
) -> None:
    shell.execute(statement)
    assert problems(filled.verify()) == {where}


def without_triggers(shell: sqlite3.Connection, work: Callable[[], object]) -> None:
    """As damage does it: past all guards."""
    triggers = shell.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        shell.execute(f"DROP TRIGGER {name}")
    work()
    for _, sql in triggers:
        shell.execute(sql)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP TRIGGER event_counts", "the trigger event_counts is missing"),
        ("DROP INDEX session_ageing", "the index session_ageing is missing"),
        ("DROP VIEW event_readable", "the view event_readable is missing"),
        ("CREATE VIEW mine AS SELECT 1", "the view mine is not one of this library's"),
        ("CREATE TRIGGER mine AFTER INSERT ON event BEGIN SELECT 1; END", "the trigger mine is not one of this library's"),
        ("CREATE TABLE mine (id)", "the table mine is not one of this library's"),
    ],
)
def test_a_schema_that_was_changed_is_told(filled: EventStore, shell: sqlite3.Connection, statement: str, said: str) -> None:
    shell.execute(statement)
    report = filled.verify()
    assert [(problem.kind, problem.detail) for problem in report.problems] == [("schema", said)]
    assert "changed the schema" in str(report.advice)


def test_a_trigger_that_was_weakened_is_told(filled: EventStore, shell: sqlite3.Connection) -> None:
    (sql,) = shell.execute("SELECT sql FROM sqlite_schema WHERE name = 'event_guards_update'").fetchone()
    shell.execute("DROP TRIGGER event_guards_update")
    shell.execute(sql.replace("BEGIN", "WHEN OLD.seq < 0 BEGIN"))
    assert filled.verify().problems == (Problem("schema", "the trigger event_guards_update was changed"),)


def test_a_view_that_was_changed_is_told_and_is_no_damage(filled: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("DROP VIEW event_readable")
    shell.execute("CREATE VIEW event_readable AS SELECT * FROM event WHERE seq > 3")
    report = filled.verify()
    assert (report.problems, report.damage) == ((Problem("schema", "the view event_readable was changed"),), ())


def test_what_sqlite_finds_is_in_the_report(filled: EventStore, path: Path, open_store: OpenStore) -> None:
    filled.close()
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'session_ageing'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    content = bytearray(path.read_bytes())
    content[(root - 1) * size + 3 : (root - 1) * size + 5] = b"\0\0"  # an index page without cells
    path.write_bytes(content)
    report = open_store(read_only=True).verify()
    assert any(p.kind == "structure" and "session_ageing" in p.detail for p in report.problems)


def test_verify_changes_nothing_and_works_read_only(filled: EventStore, path: Path, open_store: OpenStore) -> None:
    filled.close()
    before = path.read_bytes()
    assert open_store(read_only=True).verify().ok
    assert path.read_bytes() == before


def test_verify_works_beside_writers_and_prunes(open_store: OpenStore, filled: EventStore) -> None:
    filled.set_retention_policy(RetentionPolicy(max_events=200))
    for number in range(10):
        filled.create_session(f"busy {number}")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = f"busy {number % 10}"
            filled.append_many(name, [NewEvent(type="t", payload=number) for _ in range(30)])
            if number % 7 == 0:
                filled.delete_session(name)
                filled.create_session(name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(15):
            assert open_store().verify().problems == ()
    finally:
        stop.set()
        writer.join()


def test_progress_comes_to_its_end(filled: EventStore) -> None:
    told: list[tuple[int, int]] = []
    filled.verify(on_progress=lambda done, events: told.append((done, events)))
    assert told[-1] == (40, 40)
    assert told == sorted(told)


def test_a_page_of_the_whole_store_that_hides_an_event_is_damage(store: EventStore, shell: sqlite3.Connection) -> None:
    for name in ("a", "b"):
        store.create_session(name)
    for number in range(20):
        store.append("ab"[number % 2], "t", number)
    without_triggers(shell, lambda: shell.execute("DELETE FROM event WHERE position = 9"))
    with pytest.raises(StoreCorrupt, match="missing"):
        store.read_all(limit=5, after_position=6)
    assert [event.position for event in store.read_all(limit=5)] == [1, 2, 3, 4, 5]
    without_triggers(shell, lambda: shell.execute("DELETE FROM event WHERE position = 20"))
    with pytest.raises(StoreCorrupt, match="after position 19"):
        store.read_all(limit=100, after_position=9)


LARGE = 500_000


@pytest.fixture
def large(store: EventStore) -> EventStore:
    """A session whose payloads take 50 MB together, and then a small event of another type."""
    store.create_session("large")
    for number in range(100):
        store.append("large", "large", {"n": number, "text": "x" * LARGE})
    store.append("large", "small", 1)
    return store


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_verify_holds_one_payload_at_a_time(large: EventStore) -> None:
    assert peak_bytes(lambda: large.verify()) < 10 * LARGE


def test_a_page_that_filters_holds_one_payload_at_a_time_of_what_it_passes_over(large: EventStore) -> None:
    found: list[int] = []
    assert peak_bytes(lambda: found.extend(e.seq for e in large.read("large", types=["small"]).events)) < 10 * LARGE
    assert found == [101]


def test_a_page_that_filters_looks_no_further_than_it_must(large: EventStore, shell: sqlite3.Connection) -> None:
    """What lies behind the last event that it gives is not read."""
    without_triggers(shell, lambda: shell.execute("UPDATE event SET type = 'other' WHERE seq = 50"))
    assert [event.seq for event in large.read("large", types=["large"], limit=5).events] == [1, 2, 3, 4, 5]
    with pytest.raises(StoreCorrupt, match="event 50"):
        large.read("large", types=["large"], limit=60)


def test_a_name_in_the_schema_that_is_a_blob_is_that_name(filled: EventStore, path: Path, open_store: OpenStore) -> None:
    filled.close()
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET name = CAST(name AS BLOB) WHERE name = 'event_guards_update'")
    assert open_store(path, read_only=True).verify().problems == ()


def test_a_count_of_positions_that_is_no_number_is_damage(filled: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("UPDATE sqlite_sequence SET seq = 'many' WHERE name = 'event'")
    with pytest.raises(StoreCorrupt, match="count of positions"):
        filled.read_all(after_position=1)
    assert not filled.verify().ok
