"""The one place where errors of PostgreSQL, its driver and SQLAlchemy become those of `aegis_store.errors`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from aegis_store.errors import AegisStoreError, ReadOnlyStore, StoreBusy, StoreCorrupt, StoreFull, StoreUnavailable
from aegis_store.server import Server
from aegis_store.sqlite_errors import ConstraintRefused

# By the classes and codes of PostgreSQL's appendix A.
_BUSY: Final = ("55P03", "40001", "40P01")  # lock not available, serialization, deadlock
_CANCELLED: Final = "57014"  # by an administrator, or by a statement_timeout
_FULL: Final = ("53100", "53400")
_NO_ROOM: Final = ("Disk quota exceeded", "File too large")  # which have no code of their own
_CORRUPT: Final = ("XX001", "XX002")
_READ_ONLY: Final = ("25006", "42501")  # a standby or read-only connection, insufficient privilege
_HOW_TO_WRITE: Final = "write to the primary, without read_only, as a role that may insert and update there"
_SCHEMA: Final = ("42P01", "42703", "42883")  # no such table, column, function

# What refuses a connection and will do so again, and what to look at; libpq hands on no code of it. The first that fits.
_REFUSED: Final = {
    "check sslmode and sslrootcert in the URL, and the certificate of the server": (
        *("certificate", "does not support SSL", "sslmode"),
    ),
    "check the service that the URL or PGSERVICE names, and the service file": ("definition of service", "service file"),
    "check the user, the password and the database of the URL": (
        *("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied", "connection option"),
    ),
}


@contextmanager
def errors_of(server: Server, *, on_loss: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, errors of the driver, SQLAlchemy and the network become ours; `on_loss` is called if a connection was lost."""
    started_s = time.monotonic()
    try:
        yield
    except (SQLAlchemyError, psycopg.Error, UnicodeError, OverflowError, OSError) as error:
        found = translated(server, error, waited_ms=int((time.monotonic() - started_s) * 1000))
        if isinstance(found, StoreUnavailable):
            on_loss()
        raise found from None


def translated(server: Server, error: Exception, *, waited_ms: int) -> AegisStoreError:
    """The error that a caller is to see, by the code of PostgreSQL. No message holds a password."""
    if isinstance(error, DBAPIError) and isinstance(error.orig, Exception):
        error = error.orig
    store, state = str(server), str(getattr(error, "sqlstate", None) or "")
    message = _one_line(server, error)
    if isinstance(error, psycopg.IntegrityError):
        return ConstraintRefused(message)
    if state in _BUSY:
        return StoreBusy(store=store, waited_ms=waited_ms)
    if state == _CANCELLED:
        return StoreBusy(store=store, waited_ms=waited_ms, detail=f"has done nothing ({message}): try again")
    if state in _FULL or any(text in message for text in _NO_ROOM):
        return StoreFull(store=store, detail=message)
    if state in _CORRUPT or isinstance(error, OverflowError):  # a time that no calendar has, but a plain SQL shell can write
        return StoreCorrupt(store=store, detail=message, hint=StoreCorrupt.ON_A_SERVER)
    if state in _READ_ONLY:
        return ReadOnlyStore(store=store, hint=_HOW_TO_WRITE)
    return StoreUnavailable(store=store, detail=_why_unavailable(state, message))


def _why_unavailable(state: str, message: str) -> str:
    if state in _SCHEMA:
        return f"{message}: its schema is not the one that this library made, or is not in the search_path"
    if state and not state.startswith(("08", "57P", "53")):
        return f"PostgreSQL answered {state}: {message}"
    for advice, phrases in _REFUSED.items():
        if any(phrase in message for phrase in phrases):
            return f"{message}: {advice}"
    return f"no connection ({message}): try again; an append is safe to repeat with its event_id"


def _one_line(server: Server, error: Exception) -> str:
    """What happened, without the values and the statement that PostgreSQL adds on further lines."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    text = str(primary or error).strip().partition("\n")[0] or type(error).__name__
    for secret in server.secrets:
        text = text.replace(secret, "***")
    return text
