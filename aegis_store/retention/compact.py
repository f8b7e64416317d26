"""Packing a store that no one has open: a compact copy is made, verified row by row, and written over the store in place.

What comes back is more than `reclaim` can give: also the room inside pages that pruning left half empty.

The file is not replaced by the copy, as one would with a text. SQLite names its log by the path, not by the file: a process
that had opened the old file just before, and then got its turn, would go on with the old file and the log of the new one.
(Tried on 3.40 and 3.53: 50 appends of it were acknowledged and lost, and 20 of another process with them. SQLite's own check,
SQLITE_READONLY_DBMOVED, is not made in WAL mode.) So the copy goes through the log, as one transaction of SQLite's backup:

    lock       no other connection to the store exists, and none gets in from here on
    check      nothing in the store is damaged, or it is refused
    copy       VACUUM INTO a draft beside the store           killed here: the store is as it was
    verify     the draft against the store, row by row        killed here: the store is as it was
    write back the draft's pages into the log, one commit     killed here: the old content, or after the commit the new
    checkpoint the log into the file, which gets shorter      killed here: the new content; who opens it next goes on

Who waits for the store meanwhile waits for a lock on the very file that it will use, and finds the new content in it.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from aegis_store import driver, gate
from aegis_store.alone import Alone, LoneConnection, interruptible
from aegis_store.draft import hold
from aegis_store.errors import ReadOnlyStore, StoreBusy, StoreCorrupt, StoreFull, StoreUnavailable
from aegis_store.sqlite_errors import errors_of, translated
from aegis_store.target import Target, is_open_here
from aegis_store.verify.run import refuse_damaged

OnProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all): the content counts three times, as it is copied, verified and written back."""

# Long enough for those that only look at a store, such as `aegis-store inspect`; a store in use is so for longer.
_LOCK_TIMEOUT_S: Final = 1.0

# Room that is to be left on the disk: for the pages of the log's own and what others write meanwhile.
_MARGIN_BYTES: Final = 16 * 1024 * 1024

# A page takes 24 bytes more in the log.
_FRAME_HEADER_BYTES: Final = 24

# Memory for pages. The default of 2 MiB would write pages of the indexes several times.
_CACHE_KIB: Final = 32 * 1024

# How often progress is looked after: some ten times a second.
_ROWS_BETWEEN_LOOKS: Final = 1000
_PAGES_BETWEEN_LOOKS: Final = 512

# Drafts are named as `gate.is_draft` knows them, NAME.PID-HEX.tmp. No process has the PID 0: it tells them from the drafts
# of new stores, so that the next `compact`, which is then alone with the store, may remove one whatever its age.
_DRAFT_PID: Final = 0
_SIDE_SUFFIXES: Final = ("", "-journal", "-wal", "-shm")

_COPYING, _VERIFYING, _WRITING = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did. Bytes are those of the database file and its `-wal` on disk.

    `sessions` and `events` were found equal, with all else, in the copy that was written over the store.
    """

    bytes_before: int
    bytes_after: int
    sessions: int
    events: int
    duration_s: float


class _Shape(NamedTuple):
    """The pages of a database."""

    pages: int
    free_pages: int
    page_size_bytes: int

    @property
    def content_bytes(self) -> int:
        return (self.pages - self.free_pages) * self.page_size_bytes

    @property
    def log_bytes(self) -> int:
        """What the content takes in a write-ahead log."""
        return (self.pages - self.free_pages) * (self.page_size_bytes + _FRAME_HEADER_BYTES)


class _Progress:
    """Turns the steps of a compaction into bytes done and bytes in all."""

    def __init__(self, on_progress: OnProgress | None, content_bytes: int) -> None:
        self._on_progress = on_progress
        self._content_bytes = content_bytes

    def at(self, stage: int, part: float) -> None:
        """`part` (0 to 1) of that stage is done."""
        if self._on_progress is not None:
            self._on_progress(int((stage + min(part, 1.0)) * self._content_bytes), 3 * self._content_bytes)


def compact(target: Target, *, on_progress: OnProgress | None = None) -> CompactReport:
    """Pack the store at `target`, which no process may have open, this one included.

    It needs room beside the store for a copy of the content, then for the content a second time in the log: when free pages
    make up most of the file, `reclaim` first. `auto_vacuum` is INCREMENTAL afterwards, whatever it was. Positions and seqs
    go on where they were. Others wait for the store while it runs, up to their busy timeout. (Readers in a directory that
    they cannot write look at the store without a lock: they are not noticed, and may meet pages that do not fit together.)

    Raises `StoreBusy` if someone has the store open, `StoreFull` with the bytes needed and available, `ReadOnlyStore`,
    `StoreCorrupt` for any damage, and what `gate.check` raises. Then, and when it is interrupted, the store has the
    content that it had. After `kill -9` a draft (NAME.0-….tmp) may stay behind; the next compaction removes it.
    """
    started = time.monotonic()
    gate.check(target)
    if is_open_here(target.path):
        raise _in_use(target, "this process has it open", "close it here first")
    if not (os.access(target.path, os.W_OK) and os.access(target.path.parent, os.W_OK)):
        raise ReadOnlyStore(store=str(target))
    with errors_of(str(target)):
        bytes_before = _bytes_on_disk(target)
        with _alone_with(target) as original:
            _check(target, original)
            with _draft(target) as draft:
                rows = _packed(target, original, draft, on_progress)
        return CompactReport(
            bytes_before=bytes_before,
            bytes_after=_bytes_on_disk(target),
            sessions=rows["session"],
            events=rows["event"],
            duration_s=time.monotonic() - started,
        )


def _packed(target: Target, original: Any, draft: Target, on_progress: OnProgress | None) -> dict[str, int]:
    """Copy, verify, write back; the number of rows in each table."""
    shape = _shape_of(original)
    _check_room(target, shape.content_bytes)
    progress = _Progress(on_progress, shape.content_bytes)
    _copy(original, draft, progress, shape)
    with closing(_connected(draft, "mode=ro")) as copy:
        rows = _verified(target, original, copy, progress)
        packed = _shape_of(copy)
        _check_room(target, packed.log_bytes)
        _write_back(target, copy, original, progress)
    return rows


# Lock


@contextmanager
def _alone_with(target: Target) -> Iterator[Any]:
    """The one connection to the store: while it is open nobody else reads or writes."""
    with closing(_connected(target, "mode=rw")) as connection:
        try:
            # In this order. In WAL mode every other connection holds a shared lock as long as it is open, so that the
            # exclusive one, which comes with the log, proves that there is none.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except driver.dbapi.Error as error:
            found = translated(str(target), error, waited_ms=int(_LOCK_TIMEOUT_S * 1000))
            raise _in_use(target, "others have it open", "stop them first") if isinstance(found, StoreBusy) else found from None
        if mode != "wal":
            raise StoreUnavailable(store=str(target), detail=f"SQLite did not accept WAL mode here, it stayed {mode}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        yield connection


def _connected(target: Target, query: str) -> Any:
    return driver.dbapi.connect(
        target.uri(query), uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None, factory=LoneConnection
    )


def _in_use(target: Target, who: str, remedy: str) -> StoreBusy:
    detail = f"cannot be compacted while it is in use ({who}): {remedy}; nothing was changed"
    return StoreBusy(store=str(target), waited_ms=int(_LOCK_TIMEOUT_S * 1000), detail=detail)


# Check


def _check(target: Target, original: Any) -> None:
    with interruptible(original, lambda: None):
        refuse_damaged(Alone(str(target), original), str(target))


# Copy


@contextmanager
def _draft(target: Target) -> Iterator[Target]:
    """An empty file beside the store for the copy, gone afterwards. To be called when alone with the store."""
    directory, name = target.path.parent, target.path.name
    with os.scandir(directory) as entries:
        orphans = [e.path for e in entries if e.name.startswith(f"{name}.{_DRAFT_PID}-") and gate.is_draft(target, e.name)]
    for orphan in orphans:
        with suppress(OSError):  # another user's, or a directory: it is in nobody's way
            os.unlink(orphan)
    draft = Target(directory / f"{name}.{_DRAFT_PID}-{secrets.token_hex(4)}.tmp")
    held = os.open(draft.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        hold(held)
        yield draft
    finally:
        os.close(held)
        for suffix in _SIDE_SUFFIXES:
            draft.side_file(suffix).unlink(missing_ok=True)


def _copy(original: Any, draft: Target, progress: _Progress, shape: _Shape) -> None:
    if _pragma(original, "auto_vacuum") != 2:
        original.execute("PRAGMA auto_vacuum = INCREMENTAL")  # the copy is made with it

    def look() -> None:
        progress.at(_COPYING, draft.path.stat().st_size / max(shape.content_bytes, 1))

    with interruptible(original, look):
        original.execute("VACUUM INTO ?", (draft.uri("mode=rw"),))
    progress.at(_COPYING, 1)


def _check_room(target: Target, needed_bytes: int) -> None:
    needed_bytes += _MARGIN_BYTES
    available_bytes = shutil.disk_usage(target.path.parent).free
    if available_bytes < needed_bytes:
        raise StoreFull(
            store=str(target), detail=f"compacting needs {needed_bytes:,} bytes beside it, {available_bytes:,} are available"
        )


# Verify


def _verified(target: Target, original: Any, copy: Any, progress: _Progress) -> dict[str, int]:
    """The number of rows in each table, after all of them were found equal in the copy. The store has not changed yet."""
    for name in ("page_size", "application_id", "user_version", "encoding"):
        _expect(target, _pragma(copy, name), _pragma(original, name), name)
    _expect(target, _pragma(copy, "auto_vacuum"), 2, "auto_vacuum")
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"
    _expect(target, copy.execute(schema).fetchall(), original.execute(schema).fetchall(), "schema")
    with interruptible(copy, lambda: None):
        _expect(target, copy.execute("PRAGMA integrity_check").fetchall(), [("ok",)], "integrity_check")
        broken = copy.execute("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise StoreCorrupt(store=str(target), detail=f"{len(broken)} rows refer to missing ones, in {broken[0][0]}")
    tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 ORDER BY name"
    names = [name for (name,) in copy.execute(tables)]
    counts = {name: int(copy.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()[0]) for name in names}
    # Text as it lies in the file, also where it is no UTF-8.
    original.text_factory = copy.text_factory = bytes
    done, rows_in_all = 0, max(sum(counts.values()), 1)
    for name in names:
        for _ in _equal_rows(target, original, copy, name):
            done += 1
            if done % _ROWS_BETWEEN_LOOKS == 0:
                progress.at(_VERIFYING, done / rows_in_all)
    progress.at(_VERIFYING, 1)
    return counts


def _equal_rows(target: Target, original: Any, copy: Any, table: str) -> Iterator[None]:
    """One for each row that both have, a row of each in memory at a time. Without an index, both come in order of the key."""
    rows = f"SELECT * FROM {_quoted(table)} NOT INDEXED"
    for one, other in zip_longest(original.execute(rows), copy.execute(rows)):
        _expect(target, other, one, f"table {table}")
        yield


def _expect(target: Target, found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise StoreUnavailable(
            store=str(target),
            detail=f"its compact copy did not come out equal ({what}), so the store was left as it was: check the disk",
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Write back


def _write_back(target: Target, copy: Any, original: Any, progress: _Progress) -> None:
    """One transaction through the log, then the log into the file, which is cut to the new size."""

    def look(_status: int, remaining: int, pages: int) -> None:
        progress.at(_WRITING, 1 - remaining / max(pages, 1))

    copy.backup(original, pages=_PAGES_BETWEEN_LOOKS, progress=look)
    original.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    wanted = _shape_of(copy)
    if _bytes_on_disk(target) != wanted.pages * wanted.page_size_bytes:
        raise StoreUnavailable(store=str(target), detail="it was compacted, but the file was not cut: check the disk")
    progress.at(_WRITING, 1)


# Looking


def _shape_of(connection: Any) -> _Shape:
    return _Shape(*(int(_pragma(connection, name)) for name in ("page_count", "freelist_count", "page_size")))


def _pragma(connection: Any, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _bytes_on_disk(target: Target) -> int:
    """The database file and its log, by their paths: opening and closing either would drop this process's locks on it."""
    size_bytes = 0
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            size_bytes += os.stat(target.side_file(suffix)).st_size
    return size_bytes
