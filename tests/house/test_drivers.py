"""The suite passes on either driver: what touches SQLite runs once more here, on the one that it did not run on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_store import driver

TOP = Path(__file__).resolve().parents[2]


# What goes through the driver in ways of its own: statements and errors, locks, threads, forks, kills, checkpoints. The rest
# tests what the library makes of that, or runs in processes that choose their own driver.
PARTS = (
    *("tests/test_append.py", "tests/test_read.py", "tests/test_open.py", "tests/test_shell.py", "tests/test_mended.py"),
    *(
        "tests/test_old_design.py",
        "tests/test_follow.py",
        "tests/test_aio.py",
        "tests/test_checkpointer.py",
        "tests/cli/test_reclaim.py",
    ),
    *("tests/concurrency", "tests/crash/test_kill.py", "--ignore=tests/concurrency/test_processes.py"),
    "--ignore=tests/concurrency/test_recording.py",
    "tests/properties/test_state_machine.py::test_a_store_is_what_a_list_would_be[async-short]",
)

# What hurts the file, the disk or the process; minutes, in the sizes that run by default.
UNDER_FIRE = (
    *("tests/test_damage.py", "tests/test_compact.py", "tests/test_reclaim.py"),
    *("tests/faults", "tests/crash/test_power_cut.py"),
)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("parts", [PARTS, pytest.param(UNDER_FIRE, marks=pytest.mark.torture)], ids=["parts", "under fire"])
def test_the_suite_passes_on_the_other_driver_too(parts: tuple[str, ...]) -> None:
    pytest.importorskip("pysqlite3", reason="there is one driver only on this platform")
    other = "sqlite3" if driver.dbapi.__name__.startswith("pysqlite3") else "pysqlite3"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider", *parts],
        cwd=TOP,
        env={**inherited, driver.DRIVER_VARIABLE: other},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
