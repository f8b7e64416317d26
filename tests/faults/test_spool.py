"""A disk that is full, and one that fails: what `record --lenient` could not write to the store is kept and comes in later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_store import EventStore, recording
from aegis_store.spool import Spool
from aegis_store.target import Target
from tests.faults import injection
from tests.faults.injection import DIRECTORY_VARIABLE, MANNERS, Fault, Manner

_MISSING = injection.missing()

pytestmark = pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))

PROGRAM = """
import sys

from aegis_store.cli import app, main
from aegis_store import recording
from tests.faults.injection import Faults, Fault, Manner

Faults().arm({fault!r})
sys.argv = ["aegis-store", "record", "--lenient", "--db", {path!r}]
main()
"""

FULL = (Manner("write", 28, for_ever=True), Manner("create", 28, for_ever=True))
"""The disk is full: nothing is written, or not even a file made."""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return injection.built(tmp_path_factory.mktemp("shim"))


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory, on a disk of its own."""
    directory = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(directory))
    return directory


def record(path: Path, number: int, fault: Fault, shim: Path) -> str:
    """What is said on stderr when that call fails in the directory of the store."""
    sent = json.dumps({"session_id": "s", "hook_event_name": "Stop", "number": number}).encode()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(fault=fault, path=str(path))],
        input=sent,
        env={**os.environ, "LD_PRELOAD": str(shim), DIRECTORY_VARIABLE: str(path.parent)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    return done.stderr.decode()


def numbers(path: Path) -> list[int]:
    with EventStore.open(path, prune_on_open=False) as store:
        return [event.payload["number"] for event in store.read_all(limit=1000)]


@pytest.mark.parametrize("manner", FULL, ids=str)
def test_with_the_disk_full_for_a_while_every_event_comes_in_once_there_is_room(
    path: Path, state: Path, shim: Path, manner: Manner
) -> None:
    for number in range(3):
        said = record(path, number, Fault(manner, 1), shim)
        assert (str(state) in said, len(said.splitlines())) == (True, 1)
    assert recording.flush(Target.of(path), busy_timeout_ms=10_000).recorded == 3
    assert numbers(path) == [0, 1, 2]


def check_that_nothing_is_lost(path: Path, shim: Path, faults: list[Fault]) -> None:
    for number, fault in enumerate(faults):
        said = record(path, number, fault, shim)
        assert "lost" not in said, fault
        assert len(said.splitlines()) <= 1
    recording.flush(Target.of(path), busy_timeout_ms=10_000)
    assert Spool(Target.of(path)).waiting() == []
    assert sorted(numbers(path)) == list(range(len(faults)))


def test_whichever_system_call_fails_the_event_is_there_once(path: Path, shim: Path) -> None:
    kinds = ("write", "sync", "open", "create")
    check_that_nothing_is_lost(path, shim, [Fault(manner, 2) for manner in MANNERS if manner.kind in kinds][::2])


@pytest.mark.torture
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("manner", MANNERS, ids=str)
def test_whichever_system_call_fails_the_event_is_there_once_at_each_of_the_first(
    path: Path, shim: Path, manner: Manner
) -> None:
    check_that_nothing_is_lost(path, shim, [Fault(manner, nth) for nth in range(1, 40)])
