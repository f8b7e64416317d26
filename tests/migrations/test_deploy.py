"""A deploy beside processes at work: those that run old code find out at their next transaction; two deploys take turns."""

import asyncio
import gzip
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command

from aegis_store import (
    AsyncEventStore,
    EventStore,
    NewEvent,
    RetentionPolicy,
    SchemaMismatch,
    SessionNotFound,
    StoreBusy,
    migrate,
    schema,
)
from aegis_store.cli import main
from aegis_store.settings import DEFAULT_BUSY_TIMEOUT_MS, MIGRATION_PATIENCE_S
from aegis_store.target import Target
from tests.forked import Command
from tests.migrations.test_migrations import ROOT, alembic, checkout_with, connect, finished, url_of

Deploy = Callable[..., None]


@pytest.fixture
def deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deploy:
    """Moves a store to a revision of which this library knows nothing, whose last line is given."""

    def run(store: Path, last: str = "pass") -> None:
        config = checkout_with(tmp_path / "later", last)
        monkeypatch.setattr(migrate, "deploy_directory", lambda: config.parent)
        command.upgrade(migrate.config_for(Target.of(store)), "head")

    return run


@pytest.fixture
def running(path: Path) -> Iterator[EventStore]:
    """The store of a process at work, which has used what it uses."""
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        store.create_session("s")
        for number in range(3):
            store.append("s", "note", number)
        assert store.read("s").last_seq == 3
        yield store


USES: dict[str, Callable[[EventStore], Any]] = {
    "append": lambda store: store.append("s", "note", 4),
    "append to a session that is none": lambda store: store.append("none", "note", 4),
    "append_many": lambda store: store.append_many("s", [NewEvent(type="note", payload=4)]),
    "append_many of nothing": lambda store: store.append_many("s", []),
    "read": lambda store: store.read("s"),
    "read_all": lambda store: store.read_all(),
    "follow": lambda store: next(store.follow("s", timeout=0)),
    "create_session": lambda store: store.create_session("new"),
    "ensure_session": lambda store: store.ensure_session("s"),
    "get_session": lambda store: store.get_session("s"),
    "list_sessions": lambda store: store.list_sessions(),
    "set_status": lambda store: store.set_status("s", "closed"),
    "update_session": lambda store: store.update_session("s", hold=True),
    "delete_session": lambda store: store.delete_session("s"),
    "retention_policy": lambda store: store.retention_policy(),
    "set_retention_policy": lambda store: store.set_retention_policy(RetentionPolicy(max_events=2)),
    "plan_prune": lambda store: store.plan_prune(),
    "prune": lambda store: store.prune(),
    "prune_history": lambda store: store.prune_history(),
    "stats": lambda store: store.stats(),
    "health": lambda store: store.health(),
    "overview": lambda store: store.overview(),
    "session_overview": lambda store: store.session_overview("s"),
    "verify": lambda store: store.verify(),
}


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_old_code_is_told_at_its_next_transaction(
    running: EventStore, path: Path, deploy: Deploy, use: Callable[[EventStore], Any]
) -> None:
    deploy(path)
    with pytest.raises(SchemaMismatch) as caught:
        use(running)
    assert (caught.value.found, caught.value.expected) == ("0006", schema.HEAD)
    assert "start it again" in str(caught.value)


def test_old_code_that_was_told_has_changed_nothing_and_holds_nothing(running: EventStore, path: Path, deploy: Deploy) -> None:
    deploy(path)
    for use in USES.values():
        with pytest.raises(SchemaMismatch):
            use(running)
    with closing(connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE").close()
        assert other.execute("SELECT session_id, status, last_seq, max_events FROM session").fetchall() == [
            ("s", "running", 3, None)
        ]
        assert other.execute("SELECT count(*) FROM event").fetchall() == [(3,)]
        other.execute("COMMIT")


CHANGES = {
    "nothing": "pass",
    "a column that an append names": "op.execute('ALTER TABLE event RENAME COLUMN run_id TO run')",
    "the name of a table": "op.execute('ALTER TABLE event RENAME TO events')",
    "a table that is a view now": (
        "op.execute('DROP VIEW session_overview'); op.execute('DROP VIEW event_readable'); "
        "op.execute('ALTER TABLE event RENAME TO events'); op.execute('CREATE VIEW event AS SELECT * FROM events')"
    ),
    "a guard that refuses": (
        "op.execute(\"CREATE TRIGGER no BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'aegis: not this way'); END\")"
    ),
    "a column that must be given": "op.execute(\"ALTER TABLE session ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'\")",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_old_code_is_told_whatever_the_revision_changes(running: EventStore, path: Path, deploy: Deploy, change: str) -> None:
    deploy(path, change)
    for name in ("append", "append_many", "read", "follow", "append"):
        with pytest.raises(SchemaMismatch):
            USES[name](running)


@pytest.mark.parametrize("revision", ["0003", "base"])
def test_code_that_is_too_new_is_told_when_a_deploy_goes_back(path: Path, revision: str) -> None:
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        finished(alembic(*url_of(path), "downgrade", revision))
        for use in (USES["append"], USES["read"]):
            with pytest.raises(SchemaMismatch) as caught:
                use(store)
            assert caught.value.found == revision
            assert "aegis-store upgrade" in str(caught.value)


def test_a_store_that_comes_back_to_its_schema_is_used_again(running: EventStore, path: Path) -> None:
    finished(alembic(*url_of(path), "downgrade", "0003"))
    with pytest.raises(SchemaMismatch):
        running.append("s", "note", 3)
    EventStore.upgrade(path)
    assert running.append("s", "note", 3).seq == 4


def test_threads_that_share_commits_are_told(running: EventStore, path: Path, deploy: Deploy) -> None:
    told: list[type[BaseException]] = []
    has_begun = threading.Barrier(9)

    def write() -> None:
        has_begun.wait()
        try:
            while True:
                running.append("s", "note", "x")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
            told.append(type(error))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    has_begun.wait()
    deploy(path)
    for thread in threads:
        thread.join(30)
    assert told == [SchemaMismatch] * 8


def test_one_who_follows_is_told(running: EventStore, path: Path, deploy: Deploy) -> None:
    followed = running.follow("s", timeout=30)
    assert [next(followed).seq for _ in range(3)] == [1, 2, 3]
    threading.Timer(0.1, deploy, [path]).start()
    with pytest.raises(SchemaMismatch):
        next(followed)


def test_tasks_are_told(path: Path, deploy: Deploy) -> None:
    async def scenario() -> None:
        async with AsyncEventStore.open(path, durability="process", maintain_every=None) as store:
            await store.create_session("s")
            await store.append("s", "note", 1)
            deploy(path)
            outcomes = await asyncio.gather(
                *(store.append("s", "note", number) for number in range(5)), store.read("s"), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [SchemaMismatch] * 6

    asyncio.run(scenario())


def test_without_a_deploy_a_session_that_is_none_is_still_that(running: EventStore) -> None:
    with pytest.raises(SessionNotFound):
        running.append("none", "note", 4)


# Deploys


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as 0001 left it."""
    path = tmp_path / "old.db"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "frozen" / "0001.db.gz").read_bytes()))
    return path


def upgrading(store: Path) -> Command:
    """`aegis-store upgrade`, in a process of its own."""
    return Command(main, ("aegis-store", "upgrade", "--db", str(store)), directory=ROOT, environment=os.environ)


def test_of_two_deploys_at_once_one_moves_the_store_and_the_other_finds_it_done(old: Path) -> None:
    with closing(connect(old)) as connection:
        before = connection.execute("SELECT position, payload FROM event").fetchall()
        connection.execute("BEGIN IMMEDIATE")  # so that both have begun when the first can go on
        both = [upgrading(old), alembic(*url_of(old), "upgrade", "head")]
        time.sleep(1.5)
        connection.execute("COMMIT")
    said = [finished(process) for process in both]
    assert f"to {schema.HEAD}" in said[0] or "already" in said[0]
    with EventStore.open(old, prune_on_open=False, maintain_every=None) as store:
        assert store.verify().ok
    with closing(connect(old)) as connection:
        assert connection.execute("SELECT position, payload FROM event").fetchall() == before


def test_a_deploy_waits_for_longer_than_a_writer_would(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(connect(old)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(migrate, "MIGRATION_PATIENCE_S", 0.1)
        with pytest.raises(StoreBusy):
            EventStore.upgrade(old)
        connection.execute("COMMIT")
    assert MIGRATION_PATIENCE_S * 1000 > 10 * DEFAULT_BUSY_TIMEOUT_MS
    assert EventStore.upgrade(old) == ("0001", schema.HEAD)


def test_an_old_deploy_that_waited_for_a_newer_one_is_told_and_changes_nothing(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(connect(old)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE alembic_version SET version_num = '0006'")
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            other.execute("COMMIT" if len(waits) == 3 else "SELECT 1")

        monkeypatch.setattr("aegis_store.migrate.time.sleep", sleep)
        with pytest.raises(SchemaMismatch) as caught:
            EventStore.upgrade(old)
    assert (caught.value.found, len(waits)) == ("0006", 3)


def test_a_deploy_tells_how_far_it_has_come(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "MIGRATION_TOLD_STEPS", 50)
    told: list[tuple[int, int]] = []
    EventStore.upgrade(old, on_progress=lambda done, total: told.append((done, total)))
    with EventStore.open(old, prune_on_open=False, maintain_every=None) as store:
        events = store.stats().events
    assert {total for _, total in told} == {events * (int(schema.HEAD) - 1 + 1)}  # each revision, and the references
    assert told == sorted(told)
    assert len({done for done, _ in told}) > 4


def test_a_deploy_that_has_nothing_to_do_tells_nothing(path: Path) -> None:
    told: list[tuple[int, int]] = []
    EventStore.upgrade(path, on_progress=lambda done, total: told.append((done, total)))
    assert told == []


def test_ctrl_c_amid_a_deploy_leaves_the_store_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "MIGRATION_TOLD_STEPS", 50)
    before = old.read_bytes()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EventStore.upgrade(old, on_progress=interrupt)
    assert old.read_bytes() == before
    assert EventStore.upgrade(old) == ("0001", schema.HEAD)
