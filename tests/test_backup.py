"""Backups: a copy of one moment beside writers, verified before it has its name; and stores made of them."""

import gzip
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aegis_store import (
    CursorAhead,
    EventStore,
    FileUnavailable,
    InvalidInput,
    NotAnAegisStore,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
    driver,
)
from tests.conftest import OpenStore

FROZEN = Path(__file__).parent / "migrations/frozen"


def fill(store: EventStore, events: int = 300) -> None:
    store.ensure_session("s")
    for number in range(events):
        store.append("s", "note", {"number": number, "text": "x" * 500})


def rows(path: Path) -> list[object]:
    connection = driver.dbapi.connect(f"file:{path}?mode=ro", uri=True)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    found = [connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables]
    connection.close()
    return found


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_a_backup_restored_is_the_store_row_for_row(store: EventStore, path: Path, tmp_path: Path) -> None:
    fill(store)
    report = store.backup(tmp_path / "backup")
    assert (report.sessions, report.events, report.bytes) == (1, 300, (tmp_path / "backup").stat().st_size)
    assert EventStore.restore(tmp_path / "backup", tmp_path / "back.db").events == 300
    assert rows(tmp_path / "back.db") == rows(path)
    with EventStore.open(tmp_path / "back.db") as back:
        assert back.append("s", "note", {}).seq == 301
        assert back.verify().ok


def test_a_backup_beside_a_writer_holds_all_events_up_to_one_of_its_commits(store: EventStore, tmp_path: Path) -> None:
    fill(store, 2000)
    stop, acknowledged = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            acknowledged[0] = store.append("s", "note", {"text": "y" * 500}).seq

    writer = threading.Thread(target=write)
    writer.start()
    while acknowledged[0] < 2050:
        pass
    before = acknowledged[0]
    store.backup(tmp_path / "backup")
    after = acknowledged[0]
    stop.set()
    writer.join()
    EventStore.restore(tmp_path / "backup", tmp_path / "back.db")
    with EventStore.open(tmp_path / "back.db") as back:
        session = back.get_session("s")
        assert before <= session.last_seq <= after + 1
        ours = back.read("s", limit=1000).events
    assert [event.seq for event in ours] == list(range(session.first_seq, session.last_seq + 1))


def test_a_reader_who_has_seen_more_than_a_restored_store_holds_is_told_so(store: EventStore, tmp_path: Path) -> None:
    fill(store, 5)
    store.backup(tmp_path / "backup")
    later = store.append("s", "note", {})
    EventStore.restore(tmp_path / "backup", tmp_path / "back.db")
    with EventStore.open(tmp_path / "back.db") as back:
        with pytest.raises(CursorAhead):
            back.read("s", after_seq=later.seq)
        with pytest.raises(CursorAhead):
            back.read_all(after_position=later.position)


@pytest.mark.parametrize("mask", [0o000, 0o777])
def test_it_has_mode_0600_whatever_the_umask(store: EventStore, tmp_path: Path, umask: Callable[[int], int], mask: int) -> None:
    umask(mask)
    store.backup(tmp_path / "backup")
    EventStore.restore(tmp_path / "backup", tmp_path / "back.db")
    umask(0o022)
    for name in ("backup", "back.db"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_nothing_is_overwritten(store: EventStore, path: Path, tmp_path: Path) -> None:
    store.backup(tmp_path / "backup")
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in ("taken", "link", "backup", path.name):
        with pytest.raises(InvalidInput, match="no file is overwritten"):
            store.backup(tmp_path / taken)
        with pytest.raises(InvalidInput, match="no file is overwritten"):
            EventStore.restore(tmp_path / "backup", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_name_that_is_taken_while_it_runs_stays_what_it_is(store: EventStore, tmp_path: Path) -> None:
    def take(_done: int, _size: int) -> None:
        (tmp_path / "backup").write_text("mine")

    with pytest.raises(InvalidInput, match="no file is overwritten"):
        store.backup(tmp_path / "backup", on_progress=take)
    assert (tmp_path / "backup").read_text() == "mine"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_store_that_is_damaged_gives_no_backup(open_store: OpenStore, path: Path, tmp_path: Path) -> None:
    with open_store() as store:
        fill(store)
        store.backup(tmp_path / "backup")
    for file in (path, tmp_path / "backup"):
        file.write_bytes(file.read_bytes().replace(b"x" * 400, b"x" * 399 + b"y"))
    with open_store() as store, pytest.raises(StoreCorrupt, match=re.escape(repr(str(path)))):
        store.backup(tmp_path / "other")
    with pytest.raises(StoreCorrupt, match=re.escape(repr(str(tmp_path / "backup")))):
        EventStore.restore(tmp_path / "backup", tmp_path / "back.db")
    assert not list(tmp_path.glob("other*"))
    assert not list(tmp_path.glob("back.db*"))


def test_interrupted_it_leaves_nothing(store: EventStore, tmp_path: Path) -> None:
    fill(store)
    store.backup(tmp_path / "backup")
    names = {entry.name for entry in tmp_path.iterdir()}
    for stage in (0.1, 0.6):

        def interrupt(done: int, size: int, stage: float = stage) -> None:
            if done >= stage * size:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.backup(tmp_path / "other", on_progress=interrupt)
        with pytest.raises(KeyboardInterrupt):
            EventStore.restore(tmp_path / "backup", tmp_path / "back.db", on_progress=interrupt)
        assert {entry.name for entry in tmp_path.iterdir()} == names
    store.append("s", "note", {})


def test_killed_it_leaves_a_draft_that_the_next_one_removes_and_one_at_work_keeps_his(
    store: EventStore, path: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys; from aegis_store import EventStore\n"
        "EventStore.open(sys.argv[1]).backup(sys.argv[2], on_progress=lambda *_: os.kill(os.getpid(), 9))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "backup")], check=False)
    assert killed.returncode == -9
    (orphan,) = tmp_path.glob("backup.00-*.tmp")
    os.utime(orphan, (0, 0))
    drafts: list[Path] = []

    def look(_done: int, _size: int) -> None:
        if not drafts:
            drafts.extend(tmp_path.glob("backup.00-*.tmp"))
            os.utime(drafts[0], (0, 0))
            store.backup(tmp_path / "backup")

    with pytest.raises(InvalidInput, match="no file is overwritten"):
        store.backup(tmp_path / "backup", on_progress=look)
    assert len(drafts) == 1
    assert orphan not in drafts
    assert not list(tmp_path.glob("*.tmp"))


def test_the_log_of_a_store_that_is_gone_is_not_played_into_a_restored_one(store: EventStore, tmp_path: Path) -> None:
    store.backup(tmp_path / "backup")
    (tmp_path / "back.db-wal").write_bytes(b"old")
    with pytest.raises(StoreUnavailable, match=r"back\.db-wal is there"):
        EventStore.restore(tmp_path / "backup", tmp_path / "back.db")


def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("milk")
    with pytest.raises(NotAnAegisStore):
        EventStore.restore(tmp_path / "notes.txt", tmp_path / "back.db")
    with pytest.raises(StoreUnavailable, match="no such file"):
        EventStore.restore(tmp_path / "missing", tmp_path / "back.db")


def test_where_it_cannot_be_written_it_says_so(store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileUnavailable, match="directory does not exist"):
        store.backup(tmp_path / "missing/backup")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(StoreFull, match="0 are available"):
        store.backup(tmp_path / "backup")
    assert not list(tmp_path.glob("backup*"))


@pytest.mark.parametrize("frozen", sorted(FROZEN.glob("*.db.gz")), ids=lambda frozen: frozen.stem)
def test_a_backup_of_an_older_schema_comes_back_at_that_of_this_library(frozen: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    backup.write_bytes(gzip.decompress(frozen.read_bytes()))
    before = backup.read_bytes()
    report = EventStore.restore(backup, tmp_path / "back.db")
    with EventStore.open(tmp_path / "back.db", prune_on_open=False) as back:
        assert back.stats().events == report.events > 0
    assert backup.read_bytes() == before
