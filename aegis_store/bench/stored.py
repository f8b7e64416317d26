"""Appends to a store that is full already: so many events in 1,000 sessions, all of them at their caps.

Both sides begin in the same state. The store as it is; the floor as one gets SQLite: 4 KiB pages, and checkpoints inside
some commit every 1,000 pages. Each side is a process of its own, so that its memory can be told.
"""

import itertools
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from aegis_store import driver
from aegis_store.append import APPEND_SQL
from aegis_store.bench import floor
from aegis_store.bench.measure import OnTurn, Sides, Speed, Turn, pairs_of, ratio, repeated
from aegis_store.bench.processes import answer, children
from aegis_store.bench.room import TYPE, copied, payload_of, synced, template
from aegis_store.connections import Durability
from aegis_store.errors import StoreFull
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.store import EventStore

SESSIONS: Final = 1000
DURABILITIES: Final[tuple[Durability, ...]] = ("process", "power")
SESSION_IDS: Final = [f"session-{number:04d}" for number in range(SESSIONS)]
_FILL_AT_ONCE: Final = 10_000

# Measured with 1,000,000: 2.75 GB with pages of 8 KiB, 4.1 GB with pages of 4 KiB; and room for the logs.
_BYTES_AN_EVENT: Final = 7_500

OnFilled = Callable[[int], None]
"""Called with how many events were stored since it was last called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSide:
    """A side's appends. `wal_peak_bytes`: the longest its log was; `rss_peak_bytes`: the most memory its process had."""

    speed: Speed
    wal_peak_bytes: int
    rss_peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFigures:
    """Appends to random sessions of a store at its caps. `ratio`: store over floor, the median over the pairs."""

    durability: Durability
    stored_events: int
    store: StoredSide
    floor: StoredSide
    ratio: float | None


def run(
    directory: Path, events: int, *, pairs: int, seconds: float, on_filled: OnFilled, on_turn: OnTurn
) -> Iterator[StoredFigures]:
    """Fill two stores with `events` each (whole caps: a multiple of 1,000), then measure at both durabilities.

    Raises `StoreFull` before anything is written if there is no room.
    """
    _check_room(directory, events)
    paths = {"store": directory / "store.db", "floor": directory / "floor.db"}
    with template(directory, SESSION_IDS) as empty:
        with EventStore.open(empty, durability="process", maintain_every=None) as store:
            store.set_retention_policy(RetentionPolicy(max_events=max(events // SESSIONS, 1)))
        for path in paths.values():
            copied(empty, path)
    give_default_pages(paths["floor"])
    for path in paths.values():
        fill(path, events, on_filled)
    for durability in DURABILITIES:
        yield _measured(paths, durability, events, pairs, seconds, on_turn)


def _check_room(directory: Path, events: int) -> None:
    free, wanted = shutil.disk_usage(directory).free, events * _BYTES_AN_EVENT
    if free < wanted:
        raise StoreFull(store=str(directory), detail=f"it takes {wanted:,} bytes to measure so many, and {free:,} are free")


def give_default_pages(path: Path) -> None:
    """Pages of 4 KiB instead of the store's."""
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
        for statement in ("PRAGMA journal_mode = DELETE", "PRAGMA page_size = 4096", "VACUUM", "PRAGMA journal_mode = WAL"):
            connection.execute(statement).fetchall()


def fill(path: Path, events: int, on_filled: OnFilled) -> None:
    """Store so many events, the sessions taking turns, by the store's own statement, so that its triggers hold."""
    insert = APPEND_SQL.partition("RETURNING")[0]
    texts = [floor.to_json(payload_of(number)) for number in range(64)]
    with floor.connection(path, "process") as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for start in range(0, events, _FILL_AT_ONCE):
            numbers = range(start, min(start + _FILL_AT_ONCE, events))
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, _rows(numbers, texts))
            connection.execute("COMMIT")
            on_filled(len(numbers))
    synced(path)


def _rows(numbers: Iterable[int], texts: list[str]) -> Iterator[dict[str, Any]]:
    row = floor.event_row(0)
    for number in numbers:
        yield {**row, "session_id": SESSION_IDS[number % SESSIONS], "payload": texts[number % len(texts)]}


def _measured(
    paths: dict[str, Path], durability: Durability, events: int, pairs: int, seconds: float, on_turn: OnTurn
) -> StoredFigures:
    taken = []
    with _side(append_by_store, paths["store"], durability, seconds) as store:
        with _side(append_by_hand, paths["floor"], durability, seconds) as theirs:
            for pair in pairs_of(Sides(store.turn, theirs.turn), pairs):
                taken.append(pair)
                on_turn()
            return StoredFigures(
                durability=durability,
                stored_events=events,
                store=store.figures(),
                floor=theirs.figures(),
                ratio=ratio(taken),
            )


class _Side:
    """The process of one side, seen from here."""

    def __init__(self, line: Connection, seconds: float) -> None:
        self._line = line
        self._seconds = seconds
        self._turns: list[Turn] = []
        self._wal_peak_bytes = 0
        self._rss_peak_bytes: int | None = None

    def turn(self) -> Turn:
        self._line.send(self._seconds)
        turn, self._wal_peak_bytes, self._rss_peak_bytes = answer(self._line)
        self._turns.append(turn)
        return self._turns[-1]

    def figures(self) -> StoredSide:
        return StoredSide(speed=Speed.of(self._turns), wal_peak_bytes=self._wal_peak_bytes, rss_peak_bytes=self._rss_peak_bytes)


@contextmanager
def _side(work: Callable[..., None], path: Path, durability: Durability, seconds: float) -> Iterator[_Side]:
    with children(1, work, path, durability) as (line,):
        yield _Side(line, seconds)


def append_by_store(line: Connection, path: Path, durability: Durability) -> None:
    with EventStore.open(path, durability=durability, prune_on_open=False) as store:
        _append_when_told(line, path, lambda number: store.append(_some_session(), TYPE, payload_of(number)))


def append_by_hand(line: Connection, path: Path, durability: Durability) -> None:
    with floor.connection(path, durability) as connection:
        cursor = connection.cursor()
        _append_when_told(
            line, path, lambda number: cursor.execute(APPEND_SQL, floor.event_row(number, _some_session())).fetchall()
        )


_chance: Final = random.Random(595)


def _some_session() -> str:
    return SESSION_IDS[_chance.randrange(SESSIONS)]


def _append_when_told(line: Connection, path: Path, append: floor.Operation) -> None:
    wal, numbers, wal_peak_bytes = path.with_name(f"{path.name}-wal"), itertools.count(), 0

    def look(_: object) -> None:
        nonlocal wal_peak_bytes
        wal_peak_bytes = max(wal_peak_bytes, wal.stat().st_size)

    append(next(numbers))
    line.send("ready")
    while True:
        turn = repeated(append, line.recv(), numbers, afterwards=look)
        line.send((turn, wal_peak_bytes, rss_peak_bytes()))


def rss_peak_bytes() -> int | None:
    """The most memory that this process ever had. None where that cannot be told."""
    status = Path("/proc/self/status")
    if status.exists():  # rusage of Linux also counts what the parent had when it started this process
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - there is none on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
