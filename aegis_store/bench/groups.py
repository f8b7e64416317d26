"""Many writers of one process, threads or tasks, which share commits. Their floor is one writer alone."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from aegis_store.aio import AsyncEventStore
from aegis_store.bench import floor
from aegis_store.bench.append import append_to
from aegis_store.bench.measure import Row, Sides, Turn, repeated
from aegis_store.bench.room import TYPE, WARM_UP, Room, payload_of, session_of
from aegis_store.connections import Durability
from aegis_store.store import EventStore

_THREADS: Final = (1, 8, 64)
_TASKS: Final = 64
_DURABILITIES: Final[tuple[Durability, ...]] = ("process", "power")


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
    with floor.lone_writer(room.store("floor.db"), durability, room.seconds) as lone, asyncio.Runner() as runner:
        store, numbers = runner.run(_opened(room.store("store.db"), durability)), itertools.count()
        try:
            runner.run(_repeated(store, 0.0, itertools.count(), WARM_UP))
            yield Sides(lambda: runner.run(_tasks_turn(store, count, room.seconds, numbers)), lone)
        finally:
            runner.run(store.close())


async def _opened(path: Path, durability: Durability) -> AsyncEventStore:
    return await AsyncEventStore.open(path, durability=durability)


async def _tasks_turn(store: AsyncEventStore, count: int, seconds: float, numbers: Iterator[int]) -> Turn:
    began = time.perf_counter()
    turns = await asyncio.gather(*(_repeated(store, seconds, numbers) for _ in range(count)))
    return combined(turns, time.perf_counter() - began)


async def _repeated(store: AsyncEventStore, seconds: float, numbers: Iterator[int], at_least: int = 1) -> Turn:
    """As `repeated`, with `await`."""
    clock = time.perf_counter
    taken: list[float] = []
    started = clock()
    until = started + seconds
    while started < until or len(taken) < at_least:
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
        Row("groups", f"{_TASKS} tasks, {durability}", "events", partial(tasks, count=_TASKS, durability=durability))
        for durability in _DURABILITIES
    ),
]
