"""Commands in processes of their own: forks of one that has imported all, since an interpreter takes longer to start than most
of them to run. That they run from an interpreter of their own, too, a few tests see to.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

_OUTPUTS = ("stdout", "stderr")


@cache
def context() -> ForkServerContext:
    """Starts processes in milliseconds. One serves all tests of a run, whichever asks first."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(
        [
            *("tests.crash.writers", "tests.crash.removers", "tests.forked"),
            *("aegis_store.aio", "aegis_store.cli.app", "alembic.config", "sqlalchemy.dialects.sqlite", "rich.console"),
            *("aegis_store.recording", "aegis_store.cli.terminal", "rich.table", "rich.progress"),
            *("pydantic.type_adapter", "pydantic.types"),  # typer imports them where it finds them
        ]
    )
    return made


class Command:
    """A command that has been started."""

    def __init__(
        self,
        main: Callable[[], object],
        words: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        stdin: bytes | None = None,
    ) -> None:
        self._words = tuple(words)
        self._directory = tempfile.TemporaryDirectory()
        outputs = Path(self._directory.name)
        if stdin is not None:
            (outputs / "stdin").write_bytes(stdin)
        self._process = context().Process(target=_run, args=(main, self._words, directory, dict(environment), outputs))
        self._process.start()

    def ended(self) -> "subprocess.CompletedProcess[str]":
        """What came of it, once it has ended. To be called once."""
        self._process.join(270)  # the demo takes 6 s of CPU, on a machine that may have ten other things to do
        assert self._process.exitcode is not None, "the command does not end"
        with self._directory as outputs:
            said = [(Path(outputs) / name).read_text(encoding="utf-8") for name in _OUTPUTS]
        return subprocess.CompletedProcess(self._words, self._process.exitcode, *said)


def _run(
    main: Callable[[], object], words: tuple[str, ...], directory: Path, environment: dict[str, str], outputs: Path
) -> None:
    """What is between a shell and `main`, in a process that was just forked."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if (outputs / "stdin").exists():
        os.dup2(os.open(outputs / "stdin", os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    for descriptor, name in enumerate(_OUTPUTS, 1):
        os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        setattr(sys, name, open(descriptor, "w", encoding=encoding, closefd=False))  # noqa: SIM115
    sys.argv = list(words)
    main()
