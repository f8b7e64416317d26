"""The one place where errors of the driver, SQLAlchemy and the file system become those of `aegis_store.errors`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from aegis_store import driver
from aegis_store.errors import (
    AegisStoreError,
    ReadOnlyStore,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
)


class ConstraintRefused(AegisStoreError):
    """A constraint or guard of the schema refused a statement. Who issued it knows what that means, and says it."""


def damaged(conn: Connection, detail: str) -> StoreCorrupt:
    """The error for damage met on that connection."""
    hint = StoreCorrupt.ON_A_SERVER if conn.dialect.name == "postgresql" else StoreCorrupt.OF_A_FILE
    return StoreCorrupt(store=conn.get_execution_options()["store"], detail=detail, hint=hint)


def check_intact(conn: Connection, is_intact: bool, record: str) -> None:
    """`StoreCorrupt` if a record, read together with `record_copy.intact`, is not what was written."""
    if not is_intact:
        raise damaged(conn, f"the record of {record} is not what was written")


# The driver of the wheel reports no extended result codes, so the messages of SQLite, the same for decades, have to serve.
_BUSY: Final = ("database is locked", "database table is locked", "database schema is locked", "locking protocol")
_FULL: Final = ("database or disk is full", "No space left", "Disk quota exceeded", "File too large")
# (The codec's: what SQLite says of a damaged schema cannot always be decoded. The overflow: of a sum of counters. The date: no
# calendar has it, but a plain SQL shell can write it.)
_CORRUPT: Final = (
    *("malformed", "codec can't decode", "file is not a database", "corrupt", "Could not decode to UTF-8"),
    *("integer overflow", "date value out of range"),
)
_READ_ONLY: Final = ("readonly database",)
_CLOSED: Final = ("closed database", "closed cursor", "This Connection is closed")
_SCHEMA: Final = ("no such table", "no such column", "has no column")


def is_busy(error: Exception) -> bool:
    return any(part in str(error) for part in _BUSY)


def is_read_only(error: Exception) -> bool:
    return any(part in str(error) for part in _READ_ONLY)


@contextmanager
def errors_of(store: str, *, since_s: float | None = None) -> Iterator[None]:
    """Inside, errors of the driver, SQLAlchemy and the file system become ours; see `translated`.

    `since_s`: when the caller began to wait for the store, by `time.monotonic()`, if that was before.
    """
    started = time.monotonic() if since_s is None else since_s
    try:
        yield
    except AssertionError as error:
        # SQLAlchemy's bookkeeping, thrown off by Ctrl-C in the middle of it: Ctrl-C is what happened.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    except (SQLAlchemyError, driver.dbapi.Error, UnicodeError, OverflowError, OSError) as error:
        if _is_interrupt(error):
            raise KeyboardInterrupt from None
        raise translated(store, error, waited_ms=int((time.monotonic() - started) * 1000)) from None


def _is_interrupt(error: Exception) -> bool:
    """Ctrl-C that came as SQLite called a function of ours, before its first line: the driver drops it, and says this."""
    return str(error.orig if isinstance(error, DBAPIError) else error) == "interrupted"


def translated(store: str, error: Exception, *, waited_ms: int) -> Exception:
    """The error that a caller is to see for one of the driver, SQLAlchemy or the file system: by what SQLite says."""
    if isinstance(error, DBAPIError) and isinstance(error.orig, Exception):
        error = error.orig
    if isinstance(error, AegisStoreError):
        return error
    if isinstance(error, driver.dbapi.IntegrityError):
        return ConstraintRefused(str(error))
    message = str(error).partition(" with text ")[0]  # where the driver would go on with the content of a column
    if is_busy(error):
        return StoreBusy(store=store, waited_ms=waited_ms)
    if any(part in message for part in _FULL):
        return StoreFull(store=store, detail=message)
    if any(part in message for part in _CORRUPT):
        return StoreCorrupt(store=store, detail=message)
    if any(part in message for part in _READ_ONLY):
        return ReadOnlyStore(store=store)
    if any(part in message for part in _CLOSED):
        return StoreClosed(store=store)
    if any(part in message for part in _SCHEMA):
        return StoreUnavailable(store=store, detail=f"{message}: its schema is not the one that this library made")
    return StoreUnavailable(store=store, detail=f"{message or type(error).__name__}: check the disk and the permissions")
