"""The suite passes on either driver: the rest of it runs once more here, on the one that it did not run on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_store import driver

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(1200)
def test_the_suite_passes_on_the_other_driver_too() -> None:
    pytest.importorskip("pysqlite3", reason="there is one driver only on this platform")
    other = "sqlite3" if driver.dbapi.__name__.startswith("pysqlite3") else "pysqlite3"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ignore=tests/house", "--ignore=tests/cli"],
        cwd=TOP,
        env={**os.environ, driver.DRIVER_VARIABLE: other},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
