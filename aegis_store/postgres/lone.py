"""Connections for statements that are transactions of their own. A pool of SQLAlchemy takes 50 µs to give and take back one."""

import selectors
from collections import deque
from typing import Any, Final, NamedTuple

from sqlalchemy import Pool

from aegis_store.any_database import Rows

_MOST_IDLE: Final = 16

# Takes no descriptor, as the default one would. Windows has only the other.
_Selector: Final[type[selectors.BaseSelector]] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class _Lone(NamedTuple):
    cursor: Any
    selector: selectors.BaseSelector

    def is_lost(self) -> bool:
        """Whether the server has closed the connection: nothing else is to be read where nothing was asked."""
        return bool(self.selector.select(0))

    def close(self) -> None:
        self.cursor.connection.close()


class LoneStatements:
    """Cursors that no one uses at the moment, each on a connection of its own. Safe for threads: a deque is."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._idle: deque[_Lone] = deque()
        self._is_closed = False

    def execute(self, sql: str, parameters: dict[str, Any]) -> Rows:
        """The rows of the statement, committed when this returns. Raises what the driver raises.

        After an interruption, as by Ctrl-C, or a loss the connection is closed: nobody meets what is left of the statement.
        """
        lone: _Lone | None = None
        try:
            lone = self._take()
            rows: Rows = lone.cursor.execute(sql, parameters).fetchall()
        except BaseException as error:
            if lone is not None:
                self._put_back(lone, fit=isinstance(error, Exception) and not lone.cursor.connection.closed)
            raise
        self._put_back(lone, fit=True)
        return rows

    def _take(self) -> _Lone:
        """One that was not lost while nobody used it: what is sent after a loss may have been done, so that is told."""
        while self._idle:
            try:
                lone = self._idle.pop()  # the last one used, so that a seldom needed one can be closed
            except IndexError:  # another thread has it
                break
            if not lone.is_lost():
                return lone
            lone.close()
        connection = self._pool.connect()
        driver: Any = connection.driver_connection
        connection.detach()
        selector = _Selector()
        selector.register(driver.fileno(), selectors.EVENT_READ)
        return _Lone(driver.cursor(), selector)

    def _put_back(self, lone: _Lone, *, fit: bool) -> None:
        if fit and len(self._idle) < _MOST_IDLE:
            self._idle.append(lone)
            if self._is_closed:  # meanwhile
                self.forget()
        else:
            lone.close()

    def forget(self) -> None:
        """Close all that are not in use."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:  # another thread has it
                return

    def close(self) -> None:
        """As `forget`, and those in use when they come back."""
        self._is_closed = True
        self.forget()
