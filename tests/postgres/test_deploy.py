"""A deploy moves a store on a server while processes use it: they are told, at their next transaction, and nobody hangs."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from aegis_store import EventStore, NewEvent, SchemaMismatch, schema
from aegis_store.postgres import deploy
from aegis_store.server import Server
from tests.migrations.test_deploy import USES
from tests.postgres.server import Postgres, connect

OpenStore = Callable[..., EventStore]
Shell = psycopg.Connection[Any]
WAIT_S = 30


IT_WAITS = """
SELECT 1 FROM pg_locks JOIN pg_database AS d ON d.oid = database AND d.datname = current_database()
WHERE mode = 'AccessExclusiveLock' AND NOT granted
"""
AN_OLDER_WRITER = "SELECT last_seq FROM session WHERE session_id = 's' FOR UPDATE"


@pytest.fixture
def running(store: EventStore) -> EventStore:
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload=number) for number in range(3)])
    return store


@contextmanager
def moved(url: str, change: str | None = None) -> Iterator[Connection]:
    """What Alembic does for a revision 9999, and does not commit before the end of the block."""
    server = Server.of(url)
    assert server is not None
    with deploy.connection_for(server) as conn:
        if change:
            conn.exec_driver_sql(change)
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        yield conn


def until_it_waits(shell: Shell) -> None:
    """Return as soon as a deploy waits for others, which it does for 0.2 s at a time."""
    until_s = time.monotonic() + WAIT_S
    while shell.execute(IT_WAITS).fetchone() is None:
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """Of a database of the test's own, since it moves it."""
    with postgres.database() as url:
        EventStore.upgrade(url)
        yield url


def test_old_code_is_told_at_its_next_transaction_whatever_it_asks(running: EventStore, postgres_url: str) -> None:
    with moved(postgres_url):
        pass
    for name, use in USES.items():
        with pytest.raises(SchemaMismatch) as caught:
            use(running)
        assert (caught.value.found, caught.value.expected) == ("9999", schema.HEAD), name


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE event RENAME COLUMN run_id TO run",
        "ALTER TABLE event RENAME TO events",
        "ALTER TABLE event RENAME TO events; CREATE VIEW event AS SELECT * FROM events UNION ALL SELECT * FROM events",
        "ALTER TABLE session ADD COLUMN colour text NOT NULL DEFAULT 'red'",
        "DROP FUNCTION aegis_settled_position",
    ],
)
def test_old_code_is_told_whatever_the_revision_changes(running: EventStore, postgres_url: str, change: str) -> None:
    with moved(postgres_url, change):
        pass
    for name in ("append", "append_many", "read", "read_all", "append"):
        with pytest.raises(SchemaMismatch):
            USES[name](running)


@pytest.mark.parametrize("name", ["append", "append_many", "read", "set_status"])
def test_who_comes_amid_a_deploy_waits_for_it_and_is_told(running: EventStore, postgres_url: str, name: str) -> None:
    with ThreadPoolExecutor() as threads:
        with moved(postgres_url):
            outcome = threads.submit(USES[name], running)
            time.sleep(0.2)
            assert not outcome.done()
        with pytest.raises(SchemaMismatch):
            outcome.result(WAIT_S)


def test_a_deploy_waits_for_transactions_under_way_and_lets_others_through_meanwhile(
    running: EventStore, postgres_url: str
) -> None:
    is_moved = threading.Event()

    def move() -> None:
        with moved(postgres_url):
            is_moved.set()

    with ThreadPoolExecutor() as threads, connect(postgres_url) as shell:
        with running._db.read() as conn:
            deploying = threads.submit(move)
            for number in range(3):
                until_it_waits(shell)
                assert running.append("s", "t", number).seq == 4 + number
            assert not is_moved.is_set()
            assert conn.exec_driver_sql("SELECT last_seq FROM session").scalar_one() == 3
        deploying.result(WAIT_S)
    with pytest.raises(SchemaMismatch):
        running.append("s", "t", "late")


def test_a_deploy_and_a_writer_of_another_kind_do_not_deadlock(running: EventStore, postgres_url: str) -> None:
    def move() -> None:
        with moved(postgres_url, "ALTER TABLE session ADD COLUMN colour text"):
            pass

    with ThreadPoolExecutor() as threads, connect(postgres_url) as shell:
        with shell.transaction():
            shell.execute(AN_OLDER_WRITER)
            deploying = threads.submit(move)
            with connect(postgres_url) as other:
                until_it_waits(other)
            shell.execute("SELECT count(*) FROM alembic_version")  # after `session`, which the deploy locks later than this
        deploying.result(WAIT_S)


def test_writers_under_load_end_with_that_error_and_no_other(open_store: OpenStore, postgres_url: str) -> None:
    stores = [open_store(), open_store()]
    stores[0].create_session("s")
    told: list[Any] = []
    counts: list[int] = []

    def write(store: EventStore, how: str) -> None:
        done = 0
        try:
            while True:
                USES[how](store)
                done += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
            told.append(type(error))
            counts.append(done)

    kinds = ("append", "append_many", "read", "read_all", "update_session", "append")
    threads = [threading.Thread(target=write, args=(stores[n % 2], how)) for n, how in enumerate(kinds)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    with moved(postgres_url, "ALTER TABLE session ADD COLUMN colour text; ALTER TABLE event ADD COLUMN colour text"):
        pass
    for thread in threads:
        thread.join(WAIT_S)
    assert told == [SchemaMismatch] * len(kinds)
    assert min(counts) > 0


def test_of_two_deploys_at_once_one_does_it_and_the_other_finds_it_done(postgres: Postgres) -> None:
    with postgres.database() as url, ThreadPoolExecutor() as threads:
        deploys = [threads.submit(EventStore.upgrade, url) for _ in range(2)]
        assert {deploy.result(WAIT_S)[1] for deploy in deploys} == {schema.HEAD}
        with EventStore.open(url, create=False) as store:
            assert store.read_all() == []
