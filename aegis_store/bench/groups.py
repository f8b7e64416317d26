"""Many writers of one process, threads or tasks, which share commits. Their floor is one writer alone."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aegis_store
from aegis_store.bench import floor
from aegis_store.bench.append import append_to
from aegis_store.bench.measure import Row, Sides, Turn, repeated
from aegis_store.bench.room import TYPE, WARM_UP, Room, payload_of, session_of
from aegis_store.connections import Durability
from aegis_store.store import EventStore

_THREADS: Final = (1, 8, 64)
_TASKS: Final = 64
_DURABILITIES: Final[tuple[Durability, ...]] = ("process", "power")

# AT MERGE: import AsyncEventStore at the top instead, and drop `_MISSING`.
_AsyncEventStore: Final[Any] = getattr(aegis_store, "AsyncEventStore", None)
_MISSING: Final = "" if _AsyncEventStore else "AsyncEventStore"


@contextmanager
def threads(room: Room, count: int, durability: Durability) -> Iterator[Sides]:
    """So many threads, each of which appends one event after the other to the same store."""
    with floor.lone_writer(room.store("floor.db"), durability, room.seconds) as lone:
        with EventStore.open(room.store("store.db"), durability=durability) as store, ThreadPoolExecutor(count) as pool:
            append, numbers = append_to(store), itertools.count()
            for _ in range(WARM_UP):
                append(next(numbers))
            yield Sides(lambda: _together(pool, count, partial(repeated, append, room.seconds, numbers)), lone)


def _together(pool: ThreadPoolExecutor, count: int, work: Callable[[], Turn]) -> Turn:
    began = time.perf_counter()
    futures = [pool.submit(work) for _ in range(count)]
    turns = [future.result() for future in futures]
    return combined(turns, time.perf_counter() - began)


def combined(turns: list[Turn], seconds: float) -> Turn:
    """Turns that were taken at once, in so many seconds, as one."""
    latencies = itertools.chain.from_iterable(turn.latencies_us for turn in turns)
    return Turn(sum(turn.count for turn in turns), seconds, list(latencies))


@contextmanager
def tasks(room: Room, count: int, durability: Durability) -> Iterator[Sides]:
    """So many asyncio tasks, each of which appends one event after the other to the same store."""
    path, numbers = room.store("store.db"), itertools.count()
    with floor.lone_writer(room.store("floor.db"), durability, room.seconds) as lone:
        yield Sides(lambda: asyncio.run(_tasks_turn(path, count, durability, room.seconds, numbers)), lone)


async def _tasks_turn(path: Path, count: int, durability: Durability, seconds: float, numbers: Iterator[int]) -> Turn:
    async with _AsyncEventStore.open(path, durability=durability) as store:
        for _ in range(WARM_UP):
            number = next(numbers)
            await store.append(session_of(number), TYPE, payload_of(number))
        began = time.perf_counter()
        turns = await asyncio.gather(*(_task(store, seconds, numbers) for _ in range(count)))
        return combined(turns, time.perf_counter() - began)


async def _task(store: Any, seconds: float, numbers: Iterator[int]) -> Turn:
    """As `repeated`, with `await`."""
    clock = time.perf_counter
    taken: list[float] = []
    started = clock()
    until = started + seconds
    while started < until or not taken:
        number = next(numbers)
        await store.append(session_of(number), TYPE, payload_of(number))
        ended = clock()
        taken.append((ended - started) * 1e6)
        started = ended
    return Turn(len(taken), sum(taken) / 1e6, taken)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


ROWS: Final = [
    *(
        Row("groups", f"{_plural(n, 'thread')}, {durability}", "events", partial(threads, count=n, durability=durability))
        for durability in _DURABILITIES
        for n in _THREADS
    ),
    *(
        Row("groups", f"{_TASKS} tasks, {durability}", "events", partial(tasks, count=_TASKS, durability=durability), _MISSING)
        for durability in _DURABILITIES
    ),
]
