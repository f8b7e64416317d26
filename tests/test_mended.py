"""What attacks and first users found, each with the test that would find it again."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    EventStore,
    EventsTruncated,
    EventTooLarge,
    InvalidEvent,
    InvalidInput,
    NewEvent,
    RetentionPolicy,
    StoreBusy,
    StoreCorrupt,
    StoreUnavailable,
    driver,
)
from aegis_store.retention import limits, truncate
from aegis_store.settings import PAGE_SIZE_BYTES
from tests.conftest import OpenStore
from tests.test_overview import write_damage


def test_the_log_of_a_store_whose_file_is_gone_is_not_played_into_a_new_one(path: Path) -> None:
    script = (
        "import os, sys\nfrom aegis_store import EventStore\nstore = EventStore.open(sys.argv[1])\n"
        "store.create_session('old')\nstore.append('old', 't', 1)\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    path.unlink()
    log = path.with_name("aegis.db-wal")
    before = log.read_bytes()
    with pytest.raises(StoreUnavailable, match=r"the file is gone, but aegis\.db-wal is there"):
        EventStore.open(path)
    assert log.read_bytes() == before
    assert not path.exists()


def test_a_store_with_a_hard_link_is_refused(path: Path, tmp_path: Path) -> None:
    os.link(path, tmp_path / "second.db")
    for name in ("aegis.db", "second.db"):
        with pytest.raises(StoreUnavailable, match="hard link"):
            EventStore.open(tmp_path / name)


def test_the_draft_of_a_process_that_died_after_linking_it_does_no_harm(path: Path) -> None:
    draft = path.with_name("aegis.db.123-0123abcd.tmp")
    os.link(path, draft)
    EventStore.open(path).close()
    os.utime(path, (1, 1))
    EventStore.open(path).close()
    assert not draft.exists()


def test_a_session_that_gets_a_cap_of_its_own_while_the_policy_is_lowered_keeps_its_events(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for session_id in ("first", "second"):
        store.create_session(session_id)
        store.append_many(session_id, [NewEvent(type="t", payload=n) for n in range(20)])
    shrink = limits._shrink

    def shrink_and_change(db: object, session_id: str, *rest: object) -> None:
        if session_id == "first":
            store.update_session("second", max_events=UNLIMITED)
        shrink(db, session_id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(limits, "_shrink", shrink_and_change)
    store.set_retention_policy(RetentionPolicy(max_events=5))
    assert [store.get_session(session_id).event_count for session_id in ("first", "second")] == [5, 20]


def test_many_sessions_a_little_over_a_lower_cap_are_pruned_too(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        store.create_session(f"s{number}")
        store.append_many(f"s{number}", [NewEvent(type="t", payload=n) for n in range(10)])
    monkeypatch.setattr(limits, "PRUNE_SLICE_EVENTS", 8)
    store.set_retention_policy(RetentionPolicy(max_events=3))
    assert store.stats().events == 24


@pytest.mark.parametrize("late_events", [0, 30], ids=["nobody", "a writer"])
def test_a_cap_is_lowered_though_few_events_are_more_than_a_slice_in_bytes(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, late_events: int
) -> None:
    """Also those that a writer adds meanwhile, before the cap is in force."""
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload="x" * 100) for _ in range(30)])
    monkeypatch.setattr(truncate, "PRUNE_SLICE_BYTES", 500)
    shrink = limits._shrink

    def shrink_and_append(*given: Any) -> None:
        shrink(*given)
        if store.get_session("s").last_seq == 30:
            store.append_many("s", [NewEvent(type="t", payload="x" * 100) for _ in range(late_events)])

    monkeypatch.setattr(limits, "_shrink", shrink_and_append)
    store.set_retention_policy(RetentionPolicy(max_events=3))
    session = store.get_session("s")
    assert (session.first_seq, session.last_seq) == (28 + late_events, 30 + late_events)


def test_a_plan_removes_nothing_that_the_policy_in_force_keeps(store: EventStore) -> None:
    from datetime import timedelta

    store.create_session("s")
    store.append("s", "t", 1)
    store.set_status("s", "closed")
    plan = store.plan_prune()
    store.set_retention_policy(RetentionPolicy(terminal_grace=timedelta(days=30)))
    assert store.prune(plan).events_removed == 0
    assert store.get_session("s").event_count == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_append_from_a_signal_handler_amid_a_write_is_refused_and_nothing_is_lost(store: EventStore) -> None:
    store.create_session("s", max_events=UNLIMITED)
    answers: list[object] = []

    def handler(*_: object) -> None:
        try:
            answers.append(store.append("s", "from the handler", 0).seq)
        except StoreBusy as error:
            answers.append(error)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        while not any(isinstance(answer, StoreBusy) for answer in answers):
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            store.append_many("s", [NewEvent(type="t", payload=n) for n in range(300)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    page = store.read("s", types=["from the handler"], limit=1000)
    assert {event.seq for event in page.events} >= {answer for answer in answers if isinstance(answer, int)}.intersection(
        range(1, page.next_after_seq + 1)
    )


def test_damage_is_told_without_the_content_of_the_payload(path: Path) -> None:
    with EventStore.open(path) as store:
        store.create_session("s")
        store.append("s", "t", {"password": "hunter2-SECRET"})
    content = bytearray(path.read_bytes())
    content[content.index(b"hunter2-SECRET") + 3] = 0xFF
    path.write_bytes(content)
    with EventStore.open(path) as store, pytest.raises(StoreCorrupt) as found:
        store.read("s")
    assert "SECRET" not in str(found.value)


def test_an_error_in_a_batch_names_the_event_and_the_path_in_its_payload(store: EventStore) -> None:
    store.create_session("s")
    with pytest.raises(InvalidEvent) as invalid:
        store.append_many("s", [NewEvent(type="t", payload=0), NewEvent(type="t", payload=[{"b": float("nan")}])])
    assert invalid.value.path == "events[1].payload[0].b"
    with pytest.raises(EventTooLarge) as large:
        store.append_many("s", [NewEvent(type="t", payload=0), NewEvent(type="t", payload="x" * 2_000_000)])
    assert large.value.path == "events[1].payload"
    assert store.get_session("s").last_seq == 0


def test_text_that_is_refused_is_not_kept_in_memory(store: EventStore) -> None:
    from aegis_store.events import _text_problem

    store.create_session("s")
    before = _text_problem.cache_info().currsize
    with pytest.raises(InvalidEvent, match="512 bytes"):
        store.append("s", "x" * 10_000_000, 0)
    assert _text_problem.cache_info().currsize <= before + 1


def test_a_number_of_too_many_digits_is_an_error_of_ours(store: EventStore) -> None:
    with pytest.raises(InvalidInput):
        store.list_sessions(limit=10**5000)


def test_a_removal_of_older_positions_leaves_the_store_wide_reason_as_it_is(store: EventStore) -> None:
    for session_id in ("old", "new"):
        store.create_session(session_id, max_events=1)
    store.append("old", "t", 1)
    store.append_many("new", [NewEvent(type="t", payload=n) for n in range(3)])
    store.set_status("old", "closed")
    store.prune()
    with pytest.raises(EventsTruncated) as truncated:
        store.read_all(after_position=0)
    assert (truncated.value.reason, truncated.value.first_seq) == ("max_events", 4)


def test_closing_while_others_read_leaves_no_connection_behind(path: Path, open_store: OpenStore) -> None:
    store = open_store()
    with store._db.read() as conn:
        held = conn.connection.dbapi_connection
        store.close()
    assert held is not None
    with pytest.raises(driver.dbapi.ProgrammingError):
        held.cursor().execute("SELECT 1")


def test_an_unknown_driver_is_refused_by_name() -> None:
    environment = {**os.environ, driver.DRIVER_VARIABLE: "bogus"}
    done = subprocess.run(
        [sys.executable, "-c", "import aegis_store.driver"], env=environment, capture_output=True, text=True, check=False
    )
    assert "must be sqlite3 or pysqlite3" in done.stderr


def test_the_logger_is_the_packages(caplog: pytest.LogCaptureFixture, open_store: OpenStore) -> None:
    with caplog.at_level(logging.INFO, logger="aegis_store"):
        store = open_store()
        store.create_session("s")
        store.append("s", "t", 1)
        store.set_status("s", "closed")
        store.close()
        open_store()
    assert [record.name for record in caplog.records] == ["aegis_store"]


# Found by fuzzing the bytes of a store


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE prune_run SET started_at = 'then'",
        "UPDATE store SET maintained_at = 'then'",
        "UPDATE store SET retained_bytes = 'many'",
        "UPDATE store SET maintained_at = 1 << 62",
    ],
)
def test_the_health_of_a_store_with_a_damaged_record_is_told_as_damage(path: Path, damage: str) -> None:
    with EventStore.open(path, durability="process") as store:
        store.set_retention_policy(RetentionPolicy(max_total_bytes=1000))
        store.create_session("s")
        store.append("s", "t", 1)
        store.set_status("s", "closed")
        assert store.prune(store.plan_prune()).events_removed == 1
    write_damage(path, damage)
    with EventStore.open(path, read_only=True) as store, pytest.raises(StoreCorrupt):
        store.health()


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        ("UPDATE store SET retained_bytes = 'many'", "budget"),
        ("UPDATE event SET recorded_at = 'then'", "clock"),
        ("UPDATE event SET recorded_at = 1 << 62", "clock"),
    ],
)
def test_doctor_tells_of_a_number_that_is_none(path: Path, damage: str, name: str) -> None:
    with EventStore.open(path, durability="process") as store:
        store.set_retention_policy(RetentionPolicy(max_total_bytes=1000))
        store.create_session("s")
        store.append("s", "t", 1)
    write_damage(path, damage)
    assert {finding.name: finding.state for finding in EventStore.doctor(path).findings}[name] == "problem"


def test_an_error_does_not_tell_of_a_page_of_noise_cell_by_cell(path: Path, tmp_path: Path) -> None:
    with EventStore.open(path, durability="process") as store:
        store.create_session("s")
        store.append_many("s", [NewEvent(type="t", payload=number, event_id=f"e{number}") for number in range(100)])
    shell = driver.dbapi.connect(str(path))
    (page,) = shell.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'event_by_event_id'").fetchone()
    shell.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_SIZE_BYTES + 8)
        file.write(bytes(200))  # where its cells are
    with pytest.raises(StoreCorrupt, match=r"Offset 0 out of range.*…") as refused:
        EventStore.restore(path, tmp_path / "restored.db")
    assert len(str(refused.value)) < 1000
