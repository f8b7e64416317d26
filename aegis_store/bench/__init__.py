"""Measuring the store beside its floor: the same SQL, pragmas and work, written by hand on the bare driver.

    measure.py    rows, sides, turns, pairs: what a figure is
    room.py       where a row is measured, and with what
    floor.py      the hand-written side
    append.py     a lone writer, batches
    groups.py     threads and tasks
    processes.py  processes
    reading.py    pages
    following.py  from an append to its follower
    pruning.py    the events of ended sessions
    opening.py    a store that stands
    disk.py       what an fsync takes
    stored.py     appends to a store that is full already
    server.py     some of it on PostgreSQL

A measure of another kind is one more row: a context manager that sets up two sides.
"""

import os
import platform
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from aegis_store import driver
from aegis_store.bench import append, following, groups, opening, processes, pruning, reading
from aegis_store.bench.measure import Figures, OnTurn, Row, measured
from aegis_store.bench.room import Room, template

ROWS: Final = [
    *append.ROWS,
    *groups.ROWS,
    *processes.ROWS,
    *reading.ROWS,
    *following.ROWS,
    *pruning.ROWS,
    *opening.ROWS,
]

MEASURES: Final = tuple(dict.fromkeys(row.measure for row in ROWS))
"""The families of rows, in the order of the table."""


def chosen(measures: Collection[str] = ()) -> list[Row]:
    """The rows of these families; of all, if none is named."""
    return [row for row in ROWS if not measures or row.measure in measures]


def run(directory: Path, rows: list[Row], *, pairs: int, seconds: float, on_turn: OnTurn) -> Iterator[Figures]:
    """Measure the rows, one after the other, in files below `directory` that go again.

    So many pairs of turns each, a turn of so many seconds a side. `on_turn` is called after each pair.
    """
    with template(directory) as path:
        for row in rows:
            with TemporaryDirectory(prefix="row-", dir=directory) as made:
                yield measured(row, Room(Path(made), path, seconds), pairs, on_turn)


def machine() -> dict[str, object]:
    """What the figures depend on, beside the disk."""
    return {
        "python": platform.python_version(),
        "sqlite": driver.VERSION,
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
    }
