"""From 0002 to 0003: nothing is built anew, and from then on damage shows."""

import gzip
from contextlib import closing
from pathlib import Path

import pytest

from aegis_store import EventStore, StoreCorrupt, schema
from tests.migrations.test_0002 import content, opened, rows
from tests.migrations.test_migrations import alembic, connect, differences, finished, revision, shape_of_file, url_of

FROZEN = Path(__file__).parent / "frozen" / "0002.db.gz"
OLD_EVENTS = 15 + 20 + 5


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as 0002 left it: sessions live, on hold, ended, at their cap and empty, a tombstone, a run of a prune."""
    path = tmp_path / "old.db"
    path.write_bytes(gzip.decompress(FROZEN.read_bytes()))
    return path


@pytest.fixture
def moved(old: Path) -> Path:
    assert EventStore.upgrade(old) == ("0002", schema.HEAD)
    return old


def test_the_content_comes_over_as_it_was(old: Path) -> None:
    before = content(old), rows(old, "SELECT * FROM tombstone"), rows(old, "SELECT * FROM prune_run")
    EventStore.upgrade(old)
    tombstones = rows(old, "SELECT session_id, tenant, owner, last_seq, total_bytes, removed_at, removed_reason FROM tombstone")
    runs = rows(old, "SELECT * FROM prune_run")
    assert (content(old), tombstones, [run[:-1] for run in runs]) == before


def test_the_schema_is_that_of_a_new_store(moved: Path, template: Path) -> None:
    assert differences(shape_of_file(moved), shape_of_file(template)) == set()


def test_no_event_is_looked_at(old: Path) -> None:
    with closing(connect(old)) as shell:
        (guard,) = shell.execute("SELECT sql FROM sqlite_schema WHERE name = 'event_guards_update'").fetchone()
        shell.execute("DROP TRIGGER event_guards_update")
        shell.execute("UPDATE event SET payload = 'no JSON' WHERE seq = 1")
        shell.execute(guard)
    EventStore.upgrade(old)
    assert rows(old, "SELECT count(*) FROM event WHERE checksum IS NOT NULL") == [(0,)]


def test_all_is_well_after_the_move_and_its_events_are_known_to_have_no_checksum(moved: Path) -> None:
    with opened(moved) as store:
        report = store.verify()
        assert report.ok, report.problems
        assert report.events_without_checksum == report.events == OLD_EVENTS
        store.append("live", "t", 1)
        assert store.verify().events_without_checksum == OLD_EVENTS


def test_the_store_goes_on_with_the_records_that_came_over(moved: Path) -> None:
    with opened(moved) as store:
        assert [event.seq for event in store.read("capped").events] == list(range(31, 51))
        assert store.get_session("live").hold
        assert store.get_session("capped").removed_reason == "max_events"
        assert [run.outcome for run in store.prune_history()] == ["done", "done"]
        assert store.retention_policy().max_events == 20
        assert store.ensure_session("gone").last_seq == 7
        assert store.append("gone", "t", 1).seq == 8
        assert store.append("capped", "t", 1).seq == 51
        store.prune()
        assert store.verify().ok


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        ("UPDATE session SET owner = 'x' WHERE session_id = 'live'", "get_session"),
        ("UPDATE session SET last_event_at = last_event_at + 1 WHERE session_id = 'live'", "read"),
    ],
)
def test_damage_to_a_record_that_came_over_shows(moved: Path, statement: str, read: str) -> None:
    with closing(connect(moved)) as shell:
        for trigger in ("session_copy_follows", "session_sum_follows"):
            shell.execute(f"DROP TRIGGER {trigger}")
        shell.execute(statement)
    with opened(moved) as store:
        with pytest.raises(StoreCorrupt, match="record of session 'live'"):
            getattr(store, read)("live")


def test_a_store_goes_back_with_all_that_0002_has_a_place_for(moved: Path, old: Path) -> None:
    before = content(moved)
    finished(alembic(*url_of(moved), "downgrade", "0002"))
    assert (content(moved), revision(moved)) == (before, ["0002"])
    assert EventStore.upgrade(moved) == ("0002", schema.HEAD)
    with opened(moved) as store:
        assert store.verify().ok


def test_a_store_that_went_back_has_the_schema_of_0002(moved: Path, tmp_path: Path) -> None:
    finished(alembic(*url_of(moved), "downgrade", "0002"))
    frozen = tmp_path / "frozen.db"
    frozen.write_bytes(gzip.decompress(FROZEN.read_bytes()))
    assert differences(shape_of_file(moved), shape_of_file(frozen)) == set()
