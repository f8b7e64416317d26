"""A server that goes away for a while, refuses, is full or stands by: each error says what it is, and the store goes on."""

import gc
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from aegis_store import (
    EventStore,
    NewEvent,
    ReadOnlyStore,
    RetentionPolicy,
    StoreBusy,
    StoreFull,
    StoreUnavailable,
)
from tests.postgres.own_server import OwnServer, directory_for_server, own_server
from tests.postgres.server import OURS, connect

OpenStore = Callable[..., EventStore]
Shell = psycopg.Connection[Any]
WAIT_S = 30.0


@pytest.fixture
def shell(postgres_url: str) -> Iterator[Shell]:
    with connect(postgres_url) as connection:
        yield connection


@pytest.fixture
def filled(store: EventStore) -> EventStore:
    """A session `s` of three events, which has ended, and a policy that asks for their removal."""
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload=number) for number in range(3)])
    return store


ROW = "SELECT 1 FROM session WHERE session_id = 's' FOR UPDATE"
TABLE = "LOCK TABLE event IN ACCESS EXCLUSIVE MODE"

# What is cut off in its middle: how it is held up there, and what it leaves when it is done once more.
CUT: dict[str, tuple[str, Callable[[EventStore], object], int]] = {
    "append": (ROW, lambda store: store.append("s", "t", 3, event_id="e"), 4),
    "append_many": (ROW, lambda store: store.append_many("s", [NewEvent(type="t", payload=3, event_id="e")] * 1), 4),
    "set_status": (ROW, lambda store: store.set_status("s", "completed"), 3),
    "prune": (ROW, lambda store: store.prune(), 2),
    "read": (TABLE, lambda store: store.read("s"), 3),
    "read_all": (TABLE, lambda store: store.read_all(), 3),
}


@contextmanager
def held_up(shell: Shell, how: str) -> Iterator[Callable[[str], None]]:
    """What the store does waits amid a transaction. The function does that to its connection, with PostgreSQL's own."""
    with connect(shell_url(shell)) as other, shell.transaction(force_rollback=True):
        shell.execute(how.encode())

        def meddle(function: str) -> None:
            waiting = f"{OURS} AND wait_event_type = 'Lock'"
            until_s = time.monotonic() + WAIT_S
            while not other.execute(f"SELECT {function}(pid) {waiting}".encode()).fetchall():
                assert time.monotonic() < until_s
                time.sleep(0.01)

        yield meddle


def shell_url(shell: Shell) -> str:
    info = shell.info
    return f"postgresql://{info.user}@/{info.dbname}?host={info.host}&port={info.port}"


@pytest.mark.parametrize("name", CUT)
def test_a_connection_that_is_cut_amid_its_work_leaves_all_or_nothing(filled: EventStore, shell: Shell, name: str) -> None:
    how, use, events = CUT[name]
    if name == "prune":
        filled.set_retention_policy(RetentionPolicy(max_bytes=2))
    with ThreadPoolExecutor() as threads, held_up(shell, how) as meddle:
        outcome = threads.submit(use, filled)
        meddle("pg_terminate_backend")
        with pytest.raises(StoreUnavailable, match=r"no connection \(.*: try again"):
            outcome.result(WAIT_S)
    assert filled.get_session("s").event_count == 3
    use(filled)
    session = filled.get_session("s")
    assert session.event_count == events
    assert [event.seq for event in filled.read("s").events] == list(range(session.first_seq, session.last_seq + 1))


@pytest.mark.parametrize("name", ["append", "append_many", "set_status", "read"])
def test_a_statement_that_the_server_cancels_has_done_nothing(filled: EventStore, shell: Shell, name: str) -> None:
    how, use, events = CUT[name]
    with ThreadPoolExecutor() as threads, held_up(shell, how) as meddle:
        outcome = threads.submit(use, filled)
        meddle("pg_cancel_backend")
        with pytest.raises(StoreBusy, match="canceling statement"):
            outcome.result(WAIT_S)
    assert filled.get_session("s").event_count == 3
    use(filled)
    assert filled.get_session("s").event_count == events


@pytest.mark.parametrize("name", CUT)
def test_what_waits_for_longer_than_the_busy_timeout_is_told_so(
    filled: EventStore, open_store: OpenStore, shell: Shell, name: str
) -> None:
    how, use, events = CUT[name]
    hasty = open_store(busy_timeout_ms=50)
    if name == "prune":
        filled.set_retention_policy(RetentionPolicy(max_bytes=2))
    with held_up(shell, how):
        with pytest.raises(StoreBusy, match="raise busy_timeout_ms") as caught:
            use(hasty)
        assert 50 <= caught.value.waited_ms < 10_000
    use(hasty)
    assert filled.get_session("s").event_count == events


def test_a_deadlock_with_another_program_is_told_and_has_done_nothing(filled: EventStore, shell: Shell) -> None:
    filled.set_retention_policy(RetentionPolicy(max_total_bytes=10**9))
    shell.execute("SET deadlock_timeout = '60s'")  # so that it is the store's connection that finds it
    with ThreadPoolExecutor() as threads, shell.transaction():
        shell.execute("SELECT 1 FROM store FOR UPDATE")
        outcome = threads.submit(filled.append, "s", "t", 3)
        time.sleep(0.3)
        shell.execute(ROW.encode())
        with pytest.raises(StoreBusy):
            outcome.result(WAIT_S)
    assert filled.append("s", "t", 3).seq == 4


def test_a_network_that_is_cut_while_an_append_waits_is_told_and_the_next_call_connects_again(
    filled: EventStore, shell: Shell
) -> None:
    filled.append("s", "t", 3)
    db: Any = filled._db
    line = socket.socket(fileno=os.dup(db._lone._idle[-1].cursor.connection.fileno()))
    with ThreadPoolExecutor() as threads, line, held_up(shell, ROW) as meddle:
        outcome = threads.submit(filled.append, "s", "t", 4, event_id="e")
        meddle("abs")  # which does nothing to it, but waits until it waits
        line.shutdown(socket.SHUT_RDWR)
        with pytest.raises(StoreUnavailable, match="no connection"):
            outcome.result(WAIT_S)
    assert filled.append("s", "t", 4, event_id="e").seq == 5
    assert filled.append("s", "t", 4, event_id="e").seq == 5


def test_a_network_that_was_cut_while_nobody_used_it_costs_an_append_nothing(filled: EventStore) -> None:
    filled.append("s", "t", 3)
    db: Any = filled._db
    with socket.socket(fileno=os.dup(db._lone._idle[-1].cursor.connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    assert filled.append("s", "t", 4).seq == 5


def test_a_role_that_has_too_many_connections_is_told_so(postgres_url: str, shell: Shell) -> None:
    shell.execute("DROP ROLE IF EXISTS crowd")
    shell.execute("CREATE ROLE crowd LOGIN PASSWORD 'secret' CONNECTION LIMIT 0")
    named = make_url(postgres_url).set(username="crowd", password="secret").render_as_string(hide_password=False)
    with pytest.raises(StoreUnavailable, match="too many connections for role"):
        EventStore.open(named)
    shell.execute("DROP ROLE crowd")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer signals")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupts that fall into destructors
@pytest.mark.parametrize("name", ["append", "append_many"])
def test_an_append_that_ctrl_c_interrupts_happened_or_did_not_and_the_store_goes_on(store: EventStore, name: str) -> None:
    store.create_session("s")
    chance = random.Random(1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    seqs: list[int] = []
    try:
        for number in range(60):
            event = NewEvent(type="t", payload=number, event_id=f"e{number}")
            try:  # before the timer runs: it may end before the next line is reached
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.003))
                for _ in range(200):
                    append_one(store, name, event)
            except KeyboardInterrupt:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            seqs.append(append_one(store, name, event))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()  # connections whose interrupt fell between their making and their use: here, and in no other test
    assert seqs == list(range(1, 61))
    assert [event.payload for event in store.read("s").events] == list(range(60))


def append_one(store: EventStore, name: str, event: NewEvent) -> int:
    if name == "append":
        return store.append("s", event.type, event.payload, event_id=event.event_id).seq
    return store.append_many("s", [event])[0].seq


# With a server of their own


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_server() as server:
        EventStore.upgrade(server.url)
        yield server


@pytest.fixture
def at_server(server: OwnServer, request: pytest.FixtureRequest) -> Iterator[EventStore]:
    """A store there; each test has a session of its own name."""
    with EventStore.open(server.url, durability="process", maintain_every=None) as store:
        store.create_session(request.node.name)
        yield store


def test_a_server_that_is_stopped_is_told_and_when_it_is_back_the_store_goes_on(
    server: OwnServer, at_server: EventStore, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    at_server.append(name, "t", 1)
    server.stop()
    for use in (
        lambda: at_server.append(name, "t", 2),
        lambda: at_server.append_many(name, [NewEvent(type="t", payload=2)]),
        lambda: at_server.read(name),
        lambda: at_server.read_all(),
        lambda: at_server.prune(),
        lambda: EventStore.open(server.url),
    ):
        with pytest.raises(StoreUnavailable, match="no connection"):
            use()
    server.start()
    assert [event.payload for event in at_server.read(name).events] == [1]
    assert at_server.append(name, "t", 2).seq == 2


def test_inspect_watch_says_that_the_server_was_stopped_and_leaves_the_screen_as_it_was(
    server: OwnServer, at_server: EventStore, request: pytest.FixtureRequest
) -> None:
    from tests.cli.test_inspect import Watched  # which needs a terminal

    name = request.node.name
    at_server.append(name, "begun", 1)
    watched = Watched(server.url, 60, name)
    watched.until("begun")
    at_server.append(name, "gone_on", 1)
    watched.until("gone_on")
    server.stop()
    watched.until(r"\x1b\[\?1049l")
    code, told = watched.end()
    server.start()
    assert code == 5
    assert b"no connection" in told
    assert told.count(b"\n") == 1


def test_a_full_disk_of_the_server_is_told_and_with_room_the_append_is_done(
    server: OwnServer, at_server: EventStore, request: pytest.FixtureRequest, chance: random.Random
) -> None:
    """No file grows beyond that: those of the log are smaller, so that the server itself goes on."""
    name = request.node.name
    server.stop()
    server.start(largest_file=16 * 2**20 + 4097)
    at_server.get_session(name)  # which connects again
    with pytest.raises(StoreFull, match="free some space"):
        append_for_long(at_server, name, chance)
    seq = at_server.get_session(name).last_seq
    assert seq > 1
    server.stop()
    server.start()
    assert at_server.get_session(name).last_seq == seq
    assert at_server.append(name, "t", chance.randbytes(500_000).hex()).seq == seq + 1


def append_for_long(store: EventStore, name: str, chance: random.Random) -> None:
    for _ in range(30):
        store.append(name, "t", chance.randbytes(500_000).hex())


def test_a_standby_takes_reads_and_refuses_writes_until_it_is_promoted(
    server: OwnServer, at_server: EventStore, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    at_server.append(name, "t", 1)
    with directory_for_server() as directory:
        standby = server.copy_to(directory)
        standby.start()
        try:
            with EventStore.open(standby.url, durability="process", prune_on_open=False, maintain_every=None) as store:
                assert [event.payload for event in store.read(name).events] == [1]
                for write in (
                    lambda: store.append(name, "t", 2),
                    lambda: store.append_many(name, [NewEvent(type="t", payload=2)]),
                    lambda: store.set_status(name, "completed"),
                ):
                    with pytest.raises(ReadOnlyStore, match="primary"):
                        write()
                with pytest.raises(StoreUnavailable, match="ask the primary"):
                    store.read_all()
                standby.promote()
                assert store.append(name, "t", 2).seq == 2
                assert store.read_all()[-1].payload == 2
        finally:
            standby.stop("immediate")


def test_a_thread_that_waits_for_a_row_keeps_no_other_session_waiting(filled: EventStore, shell: Shell) -> None:
    filled.create_session("other")
    with held_up(shell, ROW):
        waiting = threading.Thread(target=filled.append, args=("s", "t", 3))
        waiting.start()
        assert filled.append("other", "t", 1).seq == 1
    waiting.join()
    assert filled.get_session("s").last_seq == 4
