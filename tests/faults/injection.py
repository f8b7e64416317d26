"""System calls that fail when they are told to: building and steering the shim `faults.c`."""

import ctypes
import errno
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DIRECTORY_VARIABLE: Final = "FAULTS_DIRECTORY"
"""Names the directory below which calls are counted and fail."""

# In the order of `enum kind` in faults.c.
KINDS: Final = (*("read", "write", "sync", "open", "create", "link", "rename", "unlink", "truncate", "map", "mkdir"),)


@dataclass(frozen=True, slots=True)
class Manner:
    """How a call fails: with `error`, once or `for_ever`; or half of it is done first, and only the next one fails, if any."""

    kind: str
    error: int
    for_ever: bool = False
    is_short: bool = False
    has_links: bool = True
    """Without links, files are renamed."""

    def __str__(self) -> str:
        said = errno.errorcode[self.error] if self.error else "nothing"
        return f"{self.kind} {'short, then ' if self.is_short else ''}{said}{' for ever' if self.for_ever else ''}"


MANNERS: Final = (
    Manner("read", errno.EIO),
    Manner("write", errno.EIO),
    Manner("write", errno.ENOSPC),
    Manner("write", errno.ENOSPC, for_ever=True),
    Manner("write", 0, is_short=True),
    Manner("write", errno.ENOSPC, for_ever=True, is_short=True),
    Manner("sync", errno.EIO),
    Manner("sync", errno.ENOSPC, for_ever=True),
    Manner("open", errno.EIO),
    Manner("open", errno.EMFILE, for_ever=True),
    Manner("create", errno.ENOSPC),
    Manner("create", errno.EROFS, for_ever=True),
    Manner("link", errno.ENOSPC),
    Manner("link", errno.EPERM, for_ever=True),  # so does a file system without links
    Manner("rename", errno.EIO, has_links=False),
    Manner("rename", errno.ENOSPC, for_ever=True, has_links=False),
    Manner("unlink", errno.EIO),
    Manner("unlink", errno.EACCES, for_ever=True),
    Manner("truncate", errno.EIO),
    Manner("map", errno.ENOMEM),
    Manner("mkdir", errno.ENOSPC),
    Manner("mkdir", errno.EACCES, for_ever=True),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One position: the `nth` call of its kind is the first to fail."""

    manner: Manner
    nth: int

    @property
    def kind(self) -> str:
        return self.manner.kind

    def __str__(self) -> str:
        return f"{self.manner} at {self.nth}"


def missing() -> str | None:
    """Why there can be no such faults on this system; None: there can."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "the shim is written for the GNU C library of Linux"
    return None if _compiler() else "there is no C compiler"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def built(directory: Path) -> Path:
    """The shim, compiled into `directory`."""
    shim = directory / "faults.so"
    source = Path(__file__).with_name("faults.c")
    compiler = _compiler()
    assert compiler
    command = [compiler, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return shim


class Faults:
    """The shim of this process, which was started with it in LD_PRELOAD."""

    def __init__(self) -> None:
        self._shim = ctypes.CDLL(None)
        self._shim.faults_disarm.restype = self._shim.faults_calls.restype = ctypes.c_long
        self._shim.faults_arm.argtypes = [ctypes.c_int, ctypes.c_long, *[ctypes.c_int] * 4]

    def arm(self, fault: Fault | None) -> None:
        """Count from now on, and let that call fail."""
        if fault is None:
            self._shim.faults_arm(-1, 0, 0, 0, 0, 0)
        else:
            how = fault.manner
            number = KINDS.index(how.kind)
            self._shim.faults_arm(number, fault.nth, how.error, how.for_ever, how.is_short, not how.has_links)

    def disarm(self) -> tuple[int, dict[str, int]]:
        """Let all be well again. How many calls failed, and how many of each kind there were."""
        fired = int(self._shim.faults_disarm())
        return fired, {kind: int(self._shim.faults_calls(number)) for number, kind in enumerate(KINDS)}
