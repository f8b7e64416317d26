"""What a file is, found out without touching it: a store of this schema, of another one, or no store at all.

SQLite opens anything: it takes an empty file for a new database, and on closing a foreign one it may write to it. So each
file is looked at first, through a connection that cannot write. Never through `open()`: closing any descriptor of a live
database drops all the locks that this process holds on it.
"""

import os
import re
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

from aegis_store import driver, forks
from aegis_store.errors import (
    AegisStoreError,
    NotAnAegisStore,
    SchemaMismatch,
    StoreCorrupt,
    StoreUnavailable,
)
from aegis_store.schema import APPLICATION_ID, HEAD, metadata
from aegis_store.sqlite_errors import translated
from aegis_store.target import Target

_LOOK_TIMEOUT_S = 5.0
_SNIFFED_BYTES = 4096
_MAGIC = b"SQLite format 3\0"


def exists(target: Target) -> bool:
    """Whether something stands at that path. Raises `StoreUnavailable` where it cannot be known."""
    return _stat(target) is not None


def check(target: Target) -> None:
    """Return if the file is a store at the schema of this library; raise what it is otherwise.

    Raises `SchemaMismatch`, `StoreCorrupt`, `NotAnAegisStore`, `StoreUnavailable`. The file and its WAL stay as they are.
    """
    found = revision(target)
    if found != HEAD:
        raise SchemaMismatch(store=str(target), found=found, expected=HEAD)


def revision(target: Target) -> str:
    """The schema revision of the store, "base" if it has none. Raises what the file is if it is not a store."""
    forks.refuse_if_lost(target.path)
    status = _stat(target)
    if status is None:
        raise StoreUnavailable(
            store=str(target), detail="there is no such file: check the path, or run `aegis-store upgrade --db PATH`"
        )
    if stat.S_ISDIR(status.st_mode):
        raise NotAnAegisStore(store=str(target), detail="a directory")
    if not stat.S_ISREG(status.st_mode):
        raise NotAnAegisStore(store=str(target), detail="a device, pipe or socket")
    if status.st_size == 0:
        hint = "restore a backup, or remove it if nothing was ever stored in it"
        raise StoreCorrupt(store=str(target), detail="the file is empty", hint=hint)
    if has_other_names(target):
        raise StoreUnavailable(
            store=str(target),
            detail="it has another name (a hard link), under which its -wal file would not be found: remove one of the two",
        )
    if not os.access(target.path, os.R_OK):
        raise StoreUnavailable(store=str(target), detail="permission denied")
    _refuse_foreign_side_files(target)
    return _revision_seen(target)


def is_draft(target: Target, name: str) -> bool:
    """Whether a file of that name is a store in the making (see `creation`) that was to become `target`."""
    return re.fullmatch(re.escape(target.path.name) + r"\.\d+-[0-9a-f]{8}\.tmp(-journal|-wal|-shm)?", name) is not None


def has_other_names(target: Target) -> bool:
    """Whether the file has a hard link besides its name and that of a draft, which it has for a moment when it is made."""
    for _ in range(2):  # once more, if the draft went away between the two looks
        status = _stat(target)
        if status is None or status.st_nlink <= 1:
            return False
        with os.scandir(target.path.parent) as entries:
            drafts = [e for e in entries if is_draft(target, e.name) and e.inode() == status.st_ino]
        if len(drafts) >= status.st_nlink - 1:
            return False
    return True


def _refuse_foreign_side_files(target: Target) -> None:
    """SQLite would write into whatever file has such a name as well, and wait for ever for the other end of a pipe."""
    for suffix in ("-wal", "-shm", "-journal"):
        file = target.side_file(suffix)
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreUnavailable(store=str(target), detail=f"its {suffix} file: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            detail = f"{file.name}, beside it, is a link, directory or pipe: move it away"
            raise StoreUnavailable(store=str(target), detail=detail)
        if status.st_nlink > 1:
            detail = f"its {suffix} file has another name (a hard link), and what lies there would change with it: remove that"
            raise StoreUnavailable(store=str(target), detail=detail)


def wal_is_live(target: Target) -> bool:
    """Whether the store has a write-ahead log with something in it: it is in use, or was not closed cleanly."""
    try:
        return target.side_file("-wal").stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreUnavailable(store=str(target), detail=f"its -wal file: {error.strerror}") from None


def _stat(target: Target) -> os.stat_result | None:
    try:
        return target.path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreUnavailable(store=str(target), detail=str(getattr(error, "strerror", error))) from None


def _revision_seen(target: Target) -> str:
    # Without a WAL the file is looked at as immutable, which makes no side files. Another process may write meanwhile, and
    # what is seen then may not fit together: bad news is only believed when the file was the same all along.
    while not wal_is_live(target):
        before = _stat(target)
        try:
            return _look(target, "mode=ro&immutable=1")
        except AegisStoreError:
            if not wal_is_live(target) and _unchanged(before, _stat(target)):
                raise
    return _look(target, "mode=ro")


def _unchanged(before: os.stat_result | None, after: os.stat_result | None) -> bool:
    if before is None or after is None:
        return before is after
    return (before.st_mtime_ns, before.st_size, before.st_ino) == (after.st_mtime_ns, after.st_size, after.st_ino)


def _look(target: Target, query: str) -> str:
    try:
        with closing(driver.dbapi.connect(target.uri(query), uri=True, timeout=_LOOK_TIMEOUT_S)) as connection:
            return _identify(target, connection)
    except (driver.dbapi.Error, UnicodeDecodeError) as error:
        if "not a database" in str(error):
            raise _not_a_database(target) from None
        raise translated(str(target), error, waited_ms=int(_LOOK_TIMEOUT_S * 1000)) from None


def _identify(target: Target, connection: Any) -> str:
    def one(sql: str) -> Any:
        row = connection.execute(sql).fetchone()
        return row and row[0]

    application_id, page_count, page_size = (one(f"PRAGMA {name}") for name in ("application_id", "page_count", "page_size"))
    if page_count == 0:
        raise _not_a_database(target)
    if application_id != APPLICATION_ID:
        raise NotAnAegisStore(store=str(target), detail="another program's SQLite database")
    # All pages that are not in the WAL must be in the file. (In this order: a checkpoint can only make the file longer.)
    if not wal_is_live(target) and target.path.stat().st_size < page_count * page_size:
        raise StoreCorrupt(store=str(target), detail="the file is shorter than it should be")
    if not one("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'alembic_version'"):
        return "base"
    names = ", ".join(f"'{name}'" for name in metadata.tables)
    if one(f"SELECT 1 FROM sqlite_schema WHERE type = 'view' AND name COLLATE NOCASE IN ({names})"):
        # Somebody's query, which need not come to an end, would be run wherever that table is read.
        raise StoreCorrupt(store=str(target), detail="a view stands in place of a table")
    found = one("SELECT version_num FROM alembic_version")
    if found == HEAD and one("SELECT count(*) FROM store") != 1:
        raise StoreCorrupt(store=str(target), detail="the row that holds the policy is missing")
    return str(found or "base")


def _not_a_database(target: Target) -> AegisStoreError:
    """The error for a file without a valid SQLite header: damaged, or never a database."""
    # Here the file may be opened: SQLite does not take it for a database, so nothing in this process holds a lock on it.
    try:
        with Path(target.path).open("rb") as file:
            head = file.read(_SNIFFED_BYTES)
    except OSError as error:
        return StoreUnavailable(store=str(target), detail=str(error.strerror))
    if head.startswith(_MAGIC) or b"\0" in head:
        return StoreCorrupt(store=str(target), detail="SQLite cannot read its header")
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut at the end of what was read is no sign of anything
            return StoreCorrupt(store=str(target), detail="SQLite cannot read its header")
    return NotAnAegisStore(store=str(target), detail="a text file")
