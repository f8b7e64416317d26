"""The floor: the same SQL, pragmas and work as the store's, written by hand on the bare driver.

No checks, no lock, no events returned, no thread: what SQLite and the JSON encoder cost, and nothing else.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from aegis_store import driver
from aegis_store.append import APPEND_SQL
from aegis_store.bench.measure import Side, repeated
from aegis_store.bench.room import TYPE, WARM_UP, payload_of, session_of
from aegis_store.connections import Durability
from aegis_store.target import Target

_SYNCHRONOUS: Final = {"power": "FULL", "process": "NORMAL"}

# As `json.dumps` does it, with the settings of the store's payloads, so that both write the same bytes.
to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Operation = Callable[[int], object]


@contextmanager
def connection(path: Path, durability: Durability) -> Iterator[Any]:
    """A connection with the pragmas of the store's writer. SQLite checkpoints when it thinks fit."""
    with closing(connect(path, durability)) as opened:
        yield opened


def connect(path: Path, durability: Durability) -> Any:
    uri = Target.of(path).uri("mode=rw")
    opened = driver.dbapi.connect(uri, uri=True, isolation_level=None)
    synchronous = f"synchronous = {_SYNCHRONOUS[durability]}"
    for pragma in ("foreign_keys = ON", "trusted_schema = OFF", synchronous, "journal_mode = WAL"):
        opened.execute(f"PRAGMA {pragma}").fetchall()
    return opened


@contextmanager
def lone_writer(path: Path, durability: Durability, seconds: float) -> Iterator[Side]:
    """A turn: one append after the other, each committed by itself."""
    with connection(path, durability) as opened:
        append, numbers = append_on(opened.cursor()), itertools.count()
        for _ in range(WARM_UP):
            append(next(numbers))
        yield lambda: repeated(append, seconds, numbers)


def append_on(cursor: Any) -> Operation:
    return lambda number: cursor.execute(APPEND_SQL, event_row(number)).fetchall()


def append_batch_on(cursor: Any, events: int) -> Operation:
    """Batch number n in one transaction, all to one session."""

    def append_batch(number: int) -> None:
        cursor.execute("BEGIN IMMEDIATE")
        for each in range(number * events, (number + 1) * events):
            cursor.execute(APPEND_SQL, event_row(each, session_of(number))).fetchall()
        cursor.execute("COMMIT")

    return append_batch


def event_row(number: int, session_id: str | None = None) -> dict[str, Any]:
    """The parameters of append number n."""
    now_us = time.time_ns() // 1000
    return {
        "session_id": session_id or session_of(number),
        "type": TYPE,
        "payload": to_json(payload_of(number)),
        "occurred_at": now_us,
        "recorded_at": now_us,
        "event_id": None,
        "run_id": None,
        "payload_ref": None,
        "expected_seq": None,
        "checksum": None,  # which is ours alone
    }
