"""A server that dies, goes away for a while or cannot write: what was acknowledged is there, and each error says what it is."""

import random
import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest

from aegis_store import UNLIMITED, Event, EventStore, StoreUnavailable
from tests.concurrency.test_processes import all_events
from tests.postgres.own_server import OwnServer, own_server

KILLS = pytest.mark.parametrize("kills", [2, pytest.param(20, marks=[pytest.mark.torture, pytest.mark.timeout(600)])])
SESSIONS = ("a", "b", "c")
WRITERS = 4
WAIT_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_server() as server:
        yield server


class Load:
    """Threads that append by one store object to the same sessions, each event until it is acknowledged."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.acknowledged: list[Event] = []
        self.lost: list[StoreUnavailable] = []
        self.others: list[Exception] = []
        self._ends = threading.Event()
        self._numbers = count()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(WRITERS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, acknowledged: int) -> None:
        until_s = time.monotonic() + WAIT_S
        while len(self.acknowledged) < acknowledged and not self.others:
            assert time.monotonic() < until_s
            time.sleep(0.02)

    def _work(self, writer: int) -> None:
        try:
            while not self._ends.is_set():
                number = next(self._numbers)
                self.acknowledged.append(self._until_acknowledged(SESSIONS[(number + writer) % 3], number))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails by it
            self.others.append(error)

    def _until_acknowledged(self, session_id: str, number: int) -> Event:
        while True:
            try:
                return self.store.append(session_id, "note", {"number": number}, event_id=f"e{number}")
            except StoreUnavailable as error:
                self.lost.append(error)
                time.sleep(0.05)


@KILLS
def test_a_server_that_is_killed_under_load_keeps_what_was_acknowledged(
    server: OwnServer, kills: int, chance: random.Random
) -> None:
    """One store object goes on by itself. Each append whose outcome is unknown is repeated, and stands once."""
    with EventStore.open(server.url, durability="power", maintain_every=None) as store:
        for name in SESSIONS:
            store.create_session(name, max_events=UNLIMITED)
        with Load(store) as load:
            for _ in range(kills):
                before = len(load.acknowledged)
                time.sleep(chance.uniform(0.1, 0.5))
                server.kill()
                time.sleep(chance.uniform(0, 0.2))
                server.start()
                load.wait_for(before + 20)
        assert load.others == []
        assert len(load.lost) >= kills
        assert {str(error).partition("no connection")[1] for error in load.lost} == {"no connection"}

        events = {name: all_events(store, name) for name in SESSIONS}
        for found in events.values():
            assert [event.seq for event in found] == list(range(1, len(found) + 1))
        there = {str(event.event_id): event for found in events.values() for event in found}
        assert sum(map(len, events.values())) == len(there)
        assert sorted(there) == sorted(str(event.event_id) for event in load.acknowledged)
        assert [event for event in load.acknowledged if there[str(event.event_id)] != event] == []
        for name in SESSIONS:
            store.delete_session(name)
