"""Measuring the store against its floor: the same SQL, pragmas and work, written by hand on the bare driver.

Both run in turn, a pair at a time, on files side by side, so that a noisy machine is noisy for both. The figure to keep is
the median of the ratios.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aegis_store import driver, workload
from aegis_store.append import APPEND_SQL
from aegis_store.connections import Durability
from aegis_store.store import EventStore
from aegis_store.target import Target

_SESSIONS: Final = 220
_SYNCHRONOUS: Final = {"power": "FULL", "process": "NORMAL"}

Append = Callable[[int], object]
"""Appends event number n, durably."""

OnPair = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendFigures:
    """A lone writer's appends, 2.5 KB each over 220 sessions, beside the floor's: medians over the pairs."""

    durability: Durability
    pairs: int
    appends: int
    per_second: float
    floor_per_second: float
    ratio: float
    p50_us: float
    p99_us: float
    max_us: float


def lone_append(
    directory: Path, durability: Durability, *, appends: int, pairs: int, on_pair: OnPair | None = None
) -> AppendFigures:
    """Run `pairs` of `appends` appends each, store and floor in turn, in two new stores below `directory`."""
    payloads = [workload.payload(number) for number in range(64)]
    rates: list[tuple[float, float]] = []
    latencies_us: list[float] = []
    with ExitStack() as stack:
        ours = stack.enter_context(_store_append(directory / f"store-{durability}.db", durability, payloads))
        floor = stack.enter_context(_floor_append(directory / f"floor-{durability}.db", durability, payloads))
        for append in (ours, floor):
            _rate(append, 0, _SESSIONS)  # warm: pages allocated, statements prepared
        for pair in range(pairs):
            start = _SESSIONS + pair * appends
            # Who goes first changes from pair to pair, since the first one leaves the disk a backlog.
            if pair % 2:
                floor_rate, rate = _rate(floor, start, appends), _rate(ours, start, appends, latencies_us)
            else:
                rate, floor_rate = _rate(ours, start, appends, latencies_us), _rate(floor, start, appends)
            rates.append((rate, floor_rate))
            if on_pair is not None:
                on_pair()
    latencies_us.sort()
    return AppendFigures(
        durability=durability,
        pairs=pairs,
        appends=appends,
        per_second=statistics.median(rate for rate, _ in rates),
        floor_per_second=statistics.median(floor_rate for _, floor_rate in rates),
        ratio=statistics.median(rate / floor_rate for rate, floor_rate in rates),
        p50_us=percentile(latencies_us, 0.5),
        p99_us=percentile(latencies_us, 0.99),
        max_us=latencies_us[-1],
    )


def percentile(ordered: list[float], share: float) -> float:
    """The value below which that share of the ordered values lies."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def fsync_us(directory: Path, rounds: int = 20) -> float:
    """What one fsync of 4 KiB takes here, the median: nothing durable can be faster."""
    name = directory / f".aegis-store-fsync-{os.getpid()}"
    taken = []
    try:
        with name.open("wb", buffering=0) as file:
            for _ in range(rounds):
                file.write(b"\0" * 4096)
                started = time.perf_counter()
                os.fsync(file.fileno())
                taken.append((time.perf_counter() - started) * 1e6)
    finally:
        name.unlink(missing_ok=True)
    return statistics.median(taken)


def _rate(append: Append, start: int, count: int, latencies_us: list[float] | None = None) -> float:
    """Appends a second. Both sides are timed append by append, so that timing costs both the same."""
    clock = time.perf_counter
    taken = []
    began = clock()
    for number in range(start, start + count):
        started = clock()
        append(number)
        taken.append((clock() - started) * 1e6)
    rate = count / (clock() - began)
    if latencies_us is not None:
        latencies_us += taken
    return rate


@contextmanager
def _store_append(path: Path, durability: Durability, payloads: list[Any]) -> Iterator[Append]:
    with EventStore.open(path, durability=durability) as store:
        ids = [store.create_session().session_id for _ in range(_SESSIONS)]

        def append(number: int) -> object:
            return store.append(ids[number % _SESSIONS], "hook.post_tool_use", payloads[number % 64])

        yield append


@contextmanager
def _floor_append(path: Path, durability: Durability, payloads: list[Any]) -> Iterator[Append]:
    with EventStore.open(path) as store:  # the schema, and sessions to append to
        ids = [store.create_session().session_id for _ in range(_SESSIONS)]
    uri = Target.of(path).uri("mode=rw")
    with closing(driver.dbapi.connect(uri, uri=True, isolation_level=None)) as connection:
        for pragma in ("foreign_keys = ON", "trusted_schema = OFF", f"synchronous = {_SYNCHRONOUS[durability]}"):
            connection.execute(f"PRAGMA {pragma}")
        cursor = connection.cursor()

        def append(number: int) -> object:
            now_us = time.time_ns() // 1000
            parameters = {
                "session_id": ids[number % _SESSIONS],
                "type": "hook.post_tool_use",
                "payload": json.dumps(payloads[number % 64]),
                "occurred_at": now_us,
                "recorded_at": now_us,
                "event_id": None,
                "run_id": None,
                "payload_ref": None,
                "expected_seq": None,
            }
            return cursor.execute(APPEND_SQL, parameters).fetchall()

        yield append
