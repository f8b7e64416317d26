"""Following: what is stored, then what comes, from whoever, once and in order, and what retention took meanwhile."""

import gc
import os
import queue
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    CursorAhead,
    EventsMissed,
    EventStore,
    EventsTruncated,
    InvalidInput,
    NewEvent,
    SessionNotFound,
    StoreClosed,
    driver,
    follow,
    watcher,
)
from tests.test_read import query_plans, vm_steps

OpenStore = Callable[..., EventStore]

WAIT_S = 60.0
NEVER_S = 600.0
END = object()

APPEND_BY_HAND = """
INSERT INTO event (session, seq, bytes_before, type, payload, occurred_at, recorded_at)
SELECT id, last_seq + 1, total_bytes, 'note', '"by hand"', 0, 0 FROM session WHERE session_id = 's'"""

WRITER = """
import sys
from aegis_store import EventStore
with EventStore.open(sys.argv[1], durability="process") as store:
    for number in range(int(sys.argv[3])):
        store.append(sys.argv[2], "t", number)
"""


@pytest.fixture(autouse=True)
def only_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers look when they are rung and at no other time, so that a bell that does not ring is noticed."""
    monkeypatch.setattr(follow, "FOLLOW_LOOK_S", NEVER_S)


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first look the watcher's thread does not look again: only commits of this process ring."""
    monkeypatch.setattr(watcher, "FOLLOW_POLL_S", NEVER_S)


class Reader:
    """A thread that reads a follower's iterator to its end. `next` is what it has found, its error, or END."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._found: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(events,), daemon=True)
        self._thread.start()

    def _run(self, events: Iterator[Any]) -> None:
        try:
            for event in events:
                self._found.put(event)
            self._found.put(END)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self._found.put(error)

    def next(self, longest_s: float = WAIT_S) -> Any:
        try:
            return self._found.get(timeout=longest_s)
        except queue.Empty:
            raise TimeoutError from None

    def many(self, count: int) -> list[Any]:
        return [self.next() for _ in range(count)]


def fill(store: EventStore, session_id: str, count: int, *, max_events: Any = UNLIMITED, type_: str = "t") -> None:
    store.ensure_session(session_id, max_events=max_events)
    store.append_many(session_id, [NewEvent(type=type_, payload=number) for number in range(count)])


def seqs(events: Any) -> list[int]:
    return [event.seq for event in events]


def wait_until(is_so: Callable[[], bool]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def waiting_reader(store: EventStore, *arguments: Any, **options: Any) -> Reader:
    """A reader who has found all that there is, and waits."""
    before = len(store._db.watcher._rings)
    reader = Reader(store.follow(*arguments, **options))
    wait_until(lambda: len(store._db.watcher._rings) > before)
    return reader


def watching_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "aegis-store watcher"]


# What is stored, then what comes


def test_a_follower_gets_what_is_stored_then_what_comes(store: EventStore) -> None:
    fill(store, "s", 250)
    reader = Reader(store.follow("s"))
    assert seqs(reader.many(250)) == list(range(1, 251))
    appended = store.append("s", "t", {"new": True})
    assert reader.next() == appended


def test_a_follower_of_the_store_gets_the_events_of_all_sessions_by_position(store: EventStore) -> None:
    fill(store, "a", 120)
    fill(store, "b", 120)
    reader = Reader(store.follow())
    found = reader.many(240)
    store.create_session("c")
    found += [store.append(session_id, "t", 0) and reader.next() for session_id in ("a", "c", "b")]
    assert found == store.read_all(limit=1000)


def test_a_follower_begins_after_its_cursor(store: EventStore) -> None:
    fill(store, "s", 5)
    assert seqs(store.follow("s", after=3, timeout=0)) == [4, 5]
    assert seqs(store.follow("s", after=5, timeout=0)) == []
    assert seqs(store.follow(after=2, timeout=0)) == [3, 4, 5]


@pytest.mark.parametrize(("last", "expected"), [(0, []), (2, [9, 10]), (5, [6, 7, 8, 9, 10]), (2**40, [6, 7, 8, 9, 10])])
@pytest.mark.parametrize("session_id", ["s", None])
def test_a_follower_may_begin_with_the_last_events(
    store: EventStore, session_id: str | None, last: int, expected: list[int]
) -> None:
    fill(store, "s", 10, max_events=5)
    events = store.follow(session_id, last=last, timeout=0)
    assert seqs(events) == expected


@pytest.mark.parametrize("session_id", ["s", None])
def test_the_last_events_are_found_without_looking_at_the_others(store: EventStore, session_id: str | None) -> None:
    fill(store, "s", 50)
    before = vm_steps(store, lambda: list(store.follow(session_id, last=5, timeout=0)))
    fill(store, "s", 3000)
    assert vm_steps(store, lambda: list(store.follow(session_id, last=5, timeout=0))) <= before + 10


def test_a_follower_of_the_store_counts_what_is_before_it_in_an_index(store: EventStore) -> None:
    fill(store, "s", 10, max_events=5)
    plans = query_plans(store, lambda: store.follow())
    assert [plan for plan in plans if "SCAN event" in plan] == []
    assert [plan for plan in plans if "event" in plan and "COVERING INDEX" in plan] != []


def test_types_lets_only_those_through(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_store.read.FILTERED_SCAN_EVENTS", 10)
    fill(store, "s", 1, type_="wanted")
    fill(store, "s", 55)  # a stretch that takes several looks
    fill(store, "s", 1, type_="wanted")
    reader = waiting_reader(store, "s", types=["wanted", "other"])
    store.append("s", "t", 0)
    store.append("s", "other", 0)
    assert seqs(reader.many(3)) == [1, 57, 59]


def test_a_read_only_store_can_be_followed(store: EventStore, open_store: OpenStore) -> None:
    store.create_session("s")
    reader = waiting_reader(open_store(read_only=True), "s")
    assert store.append("s", "t", 1) == reader.next()


# Order, no loss, no repetition


def test_with_four_threads_that_write_each_event_comes_once_and_in_order(store: EventStore) -> None:
    store.create_session("shared", max_events=UNLIMITED)
    readers = [Reader(store.follow()), Reader(store.follow("shared"))]

    def write(name: str) -> None:
        store.create_session(name, max_events=UNLIMITED)
        for number in range(200):
            store.append(name if number % 2 else "shared", "t", number)

    writers = [threading.Thread(target=write, args=(f"own-{number}",)) for number in range(4)]
    for writer in writers:
        writer.start()
    of_all, of_shared = readers[0].many(800), readers[1].many(400)
    for writer in writers:
        writer.join()
    assert of_all == store.read_all(limit=1000)
    assert seqs(of_shared) == list(range(1, 401))
    store.close()
    assert [reader.next() for reader in readers] == [END, END]  # and nothing came twice


def test_with_two_processes_that_write_each_event_comes_once_and_in_order(store: EventStore, path: Path) -> None:
    for session_id in ("a", "b"):
        store.create_session(session_id, max_events=UNLIMITED)
    readers = [waiting_reader(store), waiting_reader(store, "a")]
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, session_id, "150"]) for session_id in ("a", "b")]
    of_all, of_a = readers[0].many(300), readers[1].many(150)
    assert [writer.wait(WAIT_S) for writer in writers] == [0, 0]
    assert of_all == store.read_all(limit=1000)
    assert seqs(of_a) == list(range(1, 151))
    store.close()
    assert [reader.next() for reader in readers] == [END, END]


# Bells


@pytest.mark.usefixtures("no_polls")
def test_a_commit_of_this_process_rings_at_once(store: EventStore) -> None:
    store.create_session("s")
    reader = waiting_reader(store, "s")
    for number in range(5):
        assert store.append("s", "t", number) == reader.next()
        assert store.append_many("s", [NewEvent(type="t", payload=number)]) == [reader.next()]


@pytest.mark.usefixtures("no_polls")
def test_a_commit_that_waited_in_the_line_rings_too(store: EventStore) -> None:
    store.create_session("s")
    reader = waiting_reader(store, "s")
    with store._db.turns.lock:
        writer = threading.Thread(target=store.append, args=("s", "t", 1))
        writer.start()
        wait_until(lambda: bool(store._db.turns._line))
    assert reader.next().payload == 1
    writer.join()


@pytest.mark.usefixtures("no_polls")
def test_a_commit_through_another_store_object_of_the_file_rings_at_once(
    store: EventStore, open_store: OpenStore, path: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    other = open_store(link)
    store.create_session("s")
    reader = waiting_reader(store, "s")
    for number in range(5):
        assert other.append("s", "t", number) == reader.next()


@pytest.mark.usefixtures("no_polls")
def test_a_commit_between_the_last_look_and_the_first_wait_is_found(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_session("s")
    waiting_reader(store, "s")  # for which the watcher's thread has had its first look
    subscribe = store._db.watcher.subscribe

    def late(ring: watcher.Ring) -> None:
        if not store.get_session("s").last_seq:
            store.append("s", "t", 1)
        subscribe(ring)

    monkeypatch.setattr(store._db.watcher, "subscribe", late)
    assert Reader(store.follow("s")).next().payload == 1


def test_what_is_committed_elsewhere_rings(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    reader = waiting_reader(store, "s")
    for _ in range(3):
        shell.execute(APPEND_BY_HAND)
        assert reader.next().payload == "by hand"


def test_where_the_watcher_meets_an_error_it_goes_on(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_session("s")
    reader = waiting_reader(store, "s")
    data_version, failed = watcher.FileWatcher._data_version, threading.Event()

    def failing_once(_: watcher.FileWatcher) -> int:
        monkeypatch.setattr(watcher.FileWatcher, "_data_version", data_version)
        failed.set()
        raise driver.dbapi.OperationalError("disk I/O error")

    monkeypatch.setattr(watcher.FileWatcher, "_data_version", failing_once)
    assert failed.wait(WAIT_S)
    shell.execute(APPEND_BY_HAND)
    assert reader.next().payload == "by hand"


def test_without_a_thread_to_be_had_a_follower_looks_by_himself(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: watcher.Watcher) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(watcher.Watcher, "_start", none_left)
    monkeypatch.setattr(follow, "FOLLOW_LOOK_S", 0.02)
    store.create_session("s")
    reader = waiting_reader(store, "s")
    shell.execute(APPEND_BY_HAND)
    assert reader.next().payload == "by hand"


# Nothing is held


def checkpointed(shell: sqlite3.Connection) -> bool:
    """Whether the whole log could be brought into the file and cut off, which no open snapshot allows."""
    row: tuple[int, int, int] = shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return row == (0, 0, 0)


def test_between_two_events_and_while_waiting_no_snapshot_is_held(store: EventStore, shell: sqlite3.Connection) -> None:
    fill(store, "s", 150)
    for events in (store.follow("s"), store.follow()):
        assert next(events).seq == 1
        store.append("s", "t", 0)
        wait_until(lambda: checkpointed(shell))  # which may meet a checkpoint of the store's own
    reader = waiting_reader(store, "s", last=0)
    store.append("s", "t", 1)
    assert reader.next().payload == 1
    wait_until(lambda: checkpointed(shell))  # it looks once more, before it waits again


@pytest.mark.parametrize("leave", ["close", "drop", "end"])
def test_when_the_last_follower_has_gone_neither_a_thread_nor_a_connection_is_left(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    connect, connections = store._db.watcher._connect, []

    def noted() -> Any:
        connections.append(connect())
        return connections[-1]

    monkeypatch.setattr(store._db.watcher, "_connect", noted)
    store.create_session("s")
    followers: list[Any] = [store.follow("s", timeout=1.0 if leave == "end" else None) for _ in range(2)]
    threading.Timer(0.1, store.append, ("s", "t", 1)).start()
    assert [next(follower).payload for follower in followers] == [1, 1]
    assert len(watching_threads()) == 1
    while followers:
        follower = followers.pop()
        if leave == "end":
            assert list(follower) == []
        elif leave == "close":
            follower.close()
        del follower
    gc.collect()
    wait_until(lambda: not watching_threads())
    assert (watcher.awake, store._db.watcher._rings) == (set(), set())
    (connection,) = connections
    with pytest.raises(driver.dbapi.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_a_watcher_that_has_ended_begins_again_with_the_next_follower(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    for _ in range(2):
        assert list(store.follow("s", last=0, timeout=0.001)) == []
        wait_until(lambda: not watching_threads())
        reader = waiting_reader(store, "s", last=0, timeout=1.0)
        shell.execute(APPEND_BY_HAND)
        assert [reader.next().payload, reader.next()] == ["by hand", END]


# The end


def test_without_time_to_wait_a_follower_ends_with_what_is_stored(store: EventStore) -> None:
    fill(store, "s", 250)
    assert len(list(store.follow("s", timeout=0))) == len(list(store.follow(timeout=0))) == 250
    assert watching_threads() == []


def test_a_follower_ends_when_nothing_has_come_for_so_long(store: EventStore) -> None:
    fill(store, "s", 3)
    started_s = time.monotonic()
    assert seqs(store.follow("s", timeout=0.05)) == [1, 2, 3]
    assert 0.05 <= time.monotonic() - started_s < 10


def test_what_the_reader_does_with_an_event_is_no_time_of_waiting(store: EventStore) -> None:
    fill(store, "s", 1)
    events = store.follow("s", timeout=0.5)
    assert next(events).seq == 1
    time.sleep(0.6)
    threading.Timer(0.05, store.append, ("s", "t", 2)).start()
    assert next(events).payload == 2


def test_closing_the_store_ends_its_followers(store: EventStore) -> None:
    fill(store, "s", 150)
    waiting = [waiting_reader(store, "s", last=0), waiting_reader(store, last=0)]
    between = store.follow("s")
    assert next(between).seq == 1
    store.close()
    assert [reader.next() for reader in waiting] == [END, END]
    assert len(list(between)) == 99  # what it had read already
    assert (watching_threads(), watcher.awake) == ([], set())
    with pytest.raises(StoreClosed):
        store.follow("s")


def test_a_deleted_session_is_not_found_any_more(store: EventStore) -> None:
    fill(store, "s", 3)
    reader = waiting_reader(store, "s")
    assert seqs(reader.many(3)) == [1, 2, 3]
    store.delete_session("s")
    assert isinstance(reader.next(), SessionNotFound)


# What retention took


def test_a_cursor_that_cannot_be_honoured_is_refused_at_the_call(store: EventStore) -> None:
    fill(store, "s", 10, max_events=3)
    for session_id in ("s", None):
        with pytest.raises(EventsTruncated) as lost:
            store.follow(session_id, after=2)
        assert (lost.value.requested_seq, lost.value.first_seq, lost.value.last_seq) == (2, 8, 10)
        with pytest.raises(CursorAhead):
            store.follow(session_id, after=11)


def test_a_cursor_that_comes_to_be_ahead_is_told(store: EventStore) -> None:
    fill(store, "s", 3)
    for session_id in ("s", None):
        follower = follow.following(store._db, session_id, after=3, last=None, types=None, on_gap="skip")
        follower.cursor = 4  # as after a restore of an older store under the open one
        with pytest.raises(CursorAhead):
            follower.next_batch(store._db)


@pytest.mark.parametrize("session_id", ["s", None])
def test_a_follower_that_fell_behind_is_told(store: EventStore, session_id: str | None) -> None:
    fill(store, "s", 5, max_events=5)
    events = store.follow(session_id)
    assert seqs(next(events) for _ in range(5)) == [1, 2, 3, 4, 5]
    fill(store, "s", 20)
    with pytest.raises(EventsTruncated) as lost:
        next(events)
    assert (lost.value.requested_seq, lost.value.first_seq, lost.value.reason) == (5, 21, "max_events")


@pytest.mark.parametrize("session_id", ["s", None])
def test_a_follower_that_skips_finds_a_marker_in_the_place_of_what_went(store: EventStore, session_id: str | None) -> None:
    fill(store, "s", 5, max_events=5)
    events = store.follow(session_id, after=2, timeout=0, on_gap="skip")
    assert next(events) == store.read("s").events[2]
    fill(store, "s", 10)
    rest = list(events)
    removed_at = store.get_session("s").removed_at
    gap = {"after": 5, "removed_at": removed_at, "reason": "max_events"}
    if session_id:
        marker = EventsMissed(session_id="s", first_seq=11, first_position=None, count=5, **gap)  # type: ignore[arg-type]
    else:
        marker = EventsMissed(session_id=None, first_seq=None, first_position=11, count=None, **gap)  # type: ignore[arg-type]
    assert rest[2] == marker
    assert seqs(event for event in rest if event != marker) == [4, 5, 11, 12, 13, 14, 15]


def test_a_waiting_follower_that_skips_is_told_in_the_stream(store: EventStore) -> None:
    fill(store, "s", 1, max_events=2)
    reader = waiting_reader(store, "s", on_gap="skip")
    assert reader.next().seq == 1
    fill(store, "s", 10)
    marker, *events = reader.many(3)
    assert (marker.first_seq, marker.count, seqs(events)) == (10, 8, [10, 11])
    fill(store, "s", 1)
    assert reader.next().seq == 12


def holed(store: EventStore) -> None:
    """150 events of `old` from position 1 on, beyond which the events of others were removed."""
    fill(store, "old", 150)
    fill(store, "busy", 5, max_events=1)


def test_what_was_removed_before_the_call_is_not_missed_by_who_has_no_cursor(store: EventStore) -> None:
    holed(store)
    assert list(store.follow(timeout=0)) == store.read_all(limit=1000)
    assert [event.session_id for event in store.follow(timeout=0, last=2)] == ["old", "busy"]


def test_what_is_removed_while_such_a_follower_catches_up_is_told(store: EventStore) -> None:
    holed(store)
    events, skipping = store.follow(timeout=0), store.follow(timeout=0, on_gap="skip")
    assert next(events) == next(skipping)
    store.update_session("old", max_events=10)  # 101 to 140 have not been read
    assert seqs(next(events) for _ in range(99))[-1] == 100
    with pytest.raises(EventsTruncated) as lost:
        next(events)
    assert (lost.value.requested_seq, lost.value.first_seq) == (100, 155)
    rest = list(skipping)
    assert rest[99] == EventsMissed(
        session_id=None, after=100, first_seq=None, first_position=155, count=None, removed_at=None, reason=None
    )
    assert rest[100:] == store.read_all(limit=1000)


def test_what_it_has_read_may_go_while_a_follower_catches_up(store: EventStore) -> None:
    holed(store)
    events = store.follow(timeout=0)
    first = next(events)
    store.update_session("old", max_events=60)
    fill(store, "new", 120)
    found = [first, *events]
    assert [event.position for event in found] == [*range(1, 151), *range(155, 276)]


# At the call


@pytest.mark.parametrize(
    "options",
    [
        {"after": -1},
        {"after": "3"},
        {"last": -1},
        {"after": 1, "last": 1},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": True},
        {"timeout": "1"},
        {"types": []},
        {"types": "t"},
        {"on_gap": "ignore"},
    ],
    ids=str,
)
def test_arguments_are_checked_at_the_call(store: EventStore, options: dict[str, Any]) -> None:
    fill(store, "s", 5)
    with pytest.raises(InvalidInput):
        store.follow("s", **options)


def test_types_need_a_session(store: EventStore) -> None:
    with pytest.raises(InvalidInput, match="session_id"):
        store.follow(types=["t"])


def test_a_session_that_does_not_exist_is_told_at_the_call(store: EventStore) -> None:
    with pytest.raises(SessionNotFound):
        store.follow("s")


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_followers_stay_with_the_parent_of_a_forked_child(path: Path) -> None:
    program = """
import os, sys, threading
from aegis_store import EventStore, StoreClosed, watcher
store = EventStore.open(sys.argv[1], durability="process", maintain_every=None)
store.create_session("s")
store.append("s", "t", 1)
suspended = store.follow("s")
assert next(suspended).payload == 1
found = []
reader = threading.Thread(target=lambda: found.extend(event.payload for event in store.follow("s")))
reader.start()
while not watcher.awake:
    pass
child = os.fork()
if not child:
    assert watcher.awake == set()
    try:
        next(suspended)
    except StoreClosed:
        with EventStore.open(sys.argv[1], durability="process", maintain_every=None) as own:
            events = own.follow("s", last=0)
            timer = threading.Timer(0.1, own.append, ("s", "t", 2))
            timer.start()
            assert next(events).payload == 2
            timer.join()
        os._exit(0)
    os._exit(3)
assert os.waitpid(child, 0)[1] == 0
while len(found) < 2:
    pass
store.append("s", "t", 3)
while len(found) < 3:
    pass
store.close()
reader.join()
print(found)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(path)], capture_output=True, text=True, check=False, timeout=WAIT_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2, 3]\n", "")
