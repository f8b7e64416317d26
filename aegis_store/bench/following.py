"""Following: how long after an append was called its event is in a follower's hands. There is no floor to it."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from aegis_store.bench.measure import Row, Sides, Turn
from aegis_store.bench.processes import answer, children
from aegis_store.bench.room import SESSION_IDS, TYPE, Room, payload_of
from aegis_store.store import EventStore

_FOLLOWED: Final = SESSION_IDS[0]
_END: Final = "end"

# So long between two events, so that the follower waits again, and finds no event that it need not wait for.
_PAUSE_S: Final = 0.002
_PATIENCE_S: Final = 30.0

Receive = Callable[[], float]
"""When the follower had the event that was just appended, by `time.perf_counter`, which is the same in all processes."""


@contextmanager
def in_process(room: Room) -> Iterator[Sides]:
    """The follower is a thread of the process that appends, on the same open store."""
    received: queue.SimpleQueue[float] = queue.SimpleQueue()
    with EventStore.open(room.store("store.db"), durability="process") as store:
        thread = threading.Thread(target=_follow, args=(store, received.put), daemon=True)
        thread.start()
        try:
            yield Sides(partial(_turn, store, room.seconds, lambda: received.get(timeout=_PATIENCE_S)), None)
        finally:
            store.append(_FOLLOWED, _END, None)
            thread.join(_PATIENCE_S)


@contextmanager
def across_processes(room: Room) -> Iterator[Sides]:
    """The follower is another process."""
    path = room.store("store.db")
    with EventStore.open(path, durability="process") as store, children(1, _follow_here, path) as (line,):
        yield Sides(partial(_turn, store, room.seconds, lambda: float(answer(line))), None)
        store.append(_FOLLOWED, _END, None)


def _follow_here(line: Connection, path: Path) -> None:
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        line.send("ready")
        _follow(store, line.send)


def _follow(store: EventStore, received: Callable[[float], object]) -> None:
    for event in store.follow(_FOLLOWED, after=0):
        if event.type == _END:
            return
        received(time.perf_counter())


def _turn(store: EventStore, seconds: float, receive: Receive) -> Turn:
    clock = time.perf_counter
    taken: list[float] = []
    began = clock()
    for number in itertools.count():
        started = clock()
        if taken and started > began + seconds:
            break
        store.append(_FOLLOWED, TYPE, payload_of(number))
        taken.append((receive() - started) * 1e6)
        time.sleep(_PAUSE_S)
    return Turn(len(taken), sum(taken) / 1e6, taken)


ROWS: Final = [
    Row("follow", "follow, same process", "", in_process),
    Row("follow", "follow, across processes", "", across_processes),
]
