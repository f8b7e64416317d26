"""Alembic as deploys run it: from a checkout, on new and on standing stores, in one transaction or not at all."""

import ast
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.config import main as alembic_main
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateIndex, CreateTable

from aegis_store import EventStore, NewEvent, SchemaMismatch, StoreUnavailable, driver, migrate, schema
from aegis_store.target import Target
from aegis_store.triggers import SQLITE_TRIGGERS
from aegis_store.verify.structure import Shape, shape
from aegis_store.views import SQLITE_VIEWS
from tests.forked import Command

ROOT = Path(__file__).resolve().parents[2]
URL_VARIABLE = "AEGIS_STORE_URL"
INDEXES = (
    *("session_by_update", "session_by_status", "session_prunable", "session_forgettable", "session_ageing"),
    *("session_oversize", "session_by_owner", "event_by_event_id"),
    "tombstone_by_owner",
)


def alembic(*arguments: str, config: Path = ROOT / "alembic.ini", url: str | None = None) -> Command:
    """Alembic as a person starts it; `url` is in the environment."""
    environment = {name: value for name, value in os.environ.items() if name != URL_VARIABLE}
    if url is not None:
        environment[URL_VARIABLE] = url
    return Command(alembic_main, ("alembic", "-c", str(config), *arguments), directory=ROOT, environment=environment)


def finished(command: Command) -> str:
    """What it said, once it has ended well."""
    done = command.ended()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def failed(command: Command) -> str:
    """What it said, once it has ended badly."""
    done = command.ended()
    assert done.returncode != 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def url_of(path: Path) -> tuple[str, str]:
    return ("-x", f"url={path}")


def connect(path: Path) -> sqlite3.Connection:
    connection: sqlite3.Connection = driver.dbapi.connect(str(path), isolation_level=None)
    return connection


def revision(path: Path) -> list[str]:
    with closing(connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]


def shape_of_file(path: Path) -> Shape:
    with closing(connect(path)) as connection:
        return shape(connection)


def differences(one: Shape, other: Shape) -> set[tuple[str, str]]:
    """The kinds and names of what is not the same in both."""
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.fixture(scope="module")
def shape_in_code() -> Shape:
    """The schema that `schema.metadata` makes."""
    with closing(driver.dbapi.connect(":memory:", isolation_level=None)) as memory:
        engine = create_engine("sqlite://", module=driver.dbapi, creator=lambda: memory, poolclass=StaticPool)
        schema.metadata.create_all(engine)
        return shape(memory)


@pytest.fixture
def filled(path: Path) -> Path:
    """This test's store, closed, with a session of two events."""
    with EventStore.open(path, durability="process") as store:
        store.create_session("s")
        store.append_many("s", [NewEvent(type="note", payload=number) for number in range(2)])
    return path


def payloads(path: Path) -> list[object]:
    with EventStore.open(path) as store:
        return [event.payload for event in store.read("s").events]


# From a checkout


def test_upgrade_makes_a_new_store_at_the_url_of_the_command_line(tmp_path: Path) -> None:
    finished(alembic(*url_of(tmp_path / "new.db"), "upgrade", "head"))
    with EventStore.open(tmp_path / "new.db", create=False) as store:
        assert store.create_session("s").session_id == "s"


def test_upgrade_makes_a_new_store_at_the_url_of_the_environment(tmp_path: Path) -> None:
    finished(alembic("upgrade", "head", url=f"sqlite:///{tmp_path}/new.db"))
    assert revision(tmp_path / "new.db") == [schema.HEAD]


def test_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    finished(alembic(*url_of(tmp_path / "wanted.db"), "upgrade", "head", url=str(tmp_path / "other.db")))
    assert [entry.name for entry in tmp_path.iterdir()] == ["wanted.db"]


def test_a_store_that_upgrade_makes_is_like_one_that_open_makes(tmp_path: Path, template: Path) -> None:
    finished(alembic(*url_of(tmp_path / "a" / "new.db"), "upgrade", "head"))
    made = tmp_path / "a" / "new.db"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in made.parent.iterdir()] == ["new.db"]
    assert differences(shape_of_file(made), shape_of_file(template)) == set()
    with closing(connect(made)) as connection:
        pragmas = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "auto_vacuum", "journal_mode")]
    assert pragmas == [8192, 2, "wal"]


def test_upgrade_of_a_store_at_head_changes_nothing(filled: Path) -> None:
    finished(alembic(*url_of(filled), "upgrade", "head"))
    assert payloads(filled) == [0, 1]
    assert revision(filled) == [schema.HEAD]


def test_upgrade_of_a_store_in_use_lets_its_user_go_on(filled: Path) -> None:
    with EventStore.open(filled, durability="process") as store:
        store.append("s", "note", 2)
        finished(alembic(*url_of(filled), "upgrade", "head"))
        assert store.append("s", "note", 3).seq == 4
    assert payloads(filled) == [0, 1, 2, 3]


def test_without_a_url_the_error_is_one_line_that_says_how_to_give_one(tmp_path: Path) -> None:
    said = failed(alembic("upgrade", "head")).strip()
    assert len(said.splitlines()) == 1
    assert "-x url=" in said
    assert URL_VARIABLE in said


@pytest.mark.parametrize("command", ["current", "check", "history"])
def test_looking_at_a_path_where_nothing_stands_makes_no_file(tmp_path: Path, command: str) -> None:
    alembic(*url_of(tmp_path / "new.db"), command).ended()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("downgrade", "base"), ("stamp", "head")])
def test_a_command_for_a_standing_store_makes_no_new_one(tmp_path: Path, arguments: tuple[str, str]) -> None:
    said = failed(alembic(*url_of(tmp_path / "new.db"), *arguments)).strip()
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_deploy_starts_alembic_in_an_interpreter_of_its_own(tmp_path: Path) -> None:
    """The rest forks; this is what stands in the README, in a checkout."""
    environment = {**os.environ, URL_VARIABLE: str(tmp_path / "new.db")}
    for arguments in (["upgrade", "head"], ["current"]):
        said = subprocess.check_output([sys.executable, "-m", "alembic", *arguments], cwd=ROOT, env=environment, text=True)
    assert f"{schema.HEAD} (head)" in said


def test_current_says_the_revision_of_a_standing_store(path: Path) -> None:
    assert f"{schema.HEAD} (head)" in finished(alembic(*url_of(path), "current"))


def test_sql_of_an_upgrade_can_be_written_without_a_store() -> None:
    assert "CREATE TABLE event" in finished(alembic("upgrade", "head", "--sql"))


def text_file(path: Path) -> None:
    path.write_text("Dear diary,\n")


def foreign_database(path: Path) -> None:
    with closing(connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL").fetchall()
        other.execute("CREATE TABLE note (text TEXT)")


def empty_file(path: Path) -> None:
    path.touch()


def damaged_store(path: Path) -> None:
    EventStore.open(path).close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * 8192 * 8)


def headless_store(path: Path) -> None:
    EventStore.open(path).close()
    with path.open("r+b") as file:
        file.write(bytes(100))


@pytest.mark.parametrize("make", [text_file, foreign_database, empty_file, damaged_store, headless_store])
def test_upgrade_refuses_what_is_no_store_in_one_line_and_leaves_it_as_it_was(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    file = tmp_path / "file.db"
    make(file)
    before = file.read_bytes()
    said = failed(alembic(*url_of(file), "upgrade", "head")).strip()
    assert len(said.splitlines()) == 1
    assert file.read_bytes() == before


def test_upgrade_refuses_a_store_that_is_newer(filled: Path) -> None:
    with closing(connect(filled)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = filled.read_bytes()
    assert "9999" in failed(alembic(*url_of(filled), "upgrade", "head"))
    assert filled.read_bytes() == before


def test_upgrade_refuses_a_url_of_another_database(tmp_path: Path) -> None:
    said = failed(alembic("-x", "url=postgresql://localhost/aegis", "upgrade", "head")).strip()
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("stands", [False, True])
def test_two_upgrades_at_once_both_succeed(tmp_path: Path, path: Path, stands: bool) -> None:
    store = path if stands else tmp_path / "new.db"
    if stands:
        finished(alembic(*url_of(store), "downgrade", "base"))
    both = [alembic(*url_of(store), "upgrade", "head") for _ in range(2)]
    for process in both:
        finished(process)
    assert revision(store) == [schema.HEAD]
    with EventStore.open(store) as opened:
        assert opened.retention_policy().max_events == 1000
    assert not list(tmp_path.glob("*.tmp*"))


# The schema in code


def test_the_revision_of_the_library_is_alembics_head() -> None:
    assert ScriptDirectory.from_config(Config(str(ROOT / "alembic.ini"))).get_heads() == [schema.HEAD]


def test_alembic_sees_no_difference_between_the_store_and_the_code(path: Path) -> None:
    finished(alembic(*url_of(path), "check"))


def test_the_schema_that_the_migrations_reach_is_the_schema_in_code(path: Path, shape_in_code: Shape) -> None:
    assert differences(shape_of_file(path), shape_in_code) == set()


def test_the_comparison_sees_tables_indexes_triggers_and_views(shape_in_code: Shape) -> None:
    names = {kind: {name for found, name in shape_in_code if found == kind} for kind in ("table", "index", "trigger", "view")}
    assert names["table"] >= {"store", "session", "event", "tombstone", "prune_run"}
    assert names["index"] == set(INDEXES)
    assert names["trigger"] == set(SQLITE_TRIGGERS)
    assert names["view"] == set(SQLITE_VIEWS)


@pytest.mark.parametrize("trigger", SQLITE_TRIGGERS)
def test_the_comparison_notices_that_a_trigger_was_dropped(path: Path, trigger: str) -> None:
    before = shape_of_file(path)
    with closing(connect(path)) as connection:
        connection.execute(f"DROP TRIGGER {trigger}")
    assert differences(shape_of_file(path), before) == {("trigger", trigger)}


@pytest.mark.parametrize("trigger", SQLITE_TRIGGERS)
def test_the_comparison_notices_that_a_trigger_was_changed(path: Path, trigger: str) -> None:
    before = shape_of_file(path)
    text = SQLITE_TRIGGERS[trigger].strip().removesuffix("END")
    with closing(connect(path)) as connection:
        connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(f"{text}; SELECT 1; END".replace(";\n; SELECT", ";\n SELECT"))
    assert differences(shape_of_file(path), before) == {("trigger", trigger)}


@pytest.mark.parametrize("change", ["DROP VIEW {0}", "DROP VIEW {0}; CREATE VIEW {0} AS SELECT 1 AS session_id"])
@pytest.mark.parametrize("view", SQLITE_VIEWS)
def test_the_comparison_notices_that_a_view_was_dropped_or_changed(path: Path, view: str, change: str) -> None:
    before = shape_of_file(path)
    with closing(connect(path)) as connection:
        for statement in change.format(view).split("; "):
            connection.execute(statement)
    assert differences(shape_of_file(path), before) == {("view", view)}


@pytest.mark.parametrize("index", INDEXES)
def test_the_comparison_notices_that_an_index_was_dropped(path: Path, index: str) -> None:
    before = shape_of_file(path)
    with closing(connect(path)) as connection:
        connection.execute(f"DROP INDEX {index}")
    assert differences(shape_of_file(path), before) == {("index", index)}


@pytest.mark.parametrize("table", ["store", "session", "event"])
@pytest.mark.parametrize("part", ["STRICT", "CHECK", "NOT NULL"])
def test_the_comparison_notices_that_a_table_lost_a_part(path: Path, table: str, part: str) -> None:
    before = shape_of_file(path)
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        replaced = "UPDATE sqlite_schema SET sql = replace(sql, ?, '') WHERE type = 'table' AND name = ?"
        assert connection.execute(replaced, (part, table)).rowcount == 1
        assert differences(shape(connection), before) == {("table", table)}


def test_every_table_is_strict(shape_in_code: Shape) -> None:
    assert all(
        sql.endswith("STRICT") for (kind, name), sql in shape_in_code.items() if kind == "table" and "sqlite_" not in name
    )


def test_revisions_do_not_import_the_library() -> None:
    for revision_file in (ROOT / "migrations" / "versions").glob("*.py"):
        nodes = list(ast.walk(ast.parse(revision_file.read_text())))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert imported
        assert not [name for name in imported if name.split(".")[0] == "aegis_store"]


@pytest.mark.parametrize("table", schema.metadata.sorted_tables, ids=lambda table: str(table.name))
def test_the_types_of_a_table_suit_postgresql(table: Any) -> None:
    sql = str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    kinds = {str(column.type.compile(dialect=postgresql.dialect())) for column in table.columns}  # type: ignore[no-untyped-call]
    assert kinds <= {"BIGINT", "TEXT", "INTEGER"}
    assert "BIGINT" in kinds
    assert "STRICT" not in sql


def test_columns_that_count_or_tell_the_time_have_64_bits_on_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    narrow = {
        f"{table.name}.{column.name}"
        for table in schema.metadata.sorted_tables
        for column in table.columns
        if column.type.compile(dialect=dialect) == "INTEGER"
    }
    assert narrow == {"identity.id", "store.id", "session.hold", "session.oversize"}


def test_the_indexes_suit_postgresql() -> None:
    compiled = [
        str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
        for table in schema.metadata.sorted_tables
        for index in table.indexes
    ]
    assert len(compiled) == len(INDEXES)
    assert all("WHERE" in sql or "tombstone" in sql for sql in compiled)


# Later revisions

REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table("note", sa.Column("text", sa.Text()), sqlite_strict=True)
    op.execute("INSERT INTO note VALUES ('new')")
    op.execute("UPDATE session SET hold = 1")
    {last}


def downgrade() -> None:
    op.drop_table("note")
"""


def checkout_with(directory: Path, last: str) -> Path:
    """A checkout with one more revision, whose last line is given; its alembic.ini."""
    directory.mkdir()
    shutil.copytree(ROOT / "migrations", directory / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", directory)
    (directory / "migrations" / "versions" / "0006_note.py").write_text(REVISION.format(last=last))
    return directory / "alembic.ini"


FAILURES = {
    "an exception": "raise RuntimeError('half way')",
    "a statement that SQLite refuses": "op.execute('INSERT INTO no_such_table VALUES (1)')",
    "a guard of the schema": "op.execute('DELETE FROM session')",
    "a broken reference": "op.execute('DROP TRIGGER session_guards_delete'); op.execute('DELETE FROM session')",
    "the death of the process": "import os; os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("last", FAILURES.values(), ids=list(FAILURES))
def test_a_revision_that_fails_half_way_leaves_the_store_as_it_was(filled: Path, tmp_path: Path, last: str) -> None:
    before = shape_of_file(filled)
    failed(alembic(*url_of(filled), "upgrade", "head", config=checkout_with(tmp_path / "later", last)))
    assert revision(filled) == [schema.HEAD]
    assert shape_of_file(filled) == before
    assert payloads(filled) == [0, 1]
    with EventStore.open(filled) as store:
        assert store.get_session("s").hold is False


def test_a_new_store_whose_second_revision_fails_is_not_made(tmp_path: Path) -> None:
    config = checkout_with(tmp_path / "later", FAILURES["an exception"])
    failed(alembic(*url_of(tmp_path / "stores" / "new.db"), "upgrade", "head", config=config))
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_revision_that_works_moves_the_store(filled: Path, tmp_path: Path) -> None:
    finished(alembic(*url_of(filled), "upgrade", "head", config=checkout_with(tmp_path / "later", "pass")))
    assert revision(filled) == ["0006"]
    assert ("table", "note") in shape_of_file(filled)


def test_the_library_refuses_a_store_that_a_later_revision_has_moved(filled: Path, tmp_path: Path) -> None:
    finished(alembic(*url_of(filled), "upgrade", "head", config=checkout_with(tmp_path / "later", "pass")))
    with pytest.raises(SchemaMismatch) as caught:
        EventStore.open(filled)
    assert (caught.value.found, caught.value.expected) == ("0006", schema.HEAD)
    assert "pip install --upgrade" in str(caught.value)


def test_the_library_refuses_to_migrate_a_store_that_is_newer(filled: Path, tmp_path: Path) -> None:
    finished(alembic(*url_of(filled), "upgrade", "head", config=checkout_with(tmp_path / "later", "pass")))
    with pytest.raises(SchemaMismatch):
        migrate.upgrade(Target.of(filled))
    assert revision(filled) == ["0006"]


def test_a_migration_that_fails_in_the_library_is_an_error_of_the_library(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkout_with(tmp_path / "later", FAILURES["a statement that SQLite refuses"])
    monkeypatch.setattr(migrate, "deploy_directory", lambda: config.parent)
    with pytest.raises((SchemaMismatch, StoreUnavailable)):
        migrate.upgrade(Target.of(path))
    assert revision(path) == [schema.HEAD]


# Back to base


def test_downgrade_takes_an_empty_store_to_base(path: Path) -> None:
    finished(alembic(*url_of(path), "downgrade", "base"))
    assert revision(path) == []
    assert not [
        name for kind, name in shape_of_file(path) if kind in ("table", "trigger", "view") and not name.startswith("sqlite_")
    ]


def test_the_library_refuses_a_store_at_base_with_the_command_to_run(path: Path) -> None:
    finished(alembic(*url_of(path), "downgrade", "base"))
    with pytest.raises(SchemaMismatch) as caught:
        EventStore.open(path)
    assert caught.value.found == "base"
    assert "aegis-store upgrade" in str(caught.value)


def test_a_store_at_base_can_be_upgraded_again(path: Path, shape_in_code: Shape) -> None:
    finished(alembic(*url_of(path), "downgrade", "base"))
    finished(alembic(*url_of(path), "upgrade", "head"))
    assert differences(shape_of_file(path), shape_in_code) == set()
    with EventStore.open(path) as store:
        assert store.create_session("s").last_seq == 0


def test_the_library_upgrades_a_store_at_base(path: Path, shape_in_code: Shape) -> None:
    finished(alembic(*url_of(path), "downgrade", "base"))
    migrate.upgrade(Target.of(path))
    assert differences(shape_of_file(path), shape_in_code) == set()


def test_downgrade_refuses_where_sessions_stand_and_leaves_everything(filled: Path) -> None:
    before = shape_of_file(filled)
    assert "sessions" in failed(alembic(*url_of(filled), "downgrade", "base"))
    assert revision(filled) == [schema.HEAD]
    assert shape_of_file(filled) == before
    assert payloads(filled) == [0, 1]
