"""The schema of a store on PostgreSQL: which one it has, and moving it with the same Alembic revisions as SQLite's.

A deploy keeps everybody out: each transaction of the library begins with a lock on `alembic_version` (`database`), appends lock
it with their one statement, and writers of other kinds lock `event` or `session`. It takes the locks on all of these at once
or waits with none of them. So nobody waits behind it for longer than a moment while a long read goes on, and it neither meets
nor causes a deadlock, whatever its revisions do to the tables.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from aegis_store import migrate
from aegis_store.errors import NotAnAegisStore, SchemaMismatch, StoreUnavailable
from aegis_store.postgres.errors import errors_of
from aegis_store.schema import HEAD, REVISION_SQL
from aegis_store.server import Server
from aegis_store.settings import DEPLOY_LOCK_MS, DEPLOY_PAUSE_S, MIGRATION_PATIENCE_S

_NAMES = "SELECT to_regclass('alembic_version') IS NOT NULL, to_regclass('event_position') IS NOT NULL"
_ONE_DEPLOY_AT_A_TIME = "SELECT pg_advisory_xact_lock(1095059283, 1)"
_ALL_TO_ITSELF = "LOCK TABLE alembic_version, event, session, store IN ACCESS EXCLUSIVE MODE"
_HELD_BY_OTHERS = ("55P03", "40P01")  # lock not available, deadlock


def revision(server: Server) -> str:
    """The schema revision of the store, "base" if there is none yet.

    Raises `NotAnAegisStore` for a schema whose Alembic history is another program's, `StoreUnavailable`.
    """
    with _connection(server) as conn:
        return revision_by(conn.exec_driver_sql, server)


def revision_by(execute: Callable[[str], Any], server: Server) -> str:
    """As `revision`; `execute` is that of a connection."""
    has_history, is_ours = execute(_NAMES).fetchone()
    if not has_history:
        return "base"
    row = execute(REVISION_SQL).fetchone()
    if row and not is_ours:
        raise NotAnAegisStore(store=str(server), detail="a schema that another program migrates: name another in search_path")
    return str(row[0]) if row else "base"


def check(server: Server, found: str) -> None:
    """Return if the revision that was `found` is that of this library. Raises `SchemaMismatch`."""
    if found != HEAD:
        raise SchemaMismatch(store=str(server), found=found, expected=HEAD)


def upgrade(server: Server) -> tuple[str | None, str]:
    """Create the store, or move it to the newest schema; the revisions before (None: there was none) and after."""
    before = revision(server)
    if before != HEAD:
        migrate.run(server)
    return None if before == "base" else before, revision(server)


@contextmanager
def connection_for(server: Server) -> Iterator[Connection]:
    """A connection inside one transaction, for one deploy at a time. A revision that fails takes nothing along."""
    with _connection(server) as conn:
        conn.exec_driver_sql(_ONE_DEPLOY_AT_A_TIME)
        found = revision_by(conn.exec_driver_sql, server)
        if found != "base" and found > HEAD:
            raise SchemaMismatch(store=str(server), found=found, expected=HEAD)
        if found == "base":
            _check_encoding(server, conn)
        else:
            _lock(conn)
        yield conn


def _check_encoding(server: Server, conn: Connection) -> None:
    found = conn.exec_driver_sql("SHOW server_encoding").scalar_one()
    if found != "UTF8":
        raise StoreUnavailable(store=str(server), detail=f"its encoding is {found}: make a database WITH ENCODING 'UTF8'")


def _lock(conn: Connection) -> None:
    """Have the store for this transaction alone, as soon as nobody uses it. Raises after ten minutes, as on SQLite."""
    until_s = time.monotonic() + MIGRATION_PATIENCE_S
    while True:
        try:
            with conn.begin_nested():
                conn.exec_driver_sql(f"SET LOCAL lock_timeout = '{DEPLOY_LOCK_MS}ms'")
                conn.exec_driver_sql(_ALL_TO_ITSELF)
                conn.exec_driver_sql("SET LOCAL lock_timeout TO DEFAULT")
            return
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) not in _HELD_BY_OTHERS or time.monotonic() >= until_s:
                raise
        time.sleep(DEPLOY_PAUSE_S)


@contextmanager
def _connection(server: Server) -> Iterator[Connection]:
    engine = server.engine(settings={"client_min_messages": "warning"}, poolclass=NullPool)
    with errors_of(server), engine.begin() as connection:
        yield connection
