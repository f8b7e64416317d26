"""Reading pages."""

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

from aegis_store.bench import floor
from aegis_store.bench.measure import Row, Sides, repeated
from aegis_store.bench.room import FULL_IDS, Room
from aegis_store.store import EventStore

PAGE: Final = 100

# One statement, which is a snapshot by itself.
_PAGE_SQL: Final = """
SELECT position, seq, type, occurred_at, recorded_at, event_id, run_id, payload_ref, payload
FROM session JOIN event ON event.session = session.id
WHERE session.session_id = ? AND event.seq > ? ORDER BY event.seq LIMIT ?"""


@contextmanager
def pages(room: Room) -> Iterator[Sides]:
    """Each page is an operation: 100 events of one session as `Event` objects. The floor: rows, payloads decoded."""
    path = room.filled("store.db")
    with ExitStack() as stack:
        store = stack.enter_context(EventStore.open(path))
        opened = stack.enter_context(floor.connection(path, "power"))
        last_seq = store.get_session(FULL_IDS[0]).last_seq
        operations = (read_by(store, last_seq), read_on(opened, last_seq))
        for operation in operations:
            operation(0)  # warm: statements compiled
        yield Sides(*(partial(repeated, operation, room.seconds, itertools.count()) for operation in operations))


def read_by(store: EventStore, last_seq: int) -> floor.Operation:
    def read(number: int) -> object:
        session_id, after_seq = cursor_of(number, last_seq)
        return store.read(session_id, after_seq=after_seq, limit=PAGE).events

    return read


def read_on(connection: Any, last_seq: int) -> floor.Operation:
    def read(number: int) -> object:
        rows = connection.execute(_PAGE_SQL, (*cursor_of(number, last_seq), PAGE)).fetchall()
        return [(*row[:-1], json.loads(row[-1])) for row in rows]

    return read


def cursor_of(number: int, last_seq: int) -> tuple[str, int]:
    """Where page number n begins: in all sessions in turn, at all places of them, never so late that it comes back short."""
    return FULL_IDS[number % len(FULL_IDS)], number * 37 % max(last_seq - PAGE + 1, 1)


ROWS: Final = [Row("read", f"page of {PAGE}", "pages", pages)]
