"""The schema on PostgreSQL: one Alembic history, and triggers that hold any writer to cap, counter and guards."""

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, inspect

from aegis_store import EventStore, NotAnAegisStore, schema
from tests.migrations.test_migrations import alembic, failed, finished
from tests.postgres.server import Postgres, connect

Shell = psycopg.Connection[Any]

INSERT = (
    "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload, event_id) "
    "SELECT id, last_seq + 1, 't', 1, 1, total_bytes, '{}', %s FROM session WHERE session_id = %s FOR UPDATE"
)


@pytest.fixture
def shell(postgres_url: str) -> Iterator[Shell]:
    with connect(postgres_url) as connection:
        yield connection


def create(shell: Shell, session_id: str = "s", cap: int | None = None) -> None:
    shell.execute(
        "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at, max_events)"
        " VALUES (%s, 't', 'o', 'running', 1, 1, %s)",
        (session_id, cap),
    )


def fill(shell: Shell, count: int, session_id: str = "s") -> None:
    for _ in range(count):
        shell.execute(INSERT, (None, session_id))


def range_of(shell: Shell, session_id: str = "s") -> Any:
    sql = (
        "SELECT first_seq, last_seq, (SELECT array_agg(seq ORDER BY seq) FROM event WHERE session = session.id) FROM session "
        "WHERE session_id = %s"
    )
    return shell.execute(sql, (session_id,)).fetchone()


# Migrations


def test_upgrade_makes_a_store_and_finds_it_the_next_time(postgres: Postgres) -> None:
    with postgres.database() as url:
        assert EventStore.upgrade(url) == (None, schema.HEAD)
        assert EventStore.upgrade(url) == (schema.HEAD, schema.HEAD)


@pytest.mark.parametrize("partitions", [0, 16])
def test_alembic_makes_the_same_store_in_partitions_or_not(postgres: Postgres, partitions: int) -> None:
    with postgres.database() as url:
        finished(alembic("-x", f"url={url}", "-x", f"partitions={partitions}", "upgrade", "head"))
        assert EventStore.upgrade(url) == (schema.HEAD, schema.HEAD)
        with connect(url) as shell:
            assert shell.execute("SELECT count(*) FROM pg_inherits").fetchone() == (4 * partitions,)
            create(shell, cap=3)
            fill(shell, 5)
            assert range_of(shell) == (3, 5, [3, 4, 5])
            with pytest.raises(psycopg.IntegrityError, match="events do not change"):
                shell.execute("UPDATE event SET type = 'u'")


def test_the_tables_have_the_columns_that_the_library_knows(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    found = inspect(engine)
    for table in schema.metadata.sorted_tables:
        there = {column["name"]: (str(column["type"]), column["nullable"]) for column in found.get_columns(table.name)}
        known = {c.name: (str(c.type.compile(engine.dialect)), c.nullable) for c in table.columns}
        besides = {"removed_position", "removed_block"} if table.name == "session" else set()
        assert there.keys() - known.keys() == besides, table.name
        assert {name: there[name] for name in known} == known, table.name
    engine.dispose()


def test_each_key_of_event_begins_with_the_session(shell: Shell) -> None:
    sql = "SELECT indkey[0] FROM pg_index WHERE indrelid = 'event'::regclass AND indisunique"
    session = "SELECT attnum FROM pg_attribute WHERE attrelid = 'event'::regclass AND attname = 'session'"
    assert set(shell.execute(sql)) == set(shell.execute(session))


def test_a_schema_that_another_program_migrates_is_refused(postgres: Postgres) -> None:
    with postgres.database() as url:
        with connect(url) as shell:
            shell.execute("CREATE TABLE alembic_version (version_num text)")
            shell.execute("INSERT INTO alembic_version VALUES ('ab12')")
        with pytest.raises(NotAnAegisStore, match="another program"):
            EventStore.upgrade(url)


def test_a_number_of_partitions_that_is_none_is_refused(postgres: Postgres) -> None:
    with postgres.database() as url:
        said = failed(alembic("-x", f"url={url}", "-x", "partitions=many", "upgrade", "head"))
        assert "partitions must be a whole number" in said


# What holds any writer


def test_the_cap_holds_for_any_writer(shell: Shell) -> None:
    create(shell, cap=2)
    fill(shell, 5)
    assert range_of(shell) == (4, 5, [4, 5])


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("INSERT INTO event SELECT NULL, session, seq + 2, type, 1, 1, NULL, NULL, NULL, 4, '{}' FROM event", "seq must be"),
        ("INSERT INTO event SELECT NULL, session, seq, type, 1, 1, NULL, NULL, NULL, 4, '{}' FROM event", "seq must be"),
        ("INSERT INTO event SELECT NULL, session, 3, type, 1, 1, NULL, NULL, NULL, 0, '{}' FROM event", "bytes_before"),
        ("INSERT INTO event SELECT 99, session, 3, type, 1, 1, NULL, NULL, NULL, 4, '{}' FROM event", "leave it out"),
        ("INSERT INTO event SELECT NULL, 99, 1, type, 1, 1, NULL, NULL, NULL, 0, '{}' FROM event", "needs a session"),
        ("UPDATE event SET payload = '[]'", "events do not change"),
        ("DELETE FROM event WHERE seq = 2", "events go from the oldest"),
        ("TRUNCATE event", "events go from the oldest"),
        ("TRUNCATE session CASCADE", "events go from the oldest|sessions are deleted"),
        ("UPDATE session SET last_seq = 3", "goes up with its events"),
        ("UPDATE session SET last_seq = 1", "counters only go up"),
        ("UPDATE session SET session_id = 'other'", "the id of a session stays"),
        ("UPDATE session SET max_events = 1", "more events than that"),
        ("UPDATE store SET max_events = 1", "more events than that"),
        ("DELETE FROM session", "to delete a session"),
        ("DELETE FROM store", "changed, not deleted"),
        ("UPDATE identity SET number = 1", "keeps its number"),
    ],
)
def test_what_would_break_a_promise_is_refused_to_any_writer(shell: Shell, statement: str, told: str) -> None:
    create(shell)
    fill(shell, 2)
    with pytest.raises(psycopg.IntegrityError, match=told):
        shell.execute(statement.encode())
    assert range_of(shell) == (1, 2, [1, 2])


def test_an_event_id_stands_once_in_a_session(shell: Shell) -> None:
    create(shell)
    shell.execute(INSERT, ("e", "s"))
    with pytest.raises(psycopg.errors.UniqueViolation):
        shell.execute(INSERT, ("e", "s"))
    create(shell, "t")
    shell.execute(INSERT, ("e", "t"))


def test_raising_first_seq_removes_what_lies_below_and_says_up_to_where(shell: Shell) -> None:
    create(shell)
    fill(shell, 4)
    shell.execute("UPDATE session SET first_seq = 4, removed_at = 7, removed_reason = 'me'")
    assert range_of(shell) == (4, 4, [4])
    assert shell.execute("SELECT * FROM removal").fetchall() == [(3, 7, "me")]


def test_the_removal_with_the_highest_position_is_known_when_its_session_is_gone(shell: Shell) -> None:
    told = "SELECT position, removed_at, removed_reason FROM removal"
    for name, cap in (("low", 1), ("high", 1), ("whole", 9)):
        create(shell, name, cap)
    assert shell.execute(told).fetchall() == [(0, None, None)]
    fill(shell, 3, "low")
    fill(shell, 5000, "high")
    fill(shell, 2, "low")  # another block of positions
    fill(shell, 2, "whole")
    assert shell.execute(told).fetchall() == [(5004, 1, "max_events")]
    shell.execute("UPDATE session SET session_id = NULL, removed_at = 8, removed_reason = 'me' WHERE session_id = 'low'")
    assert shell.execute(told).fetchall() == [(5005, 8, "me")]
    shell.execute("UPDATE session SET first_seq = last_seq + 1 WHERE session_id IS NULL")
    shell.execute("DELETE FROM session WHERE session_id IS NULL")
    assert shell.execute(told).fetchall() == [(5005, 8, "me")]
    with pytest.raises(psycopg.IntegrityError, match="only goes up"):
        shell.execute("UPDATE store SET removed_position = 1")
    with pytest.raises(psycopg.IntegrityError, match="only go up"):
        shell.execute("UPDATE session SET removed_position = 1 WHERE session_id = 'high'")


def test_an_append_at_the_cap_costs_the_same_however_much_was_removed_before(postgres_url: str, shell: Shell) -> None:
    """An index keeps the entries of removed events until nobody may see them any more."""
    create(shell, cap=3)

    def blocks() -> int:
        before = blocks_of(shell, "event")
        fill(shell, 20)
        return blocks_of(shell, "event") - before

    with connect(postgres_url) as reader, reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT FROM event")
        fill(shell, 30)
        at_first = blocks()
        fill(shell, 1000)
        assert blocks() < at_first * 1.5


def blocks_of(shell: Shell, table: str) -> int:
    shell.execute("SELECT pg_stat_force_next_flush()")
    sql = "SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read FROM pg_statio_user_tables WHERE relname = %s"
    return int(shell.execute(sql, (table,)).fetchall()[0][0])


def test_an_append_changes_the_row_of_its_session_in_place(shell: Shell) -> None:
    create(shell, cap=3)
    sql = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'session'"
    shell.execute("SELECT pg_stat_force_next_flush()")
    before = shell.execute(sql).fetchone() or (0, 0)
    fill(shell, 200)
    shell.execute("SELECT pg_stat_force_next_flush()")
    after = shell.execute(sql).fetchone() or (0, 0)
    changed, in_place = after[0] - before[0], after[1] - before[1]
    assert changed == 200
    assert in_place > 180  # not where the page is full of rows that somebody may still see


def test_four_writers_at_once_keep_counter_and_cap_exact(postgres_url: str, shell: Shell) -> None:
    create(shell, cap=50)
    errors: list[Exception] = []

    def write() -> None:
        try:
            with connect(postgres_url) as own:
                fill(own, 100)
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert range_of(shell) == (351, 400, list(range(351, 401)))


def test_a_lower_cap_waits_for_the_append_under_way_and_is_refused_by_what_it_left(postgres_url: str, shell: Shell) -> None:
    create(shell)
    fill(shell, 2)
    outcome: list[str] = []

    def lower() -> None:
        with connect(postgres_url) as own:
            try:
                own.execute("UPDATE store SET max_events = 2")
            except psycopg.IntegrityError as error:
                outcome.append(str(error))

    with shell.transaction():
        fill(shell, 1)
        thread = threading.Thread(target=lower)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join()
    assert "more events than that" in outcome[0]
    assert range_of(shell) == (1, 3, [1, 2, 3])


def test_the_views_show_readable_times(shell: Shell) -> None:
    create(shell)
    fill(shell, 1)
    row = shell.execute("SELECT session_id, event_count, created_at FROM session_overview").fetchone()
    assert row == ("s", 1, "1970-01-01T00:00:00.000001+00:00")
    assert shell.execute("SELECT seq, payload_bytes FROM event_readable").fetchone() == (1, 2)
