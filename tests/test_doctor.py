"""What an operator is told of a store and what it stands on."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, RetentionPolicy, driver, file_system
from aegis_store import doctor as doctors
from aegis_store.doctor import DoctorReport, Finding
from aegis_store.settings import ORPHAN_AGE_S


@pytest.fixture(autouse=True)
def private(path: Path) -> None:
    path.chmod(0o600)


def line(report: DoctorReport, name: str) -> Finding:
    (found,) = [finding for finding in report.findings if finding.name == name]
    return found


def test_a_store_that_is_well_has_no_line_but_ok(store: EventStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "has_wal_reset_bug", lambda _: False)
    store.ensure_session("s")
    store.append("s", "note", {})
    report = EventStore.doctor(path)
    assert [finding for finding in report.findings if finding.state != "ok"] == []
    assert {finding.advice for finding in report.findings} == {None}
    assert report.state == "ok"
    names = ["SQLite", "file system", "disk", "directory", "file", "-wal", "-shm", "-lock", "left behind", "log"]
    assert [finding.name for finding in report.findings] == [
        *names, "oldest reader", "schema", "pragmas", "free pages", "budget", "clock",
    ]  # fmt: skip


def test_it_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    os.utime(path, (0, 0))
    EventStore.doctor(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mtime == 0
    assert path.read_bytes() == before


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [damaged, emptied, replaced_by_a_directory, Path.unlink])
def test_a_store_that_does_not_open_is_a_problem_told_beside_the_rest(path: Path, harm: Callable[[Path], Any]) -> None:
    harm(path)
    report = EventStore.doctor(path)
    assert (report.state, line(report, "store").state) == ("problem", "problem")
    assert line(report, "disk").state == "ok"


def test_a_missing_directory_is_a_problem(tmp_path: Path) -> None:
    assert line(EventStore.doctor(tmp_path / "missing/aegis.db"), "directory").state == "problem"


def test_the_log_of_a_store_that_is_gone_is_a_problem(path: Path) -> None:
    path.unlink()
    path.with_name("aegis.db-wal").write_bytes(b"log")
    assert line(EventStore.doctor(path), "log").state == "problem"


def test_a_network_file_system_is_a_problem_unless_it_is_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "kind_of", lambda _: "nfs4")
    monkeypatch.delenv(file_system.ALLOWED_VARIABLE, raising=False)
    assert line(EventStore.doctor(path), "file system").state == "problem"
    monkeypatch.setenv(file_system.ALLOWED_VARIABLE, "1")
    assert line(EventStore.doctor(path), "file system").state == "warning"


def test_an_affected_sqlite_is_a_warning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "has_wal_reset_bug", lambda _: True)
    assert line(EventStore.doctor(path), "SQLite").state == "warning"


def test_what_others_may_read_or_replace_is_a_warning_with_the_command(store: EventStore, path: Path) -> None:
    path.with_name("aegis.db-lock").chmod(0o666)
    assert line(EventStore.doctor(path), "-lock") == (
        "-lock",
        "warning",
        "mode 0666, the store has 0600",
        "chmod 600 'aegis.db-lock'",
    )
    path.chmod(0o644)
    path.parent.chmod(0o777)
    report = EventStore.doctor(path)
    assert [line(report, name).state for name in ("file", "directory")] == ["warning", "warning"]


def test_a_side_file_of_another_user_is_a_problem(store: EventStore, path: Path) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path.with_name("aegis.db-wal"), 12345, -1)
    assert line(EventStore.doctor(path), "-wal").state == "problem"


def test_files_that_dead_processes_left_are_named(path: Path) -> None:
    for name in ("aegis.db.00-0123abcd.tmp", "aegis.db.77-0123abcd.tmp", "aegis.db.0-0123abcd.tmp"):
        path.with_name(name).touch()
    assert line(EventStore.doctor(path), "left behind").state == "ok"
    old = time.time() - 2 * ORPHAN_AGE_S
    for file in path.parent.glob("*.tmp"):
        os.utime(file, (old, old))
    found = line(EventStore.doctor(path), "left behind")
    assert (found.state, found.found[:17]) == ("warning", "3 temporary files")


def test_a_disk_that_is_nearly_full_is_a_warning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    assert line(EventStore.doctor(path), "disk").state == "warning"


def test_a_long_log_is_a_warning(store: EventStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.ensure_session("s")
    monkeypatch.setattr(doctors, "_LONG_LOG_BYTES", 1000)
    assert line(EventStore.doctor(path), "log").state == "warning"


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="readers are known on Linux alone")
def test_the_oldest_reader_is_named_with_how_far_it_is_behind(store: EventStore, path: Path) -> None:
    store.ensure_session("s")
    code = (
        "import sys; from aegis_store.driver import dbapi; c = dbapi.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN'); c.execute('SELECT count(*) FROM event').fetchall(); print('reads', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reads\n"
        for _ in range(10):
            store.append("s", "note", "x" * 10_000)
        ask = (
            "import sys; from aegis_store import EventStore\n"
            "print([f for f in EventStore.doctor(sys.argv[1]).findings if 'oldest' in f.name][0].found)"
        )
        told = subprocess.run([sys.executable, "-c", ask, str(path)], capture_output=True, text=True, check=True).stdout
        assert told.startswith(f"process {reader.pid}, ")
        assert int(told.split()[2]) >= 10
        assert line(EventStore.doctor(path), "oldest reader").found == "cannot be known here"  # it would drop our own locks
        assert reader.stdin is not None
        reader.stdin.close()


def test_many_free_pages_are_a_warning(store: EventStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "_MANY_FREE_BYTES", 8192)
    store.create_session("s")
    for _ in range(100):
        store.append("s", "note", "x" * 10_000)
    store.update_session("s", max_events=1)
    assert line(EventStore.doctor(path), "free pages").advice == "`aegis-store reclaim` gives them back to the disk"


def test_a_store_over_its_budget_is_a_warning(store: EventStore, path: Path) -> None:
    store.set_retention_policy(RetentionPolicy(max_total_bytes=1000))
    assert line(EventStore.doctor(path), "budget").state == "ok"
    store.create_session("s")
    store.append("s", "note", "x" * 5000)
    assert line(EventStore.doctor(path), "budget").state == "warning"


def test_a_clock_behind_the_newest_event_is_a_problem(store: EventStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_session("s")
    store.append("s", "note", {})
    behind = time.time_ns() - 3_600_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: behind)
    assert line(EventStore.doctor(path), "clock").state == "problem"


def test_a_store_without_auto_vacuum_is_a_warning(path: Path) -> None:
    connection = driver.dbapi.connect(str(path), isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()  # or it cannot be taken away
    connection.execute("PRAGMA auto_vacuum = NONE")
    connection.execute("VACUUM")
    connection.close()
    assert "auto_vacuum is 0" in line(EventStore.doctor(path), "pragmas").found
