"""Ctrl-C may come at any moment: the append happened or did not, and the store goes on."""

import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aegis_store import UNLIMITED, EventStore, NewEvent, StoreBusy, turns

INTERRUPTS = 300


@pytest.fixture
def interrupt_within() -> Iterator[Callable[[float], None]]:
    """Raises KeyboardInterrupt in this thread at a random moment within the next so many seconds."""
    if sys.platform == "win32":
        pytest.skip("Windows has no timer signals")
    chance = random.Random(1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, seconds)) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupts that fall into destructors
@pytest.mark.parametrize("batch", [None, 3], ids=["append", "append_many"])
def test_an_interrupted_append_happened_or_did_not_and_the_store_goes_on(
    store: EventStore, interrupt_within: Callable[[float], None], batch: int | None
) -> None:
    store.create_session("s", max_events=UNLIMITED)
    acknowledged: list[int] = []

    def append() -> None:
        nonlocal acknowledged
        if batch:
            acknowledged += [event.seq for event in store.append_many("s", [NewEvent(type="t", payload=0)] * batch)]
        else:
            acknowledged.append(store.append("s", "t", 0).seq)

    started = time.perf_counter()
    append()
    some_appends_s = 0.002 + 2 * (time.perf_counter() - started)
    for _ in range(INTERRUPTS):
        try:
            interrupt_within(some_appends_s)
            for _ in range(200):  # an interrupt that falls into a destructor is lost
                append()
        except KeyboardInterrupt:
            continue
        except Exception:  # the report is not to be interrupted
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise
    signal.setitimer(signal.ITIMER_REAL, 0)
    last_seq = store.get_session("s").last_seq
    assert acknowledged == sorted(set(acknowledged))
    assert acknowledged[-1] <= last_seq
    assert not batch or last_seq % batch == 0

    from_another_thread = []
    thread = threading.Thread(target=lambda: from_another_thread.append(store.append("s", "t", 1).seq))
    thread.start()
    thread.join()
    assert from_another_thread == [last_seq + 1]


def interrupted_once(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but that Ctrl-C comes as it begins, the first time."""
    interrupts = iter([KeyboardInterrupt])

    def called(*given: Any) -> Any:
        for interrupt in interrupts:
            raise interrupt
        return call(*given)

    return called


def test_a_turn_in_the_line_is_given_back_whatever_ctrl_c_cuts_short(store: EventStore) -> None:
    store.create_session("s")
    line = store._db.turns
    with pytest.raises(KeyboardInterrupt), line.in_line(10, time.monotonic(), 10):
        line.withdraw = interrupted_once(line.withdraw)  # type: ignore[method-assign]
    assert line.owner == 0
    assert store.append("s", "t", 1).seq == 1


def test_who_was_interrupted_as_he_gave_his_turn_back_is_not_taken_for_the_one_who_writes_now(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_session("s")
    monkeypatch.setattr(store._db.turns.file_lock, "release", interrupted_once(store._db.turns.file_lock.release))
    with pytest.raises(KeyboardInterrupt):
        store.append("s", "t", 1)
    assert store._db.turns.owner == 0
    assert store.append("s", "t", 2).seq == 2


def test_who_is_interrupted_twice_while_he_waits_still_wakes_the_one_behind_him(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = turns._OfThread("", {}, 0)

    def interrupt_with_one_behind(statement: turns.Statement) -> None:
        statement.following = behind
        raise KeyboardInterrupt

    monkeypatch.setattr(store._db.turns, "put", interrupt_with_one_behind)
    monkeypatch.setattr(store._db.turns, "_leave", interrupted_once(store._db.turns._leave))
    with pytest.raises(KeyboardInterrupt):
        store._db.turns.outcome_of("", {}, 0, 1)
    assert not behind.done.locked()


class CutOff:
    """A cursor whose statement has run and given its row when Ctrl-C comes, before the row was fetched."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def execute(self, *statement: Any) -> "CutOff":
        self._cursor.execute(*statement)
        return self

    def fetchall(self) -> list[Any]:
        raise KeyboardInterrupt

    def close(self) -> None:
        self._cursor.close()


def test_an_append_that_was_cut_off_before_its_end_is_settled_when_the_caller_hears_of_it(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    store.create_session("s")
    store._db.writer.cursor = CutOff(store._db.writer.cursor)
    with pytest.raises(KeyboardInterrupt):
        store.append("s", "t", 0)
    last_seq = store.get_session("s").last_seq
    shell.execute("BEGIN IMMEDIATE")  # nobody holds the store
    shell.execute("ROLLBACK")
    assert store.append("s", "t", 1).seq == last_seq + 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer signals")
def test_a_signal_handler_that_appends_is_refused_or_served_and_waits_for_nothing_that_it_has_interrupted(
    store: EventStore,
) -> None:
    store.create_session("s", max_events=UNLIMITED)
    chance = random.Random(2)
    took_s: list[float] = []
    refused_after_ms: list[int] = []

    def append_too(*_: object) -> None:
        began_s = time.perf_counter()
        try:
            store.append("s", "handler", 1)
        except StoreBusy as error:
            refused_after_ms.append(error.waited_ms)
        took_s.append(time.perf_counter() - began_s)
        if len(took_s) < INTERRUPTS:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.002))

    before = signal.signal(signal.SIGALRM, append_too)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while len(took_s) < INTERRUPTS:
            store.append("s", "t", 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert max(took_s) < 5
    assert set(refused_after_ms) == {0}
