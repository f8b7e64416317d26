"""Every file that is made is its owner's alone, and what somebody else has put at its name is neither followed nor replaced."""

import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aegis_store import AegisStoreError, EventStore, FileUnavailable, StoreCorrupt, driver, recording, session_ids
from aegis_store.spool import Received, Spool
from aegis_store.target import Target

FOREIGN = "what somebody else has written"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for what is made: `tmp_path` holds the store of the test already."""
    made = tmp_path / "place"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def received(content: bytes = b'{"session_id": "s", "hook_event_name": "x"}', event_id: str = "e") -> Received:
    return Received(
        content=content,
        event_id=event_id,
        received_at=datetime.now(UTC),
        session_field="session_id",
        type_field="hook_event_name",
        tenant="default",
        owner="default",
    )


def make_store(place: Path) -> Path:
    EventStore.open(place / "made.db").close()
    return place / "made.db"


def make_below_missing_directories(place: Path) -> Path:
    EventStore.open(place / "a" / "b" / "made.db").close()
    return place / "a" / "b" / "made.db"


def filled(place: Path) -> EventStore:
    store = EventStore.open(place.parent / "aegis.db", durability="process")
    store.ensure_session("s")
    store.append("s", "t", {"secret": 1})
    return store


def make_backup(place: Path) -> Path:
    with filled(place) as store:
        store.backup(place / "made.db")
    return place / "made.db"


def make_restored(place: Path) -> Path:
    with filled(place) as store:
        store.backup(place.parent / "backup.db")
    EventStore.restore(place.parent / "backup.db", place / "made.db")
    return place / "made.db"


def make_export(place: Path) -> Path:
    with filled(place) as store:
        store.export(place / "made.jsonl")
    return place / "made.jsonl"


def make_page(place: Path) -> Path:
    from aegis_store.cli import page

    page.write(place / "made.html", "title", [])
    return place / "made.html"


def make_rest(place: Path) -> Path:
    state = place.parent / "state.json"
    state.write_text('{"version": 1, "sessions": [], "events": [], "actions": ["secret"]}')
    with filled(place) as store:
        store.import_aegis(state, rest=place / "made.json")
    return place / "made.json"


def make_archive(place: Path) -> None:
    with filled(place) as store:
        store.set_status("s", "completed")
        store.prune(archive_dir=place / "archive" / "of" / "all")


def make_spooled(place: Path) -> None:
    spool = Spool(Target.of(place / "made.db"))
    spool.add(received())
    spool.add(received(event_id="f"), rejected=True)
    lock = spool.lock()
    lock.close()


def make_compact(place: Path) -> None:
    EventStore.compact(make_store(place))


FILES: dict[str, Callable[[Path], Path]] = {
    "a store": make_store,
    "a backup": make_backup,
    "a restored store": make_restored,
    "an export": make_export,
    "a page": make_page,
    "the rest of a state file": make_rest,
}
MADE: dict[str, Callable[[Path], object]] = {
    **FILES,
    "directories of a store": make_below_missing_directories,
    "an archive": make_archive,
    "a spool": make_spooled,
    "a compact store": make_compact,
}


def seen_while(directory: Path, act: Callable[[], object]) -> dict[str, int]:
    """The modes of all that was in there at any moment at which somebody else could look."""
    seen: dict[str, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            note()

    def note() -> None:
        for found in directory.rglob("*"):
            try:
                seen[str(found.relative_to(directory))] = seen.get(str(found.relative_to(directory)), 0) | found.lstat().st_mode
            except FileNotFoundError:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        act()
    finally:
        done.set()
        watcher.join()
    note()
    return seen


@pytest.mark.parametrize("what", MADE)
@pytest.mark.usefixtures("no_umask", "path")
def test_with_a_umask_of_0_nothing_that_is_made_is_anyone_elses_at_any_moment(place: Path, what: str) -> None:
    seen = seen_while(place, lambda: MADE[what](place))
    assert seen
    assert {name: oct(stat.S_IMODE(mode)) for name, mode in seen.items() if mode & 0o077} == {}


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a hard link", "a file", "a pipe", "a directory"])
@pytest.mark.parametrize("what", [name for name in FILES if name != "a store"])
@pytest.mark.usefixtures("path")
def test_what_stands_at_the_name_is_neither_followed_nor_replaced(place: Path, tmp_path: Path, what: str, kind: str) -> None:
    name = FILES[what](place).name
    (place / name).unlink()
    foreign = tmp_path / "foreign"
    foreign.write_text(FOREIGN)
    plant(kind, place / name, foreign)
    with pytest.raises(AegisStoreError, match="stands already"):
        FILES[what](place)
    assert foreign.read_text() == FOREIGN
    assert not (tmp_path / "nowhere").exists()
    assert [each.name for each in place.iterdir()] == [name]


def plant(kind: str, at: Path, foreign: Path) -> None:
    match kind:
        case "a link":
            at.symlink_to(foreign)
        case "a dangling link":
            at.symlink_to(foreign.with_name("nowhere"))
        case "a hard link":
            at.hardlink_to(foreign)
        case "a file":
            at.write_text(FOREIGN)
        case "a pipe":
            os.mkfifo(at)
        case _:
            at.mkdir()


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a hard link"])
@pytest.mark.parametrize("what", ["an export", "a page", "the rest of a state file"])
@pytest.mark.usefixtures("path")
def test_what_stands_at_the_name_of_the_draft_is_neither_followed_nor_replaced(
    place: Path, tmp_path: Path, what: str, kind: str
) -> None:
    name = FILES[what](place).name
    (place / name).unlink()
    foreign = tmp_path / "foreign"
    foreign.write_text(FOREIGN)
    plant(kind, place / f"{name}.tmp", foreign)
    with pytest.raises(AegisStoreError, match=r"\.tmp' stands already"):
        FILES[what](place)
    assert foreign.read_text() == FOREIGN
    assert not (tmp_path / "nowhere").exists()
    assert [each.name for each in place.iterdir()] == [f"{name}.tmp"]


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a hard link", "a pipe", "a directory"])
@pytest.mark.parametrize("suffix", ["-lock", "-wal", "-shm", "-journal"])
def test_what_stands_at_the_name_of_a_side_file_is_left_as_it_is(path: Path, tmp_path: Path, suffix: str, kind: str) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_text(FOREIGN)
    foreign.chmod(0o644)
    plant(kind, path.with_name(path.name + suffix), foreign)
    try:
        with EventStore.open(path) as store:
            store.create_session("s")
            store.append("s", "t", 1)
    except AegisStoreError:
        assert suffix != "-lock"
    assert foreign.read_text() == FOREIGN
    assert stat.S_IMODE(foreign.stat().st_mode) == 0o644
    assert not (tmp_path / "nowhere").exists()


def test_tab_waits_for_no_pipe_at_the_name_of_the_log(path: Path) -> None:
    os.mkfifo(path.with_name(f"{path.name}-wal"))
    path.with_name(f"{path.name}-shm").touch()
    assert session_ids.newest(path, "", 1) == []


def content_of(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def foreign_directory(at: Path) -> None:
    """One with files that a spool would take for its own: to be brought in, set aside, or left behind by the killed."""
    (at / "rejected").mkdir(parents=True)
    for name in ("package.json", "x.tmp", "rejected/y.json", "rejected/y.tmp"):
        (at / name).write_text(received().to_text())
        os.utime(at / name, (0, 0))


@pytest.fixture(params=["a link", "one that all may write"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], None]:
    """Puts a directory that is not this user's alone at a path."""

    def put(at: Path) -> None:
        if request.param == "a link":
            foreign_directory(tmp_path / "foreign")
            at.symlink_to(tmp_path / "foreign", target_is_directory=True)
        else:
            foreign_directory(at)
            at.chmod(0o1777)

    return put


@pytest.fixture
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.usefixtures("_state")
def test_a_spool_that_is_not_this_users_alone_is_left_as_it_is(path: Path, foreign: Callable[[Path], None]) -> None:
    place = Path(f"{path}-spool")
    foreign(place)
    before = content_of(place)
    spool = Spool(Target.of(path))
    spool.add(received(event_id="waited"))
    spool.add(received(b"[]", event_id="rejected"), rejected=True)
    recording.record(Target.of(path), received(event_id="now"), busy_timeout_ms=1000)
    assert content_of(place) == before
    assert (len(spool.waiting()), len(spool.rejected())) == (0, 1)
    with EventStore.open(path) as store:
        assert [event.event_id for event in store.read("s").events] == ["waited", "now"]
    with pytest.raises(FileUnavailable, match="not this user's alone, or a link"):
        recording.flush(Target.of(path), busy_timeout_ms=1000)


@pytest.mark.usefixtures("_state")
def test_nothing_is_set_aside_in_a_directory_that_is_not_this_users_alone(path: Path, foreign: Callable[[Path], None]) -> None:
    spool = Spool(Target.of(path))
    waits = [spool.add(received(b"[]", event_id="not an event")), spool.places[0] / "0.json"]
    waits[1].write_text("not even a file of the spool")
    place = spool.places[0] / "rejected"
    foreign(place)
    before = content_of(place)
    report = recording.flush(Target.of(path), busy_timeout_ms=1000)
    assert (content_of(place), sorted(report.stuck)) == (before, sorted(waits))
    assert all("not this user's alone" in reason for reason in report.stuck.values())


@pytest.mark.parametrize("name", ["20260101T000000.000000Z-s-1-2.jsonl.gz.tmp", "aegis.db.123-0123abcd.tmp"])
def test_a_directory_with_the_name_of_a_draft_stops_nothing(tmp_path: Path, name: str) -> None:
    in_the_way = tmp_path / name
    in_the_way.mkdir()
    os.utime(in_the_way, (0, 0))
    with EventStore.open(tmp_path / "aegis.db", prune_on_open=False) as store:
        store.create_session("s")
        store.append("s", "t", 1)
        store.set_status("s", "completed")
        assert store.prune(archive_dir=tmp_path).events_removed == 1
    assert in_the_way.is_dir()


def test_an_old_draft_of_an_export_in_the_directory_of_archives_is_not_taken_for_one_of_theirs(
    store: EventStore, tmp_path: Path
) -> None:
    draft = tmp_path / "all.jsonl.gz.tmp"
    draft.write_text(FOREIGN)
    os.utime(draft, (0, 0))
    store.create_session("s")
    store.append("s", "t", 1)
    store.set_status("s", "completed")
    assert store.prune(archive_dir=tmp_path).events_removed == 1
    assert draft.read_text() == FOREIGN


@pytest.mark.timeout(20)  # or for ever
@pytest.mark.parametrize("table", ["store", "session", "event"])
def test_a_query_without_end_in_place_of_a_table_is_damage(path: Path, shell: sqlite3.Connection, table: str) -> None:
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)"
    endless += " SELECT n AS id, n AS session_id, n AS updated_at FROM c"
    shell.execute("PRAGMA legacy_alter_table = ON")
    shell.execute(f"ALTER TABLE {table} RENAME TO other")
    shell.execute(f"CREATE VIEW {table.upper()} AS {endless}")
    for look in (EventStore.open, lambda path: EventStore.restore(path, path.with_name("restored.db"))):
        with pytest.raises(StoreCorrupt, match="a view stands in place of a table"):
            look(path)
    assert any(finding.state == "problem" for finding in EventStore.doctor(path).findings)
    if table == "session":
        with pytest.raises(driver.dbapi.OperationalError, match="interrupted"):
            session_ids.newest(path, "", 1)
