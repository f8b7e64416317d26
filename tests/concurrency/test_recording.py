"""Agents that record at the same moment, and some that are killed at it: every event is there once."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from aegis_store import EventStore, driver, recording
from aegis_store.cli import main
from aegis_store.spool import Spool
from aegis_store.target import Target

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and kills")

SESSIONS = 5
PROCESSES = 200
COMMAND = (sys.executable, "-c", "from aegis_store.cli import main; main()")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def hook(number: int) -> bytes:
    sent = {"session_id": f"s{number % SESSIONS}", "hook_event_name": "PostToolUse", "number": number}
    return json.dumps(sent).encode()


def call(arguments: tuple[str, ...], sent: bytes, state: Path) -> None:
    """What is between a shell and `main`, in a process that was just forked."""
    os.environ["XDG_STATE_HOME"] = str(state)
    reading, writing = os.pipe()
    os.write(writing, sent)
    os.close(writing)
    os.dup2(reading, 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.argv = ["aegis-store", *arguments]
    main()


class Callers:
    """Starts commands as processes of their own."""

    def __init__(self, context: ForkServerContext, path: Path, state: Path) -> None:
        self._context = context
        self._path = path
        self._state = state

    def record(self, number: int, *options: str) -> BaseProcess:
        return self._started(("record", "--lenient", *options, "--db", str(self._path)), hook(number))

    def flush(self) -> BaseProcess:
        return self._started(("spool", "flush", "--db", str(self._path)), b"")

    def _started(self, arguments: tuple[str, ...], sent: bytes) -> BaseProcess:
        process = self._context.Process(target=call, args=(arguments, sent, self._state))
        process.start()
        return process


@pytest.fixture
def callers(context: ForkServerContext, path: Path, state: Path) -> Callers:
    return Callers(context, path, state)


def numbers(path: Path) -> "Counter[int]":
    """How often the event of each number is there."""
    with EventStore.open(path, prune_on_open=False) as store:
        return Counter(event.payload["number"] for event in store.read_all(limit=1000))


def flush(path: Path) -> None:
    assert recording.flush(Target.of(path), busy_timeout_ms=10_000).rejected == []
    assert Spool(Target.of(path)).waiting() == []


def ended(processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@pytest.mark.torture
def test_of_200_processes_at_once_every_event_is_there_once(callers: Callers, path: Path) -> None:
    assert set(ended([callers.record(number) for number in range(PROCESSES)])) == {0}
    flush(path)
    assert numbers(path) == Counter(range(PROCESSES))


def test_of_200_processes_with_the_store_locked_for_2_s_in_the_middle_every_event_is_there_once(
    callers: Callers, path: Path
) -> None:
    half = [callers.record(number) for number in range(PROCESSES // 2)]
    with closing(driver.dbapi.connect(str(path), isolation_level=None, timeout=60)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        rest = [callers.record(number, "--busy-timeout", "0.2") for number in range(PROCESSES // 2, PROCESSES)]
        time.sleep(2)
        waiting = len(Spool(Target.of(path)).waiting())
    assert set(ended(half + rest)) == {0}
    assert waiting > PROCESSES // 10  # so many had come to the point at least
    flush(path)
    assert numbers(path) == Counter(range(PROCESSES))


def test_events_of_calls_that_follow_each_other_are_in_order_although_the_store_is_busy_now_and_then(
    callers: Callers, path: Path
) -> None:
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
        for number in range(0, 12 * SESSIONS, SESSIONS):  # one session
            if number % 3 == 0:
                connection.execute("BEGIN IMMEDIATE")
            assert ended([callers.record(number, "--busy-timeout", "0.05")]) == [0]
            if number % 3 == 0:
                connection.execute("ROLLBACK")
    flush(path)
    assert list(numbers(path)) == list(range(0, 12 * SESSIONS, SESSIONS))


def kill_some(callers: Callers, path: Path, chance: random.Random, rounds: int) -> None:
    """In each round some record and some flush, beside a writer that holds the store now and then; many are killed."""
    acknowledged: set[int] = set()
    number = 0
    with closing(driver.dbapi.connect(str(path), isolation_level=None, timeout=60)) as connection:
        for _ in range(rounds):
            holds = chance.random() < 0.5
            if holds:
                connection.execute("BEGIN IMMEDIATE")
            recording_ = {number + each: callers.record(number + each, "--busy-timeout", "0.02") for each in range(6)}
            number += 6
            flushing = [callers.flush() for _ in range(2)]
            time.sleep(chance.uniform(0, 0.15))
            if holds:
                connection.execute("ROLLBACK")
            for process in chance.sample([*recording_.values(), *flushing], 4):
                time.sleep(chance.uniform(0, 0.03))
                process.kill()
            ended(flushing)
            assert set(ended(list(recording_.values()))) <= {0, -9}
            acknowledged |= {each for each, process in recording_.items() if process.exitcode == 0}
    flush(path)
    found = numbers(path)
    assert set(found.values()) <= {1}
    assert acknowledged <= set(found) <= set(range(number))
    assert acknowledged


def test_whoever_is_killed_when_what_was_acknowledged_is_there_once(
    callers: Callers, path: Path, chance: random.Random
) -> None:
    kill_some(callers, path, chance, rounds=12)


@pytest.mark.torture
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("run", range(10))
def test_whoever_is_killed_when_many_times(callers: Callers, path: Path, chance: random.Random, run: int) -> None:
    kill_some(callers, path, chance, rounds=150)


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_of_200_interpreters_at_once_on_a_store_that_is_new_every_event_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    command = [*COMMAND, "record", "--lenient", "--db", str(path)]
    started = []
    for number in range(PROCESSES):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(hook(number))
        process.stdin.close()
        started.append(process)
        if number == PROCESSES // 2 and path.exists():
            with closing(driver.dbapi.connect(str(path), isolation_level=None, timeout=60)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                time.sleep(2)
    for process in started:
        assert process.stdout is not None
        assert (process.stdout.read(), process.wait()) == (b"", 0)
        process.stdout.close()
    flush(path)
    assert numbers(path) == Counter(range(PROCESSES))
