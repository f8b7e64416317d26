"""`verify` on PostgreSQL finds what is not as it was written, says where, and calls nothing damaged that is well."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from aegis_store import EventStore, VerifyReport
from tests.migrations.test_migrations import alembic, finished
from tests.postgres import write_shape
from tests.postgres.server import Postgres, connect
from tests.test_verify import filled as filled
from tests.test_verify import problems

OpenStore = Callable[..., EventStore]
Shell = psycopg.Connection[Any]
Found = set[tuple[str, str | None, int | None]]

LIVE = "(SELECT id FROM session WHERE session_id = 'live')"
INTO_EMPTY = (
    "INSERT INTO event (position, session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
    " SELECT 1000, id, 1, 't', 1, 1, 0, '1' FROM session WHERE session_id = 'empty'"
)
DAMAGE: dict[str, tuple[str, Found]] = {
    "a payload": (f"UPDATE event SET payload = '{{\"n\":9}}' WHERE session = {LIVE} AND seq = 3", {("event", "live", 3)}),
    "a type": (f"UPDATE event SET type = 'hooc' WHERE session = {LIVE} AND seq = 3", {("event", "live", 3)}),
    "a time": (f"UPDATE event SET occurred_at = occurred_at + 1 WHERE session = {LIVE} AND seq = 3", {("event", "live", 3)}),
    "no event_id": (f"UPDATE event SET event_id = NULL WHERE session = {LIVE} AND seq = 3", {("event", "live", 3)}),
    "no JSON": (
        f"UPDATE event SET payload = 'x', checksum = NULL WHERE session = {LIVE} AND seq = 3",
        {("event", "live", 3), ("range", "live", 4), ("record", None, None)},
    ),
    "a gap": (f"DELETE FROM event WHERE session = {LIVE} AND seq = 3", {("range", "live", 3), ("record", None, None)}),
    "the last event": (
        f"DELETE FROM event WHERE session = {LIVE} AND seq = 12",
        {("range", "live", 12), ("record", None, None)},
    ),
    "a position": (
        f"UPDATE event SET position = position + 1 WHERE session = {LIVE} AND seq = 3",
        {("event", "live", 3), ("range", None, None), ("range", "live", 4)},
    ),
    "an event that its session does not know of": (
        INTO_EMPTY,
        {("range", "empty", 1), ("range", None, None), ("record", None, None)},
    ),
    "a counter": ("UPDATE session SET total_bytes = total_bytes + 1 WHERE session_id = 'live'", {("record", "live", None)}),
    "where it begins": ("UPDATE session SET first_seq = 2 WHERE session_id = 'live'", {("range", "live", 1)}),
    "where it ends": ("UPDATE session SET last_seq = 13 WHERE session_id = 'live'", {("range", "live", 13)}),
    "a cap": ("UPDATE session SET max_events = 3 WHERE session_id = 'live'", {("record", "live", None)}),
    "metadata": ("UPDATE session SET metadata = '{' WHERE session_id = 'live'", {("record", "live", None)}),
    "an age": (
        "UPDATE session SET oldest_at = oldest_at + 3600000000 WHERE session_id = 'live'",
        {("note", "live", seq) for seq in range(1, 13)},
    ),
    "a session": ("DELETE FROM session WHERE session_id = 'live'", {("structure", None, None)}),
    "a note of a removal": (
        "UPDATE session SET removed_position = removed_position + 30 WHERE session_id = 'capped'",
        {("record", "capped", None)},
    ),
    "a note of a removal that was none": (
        "UPDATE session SET removed_position = 1, removed_block = 1 WHERE session_id = 'live'",
        {("record", "live", None)},
    ),
    "where a removal is looked for": (
        "UPDATE session SET removed_block = 0 WHERE session_id = 'capped'",
        {("record", "capped", None)},
    ),
    "the policy": ("DELETE FROM store", {("record", None, None)}),
    "the budget": ("UPDATE store SET retained_bytes = retained_bytes - 1", {("record", None, None)}),
    "a tombstone that stands": (
        "INSERT INTO tombstone (session_id, tenant, owner, last_seq, total_bytes) VALUES ('live', 'default', 'default', 1, 1)",
        {("record", "live", None)},
    ),
    "the sequence": ("SELECT setval('event_position', 5)", {("range", None, None)}),
}


@pytest.fixture
def shell(postgres_url: str) -> Iterator[Shell]:
    """A superuser who goes past all triggers."""
    with connect(postgres_url) as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


@pytest.mark.parametrize(("statement", "expected"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_found_where_it_is(filled: EventStore, shell: Shell, statement: str, expected: Found) -> None:
    shell.execute(statement.encode())
    report = filled.verify()
    assert problems(report) == expected
    assert report.damage
    assert "restore a backup" in str(report.advice)


def test_events_of_a_shell_are_counted_as_not_checked(filled: EventStore, postgres_url: str) -> None:
    with connect(postgres_url) as plain:
        plain.execute(
            "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
            " SELECT id, last_seq + 1, 't', 2000000000000000, 2000000000000000, total_bytes, '1' FROM session"
            " WHERE session_id = 'live' FOR UPDATE"
        )
    report = filled.verify()
    assert (report.problems, report.events_without_checksum) == ((), 1)


def test_a_session_that_is_being_deleted_is_no_damage(filled: EventStore, postgres_url: str) -> None:
    with connect(postgres_url) as plain:
        plain.execute("UPDATE session SET session_id = NULL WHERE session_id = 'live'")
    assert filled.verify().problems == ()


def test_verify_works_read_only_and_in_one_snapshot(filled: EventStore, open_store: OpenStore) -> None:
    def write(done: int, events: int) -> None:
        filled.append("live", "t", done)

    report = open_store(read_only=True).verify(on_progress=write)
    assert (report.problems, report.events) == ((), 40)
    assert filled.get_session("live").last_seq > 12


# The schema


@pytest.fixture(scope="module")
def own_url(postgres: Postgres) -> Iterator[str]:
    """A store in partitions, in a database of its own, whose schema may be changed."""
    with postgres.database() as url:
        finished(alembic("-x", f"url={url}", "-x", "partitions=3", "upgrade", "head"))
        yield url


def verified(url: str) -> VerifyReport:
    with EventStore.open(url, read_only=True) as store:
        return store.verify()


def test_the_shape_that_the_library_knows_is_what_the_migrations_make(postgres_url: str) -> None:
    assert write_shape.text_of(postgres_url) == write_shape.FILE.read_text(), write_shape.__doc__


def test_a_store_in_partitions_has_the_same_shape(own_url: str) -> None:
    report = verified(own_url)
    assert (report.problems, report.advice) == ((), None)


CHANGES = {
    "DROP TRIGGER event_counts ON event": "the trigger event_counts is missing",
    "ALTER TABLE ONLY event DISABLE TRIGGER event_guards_update": "the trigger event_guards_update of event is switched off",
    "ALTER TABLE event_1 DISABLE TRIGGER event_guards_delete": "the trigger event_guards_delete of event_1 is switched off",
    "CREATE OR REPLACE FUNCTION aegis_session_guards() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'": (
        "the function aegis_session_guards was changed"
    ),
    "DROP INDEX session_ageing": "the index session_ageing is missing",
    "DROP INDEX event_by_event_id": "the unique index event_by_event_id is missing",
    "DROP VIEW event_readable": "the view event_readable is missing",
    "CREATE OR REPLACE VIEW prune_history AS SELECT r.id, ''::text AS started_at, r.trigger, r.events, r.bytes, r.sessions,"
    " r.sessions_forgotten, r.reasons, r.duration_us / 1e6 AS duration_s, r.outcome FROM prune_run AS r": (
        "the view prune_history was changed"
    ),
    "ALTER TABLE session DROP CONSTRAINT ck_session_range": "the constraint ck_session_range is missing",
    "ALTER TABLE session ADD COLUMN mine integer": "the table session was changed",
    "ALTER TABLE prune_run SET UNLOGGED": "the table prune_run was changed",
    "ALTER TABLE tombstone ENABLE ROW LEVEL SECURITY": "the table tombstone was changed",
    "ALTER SEQUENCE event_position INCREMENT 2": "the sequence event_position was changed",
    "CREATE TRIGGER mine AFTER INSERT ON event EXECUTE FUNCTION aegis_refuse('x')": (
        "the trigger mine is not one of this library's"
    ),
    "CREATE RULE mine AS ON DELETE TO session DO INSTEAD NOTHING": "the rule mine is not one of this library's",
    "CREATE UNIQUE INDEX mine ON session (owner, id)": "the unique index mine is not one of this library's",
}
HARMLESS = (
    "CREATE INDEX others ON event (type)",
    "CREATE VIEW others_too AS SELECT 1",
    "CREATE TABLE theirs (x int)",
    "ANALYZE",
)


def test_every_change_of_the_schema_is_told_and_is_no_damage(own_url: str) -> None:
    with connect(own_url) as shell:
        for statement in (*CHANGES, *HARMLESS):
            shell.execute(statement.encode())
    report = verified(own_url)
    assert {(problem.kind, problem.detail) for problem in report.problems} == {("schema", said) for said in CHANGES.values()}
    assert report.damage == ()
    assert "changed the schema" in str(report.advice)


# Pages and indexes


def test_without_amcheck_it_is_said_what_was_not_looked_at(filled: EventStore) -> None:
    assert any("CREATE EXTENSION amcheck" in told for told in filled.verify().not_looked_at)


def test_amcheck_finds_an_index_that_lacks_rows(postgres: Postgres) -> None:
    with postgres.database() as url:
        EventStore.upgrade(url)
        with connect(url) as shell, EventStore.open(url, maintain_every=None) as store:
            shell.execute("CREATE SCHEMA tools CREATE TABLE none (x int)")
            shell.execute("CREATE EXTENSION amcheck SCHEMA tools")
            store.create_session("s")
            store.append("s", "t", 1)
            report = store.verify()
            assert (report.problems, [told for told in report.not_looked_at if "by themselves" in told]) == ((), [])
            of_index = " WHERE indexrelid = 'event_by_position'::regclass"
            shell.execute("UPDATE pg_index SET indisready = false" + of_index)
            store.append("s", "t", 2)
            shell.execute("UPDATE pg_index SET indisready = true" + of_index)
            (problem,) = store.verify().problems
            assert problem.kind == "structure"
            assert "event_by_position" in problem.detail


def test_who_may_not_call_amcheck_is_told(postgres: Postgres) -> None:
    with postgres.database() as url:
        EventStore.upgrade(url)
        with connect(url) as shell:
            shell.execute("CREATE EXTENSION amcheck")
            shell.execute("CREATE ROLE reader_of_aegis")
            shell.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_of_aegis")
            shell.execute("GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO reader_of_aegis")
            shell.execute("ALTER ROLE reader_of_aegis LOGIN")
        try:
            report = verified(url.replace("postgres@", "reader_of_aegis@").replace("postgres:", "reader_of_aegis:"))
            assert report.problems == ()
            assert any("may not call amcheck" in told for told in report.not_looked_at)
        finally:
            with connect(url) as shell:
                shell.execute("DROP OWNED BY reader_of_aegis")
                shell.execute("DROP ROLE reader_of_aegis")
