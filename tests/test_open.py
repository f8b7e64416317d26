"""Opening a store: what is made, what is refused and left as it was, and what a caller sees when the file lets it down."""

import errno
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler

from aegis_store import (
    AegisStoreError,
    EventStore,
    InvalidInput,
    NewEvent,
    NotAnAegisStore,
    ReadOnlyStore,
    RetentionPolicy,
    SchemaMismatch,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
    draft,
    driver,
    gate,
    migrate,
    schema,
)
from aegis_store.retention.archive import Archive
from aegis_store.retention.plan import PrunePlan
from aegis_store.target import Target

ROOT = Path(__file__).resolve().parents[1]
OpenStore = Callable[..., EventStore]
Call = Callable[[EventStore, Path], object]

# Every method of the surface, on a store that holds the session "s". The path is that of a state file to import.
WRITES: dict[str, Call] = {
    "create_session": lambda store, file: store.create_session("other"),
    "ensure_session": lambda store, file: store.ensure_session("other"),
    "set_status": lambda store, file: store.set_status("s", "closed"),
    "update_session": lambda store, file: store.update_session("s", metadata={"a": 1}),
    "update_session, a lower cap": lambda store, file: store.update_session("s", max_events=1),
    "append": lambda store, file: store.append("s", "note", "text"),
    "append_many": lambda store, file: store.append_many("s", [NewEvent(type="note", payload=1)]),
    "set_retention_policy": lambda store, file: store.set_retention_policy(RetentionPolicy(max_events=1)),
    "prune": lambda store, file: store.prune(),
    "import_aegis": lambda store, file: store.import_aegis(file),
}
READS: dict[str, Call] = {
    "get_session": lambda store, file: store.get_session("s"),
    "list_sessions": lambda store, file: store.list_sessions(),
    "read": lambda store, file: store.read("s"),
    "read_all": lambda store, file: store.read_all(),
    "retention_policy": lambda store, file: store.retention_policy(),
    "plan_prune": lambda store, file: store.plan_prune(),
    "stats": lambda store, file: store.stats(),
}
METHODS = WRITES | READS


def connect(path: Path) -> sqlite3.Connection:
    """A plain connection by the driver in use: two SQLites in one process would drop each other's locks."""
    connection: sqlite3.Connection = driver.dbapi.connect(str(path), isolation_level=None)
    return connection


def pragma(connection: Any, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(directory: Path) -> dict[str, bytes]:
    """All files of a directory. Only while this process has none of them open (FACTS: closing a descriptor drops locks)."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def python(script: str, *arguments: object) -> str:
    """What the script prints, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    """A state file with one session, which no store holds yet."""
    record = {"id": "new", "tenantId": "t", "ownerKeyId": "o", "status": "running", "createdAt": 1, "updatedAt": 1}
    file = tmp_path / "state.json"
    file.write_text(json.dumps({"version": 1, "sessions": [record], "events": []}))
    return file


@pytest.fixture
def filled(path: Path) -> Path:
    """This test's store, closed, with the session "s" and three events."""
    with EventStore.open(path, durability="process") as store:
        store.create_session("s")
        store.append_many("s", [NewEvent(type="note", payload=number) for number in range(3)])
    return path


# Names of stores


def test_a_path_names_a_store(tmp_path: Path) -> None:
    with EventStore.open(tmp_path / "new.db") as store:
        store.create_session("s")
    with EventStore.open(str(tmp_path / "new.db")) as store:
        assert store.get_session("s").session_id == "s"


def test_a_relative_url_names_a_store_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    EventStore.open("sqlite:///new.db").close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.db"]


def test_an_absolute_url_names_a_store(tmp_path: Path) -> None:
    EventStore.open(f"sqlite:///{tmp_path}/new.db").close()
    assert (tmp_path / "new.db").is_file()


def test_a_url_may_name_a_driver(tmp_path: Path) -> None:
    EventStore.open(f"sqlite+pysqlite:///{tmp_path}/new.db").close()
    assert (tmp_path / "new.db").is_file()


@pytest.mark.parametrize(
    "name", ["a b.db", "a?b=c.db", "a#b.db", "a%41.db", "größe-店.db", "a'b\".db", os.fsdecode(b"\xff.db")]
)
def test_a_store_gets_exactly_the_name_that_was_given(tmp_path: Path, name: str) -> None:
    with EventStore.open(tmp_path / name) as store:
        store.create_session("s")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "target",
    [
        "",
        ":memory:",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "file:new.db",
        "file:new.db?mode=memory&cache=shared",
        "sqlite:///file:new.db?uri=true",
        "sqlite:///new.db?mode=ro",
        "sqlite://host/new.db",
        "postgresql://localhost/aegis",
        "postgresql+psycopg://localhost/aegis",
        "http://example.com/new.db",
        "://",
        "new\0.db",
    ],
)
def test_what_is_no_path_and_no_sqlite_url_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreUnavailable):
        EventStore.open(target)
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_a_refused_url_is_not_shown() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        EventStore.open("postgresql+psycopg://user:secret@localhost/aegis")
    assert "secret" not in str(caught.value)


def test_an_unknown_durability_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        EventStore.open(tmp_path / "new.db", durability="none")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout_ms", [-1, 1.5, True, 2**31])
def test_a_busy_timeout_that_cannot_be_is_refused(tmp_path: Path, timeout_ms: Any) -> None:
    with pytest.raises(InvalidInput):
        EventStore.open(tmp_path / "new.db", busy_timeout_ms=timeout_ms)


# Creation


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_store_belongs_to_its_owner_alone_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask), EventStore.open(tmp_path / "new.db") as store:
        store.create_session("s")
        assert {path.name: mode(path) for path in tmp_path.iterdir()} == {
            "new.db": 0o600,
            "new.db-wal": 0o600,
            "new.db-shm": 0o600,
            "new.db-lock": 0o600,
        }


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_directories_that_open_creates_belong_to_the_owner_alone(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        EventStore.open(tmp_path / "a" / "b" / "new.db").close()
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o700)


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="directories are not opened there, and synced by the system")
@pytest.mark.parametrize(
    "make", [lambda place: EventStore.open(place / "new.db").close(), Archive.at], ids=["store", "archive"]
)
def test_directories_that_are_made_are_synced_from_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    synced, sync = set(), os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    make(tmp_path / "a" / "b")
    assert {tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino} <= synced


def test_a_directory_that_could_not_be_synced_from_above_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(draft, "sync_directory", failing)
    with pytest.raises(StoreUnavailable):
        EventStore.open(tmp_path / "a" / "new.db")
    assert list(tmp_path.iterdir()) == []


def test_a_standing_directory_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    EventStore.open(tmp_path / "new.db").close()
    assert mode(tmp_path) == 0o755


def test_creation_leaves_the_store_and_nothing_else(tmp_path: Path) -> None:
    EventStore.open(tmp_path / "new.db").close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.db"]


def test_a_standing_store_keeps_its_mode(path: Path) -> None:
    path.chmod(0o640)
    EventStore.open(path).close()
    assert mode(path) == 0o640


@pytest.mark.parametrize("options", [{"create": False}, {"read_only": True}, {"read_only": True, "create": True}])
def test_a_missing_store_is_not_created_when_that_is_not_wanted(tmp_path: Path, options: dict[str, bool]) -> None:
    with pytest.raises(StoreUnavailable, match="no such file"):
        EventStore.open(tmp_path / "a" / "new.db", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_threads_that_create_stores_at_once_each_have_theirs(tmp_path: Path) -> None:
    def create(number: int) -> str:
        with EventStore.open(tmp_path / f"{number // 2}.db", maintain_every=None) as store:
            return store.create_session().session_id

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(create, range(4)))) == 4


def test_a_standing_store_opens_without_create(path: Path, open_store: OpenStore) -> None:
    assert open_store(path, create=False).stats().events == 0


def test_a_file_that_sqlite_can_only_open_for_reading_just_then_is_no_store_that_stays_read_only(
    filled: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = Target.uri
    with monkeypatch.context() as patch:  # what SQLite falls back on when no descriptor is free, say
        patch.setattr(Target, "uri", lambda target, query: uri(target, query.replace("mode=rw", "mode=ro")))
        with pytest.raises(StoreUnavailable, match="for reading only just now") as caught:
            open_store(filled)
    if Path("/proc/self/fd").exists():  # the connection is closed, though `caught` refers to the frames that made it
        assert str(filled) not in {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    assert caught.value.store == str(filled)
    assert open_store(filled).append("s", "note", 3).seq == 4


def test_a_creation_whose_migration_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(migrate, "upgrade", fail)
    with pytest.raises(StoreFull):
        EventStore.open(tmp_path / "new.db")
    assert list(tmp_path.iterdir()) == []


def test_a_creation_that_cannot_list_the_migrations_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def scan(directory: Any) -> Any:
        if Path(directory).name == "versions":
            raise OSError(errno.EMFILE, "Too many open files")
        return scandir(directory)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(StoreUnavailable, match="could not be read"):
        EventStore.open(tmp_path / "new.db")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    EventStore.open(tmp_path / "new.db").close()


def test_a_creation_that_is_interrupted_half_way_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = migrate.upgrade

    def interrupt(target: Any) -> None:
        upgrade(target)
        raise KeyboardInterrupt

    monkeypatch.setattr(migrate, "upgrade", interrupt)
    with pytest.raises(KeyboardInterrupt):
        EventStore.open(tmp_path / "new.db")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_cannot_be_made_where_a_file_stands(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(StoreUnavailable):
        EventStore.open(tmp_path / "file" / "new.db")
    assert contents(tmp_path) == {"file": b"text"}


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
def test_an_orphaned_draft_is_swept_at_the_next_creation(tmp_path: Path, suffix: str) -> None:
    orphan = tmp_path / f"new.db.123-0123abcd.tmp{suffix}"
    orphan.write_bytes(b"half a store")
    os.utime(orphan, (time.time() - 3600,) * 2)
    EventStore.open(tmp_path / "new.db").close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.db"]


def test_a_fresh_draft_of_another_process_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / "new.db.123-0123abcd.tmp").write_bytes(b"half a store")
    EventStore.open(tmp_path / "new.db").close()
    assert (tmp_path / "new.db.123-0123abcd.tmp").read_bytes() == b"half a store"


@pytest.mark.parametrize(
    "name",
    ["new.db.tmp", "new.db.123.tmp", "new.db.123-0123abcd.tmp.bak", "other.db.123-0123abcd.tmp", "newXdb.123-0123abcd.tmp"],
)
def test_an_old_file_that_is_no_draft_of_this_store_is_not_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"someone's")
    os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    EventStore.open(tmp_path / "new.db").close()
    assert (tmp_path / name).read_bytes() == b"someone's"


# Pragmas


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("page_size", 8192),
        ("auto_vacuum", 2),
        ("journal_mode", "wal"),
        ("application_id", schema.APPLICATION_ID),
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("query_only", 0),
        ("busy_timeout", 0),  # its waiting is done in `Database`
    ],
)
def test_the_writer_has_its_pragmas(open_store: OpenStore, tmp_path: Path, name: str, value: object) -> None:
    store = open_store(tmp_path / "new.db", busy_timeout_ms=1234)
    assert pragma(store._db.writer.driver, name) == value


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("process", 1)])
def test_the_writer_syncs_as_the_durability_says(open_store: OpenStore, durability: str, synchronous: int) -> None:
    store = open_store(durability=durability)
    assert pragma(store._db.writer.driver, "synchronous") == synchronous


@pytest.mark.parametrize(
    ("name", "value"), [("foreign_keys", 1), ("trusted_schema", 0), ("query_only", 1), ("busy_timeout", 1234)]
)
def test_readers_have_their_pragmas(open_store: OpenStore, name: str, value: object) -> None:
    with open_store(busy_timeout_ms=1234)._db.read() as conn:
        assert conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() == value


def test_a_pragma_that_sqlite_does_not_accept_is_found_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_store.connections._SYNCHRONOUS", {"power": ("FULL", 7)})
    with pytest.raises(StoreUnavailable, match="synchronous"):
        EventStore.open(path)


def test_a_store_that_left_wal_mode_returns_to_it(path: Path, open_store: OpenStore, shell: sqlite3.Connection) -> None:
    assert shell.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    assert pragma(open_store()._db.writer.driver, "journal_mode") == "wal"


# Symbolic links


def test_a_link_leads_to_the_store_and_side_files_lie_beside_the_store(
    path: Path, tmp_path: Path, open_store: OpenStore
) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link.db"
    link.symlink_to(path)
    open_store(link).create_session("s")
    assert open_store(path).get_session("s").session_id == "s"
    assert [entry.name for entry in (tmp_path / "links").iterdir()] == ["link.db"]


def test_a_dangling_link_leads_to_where_the_new_store_is_made(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "real.db")
    EventStore.open(link).close()
    assert link.is_symlink()
    assert (tmp_path / "real.db").is_file()


def test_a_dangling_link_is_a_missing_store_without_create(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "real.db")
    with pytest.raises(StoreUnavailable):
        EventStore.open(link, create=False)
    assert not (tmp_path / "real.db").exists()


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(link)
    with pytest.raises(StoreUnavailable):
        EventStore.open(link)


# Files that are refused, and left as they were


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: truncate(path, 0),
    "the magic alone": lambda path: truncate(path, 16),
    "half a page": lambda path: truncate(path, 4096),
    "one page": lambda path: truncate(path, 8192),
    "half of it": lambda path: truncate(path, path.stat().st_size // 2),
    "all but a page": lambda path: truncate(path, path.stat().st_size - 8192),
    "all but a byte": lambda path: truncate(path, path.stat().st_size - 1),
    "noise from the second page on": lambda path: overwrite(path, 8192, b"\xa5\x5a" * ((path.stat().st_size - 8192) // 2)),
    "zeros from the second page on": lambda path: overwrite(path, 8192, bytes(path.stat().st_size - 8192)),
    "noise on the schema": lambda path: overwrite(path, 100, b"\xa5" * 8092),
    "zeros for a header": lambda path: overwrite(path, 0, bytes(100)),
    "noise for a header": lambda path: overwrite(path, 0, b"\xa5" * 100),
    "letters for a header": lambda path: overwrite(path, 0, b"x" * 100),
    "zeros throughout": lambda path: overwrite(path, 0, bytes(path.stat().st_size)),
    "noise throughout": lambda path: overwrite(path, 0, bytes(range(255, -1, -1)) * (path.stat().st_size // 256)),
    "a page size that cannot be": lambda path: overwrite(path, 16, b"\x00\x03"),
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_store_is_refused_and_left_as_it_was(
    filled: Path, tmp_path: Path, damage: Callable[[Path], None], read_only: bool
) -> None:
    damage(filled)
    before = filled.read_bytes()
    with pytest.raises(StoreCorrupt):
        EventStore.open(filled, read_only=read_only)
    assert filled.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_no_side_file_appears_beside_a_damaged_store(filled: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(filled)
    with pytest.raises(StoreCorrupt):
        EventStore.open(filled)
    assert [entry.name for entry in tmp_path.iterdir()] == ["aegis.db"]


def test_a_store_without_its_policy_is_refused(path: Path, shell: sqlite3.Connection) -> None:
    shell.execute("DROP TRIGGER store_guards_delete")
    shell.execute("DELETE FROM store")
    with pytest.raises(StoreCorrupt, match="policy"):
        EventStore.open(path)


def test_damage_among_the_events_is_found_when_they_are_read(path: Path) -> None:
    with EventStore.open(path, durability="process") as store:
        store.create_session("s")
        store.append_many("s", [NewEvent(type="note", payload="x" * 3000) for _ in range(100)])
    overwrite(path, path.stat().st_size // 2, b"\xa5" * 8192 * 3)
    with EventStore.open(path) as store, pytest.raises(StoreCorrupt):
        store.read("s")


def foreign_rollback(path: Path) -> None:
    with closing(connect(path)) as other:
        other.execute("CREATE TABLE note (text TEXT)")


def foreign_wal(path: Path) -> None:
    with closing(connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL").fetchall()
        other.execute("CREATE TABLE note (text TEXT)")


def foreign_with_an_application_id(path: Path) -> None:
    with closing(connect(path)) as other:
        other.execute("PRAGMA application_id = 7")
        other.execute("CREATE TABLE alembic_version (version_num TEXT)")
        other.execute("INSERT INTO alembic_version VALUES ('0001')")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a SQLite file in rollback mode": foreign_rollback,
    "a SQLite file in WAL mode": foreign_wal,
    "a SQLite file with its own id": foreign_with_an_application_id,
    "text": lambda path: path.write_text("Dear diary,\n"),
    "text of many pages": lambda path: path.write_text("größe 店\n" * 5000, encoding="utf-8"),
    "JSON": lambda path: path.write_text('{"version": 1}'),
    "a line break": lambda path: path.write_text("\n"),
    "a directory": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("make", FOREIGN.values(), ids=list(FOREIGN))
def test_what_is_no_store_is_refused_and_left_as_it_was(
    tmp_path: Path, make: Callable[[Path], object], read_only: bool
) -> None:
    make(tmp_path / "other.db")
    before = contents(tmp_path)
    with pytest.raises(NotAnAegisStore):
        EventStore.open(tmp_path / "other.db", read_only=read_only)
    assert contents(tmp_path) == before


FOREIGN_WRITER = """
import sys
from aegis_store import driver
other = driver.dbapi.connect(sys.argv[1], isolation_level=None)
other.execute("PRAGMA journal_mode = WAL").fetchall()
other.execute("CREATE TABLE note (text TEXT)")
other.execute("INSERT INTO note VALUES ('mine')")
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def foreign_writer(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another program, with a database of its own in WAL mode: it has written and goes on."""
    with subprocess.Popen(
        [sys.executable, "-c", FOREIGN_WRITER, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def without_shm(files: dict[str, bytes]) -> dict[str, bytes]:
    """SQLite's index of the WAL is shared memory: whoever looks leaves a mark there."""
    return {name: content for name, content in files.items() if not name.endswith("-shm")}


@pytest.mark.parametrize("read_only", [False, True])
def test_another_programs_database_in_use_is_refused_and_left_as_it_was(tmp_path: Path, read_only: bool) -> None:
    with foreign_writer(tmp_path / "other.db"):
        before = contents(tmp_path)
        with pytest.raises(NotAnAegisStore):
            EventStore.open(tmp_path / "other.db", read_only=read_only)
        after = contents(tmp_path)
    assert before["other.db-wal"]
    assert without_shm(after) == without_shm(before)
    assert after.keys() == before.keys()


def test_the_database_that_another_program_left_behind_when_it_was_killed_is_left_as_it_was(tmp_path: Path) -> None:
    with foreign_writer(tmp_path / "other.db") as process:
        process.kill()
    before = contents(tmp_path)
    with pytest.raises(NotAnAegisStore):
        EventStore.open(tmp_path / "other.db")
    assert before["other.db-wal"]
    assert without_shm(contents(tmp_path)) == without_shm(before)


# Revisions


@pytest.mark.parametrize(
    ("revision", "command"),
    [("0000", "aegis-store upgrade"), ("9999", "pip install --upgrade aegis-store"), (None, "aegis-store upgrade")],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_another_revision_is_refused_with_both_numbers_and_the_command(
    filled: Path, tmp_path: Path, revision: str | None, command: str, read_only: bool
) -> None:
    with closing(connect(filled)) as connection:
        connection.execute("DELETE FROM alembic_version")
        if revision:
            connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    before = contents(tmp_path)
    with pytest.raises(SchemaMismatch) as caught:
        EventStore.open(filled, read_only=read_only)
    assert (caught.value.found, caught.value.expected) == (revision or "base", schema.HEAD)
    assert all(part in str(caught.value) for part in (revision or "base", schema.HEAD, command))
    assert contents(tmp_path) == before


def test_a_store_whose_version_table_is_gone_is_refused(path: Path, shell: sqlite3.Connection) -> None:
    shell.execute("DROP TABLE alembic_version")
    with pytest.raises(SchemaMismatch):
        EventStore.open(path)


# Reading only


@pytest.mark.parametrize("call", WRITES.values(), ids=list(WRITES))
def test_a_read_only_store_refuses_to_write(filled: Path, open_store: OpenStore, state_file: Path, call: Call) -> None:
    store = open_store(filled, read_only=True)
    with pytest.raises(ReadOnlyStore):
        call(store, state_file)


@pytest.mark.parametrize("call", READS.values(), ids=list(READS))
def test_a_read_only_store_answers_as_any_other(filled: Path, open_store: OpenStore, state_file: Path, call: Call) -> None:
    plain = [call(open_store(filled, read_only=read_only), state_file) for read_only in (False, True)]
    same = [re.sub(r"now=.*?\), |file_bytes=\d+", "", repr(answer)) for answer in plain]
    assert same[0] == same[1]


def test_ensure_session_answers_for_a_standing_session_though_read_only(filled: Path, open_store: OpenStore) -> None:
    assert open_store(filled, read_only=True).ensure_session("s").last_seq == 3


def test_reading_only_changes_no_content(filled: Path, state_file: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.set_status("s", "closed")
    before = filled.read_bytes()
    with EventStore.open(filled, read_only=True) as store:
        for call in READS.values():
            call(store, state_file)
        assert store.get_session("s").event_count == 3
    assert filled.read_bytes() == before


def test_a_read_only_store_sees_what_others_append(filled: Path, open_store: OpenStore) -> None:
    reader = open_store(filled, read_only=True)
    assert reader.get_session("s").last_seq == 3
    open_store(filled).append("s", "note", 4)
    assert reader.get_session("s").last_seq == 4


@pytest.fixture
def shared_directory() -> Iterator[Path]:
    """A directory that every user may enter: pytest's own are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="aegis-store-test-"))
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


# Everything is imported and used once before the rights go: the checkout may be closed to other users.
UNPRIVILEGED = """
import os, sys, tempfile
from aegis_store import *
from aegis_store import EventStore, AegisStoreError, StoreUnavailable, ReadOnlyStore, NewEvent
with tempfile.TemporaryDirectory() as directory, EventStore.open(os.path.join(directory, "warm.db")) as warm:
    warm.create_session("warm")
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
os.chdir("/")
path = sys.argv[1]
"""


def unprivileged(script: str, path: Path) -> str:
    """What the script prints, run by a user who owns nothing. `path` is at its hands."""
    return python(UNPRIVILEGED + textwrap.dedent(script), path)


@pytest.fixture
def locked_store(filled: Path, shared_directory: Path) -> Path:
    """A store, cleanly closed, that everyone may read, in a directory that no one else may write."""
    locked = shared_directory / "aegis.db"
    shutil.copyfile(filled, locked)
    locked.chmod(0o444)
    shared_directory.chmod(0o555)
    return locked


def test_a_cleanly_closed_store_opens_read_only_in_a_directory_that_cannot_be_written(locked_store: Path) -> None:
    script = """
    with EventStore.open(path, read_only=True) as store:
        print([event.payload for event in store.read("s").events], store.stats().events)
    """
    assert unprivileged(script, locked_store) == "[0, 1, 2] 3"
    assert [entry.name for entry in locked_store.parent.iterdir()] == ["aegis.db"]


def test_a_store_in_use_does_not_open_read_only_in_a_directory_that_cannot_be_written(locked_store: Path) -> None:
    with EventStore.open(locked_store) if os.getuid() == 0 else _writable(locked_store) as store:
        store.append("s", "note", "live")
        for suffix in ("-wal", "-shm"):
            locked_store.with_name(f"aegis.db{suffix}").chmod(0o444)
        locked_store.parent.chmod(0o555)
        script = """
        try:
            EventStore.open(path, read_only=True)
        except StoreUnavailable as error:
            print("refused:", error.detail)
        """
        assert unprivileged(script, locked_store).startswith("refused: it is in use")
        locked_store.parent.chmod(0o755)


def _writable(path: Path) -> EventStore:
    path.parent.chmod(0o755)
    path.chmod(0o644)
    return EventStore.open(path)


def test_a_store_that_this_user_may_not_write_does_not_open_for_writing(locked_store: Path) -> None:
    script = """
    try:
        EventStore.open(path)
    except AegisStoreError as error:
        print(type(error).__name__)
    """
    assert unprivileged(script, locked_store) in ("ReadOnlyStore", "StoreUnavailable")
    assert [entry.name for entry in locked_store.parent.iterdir()] == ["aegis.db"]


def test_a_store_that_this_user_may_not_read_is_unavailable(locked_store: Path) -> None:
    locked_store.chmod(0o000)
    script = """
    try:
        EventStore.open(path, read_only=True)
    except StoreUnavailable as error:
        print(error.detail)
    """
    assert unprivileged(script, locked_store) == "permission denied"


def test_a_creation_in_a_directory_that_cannot_be_written_leaves_no_file(shared_directory: Path) -> None:
    shared_directory.chmod(0o555)
    script = """
    try:
        EventStore.open(path)
    except StoreUnavailable as error:
        print("refused")
    """
    assert unprivileged(script, shared_directory / "new.db") == "refused"
    assert list(shared_directory.iterdir()) == []


# The SQLite in use


def test_sqlite_version_is_that_of_the_connections(store: EventStore) -> None:
    with store._db.read() as conn:
        assert conn.exec_driver_sql("SELECT sqlite_version()").scalar_one() == EventStore.sqlite_version


def test_the_newer_of_both_drivers_is_used() -> None:
    assert sqlite3.sqlite_version_info <= driver.VERSION_INFO or os.environ.get(driver.DRIVER_VARIABLE)


def test_the_fixed_sqlite_is_in_use_where_a_wheel_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wheel = next(found for found in map(Requirement, dependencies) if found.name == "pysqlite3")
    assert wheel.marker is not None
    if not wheel.marker.evaluate():
        pytest.skip("pysqlite3 has no wheel for this platform")
    monkeypatch.delenv(driver.DRIVER_VARIABLE, raising=False)
    script = """
    from aegis_store import EventStore, driver
    print(driver.has_wal_reset_bug(driver.VERSION_INFO), driver.dbapi.__name__)
    """
    assert python(script) == "False pysqlite3.dbapi2"


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 44, 99), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 50, 99), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 4), False),
        ((4, 0, 0), False),
    ],
)
def test_the_versions_with_the_wal_reset_bug_are_known(version: tuple[int, int, int], has_bug: bool) -> None:
    assert driver.has_wal_reset_bug(version) is has_bug


@pytest.mark.parametrize("name", ["sqlite3", "pysqlite3"])
def test_the_environment_may_choose_the_driver(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "pysqlite3":
        pytest.importorskip("pysqlite3")
    monkeypatch.setenv(driver.DRIVER_VARIABLE, name)
    assert python("from aegis_store import driver; print(driver.dbapi.__name__)").startswith(name)


# Closing


def test_closing_twice_is_closing_once(path: Path) -> None:
    store = EventStore.open(path)
    store.close()
    store.close()
    assert not path.with_name("aegis.db-wal").exists()


def test_a_store_is_closed_at_the_end_of_its_block(path: Path) -> None:
    with EventStore.open(path) as store:
        store.create_session("s")
    with pytest.raises(StoreClosed):
        store.get_session("s")


@pytest.mark.parametrize("call", METHODS.values(), ids=list(METHODS))
def test_a_closed_store_answers_nothing(filled: Path, state_file: Path, call: Call) -> None:
    store = EventStore.open(filled)
    store.close()
    with pytest.raises(StoreClosed):
        call(store, state_file)


@pytest.mark.parametrize("call", READS.values(), ids=list(READS))
def test_a_closed_read_only_store_answers_nothing(filled: Path, state_file: Path, call: Call) -> None:
    store = EventStore.open(filled, read_only=True)
    store.close()
    with pytest.raises(StoreClosed):
        call(store, state_file)


def test_a_closed_store_carries_out_no_plan_not_even_an_empty_one(filled: Path) -> None:
    with EventStore.open(filled) as store:
        plan: PrunePlan = store.plan_prune()
    assert plan.truncations == ()
    with pytest.raises(StoreClosed):
        store.prune(plan)


def test_a_closed_store_imports_nothing_not_even_an_empty_file(filled: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text('{"version": 1, "sessions": [], "events": []}')
    store = EventStore.open(filled)
    store.close()
    with pytest.raises(StoreClosed):
        store.import_aegis(empty)


# Errors of the file, as a caller sees them


@pytest.mark.parametrize("name", [name for name in WRITES if name != "prune"])
def test_a_store_that_another_writer_holds_is_busy(filled: Path, open_store: OpenStore, state_file: Path, name: str) -> None:
    store = open_store(filled, busy_timeout_ms=100)
    with closing(connect(filled)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreBusy) as caught:
            WRITES[name](store, state_file)
    assert 50 <= caught.value.waited_ms < 10_000


def test_a_prune_of_a_store_that_another_writer_holds_is_busy(filled: Path, open_store: OpenStore) -> None:
    store = open_store(filled, busy_timeout_ms=100)
    store.set_status("s", "closed")
    with closing(connect(filled)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreBusy):
            store.prune()
    assert store.prune().events_removed == 3


def test_readers_do_not_wait_for_a_writer(filled: Path, open_store: OpenStore, state_file: Path) -> None:
    store = open_store(filled, busy_timeout_ms=0)
    with closing(connect(filled)) as other:
        other.execute("BEGIN EXCLUSIVE")
        answers = [call(store, state_file) for call in READS.values()]
    assert len(answers) == len(READS)


def test_a_busy_store_takes_the_append_once_it_is_free(filled: Path, open_store: OpenStore) -> None:
    store = open_store(filled, busy_timeout_ms=50)
    with closing(connect(filled)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreBusy):
            store.append("s", "note", "refused")
    assert store.append("s", "note", "taken").seq == 4
    assert [event.payload for event in store.read("s").events] == [0, 1, 2, "taken"]


@pytest.mark.parametrize("read_only", [False, True])
def test_opening_a_store_that_is_locked_for_readers_too_is_busy(
    filled: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    monkeypatch.setattr(gate, "_LOOK_TIMEOUT_S", 0.1)
    with closing(connect(filled)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE session SET hold = 1")
        other.execute("COMMIT")
        with pytest.raises(StoreBusy):
            EventStore.open(filled, busy_timeout_ms=100, read_only=read_only)


FILLERS: dict[str, Call] = {
    "append": lambda store, file: store.append("s", "note", "x" * 500_000),
    "append_many": lambda store, file: store.append_many("s", [NewEvent(type="note", payload="x" * 50_000)] * 10),
    "create_session": lambda store, file: store.create_session("other", metadata={"text": "x" * 50_000}),
    "update_session": lambda store, file: store.update_session("s", metadata={"text": "x" * 50_000}),
}


def limit_pages(store: EventStore, count: int) -> None:
    store._db.writer.driver.execute(f"PRAGMA max_page_count = {count}").fetchall()


@pytest.mark.parametrize("call", FILLERS.values(), ids=list(FILLERS))
def test_a_full_store_says_so_and_works_on_once_there_is_room(filled: Path, open_store: OpenStore, call: Call) -> None:
    store = open_store(filled)
    limit_pages(store, 1)  # SQLite takes that as: the pages that there are
    with pytest.raises(StoreFull):
        call(store, filled)
    assert [event.payload for event in store.read("s").events] == [0, 1, 2]
    limit_pages(store, 1_000_000)
    call(store, filled)
    assert store.append("s", "note", "more").seq == store.get_session("s").last_seq


def test_an_import_into_a_full_store_says_so(filled: Path, open_store: OpenStore, state_file: Path) -> None:
    state = json.loads(state_file.read_text())
    state["sessions"][0]["transcript"] = "x" * 50_000
    state_file.write_text(json.dumps(state))
    store = open_store(filled)
    limit_pages(store, 1)
    with pytest.raises(StoreFull):
        store.import_aegis(state_file)
    limit_pages(store, 1_000_000)
    assert store.import_aegis(state_file).sessions_added == 1


@pytest.mark.parametrize("call", METHODS.values(), ids=list(METHODS))
def test_a_store_whose_tables_were_dropped_raises_errors_of_this_package(
    filled: Path, open_store: OpenStore, state_file: Path, call: Call
) -> None:
    store = open_store(filled)
    with closing(connect(filled)) as shell:
        for table in ("event", "session", "store"):
            shell.execute(f"DROP TABLE {table}")
    with pytest.raises(AegisStoreError):
        call(store, state_file)


@pytest.mark.parametrize("name", ["append", "append_many", "read", "read_all", "get_session", "list_sessions", "stats"])
def test_a_store_without_its_table_of_events_raises_errors_of_this_package(
    filled: Path, open_store: OpenStore, state_file: Path, name: str
) -> None:
    store = open_store(filled)
    with closing(connect(filled)) as shell:
        shell.execute("DROP TABLE event")
    with pytest.raises(AegisStoreError):
        METHODS[name](store, state_file)


def test_a_payload_that_a_shell_made_unreadable_is_damage(filled: Path, open_store: OpenStore) -> None:
    store = open_store(filled)
    with closing(connect(filled)) as shell:
        shell.execute("DROP TRIGGER event_guards_update")
        shell.execute("UPDATE event SET payload = '{' WHERE seq = 2")
    with pytest.raises(StoreCorrupt, match="event 2"):
        store.read("s")


def test_an_event_that_a_shell_removed_from_the_middle_is_damage(filled: Path, open_store: OpenStore) -> None:
    store = open_store(filled)
    with closing(connect(filled)) as shell:
        shell.execute("DROP TRIGGER event_guards_delete")
        shell.execute("DELETE FROM event WHERE seq = 2")
    with pytest.raises(StoreCorrupt):
        store.read("s")


def test_text_that_is_not_utf_8_is_damage(filled: Path, open_store: OpenStore) -> None:
    store = open_store(filled)
    with closing(connect(filled)) as shell:
        shell.execute("DROP TRIGGER event_guards_update")
        shell.execute("UPDATE event SET type = CAST(x'ff' AS TEXT) WHERE seq = 2")
    with pytest.raises(StoreCorrupt):
        store.read("s")


# The startup job


def test_opening_prunes_unless_told_otherwise(filled: Path) -> None:
    with EventStore.open(filled) as store:
        store.set_status("s", "completed")
    with EventStore.open(filled, prune_on_open=False) as store:
        assert store.get_session("s").event_count == 3
    with EventStore.open(filled) as store:
        assert store.get_session("s").event_count == 0


def test_a_startup_job_that_fails_closes_the_store(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(store: EventStore) -> None:
        raise StoreCorrupt(store="s", detail="for the test")

    monkeypatch.setattr(EventStore, "_prune_at_start", fail)
    with pytest.raises(StoreCorrupt):
        EventStore.open(filled)
    assert not filled.with_name("aegis.db-wal").exists()


def test_a_busy_store_opens_and_its_startup_job_is_put_off(
    filled: Path, shell: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with EventStore.open(filled) as store:
        store.set_status("s", "completed")
    shell.execute("BEGIN IMMEDIATE")
    with EventStore.open(filled, busy_timeout_ms=50) as store:
        assert store.get_session("s").event_count == 3
    assert "put off" in caplog.text


def test_what_was_compiled_for_one_store_serves_the_next(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy takes longer to compile a statement than SQLite to carry it out."""
    compiled: list[object] = []
    compile_statement = SQLiteCompiler.__init__

    def compile_and_count(self: SQLiteCompiler, dialect: object, statement: object, *more: Any, **options: Any) -> None:
        compiled.append(statement)
        compile_statement(self, dialect, statement, *more, **options)  # type: ignore[arg-type]

    def use(name: str) -> int:
        with closing(open_store()) as store:
            store.create_session(name)
            store.append(name, "t", 1)
            assert store.read(name).last_seq == 1
        return len(compiled)

    use("first")
    monkeypatch.setattr(SQLiteCompiler, "__init__", compile_and_count)
    assert use("second") == 0
