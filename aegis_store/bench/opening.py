"""Opening a store that stands, in which nothing is due."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from aegis_store.bench import floor
from aegis_store.bench.measure import Row, Sides, Turn, repeated
from aegis_store.bench.room import Room
from aegis_store.store import EventStore


@contextmanager
def opens(room: Room) -> Iterator[Sides]:
    """Each `EventStore.open` is an operation: what it looks at, its prune, its threads. The floor: connect and one SELECT."""
    path = room.store("store.db")

    def opened(_: int) -> EventStore:
        return EventStore.open(path)

    def connected(_: int) -> Any:
        connection = floor.connect(path, "power")
        connection.execute("SELECT * FROM store").fetchall()
        return connection

    def turn(operation: floor.Operation) -> Turn:
        return repeated(operation, room.seconds, itertools.count(), afterwards=lambda made: made.close())

    yield Sides(lambda: turn(opened), lambda: turn(connected))


ROWS: Final = [Row("open", "open", "opens", opens)]
