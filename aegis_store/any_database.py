"""What the functions that read and write a store ask of its connections: SQLite's `Database`, and `PostgresDatabase`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Result, Select

from aegis_store.metrics import Metrics
from aegis_store.redaction import Redact
from aegis_store.server import Server
from aegis_store.target import Target

Dialect = Literal["sqlite", "postgresql"]
Rows = list[tuple[Any, ...]]
Item = TypeVar("Item")

Write = Callable[[], AbstractContextManager[Connection]]
"""Begins a transaction, as `AnyDatabase.write`."""

_STREAMED_ROWS: Final = 64  # a payload may have 16 MiB

KEEP_APPENDS_OUT: Final = "LOCK TABLE session IN EXCLUSIVE MODE"
"""On PostgreSQL; see `keep_appends_out`."""

Place = Target | Server
"""Where a store is."""


def place_at(target: str) -> Place:
    """From a path or a URL, as `EventStore.open` takes them."""
    return Server.of(target) or Target.of(target)


class Sizes(NamedTuple):
    """What a store takes on disk: the database, its write-ahead log, and empty pages in the former."""

    file_bytes: int
    wal_bytes: int
    free_bytes: int


class Readable(Protocol):
    """What can be verified: an open store, one long snapshot of it, or the one connection that has a store for itself."""

    def read(self) -> AbstractContextManager[Connection]:
        """One snapshot."""


class AnyDatabase(Protocol):
    """The connections of one open store, safe for threads."""

    @property
    def dialect(self) -> Dialect: ...

    @property
    def shares_commits(self) -> bool:
        """Whether writers that wait share a commit: where they take turns. Otherwise each commits for himself, all at once."""

    @property
    def target(self) -> Place: ...

    @property
    def version(self) -> str:
        """The database and its version, as "SQLite 3.53.4"."""

    @property
    def metrics(self) -> Metrics: ...

    @property
    def redact(self) -> Redact | None: ...

    def read(self) -> AbstractContextManager[Connection]:
        """One snapshot: everything read inside belongs to the same moment."""

    def write(self) -> AbstractContextManager[Connection]:
        """One transaction, committed at the end, rolled back on any exception."""

    def writes(self) -> AbstractContextManager[Write]:
        """Transactions that follow each other. What they wrote is durable when this ends, also by an error, and need not be
        before; nor need one be committed before the next begins.
        """

    def parts(self, batch: Sequence[Item], session_of: Callable[[Item], object]) -> list[Sequence[Item]]:
        """What of a batch goes into one transaction, in its order: all of it, or as far as one session goes, where sessions
        can be on different servers.
        """

    def execute_alone(self, sql: str, parameters: dict[str, Any], size_bytes: int = 0) -> Rows:
        """The statement of an append, committed when this returns. Raises `ConstraintRefused`."""

    def settled_position(self) -> int | None:
        """The position up to which no event can appear any more; None where events appear in the order of their positions.

        Ask before the snapshot is taken that reads them.
        """

    def to_verify(self) -> AbstractContextManager[Readable]:
        """The store, for a long look at all of it, by which no writer is held up: in one snapshot where that can be."""

    def sizes(self, conn: Connection) -> Sizes:
        """What the store takes on disk now."""

    def checkpoint(self) -> None:
        """Bring what the log holds into the database, where that is not the database's own affair."""

    def errors(self) -> AbstractContextManager[None]:
        """Inside, errors of the driver and SQLAlchemy become those of `aegis_store.errors`."""

    def check_writable(self) -> None:
        """Raise `StoreClosed` or `ReadOnlyStore` if nothing can be written through this object."""


def locking(conn: Connection, query: Select[Any]) -> Select[Any]:
    """The query, whose rows stay as they are until a transaction that writes ends: where writers do not take turns."""
    return query.with_for_update() if conn.get_execution_options().get("locks_rows") else query


def streamed(conn: Connection, query: Select[Any]) -> Result[Any]:
    """Its rows, a few at a time: a driver that would fetch all of them first is given a cursor on the server."""
    options = {"stream_results": True, "max_row_buffer": _STREAMED_ROWS} if conn.dialect.supports_server_side_cursors else {}
    return conn.execute(query, execution_options=options)


def keep_appends_out(conn: Connection) -> None:
    """No append is under way, and none begins, until this transaction ends: in SQLite because it writes at all."""
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql(KEEP_APPENDS_OUT)
