"""What an operator should know of a store and what it stands on: also of one that does not open. Changes nothing.

Each check is a function that gives findings. Those on files come first and use paths alone; only then is the store looked at,
through a connection that cannot write.
"""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from aegis_store import driver, file_system, gate
from aegis_store.creation import left_behind
from aegis_store.errors import AegisStoreError, plural, shown
from aegis_store.events import from_us_within
from aegis_store.read_marks import Reader, readers
from aegis_store.schema import HEAD
from aegis_store.settings import LOG_PAGES_LIMIT, LOG_PAGES_MAX, PAGE_SIZE_BYTES
from aegis_store.sqlite_errors import errors_of
from aegis_store.target import Target, is_open_here

State = Literal["ok", "warning", "problem"]

# A log is begun anew at some 60 MiB; one that is twice as long is held by somebody.
_LONG_LOG_BYTES: Final = 2 * LOG_PAGES_LIMIT * PAGE_SIZE_BYTES

# Less room than two such logs take, and the next burst fills the disk.
_LITTLE_ROOM_BYTES: Final = 2 * _LONG_LOG_BYTES

# A part of the file that is free is room for new events; only much of much is worth giving back.
_MANY_FREE_RATIO: Final = 0.25
_MANY_FREE_BYTES: Final = 64 * 1024 * 1024

_VERIFY: Final = "`aegis-store verify` tells all that is wrong, and what to do"

# Clocks of machines differ by less, or should.
_CLOCK_SLACK_US: Final = 60_000_000
_EARLIEST: Final = datetime(2025, 1, 1, tzinfo=UTC)


class Finding(NamedTuple):
    """One line of a diagnosis. `advice`: what to do, None where all is well."""

    name: str
    state: State
    found: str
    advice: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """What `EventStore.doctor` found, in the order in which it looked."""

    store: str
    findings: tuple[Finding, ...]

    @property
    def state(self) -> State:
        """That of the worst finding."""
        states = {finding.state for finding in self.findings}
        return "problem" if "problem" in states else "warning" if "warning" in states else "ok"


def doctor(target: Target) -> DoctorReport:
    """See `EventStore.doctor`."""
    if not target.path.parent.is_dir():
        missing = f"there is no directory {shown(str(target.path.parent))}"
        return DoctorReport(store=str(target), findings=(Finding("directory", "problem", missing, "check the path"),))
    findings = []
    for look in (_sqlite, _file_system, _disk, _directory, _file, _side_files, _left_behind, _log, _oldest_reader, _inside):
        findings += _of(look, target)
    return DoctorReport(store=str(target), findings=tuple(findings))


def _of(look: Callable[[Target], Iterator[Finding]], target: Target) -> list[Finding]:
    try:
        return list(look(target))
    except OSError as error:
        name = look.__name__.strip("_").replace("_", " ")
        return [Finding(name, "warning", f"cannot be looked at: {error.strerror}", "run this as a user who may read it")]


# What it stands on


def _sqlite(_: Target) -> Iterator[Finding]:
    found = f"{driver.VERSION} of {driver.dbapi.__name__.partition('.')[0]}"
    if driver.has_wal_reset_bug(driver.VERSION_INFO):
        advice = (
            "checkpoints run while writers wait, which makes it safe; install the wheel pysqlite3, or a Python with SQLite "
            "3.51.3 or newer, to have them run beside"
        )
        yield Finding("SQLite", "warning", f"{found}, with the WAL-reset bug", advice)
    else:
        yield Finding("SQLite", "ok", found)


def _file_system(target: Target) -> Iterator[Finding]:
    kind = file_system.kind_of(target.path)
    if not file_system.is_network(kind):
        yield Finding("file system", "ok", kind or "unknown here")
    elif file_system.is_allowed():
        yield Finding(
            "file system", "warning", f"{kind}, allowed by the environment", "see that no other machine opens the store"
        )
    else:
        yield Finding("file system", "problem", f"{kind}, a network file system", "put the store on a local disk")


def _disk(target: Target) -> Iterator[Finding]:
    free_bytes = shutil.disk_usage(target.path.parent).free
    found = f"{free_bytes:,} bytes free"
    if free_bytes < _LITTLE_ROOM_BYTES:
        yield Finding("disk", "warning", found, "free some space: a log that is held for a while takes as much")
    else:
        yield Finding("disk", "ok", found)


def _directory(target: Target) -> Iterator[Finding]:
    directory = target.path.parent
    status = directory.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022 and not mode & stat.S_ISVTX:
        found, advice = f"mode {mode:04o}: others may replace the store", f"chmod go-w {shown(str(directory))}"
        yield Finding("directory", "warning", found, advice)
    elif not os.access(directory, os.W_OK):
        yield Finding("directory", "warning", "cannot be written by this user", "run writers as a user who may write it")
    else:
        yield Finding("directory", "ok", f"mode {mode:04o}")


def _file(target: Target) -> Iterator[Finding]:
    status = target.path.stat() if gate.exists(target) else None
    if status is None or not stat.S_ISREG(status.st_mode):
        return  # `_inside` says what it is
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        found, advice = f"mode {mode:04o}: others may read it", f"chmod 600 {shown(str(target))}, if they should not"
        yield Finding("file", "warning", found, advice)
    elif not os.access(target.path, os.W_OK):
        yield Finding("file", "warning", "cannot be written by this user", "run writers as a user who may write it")
    else:
        yield Finding("file", "ok", f"mode {mode:04o}, {status.st_size:,} bytes")


def _side_files(target: Target) -> Iterator[Finding]:
    if not gate.exists(target):
        return
    store = target.path.stat()
    for suffix in ("-wal", "-shm", "-lock"):
        with suppress(FileNotFoundError):
            status = target.side_file(suffix).stat()
            if status.st_uid != store.st_uid:
                found = f"belongs to user {status.st_uid}, the store to {store.st_uid}"
                advice = f"stop the writers, then chown it to {store.st_uid}; run all commands as that user"
                yield Finding(suffix, "problem", found, advice)
            elif stat.S_IMODE(status.st_mode) & ~stat.S_IMODE(store.st_mode) & 0o077:
                found = f"mode {stat.S_IMODE(status.st_mode):04o}, the store has {stat.S_IMODE(store.st_mode):04o}"
                yield Finding(
                    suffix, "warning", found, f"chmod {stat.S_IMODE(store.st_mode):o} {shown(target.side_file(suffix).name)}"
                )
            else:
                yield Finding(suffix, "ok", f"mode {stat.S_IMODE(status.st_mode):04o}, {status.st_size:,} bytes")


def _left_behind(target: Target) -> Iterator[Finding]:
    orphans = sorted(shown(file.name) for file in left_behind(target))
    if orphans:
        found = f"{plural(len(orphans), 'temporary file')} of a process that died: {', '.join(orphans[:5])}"
        yield Finding("left behind", "warning", found, "remove them")
    else:
        yield Finding("left behind", "ok", "nothing")


def _log(target: Target) -> Iterator[Finding]:
    log = target.side_file("-wal")
    size_bytes = log.stat().st_size if log.exists() else 0
    if size_bytes and not gate.exists(target):
        yield Finding("log", "problem", f"{shown(log.name)} is there, the store is not", "put the file back, or remove both")
    elif size_bytes > _LONG_LOG_BYTES:
        advice = "look who reads for long (oldest reader); it gets shorter when the last one closes the store"
        yield Finding("log", "warning", f"{size_bytes:,} bytes", advice)
    else:
        yield Finding("log", "ok", f"{size_bytes:,} bytes")


def _oldest_reader(target: Target) -> Iterator[Finding]:
    found: list[Reader] | None = None if is_open_here(target.path) else readers(target.side_file("-shm"))
    if found is None:
        yield Finding("oldest reader", "ok", "cannot be known here")
    elif not found:
        yield Finding("oldest reader", "ok", "none")
    else:
        oldest = max(found, key=lambda reader: reader.pages_behind)
        told = f"process {oldest.pid}, {plural(oldest.pages_behind, 'page')} of the log behind"
        if oldest.pages_behind > LOG_PAGES_MAX:
            yield Finding("oldest reader", "warning", told, "end it or let it finish: until then the log cannot be begun anew")
        else:
            yield Finding("oldest reader", "ok", told)


# Inside


def _inside(target: Target) -> Iterator[Finding]:
    if file_system.is_network(file_system.kind_of(target.path)) and not file_system.is_allowed():
        return  # nothing opens it there
    try:
        gate.check(target)
        yield Finding("schema", "ok", HEAD)
        query = "mode=ro" if gate.wal_is_live(target) else "mode=ro&immutable=1"
        with errors_of(str(target)), closing(driver.dbapi.connect(target.uri(query), uri=True)) as connection:
            for look in (_pragmas, _free_pages, _budget, _clock):
                yield look(connection)
    except AegisStoreError as error:
        yield Finding("store", "problem", error.what, error.hint)


def _one(connection: Any, sql: str) -> Any:
    row = connection.execute(sql).fetchone()
    return row and row[0]


def _pragmas(connection: Any) -> Finding:
    wanted = {"journal_mode": "wal", "auto_vacuum": 2, "encoding": "UTF-8"}
    wrong = [f"{name} is {found}" for name, value in wanted.items() if (found := _one(connection, f"PRAGMA {name}")) != value]
    if "auto_vacuum" in " ".join(wrong):
        return Finding("pragmas", "warning", ", ".join(wrong), "`aegis-store reclaim --compact` sets auto_vacuum")
    if wrong and wrong != ["journal_mode is delete"]:
        return Finding("pragmas", "warning", ", ".join(wrong), "the next one to open the store to write sets it")
    return Finding("pragmas", "ok", f"WAL, auto_vacuum, {_one(connection, 'PRAGMA page_size')} bytes a page")


def _free_pages(connection: Any) -> Finding:
    pages, free, page_bytes = (_one(connection, f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size"))
    found = f"{free:,} of {pages:,}"
    if free > pages * _MANY_FREE_RATIO and free * page_bytes > _MANY_FREE_BYTES:
        return Finding("free pages", "warning", found, "`aegis-store reclaim` gives them back to the disk")
    return Finding("free pages", "ok", found)


def _budget(connection: Any) -> Finding:
    row = connection.execute("SELECT retained_bytes, max_total_bytes FROM store").fetchone()
    if row is not None and row[1] is None:
        return Finding("budget", "ok", "none (max_total_bytes)")
    if row is None or not all(isinstance(number, int) for number in row):
        return Finding("budget", "problem", "is damaged", _VERIFY)
    retained_bytes, budget_bytes = row
    found = f"{retained_bytes:,} of {budget_bytes:,} bytes"
    if retained_bytes > budget_bytes:
        return Finding("budget", "warning", found, "`aegis-store prune` shows what would go; or raise max_total_bytes")
    return Finding("budget", "ok", found)


def _clock(connection: Any) -> Finding:
    now_us = time.time_ns() // 1000
    newest_us = _one(connection, "SELECT recorded_at FROM event ORDER BY position DESC LIMIT 1") or 0
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if not isinstance(newest_us, int):
        return Finding("clock", "problem", "the time of the newest event is damaged", _VERIFY)
    if newest_us > now_us + _CLOCK_SLACK_US:
        newest = from_us_within(newest_us).isoformat(timespec="seconds")
        found = f"it is {now} here, the newest event was recorded at {newest}"
        return Finding("clock", "problem", found, "set the clock: max_age, graces and the times of new events go by it")
    if datetime.now(UTC) < _EARLIEST:
        return Finding(
            "clock", "problem", f"it is {now} here", "set the clock: max_age, graces and the times of new events go by it"
        )
    return Finding("clock", "ok", now)
