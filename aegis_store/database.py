"""One open store: its connections and its transactions.

The writer's connection serves all threads of the process, one after the other (`turns`). Readers take connections from a
pool; in WAL mode they neither wait for the writer nor make it wait. A thread checkpoints (`checkpointer`), and who waits for
more is told of commits (`watcher`).
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import Connection
from sqlalchemy.pool import QueuePool

from aegis_store import driver, forks, watcher
from aegis_store.any_database import Dialect, Item, Readable, Sizes, Write
from aegis_store.checkpointer import Checkpointer
from aegis_store.connections import Connections, Durability, check_revision
from aegis_store.errors import EventsTruncated, ReadOnlyStore, StoreBusy, StoreClosed
from aegis_store.metrics import Metrics
from aegis_store.redaction import Redact
from aegis_store.settings import DEFAULT_BUSY_TIMEOUT_MS, GROUP_BYTES, GROUP_STATEMENTS, LINE_PATIENCE_S
from aegis_store.sqlite_errors import errors_of, translated
from aegis_store.target import Target, open_here
from aegis_store.turns import NoTurn, Rows, Turns, settle
from aegis_store.watcher import FileWatcher
from aegis_store.writer import Writer

_CLOSED: Final = "was closed"
_PAGES: Final = ("page_size", "freelist_count")


class Database:
    """The connections of one open store. Safe for threads. A forked child cannot use it, and is told so."""

    dialect: Dialect = "sqlite"
    version = f"SQLite {driver.VERSION}"
    shares_commits = True

    def __init__(
        self,
        target: Target,
        *,
        durability: Durability = "power",
        read_only: bool = False,
        immutable: bool = False,
        busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
        redact: Redact | None = None,
    ) -> None:
        self.target = target
        self.durability = durability
        self.read_only = read_only
        self.busy_timeout_ms = busy_timeout_ms
        self.redact = redact
        self.metrics = Metrics()
        uri = target.uri("mode=ro&immutable=1" if immutable else "mode=ro" if read_only else "mode=rw")
        connections = Connections(target, durability, busy_timeout_ms, uri)
        self._closed: str | None = None  # why nothing can be done with it any more
        self._engine = connections.engine(
            QueuePool, _begin_reading, pool_size=4, max_overflow=-1
        )  # no reader waits for another
        self.patience_s = min(LINE_PATIENCE_S, busy_timeout_ms / 2000)
        self._readers = 0
        self._readers_lock = threading.Lock()
        alone = driver.has_wal_reset_bug(driver.VERSION_INFO)
        open_here.update([target.path])
        try:
            self._writer = None if read_only else Writer(connections)
        except BaseException:
            open_here.subtract([target.path])
            self._engine.dispose()
            raise
        self.turns = Turns(target, self._carry_out, has_file_lock=not read_only)
        self._checkpointer = Checkpointer(str(target), connections.checkpointer, self.turn, alone=alone)
        self.watcher = FileWatcher(target.path, connections.reader)
        forks.watch(self)

    # Reading

    def settled_position(self) -> int | None:
        """None: writers take turns, so that events appear in the order of their positions."""
        return None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot: everything read inside belongs to the same moment. Do not yield to a caller inside."""
        self.check_open()
        with self._readers_lock:
            self._readers += 1
        try:
            with self.errors(), self._engine.connect() as connection:
                try:
                    with connection.begin():
                        yield connection
                finally:
                    if self._closed is not None:  # by another thread, meanwhile: nobody else would close it
                        connection.detach()
        except EventsTruncated:
            self.metrics.read_truncated()
            raise
        finally:
            with self._readers_lock:
                self._readers -= 1

    # Writing

    @property
    def writer(self) -> Writer:
        """For whoever has the turn, in a store that can be written."""
        return cast(Writer, self._writer)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction, begun at once (BEGIN IMMEDIATE), committed at the end, rolled back on any exception."""
        asked_s = time.monotonic()
        with self.turn() as connection, errors_of(str(self.target), since_s=asked_s):
            try:
                with connection.begin():
                    yield connection
            except BaseException as error:
                self._after_error(error)
                raise
        self._note_commit()

    def writes(self) -> AbstractContextManager[Write]:
        """Transactions that follow each other, as `write` begins them."""
        return nullcontext(self.write)

    def parts(self, batch: Sequence[Item], session_of: Callable[[Item], object]) -> list[Sequence[Item]]:
        """All of it in one transaction: each costs an fsync, and no two are at work at the same time anyway."""
        return [batch]

    @contextmanager
    def turn(self) -> Iterator[Connection]:
        """The writer's connection, for this thread alone, with no transaction begun."""
        asked_s = self.ask()
        if self.turns.nobody_writes():
            with self.turns.at_once() as is_ours:
                if is_ours:
                    yield self._fit_writer(asked_s).connection
                    return
        with self.turns.in_line(self.patience_s, asked_s, self.busy_timeout_ms / 1000):
            yield self._fit_writer(asked_s).connection

    def execute_alone(self, sql: str, parameters: dict[str, Any], size_bytes: int = 0) -> Rows:
        """One statement that is its own transaction, or shares one with others that wait; committed when this returns.

        It is that of an append: a row comes back for each event that it inserted. `size_bytes` is about what it writes.
        Raises `ConstraintRefused` when a constraint or guard refused it.
        """
        asked_s = self.ask()
        turns = self.turns
        if turns.nobody_writes():
            thread = threading.get_ident()
            with turns.lock:  # not by way of a generator: see `Turns`
                try:
                    turns.owner = thread
                    if turns.file_lock.try_acquire():
                        return self._execute(sql, parameters, asked_s)
                finally:
                    try:
                        turns.file_lock.release()
                    finally:
                        turns.owner = 0
        try:
            return turns.outcome_of(sql, parameters, size_bytes, self.patience_s)
        except NoTurn:
            return self.execute_round_the_line(sql, parameters, asked_s)

    def execute_round_the_line(self, sql: str, parameters: dict[str, Any], asked_s: float) -> Rows:
        """As `execute_alone`, for who stood in the line in vain since `asked_s`."""
        with self.turns.round_the_line(asked_s, self.busy_timeout_ms / 1000):
            return self._execute(sql, parameters, asked_s)

    def _execute(self, sql: str, parameters: dict[str, Any], asked_s: float) -> Rows:
        writer = self._fit_writer(asked_s)
        try:
            rows = writer.execute(sql, parameters)
        except BaseException as error:
            self._after_error(error)
            raise
        if rows:
            self.metrics.commits_of_one += 1
        self._note_commit()
        return rows

    def _carry_out(self) -> None:
        """For those who wait in the line: as many of their statements as stand in front, in one transaction."""
        try:
            writer = self._fit_writer(time.monotonic())
            if not writer.begin_for(self.turns.anybody_waits):
                return
        except Exception as error:  # noqa: BLE001 - it is told to those who wait
            group = self.turns.take(GROUP_STATEMENTS, GROUP_BYTES)
            for statement in group:
                statement.error = translated(str(self.target), error, waited_ms=0)
            settle(group)
            return
        group = self.turns.take(GROUP_STATEMENTS, GROUP_BYTES)
        try:
            for events in writer.commit(group):
                self.metrics.committed(events)
            self._note_commit()
        finally:  # they are told what became of them, whatever it is that only the bookkeeping has met
            settle(group)

    def _note_commit(self) -> None:
        self._checkpointer.note_write()
        if watcher.awake:
            watcher.note_commit(self.target.path)

    def to_verify(self) -> AbstractContextManager[Readable]:
        """Snapshot by snapshot: during a long one the log could not be begun anew."""
        return nullcontext(self)

    def sizes(self, conn: Connection) -> Sizes:
        """That of the files, by path: to open one would drop its locks."""
        page_bytes, free_pages = (int(conn.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in _PAGES)
        return Sizes(_size_of(self.target.path), _size_of(self.target.side_file("-wal")), page_bytes * free_pages)

    def checkpoint(self) -> None:
        """Bring what the log holds into the file, as far as readers allow; neither waits nor makes writers wait.

        (Both do on a SQLite with the WAL-reset bug.)
        """
        self.check_writable()
        with self.errors():
            self._checkpointer.run()

    def ask(self) -> float:
        """When this thread began to wait. A thread that has the turn, and came back through a signal handler, is refused."""
        if self._closed is not None or self.read_only:
            self.check_writable()
        if self.turns.owner == threading.get_ident() and self.turns.lock.locked():
            raise StoreBusy(store=str(self.target), waited_ms=0)
        return time.monotonic()

    def _fit_writer(self, asked_s: float) -> Writer:
        """The writer, fit for use, for the thread that has the turn."""
        if self._closed is not None:  # it may have been closed while this thread waited
            self.check_writable()
        waited_s = time.monotonic() - asked_s
        if waited_s * 1000 > self.busy_timeout_ms > 0:
            raise StoreBusy(store=str(self.target), waited_ms=int(waited_s * 1000))
        writer: Any = self._writer
        writer.prepare(asked_s)
        writer.checkpoint_from(self._checkpointer.pages_left_to_writers)
        return cast(Writer, writer)

    def _after_error(self, error: BaseException) -> None:
        if not isinstance(error, Exception) and self._writer is not None:
            self._writer.give_up()

    # The end

    def check_open(self) -> None:
        """Raise `StoreClosed` if nothing can be done with it any more."""
        if self._closed is not None:
            raise StoreClosed(store=str(self.target), detail=self._closed)

    def check_writable(self) -> None:
        """Raise `StoreClosed` or `ReadOnlyStore` if nothing can be written through this object."""
        self.check_open()
        if self.read_only:
            raise ReadOnlyStore(store=str(self.target))

    def _is_closed(self) -> bool:
        return self._closed is not None

    @property
    def was_closed(self) -> bool:
        """Whether somebody has called `close`."""
        return self._closed == _CLOSED

    def close(self) -> None:
        """Close all connections. Idempotent; waits for a write under way. The last one out checkpoints the WAL."""
        if self._is_closed():
            return
        self._checkpointer.stop()
        with self.turns.lock:
            if self._is_closed():  # by another thread, meanwhile
                return
            self._closed = _CLOSED
            self.watcher.close()
            open_here.subtract([self.target.path])
            self._close_connections()
        self.turns.stop()

    def _close_connections(self) -> None:
        self._checkpointer.close_connection()
        self.watcher.close_connection()
        if self._writer is not None:
            self._writer.close()
        self._engine.dispose()

    # Forks

    @property
    def path(self) -> Path:
        return self.target.path

    def pause(self, deadline_s: float) -> bool:
        """Keep all threads out, by that time: checkpointer, writers, readers. See `forks`."""
        if self.turns.owner == threading.get_ident():
            return False  # this very thread forks amid its transaction
        held: list[threading.Lock] = []
        for lock in (self._checkpointer.at_work, self.watcher.at_work, self.turns.lock):
            if not lock.acquire(timeout=max(deadline_s - time.monotonic(), 0)):
                break
            held.append(lock)
        else:
            if self._readers_are_out(deadline_s):
                return True
        for lock in held:
            lock.release()
        return False

    def _readers_are_out(self, deadline_s: float) -> bool:
        while self._readers_lock.acquire(timeout=max(deadline_s - time.monotonic(), 0)):
            if not self._readers:
                return True
            self._readers_lock.release()
            time.sleep(0.001)
        return False

    def resume(self) -> None:
        for lock in (self._readers_lock, self.turns.lock, self.watcher.at_work, self._checkpointer.at_work):
            lock.release()

    def leave_to_parent(self, *, is_idle: bool) -> None:
        if self._closed is None:
            self._closed = "was opened before this process was forked, and belongs to its parent"
            open_here.subtract([self.target.path])
            self.turns.give_up_descriptors()
            self.watcher.leave_to_parent()
            if is_idle:
                self._close_connections()

    def errors(self) -> AbstractContextManager[None]:
        """Inside, the driver's and SQLAlchemy's errors become those of `aegis_store.errors`."""
        return errors_of(str(self.target))


def _size_of(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return 0


def _begin_reading(connection: Connection) -> None:
    raw: Any = connection.connection.dbapi_connection
    raw.execute("BEGIN")
    check_revision(connection.get_execution_options()["store"], raw.execute)
