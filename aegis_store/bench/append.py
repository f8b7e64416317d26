"""A lone writer: one append after the other, and batches of a hundred."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from aegis_store.bench import floor
from aegis_store.bench.measure import Row, Sides, repeated
from aegis_store.bench.room import TYPE, WARM_UP, Room, batch, payload_of, session_of
from aegis_store.connections import Durability
from aegis_store.store import EventStore

BATCH: Final = 100


@contextmanager
def alone(room: Room, durability: Durability) -> Iterator[Sides]:
    """Each append is an operation, committed by itself."""
    with ExitStack() as stack:
        store = stack.enter_context(EventStore.open(room.store("store.db"), durability=durability))
        theirs = stack.enter_context(floor.lone_writer(room.store("floor.db"), durability, room.seconds))
        append, numbers = append_to(store), itertools.count()
        for _ in range(WARM_UP):
            append(next(numbers))
        yield Sides(lambda: repeated(append, room.seconds, numbers), theirs)


def append_to(store: EventStore) -> floor.Operation:
    return lambda number: store.append(session_of(number), TYPE, payload_of(number))


@contextmanager
def in_batches(room: Room) -> Iterator[Sides]:
    """Each batch is an operation, a hundred events in one transaction, at `power`."""
    with ExitStack() as stack:
        store = stack.enter_context(EventStore.open(room.store("store.db"), durability="power"))
        opened = stack.enter_context(floor.connection(room.store("floor.db"), "power"))
        operations = (append_batch_to(store), floor.append_batch_on(opened.cursor(), BATCH))
        sides = []
        for operation in operations:
            numbers = itertools.count()
            operation(next(numbers))
            sides.append(partial(repeated, operation, room.seconds, numbers, units=BATCH))
        yield Sides(*sides)


def append_batch_to(store: EventStore) -> floor.Operation:
    return lambda number: store.append_many(session_of(number), batch(number))


ROWS: Final = [
    Row("append", "append, process", "events", partial(alone, durability="process")),
    Row("append", "append, power", "events", partial(alone, durability="power")),
    Row("append-many", f"append_many of {BATCH}, power", "events", in_batches),
]
