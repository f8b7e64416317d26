"""A new store: made beside its name, migrated, synced, closed, and only then linked into place.

So no one ever sees half a store, whoever is killed when, and of several processes that create the same store at once one
wins and the others use its store.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from aegis_store import driver, gate, migrate
from aegis_store.draft import hold, is_orphan, make_directories, sync_directory
from aegis_store.errors import StoreUnavailable
from aegis_store.schema import APPLICATION_ID
from aegis_store.settings import PAGE_SIZE_BYTES
from aegis_store.sqlite_errors import errors_of
from aegis_store.target import Target

SIDE_SUFFIXES: Final = ("", "-journal", "-wal", "-shm")


def create(target: Target) -> bool:
    """Create a store at head, mode 0600, with the directories that are missing (mode 0700). If it stands already: nothing.

    Whether it was this call that made it, and no other process meanwhile.

    Raises `StoreUnavailable` and `StoreFull`; then no file is left behind.
    """
    with new_store(target) as draft:
        migrate.upgrade(draft)
        made = draft.path.stat().st_ino
    return target.path.stat().st_ino == made


@contextmanager
def new_store(target: Target) -> Iterator[Target]:
    """A draft of a store, without a schema yet. When the block ends well it becomes the store at `target`."""
    with errors_of(str(target)):
        refuse_orphaned_log(target)
        make_directories(target.path.parent)
        sweep(target)
        draft = Target(target.path.with_name(f"{target.path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"))
        held = os.open(draft.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            try:
                hold(held)
                _prepare(draft)
                yield draft
                _finish(draft)
            finally:
                os.close(held)  # before it is a store, which somebody may open here
            refuse_orphaned_log(target)
            _publish(draft.path, target.path)
        finally:
            for suffix in SIDE_SUFFIXES:
                draft.side_file(suffix).unlink(missing_ok=True)


def refuse_orphaned_log(target: Target) -> None:
    """SQLite would play the log of a store whose file is gone into the new one."""
    for suffix in ("-wal", "-journal"):
        log = target.side_file(suffix)
        if not gate.exists(target) and log.exists() and log.stat().st_size > 0:
            raise StoreUnavailable(
                store=str(target), detail=f"the file is gone, but {log.name} is there: put the file back, or remove both"
            )


def sweep(target: Target) -> None:
    """Remove what is `left_behind`. What cannot be removed is in nobody's way."""
    for file in left_behind(target):
        with suppress(OSError):
            file.unlink()


def left_behind(target: Target) -> list[Path]:
    """The drafts of processes that died while they wrote a store, or a copy of one, under that name; with their side files."""
    with os.scandir(target.path.parent) as entries:
        found = {Path(entry.path) for entry in entries if gate.is_draft(target, entry.name)}
    in_use = {file for file in found if file.suffix == ".tmp" and not is_orphan(file)}
    return [file for file in found if file.with_suffix(".tmp") not in in_use and is_orphan(file)]


def _prepare(draft: Target) -> None:
    # In this order: SQLite ignores auto_vacuum, without a word, once WAL is on or a table exists. The application id is
    # the first thing written, and makes both settings last.
    with closing(driver.dbapi.connect(draft.uri("mode=rw"), uri=True, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _finish(draft: Target) -> None:
    # WAL is written into the file here, where no one else has it open: switching a live file can fail as "locked" at once.
    with closing(driver.dbapi.connect(draft.uri("mode=rw"), uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    descriptor = os.open(draft.path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(draft: Path, final: Path) -> None:
    try:
        os.link(draft, final)
    except FileExistsError:
        return  # another process was faster: its store is as good as this one
    except OSError:
        # A file system without links. Two processes that get here at the same moment could replace each other's empty
        # store; there is no way to rename without replacing that Python offers on every system.
        if not final.exists():
            os.rename(draft, final)
    sync_directory(final.parent)


def ensure(target: Target) -> None:
    """Create the store if nothing stands at its path."""
    if not gate.exists(target):
        create(target)
    elif target.path.stat().st_nlink > 1:
        with errors_of(str(target)):
            sweep(target)  # the draft of a process that died just when it had linked it into place
