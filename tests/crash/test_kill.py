"""kill -9 at random moments: what was acknowledged is there, what was not is there as a whole or not at all."""

import json
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from aegis_store import UNLIMITED, Event, EventStore, NewEvent, RetentionPolicy, Session, driver
from tests.crash import writers

ROUNDS = 6
TORTURE_ROUNDS = 120
CAP = 20

Acknowledged = list[tuple[str, int, int]]
"""(session, seq, number) of events whose append returned, in order."""

torture = pytest.mark.torture
ROUNDS_OF = pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(TORTURE_ROUNDS, marks=torture)])


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Starts processes in milliseconds: each is a fork of one that has imported all and opened nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.crash.writers", "aegis_store.store", "alembic.command", "sqlalchemy.dialects.sqlite"]
    )
    return context


@pytest.fixture
def chance() -> random.Random:
    """A fresh seed each time; pytest shows it when the test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


def killed(
    context: ForkServerContext, chance: random.Random, longest_s: float, task: Callable[..., None], path: Path, *more: Any
) -> Acknowledged:
    """Run `task` and kill it at a random moment after it said that it is ready; what it acknowledged."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=task, args=(theirs, path, chance.randrange(2**32), *more), daemon=True)
    process.start()
    theirs.close()
    acknowledged: Acknowledged = []
    with closing(ours):
        assert ours.poll(60)
        assert ours.recv() == "ready"
        deadline = time.monotonic() + chance.uniform(0, longest_s)
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                if ours.poll(left_s):
                    acknowledged += ours.recv()
        except EOFError:
            pass  # it came to its end before
        process.kill()
        try:
            while True:
                acknowledged += ours.recv()
        except (EOFError, OSError):
            pass  # all that it said was read; the last word may be cut off
    process.join()
    assert process.exitcode in (-9, 0)
    process.close()
    return acknowledged


def all_events(store: EventStore, session_id: str) -> list[Event]:
    events: list[Event] = []
    while True:
        page = store.read(session_id, after_seq=events[-1].seq if events else None, limit=1000)
        events += page.events
        if not page.has_more:
            return events


def assert_sound(path: Path) -> None:
    """The file is whole, and what the sessions count is what the events are."""
    with closing(driver.dbapi.connect(str(path))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        counted = """
            SELECT session.session_id FROM session LEFT JOIN event ON event.session = session.id GROUP BY session.id
            HAVING count(event.seq) <> last_seq - first_seq + 1
                OR (count(event.seq) AND (min(event.seq) <> first_seq OR max(event.seq) <> last_seq))
                OR (count(event.seq) AND total_bytes <> min(bytes_before) + sum(length(CAST(payload AS BLOB))))
        """
        assert connection.execute(counted).fetchall() == []


def assert_kept(path: Path, acknowledged: Acknowledged, cap: int | None, most_unacknowledged: int) -> list[Session]:
    """Every acknowledged event is there, or went by the cap; nothing is there twice; the store takes the next append."""
    assert_sound(path)
    with EventStore.open(path, durability="process") as store:
        sessions = [store.get_session(session_id) for session_id in writers.SESSIONS]
        there = {session.session_id: all_events(store, session.session_id) for session in sessions}
        for session in sessions:
            assert session.first_seq == (max(1, session.last_seq - cap + 1) if cap else 1)
            assert store.append(session.session_id, "note", {"number": -1}).seq == session.last_seq + 1
    found = {(name, event.seq): event.payload["number"] for name, events in there.items() for event in events}
    first_seqs = {session.session_id: session.first_seq for session in sessions}
    for name, seq, number in acknowledged:
        assert found.get((name, seq)) == number or seq < first_seqs[name], f"{name} {seq} was acknowledged"
    numbers = list(found.values())
    assert len(set(numbers)) == len(numbers)
    unacknowledged = sum(session.last_seq for session in sessions) - len(acknowledged)
    assert 0 <= unacknowledged <= most_unacknowledged
    return sessions


def new_store(directory: Path, template: Path, cap: int | None) -> Path:
    directory.mkdir()
    path = directory / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path) as store:
        store.set_retention_policy(RetentionPolicy(max_events=cap or UNLIMITED))
        for session_id in writers.SESSIONS:
            store.create_session(session_id)
    return path


APPENDERS: dict[str, tuple[Callable[..., None], tuple[Any, ...], int | None, int]] = {
    "append, power": (writers.append, ("power",), None, 1),
    "append, process": (writers.append, ("process",), None, 1),
    "append, process, at the cap": (writers.append, ("process",), CAP, 1),
    "append_many": (writers.append_many, (), None, 30),
    "append_many, at the cap": (writers.append_many, (), CAP, 30),
}


@ROUNDS_OF
@pytest.mark.parametrize(("task", "more", "cap", "most_unacknowledged"), APPENDERS.values(), ids=list(APPENDERS))
def test_every_acknowledged_event_survives_the_death_of_its_writer(
    context: ForkServerContext,
    chance: random.Random,
    tmp_path: Path,
    template: Path,
    rounds: int,
    task: Callable[..., None],
    more: tuple[Any, ...],
    cap: int | None,
    most_unacknowledged: int,
) -> None:
    survived = 0
    for number in range(rounds):
        path = new_store(tmp_path / str(number), template, cap)
        acknowledged = killed(context, chance, 0.15, task, path, *more)
        assert_kept(path, acknowledged, cap, most_unacknowledged)
        survived += len(acknowledged)
    assert survived > 0


@ROUNDS_OF
def test_a_group_of_which_an_event_is_there_is_there_as_a_whole(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, template: Path, rounds: int
) -> None:
    groups = 0
    for number in range(rounds):
        path = new_store(tmp_path / str(number), template, None)
        killed(context, chance, 0.1, writers.append_many, path)
        with EventStore.open(path) as store:
            payloads = [event.payload for name in writers.SESSIONS for event in all_events(store, name)]
        found = Counter((payload["first"], payload["size"]) for payload in payloads)
        assert {group: count for group, count in found.items() if count != group[1]} == {}
        groups += len(found)
    assert groups > 0


@ROUNDS_OF
def test_a_store_survives_the_deaths_of_many_writers_one_after_the_other(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, template: Path, rounds: int
) -> None:
    path = new_store(tmp_path / "store", template, CAP)
    before = dict.fromkeys(writers.SESSIONS, 0)
    for _ in range(rounds):
        acknowledged = killed(context, chance, 0.1, writers.append, path, "process")
        assert_sound(path)
        with EventStore.open(path) as store:
            after = {name: store.get_session(name).last_seq for name in writers.SESSIONS}
        for name in writers.SESSIONS:
            seqs = [seq for found, seq, _ in acknowledged if found == name]
            assert seqs == list(range(before[name] + 1, before[name] + 1 + len(seqs)))
            assert after[name] - before[name] - len(seqs) in (0, 1)
        before = after


@ROUNDS_OF
def test_a_creation_that_is_killed_leaves_a_whole_store_or_none(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, rounds: int
) -> None:
    for number in range(rounds):
        path = tmp_path / str(number) / "aegis.db"
        killed(context, chance, 0.1, writers.create, path)
        if path.exists():
            assert_sound(path)
            EventStore.open(path, create=False).close()
        with EventStore.open(path) as store:
            assert store.create_session("s").last_seq == 0


@ROUNDS_OF
def test_what_killed_creations_left_is_swept_later(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, rounds: int
) -> None:
    for _ in range(rounds):
        killed(context, chance, 0.04, writers.create, tmp_path / "aegis.db")
        (tmp_path / "aegis.db").unlink(missing_ok=True)
    for orphan in tmp_path.iterdir():
        os.utime(orphan, (time.time() - 3600,) * 2)
    EventStore.open(tmp_path / "aegis.db").close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["aegis.db"]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A store of three sessions with 3,000 events each, which ended."""
    path = new_store(tmp_path_factory.mktemp("full") / "store", template, None)
    with EventStore.open(path, durability="process") as store:
        for session_id in writers.SESSIONS:
            store.append_many(
                session_id, [NewEvent(type="note", payload={"number": n, "text": "x" * 500}) for n in range(3000)]
            )
    return path


def copy_of(full: Path, directory: Path) -> Path:
    directory.mkdir()
    path = directory / "aegis.db"
    shutil.copyfile(full, path)
    return path


def assert_partly_removed(path: Path) -> list[int]:
    """Only the oldest went, and all that went is accounted for; how many are left in each session."""
    assert_sound(path)
    left = []
    with EventStore.open(path, prune_on_open=False) as store:
        for session_id in writers.SESSIONS:
            session, events = store.get_session(session_id), all_events(store, session_id)
            assert session.last_seq == 3000
            assert [event.payload["number"] for event in events] == list(range(session.first_seq - 1, 3000))
            assert session.removed_events == 3000 - len(events)
            assert (session.removed_at is None) == (len(events) == 3000)
            left.append(len(events))
    return left


@ROUNDS_OF
def test_a_startup_job_that_is_killed_is_finished_by_the_next(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, full: Path, rounds: int
) -> None:
    for number in range(rounds):
        path = copy_of(full, tmp_path / str(number))
        with EventStore.open(path) as store:
            for session_id in writers.SESSIONS:
                store.set_status(session_id, "closed")
        killed(context, chance, 0.1, writers.prune, path)
        assert_partly_removed(path)
        EventStore.open(path).close()
        assert assert_partly_removed(path) == [0, 0, 0]


@ROUNDS_OF
def test_a_lower_cap_is_in_force_with_its_bound_or_not_at_all(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, full: Path, rounds: int
) -> None:
    for number in range(rounds):
        path = copy_of(full, tmp_path / str(number))
        killed(context, chance, 0.1, writers.lower_the_cap, path)
        left = assert_partly_removed(path)
        with EventStore.open(path) as store:
            cap = store.retention_policy().max_events
            assert cap in (UNLIMITED, 10)
            assert left == [10, 10, 10] if cap == 10 else min(left) >= 10
            store.set_retention_policy(RetentionPolicy(max_events=10))
        assert assert_partly_removed(path) == [10, 10, 10]


def write_state(file: Path, sessions: int, events: int) -> None:
    scope = {"tenantId": "t", "ownerKeyId": "o"}
    time_text = "2026-05-23T06:03:43.248Z"
    names = [f"s{number}" for number in range(sessions)]
    state = {
        "version": 1,
        "sessions": [{"id": name, "status": "running", "createdAt": 1, "updatedAt": 1, **scope} for name in names],
        "events": [
            {"sessionId": name, "eventSeq": seq, "eventId": f"{name}:{seq}", "eventType": "hook", "payload": seq, **scope}
            | {"occurredAt": time_text, "ingestedAt": time_text}
            for seq in range(1, events + 1)
            for name in names
        ],
    }
    file.write_text(json.dumps(state))


@ROUNDS_OF
def test_an_import_that_is_killed_has_brought_in_whole_sessions_and_is_finished_by_the_next(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, template: Path, rounds: int
) -> None:
    for number in range(rounds):
        path = new_store(tmp_path / str(number), template, None)
        write_state(path.with_name("state.json"), sessions=40, events=30)
        killed(context, chance, 0.15, writers.bring_in, path)
        assert_sound(path)
        with EventStore.open(path) as store:
            there = [session for session in store.list_sessions().sessions if session.session_id not in writers.SESSIONS]
            assert all((session.first_seq, session.last_seq) == (1, 30) for session in there)
            report = store.import_aegis(path.with_name("state.json"))
            assert (report.sessions_added, report.sessions_unchanged) == (40 - len(there), len(there))
            assert [event.payload for event in all_events(store, "s7")] == list(range(1, 31))
