"""A copy of a store beside running writers, and a store made of such a copy: verified before it gets its name.

    copy       all pages of one snapshot, into a draft beside the name      killed here: the draft stays, see `creation.sweep`
    verify     the draft to its end, every record and event
    publish    sync, link: a name that is taken is never replaced

The snapshot is held while pages are copied, and not while they are verified: as long as it is, the log cannot be begun anew.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aegis_store import driver, gate, migrate
from aegis_store.alone import Alone, LoneConnection, interruptible
from aegis_store.creation import SIDE_SUFFIXES, refuse_orphaned_log, sweep
from aegis_store.database import Database
from aegis_store.draft import Draft, file_errors, path_of
from aegis_store.errors import SchemaMismatch, StoreFull, StoreUnavailable
from aegis_store.schema import HEAD
from aegis_store.settings import BACKUP_PAGES
from aegis_store.sqlite_errors import errors_of
from aegis_store.target import Target
from aegis_store.verify.report import VerifyReport
from aegis_store.verify.run import refuse_damaged

OnProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all): the file counts twice, as it is copied and as it is verified."""

# Drafts are named as `gate.is_draft` knows them, NAME.PID-HEX.tmp. No process has this PID: it tells them from the drafts of
# new stores and of `compact`.
_DRAFT_PID: Final = "00"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What is in a copy that was verified: a backup, or a store that was restored from one. `bytes` are those of the file."""

    sessions: int
    events: int
    bytes: int
    duration_s: float


def backup(db: Database, path: Any, *, on_progress: OnProgress | None = None) -> BackupReport:
    """See `EventStore.backup`."""
    started_s = time.monotonic()
    final = _final(path)
    with _draft(final) as draft:
        with db.read() as conn:
            conn.exec_driver_sql("SELECT 1 FROM store").fetchone()  # the snapshot is that of the first look
            _copy(conn.connection.dbapi_connection, draft, on_progress)
        return _published(draft, _verified(draft, str(db.target), on_progress), started_s)


def restore(source: Target, final: Target, *, on_progress: OnProgress | None = None) -> BackupReport:
    """See `EventStore.restore`."""
    started_s = time.monotonic()
    found = gate.revision(source)
    if found == "base" or found > HEAD:
        raise SchemaMismatch(store=str(source), found=found, expected=HEAD)
    with _draft(final) as draft:
        with _standing_still(source) as pages:
            _copy(pages, draft, on_progress)
        if found != HEAD:
            draft.check()
            migrate.upgrade(Target(draft.path))
        return _published(draft, _verified(draft, str(source), on_progress), started_s)


# The draft


def _final(path: Any) -> Target:
    named = path_of(path)
    with file_errors(named):
        return Target(Path(os.path.realpath(named.parent)) / named.name)


@contextmanager
def _draft(final: Target) -> Iterator[Draft]:
    """An empty file beside the name, gone at the end unless it was published."""
    with file_errors(final.path):
        refuse_orphaned_log(final)
    with suppress(OSError):
        sweep(final)
    path = final.path.with_name(f"{final.path.name}.{_DRAFT_PID}-{secrets.token_hex(4)}.tmp")
    draft = Draft(final.path, path=path)
    try:
        yield draft
    finally:
        draft.discard()
        for suffix in SIDE_SUFFIXES[1:]:
            with suppress(OSError):
                Target(path).side_file(suffix).unlink(missing_ok=True)


# Copy


@contextmanager
def _standing_still(source: Target) -> Iterator[Any]:
    """A connection to a file that others may have open as a store, or that lies where nothing can be written."""
    is_live = gate.wal_is_live(source)
    before = source.path.stat()
    with errors_of(str(source)), closing(_connected(source, "mode=ro" if is_live else "mode=ro&immutable=1")) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM alembic_version").fetchone()
        yield connection
    after = source.path.stat()
    if not is_live and (before.st_mtime_ns, before.st_size, before.st_ino) != (after.st_mtime_ns, after.st_size, after.st_ino):
        raise StoreUnavailable(store=str(source), detail="it was written to meanwhile: make a backup of it, and restore that")


def _connected(target: Target, query: str) -> Any:
    return driver.dbapi.connect(target.uri(query), uri=True, isolation_level=None, factory=LoneConnection)


@contextmanager
def _opened(draft: Draft, query: str) -> Iterator[Any]:
    """A connection to the draft, and to no file that somebody has put in its place."""
    with errors_of(str(draft.final)), closing(_connected(Target(draft.path), query)) as connection:
        draft.check()
        yield connection


def _copy(pages: Any, draft: Draft, on_progress: OnProgress | None) -> None:
    """All pages of the snapshot that `pages` has. Synced little by little: one large sync would hold up the writers' own."""
    size_bytes = _pragma(pages, "page_count") * _pragma(pages, "page_size")
    with file_errors(draft.final):
        available_bytes = shutil.disk_usage(draft.path.parent).free
    if available_bytes < size_bytes:
        detail = f"the copy needs {size_bytes:,} bytes, {available_bytes:,} are available"
        raise StoreFull(store=str(draft.final), detail=detail)

    def look(_status: int, remaining: int, count: int) -> None:
        draft.sync()
        if on_progress is not None:
            on_progress(int((1 - remaining / max(count, 1)) * size_bytes), 2 * size_bytes)

    with _opened(draft, "mode=rw") as copy:
        # Nobody else sees it, and a copy that was cut off is thrown away.
        copy.execute("PRAGMA journal_mode = OFF").fetchall()
        copy.execute("PRAGMA synchronous = OFF")
        pages.backup(copy, pages=BACKUP_PAGES, progress=look)


def _pragma(connection: Any, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


# Verify


def _verified(draft: Draft, original: str, on_progress: OnProgress | None) -> VerifyReport:
    """`StoreCorrupt` about the original for any damage."""
    size_bytes = _size_bytes(draft)

    def look(done: int, events: int) -> None:
        if on_progress is not None:
            on_progress(size_bytes + int(size_bytes * done / max(events, 1)), 2 * size_bytes)

    with _opened(draft, "mode=ro&immutable=1") as copy, interruptible(copy, lambda: None):
        return refuse_damaged(Alone(original, copy), original, on_progress=look)


def _published(draft: Draft, verified: VerifyReport, started_s: float) -> BackupReport:
    refuse_orphaned_log(Target(draft.final))
    size_bytes = _size_bytes(draft)
    draft.publish()
    return BackupReport(
        sessions=verified.sessions,
        events=verified.events,
        bytes=size_bytes,
        duration_s=time.monotonic() - started_s,
    )


def _size_bytes(draft: Draft) -> int:
    with file_errors(draft.final):
        return draft.path.stat().st_size
