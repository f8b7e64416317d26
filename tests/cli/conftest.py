"""Running the command line as a user does: as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `aegis-store` in this test's directory, with its output in pipes, and gives what came of it."""

    def run_one(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if name not in ("AEGIS_STORE_URL", "COLUMNS")}
        return subprocess.run(
            [sys.executable, "-c", "from aegis_store.cli import main; main()", *arguments],
            cwd=tmp_path,
            env={**inherited, "PYTHONIOENCODING": "utf-8", **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )

    return run_one
