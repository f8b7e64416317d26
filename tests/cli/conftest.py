"""Running the command line as a user does: as a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from aegis_store.cli import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]

OUTPUTS = ("stdout", "stderr")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A command that was run in this very process leaves it deaf to Ctrl-C, and so would be its children."""
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in heard.items():
        signal.signal(number, handler)


def _run(directory: Path, environment: Mapping[str, str], outputs: Path, arguments: tuple[str, ...]) -> None:
    """What is between a shell and `main`, in a process that was just forked."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if (outputs / "stdin").exists():
        os.dup2(os.open(outputs / "stdin", os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for descriptor, name in enumerate(OUTPUTS, 1):
        os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        setattr(sys, name, open(descriptor, "w", encoding=environment["PYTHONIOENCODING"], closefd=False))  # noqa: SIM115
    sys.argv = ["aegis-store", *arguments]
    main()


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, context: ForkServerContext) -> Run:
    """Runs `aegis-store` in this test's directory, without a terminal, and gives what came of it.

    A fork of a process that has imported all: an interpreter takes longer to start than most commands to run.
    """

    def run_one(*arguments: str, stdin: bytes | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if name not in ("AEGIS_STORE_URL", "COLUMNS")}
        given = {**inherited, "PYTHONIOENCODING": "utf-8", **environment}
        outputs = tmp_path_factory.mktemp("outputs")
        if stdin is not None:
            (outputs / "stdin").write_bytes(stdin)
        process = context.Process(target=_run, args=(tmp_path, given, outputs, arguments))
        process.start()
        process.join(270)  # the demo takes 6 s of CPU, on a machine that may have ten other things to do
        assert process.exitcode is not None, "the command does not end"
        said = [(outputs / name).read_text(encoding="utf-8") for name in OUTPUTS]
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)

    return run_one
