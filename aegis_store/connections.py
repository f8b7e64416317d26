"""Connections to one store file, each with its pragmas read back."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy import event as sa_event
from sqlalchemy.pool import Pool
from sqlalchemy.util import LRUCache

from aegis_store import driver
from aegis_store.errors import SchemaMismatch, StoreUnavailable
from aegis_store.schema import HEAD, REVISION_SQL
from aegis_store.settings import CHECKPOINT_READERS_MS
from aegis_store.sqlite_errors import is_busy, is_read_only
from aegis_store.target import Target

Durability = Literal["power", "process"]

_SYNCHRONOUS: Final[dict[str, tuple[str, int]]] = {"power": ("FULL", 2), "process": ("NORMAL", 1)}

# What SQLAlchemy has compiled, for all stores of the process: it keeps that by engine and dialect, and would compile each
# statement anew for each store that is opened, twice, which is a third of what opening one and appending to it costs.
_COMPILED: Final[LRUCache[Any, Any]] = LRUCache(500)
_DIALECT: Final = create_engine("sqlite://", module=driver.dbapi).dialect


def check_revision(store: str, execute: Callable[[str], Any]) -> None:
    """Raise `SchemaMismatch` if a deploy has moved the store. `execute` is that of a connection in its transaction.

    It takes 1 µs, and makes what follows in the transaction one with it: no revision comes in between.
    """
    row = execute(REVISION_SQL).fetchone()
    if row != (HEAD,):
        raise SchemaMismatch(store=store, found=row[0] if row else "base", expected=HEAD)


@contextmanager
def _closed_if_unfit(connection: Any) -> Iterator[None]:
    """Close it if the block fails. Whoever holds the error would keep it open, and the next one would share in what it met:
    SQLite opens the -shm file once for all connections of a process, for reading only if that was all that it could.
    """
    try:
        yield
    except BaseException:
        connection.close()
        raise


@dataclass(frozen=True, slots=True)
class Connections:
    """How the connections of one open store are made."""

    target: Target
    durability: Durability
    busy_timeout_ms: int
    uri: str

    def engine(self, pool: type[Pool], begin: Callable[[Connection], None], **options: Any) -> Engine:
        """SQLAlchemy's engine over `reader` connections of that pool; `begin` begins its transactions."""
        engine = create_engine(
            "sqlite://",
            module=driver.dbapi,
            creator=self.reader,
            poolclass=pool,
            execution_options={"store": str(self.target), "compiled_cache": _COMPILED},
            **options,
        )
        engine.dialect = _DIALECT
        sa_event.listen(engine, "begin", begin)
        return engine

    def reader(self) -> Any:
        connection = self._connect(self.busy_timeout_ms)
        with _closed_if_unfit(connection):
            self._set(connection, "foreign_keys", "ON", 1)
            self._set(connection, "trusted_schema", "OFF", 0)
            self._set(connection, "query_only", "ON", 1)
        return connection

    def make_writer(self, connection: Any) -> None:
        """Turn a reader's connection into the writer's, whose commits do not checkpoint."""
        name, value = _SYNCHRONOUS[self.durability]
        with _closed_if_unfit(connection):
            self._set(connection, "query_only", "OFF", 0)
            self._set(connection, "synchronous", name, value)
            # Stores are created in WAL mode. If someone switched it off, this switches it on again, or finds that it cannot.
            self._set(connection, "journal_mode", "WAL", "wal")
            self._set(connection, "wal_autocheckpoint", "0", 0)
            self._set(connection, "busy_timeout", "0", 0)  # from here on the writer waits by itself
            self._refuse_if_degraded(connection)

    def checkpointer(self) -> Any:
        connection = self._connect(CHECKPOINT_READERS_MS)
        with _closed_if_unfit(connection):
            self._set(connection, "synchronous", *_SYNCHRONOUS[self.durability])
            self._refuse_if_degraded(connection)
        return connection

    def _refuse_if_degraded(self, connection: Any) -> None:
        """SQLite opens a file for reading only that it cannot open for writing at that moment, as when no descriptor is free.
        Such a connection would never write again, whatever becomes free.
        """
        try:
            connection.execute("BEGIN IMMEDIATE").close()
            connection.execute("DELETE FROM store WHERE 0").close()
        except driver.dbapi.OperationalError as error:
            if is_read_only(error) and os.access(self.target.path, os.W_OK):
                raise StoreUnavailable(
                    store=str(self.target),
                    detail="it opens for reading only just now: is there a limit of open files?",
                ) from None
            if not is_read_only(error) and not is_busy(error):
                raise
        finally:
            if connection.in_transaction:
                connection.rollback()

    def _connect(self, busy_timeout_ms: int) -> Any:
        return driver.dbapi.connect(
            self.uri,
            uri=True,
            timeout=busy_timeout_ms / 1000,
            isolation_level=None,  # transactions begin where this package says so
            check_same_thread=False,  # pool, turns and threads see to it that one thread at a time uses it
        )

    def _set(self, connection: Any, pragma: str, value: str, expected: object) -> None:
        connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
        actual = connection.execute(f"PRAGMA {pragma}").fetchone()
        if actual != (expected,):
            raise StoreUnavailable(
                store=str(self.target), detail=f"SQLite did not accept PRAGMA {pragma} = {value}, it stayed {actual}"
            )
