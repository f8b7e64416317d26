"""A connection of the driver that is used alone: as `verify` reads a store, ended at Ctrl-C, and closed for good."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from weakref import ref

from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import StaticPool

from aegis_store import driver
from aegis_store.sqlite_errors import errors_of

# How often Ctrl-C and progress are looked after: some ten times a second.
_STEPS_BETWEEN_LOOKS: Final = 100_000


class LoneConnection(driver.dbapi.Connection):  # type: ignore[misc, name-defined]  # chosen at run time
    """Closing it closes its cursors. SQLite keeps a connection open, with its lock, as long as there are statements of it, and
    a cursor that Ctrl-C has cut off, kept by the traceback, may stay until the garbage is collected.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cursors: list[ref[Any]] = []

    def cursor(self, *args: Any) -> Any:
        cursor = super().cursor(*args)
        # Not a WeakSet, which runs code as each cursor goes: Ctrl-C in there would be lost.
        self._cursors = [known for known in self._cursors if known() is not None] + [ref(cursor)]
        return cursor

    def close(self) -> None:
        cursors, self._cursors = self._cursors, []
        try:
            for known in cursors:
                if (cursor := known()) is not None:
                    cursor.close()
        finally:
            super().close()


class Alone:
    """The one connection, as `verify` reads a store. Whoever made it closes it."""

    def __init__(self, store: str, connection: Any) -> None:
        """`store` names it in errors."""
        self._store = store
        self._engine = create_engine(
            "sqlite://",
            module=driver.dbapi,
            creator=lambda: connection,
            poolclass=StaticPool,
            execution_options={"store": self._store},
        )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with errors_of(self._store), self._engine.connect() as connection:
            yield connection


@contextmanager
def interruptible(connection: Any, look: Callable[[], None]) -> Iterator[None]:
    """Inside, a statement that takes long calls `look` now and then, and ends at Ctrl-C and at any other exception of it."""
    raised: list[BaseException] = []

    def handler() -> int:
        try:
            look()
        except BaseException as error:  # noqa: BLE001 - the driver would drop it and say "interrupted"
            raised.append(error)
        return len(raised)

    connection.set_progress_handler(handler, _STEPS_BETWEEN_LOOKS)
    try:
        yield
    except (driver.dbapi.Error, KeyboardInterrupt):
        if not raised:
            raise
    finally:
        with suppress(driver.dbapi.ProgrammingError):  # SQLAlchemy closes a connection that Ctrl-C has cut off
            connection.set_progress_handler(None, 0)
    if raised:
        raise raised[0]
