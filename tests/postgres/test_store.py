"""What PostgreSQL adds to the contract: events that are committed late, lost connections, passwords, what is not there yet."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event as sa_event
from sqlalchemy import make_url

from aegis_store import EventStore, InvalidInput, NewEvent, RetentionPolicy, StoreUnavailable
from tests.postgres.server import OURS, connect
from tests.postgres.test_schema import fill

OpenStore = Callable[..., EventStore]
Shell = psycopg.Connection[Any]


@pytest.fixture
def shell(postgres_url: str) -> Iterator[Shell]:
    with connect(postgres_url) as connection:
        yield connection


def positions(store: EventStore, after: int | None = None) -> list[int]:
    return [event.position for event in store.read_all(after_position=after)]


def test_read_all_does_not_pass_an_event_whose_transaction_commits_late(store: EventStore, shell: Shell) -> None:
    store.create_session("late")
    store.create_session("early")
    store.append("early", "t", 0)
    with shell.transaction():
        fill(shell, 1, "late")  # position 2, which nobody sees yet
        store.append("early", "t", 1)  # position 3 is committed before it
        assert positions(store) == [1]
    assert positions(store, after=1) == [2, 3]


def test_read_all_goes_on_when_the_late_transaction_was_rolled_back(store: EventStore, shell: Shell) -> None:
    store.create_session("late")
    store.create_session("early")
    with shell.transaction(force_rollback=True):
        fill(shell, 1, "late")
        store.append("early", "t", 1)
        assert positions(store) == []
    assert positions(store) == [2]


def test_a_transaction_that_writes_no_event_hides_none(store: EventStore, shell: Shell) -> None:
    store.create_session("s")
    with shell.transaction():
        shell.execute("CREATE TABLE beside (x int)")
        store.append("s", "t", 1)
        assert positions(store) == [1]
        shell.execute("DROP TABLE beside")


def test_a_store_is_looked_at_and_read_on_one_connection(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, connect_one = [], psycopg.connect

    def connect_and_note(**given: Any) -> Shell:
        made.append(connect_one(**given))
        return made[-1]

    monkeypatch.setattr(psycopg, "connect", connect_and_note)
    with EventStore.open(postgres_url) as store:
        store.list_sessions()
        assert len(made) == 1
    assert made[0].closed


def test_no_connection_is_left_open_by_a_call_that_connects_while_another_closes_the_store(
    store: EventStore, open_store: OpenStore
) -> None:
    other, connections = open_store(), []
    db: Any = other._db
    db._forget_connections()  # so that the call has to connect
    sa_event.listen(db._engine, "do_connect", lambda *_: other.close())
    sa_event.listen(db._engine, "connect", lambda connection, _: connections.append(connection))
    other.list_sessions()
    assert [connection.closed for connection in connections] == [True]


def test_a_connection_that_was_lost_while_nobody_used_it_costs_nothing(
    store: EventStore, shell: Shell, capfd: pytest.CaptureFixture[str]
) -> None:
    store.create_session("s")
    store.append("s", "t", 1)
    for call in (
        lambda: store.get_session("s"),
        store.read_all,
        lambda: store.set_status("s", "idle"),
        lambda: store.append("s", "t", 2),
        lambda: store.append_many("s", [NewEvent(type="t", payload=3)]),
    ):
        shell.execute(f"SELECT pg_terminate_backend(pid, 10000) {OURS}".encode())
        call()
    assert [event.payload for event in store.read("s").events] == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


def test_no_password_shows(open_store: OpenStore) -> None:
    for url in (
        "postgresql+psycopg://me:geheim@127.0.0.1:1/x",
        "postgresql+psycopg://127.0.0.1:1/x?user=me&password=geheim",
        "postgresql://me:geheim@127.0.0.1:1/x",
        "postgresql+psycopg://me:geheim@127.0.0.1:port/x",
    ):
        with pytest.raises(StoreUnavailable) as caught:
            EventStore.open(url)
        assert "geheim" not in f"{caught.value} {caught.value!r} {caught.value.__dict__}"
        assert caught.value.__cause__ is None


def test_a_prune_removes_what_the_policy_asks_for(store: EventStore) -> None:
    for name in ("ended", "large"):
        store.create_session(name)
        store.append_many(name, [NewEvent(type="t", payload="x" * 100) for _ in range(10)])
    store.set_status("ended", "completed")
    store.set_retention_policy(RetentionPolicy(max_bytes=510, max_total_bytes=10**6))
    report = store.prune()
    assert dict(report.events_by_reason) == {"terminal_grace": 10, "max_bytes": 5}
    assert store.get_session("large").event_count == 5
    assert store.prune().events_removed == 0


def test_a_lower_cap_removes_first_and_a_deleted_session_goes_on_counting(store: EventStore) -> None:
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload=n) for n in range(10)])
    store.set_retention_policy(RetentionPolicy(max_events=3))
    assert [event.seq for event in store.read("s").events] == [8, 9, 10]
    store.delete_session("s")
    store.create_session("s")
    assert store.append("s", "t", 1).seq == 11


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_upgrade_prints_no_password(postgres_url: str, options: list[str]) -> None:
    url = make_url(postgres_url).set(password="geheim").render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-c", "from aegis_store.cli import main; main()", "upgrade", "--db", url, *options],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0005" in done.stdout
    assert "geheim" not in done.stdout + done.stderr


@pytest.mark.parametrize(("what", "told"), [("reclaim", "VACUUM"), ("backup", "pg_dump")])
def test_what_is_done_to_a_file_says_what_does_it_on_a_server(store: EventStore, tmp_path: Path, what: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        getattr(store, what)(**({"path": tmp_path / "copy"} if what == "backup" else {}))
    assert list(tmp_path.iterdir()) == []


def test_packing_and_restoring_are_for_files(tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:geheim@127.0.0.1:1/x"
    for call, told in ((lambda: EventStore.compact(url), "VACUUM"), (lambda: EventStore.restore(tmp_path, url), "pg_restore")):
        with pytest.raises(InvalidInput, match=told) as caught:
            call()
        assert "geheim" not in str(caught.value)
