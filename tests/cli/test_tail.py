"""The command `tail`, run as a user runs it."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from aegis_store import EventStore, NewEvent
from tests.cli.conftest import Run

HOSTILE = "\x1b[31mred\x07\u202e\ud83d end"
WAIT_S = 60

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def filled(path: Path) -> Path:
    with EventStore.open(path) as store:
        for name in ("run-1", "run-2"):
            store.create_session(name)
        for number in range(30):
            store.append("run-1", "hook", {"number": number, "text": HOSTILE})
            store.append("run-2", "日本語" * 20, {"text": "日本語" * 100})
    return path


@pytest.fixture
def start(filled: Path) -> Iterator[Start]:
    """Starts `aegis-store tail --follow …`, and ends it with the test."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str) -> "subprocess.Popen[str]":
        program = "from aegis_store.cli import main; main()"
        command = [sys.executable, "-c", program, "tail", "--follow", "--db", str(filled), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def lines(output: str) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def test_a_session_without_events_is_told_in_a_sentence(run: Run, filled: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.create_session("empty")
    assert run("tail", "empty", "--db", str(filled)).stdout == "The session holds no event.\n"
    assert run("tail", "empty", "-n", "0", "--db", str(filled)).stdout == ""


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def time_of_last(store: EventStore) -> list[str]:
    """The time of the last event of `run-1`, as it is printed."""
    return store.read("run-1", after_seq=30).events[-1].recorded_at.strftime("%Y-%m-%d %H:%M:%S").split()


def test_the_last_events_of_a_session_are_printed(run: Run, filled: Path) -> None:
    found = lines(run("tail", "run-1", "-n", "3", "--json", "--db", str(filled)).stdout)
    assert [(event["seq"], event["payload"]["number"]) for event in found] == [(28, 27), (29, 28), (30, 29)]


def test_without_a_session_the_last_events_of_the_store_are_printed_twenty_of_them(run: Run, filled: Path) -> None:
    found = lines(run("tail", "--json", "--db", str(filled)).stdout)
    assert [event["position"] for event in found] == list(range(41, 61))


@pytest.mark.parametrize("session", [(), ("run-1",), ("run-2",)])
def test_an_event_is_one_line_of_the_terminal(run: Run, filled: Path, session: tuple[str, ...]) -> None:
    for columns in (60, 80, 120):
        done = run("tail", *session, "-n", "4", "--db", str(filled), COLUMNS=str(columns))
        assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 4)
        assert max(map(cell_len, done.stdout.splitlines())) <= columns
        assert done.stdout.replace("\n", "").isprintable()
    assert " 30  " in done.stdout.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_with_follow_events_are_printed_as_they_come_until_ctrl_c(start: Start, filled: Path) -> None:
    process = start("-n", "1", "--json")
    assert json.loads(line_of(process))["position"] == 60
    with EventStore.open(filled) as store:
        for number in range(3):
            event = store.append("run-1", "hook", number)
            assert json.loads(line_of(process))["position"] == event.position  # out at once, although into a pipe
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, output, errors) == (130, "", "aegis-store: interrupted\n")


def test_with_follow_text_comes_as_lines_too(start: Start, filled: Path) -> None:
    process = start("run-1", "-n", "1")
    assert line_of(process).startswith("    30  ")
    with EventStore.open(filled) as store:
        store.append("run-1", "said", "hello")
        assert line_of(process).split() == ["31", *time_of_last(store), "said", '"hello"']


def test_what_was_removed_before_it_could_be_printed_is_told(start: Start, filled: Path) -> None:
    for session in ((), ("run-1",)):
        process = start("-n", "1", *session)
        assert line_of(process)
        with EventStore.open(filled) as store:
            store.update_session("run-1", max_events=2)
            store.append_many("run-1", [NewEvent(type="t", payload=number) for number in range(10)])
        assert process.stderr is not None
        assert "were removed" in process.stderr.readline()
        assert [line_of(process).split()[-1] for _ in range(2)] == ["8", "9"]


def test_a_pipe_that_closes_is_no_traceback(start: Start, filled: Path) -> None:
    process = start("run-1", "--json")
    assert line_of(process)
    assert process.stdout is not None
    process.stdout.close()
    with EventStore.open(filled) as store:
        store.append("run-1", "hook", 1)
    assert process.wait(WAIT_S) == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_session_that_does_not_exist_is_one_line(run: Run, filled: Path) -> None:
    done = run("tail", "nobody", "--db", str(filled))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
