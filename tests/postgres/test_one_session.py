"""Each transaction writes to one session, so that a store could be distributed by session; many of them share a flush."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aegis_store import EventStore, NewEvent, RetentionPolicy, StoreBusy, StoreUnavailable
from aegis_store.any_database import place_at
from aegis_store.recording import flush
from aegis_store.spool import Received, Spool
from aegis_store.transfer import bring_lines
from aegis_store.transfer.line_rows import Ready
from tests.copies import all_of, live
from tests.postgres.own_server import OwnServer, own_server
from tests.postgres.server import Postgres, connect
from tests.postgres.test_copy import woven_in

WOVEN = list("abcdeabcdeaabbccddeeedcba")
STATE = """{"version": 1, "sessions": [%s], "events": []}"""

# By whatever way a row is written, the transaction is noted with the session's name, also when that is gone.
_WATCH = """
CREATE TABLE named (id text, session text);
CREATE TABLE watched (transaction xid8, session text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  row jsonb := to_jsonb(coalesce(NEW, OLD));
BEGIN
  IF TG_OP = 'INSERT' AND TG_TABLE_NAME = 'session' THEN
    INSERT INTO named VALUES (row->>'id', row->>'session_id');
  END IF;
  INSERT INTO watched SELECT pg_current_xact_id(), coalesce(
    row->>'session_id', (SELECT session FROM named WHERE id = coalesce(row->>'session', row->>'id')));
  RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON event FOR EACH ROW EXECUTE FUNCTION watch();
CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON session FOR EACH ROW EXECUTE FUNCTION watch();
CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON tombstone FOR EACH ROW EXECUTE FUNCTION watch();
"""
_TOUCHED = "SELECT array_agg(DISTINCT session ORDER BY session) FROM watched GROUP BY transaction"


@pytest.fixture
def watched(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty store, whose transactions are noted."""
    with postgres.database() as url:
        EventStore.upgrade(url)
        with connect(url) as shell:
            shell.execute(_WATCH)
        yield url


def touched(url: str) -> list[list[str]]:
    """The sessions that were written to, by transaction. What is asked again later begins anew."""
    with connect(url) as shell:
        found = [each for (each,) in shell.execute(_TOUCHED)]
        shell.execute("TRUNCATE watched")
    return found  # type: ignore[return-value]


def check_each_of_one_session(url: str, at_least: int) -> None:
    """So many transactions wrote to sessions, each to one."""
    found = touched(url)
    assert [each for each in found if len(each) > 1] == []
    assert len(found) >= at_least


def exported(path: Path) -> Path:
    """The store in lines, written once."""
    lines = path.with_suffix(".jsonl")
    if not lines.exists():
        with EventStore.open(path, prune_on_open=False) as store:
            store.export(lines)
    return lines


def positions(url: str) -> list[tuple[str, int]]:
    with EventStore.open(url, prune_on_open=False) as store:
        return [(event.session_id, event.position) for event in store.read_all()]


def test_all_that_happens_to_sessions_is_in_transactions_of_one(watched: str) -> None:
    """Appends, caps, changes of the policy, prunes, deletions."""
    live(watched)
    check_each_of_one_session(watched, at_least=200)


def test_an_import_of_woven_sessions_writes_to_one_in_each_transaction(path: Path, watched: str) -> None:
    woven_in(path, WOVEN)
    with EventStore.open(watched, durability="process", prune_on_open=False) as store:
        report = store.import_lines(exported(path))
    assert (report.sessions_added, report.events_added, report.refused) == (5, len(WOVEN), [])
    assert positions(watched) == [(name, number) for number, name in enumerate(WOVEN, 1)]
    check_each_of_one_session(watched, at_least=18)


def test_an_import_of_records_alone_does_so_too(path: Path, watched: str) -> None:
    woven_in(path, [])
    with EventStore.open(path, prune_on_open=False) as store:
        for name in WOVEN[:5]:
            store.create_session(name)
    with EventStore.open(watched, prune_on_open=False) as store:
        store.import_lines(exported(path))
        report = store.import_lines(exported(path), hold=True)
    assert report.sessions_updated == 5
    check_each_of_one_session(watched, at_least=10)


def test_an_import_of_a_state_file_does_so_too(watched: str, tmp_path: Path) -> None:
    record = '{"id": "%s", "tenantId": "t", "ownerKeyId": "o", "status": "running", "createdAt": 1, "updatedAt": 1}'
    file = tmp_path / "state.json"
    file.write_text(STATE % ", ".join(record % name for name in "abc"))
    with EventStore.open(watched, prune_on_open=False) as store:
        assert store.import_aegis(file).sessions_added == 3
    check_each_of_one_session(watched, at_least=3)


def test_a_copy_writes_to_one_session_in_each_transaction(path: Path, watched: str) -> None:
    woven_in(path, WOVEN)
    EventStore.copy(path, watched)
    assert all_of(watched) == all_of(path)
    check_each_of_one_session(watched, at_least=5 + 18)


def test_a_copy_of_tombstones_and_of_changed_records_does_so_too(path: Path, watched: str) -> None:
    live(path)
    EventStore.copy(path, watched)
    with EventStore.open(path, prune_on_open=False) as store:
        for name in ("a", "b", "held"):
            store.update_session(name, metadata={"new": 1})
            store.append(name, "t", 1)
    EventStore.copy(path, watched)
    assert all_of(watched) == all_of(path)
    check_each_of_one_session(watched, at_least=3 + 7 + 3 + 3)


def test_a_prune_that_settles_sessions_does_so_too(watched: str) -> None:
    with EventStore.open(watched, prune_on_open=False) as store:
        store.set_retention_policy(RetentionPolicy(max_bytes=4, max_age=timedelta(hours=1)))
        for name in ("a", "b", "c"):
            store.create_session(name, max_events=2)
            store.append_many(name, [NewEvent(type="t", payload="x" * size) for size in (3, 3, 0, 0)])
        touched(watched)
        plan = store.plan_prune()
        assert (len(plan.truncations), len(plan.settled)) == (0, 3)
        store.prune(plan)
    check_each_of_one_session(watched, at_least=3)


def test_a_flush_of_a_spool_does_so_too(watched: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    place = place_at(watched)
    scope = {"session_field": "session", "type_field": "type", "tenant": "t", "owner": "o"}
    for number, name in enumerate("abab"):
        sent = json.dumps({"type": "hook", "session": name}).encode()
        now = datetime.now(UTC) + timedelta(microseconds=number)
        Spool(place).add(Received(content=sent, event_id=f"e{number}", received_at=now, **scope))
    report = flush(place, busy_timeout_ms=5000)
    assert (report.recorded, report.waiting) == (4, 0)
    assert positions(watched) == [("a", 1), ("b", 2), ("a", 3), ("b", 4)]
    check_each_of_one_session(watched, at_least=4)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """Which brings the log to the disk when it is told to, and hardly ever by itself."""
    with own_server() as server:
        with server.connect() as shell:
            shell.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            shell.execute("ALTER SYSTEM SET wal_writer_flush_after = '1GB'")
        server.stop()
        server.start()
        yield server


@pytest.fixture
def url(server: OwnServer) -> str:
    """The URL of an empty store on that server."""
    with server.connect() as shell:
        shell.execute("DROP SCHEMA public CASCADE")
        shell.execute("CREATE SCHEMA public")
    EventStore.upgrade(server.url)
    return server.url


def imported(path: Path, url: str) -> None:
    with EventStore.open(url, prune_on_open=False, maintain_every=None) as store:
        store.import_lines(exported(path))


def copied(path: Path, url: str) -> None:
    EventStore.copy(path, url)


@pytest.mark.parametrize("bring", [imported, copied])
def test_what_came_in_is_on_disk_at_the_end(
    path: Path, server: OwnServer, url: str, bring: Callable[[Path, str], None]
) -> None:
    woven_in(path, WOVEN)
    bring(path, url)
    server.kill()
    server.start()
    assert positions(url) == [(name, number) for number, name in enumerate(WOVEN, 1)]


def test_what_came_in_before_an_error_is_on_disk_too(
    path: Path, server: OwnServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    woven_in(path, WOVEN)
    take = bring_lines._Writing._take

    def fail_at_the_seventh(writing: bring_lines._Writing, ready: Ready) -> None:
        if getattr(ready.line, "seq", 0) == 3:
            raise StoreBusy(store=url, waited_ms=0)
        take(writing, ready)

    monkeypatch.setattr(bring_lines._Writing, "_take", fail_at_the_seventh)
    with pytest.raises(StoreBusy):
        imported(path, url)
    server.kill()
    server.start()
    assert positions(url) == [(name, number) for number, name in enumerate(WOVEN[:10], 1)]


def test_a_server_that_crashes_amid_a_batch_is_told_and_the_import_goes_on(
    path: Path, server: OwnServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have lost what did not wait for the disk: a new connection would say nothing of that."""
    woven_in(path, WOVEN)
    take = bring_lines._Writing._take

    def crash_once(writing: bring_lines._Writing, ready: Ready) -> None:
        take(writing, ready)
        if getattr(ready.line, "seq", 0) == 3:
            monkeypatch.undo()
            server.kill()
            server.start()

    monkeypatch.setattr(bring_lines._Writing, "_take", crash_once)
    with pytest.raises(StoreUnavailable):
        imported(path, url)
    imported(path, url)
    assert [name for name, _ in positions(url)] == WOVEN
