"""Appends that wait at the same time share a commit, and each has its own outcome all the same."""

import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    Event,
    EventIdConflict,
    EventStore,
    EventTooLarge,
    NewEvent,
    ScopedStore,
    SequenceConflict,
    SessionNotFound,
    StoreBusy,
    StoreClosed,
    StoreFull,
    driver,
    turns,
)
from aegis_store.schema import REVISION_SQL
from aegis_store.turns import Statement
from tests.conftest import OpenStore

WAIT_S = 60


@contextmanager
def held(store: EventStore | ScopedStore) -> Iterator[None]:
    """Somebody else of this process writes meanwhile."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store._db.turn():
            entered.set()
            assert leave.wait(WAIT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(WAIT_S)
    try:
        yield
    finally:
        leave.set()
        thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def line_of(store: EventStore) -> int:
    return len(store._db.turns._line)


def all_at_once(store: EventStore, calls: list[Callable[[], Event]]) -> list["Future[Event]"]:
    """Call each on a thread of its own, in this order, so that all wait at the same time; return when all have ended."""
    with ThreadPoolExecutor(len(calls)) as threads:
        with held(store):
            futures = []
            for number, call in enumerate(calls, 1):
                futures.append(threads.submit(call))
                wait_for(lambda number=number: line_of(store) == number)  # type: ignore[misc]
    return futures


def appends(store: EventStore, count: int) -> list[Callable[[], Event]]:
    return [lambda number=number: store.append("s", "t", number) for number in range(count)]  # type: ignore[misc]


@pytest.fixture
def patient(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> EventStore:
    """A store whose threads stand in the line as long as it takes."""
    store = open_store()
    monkeypatch.setattr(store._db, "patience_s", WAIT_S)
    store._db._checkpointer.stop()  # on a SQLite with the WAL-reset bug it would stand in the line with those of the test
    store.create_session("s", max_events=UNLIMITED)
    return store


def test_appends_that_wait_together_are_one_transaction_in_the_order_of_asking(patient: EventStore) -> None:
    seen: list[str] = []
    patient._db.writer.driver.set_trace_callback(seen.append)
    futures = all_at_once(patient, appends(patient, 20))
    patient._db.writer.driver.set_trace_callback(None)
    begun, *looked, committed = [statement for statement in seen if not statement.startswith(("INSERT", "--"))]
    assert (begun, looked, committed) == ("BEGIN IMMEDIATE", [REVISION_SQL], "COMMIT")
    assert [(future.result().seq, future.result().payload) for future in futures] == [(n + 1, n) for n in range(20)]
    assert [(event.seq, event.payload) for event in patient.read("s").events] == [(n + 1, n) for n in range(20)]


def test_an_append_is_acknowledged_after_the_commit_and_in_order_of_seq(
    patient: EventStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged: list[int] = []
    stored: list[int] = []

    def settle(statements: list[Statement]) -> None:
        acknowledged.extend(statement.rows[0][0] for statement in statements)
        with closing(driver.dbapi.connect(str(path))) as other:  # what another process sees at this moment
            stored.extend(other.execute("SELECT last_seq FROM session").fetchone())
        turns.settle(statements)

    monkeypatch.setattr("aegis_store.database.settle", settle)
    all_at_once(patient, appends(patient, 10))
    assert (acknowledged, stored) == (list(range(1, 11)), [10])


def test_a_lone_writer_has_no_thread_no_line_and_one_statement(store: EventStore) -> None:
    store.create_session("s")
    seen: list[str] = []
    store._db.writer.driver.set_trace_callback(seen.append)
    for number in range(50):
        store.append("s", "t", number)
    store._db.writer.driver.set_trace_callback(None)
    assert {text.split()[0] for text in seen if not text.startswith("--")} == {"INSERT"}
    assert store._db.turns._server is None


def test_an_error_of_one_does_not_touch_the_others(patient: EventStore) -> None:
    known = patient.append("s", "t", "known", event_id="a")
    futures = all_at_once(
        patient,
        [
            lambda: patient.append("s", "t", 1),
            lambda: patient.append("nobody", "t", 2),
            lambda: patient.append("s", "t", "x" * 1_100_000),
            lambda: patient.append("s", "t", 4, expected_seq=77),
            lambda: patient.append("s", "t", "other", event_id="a"),
            lambda: patient.append("s", "t", "known", event_id="a"),
            lambda: patient.append("s", "t", 7),
        ],
    )
    assert [future.result().payload for future in (futures[0], futures[6])] == [1, 7]
    assert futures[5].result() == known
    errors = (SessionNotFound, EventTooLarge, SequenceConflict, EventIdConflict)
    assert [type(future.exception()) for future in futures[1:5]] == list(errors)
    assert [event.payload for event in patient.read("s").events] == ["known", 1, 7]


def test_a_repeated_event_id_in_one_group_is_appended_once(patient: EventStore) -> None:
    futures = all_at_once(patient, [lambda: patient.append("s", "t", 0, event_id="same")] * 5)
    assert {future.result().seq for future in futures} == {1}
    assert patient.get_session("s").last_seq == 1


def test_of_a_group_that_meets_a_full_disk_each_is_told_its_own(patient: EventStore) -> None:
    pages = patient._db.writer.driver.execute("PRAGMA page_count").fetchone()[0]
    patient._db.writer.driver.execute(f"PRAGMA max_page_count = {pages + 3}").fetchall()
    sizes = [10, 900_000, 10, 900_000, 10]
    futures = all_at_once(patient, [lambda size=size: patient.append("s", "t", "x" * size) for size in sizes])  # type: ignore[misc]
    assert [type(future.exception()) for future in futures] == [type(None), StoreFull, type(None), StoreFull, type(None)]
    assert [event.seq for event in patient.read("s").events] == [futures[n].result().seq for n in (0, 2, 4)] == [1, 2, 3]


def test_a_group_and_transactions_take_turns_in_the_order_of_asking(patient: EventStore) -> None:
    calls = appends(patient, 4)
    calls.insert(2, lambda: patient.append_many("s", [NewEvent(type="t", payload="many")] * 2)[0])
    futures = all_at_once(patient, calls)
    assert [future.result().seq for future in futures] == [1, 2, 3, 5, 6]


# Waiting has an end


def test_who_waits_for_another_process_in_vain_is_told_how_long_and_has_written_nothing(
    open_store: OpenStore, shell: sqlite3.Connection
) -> None:
    store = open_store(busy_timeout_ms=300)
    store.create_session("s")
    shell.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(store.append, "s", "t", number) for number in range(8)]
    errors = [future.exception() for future in futures]
    assert all(isinstance(error, StoreBusy) and error.waited_ms >= 280 for error in errors), errors
    assert store.get_session("s").last_seq == 0
    shell.execute("COMMIT")
    assert store.append("s", "t", 0).seq == 1


def test_who_waits_for_another_thread_in_vain_is_told_on_time_how_long(open_store: OpenStore) -> None:
    store = open_store(busy_timeout_ms=400)
    store.create_session("s")
    with held(store):
        for write in (lambda: store.append("s", "t", 0), lambda: store.set_status("s", "closed")):
            started = time.monotonic()
            with pytest.raises(StoreBusy) as busy:
                write()
            assert 380 <= busy.value.waited_ms <= (time.monotonic() - started) * 1000
    assert store.append("s", "t", 1).seq == 1


def test_a_line_that_is_not_served_is_gone_round(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store.create_session("s")
    with ThreadPoolExecutor(3) as threads, held(store):
        threads.submit(time.sleep, 0).result()
        list(threads.map(time.sleep, [0.01] * 3))  # all threads are there
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_start)
            futures = [threads.submit(store.append, "s", "t", number) for number in range(3)]
            time.sleep(0.05)
    assert sorted(future.result().seq for future in futures) == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_thread_that_serves_the_line_is_replaced_when_it_dies(patient: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise MemoryError

    patient._db.patience_s = 0.3
    with monkeypatch.context() as patch:
        patch.setattr(patient._db.turns, "_carry_out", die)
        dead = all_at_once(patient, appends(patient, 2))
    assert sorted(future.result().seq for future in dead) == [1, 2]  # they went round it
    alive = all_at_once(patient, appends(patient, 3))
    assert sorted(future.result().seq for future in alive) == [3, 4, 5]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_shared_a_commit_is_told_so_at_once_though_the_bookkeeping_after_it_fails(
    patient: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient._db, "patience_s", 10)
    monkeypatch.setattr(patient._db.metrics, "committed", fail_for_want_of_memory)
    began_s = time.monotonic()
    futures = all_at_once(patient, appends(patient, 2))
    assert [future.result().seq for future in futures] == [1, 2]
    assert time.monotonic() - began_s < 5
    assert patient.get_session("s").last_seq == 2


def fail_for_want_of_memory(*_: Any) -> None:
    raise MemoryError


class OutOfMemory:
    """A cursor that has no memory left for COMMIT, nor for being closed."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def execute(self, sql: str, *parameters: Any) -> Any:
        if sql == "COMMIT":
            raise MemoryError
        return self._cursor.execute(sql, *parameters)

    def close(self) -> None:
        self._cursor.close()
        raise MemoryError


def test_of_a_group_that_can_be_neither_committed_nor_undone_nobody_is_told_that_it_is_stored(patient: EventStore) -> None:
    patient._db.patience_s = 5
    patient._db.writer.cursor = OutOfMemory(patient._db.writer.cursor)
    futures = all_at_once(patient, appends(patient, 3))
    told = [future.result().seq for future in futures if future.exception() is None]
    with EventStore.open(patient._db.target.path, read_only=True) as reader:
        assert [event.seq for event in reader.read("s").events] == told
    assert patient.append("s", "t", "next").seq == len(told) + 1


# Those who shared a commit come again


@pytest.fixture
def slow(patient: EventStore, monkeypatch: pytest.MonkeyPatch) -> EventStore:
    """A store whose shared commits take 0.2 s, so that the next one waits for those who shared it up to 0.4 s."""
    monkeypatch.setattr(turns, "_COMING_S", 0.4)
    commit = patient._db.writer.commit

    def commit_slowly(group: list[Statement]) -> list[int]:
        time.sleep(0.2)
        return commit(group)

    monkeypatch.setattr(patient._db.writer, "commit", commit_slowly)
    return patient


def commits_of(store: EventStore) -> int:
    return store.stats().commit_events.count


def test_those_who_shared_a_commit_share_the_next_one_too(slow: EventStore) -> None:
    all_at_once(slow, appends(slow, 3))
    assert commits_of(slow) == 1
    with ThreadPoolExecutor(3) as threads:
        for append in appends(slow, 3):
            threads.submit(append)
            time.sleep(0.02)  # the first one would have written alone
    assert (commits_of(slow), slow.get_session("s").last_seq) == (2, 6)


def test_where_they_do_not_come_one_commit_waits_for_them_and_the_next_does_not(slow: EventStore) -> None:
    all_at_once(slow, appends(slow, 2))
    assert not slow._db.turns.nobody_writes()
    wait_for(slow._db.turns.nobody_writes)
    began_s = time.monotonic()
    slow.append("s", "t", "alone")
    all_at_once(slow, appends(slow, 2))
    wait_for(slow._db.turns.nobody_writes)
    assert time.monotonic() - began_s < 0.55  # 0.2 for the commit; 0.4 more if it had waited


def test_the_threads_of_one_commit_are_woken_each_by_the_one_before_it() -> None:
    waiting = [turns._OfThread("", {}, 0) for _ in range(3)]
    turns.settle(list(waiting))
    assert [one.is_settled for one in waiting] == [True, True, True]
    assert [one.done.locked() for one in waiting] == [False, True, True]
    waiting[0].wake_next()
    assert [one.done.locked() for one in waiting] == [False, False, True]
    waiting[1].wake_next()
    waiting[2].wake_next()
    assert not waiting[2].done.locked()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_new_server_waits_for_nobody_whom_a_dead_one_waited_for(slow: EventStore) -> None:
    all_at_once(slow, appends(slow, 2))
    slow._db.turns._expected = 100
    slow._db.turns._server = None
    assert slow.append("s", "t", "next").seq == 3


def test_closing_a_store_while_others_wait_ends_their_wait(open_store: OpenStore) -> None:
    store = open_store()
    store._db._checkpointer.stop()
    store.create_session("s")
    with ThreadPoolExecutor(5) as threads:
        with held(store):
            futures = [threads.submit(store.append, "s", "t", number) for number in range(4)]
            wait_for(lambda: line_of(store) == 4)
            closing = threads.submit(store.close)
        closing.result(WAIT_S)
    outcomes = [future.exception() for future in futures]
    assert all(outcome is None or isinstance(outcome, StoreClosed) for outcome in outcomes), outcomes
    with EventStore.open(store._db.target.path, prune_on_open=False) as again:
        assert again.get_session("s").last_seq == outcomes.count(None)


# Ctrl-C


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer signals")
def test_ctrl_c_in_the_line_leaves_it_and_nothing_was_appended(patient: EventStore) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with held(patient):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                patient.append("s", "t", 0)
            assert line_of(patient) == 0
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                patient.set_status("s", "closed")
            assert line_of(patient) == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (patient.get_session("s").last_seq, patient.get_session("s").status) == (0, "running")
    assert patient.append("s", "t", 1).seq == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer signals")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupts that fall into destructors
def test_interrupts_among_threads_that_write_harm_nobody(store: EventStore) -> None:
    store.create_session("s", max_events=UNLIMITED)
    stop = threading.Event()
    acknowledged: list[list[int]] = [[] for _ in range(4)]
    errors: list[BaseException] = []

    def write(seqs: list[int]) -> None:
        try:
            while not stop.is_set():
                seqs.append(store.append("s", "t", 0).seq)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is to show it
            errors.append(error)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    threads = [threading.Thread(target=write, args=(seqs,)) for seqs in acknowledged[1:]]
    before = signal.signal(signal.SIGALRM, interrupt)
    for thread in threads:
        thread.start()
    try:
        for number in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003 + 0.00002 * (number % 100))
                for _ in range(200):
                    acknowledged[0].append(store.append("s", "t", 0).seq)
            except KeyboardInterrupt:
                continue
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
    seqs = Counter(seq for one in acknowledged for seq in one)
    assert max(seqs.values()) == 1
    assert max(seqs) <= store.get_session("s").last_seq
    assert all(one == sorted(one) for one in acknowledged)
