"""A lock on a file beside the store, which the kernel grants to processes in the order in which they asked.

It is a courtesy, not the protection: SQLite's own lock keeps writers apart, but who waits for that has to look again and
again, and may starve beside busy writers. Where this lock is not to be had (Windows, no permission, a file system without
locks) everybody gets it at once, and SQLite's alone decides.
"""

import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """One descriptor of its own, so that two of these exclude each other in one process too. Not for two threads at once."""

    def __init__(self, path: Path | None, *, mode: int) -> None:
        self._descriptor: int | None = None
        if path is None or fcntl is None:
            return
        with suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
            self._descriptor = os.open(path, flags, mode)

    def try_acquire(self) -> bool:
        """Whether it is ours now. False: another has it."""
        if self._descriptor is None:
            return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # not to be had on this file system
        return True

    def acquire(self) -> None:
        """Wait for it, however long that takes: for a thread that others do not depend on."""
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def release(self) -> None:
        """Give it back. Who does not have it does nothing."""
        if self._descriptor is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            except OSError:  # not to be had on this file system
                return

    def close(self) -> None:
        """Give it back for good, and the descriptor with it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
