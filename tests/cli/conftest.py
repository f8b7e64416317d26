"""Running the command line as a user does: as a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aegis_store.cli import main
from tests.forked import Command

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A command that was run in this very process leaves it deaf to Ctrl-C, and so would be its children."""
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in heard.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `aegis-store` in this test's directory, without a terminal, and gives what came of it."""

    def run_one(*arguments: str, stdin: bytes | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if name not in ("AEGIS_STORE_URL", "COLUMNS")}
        given = {**inherited, "PYTHONIOENCODING": "utf-8", **environment}
        return Command(main, ("aegis-store", *arguments), directory=tmp_path, environment=given, stdin=stdin).ended()

    return run_one
