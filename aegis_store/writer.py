"""The connection that writes. Whoever uses it has the turn (`turns`)."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

from aegis_store import driver
from aegis_store.connections import Connections, check_revision
from aegis_store.errors import StoreUnavailable
from aegis_store.settings import BUSY_PAUSE_MAX_S, BUSY_PAUSE_MIN_S
from aegis_store.sqlite_errors import errors_of, is_busy, translated
from aegis_store.turns import Rows, Statement


class Writer:
    """The writing connection of one open store, replaced when an interruption has left it in an unknown state."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._store = str(connections.target)
        self._patience_s = connections.busy_timeout_ms / 1000
        self._is_lost = False
        self.asked_s = 0.0
        """When whoever has the turn began to wait, by `time.monotonic()`."""
        # Out of the readers' pool: Ctrl-C while a connection is taken from a pool would leave it locked for ever.
        self._engine = connections.engine(NullPool, self._begin)
        self._open()

    def _open(self) -> None:
        with errors_of(self._store):
            connection = self._engine.connect()
            raw: Any = connection.connection.dbapi_connection
            self.driver, self.connection = raw, connection
            connection.detach()
            self._connections.make_writer(raw)
            self._checkpoint_pages = 0
            self.cursor = raw.cursor()

    def prepare(self, asked_s: float) -> None:
        """Make it fit for use by who asked for it then."""
        self.asked_s = asked_s
        if self._is_lost or self.driver.in_transaction or self.connection.invalidated:
            self._replace()

    def checkpoint_from(self, pages: int) -> None:
        """Have a commit that makes the log so long, or finds it so, checkpoint. 0: have none of them do it."""
        if pages != self._checkpoint_pages:
            with errors_of(self._store):
                self.driver.execute(f"PRAGMA wal_autocheckpoint = {pages}").close()
            self._checkpoint_pages = pages

    def _begin(self, _: Connection) -> None:
        self._when_free(lambda: self.cursor.execute("BEGIN IMMEDIATE"))
        self._check_revision()

    def _check_revision(self) -> None:
        """At the start of a transaction, which is over if a deploy has moved the store."""
        try:
            check_revision(self._store, self.cursor.execute)
        except BaseException:
            self._roll_back()
            raise

    def _when_free(self, execute: Callable[[], Any]) -> Any:
        """What `execute` gives, tried again while another process holds the store, until the deadline.

        SQLite's own handler sleeps longer and longer, up to 100 ms, so that a writer starves beside a busy one. This one
        looks again every millisecond at the latest. A statement that was told "busy" has done nothing.
        """
        pause_s = BUSY_PAUSE_MIN_S
        while True:
            try:
                return execute()
            except driver.dbapi.OperationalError as error:
                if not is_busy(error) or time.monotonic() - self.asked_s >= self._patience_s:
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, BUSY_PAUSE_MAX_S)

    def execute(self, sql: str, parameters: dict[str, Any]) -> Rows:
        """One statement that is its own transaction, committed when this returns.

        The driver's cursor, since SQLAlchemy's `execute` would double the time of an append.
        """
        rows: Rows
        try:
            try:
                rows = self.cursor.execute(sql, parameters).fetchall()
            except driver.dbapi.OperationalError as error:
                if not is_busy(error):
                    raise
                rows = self._when_free(lambda: self.cursor.execute(sql, parameters).fetchall())
        except driver.dbapi.Error as error:
            # A statement that did not run to its end must not stay behind on the cursor.
            self.cursor = self.driver.cursor()
            told = self.told(error)
            if isinstance(told, StoreUnavailable):  # as where a later revision has taken away what the statement names
                with suppress(driver.dbapi.Error):
                    self._check_revision()
            raise told from None
        return rows

    def told(self, error: Exception) -> Exception:
        """The error for whoever has the turn."""
        return translated(self._store, error, waited_ms=int((time.monotonic() - self.asked_s) * 1000))

    # Many statements in one transaction

    def begin_for(self, anybody_waits: Callable[[], bool]) -> bool:
        """Begin as soon as no other process is in the way. False: nobody waits for it any more."""
        pause_s = BUSY_PAUSE_MIN_S
        while anybody_waits():
            try:
                self.cursor.execute("BEGIN IMMEDIATE")
            except driver.dbapi.OperationalError as error:
                if not is_busy(error):
                    raise
            else:
                self._check_revision()
                return True
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, BUSY_PAUSE_MAX_S)
        return False

    def commit(self, group: list[Statement]) -> list[int]:
        """Carry out the statements and end the transaction. Each has its rows or its error then, as if it had been alone.

        How many rows each commit gave: that of all, or those of each where they could not be carried out together.
        """
        try:
            for statement in group:
                self._carry_out(statement)
            self.cursor.execute("COMMIT")
        except Exception:  # noqa: BLE001 - whatever it is, it met all of them: each is told its own
            self._roll_back()
            for statement in group:
                statement.rows, statement.error = [], None
                self._alone(statement)
            return [len(statement.rows) for statement in group]
        return [sum(len(statement.rows) for statement in group)]

    def _carry_out(self, statement: Statement) -> None:
        try:
            statement.rows = self.cursor.execute(statement.sql, statement.parameters).fetchall()
        except driver.dbapi.IntegrityError as error:  # which undoes the one statement and leaves the others
            self.cursor = self.driver.cursor()
            statement.error = self.told(error)

    def _alone(self, statement: Statement) -> None:
        try:
            self.prepare(time.monotonic())
            statement.rows = self.execute(statement.sql, statement.parameters)
        except Exception as error:  # noqa: BLE001 - it is told to whoever waits for this statement
            statement.error = error

    def _roll_back(self) -> None:
        try:
            self.cursor.close()
            if self.driver.in_transaction:  # SQLite may have done it already
                self.driver.rollback()
            self.cursor = self.driver.cursor()
        except Exception:  # noqa: BLE001 - a lack of memory too: nothing that was done so far is to be taken for committed
            self._is_lost = True

    # After interruptions

    def give_up(self) -> None:
        """After Ctrl-C in the middle: undo what had begun; the next to write gets a new connection."""
        self._is_lost = True
        self.close()

    def _replace(self) -> None:
        self._is_lost = True  # until the new one stands
        self.close()
        if not self.connection.invalidated:
            self.connection.invalidate()
        self._open()
        self._is_lost = False

    def close(self) -> None:
        try:
            with suppress(driver.dbapi.ProgrammingError):  # it is closed already
                # A statement that was cut off between its row and its end holds the store until its cursor is closed.
                self.cursor.close()
                if self.driver.in_transaction:
                    # Closing alone would leave the transaction open as long as anybody refers to one of its cursors.
                    self.driver.rollback()
        finally:
            self.driver.close()
