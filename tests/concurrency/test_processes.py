"""Many processes, threads and store objects on one file: nobody fails, nothing is lost, nothing comes twice."""

import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    AegisStoreError,
    Event,
    EventStore,
    RetentionPolicy,
    SequenceConflict,
    SessionExists,
    driver,
    gate,
)
from aegis_store.target import Target

PROCESSES = 8
WRITERS = 4
APPENDS = pytest.mark.parametrize("appends", [400, pytest.param(5000, marks=pytest.mark.torture)])
OPENINGS = pytest.mark.parametrize("openings", [4, pytest.param(50, marks=pytest.mark.torture)])
WAIT_S = 120.0

OpenStore = Callable[..., EventStore]


class Team:
    """Processes that stand ready, each started once: `start` gives each of the first few the same task."""

    def __init__(self, context: ForkServerContext, size: int) -> None:
        self._barrier = context.Barrier(size)
        self._lines = []
        self._processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._barrier), daemon=True)
            process.start()
            theirs.close()
            self._lines.append(ours)
            self._processes.append(process)

    def start(self, task: Callable[..., Any], *arguments: Any, workers: int = PROCESSES) -> Callable[[], list[Any]]:
        """Each worker calls `task(number, barrier, *arguments)`; calling what this returns waits for all the results."""
        lines = self._lines[:workers]
        for number, line in enumerate(lines):
            line.send((task, number, arguments))

        def results() -> list[Any]:
            assert all(line.poll(WAIT_S) for line in lines), "a process does not answer"
            answers = [line.recv() for line in lines]
            assert [error for error, _ in answers if error] == []
            return [value for _, value in answers]

        return results

    def run(self, task: Callable[..., Any], *arguments: Any, workers: int = PROCESSES) -> list[Any]:
        return self.start(task, *arguments, workers=workers)()

    def stop(self) -> None:
        for line, process in zip(self._lines, self._processes, strict=True):
            line.close()
            process.join(WAIT_S)
            process.close()


def _serve(line: Connection, barrier: Barrier) -> None:
    with suppress(EOFError):
        while True:
            task, number, arguments = line.recv()
            try:
                line.send(("", task(number, barrier, *arguments)))
            except Exception as error:  # noqa: BLE001 - it fails the test in the other process
                line.send((f"process {number}: {error!r}", None))


@pytest.fixture(scope="module")
def team(context: ForkServerContext) -> Iterator[Team]:
    team = Team(context, PROCESSES)
    yield team
    team.stop()


def integrity(path: Path) -> tuple[list[Any], list[Any]]:
    with closing(driver.dbapi.connect(str(path))) as connection:
        broken = connection.execute("PRAGMA foreign_key_check").fetchall()
        return connection.execute("PRAGMA integrity_check").fetchall(), broken


SOUND: tuple[list[Any], list[Any]] = ([("ok",)], [])


def all_events(store: EventStore, session_id: str) -> list[Event]:
    events: list[Event] = []
    while True:
        page = store.read(session_id, after_seq=events[-1].seq if events else None, limit=1000)
        events += page.events
        if not page.has_more:
            return events


def assert_contiguous(store: EventStore, session_id: str) -> list[Event]:
    """The session's events: one range up to `last_seq`, in the order in which each writer wrote."""
    session, events = store.get_session(session_id), all_events(store, session_id)
    assert [event.seq for event in events] == list(range(session.first_seq, session.last_seq + 1))
    assert [event.position for event in events] == sorted({event.position for event in events})
    for writer in {event.payload["writer"] for event in events}:
        indexes = [event.payload["index"] for event in events if event.payload["writer"] == writer]
        assert indexes == sorted(set(indexes))
    return events


def written(events: list[Event]) -> Counter[tuple[int, int]]:
    return Counter((event.payload["writer"], event.payload["index"]) for event in events)


# What the processes do


def open_new_stores(number: int, barrier: Barrier, directory: Path, rounds: int) -> None:
    for round_number in range(rounds):
        barrier.wait(WAIT_S)
        with EventStore.open(directory / str(round_number) / "aegis.db", durability="process") as store:
            store.create_session(f"s{number}")
            store.append(f"s{number}", "note", number)


def write(number: int, barrier: Barrier, path: Path, sessions: list[str], count: int) -> None:
    with EventStore.open(path, durability="process", prune_on_open=False) as store:
        for index in range(count):
            store.append(sessions[(index * 7 + number) % len(sessions)], "note", {"writer": number, "index": index})


def write_and_reopen(number: int, barrier: Barrier, path: Path, session_id: str, count: int) -> None:
    for index in range(count):
        with EventStore.open(path, durability="process") as store:
            store.append(session_id, "note", {"writer": number, "index": index})


def ensure(number: int, barrier: Barrier, path: Path, rounds: int) -> list[str]:
    with EventStore.open(path, durability="process") as store:
        made = []
        for round_number in range(rounds):
            barrier.wait(WAIT_S)
            made.append(store.ensure_session(f"s{round_number}").created_at.isoformat())
        return made


def create(number: int, barrier: Barrier, path: Path, rounds: int) -> list[bool]:
    with EventStore.open(path, durability="process") as store:
        won = []
        for round_number in range(rounds):
            barrier.wait(WAIT_S)
            try:
                store.create_session(f"s{round_number}")
                won.append(True)
            except SessionExists:
                won.append(False)
        return won


def append_same(number: int, barrier: Barrier, path: Path, rounds: int) -> list[int]:
    with EventStore.open(path, durability="process") as store:
        seqs = []
        for round_number in range(rounds):
            barrier.wait(WAIT_S)
            seqs.append(store.append("s", "note", {"a": round_number, "b": 1}, event_id=f"e{round_number}").seq)
        return seqs


def count_up(number: int, barrier: Barrier, path: Path, count: int) -> None:
    """Read the last number, append the next, and begin again when someone was faster."""
    with EventStore.open(path, durability="process") as store:
        done = 0
        while done < count:
            last_seq = store.get_session("s").last_seq
            with suppress(SequenceConflict):
                store.append("s", "note", last_seq + 1, expected_seq=last_seq)
                done += 1


def append_once(number: int, barrier: Barrier, path: Path) -> int:
    with EventStore.open(path, durability="process") as store:
        return store.append("s", "note", {"writer": 9, "index": store.get_session("s").last_seq}).seq


def last_seq(number: int, barrier: Barrier, path: Path) -> int:
    with EventStore.open(path, read_only=True) as store:
        assert_contiguous(store, "s")
        return store.get_session("s").last_seq


# Opening


@OPENINGS
def test_8_processes_that_open_the_same_new_path_at_once_all_get_the_same_store(
    team: Team, tmp_path: Path, openings: int
) -> None:
    team.run(open_new_stores, tmp_path, openings)
    for round_number in range(openings):
        directory = tmp_path / str(round_number)
        # Of connections that close at the same moment each may leave the side files to the other.
        assert {entry.name for entry in directory.iterdir()} <= {"aegis.db", "aegis.db-wal", "aegis.db-shm", "aegis.db-lock"}
        assert {stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()} == {0o600}
        with EventStore.open(directory / "aegis.db") as store:
            found = {event.session_id: (event.seq, event.payload) for event in store.read_all()}
        assert found == {f"s{number}": (1, number) for number in range(PROCESSES)}


def test_processes_may_open_and_close_a_store_for_each_append(team: Team, path: Path, open_store: OpenStore) -> None:
    open_store().create_session("s")
    team.run(write_and_reopen, path, "s", 25, workers=WRITERS)
    expected = {(number, index) for number in range(WRITERS) for index in range(25)}
    assert written(assert_contiguous(open_store(), "s")) == Counter(expected)
    assert integrity(path) == SOUND


# Appending


@APPENDS
def test_4_processes_lose_and_double_nothing_in_overlapping_sessions(
    team: Team, path: Path, open_store: OpenStore, appends: int
) -> None:
    sessions = [f"s{number}" for number in range(6)]
    store = open_store()
    store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
    for session_id in sessions:
        store.create_session(session_id)
    team.run(write, path, sessions, appends, workers=WRITERS)
    events = [event for session_id in sessions for event in assert_contiguous(store, session_id)]
    assert all(store.get_session(session_id).first_seq == 1 for session_id in sessions)
    assert written(events) == Counter({(number, index) for number in range(WRITERS) for index in range(appends)})
    assert len({event.position for event in events}) == WRITERS * appends
    assert integrity(path) == SOUND


@APPENDS
def test_4_processes_at_the_cap_leave_each_session_exactly_full(
    team: Team, path: Path, open_store: OpenStore, appends: int
) -> None:
    sessions = [f"s{number}" for number in range(3)]
    store = open_store()
    store.set_retention_policy(RetentionPolicy(max_events=100))
    for session_id in sessions:
        store.create_session(session_id)
    team.run(write, path, sessions, appends, workers=WRITERS)
    for session_id in sessions:
        assert len(assert_contiguous(store, session_id)) == 100
    assert sum(store.get_session(session_id).last_seq for session_id in sessions) == WRITERS * appends
    assert integrity(path) == SOUND


def test_an_event_id_that_8_processes_append_at_once_stands_once(team: Team, path: Path, open_store: OpenStore) -> None:
    open_store().create_session("s")
    seqs = team.run(append_same, path, 50)
    assert seqs == [list(range(1, 51))] * PROCESSES
    assert open_store().get_session("s").last_seq == 50


def test_of_appends_that_expect_the_same_seq_one_succeeds(team: Team, path: Path, open_store: OpenStore) -> None:
    open_store().create_session("s")
    team.run(count_up, path, 50, workers=WRITERS)
    assert [event.payload for event in all_events(open_store(), "s")] == list(range(1, WRITERS * 50 + 1))


def test_a_session_that_8_processes_ensure_at_once_is_one(team: Team, path: Path, open_store: OpenStore) -> None:
    made = team.run(ensure, path, 30)
    assert made == [made[0]] * PROCESSES
    assert sum(open_store().stats().sessions.values()) == 30


def test_of_8_processes_that_create_a_session_at_once_one_succeeds(team: Team, path: Path) -> None:
    won = team.run(create, path, 30)
    assert [sum(round_) for round_ in zip(*won, strict=True)] == [1] * 30


def test_8_threads_lose_and_double_nothing_on_one_store(store: EventStore) -> None:
    sessions = ["a", "b", "c"]
    errors: list[BaseException] = []
    for session_id in sessions:
        store.create_session(session_id)

    def work(number: int) -> None:
        try:
            for index in range(300):
                store.append(sessions[(index + number) % 3], "note", {"writer": number, "index": index})
        except AegisStoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    events = [event for session_id in sessions for event in assert_contiguous(store, session_id)]
    assert written(events) == Counter({(number, index) for number in range(8) for index in range(300)})


def test_threads_read_whole_pages_while_others_write(store: EventStore) -> None:
    store.create_session("s", max_events=50)
    done = threading.Event()
    wrong: list[object] = []

    def look() -> None:
        while not done.is_set():
            page = store.read("s", limit=1000)
            seqs = [event.seq for event in page.events]
            if seqs != list(range(page.first_seq, page.last_seq + 1)) or len(seqs) > 50:
                wrong.append(seqs)

    readers = [threading.Thread(target=look) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1000):
        store.append("s", "note", number)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert store.get_session("s").first_seq == 951


# Two store objects in one process (FACTS, trap 2: closing any descriptor of the file drops the locks of the process)


def test_a_store_works_on_while_another_object_of_its_process_opens_and_closes(
    team: Team, path: Path, open_store: OpenStore
) -> None:
    store = open_store()
    store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
    store.create_session("s")
    others = team.start(write, path, ["s"], 500, workers=2)
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with EventStore.open(path, durability="process") as passing:
                passing.get_session("s")

    passer = threading.Thread(target=come_and_go)
    passer.start()
    for index in range(500):
        store.append("s", "note", {"writer": 7, "index": index})
    stop.set()
    passer.join()
    others()
    expected = {(number, index) for number in (0, 1, 7) for index in range(500)}
    assert written(assert_contiguous(store, "s")) == Counter(expected)
    assert integrity(path) == SOUND


def open_and_close(path: Path) -> None:
    EventStore.open(path).close()


def open_and_close_reading(path: Path) -> None:
    EventStore.open(path, read_only=True).close()


def check(path: Path) -> None:
    gate.check(Target.of(path))


def import_itself(path: Path) -> None:
    with EventStore.open(path) as store, suppress(AegisStoreError):
        store.import_aegis(path)


def import_its_shared_memory(path: Path) -> None:
    with EventStore.open(path) as store, suppress(AegisStoreError):
        store.import_aegis(f"{path}-shm")


def import_into_another_store(path: Path) -> None:
    with EventStore.open(path.with_name("other.db")) as other, suppress(AegisStoreError):
        other.import_aegis(path)


def read_stats(path: Path) -> None:
    with EventStore.open(path) as store:
        store.stats()


def locks_held(path: Path) -> set[tuple[str, ...]]:
    """The locks that this process holds on the store, by the kernel's list; none to see where there is no such list."""
    inodes = {os.stat(path.with_name(path.name + suffix)).st_ino for suffix in ("", "-wal", "-shm")}
    kernel = Path("/proc/locks")
    held: set[tuple[str, ...]] = set()
    for _ in range(5):  # while others lock and unlock, one reading of the list may miss a line
        lines = [tuple(line.split()[1:]) for line in kernel.read_text().splitlines()] if kernel.exists() else []
        ours = [line for line in lines if line[0] == "POSIX" and line[3] == str(os.getpid())]
        held.update(line for line in ours if int(line[4].rpartition(":")[2]) in inodes)
    return held


ACTS = [
    open_and_close,
    open_and_close_reading,
    check,
    import_itself,
    import_its_shared_memory,
    import_into_another_store,
    read_stats,
]


@pytest.mark.parametrize("act", ACTS)
def test_the_kernel_keeps_the_locks_of_a_store_whatever_its_process_does_with_the_file(
    path: Path, open_store: OpenStore, act: Callable[[Path], None]
) -> None:
    store = open_store()
    store.create_session("s")
    before = locks_held(path)
    act(path)
    assert locks_held(path) == before


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel lists no locks here")
def test_a_file_that_is_opened_and_closed_beside_a_store_takes_its_locks_along(path: Path, open_store: OpenStore) -> None:
    """So the test above sees what it is there to see."""
    open_store().create_session("s")
    before = locks_held(path)
    path.read_bytes()
    assert len(locks_held(path)) < len(before)


@pytest.mark.parametrize("act", ACTS)
def test_a_store_and_other_processes_see_each_others_events_whatever_its_process_does_with_the_file(
    team: Team, path: Path, open_store: OpenStore, act: Callable[[Path], None]
) -> None:
    store = open_store()
    store.create_session("s")
    for index in range(3):
        store.append("s", "note", {"writer": 0, "index": index})
        wal = os.stat(f"{path}-wal").st_ino
        for _ in range(3):
            act(path)
        # Another process comes and goes. If our locks were gone, it would take itself for the last one and remove the WAL.
        [seq] = team.run(append_once, path, workers=1)
        assert seq == store.get_session("s").last_seq == 2 * index + 2
        assert os.stat(f"{path}-wal").st_ino == wal
    store.append("s", "note", {"writer": 0, "index": 99})
    assert team.run(last_seq, path, workers=1) == [7]
    assert integrity(path) == SOUND


def test_the_last_of_several_store_objects_that_closes_leaves_a_whole_store(path: Path) -> None:
    first, second = EventStore.open(path), EventStore.open(path)
    first.create_session("s")
    second.append("s", "note", {"writer": 0, "index": 0})
    first.close()
    second.append("s", "note", {"writer": 0, "index": 1})
    second.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["aegis.db"]
    with EventStore.open(path) as store:
        assert len(assert_contiguous(store, "s")) == 2


# Removing beside writers


def test_a_prune_beside_writers_takes_nothing_that_is_not_accounted_for(team: Team, path: Path, open_store: OpenStore) -> None:
    sessions = [f"s{number}" for number in range(4)]
    store = open_store()
    store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
    for session_id in sessions:
        store.create_session(session_id, status="closed")
    results = team.start(write, path, sessions, 500, workers=WRITERS)
    removed = 0
    while sum(store.get_session(session_id).last_seq for session_id in sessions) < WRITERS * 500:
        removed += store.prune().events_removed
    results()
    kept = sum(len(assert_contiguous(store, session_id)) for session_id in sessions)
    assert removed > 0
    assert removed + kept == WRITERS * 500
    assert sum(store.get_session(session_id).removed_events for session_id in sessions) == removed
    assert integrity(path) == SOUND


def test_a_policy_that_is_lowered_while_4_processes_write_is_exact_afterwards(
    team: Team, path: Path, open_store: OpenStore
) -> None:
    sessions = [f"s{number}" for number in range(3)]
    store = open_store()
    for session_id in sessions:
        store.create_session(session_id)
    results = team.start(write, path, sessions, 1000, workers=WRITERS)
    for cap in (400, 90, 1000, 37):
        while store.get_session("s0").last_seq < {400: 500, 90: 700, 1000: 900, 37: 1100}[cap]:
            store.get_session("s0")
        store.set_retention_policy(RetentionPolicy(max_events=cap))
        assert all(store.get_session(session_id).event_count <= cap for session_id in sessions)
    results()
    for session_id in sessions:
        assert len(assert_contiguous(store, session_id)) == 37
    assert sum(store.get_session(session_id).last_seq for session_id in sessions) == WRITERS * 1000
    assert integrity(path) == SOUND


def test_a_session_whose_own_cap_is_lowered_while_4_processes_write_is_exact_afterwards(
    team: Team, path: Path, open_store: OpenStore
) -> None:
    store = open_store()
    store.create_session("s", max_events=UNLIMITED)
    results = team.start(write, path, ["s"], 500, workers=WRITERS)
    for cap in (300, 20):
        while store.get_session("s").last_seq < 2 * cap:
            store.get_session("s")
        assert store.update_session("s", max_events=cap).event_count <= cap
    results()
    assert len(assert_contiguous(store, "s")) == 20
    assert store.get_session("s").last_seq == WRITERS * 500
