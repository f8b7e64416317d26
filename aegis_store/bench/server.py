"""The same on PostgreSQL, beside a loop of psycopg with the same statement, written by hand. Each side has its own schema.

What both have in common, the way to the server and its work, is most of each operation.
"""

import itertools
import json
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

from sqlalchemy import make_url

from aegis_store.append import APPEND_ON
from aegis_store.bench import floor
from aegis_store.bench.append import BATCH, append_batch_to, append_to
from aegis_store.bench.measure import Row, Sides, repeated
from aegis_store.bench.processes import PROCESSES, append_when_told, children, turn_of, work_when_told
from aegis_store.bench.reading import PAGE, cursor_of, read_by
from aegis_store.bench.room import FULL_IDS, SESSION_IDS, WARM_UP, Room, fill, session_of
from aegis_store.connections import Durability
from aegis_store.errors import InvalidInput
from aegis_store.postgres.errors import errors_of
from aegis_store.server import Server
from aegis_store.store import EventStore

_SYNCHRONOUS: Final = {"power": "on", "process": "off"}
_APPEND: Final = APPEND_ON["postgresql"]
_PAGE_SQL: Final = """
SELECT position, seq, type, occurred_at, recorded_at, event_id, run_id, payload_ref, payload
FROM session JOIN event ON event.session = session.id
WHERE session.session_id = %s AND event.seq > %s ORDER BY event.seq LIMIT %s"""

_SESSIONS: Final = """
INSERT INTO {schema}.session (session_id, tenant, owner, status, created_at, updated_at)
SELECT name, 'default', 'default', 'running', 0, 0 FROM unnest(%s::text[]) AS name"""

_numbers: Final = itertools.count(1)


def rows(url: str, measures: Collection[str] = ()) -> list[Row]:
    """The rows of these families, all if none is named, to be measured in the database of that URL."""
    server = Server.of(url)
    if server is None:
        raise InvalidInput("what is measured there is PostgreSQL: give a URL such as postgresql+psycopg://user@host/database")
    all_rows = [
        Row("append", "append, process", "events", partial(alone, server=server, durability="process")),
        Row("append", "append, power", "events", partial(alone, server=server, durability="power")),
        Row("append-many", f"append_many of {BATCH}, power", "events", partial(in_batches, server=server)),
        Row("processes", f"{PROCESSES} processes, power", "events", partial(at_once, server=server)),
        Row("read", f"page of {PAGE}", "pages", partial(pages, server=server)),
    ]
    missing = [each for each in measures if each not in {row.measure for row in all_rows}]
    if missing:
        raise InvalidInput(f"{missing[0]} is measured on SQLite alone: leave out --db")
    return [row for row in all_rows if not measures or row.measure in measures]


def version(url: str) -> str:
    """That of the server. Raises `StoreUnavailable`."""
    with connected(url, "power") as connection:
        return str(connection.execute("SHOW server_version").fetchone()[0])


# Where


@contextmanager
def store_of(server: Server) -> Iterator[str]:
    """The URL of a store with the sessions of `SESSION_IDS` and no events, in a schema of its own."""
    name = f"aegis_bench_{os.getpid()}_{next(_numbers)}"
    before = server.url.query.get("options")
    options = f"{before} -csearch_path={name}" if isinstance(before, str) else f"-csearch_path={name}"
    url = server.url.update_query_dict({"options": options}).render_as_string(hide_password=False)
    with errors_of(server), connected(url, "power") as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        try:
            EventStore.upgrade(url)
            connection.execute(_SESSIONS.format(schema=name), [SESSION_IDS])
            yield url
        finally:
            connection.execute(f"DROP SCHEMA {name} CASCADE")


@contextmanager
def connected(url: str, durability: Durability) -> Iterator[Any]:
    """A plain connection, each statement a transaction."""
    try:
        import psycopg  # noqa: PLC0415 - it is not everybody's
    except ModuleNotFoundError:
        raise InvalidInput("psycopg is not installed: pip install 'aegis-store[postgres]'") from None
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    server = Server.of(url)
    assert server is not None
    with errors_of(server):
        connection = psycopg.connect(plain, autocommit=True)
    with closing(connection):
        connection.execute(f"SET synchronous_commit = {_SYNCHRONOUS[durability]}".encode())
        yield connection


# What


@contextmanager
def alone(room: Room, server: Server, durability: Durability) -> Iterator[Sides]:
    """Each append is an operation, committed by itself."""
    with ExitStack() as stack:
        store = stack.enter_context(EventStore.open(stack.enter_context(store_of(server)), durability=durability))
        connection = stack.enter_context(connected(stack.enter_context(store_of(server)), durability))
        sides = []
        for append in (append_to(store), append_on(connection)):
            numbers = itertools.count()
            for _ in range(WARM_UP):
                append(next(numbers))
            sides.append(partial(repeated, append, room.seconds, numbers))
        yield Sides(*sides)


def append_on(connection: Any) -> floor.Operation:
    cursor = connection.cursor()
    return lambda number: cursor.execute(_APPEND, floor.event_row(number)).fetchall()


@contextmanager
def in_batches(room: Room, server: Server) -> Iterator[Sides]:
    """Each batch is an operation, a hundred events in one transaction, at `power`."""
    with ExitStack() as stack:
        store = stack.enter_context(EventStore.open(stack.enter_context(store_of(server)), durability="power"))
        connection = stack.enter_context(connected(stack.enter_context(store_of(server)), "power"))
        sides = []
        for operation in (append_batch_to(store), append_batch_on(connection)):
            numbers = itertools.count()
            operation(next(numbers))
            sides.append(partial(repeated, operation, room.seconds, numbers, units=BATCH))
        yield Sides(*sides)


def append_batch_on(connection: Any) -> floor.Operation:
    def append_batch(number: int) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            for each in range(number * BATCH, (number + 1) * BATCH):
                cursor.execute(_APPEND, floor.event_row(each, session_of(number))).fetchall()

    return append_batch


@contextmanager
def pages(room: Room, server: Server) -> Iterator[Sides]:
    """Each page is an operation: 100 events of one session as `Event` objects. The floor: rows, payloads decoded."""
    with ExitStack() as stack:
        url = stack.enter_context(store_of(server))
        fill(url, room.seconds)
        store = stack.enter_context(EventStore.open(url))
        connection = stack.enter_context(connected(url, "power"))
        last_seq = store.get_session(FULL_IDS[0]).last_seq
        operations = (read_by(store, last_seq), read_on(connection, last_seq))
        for operation in operations:
            operation(0)
        yield Sides(*(partial(repeated, operation, room.seconds, itertools.count()) for operation in operations))


def read_on(connection: Any, last_seq: int) -> floor.Operation:
    def read(number: int) -> object:
        rows = connection.execute(_PAGE_SQL, (*cursor_of(number, last_seq), PAGE)).fetchall()
        return [(*row[:-1], json.loads(row[-1])) for row in rows]

    return read


@contextmanager
def at_once(room: Room, server: Server) -> Iterator[Sides]:
    """Eight processes, each of which appends one event after the other, at `power`, on both sides."""
    with ExitStack() as stack:
        sides = []
        for work in (append_when_told, _loop_when_told):
            lines = stack.enter_context(children(PROCESSES, work, stack.enter_context(store_of(server))))
            sides.append(partial(turn_of, lines, room.seconds))
        yield Sides(*sides)


def _loop_when_told(line: Connection, url: str) -> None:
    with connected(url, "power") as connection:
        work_when_told(line, append_on(connection))
