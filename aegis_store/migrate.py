"""Moving a store's schema with Alembic: the same revisions for `alembic upgrade`, `aegis-store upgrade` and new stores.

`migrations/env.py` asks `connection_for` here for its connection, so that a migration runs on the same SQLite, behind the
same gate and in one transaction, whoever starts it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, create_engine
from sqlalchemy import event as sa_event
from sqlalchemy.pool import NullPool

from aegis_store import driver, gate
from aegis_store.errors import AegisStoreError, SchemaMismatch, StoreCorrupt, StoreUnavailable
from aegis_store.schema import HEAD, REVISION_SQL
from aegis_store.settings import (
    BUSY_PAUSE_MAX_S,
    MIGRATION_EVENT_STEPS,
    MIGRATION_PATIENCE_S,
    MIGRATION_TOLD_STEPS,
)
from aegis_store.sqlite_errors import errors_of, is_busy
from aegis_store.target import Target

if TYPE_CHECKING:
    from alembic.config import Config

OnMigrated = Callable[[int, int], None]
"""Called with (events looked at, events to look at), as well as can be known: each revision, and the look at all references at
the end, may look at every event or at none."""

_PACKAGE: Final = Path(__file__).resolve().parent

# Alembic keeps what it is doing in variables of its modules: two threads that open new stores at once would mix them up.
_one_at_a_time: Final = threading.Lock()


def deploy_directory() -> Path:
    """Where `alembic.ini` and `migrations/` are: in the installed package, or at the top of a checkout."""
    installed = _PACKAGE / "_deploy"
    return installed if installed.is_dir() else _PACKAGE.parent


class Progress:
    """How far a migration has come. SQLite calls `_tick` amid a long statement; Alembic `revision_done` after each revision."""

    def __init__(self, on_progress: OnMigrated | None) -> None:
        self._on_progress = on_progress
        self._events = self._parts = self._parts_done = self._ticks = 0

    def begin(self, connection: Any, found: str) -> None:
        """Follow what the driver's connection does, which is in its transaction, with a store of that revision."""
        if self._on_progress is None or found == "base":  # which holds no event
            return
        self._parts = int(HEAD) - int(found) + 1
        with closing(connection.execute("SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM session")) as cursor:
            self._events = cursor.fetchone()[0]
        connection.set_progress_handler(self._tick, MIGRATION_TOLD_STEPS)
        self._tell()

    def revision_done(self) -> None:
        self._parts_done, self._ticks = self._parts_done + 1, 0
        self._tell()

    def _tick(self) -> int:
        self._ticks += 1
        self._tell()
        return 0

    def _tell(self) -> None:
        if self._on_progress is not None and self._parts:
            looked_at = min(self._ticks * MIGRATION_TOLD_STEPS // MIGRATION_EVENT_STEPS, self._events)
            done = min(self._parts_done, self._parts) * self._events + looked_at
            self._on_progress(min(done, self._parts * self._events), self._parts * self._events)


def config_for(target: object, on_progress: OnMigrated | None = None) -> "Config":
    """The Alembic configuration that migrates the store at `target`."""
    from alembic.config import Config  # noqa: PLC0415 - Alembic takes 0.2 s to import, and opening a store does not need it

    directory = deploy_directory()
    config = Config(str(directory / "alembic.ini"))
    config.set_main_option("script_location", str(directory / "migrations").replace("%", "%%"))
    config.attributes["target"] = target
    config.attributes["on_progress"] = on_progress
    return config


def upgrade(target: Target, on_progress: OnMigrated | None = None) -> None:
    """Move the standing store at `target` to the newest schema, in one transaction. At head already: nothing happens.

    Where another process migrates it, or writes, it waits, for up to ten minutes; then it finds that all is done, or does it.

    Raises what `gate.revision` raises, `SchemaMismatch` for a store that is newer, `StoreBusy` and `StoreFull`; the store
    is then at the schema it had, or at the new one if only the look at it afterwards failed: run it again.
    """
    with errors_of(str(target)):
        run(target, on_progress)
    found = gate.revision(target)
    if found != HEAD:  # Alembic takes a directory that it cannot list for one without revisions, and is content
        raise StoreUnavailable(
            store=str(target), detail=f"the migration ended at {found!r} instead of {HEAD!r}: its scripts could not be read"
        )


def run(target: object, on_progress: OnMigrated | None = None) -> None:
    """Have Alembic run its revisions on the store at `target`, a `Target` or a `Server`; its errors become ours."""
    from alembic import command  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    try:
        with _one_at_a_time:
            command.upgrade(config_for(target, on_progress), "head")
    except CommandError as error:
        if isinstance(error.__cause__, AegisStoreError):
            raise error.__cause__ from None
        raise StoreUnavailable(store=str(target), detail=f"the migration failed: {error}") from None


@contextmanager
def connection_for(target: Target, progress: Progress) -> Iterator[Connection]:
    """A connection inside one write transaction, committed at the end. A revision that fails takes nothing along.

    Raises what `gate.revision` raises, and `SchemaMismatch` for a store that is newer than this library.
    """
    _refuse_newer(target, gate.revision(target))
    engine = create_engine("sqlite://", module=driver.dbapi, creator=lambda: _connect(target), poolclass=NullPool)
    sa_event.listen(engine, "begin", _begin)
    try:
        with engine.begin() as connection:
            raw: Any = connection.connection.dbapi_connection
            found = _revision(raw)
            _refuse_newer(target, found)  # another deploy may have been faster
            progress.begin(raw, found)
            yield connection
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise StoreCorrupt(store=str(target), detail=f"{len(broken)} rows refer to missing ones, in {broken[0][0]}")
    finally:
        engine.dispose()


def _refuse_newer(target: Target, found: str) -> None:
    if found != "base" and found > HEAD:
        raise SchemaMismatch(store=str(target), found=found, expected=HEAD)


def _revision(connection: Any) -> str:
    """In the transaction; `gate` looks before it."""
    with closing(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'alembic_version'")) as cursor:
        if not cursor.fetchone():
            return "base"
    with closing(connection.execute(REVISION_SQL)) as cursor:
        row = cursor.fetchone()
    return str(row[0]) if row else "base"


def _begin(connection: Connection) -> None:
    """Begin to write as soon as nobody else does. Not by SQLite's own wait, in which Ctrl-C goes unheard."""
    raw: Any = connection.connection.dbapi_connection
    until_s = time.monotonic() + MIGRATION_PATIENCE_S
    while True:
        try:
            raw.execute("BEGIN IMMEDIATE")
            return
        except driver.dbapi.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= until_s:
                raise
        time.sleep(BUSY_PAUSE_MAX_S)


def _connect(target: Target) -> object:
    connection = driver.dbapi.connect(target.uri("mode=rw"), uri=True, timeout=0, isolation_level=None)
    # Off, and before BEGIN, where alone it can be set: rebuilding a table that others refer to needs it. Checked at the end.
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA synchronous = FULL")
    # The next one to open the store does that: see `checkpointer` for what it must not meet.
    connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    return connection
