"""One open store on PostgreSQL: its connections and its transactions. Writers of one session wait for its row, no others."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from itertools import groupby
from typing import Any, Final, cast

import psycopg
from sqlalchemy import Connection
from sqlalchemy import event as sa_event
from sqlalchemy.exc import SQLAlchemyError

from aegis_store import watcher
from aegis_store.any_database import Dialect, Item, Readable, Rows, Sizes, Write
from aegis_store.connections import check_revision
from aegis_store.errors import EventsTruncated, ReadOnlyStore, StoreClosed
from aegis_store.metrics import Metrics
from aegis_store.postgres import deploy
from aegis_store.postgres.errors import errors_of
from aegis_store.postgres.lone import LoneStatements
from aegis_store.postgres.transactions import Series, connected, transaction
from aegis_store.postgres.watcher import ServerWatcher
from aegis_store.redaction import Redact
from aegis_store.schema import metadata
from aegis_store.server import Server

_SYNCHRONOUS: Final = {"power": "on", "process": "off"}
_SETTLED: Final = "SELECT aegis_settled_position()"
# With indexes, and what is too long for a page; a table in partitions takes nothing itself.
_SIZE: Final = f"""
SELECT coalesce(sum(pg_total_relation_size(coalesce(part.inhrelid, whole.oid))), 0)
FROM pg_class AS whole LEFT JOIN pg_inherits AS part ON part.inhparent = whole.oid
WHERE whole.oid IN ({", ".join(f"'{name}'::regclass" for name in metadata.tables)})
"""

# A transaction begins by looking at the revision, which stays until its end, since a deploy waits for this lock (`deploy`).
# The lock comes first: the snapshot is taken by the first query, and must be that of the schema which the deploy left behind.
# All of it is one message, so that it takes no longer than a BEGIN.
_READS: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; LOCK TABLE alembic_version IN ACCESS SHARE MODE"
_WRITES: Final = "BEGIN ISOLATION LEVEL READ COMMITTED; LOCK TABLE alembic_version IN ACCESS SHARE MODE"
_WRITES_IN_SERIES: Final = f"{_WRITES}; SET LOCAL synchronous_commit = off"

# A statement that does not fit the schema: no such table or column, or a view where a table was.
_OF_ANOTHER_SCHEMA: Final = ("42", "55000")


class PostgresDatabase:
    """The connections of one open store. Safe for threads. A forked child cannot use it, and is told so.

    A connection that is lost amid a call costs that call a `StoreUnavailable`, and the next one connects again. One that was
    lost while nobody used it costs nothing.
    """

    dialect: Dialect = "postgresql"
    shares_commits = False

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
        self._engine = server.engine(settings=settings, connect_args={"autocommit": True}, **pool)
        sa_event.listen(self._engine, "begin", self._begin)
        self._snapshots = self._engine.execution_options(begin=_READS)
        self._writers = self._engine.execution_options(begin=_WRITES, locks_rows=True)
        self._serial_writers = self._engine.execution_options(begin=_WRITES_IN_SERIES, locks_rows=True)
        self._outside = self._engine.pool.recreate()  # of connections that no transaction uses
        self._lone = LoneStatements(self._outside)
        self.watcher = ServerWatcher(server, self._connection_for_good)

    def revision(self) -> str:
        """As `deploy.revision`, on a connection that the first transaction then has."""
        with self.errors(), closing(self._engine.raw_connection()) as connection:
            raw: Any = connection.driver_connection
            return deploy.revision_by(raw.execute, self.target)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot: everything read inside belongs to the same moment. Do not yield to a caller inside."""
        self.check_open()
        try:
            with self.errors(), connected(self._snapshots) as connection, transaction(connection):
                yield connection
        except EventsTruncated:
            self.metrics.read_truncated()
            raise

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed at the end, rolled back on any exception. Each statement sees what others committed."""
        self.check_writable()
        with self.errors(), connected(self._writers) as connection, transaction(connection):
            yield connection
        self._note_commit()

    @contextmanager
    def writes(self) -> Iterator[Write]:
        """Transactions that follow each other, and are on disk together when this ends, also by an error.

        None of them waits for the disk. `StoreUnavailable` at the end if their connection was lost on the way.
        """
        self.check_writable()
        with self.errors(), connected(self._serial_writers) as connection:
            series = Series(connection, self.errors, self._go_on)
            try:
                yield series.write
            except Exception:
                with suppress(SQLAlchemyError, psycopg.Error):  # the first error is the one to tell
                    series.end()
                raise
            else:
                series.end()
            finally:
                self._note_commit()

    def parts(self, batch: Sequence[Item], session_of: Callable[[Item], object]) -> list[Sequence[Item]]:
        """The neighbours that are of one session, each time."""
        return [list(part) for _, part in groupby(batch, session_of)]

    def _begin(self, connection: Connection) -> None:
        """Begin, on another connection if this one was lost while nobody used it. Raises `SchemaMismatch`."""
        raw: Any = connection.connection.driver_connection
        try:
            self._begin_at_head(connection)
        except psycopg.OperationalError:
            if not raw.closed:
                raise
            connection.invalidate()
            self._forget_connections()
            self._begin_at_head(connection)

    def _go_on(self, connection: Connection) -> None:
        self._begin_at_head(connection, before="COMMIT; ")

    def _begin_at_head(self, connection: Connection, before: str = "") -> None:
        raw: Any = connection.connection.driver_connection
        begin = before + connection.get_execution_options()["begin"]
        check_revision(str(self.target), lambda revision: raw.execute(f"{begin}; {revision}").set_result(-1))

    def execute_alone(self, sql: str, parameters: dict[str, Any], size_bytes: int = 0) -> Rows:
        """One statement that is its own transaction, committed when this returns. Raises `ConstraintRefused`."""
        self.check_writable()
        with self.errors():
            rows = self._execute(sql, parameters)
        if rows:
            self.metrics.commits_of_one += 1
            self._note_commit()
        return rows

    def settled_position(self) -> int:
        """The position up to which every transaction that writes events has ended; see the function in the schema."""
        self.check_open()
        with self.errors():
            return int(self._execute(_SETTLED, {})[0][0])

    def _execute(self, sql: str, parameters: dict[str, Any]) -> Rows:
        try:
            return self._lone.execute(sql, parameters)
        except psycopg.Error as error:
            if str(error.sqlstate).startswith(_OF_ANOTHER_SCHEMA):
                with self.read():  # which says whether a deploy has changed it
                    pass
            raise

    @contextmanager
    def to_verify(self) -> Iterator[Readable]:
        """One snapshot for all of it: what is damaged in one look is no hindrance for the next."""
        with self.read() as connection:
            yield _OneSnapshot(self.target, connection)

    @property
    def version(self) -> str:
        """As the first connection has told it."""
        return "PostgreSQL " + ".".join(map(str, self._engine.dialect.server_version_info or ()))

    def sizes(self, conn: Connection) -> Sizes:
        """Of its tables. The log and what is free in them are the server's affair, which uses them again."""
        return Sizes(int(conn.exec_driver_sql(_SIZE).scalar_one()), 0, 0)

    def _note_commit(self) -> None:
        if watcher.awake:
            watcher.note_commit(self.target)

    def _connection_for_good(self) -> "psycopg.Connection[object]":
        """A connection outside of the pools, in autocommit; who asks for it closes it."""
        with self.errors():
            pooled = self._outside.connect()
            connection = cast("psycopg.Connection[object]", pooled.driver_connection)
            pooled.detach()
        return connection

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
        """Close all connections that are not in use; those that are close when they come back. Idempotent.

        In a forked child, whose parent uses them, it does nothing.
        """
        if self._closed is None and os.getpid() == self._process:
            self._closed = "was closed"
            self.watcher.close()
            self._lone.close()
            self._forget_connections()

    def errors(self) -> AbstractContextManager[None]:
        """Inside, errors of the driver and SQLAlchemy become those of `aegis_store.errors`."""
        return errors_of(self.target, on_loss=self._forget_connections)

    def _forget_connections(self) -> None:
        """All of them: when one was lost, so were most likely the others."""
        self._lone.forget()
        forgotten = self._engine.pool
        self._engine.dispose(close=False)
        forgotten.dispose()  # after there is another, so that `connected` sees it


class _OneSnapshot:
    """A transaction that reads, in parts that may fail by themselves."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server = server
        self._connection = connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with errors_of(self._server), self._connection.begin_nested():
            yield self._connection
