"""What becomes of open stores when their process forks: they stay the parent's.

SQLite keeps, for each file that a process has open, what locks the process holds, and a child inherits these notes without
the locks. So a connection must not be used in a child, and a new one to the same file is only safe when no old one is left.
Therefore a fork waits until no thread is at work in an open store, and in the child all of its connections are closed at once:
idle ones, while the parent holds its locks, which leaves file and log alone. Where that cannot be had, they are never freed,
and the child is refused the store.
"""

import ctypes
import os
import time
import weakref
from pathlib import Path
from typing import Final, Protocol

from aegis_store.errors import StoreUnavailable

# So long a fork waits for the transactions and checkpoints under way, all in all.
_PAUSE_TIMEOUT_S: Final = 5.0


class Forkable(Protocol):
    @property
    def path(self) -> Path: ...

    def pause(self, deadline_s: float) -> bool:
        """Before the fork: keep all threads out of it, by that time of `time.monotonic()`. False: it could not be done."""

    def resume(self) -> None:
        """In the parent, if it was paused."""

    def leave_to_parent(self, *, is_idle: bool) -> None:
        """In the child: be closed, and say why to whoever tries to use it. Close the connections if they are idle."""


_watched: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()
_paused: Final[dict[Forkable, bool]] = {}
_lost: Final[set[Path]] = set()


def watch(forkable: Forkable) -> None:
    """Have it paused at forks."""
    _watched.add(forkable)


def refuse_if_lost(path: Path) -> None:
    """Raise `StoreUnavailable` for a store that was in use when this process was forked."""
    if path in _lost:
        raise StoreUnavailable(
            store=str(path),
            detail="the parent of this process was writing or reading in it at the moment of the fork, so that it is not safe "
            "to open here: fork before that, or start the process anew (multiprocessing: spawn)",
        )


def _before() -> None:
    deadline_s = time.monotonic() + _PAUSE_TIMEOUT_S
    for forkable in list(_watched):
        _paused[forkable] = forkable.pause(deadline_s)


def _in_parent() -> None:
    for forkable, is_paused in _paused.items():
        if is_paused:
            forkable.resume()
    _paused.clear()


def _in_child() -> None:
    for forkable, is_idle in _paused.items():
        if not is_idle:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(forkable))  # never freed: freeing a connection closes it
            _lost.add(forkable.path)
        forkable.leave_to_parent(is_idle=is_idle)
    _paused.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
