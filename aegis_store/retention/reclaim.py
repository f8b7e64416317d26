"""Giving the pages that pruning freed back to the file system, in small steps beside running writers.

A page goes in two acts. `PRAGMA incremental_vacuum` moves the last page of the database into a free slot, which is an
ordinary small write transaction. The file gets shorter when that transaction is checkpointed, with all before it: only then
does SQLite cut the file off. A reader that holds an old snapshot puts the second act off, and the log grows meanwhile, so
the first act waits for it.

SQLite with the WAL-reset bug (`driver.has_wal_reset_bug`) may lose commits when one connection checkpoints while another
commits. There every checkpoint runs while writers wait (`checkpointer`), and the log is not emptied. A fixed SQLite checkpoints
beside them.

Rows spread thinly over pages that are not free are beyond this: `compact` packs them.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Connection

from aegis_store import driver
from aegis_store.checkpointer import checkpoint_alone
from aegis_store.database import Database
from aegis_store.errors import InvalidInput, StoreUnavailable, shown
from aegis_store.target import Target
from aegis_store.verify.run import refuse_damaged

OnProgress = Callable[[int, int], None]
"""Called with (pages given back so far, pages to give back) after each step."""

Outcome = Literal["complete", "time_over", "held_up"]

# A step holds the store for about so long, which is what a writer may have to wait for it.
_STEP_S: Final = 0.002
_PAGES_BETWEEN_LOOKS_AT_THE_CLOCK: Final = 4

# The pause after a step, in lengths of that step. A writer with SQLite's own busy handler (a shell, say) that meets one looks
# again after 1, 2, 5, 10, 15 ms: with the store free four fifths of the time, one in a few thousand looks five times.
# Measured beside a process that appends 200 times a second, in memory, where no disk stalls: p99 1.5 to 3.6 ms instead of 0.3
# to 0.8, at most 8 ms. On a disk with 330 µs an fsync: at most 40 ms, which the process reaches alone too. 40 MB/s come back.
_PAUSE_STEPS: Final = 4
_PAUSE_MIN_S: Final = 0.002
_PAUSE_MAX_S: Final = 0.1

# Checkpoints after about so many pages in the log (2 MiB) keep each one, and the fsync in it, to a few milliseconds.
_CHECKPOINT_PAGES: Final = 256

# A log of so many pages (64 MiB) that cannot be checkpointed: no further steps until the reader that holds it is gone.
_HELD_LOG_PAGES: Final = 8192

# Without a limit of time, a reader is waited for this long. One that reads a page takes milliseconds.
_READER_PATIENCE_S: Final = 5.0
_READER_POLL_S: Final = 0.02

# How long the last checkpoint is tried, each try beside writers that go on.
_LAST_CHECKPOINT_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimReport:
    """What a reclaim gave back.

    `bytes_before` and `bytes_after` are what the database file and its `-wal` take on disk; `free_bytes_before` and
    `free_bytes_after` are in free pages inside. `pages_freed` left the database. `outcome`: "complete" is the ratio asked for
    reached and the file cut to its size; "time_over" is `max_seconds` spent before; "held_up" is a reader with an old
    snapshot (or writers without a break) that kept the file from being cut: what was freed is no longer part of the
    database, and the file is cut when a later checkpoint can.
    """

    bytes_before: int
    bytes_after: int
    free_bytes_before: int
    free_bytes_after: int
    pages_freed: int
    duration_s: float
    outcome: Outcome

    @property
    def complete(self) -> bool:
        return self.outcome == "complete"


class _Pages(NamedTuple):
    """How the database stands: numbers of pages, and their size."""

    all: int
    free: int
    size_bytes: int

    def over(self, free_ratio: float) -> int:
        """How many pages have to go, for free ones to be `free_ratio` of those that are left."""
        if free_ratio >= 1:
            return 0
        return min(max(math.ceil((self.free - free_ratio * self.all) / (1 - free_ratio)), 0), self.free)


class _Log(NamedTuple):
    """What a checkpoint found and did: pages in the log, and how many of them are in the database file now."""

    pages: int
    checkpointed: int


_Checkpoint = Callable[[str], _Log]
"""Runs a checkpoint of that mode."""


def reclaim(
    db: Database,
    *,
    max_seconds: float | None = None,
    free_ratio: float = 0.0,
    check: bool = False,
    on_progress: OnProgress | None = None,
) -> ReclaimReport:
    """Give free pages back until they are `free_ratio` (0 to 1) of all pages, or `max_seconds` (over 0) have passed.

    Works in write transactions of about 2 ms with pauses between them, then shortens the file. What becomes free
    meanwhile is left to the next call. At the end up to a second goes, over `max_seconds` too, into the checkpoint that cuts
    the file; it waits for no one. `on_progress` is called after each step with (pages given back, pages to give back).

    `check`: verify the whole store first, which `max_seconds` does not count, and raise `StoreCorrupt` before a page of a
    damaged one is moved. Without it damage is met only where pages move.

    Interrupted at any point, also by `kill -9`, the store is whole and the next call goes on. Raises `InvalidInput`,
    `ReadOnlyStore`, `StoreUnavailable` for a store whose pages cannot go one by one (`auto_vacuum` was changed: only `compact`
    helps), `StoreBusy` and `StoreFull`; the steps before stay done.
    """
    _check(max_seconds, free_ratio)
    db.check_writable()
    if check:
        refuse_damaged(db, str(db.target))
    started = time.monotonic()
    deadline = started + max_seconds if max_seconds is not None else math.inf
    bytes_before, before = _bytes_on_disk(db.target), _looked_at(db)
    with db.errors(), _checkpoints(db) as checkpoint:
        freed, outcome = _free(db, before.over(free_ratio), deadline, checkpoint, on_progress)
        cut = _cut_file(db, checkpoint)
    after = _looked_at(db)
    if outcome == "complete" and not cut:
        outcome = "held_up"
    return ReclaimReport(
        bytes_before=bytes_before,
        bytes_after=_bytes_on_disk(db.target),
        free_bytes_before=before.free * before.size_bytes,
        free_bytes_after=after.free * after.size_bytes,
        pages_freed=freed,
        duration_s=time.monotonic() - started,
        outcome=outcome,
    )


def _check(max_seconds: Any, free_ratio: Any) -> None:
    if max_seconds is not None and not (_is_number(max_seconds) and 0 < max_seconds < math.inf):
        raise InvalidInput(f"max_seconds must be a number over 0 (left out: no limit), not {shown(max_seconds)}")
    if not (_is_number(free_ratio) and 0 <= free_ratio <= 1):
        raise InvalidInput(f"free_ratio must be a number from 0 to 1, not {shown(free_ratio)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Steps


def _free(
    db: Database, to_free: int, deadline: float, checkpoint: _Checkpoint, on_progress: OnProgress | None
) -> tuple[int, Outcome]:
    """Take `to_free` pages off the database; how many went, and why it stopped."""
    freed = written = 0
    while freed < to_free:
        if time.monotonic() >= deadline:
            return freed, "time_over"
        step_started = time.monotonic()
        step = _step(db, to_free - freed)
        if not step:
            break  # writers have used the free pages meanwhile: none is left, which is what was wanted
        freed += step
        written += step
        if on_progress is not None:
            on_progress(freed, to_free)
        if written >= _CHECKPOINT_PAGES:
            written = 0
            if not _log_is_kept_short(checkpoint, deadline):
                return freed, "time_over" if time.monotonic() >= deadline else "held_up"
        _let_writers_through(time.monotonic() - step_started, deadline)
    return freed, "complete"


def _step(db: Database, most_pages: int) -> int:
    """Free pages for about `_STEP_S` in one write transaction; how many it were."""
    with db.write() as conn:
        ends = time.monotonic() + _STEP_S
        before = _free_pages(conn)
        cursor = _cursor(conn)
        for number in range(min(most_pages, before)):
            if number % _PAGES_BETWEEN_LOOKS_AT_THE_CLOCK == 0 and time.monotonic() >= ends and number:
                break
            # One page a statement: the pragma yields a row without columns for each page, and the standard library's
            # driver does not ask for the second one, whatever number is written here.
            cursor.execute("PRAGMA incremental_vacuum(1)")
        cursor.close()
        return before - _free_pages(conn)


def _cursor(conn: Connection) -> Any:
    """The driver's: SQLAlchemy would double the time of a page."""
    connection: Any = conn.connection.dbapi_connection
    return connection.cursor()


def _let_writers_through(step_took_s: float, deadline: float) -> None:
    pause_s = min(max(step_took_s * _PAUSE_STEPS, _PAUSE_MIN_S), _PAUSE_MAX_S)
    time.sleep(max(min(pause_s, deadline - time.monotonic()), 0))


# Checkpoints


@contextmanager
def _checkpoints(db: Database) -> Iterator[_Checkpoint]:
    """What runs the checkpoints: see the top of this file. No checkpoint waits for anybody's lock."""
    with closing(
        driver.dbapi.connect(db.target.uri("mode=rw"), uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    ) as connection:
        if driver.has_wal_reset_bug(driver.VERSION_INFO):
            yield lambda _: _Log(*checkpoint_alone(connection, db.turn))
        else:
            yield lambda mode: _log_of(connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall())


def _log_of(rows: list[tuple[Any, ...]]) -> _Log:
    _busy, pages, checkpointed = rows[0]
    return _Log(max(pages, 0), max(checkpointed, 0))


def _log_is_kept_short(checkpoint: _Checkpoint, deadline: float) -> bool:
    """Checkpoint what can be. False: too much of the log is held by a reader, who did not go away in time."""
    until = min(deadline, time.monotonic() + _READER_PATIENCE_S)
    while True:
        log = checkpoint("PASSIVE")
        if log.pages - log.checkpointed <= _HELD_LOG_PAGES:
            break
        if time.monotonic() >= until:
            return False
        time.sleep(_READER_POLL_S)
    if log.pages > _HELD_LOG_PAGES:
        # Writers that never pause keep SQLite from starting the log anew. This does, if it finds nobody in its way.
        checkpoint("TRUNCATE")
    return True


def _cut_file(db: Database, checkpoint: _Checkpoint) -> bool:
    """Checkpoint until the database file is as long as its pages, and empty the log. False if a reader is in the way."""
    until = time.monotonic() + _LAST_CHECKPOINT_S
    while True:
        checkpoint("PASSIVE")  # nobody waits for this one; after it, the next has little to do while it holds the writers
        log = checkpoint("TRUNCATE")
        pages = _looked_at(db)
        held = log.pages - log.checkpointed
        cut = os.stat(db.target.path).st_size <= pages.all * pages.size_bytes
        if (cut and not held) or time.monotonic() >= until:
            return cut and held <= _CHECKPOINT_PAGES  # a few may be what a writer has just added
        time.sleep(_READER_POLL_S)


# Looking


def _looked_at(db: Database) -> _Pages:
    with db.read() as conn:
        if _pragma(conn, "auto_vacuum") != 2:
            raise StoreUnavailable(
                store=str(db.target),
                detail="its auto_vacuum is not INCREMENTAL, so free pages cannot be given back one by one: "
                "`aegis-store reclaim --compact` mends that while no one has the store open",
            )
        return _Pages(_pragma(conn, "page_count"), _free_pages(conn), _pragma(conn, "page_size"))


def _free_pages(conn: Connection) -> int:
    return _pragma(conn, "freelist_count")


def _pragma(conn: Connection, name: str) -> int:
    return int(conn.exec_driver_sql(f"PRAGMA {name}").scalar_one())


def _bytes_on_disk(target: Target) -> int:
    """The database file and its log, by their paths: opening and closing either would drop this process's locks on it."""
    return sum(_size(target.side_file(suffix)) for suffix in ("", "-wal"))


def _size(path: os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
