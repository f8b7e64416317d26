"""What a measure is: two sides that do the same work in turn, and the figures that come of it.

A pair is a turn of the store and one of its floor, next to each other in time, so that a noisy machine is noisy for both.
The figure to keep is the ratio: the median over the pairs.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from aegis_store.bench.room import Room
from aegis_store.settings import CHECKPOINT_EVERY_S

# So long after the store's turn its thread has done the checkpoint that the turn left it, and is quiet in the floor's.
_QUIET_AFTER_S: Final = 2 * CHECKPOINT_EVERY_S


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side did in one turn: so many units in so many seconds, and how long each operation took.

    No latencies: the turn is one piece of work.
    """

    count: int
    seconds: float
    latencies_us: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.count / self.seconds


Side = Callable[[], Turn]


class Sides(NamedTuple):
    """The store, and the hand-written loop beside it; None where there is nothing to compare with."""

    store: Side
    floor: Side | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: how its two sides are set up, in a room of their own.

    `measure` is its family, by which `--only` chooses it; `unit` is what is counted (""
    where only latencies are of interest).
    """

    measure: str
    name: str
    unit: str
    sides: Callable[[Room], AbstractContextManager[Sides]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One side of a row. `per_second`: units, the median over its turns. Latencies: of single operations, over all turns.

    An operation is what the row calls once: an append, a batch, a page. None: its turns are one operation each.
    """

    per_second: float
    p50_us: float | None
    p99_us: float | None
    p999_us: float | None
    max_us: float | None

    @classmethod
    def of(cls, turns: list[Turn]) -> "Speed":
        ordered = sorted(itertools.chain.from_iterable(turn.latencies_us for turn in turns))
        p50, p99, p999, longest = (percentile(ordered, share) if ordered else None for share in (0.5, 0.99, 0.999, 1))
        per_second = statistics.median(turn.per_second for turn in turns)
        return cls(per_second=per_second, p50_us=p50, p99_us=p99, p999_us=p999, max_us=longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A row, measured. `ratio`: units a second of the store over those of the floor, the median over the pairs."""

    measure: str
    name: str
    unit: str
    store: Speed
    floor: Speed | None
    ratio: float | None


Pair = tuple[Turn, Turn | None]

OnTurn = Callable[[], None]


def measured(row: Row, room: Room, pairs: int, on_turn: OnTurn) -> Figures:
    """Measure a row in its room. `on_turn` is called after each pair."""
    taken: list[Pair] = []
    with row.sides(room) as sides:
        for pair in pairs_of(sides, pairs):
            taken.append(pair)
            on_turn()
    store = [ours for ours, _ in taken]
    floor = [theirs for _, theirs in taken if theirs is not None]
    return Figures(
        measure=row.measure,
        name=row.name,
        unit=row.unit,
        store=Speed.of(store),
        floor=Speed.of(floor) if floor else None,
        ratio=ratio(taken),
    )


def pairs_of(sides: Sides, pairs: int) -> Iterator[Pair]:
    """Both sides in turn. Who goes first changes from pair to pair, since the first one leaves the disk a backlog."""
    for number in range(pairs):
        if sides.floor is None:
            yield sides.store(), None
        elif number % 2:
            floor = sides.floor()
            yield sides.store(), floor
        else:
            store = sides.store()
            time.sleep(_QUIET_AFTER_S)
            yield store, sides.floor()


def ratio(pairs: list[Pair]) -> float | None:
    """The median of the pairs' ratios, each from both sides of that pair."""
    ratios = [store.per_second / floor.per_second for store, floor in pairs if floor is not None]
    return statistics.median(ratios) if ratios else None


def percentile(ordered: list[float], share: float) -> float:
    """The value below which that share of the ordered values lies, of which there is one at least."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def repeated(
    operation: Callable[[int], Any],
    seconds: float,
    numbers: Iterator[int],
    *,
    units: int = 1,
    afterwards: Callable[[Any], object] | None = None,
) -> Turn:
    """Call `operation` with one number after the other for so long, at least once: `units` each time.

    Only the time inside it counts. `afterwards` is given what it returned.
    """
    clock = time.perf_counter
    taken: list[float] = []
    started = clock()
    until = started + seconds
    while started < until or not taken:
        done = operation(next(numbers))
        taken.append((clock() - started) * 1e6)
        if afterwards is not None:
            afterwards(done)
        started = clock()
    return Turn(len(taken) * units, sum(taken) / 1e6, taken)


def timed(work: Callable[[], int]) -> Turn:
    """One piece of work, which returns how many units it was."""
    started = time.perf_counter()
    count = work()
    return Turn(count, time.perf_counter() - started)
