"""One open store on PostgreSQL: its connections and its transactions. Writers of one session wait for its row, no others."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, Final

from sqlalchemy import Connection

from aegis_store.any_database import Dialect, Rows
from aegis_store.errors import EventsTruncated, ReadOnlyStore, StoreClosed
from aegis_store.metrics import Metrics
from aegis_store.postgres.errors import errors_of
from aegis_store.redaction import Redact
from aegis_store.server import Server

_SYNCHRONOUS: Final = {"power": "on", "process": "off"}
_SETTLED: Final = "SELECT aegis_settled_position()"


class PostgresDatabase:
    """The connections of one open store. Safe for threads. A forked child cannot use it, and is told so.

    A connection that is lost costs the call that meets it a `StoreUnavailable`; the next call connects again.
    """

    dialect: Dialect = "postgresql"

    def __init__(
        self, server: Server, *, durability: str, read_only: bool, busy_timeout_ms: int, redact: Redact | None = None
    ) -> None:
        self.target = server
        self.durability = durability
        self.read_only = read_only
        self.busy_timeout_ms = busy_timeout_ms
        self.redact = redact
        self.metrics = Metrics()
        self._process = os.getpid()
        self._closed: str | None = None
        settings = {
            "application_name": "aegis-store",
            "synchronous_commit": _SYNCHRONOUS[durability],
            "lock_timeout": f"{max(busy_timeout_ms, 1)}ms",  # 0 would be for ever
            "default_transaction_read_only": "on" if read_only else "off",
        }
        pool = {"pool_size": 4, "max_overflow": -1}  # no thread waits for another's connection
        self._engine = server.engine(settings=settings, **pool)
        self._snapshots = self._engine.execution_options(isolation_level="REPEATABLE READ")
        self._writers = self._engine.execution_options(isolation_level="READ COMMITTED", locks_rows=True)
        self._alone = server.engine(settings=settings, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, **pool)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot: everything read inside belongs to the same moment. Do not yield to a caller inside."""
        self.check_open()
        try:
            with self.errors(), self._snapshots.connect() as connection, connection.begin():
                yield connection
        except EventsTruncated:
            self.metrics.read_truncated()
            raise

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed at the end, rolled back on any exception. Each statement sees what others committed."""
        self.check_writable()
        with self.errors(), self._writers.connect() as connection, connection.begin():
            yield connection

    def execute_alone(self, sql: str, parameters: dict[str, Any], size_bytes: int = 0) -> Rows:
        """One statement that is its own transaction, committed when this returns. Raises `ConstraintRefused`."""
        self.check_writable()
        with self.errors():
            connection = self._alone.raw_connection()
            try:
                with closing(connection.cursor()) as cursor:
                    cursor.execute(sql, parameters)
                    rows: Rows = cursor.fetchall()  # type: ignore[assignment]
            except BaseException as error:
                if not isinstance(error, Exception) or getattr(connection.driver_connection, "closed", True):
                    connection.invalidate()
                raise
            finally:
                connection.close()
        if rows:
            self.metrics.commits_of_one += 1
        return rows

    def settled_position(self) -> int:
        """The position up to which every transaction that writes events has ended; see the function in the schema."""
        self.check_open()
        with self.errors(), self._alone.connect() as connection:
            return int(connection.exec_driver_sql(_SETTLED).scalar_one())

    def checkpoint(self) -> None:
        """Nothing: PostgreSQL has its own."""

    def check_open(self) -> None:
        """Raise `StoreClosed` if nothing can be done with it any more."""
        if self._closed is None and os.getpid() != self._process:
            self._closed = "was opened before this process was forked, and belongs to its parent"
        if self._closed is not None:
            raise StoreClosed(store=str(self.target), detail=self._closed)

    def check_writable(self) -> None:
        """Raise `StoreClosed` or `ReadOnlyStore` if nothing can be written through this object."""
        self.check_open()
        if self.read_only:
            raise ReadOnlyStore(store=str(self.target))

    @property
    def was_closed(self) -> bool:
        """Whether somebody has called `close`."""
        return self._closed == "was closed"

    def close(self) -> None:
        """Close all connections that are not in use; those that are close when they come back. Idempotent."""
        if self._closed is None:
            self._closed = "was closed"
            self._forget_connections()

    def errors(self) -> AbstractContextManager[None]:
        """Inside, errors of the driver and SQLAlchemy become those of `aegis_store.errors`."""
        return errors_of(self.target, on_loss=self._forget_connections)

    def _forget_connections(self) -> None:
        """All of them: when one was lost, so were most likely the others."""
        self._engine.dispose()
        self._alone.dispose()
