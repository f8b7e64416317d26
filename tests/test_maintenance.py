"""The maintenance of a process that lives long: what it does, when, and that one process at a time does it."""

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count, groupby, pairwise
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, InvalidInput, NewEvent, RetentionPolicy, SessionNotFound, driver
from aegis_store.checkpointer import Checkpointer
from aegis_store.retention import delete, maintenance, prune, truncate
from aegis_store.retention.maintenance import Maintenance
from aegis_store.sessions import now_us
from tests.crash.checks import assert_sound

OpenStore = Callable[..., EventStore]

HOUR = timedelta(hours=1)
SHORT = timedelta(milliseconds=20)
FAR = timedelta(days=3650)
WAIT_S = 60.0
SLICE = 5
COUNT = 3 * SLICE
"""Events of a session that goes in three slices."""
HOUR_US = 3_600_000_000
LEASE_US = 60_000_000


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncate, "PRUNE_SLICE_EVENTS", SLICE)


def add(store: EventStore, session_id: str, events: int, status: str = "running", **options: Any) -> None:
    store.create_session(session_id, status=status, **options)
    store.append_many(session_id, [NewEvent(type="t", payload=number) for number in range(events)])


def add_ended(store: EventStore, shell: sqlite3.Connection, session_id: str, ago: timedelta, events: int = COUNT) -> None:
    """A session that ended some time ago."""
    add(store, session_id, events, "closed")
    ended_at = now_us() - ago // timedelta(microseconds=1)
    shell.execute("UPDATE session SET ended_at = ? WHERE session_id = ?", (ended_at, session_id))


def counts(store: EventStore) -> dict[str, int]:
    return {session.session_id: session.event_count for session in store.list_sessions().sessions}


def turn(store: EventStore) -> float:
    """One turn of the store's maintenance, here and now: that of its own thread is an hour away."""
    assert store._maintenance is not None
    return store._maintenance._turn()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aegis-store maintenance"]


def claim(shell: sqlite3.Connection) -> tuple[Any, ...]:
    """Who is at work, and when word of it was last left."""
    row: tuple[Any, ...] = shell.execute("SELECT maintainer, maintained_at FROM store").fetchone()
    return row


def set_claim(shell: sqlite3.Connection, maintainer: str | None, at_us: int) -> None:
    shell.execute("UPDATE store SET maintainer = ?, maintained_at = ?", (maintainer, at_us))


class Turns:
    """Counts the turns that had their go at the store."""

    def __init__(self) -> None:
        self._begun = 0
        self._changed = threading.Condition()

    def begin(self) -> None:
        with self._changed:
            self._begun += 1
            self._changed.notify_all()

    def wait_for(self, turns: int) -> None:
        """Wait until so many turns have begun and ended since the call."""
        with self._changed:
            wanted = self._begun + turns + 1
            assert self._changed.wait_for(lambda: self._begun >= wanted, WAIT_S)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    counted, whole_turn = Turns(), Maintenance._prune

    def counting(self: Maintenance) -> None:
        counted.begin()
        whole_turn(self)

    monkeypatch.setattr(Maintenance, "_prune", counting)
    return counted


# The thread


def test_an_open_store_has_one_thread_of_maintenance(path: Path) -> None:
    with EventStore.open(path):
        (thread,) = threads()
        assert thread.daemon


@pytest.mark.parametrize(
    "options", [{"maintain_every": None}, {"read_only": True}, {"read_only": True, "maintain_every": SHORT}]
)
def test_a_store_that_wants_no_maintenance_or_is_read_only_has_no_thread(path: Path, options: dict[str, Any]) -> None:
    with EventStore.open(path, **options) as store:
        assert threads() == []
        assert store.health().maintain_every is None


def test_maintenance_prunes_without_being_asked(open_store: OpenStore, turns: Turns) -> None:
    store = open_store(maintain_every=SHORT)
    add(store, "s", COUNT, "closed")
    turns.wait_for(3)
    assert counts(store) == {"s": 0}


def test_maintenance_prunes_again_and_again(open_store: OpenStore, turns: Turns) -> None:
    store = open_store(maintain_every=SHORT)
    for session_id in ("a", "b", "c"):
        add(store, session_id, COUNT, "closed")
        turns.wait_for(3)
        assert counts(store)[session_id] == 0


def test_maintenance_goes_on_though_nothing_was_pruned_at_the_start(open_store: OpenStore, turns: Turns) -> None:
    store = open_store(maintain_every=SHORT, prune_on_open=False)
    add(store, "s", COUNT, "closed")
    turns.wait_for(3)
    assert counts(store) == {"s": 0}


def test_maintenance_leaves_sessions_that_live_or_are_held(open_store: OpenStore, turns: Turns) -> None:
    store = open_store(maintain_every=SHORT)
    add(store, "live", COUNT)
    add(store, "held", COUNT)
    store.update_session("held", hold=True)
    store.set_status("held", "failed")
    turns.wait_for(3)
    assert counts(store) == {"live": COUNT, "held": COUNT}


@pytest.mark.parametrize("every", [timedelta(microseconds=1), timedelta.max])
def test_maintenance_may_be_as_frequent_or_as_rare_as_a_timedelta_can_say(path: Path, every: timedelta) -> None:
    with EventStore.open(path, maintain_every=every) as store:
        assert store.health().maintain_every == every
        assert store.create_session("s").session_id == "s"
    assert threads() == []


@pytest.mark.parametrize("every", [timedelta(0), timedelta(microseconds=-1), 3600, 1.5, "1h", True])
def test_a_span_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, every: Any) -> None:
    with pytest.raises(InvalidInput, match="maintain_every"):
        EventStore.open(tmp_path / "new.db", maintain_every=every)
    assert (list(tmp_path.iterdir()), threads()) == ([], [])


def test_writers_and_maintenance_go_on_beside_each_other(open_store: OpenStore, turns: Turns) -> None:
    store = open_store(maintain_every=timedelta(milliseconds=1))
    store.create_session("s", max_events=1000)

    def end_sessions() -> None:
        for number in range(20):
            add(store, f"ended {number}", SLICE, "closed")

    def append() -> None:
        for _ in range(100):
            store.append("s", "t", 1)

    workers = [threading.Thread(target=target) for target in (end_sessions, append, append)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT_S)
    turns.wait_for(3)
    left = counts(store)
    assert left.pop("s") == 200
    assert set(left.values()) == {0}


# What it removes


@pytest.mark.parametrize(("ago", "left"), [(timedelta(0), COUNT), (HOUR * 0.9, COUNT), (HOUR * 1.1, 0)])
def test_a_session_that_ended_less_than_a_turn_ago_is_left_alone(
    store: EventStore, shell: sqlite3.Connection, ago: timedelta, left: int
) -> None:
    add_ended(store, shell, "s", ago)
    turn(store)
    assert counts(store) == {"s": left}


@pytest.mark.parametrize(("ago", "left"), [(HOUR * 1.9, COUNT), (HOUR * 2.1, 0)])
def test_a_grace_longer_than_a_turn_counts(store: EventStore, shell: sqlite3.Connection, ago: timedelta, left: int) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=2 * HOUR))
    add_ended(store, shell, "s", ago)
    turn(store)
    assert counts(store) == {"s": left}


def test_what_maintenance_leaves_alone_an_explicit_prune_removes(store: EventStore) -> None:
    add(store, "s", COUNT, "closed")
    turn(store)
    assert store.prune().events_removed == COUNT


def test_events_over_their_age_go(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=timedelta(microseconds=1)))
    add(store, "s", COUNT)
    turn(store)
    assert counts(store) == {"s": 0}


def test_bytes_over_the_limit_of_a_session_go(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=4))
    add(store, "s", 9)
    turn(store)
    assert counts(store) == {"s": 4}


def test_a_store_over_its_budget_is_brought_down_to_four_fifths(store: EventStore) -> None:
    add(store, "s", 9)
    store.set_retention_policy(RetentionPolicy(max_total_bytes=5))
    turn(store)
    assert counts(store) == {"s": 4}


def test_a_record_that_is_due_is_forgotten(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=2 * HOUR))
    add_ended(store, shell, "sooner", HOUR * 1.9)
    add_ended(store, shell, "later", HOUR * 2.1)
    turn(store)
    assert counts(store) == {"sooner": 0}


@pytest.mark.parametrize(
    "events",
    [3, 0],
)
def test_a_record_is_not_forgotten_within_a_turn_of_its_end(store: EventStore, events: int) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=timedelta(0)))
    add(store, "s", events, "closed")
    turn(store)
    assert counts(store) == {"s": events}


@pytest.fixture
def pending(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose deletion was interrupted once it was marked."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    add(store, "deleted", COUNT)
    with monkeypatch.context() as patch:
        patch.setattr(delete, "carry_out", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.delete_session("deleted")


WARN = RetentionPolicy(mode="warn")


@pytest.mark.parametrize(
    "policy",
    [
        RetentionPolicy(),
        RetentionPolicy(terminal_grace=FAR),
        WARN,
    ],
    ids=["default", "a long grace", "warn"],
)
def test_a_deletion_that_was_interrupted_is_finished(
    store: EventStore, shell: sqlite3.Connection, pending: None, policy: RetentionPolicy
) -> None:
    store.set_retention_policy(policy)
    turn(store)
    assert shell.execute("SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM session)").fetchone() == (0, 0)


def test_a_session_that_maintenance_removes_from_may_be_deleted_meanwhile(
    open_store: OpenStore, store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    other = open_store(prune_on_open=False)

    def delete_it(_: float) -> None:
        monkeypatch.undo()
        other.delete_session("s")

    monkeypatch.setattr(prune, "let_writers_through", delete_it)
    turn(store)
    assert shell.execute("SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM session)").fetchone() == (0, 0)
    with pytest.raises(SessionNotFound):
        store.get_session("s")


def test_in_mode_warn_maintenance_removes_nothing(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(WARN)
    add_ended(store, shell, "s", 2 * HOUR)
    turn(store)
    assert counts(store) == {"s": COUNT}


def test_in_mode_warn_maintenance_says_what_it_would_remove(
    store: EventStore, shell: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    store.set_retention_policy(WARN)
    add_ended(store, shell, "s", 2 * HOUR)
    turn(store)
    (record,) = [record for record in caplog.records if record.name == "aegis_store"]
    assert record.levelno == logging.WARNING
    assert f"maintenance would remove {COUNT} events" in record.message


def test_in_mode_warn_the_history_tells_what_would_have_gone(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(WARN)
    add_ended(store, shell, "s", 2 * HOUR)
    turn(store)
    (run,) = store.prune_history()
    assert (run.trigger, run.outcome, run.events, run.sessions) == ("maintenance", "reported", COUNT, 1)
    assert dict(run.by_reason) == {"terminal_grace": COUNT}


# What it leaves word of


def test_a_turn_is_a_run_in_the_history(store: EventStore, shell: sqlite3.Connection) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    turn(store)
    (run,) = store.prune_history()
    assert (run.trigger, run.outcome, run.events, run.sessions) == ("maintenance", "done", COUNT, 1)


def test_a_turn_with_nothing_to_do_leaves_no_row_and_no_line(store: EventStore, caplog: pytest.LogCaptureFixture) -> None:
    add(store, "s", COUNT)
    with caplog.at_level(logging.DEBUG, "aegis_store"):
        turn(store)
    assert (store.prune_history(), caplog.records) == ([], [])


def test_a_turn_that_removes_something_is_one_line_in_the_log(
    store: EventStore, shell: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    with caplog.at_level(logging.INFO, "aegis_store"):
        turn(store)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert f"maintenance removed {COUNT} events" in record.message
    assert f"terminal_grace {COUNT}" in record.message


def test_health_tells_when_maintenance_was_last_at_work(store: EventStore) -> None:
    assert store.health().maintained_at is None
    before = datetime.now(UTC)
    turn(store)
    assert before <= (store.health().maintained_at or before - HOUR) <= datetime.now(UTC)


def test_nobody_is_at_work_after_a_turn(store: EventStore, shell: sqlite3.Connection) -> None:
    turn(store)
    assert claim(shell)[0] is None


def test_the_process_that_is_at_work_is_named_while_it_is(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    names = []
    monkeypatch.setattr(prune, "let_writers_through", lambda _: names.append(claim(shell)[0]))
    turn(store)
    assert len(names) == 3
    assert all(name.startswith(f"{os.getpid()}-") for name in names)


def test_each_slice_leaves_word_that_the_maintenance_is_alive(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    moments = []
    monkeypatch.setattr(prune, "let_writers_through", lambda _: moments.append(claim(shell)[1]))
    turn(store)
    assert moments[0] < moments[1] < moments[2]


# Errors


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("boom")


def test_a_turn_that_fails_is_told_in_the_log_and_in_health(
    open_store: OpenStore, turns: Turns, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(maintain_every=SHORT)
    monkeypatch.setattr(maintenance, "plan", fail)
    turns.wait_for(1)
    health = store.health()
    assert (health.ok, health.maintenance_error) == (False, "RuntimeError: boom")
    assert any("boom" in problem for problem in health.problems)
    assert any(record.levelno == logging.ERROR and "boom" in record.message for record in caplog.records)


def test_after_a_turn_that_failed_the_next_one_goes_on(
    open_store: OpenStore, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(maintain_every=SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "plan", fail)
        add(store, "s", COUNT, "closed")
        turns.wait_for(2)
        assert counts(store) == {"s": COUNT}
    turns.wait_for(3)
    assert counts(store) == {"s": 0}
    assert (store.health().ok, store.health().maintenance_error) == (True, None)


def test_after_a_turn_that_failed_nobody_is_at_work(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "plan", fail)
    with pytest.raises(RuntimeError):
        turn(store)
    assert claim(shell)[0] is None


def test_a_turn_that_fails_between_two_slices_is_told_in_the_history(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    monkeypatch.setattr(prune, "let_writers_through", fail)
    with pytest.raises(RuntimeError):
        turn(store)
    (run,) = store.prune_history()
    assert (run.outcome, run.events) == ("failed: RuntimeError", SLICE)
    assert claim(shell)[0] is None


def test_maintenance_of_a_store_that_others_hold_goes_on_when_it_is_free(
    open_store: OpenStore, turns: Turns, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(maintain_every=SHORT, busy_timeout_ms=0)
    add(store, "s", COUNT, "closed")
    failed = threading.Event()
    monkeypatch.setattr(maintenance, "log", lambda *_, **__: failed.set())
    shell.execute("BEGIN IMMEDIATE")
    assert failed.wait(WAIT_S)
    shell.execute("COMMIT")
    turns.wait_for(3)
    assert counts(store) == {"s": 0}
    assert store.health().maintenance_error is None


def test_a_claim_that_could_not_be_given_back_is_no_one_elses(
    open_store: OpenStore, turns: Turns, shell: sqlite3.Connection
) -> None:
    store = open_store(maintain_every=SHORT)
    turns.wait_for(1)
    assert store._maintenance is not None
    set_claim(shell, store._maintenance._me, now_us())
    started = time.monotonic()
    add(store, "s", COUNT, "closed")
    turns.wait_for(3)
    assert counts(store) == {"s": 0}
    assert time.monotonic() - started < 30  # and not after the minute in which others take it for dead


# Closing


def test_closing_a_store_ends_its_thread(path: Path) -> None:
    EventStore.open(path, maintain_every=SHORT).close()
    assert threads() == []


def test_closing_a_store_does_not_wait_for_the_next_turn(path: Path) -> None:
    store = EventStore.open(path, maintain_every=HOUR)
    closer = threading.Thread(target=store.close)
    closer.start()
    closer.join(WAIT_S)
    assert not closer.is_alive()


def test_closing_a_maintained_store_twice_is_closing_it_once(path: Path) -> None:
    store = EventStore.open(path, maintain_every=SHORT)
    store.close()
    store.close()
    assert threads() == []


def test_closing_one_store_leaves_the_maintenance_of_another(open_store: OpenStore, turns: Turns) -> None:
    store = open_store(maintain_every=SHORT)
    open_store(maintain_every=SHORT).close()
    add(store, "s", COUNT, "closed")
    turns.wait_for(3)
    assert counts(store) == {"s": 0}


def test_a_store_that_fails_to_open_leaves_no_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventStore, "_prune_at_start", fail)
    with pytest.raises(RuntimeError):
        EventStore.open(path, maintain_every=SHORT)
    assert threads() == []


class Halt:
    """Takes the place of a function: who calls it the first time stops there until he is let go."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.reached = threading.Event()
        self._let_go = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self.reached.set()
        assert self._let_go.wait(WAIT_S)
        return self.function(*arguments)

    def close_meanwhile(self, store: EventStore) -> None:
        """Close the store while its maintenance stands here, and let that go as soon as the closing has begun."""
        assert self.reached.wait(WAIT_S)
        closer = threading.Thread(target=store.close)
        closer.start()
        assert store._maintenance is not None
        assert store._maintenance._stopped.wait(WAIT_S)
        self._let_go.set()
        closer.join(WAIT_S)
        assert not closer.is_alive()


HALTS = {"inside of a slice": "truncate_slice", "between two slices": "let_writers_through"}


@pytest.mark.parametrize("function", HALTS.values(), ids=list(HALTS))
def test_closing_waits_for_the_slice_under_way_and_for_no_other(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    halt = Halt(getattr(truncate, function))
    store = open_store(maintain_every=SHORT)
    monkeypatch.setattr(prune, function, halt)
    add(store, "s", COUNT, "closed")
    halt.close_meanwhile(store)
    assert threads() == []
    again = open_store(prune_on_open=False)
    assert counts(again) == {"s": COUNT - SLICE}
    (run,) = again.prune_history()
    assert (run.outcome, run.events) == ("interrupted", SLICE)


def test_a_maintenance_that_was_closed_at_work_leaves_the_next_free_to_begin(
    open_store: OpenStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    halt = Halt(truncate.let_writers_through)
    store = open_store(maintain_every=SHORT)
    monkeypatch.setattr(prune, "let_writers_through", halt)
    add(store, "s", COUNT, "closed")
    halt.close_meanwhile(store)
    assert claim(shell)[0] is None


def test_the_maintenance_itself_may_close_the_store(open_store: OpenStore) -> None:
    store = open_store(maintain_every=SHORT)
    closed = threading.Event()

    class Closer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            store.close()
            closed.set()

    handler = Closer(logging.INFO)
    logging.getLogger("aegis_store").addHandler(handler)
    level = logging.getLogger("aegis_store").level
    logging.getLogger("aegis_store").setLevel(logging.INFO)
    try:
        add(store, "s", COUNT, "closed")
        assert closed.wait(WAIT_S)
    finally:
        logging.getLogger("aegis_store").removeHandler(handler)
        logging.getLogger("aegis_store").setLevel(level)
    for thread in threads():
        thread.join(WAIT_S)
    assert threads() == []


# One at a time


def test_a_second_process_leaves_the_turn_to_the_first(
    open_store: OpenStore, store: EventStore, shell: sqlite3.Connection
) -> None:
    other = open_store()
    turn(store)
    add_ended(store, shell, "s", 2 * HOUR)
    wait_s = turn(other)
    assert counts(store) == {"s": COUNT}
    assert 3500 < wait_s <= 3600


def test_the_next_turn_is_an_hour_away_from_the_last_of_whoever(store: EventStore, shell: sqlite3.Connection) -> None:
    set_claim(shell, None, now_us() - HOUR_US * 3 // 4)
    assert 800 < turn(store) <= 900


CLAIMS = {
    # (maintainer, silent for): whether the turn is taken
    "nobody ever": (None, None, True),
    "just done": (None, 0, False),
    "done almost a turn ago": (None, HOUR_US * 9 // 10, False),
    "done a turn ago": (None, HOUR_US * 11 // 10, True),
    "at work": ("other", 0, False),
    "at work, silent within the lease": ("other", LEASE_US * 9 // 10, False),
    "at work, silent for a turn": ("other", HOUR_US * 11 // 10, True),
    "done, by a clock that went back for ever": (None, -1000 * HOUR_US, True),
    "at work, by a clock that went back for ever": ("other", -1000 * HOUR_US, True),
}


@pytest.mark.parametrize("raced", [False, True], ids=["", "raced"])
@pytest.mark.parametrize(("maintainer", "silent_us", "taken"), CLAIMS.values(), ids=list(CLAIMS))
def test_a_turn_is_taken_when_it_is_due_and_nobody_is_at_work(
    store: EventStore,
    shell: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    maintainer: str | None,
    silent_us: int | None,
    taken: bool,
    raced: bool,
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    if raced:  # another process was faster: the turn was still due when this one looked, just before
        monkeypatch.setattr(maintenance, "_left_us", lambda *_: 0)
    if silent_us is not None:
        set_claim(shell, maintainer, now_us() - silent_us)
    turn(store)
    assert counts(store) == {"s": 0 if taken else COUNT}


@pytest.mark.parametrize(("silent_us", "taken"), [(LEASE_US * 9 // 10, False), (LEASE_US * 11 // 10, True)])
def test_who_is_silent_for_the_lease_is_taken_for_dead(
    open_store: OpenStore, shell: sqlite3.Connection, silent_us: int, taken: bool
) -> None:
    store = open_store(maintain_every=timedelta(seconds=40))
    add_ended(store, shell, "s", 2 * HOUR)
    set_claim(shell, "dead", now_us() - silent_us)
    turn(store)
    assert counts(store) == {"s": 0 if taken else COUNT}


@pytest.mark.parametrize("maintainer", [None, "dead"])
@pytest.mark.parametrize("ahead", [timedelta(seconds=1), timedelta(seconds=59), HOUR / 2, HOUR, HOUR * 1.5, FAR])
def test_a_clock_that_went_back_puts_the_next_turn_off_by_no_more_than_two(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, maintainer: str | None, ahead: timedelta
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    start_us = now_us()
    clock_us = start_us
    monkeypatch.setattr(maintenance, "now_us", lambda: clock_us)
    set_claim(shell, maintainer, start_us + ahead // timedelta(microseconds=1))
    while counts(store) == {"s": COUNT}:
        wait_s = turn(store)
        assert 0 < wait_s <= 3600
        clock_us += int(wait_s * 1e6)
        assert clock_us - start_us <= 3 * HOUR_US


def test_a_maintenance_that_was_overtaken_stops_and_removes_nothing_more(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    monkeypatch.setattr(prune, "let_writers_through", lambda _: set_claim(shell, "other", now_us()))
    turn(store)
    assert counts(store) == {"s": COUNT - SLICE}
    (run,) = store.prune_history()
    assert (run.outcome, run.events) == ("overtaken", SLICE)


def test_a_maintenance_that_was_overtaken_leaves_the_claim_of_the_other(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    monkeypatch.setattr(prune, "let_writers_through", lambda _: set_claim(shell, "other", 12345))
    turn(store)
    assert claim(shell) == ("other", 12345)


@pytest.mark.parametrize("function", ["forget", "settle"])
def test_a_maintenance_that_was_overtaken_forgets_and_notes_nothing_more(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=HOUR))
    add_ended(store, shell, "s", 2 * HOUR, SLICE)
    called: list[object] = []
    monkeypatch.setattr(prune, "let_writers_through", lambda _: set_claim(shell, "other", now_us()))
    monkeypatch.setattr(prune, function, lambda *_: called.append(1))
    turn(store)
    assert (counts(store), called) == ({"s": 0}, [])


def test_an_explicit_prune_does_not_wait_for_the_maintenance_of_another(store: EventStore, shell: sqlite3.Connection) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    set_claim(shell, "other", now_us())
    assert store.prune().events_removed == COUNT


# Several processes


class Helper:
    """Another process with the store open, and a line to it."""

    def __init__(self, context: ForkServerContext, task: Callable[..., None], *arguments: Any) -> None:
        self.line, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=task, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def hear(self, word: str) -> None:
        assert self.line.poll(WAIT_S), f"no {word!r}"
        assert self.line.recv() == word

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.join(WAIT_S)
        self.line.close()


Start = Callable[..., Helper]


@pytest.fixture
def start(context: ForkServerContext) -> Iterator[Start]:
    helpers: list[Helper] = []

    def start_one(task: Callable[..., None], *arguments: Any) -> Helper:
        helpers.append(Helper(context, task, *arguments))
        return helpers[-1]

    yield start_one
    for helper in helpers:
        helper.end()


def stop_after_a_slice(line: Connection, path: Path) -> None:
    """Maintain the store; after the first slice say so and wait for a word; say so as well when the turn is over."""
    patch = pytest.MonkeyPatch()
    patch.setattr(truncate, "PRUNE_SLICE_EVENTS", SLICE)
    whole_turn = Maintenance._turn

    def turn_and_say(self: Maintenance) -> float:
        wait_s = whole_turn(self)
        line.send("turn over")
        line.recv()  # there is no next one
        return wait_s

    def wait(_: float) -> None:
        line.send("at work")
        line.recv()

    patch.setattr(Maintenance, "_turn", turn_and_say)
    patch.setattr(prune, "let_writers_through", wait)
    patch.setattr(
        Checkpointer, "note_write", lambda _: None
    )  # it is not to be stopped amid a checkpoint, which may hold the store
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=SHORT):
        threading.Event().wait(WAIT_S)


def test_a_maintenance_that_was_killed_is_taken_over_after_its_lease(
    start: Start, store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, open_store: OpenStore
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    helper = start(stop_after_a_slice, store._db.target.path)
    helper.hear("at work")
    helper.end()
    soon = open_store(prune_on_open=False, maintain_every=timedelta(seconds=50))
    turn(soon)
    assert counts(store) == {"s": COUNT - SLICE}
    monkeypatch.setattr(maintenance, "now_us", lambda: now_us() + LEASE_US + 1)
    turn(soon)
    assert counts(store) == {"s": 0}
    after, killed = store.prune_history()
    assert (killed.outcome, killed.events) == (None, SLICE)
    assert (after.outcome, after.events) == ("done", COUNT - SLICE)


def test_a_maintenance_that_slept_past_its_lease_finds_out_and_removes_nothing_more(
    start: Start, store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, open_store: OpenStore
) -> None:
    add_ended(store, shell, "s", 2 * HOUR)
    helper = start(stop_after_a_slice, store._db.target.path)
    helper.hear("at work")
    helper.signal(signal.SIGSTOP)
    soon = open_store(prune_on_open=False, maintain_every=timedelta(seconds=50))
    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "now_us", lambda: now_us() + LEASE_US + 1)
        patch.setattr(maintenance, "run_job", lambda *_, **__: None)  # it has its turn, and leaves the events
        turn(soon)
    helper.line.send("go on")
    helper.signal(signal.SIGCONT)
    helper.hear("turn over")
    assert counts(store) == {"s": COUNT - SLICE}
    (run,) = store.prune_history()
    assert (run.outcome, run.events) == ("overtaken", SLICE)


def maintain_and_note(line: Connection, path: Path | str, notes: Path, number: int) -> None:
    """Make work and maintain the store; note who is at work in each slice, inside of its transaction."""
    patch = pytest.MonkeyPatch()
    patch.setattr(truncate, "PRUNE_SLICE_EVENTS", 2)
    patch.setattr(maintenance, "_left_us", lambda *_: 0)  # nobody waits until the other should be done: all try all the time
    turn_numbers, guard, whole_turn = count(), Maintenance._guard, Maintenance._prune
    current = 0

    def prune_numbered(self: Maintenance) -> None:
        nonlocal current
        current = next(turn_numbers)
        whole_turn(self)

    def guard_and_note(self: Maintenance, conn: Any) -> str | None:
        outcome = guard(self, conn)
        if outcome is None:
            descriptor = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{number} {current}\n".encode())
            os.close(descriptor)
        return outcome

    patch.setattr(Maintenance, "_prune", prune_numbered)
    patch.setattr(Maintenance, "_guard", guard_and_note)
    every = timedelta(milliseconds=5)
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=every) as store:
        line.send("ready")
        for session in count():
            if line.poll(0.2):
                break
            if store.stats().events < 200:  # so that turns come to an end however slow the machine is
                add(store, f"{number} {session}", 10, "closed")
        line.send("no more work")
        line.recv()
        line.recv()


WORKERS = 4


def workers_in(notes: Path) -> set[str]:
    return {line.split()[0] for line in notes.read_text().splitlines()}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def maintained_by_several(context: ForkServerContext, target: Path | str, notes: Path) -> list[str]:
    """Processes maintain the store all at once until each has had turns. Who did the slices, one after the other."""
    helpers = [Helper(context, maintain_and_note, target, notes, number) for number in range(WORKERS)]
    try:
        for helper in helpers:
            helper.hear("ready")
        wait_until(lambda: notes.exists() and len(workers_in(notes)) == WORKERS)
        for helper in helpers:
            helper.line.send("stop working")
            helper.hear("no more work")
        with EventStore.open(target, prune_on_open=False, maintain_every=None) as store:
            wait_until(lambda: not store.stats().events)
        for helper in helpers:
            helper.line.send("close")
            helper.process.join(WAIT_S)
    finally:
        for helper in helpers:
            helper.end()
    return notes.read_text().splitlines()


@pytest.fixture(scope="module")
def maintained(context: ForkServerContext, template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store that several processes have maintained, and who did the slices in turn."""
    directory = tmp_path_factory.mktemp("maintained")
    path = directory / "aegis.db"
    shutil.copyfile(template, path)
    notes = maintained_by_several(context, path, directory / "notes")
    assert_sound(path)
    return path, notes


def test_of_several_processes_one_at_a_time_maintains_the_store(maintained: tuple[Path, list[str]]) -> None:
    _, notes = maintained
    turns_in_order = [key for key, _ in groupby(notes)]
    assert len(turns_in_order) == len(set(turns_in_order)), "the slices of two turns are mixed"
    assert {key.split()[0] for key in turns_in_order} == {str(number) for number in range(WORKERS)}


def test_the_runs_of_several_processes_do_not_overlap_and_count_every_event_once(maintained: tuple[Path, list[str]]) -> None:
    path, _ = maintained
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        removed_events = store.stats().removed_events
        runs = store.prune_history(limit=1000)[::-1]
    assert {run.trigger for run in runs} == {"maintenance"}
    assert sum(run.events for run in runs) == removed_events > 0
    slack = timedelta(milliseconds=50)  # the beginning is told by the clock on the wall, the duration by a monotonic one
    for run, after in pairwise(runs):
        assert run.outcome in ("done", "interrupted")
        assert run.started_at + timedelta(seconds=run.duration_s) <= after.started_at + slack


# The end of a process

PROLOGUE = """
import os, sys, threading
from datetime import timedelta
from pathlib import Path
from aegis_store import EventStore, NewEvent
from aegis_store.retention import prune, truncate
from aegis_store.retention.maintenance import Maintenance

truncate.PRUNE_SLICE_EVENTS = 1
at_work = threading.Event()
let_writers_through = prune.let_writers_through


def tell(took_s):
    at_work.set()
    let_writers_through(took_s)


prune.let_writers_through = tell
store = EventStore.open(sys.argv[1], durability="process", prune_on_open=False, maintain_every=timedelta(milliseconds=5))
"""

ENDED = """
store.create_session("s", status="closed")
store.append_many("s", [NewEvent(type="t", payload=n) for n in range(1000)])
assert at_work.wait(60)
"""

ENDS = {
    "without work": "",
    "at work": ENDED,
    "at work, by sys.exit": ENDED + "sys.exit(0)",
    "without a reference to the store": "del store",
    "at work, with a reader open": ENDED + "context = store._db.read(); context.__enter__()",
}


def run_program(program: str, path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-X", "dev", "-W", "ignore::ResourceWarning", "-c", PROLOGUE + program, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


@pytest.mark.parametrize("program", ENDS.values(), ids=list(ENDS))
def test_a_program_that_ends_without_closing_its_store_ends_well(path: Path, program: str) -> None:
    ended = run_program(program, path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert_sound(path)


@pytest.mark.torture
def test_a_program_that_ends_at_any_moment_of_its_maintenance_ends_well(tmp_path: Path, template: Path) -> None:
    for number in range(100):
        path = tmp_path / f"{number}.db"
        shutil.copyfile(template, path)
        ended = run_program(ENDED + f"import time; time.sleep({number % 10} / 1000)", path)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert_sound(path)


def test_a_program_ends_though_its_maintenance_waits_for_a_store_that_others_hold(
    path: Path, shell: sqlite3.Connection
) -> None:
    program = """
waiting = threading.Event()
writer, when_free = store._db.writer, store._db.writer._when_free
writer._when_free = lambda execute: (waiting.set(), when_free(execute))[1]
print("go", flush=True)
assert waiting.wait(60)
"""
    command = [sys.executable, "-c", PROLOGUE + program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        shell.execute("BEGIN IMMEDIATE")
        _, err = process.communicate(timeout=WAIT_S)
        shell.execute("COMMIT")
    assert (process.returncode, err) == (0, "")


def test_a_fork_has_no_maintenance_and_its_parent_goes_on_with_it(path: Path) -> None:
    program = """
child = os.fork()
if not child:
    os._exit(0 if [thread.name for thread in threading.enumerate()] == ["MainThread"] else 3)
assert os.waitpid(child, 0)[1] == 0
begun = threading.Event()
whole_turn = Maintenance._prune


def prune_and_tell(self):
    whole_turn(self)
    begun.set()


Maintenance._prune = prune_and_tell
assert begun.wait(60)
store.create_session("after the fork")
store.close()
"""
    ended = run_program(program, path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert_sound(path)


def test_a_fork_may_open_the_store_anew_and_maintain_it(path: Path) -> None:
    program = """
child = os.fork()
if not child:
    with EventStore.open(sys.argv[1], durability="process", maintain_every=timedelta(milliseconds=5)) as own:
        at_work.clear()
        own.create_session("of the child", status="closed")
        own.append_many("of the child", [NewEvent(type="t", payload=n) for n in range(20)])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert store.get_session("of the child").last_seq == 20
store.append("of the child", "t", 1)
store.close()
"""
    ended = run_program(program, path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert_sound(path)


def test_the_maintenance_of_a_store_survives_that_of_its_file_being_moved_to_another_clock(
    open_store: OpenStore, turns: Turns, shell: sqlite3.Connection
) -> None:
    store = open_store(maintain_every=SHORT)
    turns.wait_for(1)
    with closing(driver.dbapi.connect(str(store._db.target.path), isolation_level=None)) as other:
        set_claim(other, "a process of another machine", now_us() + 1000 * HOUR_US)
    turns.wait_for(1)
    assert claim(shell)[0] != "a process of another machine"
