"""Connections for statements that are transactions of their own. A pool of SQLAlchemy takes 50 µs to give and take back one."""

from collections import deque
from typing import Any, Final

from sqlalchemy import Engine

from aegis_store.any_database import Rows

_MOST_IDLE: Final = 16


class LoneStatements:
    """Cursors that no one uses at the moment, each on a connection of its own. Safe for threads: a deque is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._idle: deque[Any] = deque()
        self._is_closed = False

    def execute(self, sql: str, parameters: dict[str, Any]) -> Rows:
        """The rows of the statement, committed when this returns. Raises what the driver raises.

        After an interruption, as by Ctrl-C, or a loss the connection is closed: nobody meets what is left of the statement.
        """
        cursor: Any = None
        try:
            cursor = self._take()
            rows: Rows = cursor.execute(sql, parameters).fetchall()
        except BaseException as error:
            if cursor is not None:
                self._put_back(cursor, fit=isinstance(error, Exception) and not cursor.connection.closed)
            raise
        self._put_back(cursor, fit=True)
        return rows

    def _take(self) -> Any:
        try:
            return self._idle.pop()  # the last one used, so that a seldom needed one can be closed
        except IndexError:
            connection = self._engine.raw_connection()
            driver: Any = connection.driver_connection
            connection.detach()
            return driver.cursor()

    def _put_back(self, cursor: Any, *, fit: bool) -> None:
        if fit and len(self._idle) < _MOST_IDLE:
            self._idle.append(cursor)
            if self._is_closed:  # meanwhile
                self.forget()
        else:
            cursor.connection.close()

    def forget(self) -> None:
        """Close all that are not in use."""
        while self._idle:
            try:
                self._idle.pop().connection.close()
            except IndexError:  # another thread has it
                return

    def close(self) -> None:
        """As `forget`, and those in use when they come back."""
        self._is_closed = True
        self.forget()
