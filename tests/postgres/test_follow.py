"""Following on a server: who notifies and when, late commits, lost connections, and what is held meanwhile."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from aegis_store import UNLIMITED, EventStore, StoreUnavailable, follow
from aegis_store.postgres import watcher
from tests.postgres.server import OURS, Postgres, connect
from tests.postgres.test_schema import fill
from tests.test_follow import END, NEVER_S, WAIT_S, WRITER, Reader, seqs, wait_until, waiting_reader, watching_threads
from tests.test_follow import only_bells as only_bells

OpenStore = Callable[..., EventStore]
Shell = psycopg.Connection[Any]

SLEEPERS = "SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND classid = 1095059283 AND objid = 2 AND objsubid = 2"
LISTENERS = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%lock_shared(1095059283%' AND pid <> pg_backend_pid()"
LOSE_ALL = f"SELECT pg_terminate_backend(pid, 10000) {OURS}"


@pytest.fixture
def shell(postgres_url: str) -> Iterator[Shell]:
    with connect(postgres_url) as connection:
        yield connection


@pytest.fixture
def light_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows is asleep almost at once, and again after each notification."""
    monkeypatch.setattr(watcher, "FOLLOW_AWAKE_RINGS", 1)
    monkeypatch.setattr(watcher, "FOLLOW_POLL_S", 0.02)


def asleep(shell: Shell, count: int = 1) -> bool:
    return shell.execute(SLEEPERS).fetchone() == (count,)


def positions(events: list[Any]) -> list[int]:
    return [event.position for event in events]


def notifications(listener: Shell) -> int:
    return len(list(listener.notifies(timeout=0.2)))


# Who notifies


@pytest.mark.usefixtures("light_sleep")
def test_any_writer_wakes_a_follower_that_sleeps(store: EventStore, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_session("s")
    reader = waiting_reader(store, "s")
    for _ in range(3):
        wait_until(lambda: asleep(shell))
        threading.Event().wait(0.1)  # until it has rung for what came before
        fill(shell, 1)
        assert reader.next().recorded_at.year == 1970


def test_without_followers_nobody_notifies(store: EventStore, shell: Shell, postgres_url: str) -> None:
    with connect(postgres_url) as listener:
        listener.execute("LISTEN aegis_store")
        store.create_session("s")
        store.append("s", "t", 1)
        fill(shell, 3)
        assert notifications(listener) == 0


def test_a_busy_store_notifies_seldom(
    store: EventStore, shell: Shell, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "FOLLOW_POLL_S", 0.2)  # so that it is awake for longer than this test takes
    store.create_session("s")
    reader = waiting_reader(store, "s")
    with connect(postgres_url) as listener:
        listener.execute("LISTEN aegis_store")
        wait_until(lambda: asleep(shell))
        fill(shell, 1)
        assert notifications(listener) == 1
        wait_until(lambda: asleep(shell, 0))
        fill(shell, 50)
        assert notifications(listener) == 0
    assert seqs(reader.many(51)) == list(range(1, 52))


@pytest.mark.usefixtures("light_sleep")
def test_with_two_processes_that_write_each_event_comes_once_and_in_order(store: EventStore, postgres_url: str) -> None:
    for session_id in ("a", "b"):
        store.create_session(session_id, max_events=UNLIMITED)
    readers = [waiting_reader(store), waiting_reader(store, "a")]
    command = [sys.executable, "-c", WRITER, postgres_url]
    writers = [subprocess.Popen([*command, session_id, "150"]) for session_id in ("a", "b")]
    of_all, of_a = readers[0].many(300), readers[1].many(150)
    assert [writer.wait(WAIT_S) for writer in writers] == [0, 0]
    assert of_all == store.read_all(limit=1000)
    assert seqs(of_a) == list(range(1, 151))
    store.close()
    assert [reader.next() for reader in readers] == [END, END]


# Transactions that commit late


@pytest.mark.parametrize("last", [None, 0, 1, 10])
def test_no_follower_passes_an_event_whose_transaction_commits_late(
    store: EventStore, shell: Shell, monkeypatch: pytest.MonkeyPatch, last: int | None
) -> None:
    monkeypatch.setattr(follow, "FOLLOW_LOOK_S", 0.05)
    for name in ("late", "early"):
        store.create_session(name)
    store.append("early", "t", 1)
    with shell.transaction():
        fill(shell, 1, "late")  # position 2, which nobody sees yet
        store.append("early", "t", 2)
        reader = Reader(store.follow(last=last))
        store.append("early", "t", 3)
        before = [1] if last in (None, 10) else []
        found = reader.many(len(before))
        with pytest.raises(TimeoutError):
            reader.next(0.3)
    assert positions(found + reader.many(3)) == [*before, 2, 3, 4]


def test_what_was_removed_beyond_a_late_commit_hides_no_loss(store: EventStore, shell: Shell) -> None:
    store.create_session("late")
    store.create_session("one", max_events=1)
    with shell.transaction():
        fill(shell, 1, "late")
        for number in range(3):  # of which 2 and 3 go
            store.append("one", "t", number)
        events = store.follow(timeout=0, on_gap="skip")
    found = list(events)
    assert positions([event for event in found if hasattr(event, "position")]) == [1, 4]


# Connections


@pytest.mark.parametrize("session_id", ["s", None])
def test_a_follower_goes_on_after_its_connections_were_lost(
    store: EventStore, shell: Shell, session_id: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    store.create_session("s")
    reader = waiting_reader(store, session_id)
    for number in range(1, 4):
        wait_until(lambda: asleep(shell))
        shell.execute(LOSE_ALL.encode())
        fill(shell, 1)
        assert reader.next().seq == number
    assert capfd.readouterr().err == ""


def test_a_follower_is_told_when_the_server_is_gone_and_goes_on_from_its_cursor(postgres: Postgres) -> None:
    with postgres.database() as url, EventStore.open(url, maintain_every=None) as store:
        store.create_session("s")
        store.append("s", "t", 1)
        reader = waiting_reader(store, "s")
        assert reader.next().seq == 1
        name = url.rpartition("/")[2].partition("?")[0]
        with connect(postgres.url_of("postgres")) as other:
            other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            other.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'".encode())
            found = reader.next()
            assert isinstance(found, StoreUnavailable)
            assert "no connection" in str(found)
            wait_until(lambda: not watching_threads())
            other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        reader = waiting_reader(store, "s", after=1)
        store.append("s", "t", 2)
        assert reader.next().seq == 2


def test_a_follower_that_waits_holds_no_transaction(store: EventStore, shell: Shell) -> None:
    store.create_session("s")
    waiting_reader(store)
    wait_until(lambda: asleep(shell))
    states = f"SELECT DISTINCT state {OURS}"
    wait_until(lambda: shell.execute(states.encode()).fetchall() == [("idle",)])


def test_when_the_last_follower_has_gone_neither_a_thread_nor_a_connection_is_left(store: EventStore, shell: Shell) -> None:
    store.create_session("s")
    for _ in range(2):
        followers = [store.follow("s") for _ in range(2)]
        readers = [waiting_reader(store, "s", timeout=0.5) for _ in range(2)]
        wait_until(lambda: asleep(shell))
        assert [reader.next() for reader in readers] == [END, END]
        wait_until(lambda: not watching_threads())
        wait_until(lambda: asleep(shell, 0))
        wait_until(lambda: shell.execute(LISTENERS.encode()).fetchone() == (0,))
        del followers


def test_where_notifications_are_not_to_be_had_a_follower_still_finds_what_comes(
    store: EventStore, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_LISTEN", "LISTEN aegis_store; SELECT 1 / 0")  # as on a standby
    store.create_session("s")
    reader = waiting_reader(store, "s")
    for number in range(1, 4):
        fill(shell, 1)
        assert reader.next().seq == number


def test_closing_the_store_ends_a_follower_that_sleeps_at_once(store: EventStore, shell: Shell) -> None:
    store.create_session("s")
    reader = waiting_reader(store, "s", timeout=NEVER_S)
    wait_until(lambda: asleep(shell))
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    assert reader.next() is END
    assert watching_threads() == []
