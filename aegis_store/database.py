"""One open store file: its connections, its transactions, and the one place where driver errors become ours.

A writer connection serves all threads of the process, one after the other. Readers take connections from a pool; in WAL
mode they neither wait for the writer nor make it wait.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy import event as sa_event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool, Pool, QueuePool

from aegis_store import driver
from aegis_store.errors import (
    AegisStoreError,
    InvalidInput,
    ReadOnlyStore,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
    shown,
)
from aegis_store.settings import BUSY_PAUSE_MAX_S, BUSY_PAUSE_MIN_S, DEFAULT_BUSY_TIMEOUT_MS

Durability = Literal["power", "process"]

_SYNCHRONOUS: Final[dict[str, tuple[str, int]]] = {"power": ("FULL", 2), "process": ("NORMAL", 1)}


class ConstraintRefused(AegisStoreError):
    """A constraint or guard of the schema refused a statement. Who issued it knows what that means, and says it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a store is: a file."""

    path: Path

    @classmethod
    def of(cls, target: str | os.PathLike[str]) -> "Target":
        """From a path or a SQLAlchemy URL. Symbolic links are followed, so that side files lie beside the real file."""
        if not isinstance(target, str | os.PathLike):
            raise InvalidInput(f"a store is opened by a path or a URL, not {shown(target)}")
        name = os.fspath(target)
        if not isinstance(name, str) or not name or "\0" in name:
            raise StoreUnavailable(store=str(name), detail="a store needs a path or a URL such as sqlite:///aegis.db")
        if "://" in name:
            name = _path_in_url(name)
        if name == ":memory:" or name.startswith("file:"):
            raise StoreUnavailable(
                store=name,
                detail="a store is a file that several connections share: give its path (no memory, no file: URI)",
            )
        try:
            return cls(Path(os.path.realpath(name)))
        except ValueError:
            raise StoreUnavailable(store=name, detail="no file can have such a name") from None

    def __str__(self) -> str:
        return str(self.path)

    def side_file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def uri(self, query: str) -> str:
        """The file as SQLite takes it: a URI, because only `mode=rw` keeps SQLite from making an empty file."""
        path = quote(os.fsencode(self.path.as_posix()))
        return f"file:{path if path.startswith('/') else f'/{path}'}?{query}"


def _path_in_url(text: str) -> str:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StoreUnavailable(store=text, detail="this is neither a path nor a URL such as sqlite:///aegis.db") from None
    printed = url.render_as_string(hide_password=True)
    if url.get_backend_name() != "sqlite":
        raise StoreUnavailable(
            store=printed, detail="this version opens SQLite files: sqlite:///relative.db, sqlite:////absolute.db"
        )
    if url.query or url.host:
        raise StoreUnavailable(store=printed, detail="a SQLite URL is sqlite:///PATH, without a host and without options")
    return url.database or ":memory:"


_open_here: Final = Counter[Path]()


def is_open_here(file: str | os.PathLike[str]) -> bool:
    """Whether `file` belongs to a store that this process has open, under whatever name.

    Such a file must not be opened as a plain file: closing it again would drop the locks that SQLite holds on it.
    """
    stores = [path for path, count in _open_here.items() if count > 0]
    names = [path.with_name(path.name + suffix) for path in stores for suffix in ("", "-wal", "-shm")]
    return any(os.path.exists(name) and os.path.samefile(file, name) for name in names) if os.path.exists(file) else False


def damaged(conn: Connection, detail: str) -> StoreCorrupt:
    """The error for damage met on that connection."""
    return StoreCorrupt(store=conn.get_execution_options()["store"], detail=detail)


class Database:
    """The connections of one open store. Safe for threads; not for use after a fork."""

    def __init__(
        self,
        target: Target,
        *,
        durability: Durability = "power",
        read_only: bool = False,
        immutable: bool = False,
        busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
    ) -> None:
        self.target = target
        self.durability = durability
        self.read_only = read_only
        self.busy_timeout_ms = busy_timeout_ms
        self._uri = target.uri("mode=ro&immutable=1" if immutable else "mode=ro" if read_only else "mode=rw")
        self._lock = threading.Lock()
        self._owner = 0
        self._closed = threading.Event()
        self._engine = self._engine_with(QueuePool, pool_size=4, max_overflow=-1)  # no reader waits for another
        # The writer stays out of that pool: Ctrl-C while a connection is taken from it would leave it locked for ever.
        self._writer_engine = self._engine_with(NullPool)
        self._writer: Connection | None = None
        self._writer_is_lost = False
        _open_here.update([target.path])
        if not read_only:
            try:
                self._open_writer()
            except BaseException:
                self.close()
                raise

    # Connections

    def _engine_with(self, pool: type[Pool], **options: Any) -> Engine:
        engine = create_engine(
            "sqlite://",
            module=driver.dbapi,
            creator=self._connect,
            poolclass=pool,
            execution_options={"store": str(self.target)},
            **options,
        )
        sa_event.listen(engine, "begin", self._begin)
        return engine

    def _open_writer(self) -> None:
        with self.errors():
            writer = self._writer_engine.connect()
            connection: Any = writer.connection.dbapi_connection
            self._writer_driver, self._writer = connection, writer
            writer.detach()
            self._set_up_writer(connection)
            self._cursor = connection.cursor()

    def _connect(self) -> Any:
        connection = driver.dbapi.connect(
            self._uri,
            uri=True,
            timeout=self.busy_timeout_ms / 1000,
            isolation_level=None,  # transactions begin where this module says so
            check_same_thread=False,  # the pool and the writer's lock see to it that one thread at a time uses it
        )
        self._set(connection, "foreign_keys", "ON", 1)
        self._set(connection, "trusted_schema", "OFF", 0)
        self._set(connection, "query_only", "ON", 1)
        return connection

    def _set_up_writer(self, connection: Any) -> None:
        name, value = _SYNCHRONOUS[self.durability]
        self._set(connection, "query_only", "OFF", 0)
        self._set(connection, "synchronous", name, value)
        # Stores are created in WAL mode. If someone switched it off, this switches it on again, or finds out that it cannot.
        self._set(connection, "journal_mode", "WAL", "wal")
        self._set(connection, "busy_timeout", "0", 0)  # from here on `_when_free` waits

    def _set(self, connection: Any, pragma: str, value: str, expected: object) -> None:
        connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
        actual = connection.execute(f"PRAGMA {pragma}").fetchone()
        if actual != (expected,):
            raise StoreUnavailable(
                store=str(self.target), detail=f"SQLite did not accept PRAGMA {pragma} = {value}, it stayed {actual}"
            )

    def _begin(self, connection: Connection) -> None:
        if connection is self._writer:
            self._when_free(lambda: self._cursor.execute("BEGIN IMMEDIATE"))
        else:
            connection.exec_driver_sql("BEGIN")

    def _when_free(self, execute: Callable[[], Any]) -> Any:
        """What `execute` gives, tried again while another process holds the store, until the busy timeout is over.

        SQLite's own handler sleeps longer and longer, up to 100 ms, so that a writer starves beside a busy one. This one
        looks again every millisecond at the latest. A statement that was told "busy" has done nothing.
        """
        deadline_s = time.monotonic() + self.busy_timeout_ms / 1000
        pause_s = BUSY_PAUSE_MIN_S
        while True:
            try:
                return execute()
            except driver.dbapi.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= deadline_s:
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, BUSY_PAUSE_MAX_S)

    # Transactions

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot: everything read inside belongs to the same moment. Do not yield to a caller inside."""
        if self._closed.is_set():
            raise StoreClosed(store=str(self.target))
        with self.errors(), self._engine.connect() as connection:
            try:
                with connection.begin():
                    yield connection
            finally:
                if self._closed.is_set():  # by another thread, meanwhile: the pool is gone, so nobody else would close it
                    connection.detach()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction, begun at once (BEGIN IMMEDIATE), committed at the end, rolled back on any exception."""
        asked_s = self._ask_for_turn()
        with self._lock:
            try:
                writer = self._take_turn(asked_s)
                with self.errors(), writer.begin():
                    yield writer
            except BaseException as error:
                self._after_error(error)
                raise
            finally:
                self._owner = 0

    def execute_alone(self, sql: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """One statement that is its own transaction, committed when this returns.

        The driver's cursor, since SQLAlchemy's `execute` would double the time of an append. Raises `ConstraintRefused`
        when a constraint or guard refused it.
        """
        asked_s = self._ask_for_turn()
        with self._lock:
            try:
                self._take_turn(asked_s)
                rows: list[tuple[Any, ...]] = self._when_free(lambda: self._cursor.execute(sql, parameters).fetchall())
                return rows
            except BaseException as error:
                self._after_error(error)
                if isinstance(error, driver.dbapi.Error):
                    # A statement that did not run to its end must not stay behind on the cursor.
                    self._cursor = self._writer_driver.cursor()
                    raise translated(str(self.target), error, waited_ms=self.busy_timeout_ms) from None
                raise
            finally:
                # Before the lock is given back: the next thread has it some time before it can say so.
                self._owner = 0

    def checkpoint(self) -> None:
        """Bring what the log holds into the file, as far as readers allow; neither waits nor makes writers wait.

        Only on a SQLite without the WAL-reset bug: on others SQLite's own checkpoints, in a writer's commit, have to do.
        """
        if driver.has_wal_reset_bug(driver.VERSION_INFO) or self._closed.is_set():
            return
        with self.errors(), self._engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection  # not in a transaction, which SQLAlchemy would begin
            raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # The writer's lock is taken by `with` alone: between a call of `acquire` and what follows it, Ctrl-C could come and the
    # lock would never be given back. A `with` has no time limit, so who gets his turn too late gives up then.

    def _ask_for_turn(self) -> float:
        """When this thread began to wait. A thread that holds the lock, and came back through a signal handler, is refused."""
        if self._owner == threading.get_ident() and self._lock.locked():
            raise StoreBusy(store=str(self.target), waited_ms=0)
        return time.monotonic()

    def _take_turn(self, asked_s: float) -> Connection:
        """The writer, fit for use, for the thread that holds the lock."""
        self._owner = threading.get_ident()
        if self._closed.is_set() or self._writer is None:
            self.check_writable()
        waited_s = time.monotonic() - asked_s
        if waited_s * 1000 > self.busy_timeout_ms > 0:
            raise StoreBusy(store=str(self.target), waited_ms=int(waited_s * 1000))
        writer = cast(Connection, self._writer)
        if self._writer_is_lost or writer.invalidated or self._writer_driver.in_transaction:
            self._replace_writer()
        return cast(Connection, self._writer)

    def _after_error(self, error: BaseException) -> None:
        """After Ctrl-C in the middle, SQLAlchemy gives the connection up: undo what it had begun, and use a new one."""
        if not isinstance(error, Exception) and self._writer is not None:
            self._writer_is_lost = True
            self._close_writer()

    def _replace_writer(self) -> None:
        self._writer_is_lost = True  # until the new one stands
        self._close_writer()
        if self._writer is not None and not self._writer.invalidated:
            self._writer.invalidate()
        self._open_writer()
        self._writer_is_lost = False

    def _close_writer(self) -> None:
        try:
            with suppress(driver.dbapi.ProgrammingError):  # it is closed already
                # A statement that was cut off between its row and its end holds the store until its cursor is closed.
                self._cursor.close()
                if self._writer_driver.in_transaction:
                    # Closing alone would leave the transaction open as long as anybody refers to one of its cursors.
                    self._writer_driver.rollback()
        finally:
            self._writer_driver.close()

    def check_writable(self) -> None:
        """Raise `StoreClosed` or `ReadOnlyStore` if nothing can be written through this object."""
        if self._closed.is_set():
            raise StoreClosed(store=str(self.target))
        if self.read_only:
            raise ReadOnlyStore(store=str(self.target))

    def close(self) -> None:
        """Close all connections. Idempotent; waits for a write under way. The last one out checkpoints the WAL."""
        self._ask_for_turn()
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            _open_here.subtract([self.target.path])
            if self._writer is not None:
                self._writer_driver.close()
            self._engine.dispose()

    def errors(self) -> AbstractContextManager[None]:
        """Inside, the driver's and SQLAlchemy's errors become those of `aegis_store.errors`."""
        return errors_of(str(self.target))


# The driver of the wheel reports no extended result codes, so the messages of SQLite, the same for decades, have to serve.
_BUSY: Final = ("database is locked", "database table is locked", "database schema is locked", "locking protocol")
_FULL: Final = ("database or disk is full", "No space left", "Disk quota exceeded", "File too large")
_CORRUPT: Final = ("malformed", "file is not a database", "corrupt", "Could not decode to UTF-8")
_READ_ONLY: Final = ("readonly database",)
_CLOSED: Final = ("closed database", "closed cursor", "This Connection is closed")
_SCHEMA: Final = ("no such table", "no such column", "has no column")


def is_busy(error: Exception) -> bool:
    return any(part in str(error) for part in _BUSY)


@contextmanager
def errors_of(store: str) -> Iterator[None]:
    """Inside, errors of the driver, SQLAlchemy and the file system become ours; see `translated`."""
    started = time.monotonic()
    try:
        yield
    except AssertionError as error:
        # SQLAlchemy's bookkeeping, thrown off by Ctrl-C in the middle of it: Ctrl-C is what happened.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    except (SQLAlchemyError, driver.dbapi.Error, UnicodeEncodeError, OverflowError, OSError) as error:
        raise translated(store, error, waited_ms=int((time.monotonic() - started) * 1000)) from None


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
