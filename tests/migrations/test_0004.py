"""From 0003 to 0004: views, and nothing else."""

import gzip
from pathlib import Path

import pytest

from aegis_store import EventStore, schema
from tests.migrations.test_0002 import opened, rows
from tests.migrations.test_migrations import alembic, differences, finished, revision, shape_of_file, url_of

FROZEN = Path(__file__).parent / "frozen" / "0003.db.gz"
TABLES = ("store", "identity", "session", "tombstone", "prune_run", "event")


def thawed(path: Path) -> Path:
    """A store as 0003 left it: sessions on hold, at their cap, pruned, ended and empty, a tombstone, cut texts in a payload."""
    path.write_bytes(gzip.decompress(FROZEN.read_bytes()))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return thawed(tmp_path / "old.db")


@pytest.fixture
def moved(old: Path) -> Path:
    assert EventStore.upgrade(old) == ("0003", schema.HEAD)
    return old


def test_all_tables_come_over_as_they_were(old: Path) -> None:
    before = [rows(old, f"SELECT * FROM {table} ORDER BY 1") for table in TABLES]
    EventStore.upgrade(old)
    assert [rows(old, f"SELECT * FROM {table} ORDER BY 1") for table in TABLES] == before


def test_the_schema_is_that_of_a_new_store(moved: Path, template: Path) -> None:
    assert differences(shape_of_file(moved), shape_of_file(template)) == set()


def test_all_is_well_after_the_move_and_every_event_has_its_checksum(moved: Path) -> None:
    with opened(moved) as store:
        report = store.verify()
        assert (report.problems, report.events, report.events_without_checksum) == ((), 41, 0)


def test_the_views_show_what_came_over(moved: Path) -> None:
    overview = rows(moved, "SELECT session_id, status, hold, event_count, removed_events, removed_reason FROM session_overview")
    assert sorted(overview) == [
        ("capped", "running", 0, 20, 30, "max_events"),
        ("done", "failed", 0, 5, 0, None),
        ("empty", "running", 0, 0, 0, None),
        ("ended", "completed", 0, 0, 5, "terminal_grace"),
        ("live", "running", 1, 16, 0, None),
    ]
    last = "SELECT tenant, payload -> '$.cut' FROM event_readable WHERE session_id = 'live' ORDER BY seq DESC LIMIT 1"
    assert rows(moved, last) == [("acme", '"abc\\ud83d"')]
    assert rows(moved, "SELECT reasons FROM prune_history ORDER BY id") == [('{"terminal_grace": 5}',), ('{"deleted": 7}',)]


def test_a_store_that_goes_back_has_the_schema_of_0003_and_may_come_again(moved: Path, tmp_path: Path) -> None:
    finished(alembic(*url_of(moved), "downgrade", "0003"))
    assert revision(moved) == ["0003"]
    assert differences(shape_of_file(moved), shape_of_file(thawed(tmp_path / "frozen.db"))) == set()
    assert EventStore.upgrade(moved) == ("0003", schema.HEAD)
    with opened(moved) as store:
        assert store.verify().ok


def test_the_sql_of_the_move_can_be_written_for_someone_to_run(old: Path) -> None:
    said = finished(alembic("upgrade", "0003:0004", "--sql"))
    assert said.count("CREATE VIEW") == 3
    assert "strftime('%Y-%m-%dT%H:%M:%S'" in said
