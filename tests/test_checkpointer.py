"""The log is brought into the file on a thread, off the writers' path, and stays bounded."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, NewEvent, StoreUnavailable, checkpointer, driver
from aegis_store.connections import Connections
from aegis_store.settings import CHECKPOINT_PAGES, LOG_PAGES_OF_WRITERS
from tests.conftest import OpenStore

WAIT_S = 60

fixed_sqlite = pytest.mark.skipif(
    driver.has_wal_reset_bug(driver.VERSION_INFO), reason="on this SQLite only the writer may checkpoint"
)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "aegis-store checkpointer"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def log_of(path: Path) -> tuple[int, int]:
    """Pages in the log, and how many of them are in the file."""
    connection = driver.dbapi.connect(str(path), isolation_level=None)
    _, pages, done = connection.execute("PRAGMA wal_checkpoint(NOOP)").fetchone()
    connection.close()
    return pages, done


def autocheckpoint(store: EventStore) -> int:
    return int(store._db.writer.driver.execute("PRAGMA wal_autocheckpoint").fetchone()[0])


@fixed_sqlite
def test_it_runs_from_the_first_write_until_the_store_is_closed(open_store: OpenStore) -> None:
    store = open_store(maintain_every=None)
    store.stats()
    assert not threads()
    assert autocheckpoint(store) == 0  # nor does the first commit, all that a hook makes, do its work
    store.create_session("s")
    assert len(threads()) == 1
    store.close()
    assert not threads()


@pytest.fixture
def affected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite with the WAL-reset bug, by all that the store knows."""
    monkeypatch.setattr(driver, "has_wal_reset_bug", lambda _: True)


@pytest.mark.usefixtures("affected")
def test_with_the_wal_reset_bug_nobody_can_commit_while_anything_checkpoints(
    open_store: OpenStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, committed = [], []
    really = checkpointer._checkpoint

    def checkpoint(connection: Any, mode: str) -> Any:
        other = driver.dbapi.connect(str(path), isolation_level=None, timeout=0)
        try:
            other.execute("BEGIN IMMEDIATE")
            committed.append(mode)
        except driver.dbapi.OperationalError:
            modes.append(mode)
        finally:
            other.close()
        return really(connection, mode)

    monkeypatch.setattr(checkpointer, "_checkpoint", checkpoint)
    store = open_store(prune_on_open=False)
    store.create_session("s")
    for number in range(40):
        store.append("s", "t", {"number": number, "text": "x" * 100_000})
    store.update_session("s", max_events=1)
    store.reclaim()
    store._db.checkpoint()
    wait_for(lambda: len(modes) >= 3)
    store.close()
    assert (set(modes), committed) == ({"PASSIVE"}, [])


@pytest.mark.usefixtures("affected")
def test_with_the_wal_reset_bug_no_commit_checkpoints_and_the_log_is_brought_in_all_the_same(
    open_store: OpenStore, path: Path
) -> None:
    store = open_store()
    store.create_session("s")
    assert autocheckpoint(store) == 0
    for _ in range(6):
        store.append("s", "t", "x" * 1_000_000)
    wait_for(lambda: path.stat().st_size > 6_000_000)
    store.append("s", "t", {})
    assert len(store.read("s").events) == 7


@fixed_sqlite
def test_a_long_log_that_a_reader_held_is_brought_in_beside_the_writers(
    open_store: OpenStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(maintain_every=None)
    store.create_session("s")
    reader = driver.dbapi.connect(str(path), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM event").fetchall()
    done = []
    really = checkpointer._checkpoint

    def checkpoint(connection: Any, mode: str) -> Any:
        waiting = really(connection, "NOOP").waiting
        done.append((mode, waiting))
        return really(connection, mode)

    monkeypatch.setattr(checkpointer, "_checkpoint", checkpoint)
    for _ in range(80):
        store.append("s", "t", "x" * 1_000_000)
    time.sleep(0.2)
    assert "RESTART" not in [mode for mode, _ in done]
    reader.close()
    store.append("s", "t", {})
    wait_for(lambda: "RESTART" in [mode for mode, _ in done])
    assert dict(done)["RESTART"] < 1000


@fixed_sqlite
def test_no_commit_brings_in_the_long_log_that_a_reader_has_let_go_of(open_store: OpenStore, path: Path) -> None:
    """It would hold up all writers: half a second for what a backup had left of 1 GB."""
    store = open_store(maintain_every=None)
    store.create_session("s")
    reader = driver.dbapi.connect(str(path), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM event").fetchall()
    while log_of(path)[0] <= LOG_PAGES_OF_WRITERS:
        store.append_many("s", [NewEvent(type="t", payload="x" * 1_000_000)] * 10)
    with store._db._checkpointer.at_work:  # the thread that is to do it has not come to it
        done = log_of(path)[1]
        reader.close()
        store.append("s", "t", {})
        assert log_of(path)[1] == done < CHECKPOINT_PAGES
    wait_for(lambda: log_of(path)[0] - log_of(path)[1] < CHECKPOINT_PAGES)


@fixed_sqlite
def test_while_no_thread_is_to_be_had_commits_bring_in_the_log(
    open_store: OpenStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(maintain_every=None)

    class NoMore(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer, "LOG_PAGES_OF_WRITERS", 300)
        patch.setattr(threading, "Thread", NoMore)
        store.create_session("s")
        for _ in range(6):
            store.append("s", "t", "x" * 1_000_000)
        assert not threads()
        assert log_of(path)[0] - log_of(path)[1] < 300 < path.stat().st_size / 8192
    store.append("s", "t", {})
    assert len(threads()) == 1
    wait_for(lambda: store._db._checkpointer.pages_left_to_writers == 0)
    store.append("s", "t", {})
    assert autocheckpoint(store) == 0


@fixed_sqlite
def test_a_setting_that_cannot_be_changed_is_an_error_of_the_store(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(maintain_every=None)
    store.create_session("s")

    class Failing:
        in_transaction = False

        def execute(self, _: str) -> None:
            raise driver.dbapi.OperationalError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(store._db._checkpointer, "pages_left_to_writers", 300)
        patch.setattr(store._db.writer, "driver", Failing())
        with pytest.raises(StoreUnavailable, match="out of memory"):
            store.append("s", "t", {})
    assert store.append("s", "t", {}).seq == 1


@fixed_sqlite
def test_a_log_that_has_grown_is_in_the_file_soon_though_nobody_writes_any_more(open_store: OpenStore, path: Path) -> None:
    store = open_store()
    store.create_session("s")
    store.append_many("s", [])
    for _ in range(6):
        store.append("s", "t", "x" * 1_000_000)
    assert log_of(path)[0] > CHECKPOINT_PAGES
    wait_for(lambda: log_of(path)[0] - log_of(path)[1] < CHECKPOINT_PAGES)


@fixed_sqlite
def test_a_connection_that_sqlite_can_open_for_reading_only_is_not_kept(
    open_store: OpenStore, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(maintain_every=None)

    def for_reading(connections: Connections, _: int) -> Any:  # as when no descriptor is free at that moment
        return driver.dbapi.connect(connections.target.uri("mode=ro"), uri=True, isolation_level=None, check_same_thread=False)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "aegis_store"):
        patch.setattr(Connections, "_connect", for_reading)
        store.create_session("s")
        wait_for(lambda: "for reading only just now" in caplog.text)
    for _ in range(6):
        store.append("s", "t", "x" * 1_000_000)
    wait_for(lambda: log_of(path)[0] - log_of(path)[1] < CHECKPOINT_PAGES)


@fixed_sqlite
def test_a_writer_that_never_pauses_does_not_make_the_log_grow_without_bound(
    open_store: OpenStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "LOG_PAGES_MAX", 500)
    monkeypatch.setattr(checkpointer, "LOG_PAGES_LIMIT", 1000)
    store, reader = open_store(), open_store(read_only=True)
    store.create_session("s", max_events=100)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            store.append("s", "t", "x" * 8000)
            number += 1
            if number % 10 == 0:
                reader.read("s", limit=5)

    writer = threading.Thread(target=write)
    writer.start()
    longest, shorter = 0, 0

    def began_anew() -> bool:
        nonlocal longest, shorter
        pages = log_of(path)[0]
        shorter += pages < longest
        longest = pages
        return shorter >= 3

    try:
        wait_for(began_anew)
    finally:
        stop.set()
        writer.join()
    assert store.get_session("s").event_count == 100


@fixed_sqlite
def test_a_long_log_is_begun_anew_when_little_waits(open_store: OpenStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round beside the writers leaves what came in during it: here 300 pages, then 30, then none."""
    store = open_store()
    acts: list[str] = []
    leaves = iter([(600, 0), (900, 600), (930, 900), (930, 930)])
    log = checkpointer._Log(0, 0)

    def told(_: object, mode: str) -> Any:
        nonlocal log
        acts.append(mode)
        if mode == "NOOP":
            log = checkpointer._Log(*next(leaves))
        return log

    monkeypatch.setattr(checkpointer, "LOG_PAGES_MAX", 500)
    monkeypatch.setattr(checkpointer, "LOG_PAGES_FEW", 20)
    monkeypatch.setattr(checkpointer, "_checkpoint", told)
    assert store._db._checkpointer._keep_log_short(None) == 930
    assert acts == ["NOOP", "PASSIVE", "NOOP", "PASSIVE", "NOOP", "PASSIVE", "NOOP", "RESTART"]


@fixed_sqlite
def test_a_checkpoint_that_fails_is_logged_and_tried_again(
    open_store: OpenStore, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise driver.dbapi.OperationalError("disk I/O error")

        patch.setattr(checkpointer, "_checkpoint", fail)
        with caplog.at_level(logging.WARNING):
            store.create_session("s")
            wait_for(lambda: any("disk I/O error" in record.message for record in caplog.records))
    store.append("s", "t", {})
    assert autocheckpoint(store) == LOG_PAGES_OF_WRITERS
    for _ in range(6):
        store.append("s", "t", "x" * 1_000_000)
    wait_for(lambda: log_of(path)[0] - log_of(path)[1] < CHECKPOINT_PAGES)
