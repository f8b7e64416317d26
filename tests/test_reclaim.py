"""Giving freed pages back: the file gets shorter, writers get through, readers keep what they see."""

import math
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    EventStore,
    InvalidInput,
    NewEvent,
    ReadOnlyStore,
    RetentionPolicy,
    StoreClosed,
    StoreUnavailable,
    driver,
)
from aegis_store.retention import reclaim as reclaiming
from aegis_store.retention.reclaim import ReclaimReport, reclaim
from tests.conftest import OpenStore
from tests.crash.checks import assert_sound

TEXT = "x" * 2400
EVENTS = 900


def fill(store: EventStore, session_id: str, events: int = EVENTS) -> None:
    store.ensure_session(session_id)
    store.append_many(session_id, [NewEvent(type="note", payload={"number": n, "text": TEXT}) for n in range(events)])


@pytest.fixture
def pruned(open_store: OpenStore) -> EventStore:
    """An open store whose older half was pruned: 300 pages are free, nearly all of them before the others."""
    store = open_store(prune_on_open=False)
    store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
    fill(store, "old")
    fill(store, "new")
    store.set_status("old", "closed")
    store.prune()
    store.close()  # checkpoints: the file is as long as it ever was
    return open_store(prune_on_open=False)


def numbers(store: EventStore, session_id: str = "new") -> list[int]:
    found: list[int] = []
    while page := store.read(session_id, after_seq=len(found), limit=1000).events:
        found += [event.payload["number"] for event in page]
    return found


def free_and_all(shell: sqlite3.Connection) -> tuple[int, int]:
    names = ("freelist_count", "page_count")
    free, pages = (int(shell.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
    return free, pages


@pytest.fixture
def reader(path: Path) -> Iterator[sqlite3.Connection]:
    """A reader that holds the snapshot of the moment in which its transaction begins."""
    connection = driver.dbapi.connect(str(path), isolation_level=None)
    yield connection
    connection.close()


def hold_snapshot(reader: sqlite3.Connection) -> int:
    reader.execute("BEGIN")
    return count_events(reader)


def count_events(reader: sqlite3.Connection) -> int:
    return int(reader.execute("SELECT count(*) FROM event").fetchone()[0])


# What comes back


def test_after_pruning_and_reclaim_the_file_is_within_10_percent_of_a_fresh_store(
    pruned: EventStore, open_store: OpenStore, path: Path, tmp_path: Path
) -> None:
    reclaim(pruned._db)
    pruned.close()
    with open_store(tmp_path / "fresh.db") as fresh:
        fill(fresh, "new")
    assert path.stat().st_size < 1.1 * (tmp_path / "fresh.db").stat().st_size


def test_all_free_pages_are_given_back_whatever_the_driver(pruned: EventStore, shell: sqlite3.Connection) -> None:
    free, pages = free_and_all(shell)
    assert free > 250
    report = reclaim(pruned._db)
    assert free_and_all(shell) == (0, pages - report.pages_freed)
    assert report.pages_freed >= free
    assert report.outcome == "complete"
    assert report.complete


def test_the_file_gets_shorter_while_the_store_is_open(pruned: EventStore, path: Path, shell: sqlite3.Connection) -> None:
    before = path.stat().st_size
    reclaim(pruned._db)
    _, pages = free_and_all(shell)
    assert path.stat().st_size == pages * 8192 < before - 250 * 8192


def test_the_report_tells_what_is_on_disk_and_what_was_free(pruned: EventStore, path: Path, shell: sqlite3.Connection) -> None:
    log = path.with_name(path.name + "-wal")
    before, free = path.stat().st_size + log.stat().st_size, free_and_all(shell)[0]
    report = reclaim(pruned._db, free_ratio=0.2)
    assert (report.bytes_before, report.bytes_after) == (before, path.stat().st_size + log.stat().st_size)
    assert (report.free_bytes_before, report.free_bytes_after) == (free * 8192, free_and_all(shell)[0] * 8192)
    assert report.duration_s > 0


def test_a_fixed_sqlite_leaves_an_empty_log(pruned: EventStore, path: Path) -> None:
    reclaim(pruned._db)
    empty = path.with_name(path.name + "-wal").stat().st_size == 0
    assert empty is not driver.has_wal_reset_bug(driver.VERSION_INFO)


def test_no_event_and_no_number_changes(pruned: EventStore, path: Path) -> None:
    last = pruned.read_all(after_position=2 * EVENTS - 1)[-1]
    reclaim(pruned._db)
    assert numbers(pruned) == list(range(EVENTS))
    event = pruned.append("new", "note", {"number": EVENTS})
    assert (event.seq, event.position) == (last.seq + 1, last.position + 1)
    pruned.close()
    assert_sound(path)


def test_a_second_reclaim_finds_nothing_to_do(pruned: EventStore) -> None:
    reclaim(pruned._db)
    report = reclaim(pruned._db)
    assert (report.pages_freed, report.outcome) == (0, "complete")
    assert report.bytes_before == report.bytes_after


@pytest.mark.parametrize("ratio", [0.1, 0.25, 1 / 3])
def test_free_pages_are_left_up_to_the_ratio(pruned: EventStore, shell: sqlite3.Connection, ratio: float) -> None:
    report = reclaim(pruned._db, free_ratio=ratio)
    free, pages = free_and_all(shell)
    assert ratio - 0.02 < free / pages <= ratio
    assert report.complete


@pytest.mark.parametrize("ratio", [0.6, 1, 1.0])
def test_nothing_is_given_back_below_the_ratio(pruned: EventStore, ratio: float) -> None:
    report = reclaim(pruned._db, free_ratio=ratio)
    assert (report.pages_freed, report.outcome) == (0, "complete")


def test_progress_rises_to_the_number_of_pages_to_give_back(pruned: EventStore, shell: sqlite3.Connection) -> None:
    free, _ = free_and_all(shell)
    seen: list[tuple[int, int]] = []
    reclaim(pruned._db, on_progress=lambda done, pages: seen.append((done, pages)))
    assert {pages for _, pages in seen} == {free}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (free, free)


def test_pages_that_become_free_meanwhile_are_left_to_the_next_time(pruned: EventStore, shell: sqlite3.Connection) -> None:
    free, _ = free_and_all(shell)

    def end_the_other(done: int, _: int) -> None:
        if done == free:
            pruned.set_status("new", "closed")
            pruned.prune()

    report = reclaim(pruned._db, on_progress=end_the_other)
    assert report.complete
    assert free_and_all(shell)[0] > 250
    assert reclaim(pruned._db).free_bytes_after == 0


# Limits of time, and interruptions


def test_it_stops_when_the_time_is_over_and_the_next_run_goes_on(pruned: EventStore, shell: sqlite3.Connection) -> None:
    free, _ = free_and_all(shell)
    first = reclaim(pruned._db, max_seconds=2, on_progress=lambda *_: time.sleep(2))
    assert first.outcome == "time_over"
    assert not first.complete
    assert 0 < first.pages_freed < free
    assert reclaim(pruned._db, max_seconds=60).outcome == "complete"
    assert free_and_all(shell)[0] == 0


def test_interrupted_it_has_given_back_what_it_said(pruned: EventStore, shell: sqlite3.Connection, path: Path) -> None:
    _, pages = free_and_all(shell)
    said: list[int] = []

    def interrupt(done: int, _: int) -> None:
        said.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reclaim(pruned._db, on_progress=interrupt)
    assert free_and_all(shell)[1] == pages - said[-1]
    assert pruned.append("new", "note", {"number": EVENTS}).seq == EVENTS + 1
    assert reclaim(pruned._db).complete


# Readers and writers beside it


def test_a_long_reader_keeps_its_snapshot_and_the_report_says_that_the_file_is_held(
    pruned: EventStore, reader: sqlite3.Connection, path: Path
) -> None:
    before = path.stat().st_size
    seen = hold_snapshot(reader)
    pruned.append("new", "note", {"number": EVENTS})
    report = reclaim(pruned._db)
    assert report.outcome == "held_up"
    assert report.free_bytes_after == 0
    assert path.stat().st_size >= before
    assert count_events(reader) == seen
    reader.execute("COMMIT")
    assert reclaim(pruned._db).complete
    assert path.stat().st_size < before - 250 * 8192


def test_behind_a_long_reader_the_log_does_not_grow_without_bound(
    pruned: EventStore, reader: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaiming, "_CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(reclaiming, "_HELD_LOG_PAGES", 50)
    monkeypatch.setattr(reclaiming, "_READER_PATIENCE_S", 0.1)
    hold_snapshot(reader)
    report = reclaim(pruned._db)
    assert report.outcome == "held_up"
    assert 0 < report.pages_freed < 300
    assert report.free_bytes_after > 0
    reader.execute("COMMIT")
    assert reclaim(pruned._db).complete


def test_it_goes_on_when_the_reader_has_ended(
    pruned: EventStore, reader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaiming, "_CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(reclaiming, "_HELD_LOG_PAGES", 50)
    hold_snapshot(reader)
    reports: list[ReclaimReport] = []
    thread = threading.Thread(target=lambda: reports.append(reclaim(pruned._db)))
    thread.start()
    time.sleep(0.3)
    reader.execute("COMMIT")
    thread.join()
    assert reports[0].complete


WRITER = """
import sys, time
from aegis_store import EventStore
with EventStore.open(sys.argv[1], durability="process", prune_on_open=False) as store:
    store.ensure_session("live")
    print("ready", flush=True)
    next_s = time.monotonic()
    while True:
        event = store.append("live", "note", {"text": "y" * 2400})
        print(event.seq, time.monotonic(), flush=True)
        next_s = max(next_s + 0.005, time.monotonic())
        time.sleep(max(next_s - time.monotonic(), 0))
"""


def test_a_writer_of_another_process_is_let_through_and_loses_nothing(pruned: EventStore, path: Path) -> None:
    fill(pruned, "more", 5000)
    pruned.set_status("more", "closed")
    pruned.prune()
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        began_s = time.monotonic()
        report = reclaim(pruned._db)
        writer.kill()
        lines = [line.split() for line in writer.stdout if line.endswith("\n")]
    assert report.pages_freed > 1500
    assert sum(float(at_s) > began_s for _, at_s in lines) > 3
    assert pruned.get_session("live").last_seq - int(lines[-1][0]) in (0, 1)


def test_writers_of_this_process_go_on_meanwhile(pruned: EventStore) -> None:
    over = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not over.is_set():
            written.append(pruned.append("live", "note", {"text": TEXT}).seq)
            time.sleep(0.001)

    pruned.ensure_session("live")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = reclaim(pruned._db)
    finally:
        over.set()
        writer.join()
    assert report.free_bytes_after < 50 * 8192
    assert pruned.get_session("live").last_seq == len(written) > 5


# What is refused


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_a_free_ratio_that_is_none_is_refused(store: EventStore, value: Any) -> None:
    with pytest.raises(InvalidInput, match="free_ratio must be a number from 0 to 1"):
        reclaim(store._db, free_ratio=value)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "5", True])
def test_a_limit_of_time_that_is_none_is_refused(store: EventStore, value: Any) -> None:
    with pytest.raises(InvalidInput, match="max_seconds must be a number over 0"):
        reclaim(store._db, max_seconds=value)


def test_a_store_opened_read_only_is_left_alone(pruned: EventStore, open_store: OpenStore) -> None:
    with pytest.raises(ReadOnlyStore):
        reclaim(open_store(read_only=True)._db)


def test_a_closed_store_is_refused(store: EventStore) -> None:
    store.close()
    with pytest.raises(StoreClosed):
        reclaim(store._db)


def test_a_store_whose_pages_cannot_go_one_by_one_is_pointed_at_compact(path: Path, open_store: OpenStore) -> None:
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    with pytest.raises(StoreUnavailable, match="reclaim --compact"):
        reclaim(open_store()._db)


def test_an_empty_store_is_complete_at_once(store: EventStore, path: Path) -> None:
    report = reclaim(store._db)
    assert report.complete
    assert path.stat().st_size <= report.bytes_after
