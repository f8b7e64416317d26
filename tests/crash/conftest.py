"""How often processes are killed: a few times by default, some hundred times at each activity under the marker `torture`."""

import random
import shutil
from collections.abc import Callable
from itertools import count
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.crash.activities import Activity
from tests.crash.checks import assert_lock_is_free
from tests.crash.harness import PROCESSES, run_and_kill
from tests.crash.stores import Stores

KILLS = 1
TORTURE_KILLS = 100

Crash = Callable[[Activity], None]


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"), template)


@pytest.fixture(
    params=[
        pytest.param(KILLS, id="a few"),
        pytest.param(TORTURE_KILLS, id="torture", marks=[pytest.mark.torture, pytest.mark.timeout(1800)]),
    ]
)
def kills(request: pytest.FixtureRequest) -> int:
    """How many processes are to be killed."""
    number: int = request.param
    return number


@pytest.fixture(params=[1, PROCESSES], ids=["alone", f"{PROCESSES} processes"])
def crash(
    request: pytest.FixtureRequest,
    context: ForkServerContext,
    chance: random.Random,
    stores: Stores,
    tmp_path: Path,
    kills: int,
    record_property: Callable[[str, object], None],
) -> Crash:
    """Kills processes at an activity, on a store of its own each time, and checks what is left."""

    def crash_at(activity: Activity) -> None:
        killed, rounds = 0, count()
        while killed < kills:
            path = tmp_path / str(next(rounds)) / "aegis.db"
            path.parent.mkdir()
            check = activity.given(path, stores, chance)
            aftermath = run_and_kill(context, chance, activity.tasks(request.param), path, activity.longest_s)
            assert_lock_is_free(path)
            check(aftermath)
            killed += aftermath.killed
            shutil.rmtree(path.parent)
        record_property("kills", killed)

    return crash_at


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many processes were killed in each test that passed."""
    kills = [
        (number, report.nodeid)
        for report in terminalreporter.getreports("passed")
        for name, number in report.user_properties
        if name == "kills" and isinstance(number, int)
    ]
    if kills:
        terminalreporter.section(f"{sum(number for number, _ in kills):,} processes were killed")
        for number, test in kills:
            terminalreporter.write_line(f"{number:6,}  {test.partition('::')[2]}")
