"""`doctor` on PostgreSQL: each line ok, a warning or a problem, with what to do; also where nothing is reached."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import make_url

from aegis_store import EventStore, RetentionPolicy, StoreUnavailable, server_doctor
from aegis_store.doctor import DoctorReport, Finding
from tests.postgres.server import Postgres, connect
from tests.postgres.test_schema import create, fill


def found(report: DoctorReport, name: str) -> Finding:
    (finding,) = (finding for finding in report.findings if finding.name == name)
    return finding


def state_of(url: str, name: str) -> tuple[str, str]:
    finding = found(EventStore.doctor(url), name)
    assert (finding.advice is None) == (finding.state == "ok"), finding
    return finding.state, finding.found


@pytest.fixture
def shell(postgres_url: str) -> Iterator[Any]:
    with connect(postgres_url) as connection:
        yield connection


def test_a_store_that_is_well_has_no_line_but_ok_beside_the_fsync_of_tests(postgres_url: str) -> None:
    report = EventStore.doctor(postgres_url)
    assert {finding.name for finding in report.findings if finding.state != "ok"} <= {"durability"}
    assert len(report.findings) == 17
    assert report.store == str(make_url(postgres_url))


def test_settings_that_lose_what_was_acknowledged_are_a_problem(postgres_url: str) -> None:
    with connect(postgres_url) as shell:
        is_on = shell.execute("SHOW fsync").fetchone() == ("on",)
    assert is_on or state_of(postgres_url, "durability")[0] == "problem"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"port": 1, "query": {}, "host": "127.0.0.1"}, "no connection"),
        ({"database": "nothing"}, "does not exist"),
    ],
)
def test_what_is_not_reached_is_a_problem(postgres_url: str, change: dict[str, Any], told: str) -> None:
    url = make_url(postgres_url).set(password="geheim", **change).render_as_string(hide_password=False)
    report = EventStore.doctor(url)
    (finding,) = report.findings
    assert (finding.name, finding.state, report.state) == ("connection", "problem", "problem")
    assert told in finding.found
    assert "geheim" not in str(report)


def test_a_database_without_a_store_is_a_problem_told_beside_the_rest(postgres: Postgres) -> None:
    with postgres.database() as url:
        state, told = state_of(url, "schema")
        assert (state, "base" in told) == ("problem", True)
        assert state_of(url, "server")[0] == "ok"


def test_an_encoding_that_cannot_hold_all_text_is_a_problem(postgres: Postgres, postgres_url: str) -> None:
    name = "aegis_test_latin"
    with connect(postgres_url) as shell:
        shell.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'".encode())
    try:
        assert state_of(postgres.url_of(name), "encoding") == ("problem", "SQL_ASCII")
        with pytest.raises(StoreUnavailable, match="its encoding is SQL_ASCII"):
            EventStore.open(postgres.url_of(name))
    finally:
        postgres.drop(name)


def test_a_trigger_that_is_switched_off_is_a_problem(postgres_url: str, shell: Any) -> None:
    shell.execute("ALTER TABLE event DISABLE TRIGGER event_counts")
    try:
        assert state_of(postgres_url, "triggers") == ("problem", "the trigger event_counts of event is switched off")
    finally:
        shell.execute("ALTER TABLE event ENABLE TRIGGER event_counts")


def test_a_transaction_that_is_idle_for_long_is_a_warning(
    postgres_url: str, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_doctor, "_LONG_IDLE_S", 0)
    monkeypatch.setattr(server_doctor, "_LONG_TRANSACTION_S", 0)
    with shell.transaction():
        create(shell)
        pid = str(shell.info.backend_pid)
        for name in ("idle in transaction", "oldest transaction"):
            state, told = state_of(postgres_url, name)
            assert (state, f"process {pid}" in told) == ("warning", True)
    assert state_of(postgres_url, "idle in transaction") == ("ok", "0")


def test_a_replication_slot_that_nobody_reads_is_a_warning(postgres_url: str, shell: Any) -> None:
    shell.execute("SELECT pg_create_physical_replication_slot('aegis_test')")
    try:
        assert state_of(postgres_url, "replication slots") == ("warning", "1 slot that nobody reads: aegis_test")
    finally:
        shell.execute("SELECT pg_drop_replication_slot('aegis_test')")


def test_a_store_over_its_budget_is_a_warning(postgres_url: str) -> None:
    with EventStore.open(postgres_url, maintain_every=None) as store:
        store.create_session("s")
        store.append("s", "t", "x" * 100)
        store.set_retention_policy(RetentionPolicy(max_total_bytes=50))
    assert state_of(postgres_url, "budget") == ("warning", "102 of 50 bytes")


def test_many_dead_rows_are_a_warning(postgres_url: str, shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_doctor, "_MANY_DEAD", -1)
    monkeypatch.setattr(server_doctor, "_MANY_DEAD_RATIO", -1)
    create(shell)
    assert state_of(postgres_url, "dead rows")[0] == "warning"


def test_little_room_for_connections_is_a_warning(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_doctor, "_LITTLE_ROOM_RATIO", 1.0)
    assert state_of(postgres_url, "connections")[0] == "warning"


@pytest.mark.parametrize(("ahead_s", "state"), [(0, "ok"), (10, "warning"), (100, "problem")])
def test_a_clock_that_differs_from_the_servers_is_told(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, ahead_s: int, state: str
) -> None:
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + ahead_s * 10**9)
    assert state_of(postgres_url, "clock")[0] == state


def test_an_event_from_the_future_is_a_problem(postgres_url: str, shell: Any) -> None:
    create(shell)
    fill(shell, 1)
    shell.execute("SET session_replication_role = replica")
    shell.execute("UPDATE event SET recorded_at = 4000000000000000")
    assert state_of(postgres_url, "newest event")[0] == "problem"


def test_who_may_read_alone_is_told_so(postgres_url: str, shell: Any) -> None:
    shell.execute("CREATE ROLE looker_of_aegis LOGIN")
    try:
        shell.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker_of_aegis")
        url = make_url(postgres_url).set(username="looker_of_aegis").render_as_string(hide_password=False)
        with shell.transaction():
            create(shell)
            assert state_of(url, "permissions") == ("warning", "looker_of_aegis may not write")
            assert "may not see" in state_of(url, "oldest transaction")[1]
    finally:
        shell.execute("DROP OWNED BY looker_of_aegis")
        shell.execute("DROP ROLE looker_of_aegis")


@pytest.mark.parametrize(
    ("host", "address", "here"),
    [
        ("/tmp/x", "", True),
        ("localhost", "127.0.0.1", True),
        ("db", "::1", True),
        ("db", "10.0.0.7", False),
        ("db", "fe80::1%eth0", False),
    ],
)
def test_what_leaves_this_machine_asks_for_tls(host: str, address: str, here: bool) -> None:
    class Info:
        pass

    info = Info()
    info.host, info.hostaddr = host, address  # type: ignore[attr-defined]
    assert server_doctor._is_here(info) == here


def test_without_tls_passwords_are_read_on_the_way(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_doctor, "_is_here", lambda info: False)
    assert state_of(postgres_url, "TLS")[0] == "problem"


def test_it_changes_nothing_and_runs_beside_writers(postgres_url: str) -> None:
    with EventStore.open(postgres_url, maintain_every=None) as store:
        store.create_session("s")
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                store.append("s", "t", 1)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            reports = [EventStore.doctor(postgres_url) for _ in range(3)]
        finally:
            stop.set()
            writer.join()
    assert all(found(report, "triggers").state == "ok" for report in reports)
