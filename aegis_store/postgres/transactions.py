"""Transactions on a server: one by itself, or many that follow each other on one connection and reach the disk together."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine

# A transaction that writes, and of no table. When its commit has waited for the disk, all that was committed before is there
# as well: the log is written in one order.
_FLUSH: Final = "SELECT pg_logical_emit_message(true, 'aegis-store', '')"

GoOn = Callable[[Connection], None]
"""Commits the transaction of the connection, and begins another."""


@contextmanager
def connected(engine: Engine) -> Iterator[Connection]:
    """A connection of its pool, which goes back there unless that has been forgotten meanwhile."""
    pool = engine.pool
    connection = engine.connect()
    try:
        yield connection
    finally:
        connection.close()
        if engine.pool is not pool:  # the others were forgotten, and it came back to where nobody asks any more
            pool.dispose()


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Committed at the end, rolled back on any exception."""
    with undone_on_error(connection):
        connection.begin()
        yield
        connection.commit()


@contextmanager
def undone_on_error(connection: Connection) -> Iterator[None]:
    """A transaction that is begun inside is rolled back on any exception."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception):
            connection.rollback()
        else:  # as by Ctrl-C: nobody knows what it is amid of
            connection.invalidate()
        raise


class Series:
    """Transactions that follow each other on one connection. Their commits need not wait for the disk: `end` does.

    Each is committed by the message that begins the next one, which spares a way to the server.
    """

    def __init__(self, connection: Connection, errors: Callable[[], AbstractContextManager[None]], go_on: GoOn) -> None:
        self._connection = connection
        self._errors = errors
        self._go_on = go_on
        self._driver: Any = None  # the driver's connection, on which they are

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, rolled back on any exception."""
        with self._errors(), undone_on_error(self._connection):
            if self._connection.in_transaction():
                self._go_on(self._connection)
            else:
                self._connection.begin()
                self._driver = self._driver or self._connection.connection.driver_connection
            yield self._connection

    def end(self) -> None:
        """Commit the last one. All of them are on disk when this returns.

        Raises the driver's error if their connection was lost, as when the server has crashed: it may have lost some of them.
        """
        if self._connection.in_transaction():
            self._connection.commit()
        if self._driver is not None:
            self._driver.execute(_FLUSH)
