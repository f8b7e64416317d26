"""Moving a store's schema with Alembic: the same revisions for `alembic upgrade`, `aegis-store upgrade` and new stores.

`migrations/env.py` asks `connection_for` here for its connection, so that a migration runs on the same SQLite, behind the
same gate and in one transaction, whoever starts it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, create_engine
from sqlalchemy import event as sa_event
from sqlalchemy.pool import NullPool

from aegis_store import driver, gate
from aegis_store.errors import AegisStoreError, SchemaMismatch, StoreCorrupt, StoreUnavailable
from aegis_store.schema import HEAD
from aegis_store.settings import DEFAULT_BUSY_TIMEOUT_MS
from aegis_store.sqlite_errors import errors_of
from aegis_store.target import Target

if TYPE_CHECKING:
    from alembic.config import Config

_PACKAGE: Final = Path(__file__).resolve().parent


def deploy_directory() -> Path:
    """Where `alembic.ini` and `migrations/` are: in the installed package, or at the top of a checkout."""
    installed = _PACKAGE / "_deploy"
    return installed if installed.is_dir() else _PACKAGE.parent


def config_for(target: Target) -> "Config":
    """The Alembic configuration that migrates the store at `target`."""
    from alembic.config import Config  # noqa: PLC0415 - Alembic takes 0.2 s to import, and opening a store does not need it

    directory = deploy_directory()
    config = Config(str(directory / "alembic.ini"))
    config.set_main_option("script_location", str(directory / "migrations").replace("%", "%%"))
    config.attributes["target"] = target
    return config


def upgrade(target: Target) -> None:
    """Move the standing store at `target` to the newest schema, in one transaction. At head already: nothing happens.

    Raises what `gate.revision` raises, `SchemaMismatch` for a store that is newer, `StoreBusy` and `StoreFull`; the store
    is then at the schema it had, or at the new one if only the look at it afterwards failed: run it again.
    """
    from alembic import command  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    with errors_of(str(target)):
        try:
            command.upgrade(config_for(target), "head")
        except CommandError as error:
            if isinstance(error.__cause__, AegisStoreError):
                raise error.__cause__ from None
            raise StoreUnavailable(store=str(target), detail=f"the migration failed: {error}") from None
    found = gate.revision(target)
    if found != HEAD:  # Alembic takes a directory that it cannot list for one without revisions, and is content
        raise StoreUnavailable(
            store=str(target), detail=f"the migration ended at {found!r} instead of {HEAD!r}: its scripts could not be read"
        )


@contextmanager
def connection_for(target: Target) -> Iterator[Connection]:
    """A connection inside one write transaction, committed at the end. A revision that fails takes nothing along.

    Raises what `gate.revision` raises, and `SchemaMismatch` for a store that is newer than this library.
    """
    found = gate.revision(target)
    if found != "base" and found > HEAD:
        raise SchemaMismatch(store=str(target), found=found, expected=HEAD)
    engine = create_engine("sqlite://", module=driver.dbapi, creator=lambda: _connect(target), poolclass=NullPool)
    sa_event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            yield connection
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise StoreCorrupt(store=str(target), detail=f"{len(broken)} rows refer to missing ones, in {broken[0][0]}")
    finally:
        engine.dispose()


def _connect(target: Target) -> object:
    connection = driver.dbapi.connect(
        target.uri("mode=rw"), uri=True, timeout=DEFAULT_BUSY_TIMEOUT_MS / 1000, isolation_level=None
    )
    # Off, and before BEGIN, where alone it can be set: rebuilding a table that others refer to needs it. Checked at the end.
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA synchronous = FULL")
    # The next one to open the store does that: see `checkpointer` for what it must not meet.
    connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    return connection
