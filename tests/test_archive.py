"""Archive before delete: what goes is in the archive first, whole and readable, or it stays."""

import errno
import gzip
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    EventStore,
    FileUnavailable,
    InvalidInput,
    NewEvent,
    RetentionPolicy,
    StoreCorrupt,
    StoreFull,
    driver,
)
from aegis_store.retention import archive as archiving
from aegis_store.retention import prune as pruning
from tests.conftest import OpenStore

HOSTILE = {"text": "\ud83d \0 é", "zero": -0.0, "big": 10**400, "nested": [[None, True, 1.5]]}


def fill(store: EventStore, session_id: str, count: int, status: str = "closed", **options: Any) -> None:
    store.create_session(session_id, metadata={"note": HOSTILE}, max_events=UNLIMITED, **options)
    new = [NewEvent(type="t", payload={"n": n, **HOSTILE}, event_id=f"e{n}", run_id="r") for n in range(count)]
    store.append_many(session_id, new)
    store.set_status(session_id, status)


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def archived_events(directory: Path) -> dict[tuple[str, int], Any]:
    found = {}
    for file in sorted(directory.glob("*.jsonl.gz")):
        for line in lines_of(file):
            if "event" in line:
                key = (line["event"]["session_id"], line["event"]["seq"])
                assert key not in found, f"{key} is archived twice"
                found[key] = line["event"]["payload"]
    return found


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "ARCHIVE_FILE_EVENTS", 10)
    monkeypatch.setattr("aegis_store.retention.truncate.PRUNE_SLICE_EVENTS", 4)


def test_what_goes_is_in_the_archive_and_nothing_else(store: EventStore, tmp_path: Path) -> None:
    fill(store, "ended", 7)
    fill(store, "live", 3, status="running")
    report = store.prune(archive_dir=tmp_path / "archive")
    assert report.events_removed == 7
    assert archived_events(tmp_path / "archive") == {("ended", n + 1): {"n": n, **HOSTILE} for n in range(7)}
    assert [Path(file).parent for file in report.archived] == [tmp_path / "archive"]


def test_the_archive_brings_the_events_into_another_store_exactly(
    store: EventStore, open_store: OpenStore, tmp_path: Path
) -> None:
    fill(store, "ended", 7, tenant="t", owner="o")
    before, session = store.read("ended").events, store.get_session("ended")
    report = store.prune(archive_dir=tmp_path)
    other = open_store(tmp_path / "other.db", prune_on_open=False)
    other.import_lines(report.archived[0])
    assert [event._replace(position=0) for event in other.read("ended").events] == [
        event._replace(position=0) for event in before
    ]
    assert other.get_session("ended") == session


@pytest.mark.usefixtures("small_files")
def test_a_long_session_comes_back_from_the_files_of_several_runs_and_the_export_of_the_rest(
    store: EventStore, open_store: OpenStore, tmp_path: Path
) -> None:
    store.create_session("s", max_events=UNLIMITED)
    store.append_many("s", [NewEvent(type="t", payload="x" * 98) for _ in range(60)])
    for limit in (3500, 1800):  # 100 bytes each
        store.set_retention_policy(RetentionPolicy(max_bytes=limit))
        store.prune(archive_dir=tmp_path / "archive")
    store.export(tmp_path / "rest.jsonl")
    other = open_store(tmp_path / "other.db", prune_on_open=False)
    other.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
    for file in [*sorted((tmp_path / "archive").iterdir()), tmp_path / "rest.jsonl"]:
        report = other.import_lines(file)
        assert report.refused == []
    session = other.get_session("s")
    assert (session.first_seq, session.last_seq, session.retained_bytes) == (1, 60, 6000)


@pytest.mark.usefixtures("small_files")
def test_files_sort_by_run_session_and_seq(store: EventStore, tmp_path: Path) -> None:
    for session_id in ("b", "a"):
        fill(store, session_id, 25)
    first = store.prune(archive_dir=tmp_path / "archive").archived
    fill(store, "c", 3)
    second = store.prune(archive_dir=tmp_path / "archive").archived
    names = sorted(file.name for file in (tmp_path / "archive").iterdir())
    assert [name.split("-")[1] for name in names] == ["a", "a", "a", "b", "b", "b", "c"]
    assert [int(name.split("-")[2]) for name in names] == [1, 11, 21, 1, 11, 21, 1]
    assert {Path(file).name for file in (*first, *second)} == set(names)


def test_files_are_for_their_owner_alone_whatever_the_umask(store: EventStore, tmp_path: Path) -> None:
    fill(store, "s", 2)
    before = os.umask(0)
    try:
        (file,) = store.prune(archive_dir=tmp_path / "archive").archived
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "archive").st_mode) == 0o700


@pytest.mark.parametrize("session_id", ["../../etc/passwd", "a/b", "x" * 500, "é\U0001f600", "a b", ".", "..", "CON", "-rf"])
def test_a_session_id_cannot_lead_out_of_the_directory(store: EventStore, tmp_path: Path, session_id: str) -> None:
    fill(store, session_id, 2)
    (file,) = store.prune(archive_dir=tmp_path / "archive").archived
    assert os.listdir(tmp_path / "archive") == [Path(file).name]
    assert archived_events(tmp_path / "archive").keys() == {(session_id, 1), (session_id, 2)}


def test_sessions_whose_ids_look_alike_have_files_of_their_own(store: EventStore, tmp_path: Path) -> None:
    for session_id in ("a/b", "a:b", "a_b"):
        fill(store, session_id, 1)
    assert len(set(store.prune(archive_dir=tmp_path).archived)) == 3


def test_a_deleted_session_is_not_archived(store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, "secret", 3)
    with monkeypatch.context() as patch:
        patch.setattr("aegis_store.retention.delete.carry_out", lambda *_, **__: None)
        store.delete_session("secret")
    report = store.prune(archive_dir=tmp_path / "archive")
    assert (report.events_removed, report.archived) == (3, ())


def test_a_directory_that_cannot_be_made_stops_the_prune_before_anything_goes(store: EventStore, tmp_path: Path) -> None:
    fill(store, "s", 3)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileUnavailable, match=r"file/archive.*name a directory there"):
        store.prune(archive_dir=tmp_path / "file" / "archive")
    with pytest.raises(FileUnavailable, match="/file': a file stands there: name a directory"):
        store.prune(archive_dir=tmp_path / "file")
    assert store.get_session("s").event_count == 3


def test_two_archives_of_the_same_events_bring_each_in_once(
    store: EventStore, open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "s", 7)
    plan, write, others = store.plan_prune(), archiving.Archive.write, []

    def beside_another(archive: archiving.Archive, *args: Any) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(archiving.Archive, "write", write)
            others.append(open_store(prune_on_open=False).prune(plan, archive_dir=tmp_path / "theirs"))
        return write(archive, *args)

    monkeypatch.setattr(archiving.Archive, "write", beside_another)
    report = store.prune(plan, archive_dir=tmp_path / "ours")
    files = [*report.archived, *others[0].archived]
    assert [Path(file).parent.name for file in files] == ["ours", "theirs"]
    assert report.events_removed + others[0].events_removed == 7
    other = open_store(tmp_path / "other.db", prune_on_open=False)
    assert [other.import_lines(file).events_added for file in files] == [7, 0]


@pytest.mark.parametrize("directory", [5, b"archive", "", "arch\0ive"])
def test_what_is_no_path_is_invalid_input_and_nothing_goes(store: EventStore, directory: Any) -> None:
    fill(store, "s", 3)
    with pytest.raises(InvalidInput, match="named by a path"):
        store.prune(archive_dir=directory)
    assert store.get_session("s").event_count == 3


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_stops_the_prune_with_nothing_deleted_and_leaves_no_file(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    fill(store, "s", 3)
    (tmp_path / "archive").mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises((StoreFull, FileUnavailable)):
            store.prune(archive_dir=tmp_path / "archive")
    assert store.get_session("s").event_count == 3
    assert os.listdir(tmp_path / "archive") == []
    assert store.prune_history()[0].outcome in ("failed: StoreFull", "failed: FileUnavailable")
    assert store.prune(archive_dir=tmp_path / "archive").events_removed == 3


def test_what_a_killed_run_left_half_written_is_swept_later(store: EventStore, tmp_path: Path) -> None:
    for name, age_s in (("20260101T000000.000000Z-s-1-2.jsonl.gz.tmp", 3600), ("new.jsonl.gz.tmp", 0), ("notes.txt", 3600)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    fill(store, "s", 1)
    (file,) = store.prune(archive_dir=tmp_path).archived
    left = {entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("aegis.db")}
    assert left == {"new.jsonl.gz.tmp", "notes.txt", Path(file).name}


def test_a_damaged_event_stops_the_prune_and_the_error_names_the_store(store: EventStore, path: Path, tmp_path: Path) -> None:
    fill(store, "s", 3)
    with driver.dbapi.connect(str(path), isolation_level=None) as shell:
        (guard,) = shell.execute("SELECT sql FROM sqlite_schema WHERE name = 'event_guards_update'").fetchone()
        shell.execute("DROP TRIGGER event_guards_update")
        shell.execute("UPDATE event SET payload = '7' WHERE seq = 2")
        shell.execute(guard)
    with pytest.raises(StoreCorrupt) as caught:
        store.prune(archive_dir=tmp_path / "archive")
    assert caught.value.store == str(path)
    assert store.get_session("s").event_count == 3


def test_a_file_that_is_read_back_as_something_else_stops_the_prune(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "s", 3)
    monkeypatch.setattr("aegis_store.lines.LinesWriter._digest_of_file", lambda _: b"another")
    with pytest.raises(FileUnavailable):
        store.prune(archive_dir=tmp_path / "archive")
    assert store.get_session("s").event_count == 3


@pytest.mark.usefixtures("small_files")
def test_what_the_cap_removes_meanwhile_does_no_harm(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_session("s", max_events=30)
    store.append_many("s", [NewEvent(type="t", payload="x") for _ in range(30)])
    store.set_status("s", "closed")
    monkeypatch.setattr(pruning, "let_writers_through", lambda _: store.append("s", "t", "last words"))
    store.prune(archive_dir=tmp_path / "archive")
    session = store.get_session("s")
    archived = {seq for _, seq in archived_events(tmp_path / "archive")}
    # Each event is in the archive, or in the store, or went by the cap, which archives nothing.
    assert session.first_seq == 31
    assert archived <= set(range(1, 31))
    assert session.event_count == session.last_seq - 30


@pytest.mark.usefixtures("small_files")
def test_a_session_that_is_held_after_it_was_archived_stays_in_the_store_as_well(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "s", 5)
    write = archiving.Archive.write

    def write_then_hold(*given: Any) -> int:
        end = write(*given)
        store.update_session("s", hold=True)
        return end

    monkeypatch.setattr(archiving.Archive, "write", write_then_hold)
    assert store.prune(archive_dir=tmp_path / "archive").events_removed == 0
    assert store.get_session("s").event_count == 5
    assert len(archived_events(tmp_path / "archive")) == 5
