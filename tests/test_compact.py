"""Packing a store: smaller, with the same content, whole whenever it is killed, and nothing that waiters write is lost."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aegis_store import (
    UNLIMITED,
    EventStore,
    NewEvent,
    NotAnAegisStore,
    RetentionPolicy,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
    driver,
)
from aegis_store.retention import compact as compacting
from aegis_store.retention.compact import compact
from aegis_store.retention.reclaim import reclaim
from aegis_store.sqlite_errors import errors_of
from aegis_store.target import Target
from tests.crash.checks import assert_sound
from tests.crash.harness import Line, run_and_kill

SESSIONS = 12
EVENTS = 80
INTERRUPTS = 15


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def fill(store: EventStore, names: list[str], keep: int = EVENTS) -> None:
    """The newest `keep` of EVENTS events in each session, sessions taking turns as those of a running platform do."""
    store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
    for name in names:
        store.ensure_session(name)
    for number in range(EVENTS - keep, EVENTS):
        for name in names:
            store.append(name, "note", {"number": number, "text": "x" * 2400}, event_id=f"{name} {number}")


NAMES = [f"s{number}" for number in range(SESSIONS)]
ENDED = NAMES[1::3]
KEPT = [name for name in NAMES if name not in ENDED]


@pytest.fixture(scope="module")
def thin_template(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A store of which a third of the sessions, interleaved with the others, were pruned: its pages are a third empty."""
    path = tmp_path_factory.mktemp("thin") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process", prune_on_open=False) as store:
        fill(store, NAMES)
        for name in ENDED:
            store.set_status(name, "closed")
        store.prune()
    return path


@pytest.fixture
def thin(tmp_path: Path, thin_template: Path) -> Path:
    path = tmp_path / "aegis.db"
    shutil.copyfile(thin_template, path)
    return path


def content(path: Path) -> list[Any]:
    """All that a store holds, the schema with its triggers included."""
    with closing(driver.dbapi.connect(str(path))) as connection:
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
        tables = [name for kind, name, *_ in schema if kind == "table"]
        return [schema, *(connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables)]


def pragma(path: Path, name: str) -> Any:
    with closing(driver.dbapi.connect(str(path))) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def assert_left_as_it_was(path: Path, before: list[Any]) -> None:
    """Same content, in WAL mode, no other file in its directory, and it can be compacted."""
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert pragma(path, "journal_mode") == "wal"
    assert content(path) == before
    assert_sound(path)
    compact(Target.of(path))
    assert content(path) == before


# What comes of it


def test_interleaved_sessions_come_out_within_10_percent_of_a_fresh_store(thin: Path, tmp_path: Path) -> None:
    with EventStore.open(thin, prune_on_open=False) as store:
        reclaim(store._db)
    reclaimed = thin.stat().st_size
    report = compact(Target.of(thin))
    with EventStore.open(tmp_path / "fresh.db", durability="process") as fresh:
        fill(fresh, KEPT)
    assert thin.stat().st_size < 1.1 * (tmp_path / "fresh.db").stat().st_size < reclaimed
    assert (report.bytes_before, report.bytes_after) == (reclaimed, thin.stat().st_size)
    assert (report.sessions, report.events) == (SESSIONS, len(KEPT) * EVENTS)


def test_content_and_triggers_are_the_same(thin: Path) -> None:
    before = content(thin)
    compact(Target.of(thin))
    assert content(thin) == before
    assert sum(kind == "trigger" for kind, *_ in before[0]) > 5
    assert_sound(thin)


def test_the_settings_of_the_file_are_the_same_and_so_is_the_file(thin: Path) -> None:
    thin.chmod(0o640)
    names = ("page_size", "application_id", "user_version", "auto_vacuum", "journal_mode", "encoding")
    before, status = [pragma(thin, name) for name in names], thin.stat()
    compact(Target.of(thin))
    assert [pragma(thin, name) for name in names] == before
    assert (thin.stat().st_ino, stat.S_IMODE(thin.stat().st_mode)) == (status.st_ino, 0o640)
    assert [entry.name for entry in thin.parent.iterdir()] == [thin.name]


def test_the_guards_still_hold_a_shell(thin: Path) -> None:
    compact(Target.of(thin))
    with closing(driver.dbapi.connect(str(thin), isolation_level=None)) as shell:
        with pytest.raises(driver.dbapi.Error, match="aegis: events do not change"):
            shell.execute("UPDATE event SET type = 'other'")
        with pytest.raises(driver.dbapi.Error, match="aegis: events go from the oldest"):
            shell.execute("DELETE FROM event WHERE seq = 7")


def test_no_seq_and_no_position_is_used_again_even_when_the_last_events_are_gone(thin: Path) -> None:
    with EventStore.open(thin, prune_on_open=False) as store:
        last = store.append(ENDED[0], "note", 1)
        store.prune()
    compact(Target.of(thin))
    with EventStore.open(thin) as store:
        after = store.append(ENDED[0], "note", 2)
    assert (after.seq, after.position) == (last.seq + 1, last.position + 1)


def test_progress_rises_to_the_end(thin: Path) -> None:
    seen: list[tuple[int, int]] = []
    compact(Target.of(thin), on_progress=lambda done, size: seen.append((done, size)))
    assert seen == sorted(seen)
    assert len({size for _, size in seen}) == 1
    assert seen[-1][0] == seen[-1][1] > 0


def test_a_store_just_made_can_be_compacted_too(path: Path) -> None:
    before = content(path)
    report = compact(Target.of(path))
    assert (report.sessions, report.events) == (0, 0)
    assert_left_as_it_was(path, before)


@pytest.mark.parametrize("name", ["a b?c=d&e.db", "100%41 #1.db", 'it\'s "quoted".db', os.fsdecode(b"\xff\xfe.db"), "ü🚀.db"])
def test_the_name_of_the_file_does_not_matter(thin: Path, name: str) -> None:
    before, path = content(thin), thin.with_name(name)
    thin.rename(path)
    compact(Target.of(path))
    path.rename(thin)
    assert_left_as_it_was(thin, before)


def test_auto_vacuum_is_incremental_afterwards_whatever_it_was(thin: Path) -> None:
    with closing(driver.dbapi.connect(str(thin), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    assert pragma(thin, "auto_vacuum") == 0
    compact(Target.of(thin))
    assert (pragma(thin, "auto_vacuum"), pragma(thin, "journal_mode")) == (2, "wal")
    with EventStore.open(thin, prune_on_open=False) as store:
        for name in KEPT:
            store.set_status(name, "closed")
        store.prune()
        assert reclaim(store._db).pages_freed > 0
    assert_sound(thin)


def test_text_that_is_no_utf_8_is_kept_as_it_lies_in_the_file(thin: Path) -> None:
    with closing(driver.dbapi.connect(str(thin), isolation_level=None)) as shell:
        shell.execute("CREATE TABLE mine (text TEXT)")  # in a table of ours it would be damage
        shell.execute("INSERT INTO mine VALUES (CAST(x'ff00fe' AS TEXT))")
    compact(Target.of(thin))
    with closing(driver.dbapi.connect(str(thin))) as shell:
        found = shell.execute("SELECT hex(CAST(text AS BLOB)) FROM mine").fetchone()
    assert found == ("FF00FE",)


# Who is in the way


def test_a_store_that_this_process_has_open_is_refused(thin: Path) -> None:
    with EventStore.open(thin, prune_on_open=False) as store:
        with pytest.raises(StoreBusy, match=r"this process has it open.*close it here first; nothing was changed"):
            compact(Target.of(thin))
        assert store.append(NAMES[0], "note", 1).seq == EVENTS + 1
    compact(Target.of(thin))


HOLDER = """
import sys
from aegis_store import EventStore
with EventStore.open(sys.argv[1], prune_on_open=False, read_only=sys.argv[2] == "reader") as store:
    print(store.stats().events, flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "writer":
        print(store.append("s0", "note", 1).seq, flush=True)
"""


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_a_store_that_another_process_has_open_is_refused_and_that_process_goes_on(thin: Path, role: str) -> None:
    size = thin.stat().st_size
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(thin), role], **pipes) as holder:
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) == len(KEPT) * EVENTS
        with pytest.raises(StoreBusy, match=r"others have it open.*stop them first; nothing was changed"):
            compact(Target.of(thin))
        assert thin.stat().st_size == size
        output, _ = holder.communicate("\n")
    assert output == ("" if role == "reader" else f"{EVENTS + 1}\n")
    compact(Target.of(thin))
    assert_sound(thin)


SHELL = """
import importlib, sys
shell = importlib.import_module(sys.argv[2]).connect(sys.argv[1], timeout=60, isolation_level=None)
print("opened", flush=True)
for number in range(20):
    shell.execute('''
        INSERT INTO event (session, seq, bytes_before, type, payload, occurred_at, recorded_at)
        SELECT id, last_seq + 1, total_bytes, 'note', '"by hand"', 1, 1 FROM session WHERE session_id = 's0'
    ''')
    print("acknowledged", flush=True)
"""
WAITER = """
import sys
from aegis_store import EventStore
print("opened", flush=True)
with EventStore.open(sys.argv[1], busy_timeout_ms=60_000, prune_on_open=False) as store:
    for number in range(20):
        store.append("s2", "note", number)
        print("acknowledged", flush=True)
"""
DRIVERS = ["sqlite3", "pysqlite3.dbapi2"]


@pytest.mark.parametrize("module", DRIVERS)
def test_nothing_is_lost_of_those_who_wait_while_it_is_compacted(thin: Path, module: str) -> None:
    """One process has the file open already, and waits for its first lock; another opens the store."""
    pytest.importorskip(module)
    waiters: list[subprocess.Popen[str]] = []

    def come(done: int, size: int) -> None:
        if waiters or done < size / 3:
            return
        environment = {**os.environ, driver.DRIVER_VARIABLE: module.partition(".")[0]}
        for program in (SHELL, WAITER):
            command = [sys.executable, "-c", program, str(thin), module]
            waiters.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        for waiter in waiters:
            assert waiter.stdout is not None
            assert waiter.stdout.readline() == "opened\n"
        time.sleep(1.0)  # until both wait for their lock

    compact(Target.of(thin), on_progress=come)
    for waiter in waiters:
        output, _ = waiter.communicate(timeout=60)
        assert (output.count("acknowledged"), waiter.returncode) == (20, 0)
    with EventStore.open(thin, prune_on_open=False) as store:
        assert [store.get_session(name).last_seq for name in ("s0", "s2", "s3")] == [EVENTS + 20, EVENTS + 20, EVENTS]
    assert_sound(thin)


# What goes wrong


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_interrupted_at_any_stage_it_leaves_the_store_as_it_was(thin: Path, stage: int) -> None:
    before = content(thin)

    def interrupt(done: int, size: int) -> None:
        if done > size * stage / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact(Target.of(thin), on_progress=interrupt)
    assert_left_as_it_was(thin, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupts that fall into destructors
def test_interrupted_at_any_moment_it_ends_as_ctrl_c_and_nothing_else(thin: Path, chance: random.Random) -> None:
    before = content(thin)
    started_s = time.perf_counter()
    compact(Target.of(thin))
    took_s = time.perf_counter() - started_s
    handler, interrupts = signal.signal(signal.SIGALRM, signal.default_int_handler), 0
    try:
        for _ in range(INTERRUPTS):
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.001, took_s))
            try:
                compact(Target.of(thin))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert interrupts > 0
    assert content(thin) == before


def test_interrupted_amid_rows_it_lets_go_of_the_store_while_the_error_is_still_kept(
    thin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(thin)

    def interrupted(alone: Any, _store: str) -> None:
        with alone.read() as conn:
            rows = conn.exec_driver_sql("SELECT * FROM event").cursor
            rows.fetchone()
            raise KeyboardInterrupt

    monkeypatch.setattr(compacting, "refuse_damaged", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        compact(Target.of(thin))
    assert content(thin) == before
    assert kept.traceback


def test_ctrl_c_that_the_driver_dropped_is_ctrl_c_all_the_same() -> None:
    """It does so when Ctrl-C comes before the first line of a function that SQLite calls."""

    def interrupted() -> int:
        raise KeyboardInterrupt

    with closing(driver.dbapi.connect(":memory:")) as connection:
        connection.set_progress_handler(interrupted, 10)
        with pytest.raises(KeyboardInterrupt), errors_of("store"):
            connection.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")


@pytest.mark.parametrize("free_bytes", [[0], [2**40, 0]], ids=["for the copy", "for writing it back"])
def test_without_room_on_the_disk_it_says_how_much_is_needed(
    thin: Path, free_bytes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, left = content(thin), list(free_bytes)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2**40, 0, left.pop(0)))
    with pytest.raises(StoreFull, match=r"needs [\d,]{9,} bytes beside it, 0 are available"):
        compact(Target.of(thin))
    monkeypatch.undo()
    assert_left_as_it_was(thin, before)


def compact_with_small_files(line: Connection, path: Path, largest_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, resource.RLIM_INFINITY))
    try:
        compact(Target.of(path))
    except (StoreFull, StoreUnavailable) as error:
        line.send(str(error))
    line.close()


@pytest.mark.parametrize(("part", "where"), [(0.5, "in the copy"), (1.001, "in the log, which is larger than the copy")])
def test_a_disk_that_fills_up_in_the_middle_leaves_the_store_as_it_was(
    thin: Path, tmp_path: Path, part: float, where: str
) -> None:
    before = content(thin)
    (tmp_path / "other").mkdir()
    twin = shutil.copyfile(thin, tmp_path / "other" / "aegis.db")
    packed_bytes = compact(Target.of(twin)).bytes_after
    shutil.rmtree(tmp_path / "other")
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    task = multiprocessing.get_context("spawn").Process(
        target=compact_with_small_files, args=(theirs, thin, int(packed_bytes * part))
    )
    task.start()
    theirs.close()
    with closing(ours):
        assert ours.poll(60)
        assert ours.recv(), where
    task.join()
    task.close()
    assert_left_as_it_was(thin, before)


DAMAGE = {
    "a row differs": "UPDATE session SET metadata = '{\"a\":1}' WHERE id = 3",
    "a row is missing": "DELETE FROM sqlite_sequence WHERE name = 'event'",
    "a row is added": "INSERT INTO alembic_version VALUES ('9999')",
    "a trigger is missing": "DROP TRIGGER event_guards_update",
    "a setting differs": "PRAGMA application_id = 7",
    "auto_vacuum is off": "PRAGMA auto_vacuum = NONE; VACUUM",
}


@pytest.mark.parametrize("sql", DAMAGE.values(), ids=list(DAMAGE))
def test_a_copy_that_is_not_equal_is_never_written_back(thin: Path, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, copied = content(thin), compacting._copy

    def copied_badly(original: Any, draft: Target, *more: Any) -> None:
        copied(original, draft, *more)
        with closing(driver.dbapi.connect(str(draft), isolation_level=None)) as connection:
            connection.executescript(sql)

    monkeypatch.setattr(compacting, "_copy", copied_badly)
    with pytest.raises(StoreUnavailable, match="did not come out equal"):
        compact(Target.of(thin))
    monkeypatch.undo()
    assert_left_as_it_was(thin, before)


def test_a_copy_with_damage_is_never_written_back(thin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, copied = content(thin), compacting._copy

    def copied_badly(original: Any, draft: Target, *more: Any) -> None:
        copied(original, draft, *more)
        with draft.path.open("r+b") as file:  # nobody has the draft open
            file.seek(draft.path.stat().st_size // 2)
            file.write(b"damage" * 100)

    monkeypatch.setattr(compacting, "_copy", copied_badly)
    with pytest.raises((StoreUnavailable, StoreCorrupt)):
        compact(Target.of(thin))
    monkeypatch.undo()
    assert_left_as_it_was(thin, before)


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, by any means\n" * 100)
    with pytest.raises(NotAnAegisStore):
        compact(Target.of(text))
    with pytest.raises(StoreUnavailable, match="no such file"):
        compact(Target.of(tmp_path / "missing.db"))
    assert text.read_text().startswith("not a database")
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


# kill -9


def compact_up_to(stage: int, line: Line, path: Path) -> None:
    def say(done: int, size: int) -> None:
        if done > size * stage / 3:
            line.begin()
            time.sleep(60)

    compact(Target.of(path), on_progress=say)


def assert_whole(path: Path, before: list[Any]) -> None:
    """It opens as any store does, takes an append, and the next compaction tidies up."""
    with EventStore.open(path, durability="process", create=False, prune_on_open=False) as store:
        assert store.stats().events == len(KEPT) * EVENTS
    assert content(path) == before
    assert_sound(path)
    compact(Target.of(path))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert content(path) == before


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_killed_in_that_stage_it_leaves_a_whole_store_and_a_draft_that_the_next_removes(
    context: ForkServerContext, chance: random.Random, thin: Path, stage: int
) -> None:
    before = content(thin)
    run_and_kill(context, chance, [partial(compact_up_to, stage)], thin, 0)
    assert any(entry.name.startswith("aegis.db.0-") for entry in thin.parent.iterdir())
    assert_whole(thin, before)


def test_killed_after_the_commit_and_before_the_checkpoint_it_leaves_the_new_content(thin: Path) -> None:
    """What the next one finds is a log with the whole store in it, and no -shm file."""
    before = content(thin)
    program = (
        "import os, signal, sys\n"
        "from aegis_store.target import Target\n"
        "from aegis_store.retention import compact as compacting\n"
        "compacting._shape_of, shape_of = (lambda c: shape_of(c)), compacting._shape_of\n"
        "class Killing:\n"
        "    def __init__(self, connection): self.connection = connection\n"
        "    def execute(self, sql, *more):\n"
        "        if 'wal_checkpoint' in sql: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return self.connection.execute(sql, *more)\n"
        "class Copy:\n"
        "    def __init__(self, connection): self.connection = connection\n"
        "    def backup(self, to, **more): self.connection.backup(to.connection, **more)\n"
        "write_back = compacting._write_back\n"
        "compacting._write_back = lambda t, copy, original, p: write_back(t, Copy(copy), Killing(original), p)\n"
        "compacting.compact(Target.of(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(thin)], check=False)
    assert done.returncode == -9
    log = thin.with_name("aegis.db-wal")
    assert log.stat().st_size > 1_000_000
    assert not thin.with_name("aegis.db-shm").exists()
    assert_whole(thin, before)


def test_a_store_left_in_another_journal_mode_is_in_wal_mode_afterwards(thin: Path) -> None:
    with closing(sqlite3.connect(thin)) as shell:
        shell.execute("PRAGMA journal_mode = DELETE").fetchall()
    compact(Target.of(thin))
    assert pragma(thin, "journal_mode") == "wal"


def test_two_compactions_at_once_do_not_harm_each_other(thin: Path) -> None:
    before = content(thin)
    program = "import sys; from aegis_store.target import Target; from aegis_store.retention.compact import compact\n"
    command = [sys.executable, "-c", f"{program}compact(Target.of(sys.argv[1]))", str(thin)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate()[1] for process in running]
    assert all(not error or "StoreBusy" in error for error in errors)
    assert content(thin) == before
    assert_sound(thin)


def test_a_new_event_can_be_appended_at_once(thin: Path) -> None:
    compact(Target.of(thin))
    with EventStore.open(thin, prune_on_open=False) as store:
        store.append_many(NAMES[0], [NewEvent(type="note", payload=n) for n in range(5)], expected_seq=EVENTS)
    assert_sound(thin)
