"""The defects of the design that this store replaces, each as a fact that is otherwise here.

The old design kept all sessions and events in memory and wrote the whole state as one file on every change.
"""

import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event as sa_event

from aegis_store import (
    UNLIMITED,
    AegisStoreError,
    EventIdConflict,
    EventStore,
    NewEvent,
    SessionExists,
    StoreCorrupt,
    StoreFull,
)

OpenStore = Callable[..., EventStore]

PAYLOAD = {"text": "x" * 2500}


def fill(store: EventStore, session_id: str, count: int) -> None:
    store.append_many(session_id, [NewEvent(type="t", payload=PAYLOAD) for _ in range(count)])


def seqs(store: EventStore, session_id: str = "s") -> list[int]:
    return [event.seq for event in store.read(session_id, limit=1000).events]


# Acknowledged events were lost: writes were delayed, a kill lost 3 seconds, a clean stop lost them too


def test_an_acknowledged_event_is_there_for_everyone_without_flush_or_close(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    store.create_session("s")
    for seq in range(1, 6):
        store.append("s", "t", seq)
        assert shell.execute("SELECT max(seq) FROM event").fetchone() == (seq,)


def test_an_acknowledged_event_is_there_for_another_process(store: EventStore, path: Path) -> None:
    store.create_session("s")
    store.append("s", "t", "seen elsewhere")
    look = "import sys; from aegis_store import EventStore; print(EventStore.open(sys.argv[1]).read('s').events[0].payload)"
    found = subprocess.run([sys.executable, "-c", look, str(path)], capture_output=True, text=True, check=True)
    assert found.stdout == "seen elsewhere\n"


WRITER = textwrap.dedent("""
    import os, signal, sys
    from aegis_store import EventStore

    store = EventStore.open(sys.argv[1])
    for _ in range(20):
        event = store.append("s", "t", "acknowledged")
        print(event.seq, flush=True)
    {end}
""")


@pytest.mark.parametrize(
    ("end", "returncode"),
    [
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("sys.exit(0)", 0),
        ("raise SystemExit(3)", 3),
    ],
    ids=["left at once", "killed", "left without closing", "stopped"],
)
def test_every_acknowledged_event_outlives_its_process(open_store: OpenStore, path: Path, end: str, returncode: int) -> None:
    with closing(open_store()) as store:
        store.create_session("s")
    writer = subprocess.run([sys.executable, "-c", WRITER.format(end=end), str(path)], capture_output=True, text=True)
    acknowledged = [int(line) for line in writer.stdout.splitlines()]
    assert writer.returncode == returncode
    assert acknowledged == list(range(1, 21))
    assert seqs(open_store()) == acknowledged


def test_an_append_syncs_to_the_disk_unless_told_otherwise(open_store: OpenStore) -> None:
    synchronous = {
        durability: open_store(durability=durability)._db.writer.driver.execute("PRAGMA synchronous").fetchone()[0]
        for durability in ("power", "process")
    }
    assert synchronous == {"power": 2, "process": 1}


def test_no_write_waits_for_a_timer(store: EventStore, path: Path) -> None:
    store.create_session("s")
    wal = path.with_name(path.name + "-wal")
    sizes = []
    for _ in range(5):
        store.append("s", "t", PAYLOAD)
        sizes.append(wal.stat().st_size)
    assert sizes == sorted(set(sizes))


# seq started again at 1 after two restarts of a pruned session, with the same event ids


def test_seq_goes_on_after_a_restart(open_store: OpenStore) -> None:
    with closing(open_store()) as first:
        first.create_session("s")
        fill(first, "s", 5)
    assert open_store().append("s", "t", 1).seq == 6


def test_seq_goes_on_after_pruning(store: EventStore) -> None:
    store.create_session("s", status="closed")
    fill(store, "s", 5)
    assert store.prune().events_removed == 5
    assert store.append("s", "t", 1).seq == 6


@pytest.mark.parametrize("restarts", [1, 2, 3])
def test_seq_goes_on_after_pruning_and_restarts(open_store: OpenStore, restarts: int) -> None:
    with closing(open_store()) as first:
        first.create_session("s", status="closed")
        fill(first, "s", 5)
    for _ in range(restarts):
        open_store().close()
    with closing(open_store()) as last:
        assert last.get_session("s").event_count == 0
        assert last.append("s", "t", 1).seq == 6


def test_positions_go_on_after_pruning_and_restarts(open_store: OpenStore) -> None:
    with closing(open_store()) as first:
        first.create_session("s", status="closed")
        last = first.append("s", "t", 1).position
    open_store().close()
    assert open_store().append("s", "t", 1).position > last


def test_an_event_id_that_was_pruned_with_its_event_may_come_again_under_a_new_seq(open_store: OpenStore) -> None:
    with closing(open_store()) as first:
        first.create_session("s", status="closed")
        first.append("s", "t", 1, event_id="e")
    reopened = open_store()
    again = reopened.append("s", "t", 2, event_id="e")
    assert again.seq == 2
    with pytest.raises(EventIdConflict):
        reopened.append("s", "t", 3, event_id="e")


def test_a_retry_after_a_restart_stores_nothing_twice(open_store: OpenStore) -> None:
    with closing(open_store()) as first:
        first.create_session("s")
        original = first.append("s", "t", 1, event_id="e")
    reopened = open_store()
    assert reopened.append("s", "t", 1, event_id="e") == original
    assert seqs(reopened) == [1]


# Another tenant could take over a pruned session by creating it again


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"owner": "b"}])
def test_a_pruned_session_cannot_be_taken_over_by_another_tenant(open_store: OpenStore, other: dict[str, Any]) -> None:
    with closing(open_store()) as first:
        first.create_session("s", tenant="a", owner="a", status="closed")
        fill(first, "s", 5)
    reopened = open_store()
    for take_over in (reopened.create_session, reopened.ensure_session):
        with pytest.raises(SessionExists):
            take_over("s", **{"tenant": "a", "owner": "a"} | other)
    standing = reopened.get_session("s")
    assert (standing.tenant, standing.owner, standing.last_seq) == ("a", "a", 5)


def test_appending_does_not_bring_a_session_into_being(store: EventStore) -> None:
    with pytest.raises(AegisStoreError):
        store.append("s", "t", 1)
    assert store.list_sessions().sessions == []


# A truncated or empty file started an empty store, which overwrote it at once


@pytest.mark.parametrize("kept_share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_and_left_as_it_is(open_store: OpenStore, path: Path, kept_share: float) -> None:
    with closing(open_store()) as first:
        first.create_session("s")
        fill(first, "s", 50)
    content = path.read_bytes()
    damaged = content[: int(len(content) * kept_share)]
    path.write_bytes(damaged)
    for options in ({}, {"read_only": True}, {"create": False}):
        with pytest.raises(StoreCorrupt):
            open_store(**options)
    assert path.read_bytes() == damaged
    wal = path.with_name(path.name + "-wal")
    assert not wal.exists() or wal.stat().st_size == 0


def test_a_file_whose_header_is_damaged_is_refused_and_left_as_it_is(path: Path) -> None:
    damaged = b"\0" * 100 + path.read_bytes()[100:]
    path.write_bytes(damaged)
    with pytest.raises(StoreCorrupt):
        EventStore.open(path)
    assert path.read_bytes() == damaged


def test_a_store_that_is_refused_can_be_restored_under_the_same_name(open_store: OpenStore, path: Path) -> None:
    with closing(open_store()) as first:
        first.create_session("s")
        first.append("s", "t", 1)
    content = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(StoreCorrupt):
        open_store()
    path.write_bytes(content)
    assert seqs(open_store()) == [1]


# A failed write was acknowledged


def make_full(store: EventStore) -> None:
    """Let the database grow no further, as a full disk would."""
    writer = store._db.writer.driver
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages}").fetchall()


def make_room(store: EventStore) -> None:
    store._db.writer.driver.execute("PRAGMA max_page_count = 1000000").fetchall()


def appended_until_full(store: EventStore) -> int:
    """How many appends were acknowledged before one found no room."""
    acknowledged = 0
    try:
        while True:
            store.append("s", "t", PAYLOAD)
            acknowledged += 1
    except StoreFull:
        return acknowledged


def test_an_append_that_finds_no_room_is_not_acknowledged_and_not_stored(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    make_full(store)
    acknowledged = appended_until_full(store)
    assert seqs(store) == list(range(1, acknowledged + 1))
    assert shell.execute("SELECT count(*) FROM event").fetchone() == (acknowledged,)


def test_a_batch_that_finds_no_room_is_not_stored_at_all(store: EventStore) -> None:
    store.create_session("s")
    make_full(store)
    with pytest.raises(StoreFull):
        fill(store, "s", 100)
    assert seqs(store) == []


def test_a_store_that_was_full_goes_on_without_a_gap_once_there_is_room(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    make_full(store)
    acknowledged = appended_until_full(store)
    make_room(store)
    assert store.append("s", "t", PAYLOAD).seq == acknowledged + 1
    assert shell.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_full_store_can_still_be_read(store: EventStore) -> None:
    store.create_session("s")
    store.append("s", "t", "before")
    make_full(store)
    appended_until_full(store)
    assert store.read("s").events[0].payload == "before"
    assert store.get_session("s").first_seq == 1


# Every change wrote the whole state: cost and memory grew with the store


def wal_bytes_of(store: EventStore, path: Path, work: Callable[[], object]) -> int:
    """How many bytes `work` writes: the length of the log, which was empty before."""
    wal = path.with_name(path.name + "-wal")
    deadline = time.monotonic() + 30
    while True:
        store._db._checkpointer.stop()
        store._db.writer.driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if wal.stat().st_size == 0:
            break
        assert time.monotonic() < deadline, "the log is never empty"
        time.sleep(0.01)  # the checkpointer is at work
    work()
    return wal.stat().st_size


MOST_BYTES_WRITTEN = 12 * (8192 + 24) + 32
"""Twelve pages: a session, an event with its overflow page, the counters, and the indexes above, split at the worst."""


@pytest.mark.parametrize("count", [10, 2000])
def test_what_an_append_writes_is_bounded_however_much_is_stored(store: EventStore, path: Path, count: int) -> None:
    store.create_session("s", max_events=UNLIMITED)
    fill(store, "s", count)
    written = [wal_bytes_of(store, path, lambda: store.append("s", "t", PAYLOAD)) for _ in range(10)]
    assert 0 < max(written) <= MOST_BYTES_WRITTEN


def test_what_an_append_at_the_cap_writes_is_bounded(store: EventStore, path: Path) -> None:
    store.create_session("s")
    fill(store, "s", 1000)
    written = [wal_bytes_of(store, path, lambda: store.append("s", "t", PAYLOAD)) for _ in range(10)]
    assert 0 < max(written) <= 2 * MOST_BYTES_WRITTEN


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.set_status("s", "closed"),
        lambda store: store.update_session("s", metadata={"k": 1}),
        lambda store: store.create_session("t"),
    ],
    ids=["status", "metadata", "new session"],
)
def test_what_a_change_of_a_session_writes_is_bounded(
    store: EventStore, path: Path, change: Callable[[EventStore], object]
) -> None:
    store.create_session("s", max_events=UNLIMITED)
    fill(store, "s", 2000)
    assert 0 < wal_bytes_of(store, path, lambda: change(store)) <= MOST_BYTES_WRITTEN


OPERATIONS: dict[str, Callable[[EventStore], object]] = {
    "append": lambda store: store.append("s", "t", 1),
    "append with an id": lambda store: store.append("s", "t", 1, event_id="new"),
    "append again": lambda store: store.append("s", "t", "known", event_id="known"),
    "append many": lambda store: store.append_many("s", [NewEvent(type="t", payload=1, event_id="many")]),
    "create": lambda store: store.create_session("t"),
    "ensure": lambda store: store.ensure_session("s"),
    "get": lambda store: store.get_session("s"),
    "list": lambda store: store.list_sessions(),
    "set status": lambda store: store.set_status("s", "idle"),
    "update": lambda store: store.update_session("s", metadata={"k": 1}, hold=True),
    "lower a cap": lambda store: store.update_session("s", max_events=5),
    "read": lambda store: store.read("s", after_seq=3),
    "read types": lambda store: store.read("s", types=["t"]),
    "read all": lambda store: store.read_all(after_position=3),
    "policy": lambda store: store.retention_policy(),
    "plan": lambda store: store.plan_prune(),
    "prune": lambda store: store.prune(),
    "stats": lambda store: store.stats(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_operation_scans_the_events(store: EventStore, operation: str) -> None:
    store.create_session("s")
    store.create_session("ended", status="closed")
    for session_id in ("s", "ended"):
        store.append(session_id, "t", "known", event_id="known")
        fill(store, session_id, 20)
    plans: list[str] = []

    def explain(connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            rows = connection.connection.dbapi_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in rows)

    sa_event.listen(store._db._engine, "before_cursor_execute", explain)
    OPERATIONS[operation](store)
    assert [line for line in plans if line.startswith(("SCAN event", "SCAN first"))] == []


def vm_steps(store: EventStore, work: Callable[[], object]) -> int:
    """How many steps SQLite's virtual machine takes for `work`: a cost that does not depend on the machine."""
    store._db._checkpointer.stop()  # on a SQLite with the WAL-reset bug it begins transactions on the connection watched here
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    def watch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(count, 1)

    def unwatch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(None, 0)

    engine = store._db._engine
    sa_event.listen(engine, "checkout", watch)
    sa_event.listen(engine, "checkin", unwatch)
    watch(store._db.writer.driver)
    try:
        work()
    finally:
        unwatch(store._db.writer.driver)
        sa_event.remove(engine, "checkout", watch)
        sa_event.remove(engine, "checkin", unwatch)
    return taken


# Left out: what removes events, whose work is what it removes, and what makes an event or a session that must be new.
REPEATABLE = [name for name in OPERATIONS if name not in ("lower a cap", "prune", "create", "append with an id", "append many")]


@pytest.mark.parametrize("operation", REPEATABLE)
def test_the_work_of_an_operation_does_not_grow_with_the_events_stored(store: EventStore, operation: str) -> None:
    for session_id in ("s", "other"):
        store.create_session(session_id, max_events=UNLIMITED)
    store.append("s", "t", "known", event_id="known")
    fill(store, "s", 150)
    OPERATIONS[operation](store)
    few = vm_steps(store, lambda: OPERATIONS[operation](store))
    fill(store, "other", 1000)
    assert 0 < vm_steps(store, lambda: OPERATIONS[operation](store)) <= few + 10


def test_memory_does_not_hold_what_the_store_holds(store: EventStore) -> None:
    store.create_session("s", max_events=UNLIMITED)
    fill(store, "s", 2000)
    tracemalloc.start()
    try:
        for _ in range(20):
            store.append("s", "t", PAYLOAD)
            store.read("s", after_seq=1900, limit=5)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1024 * 1024
