"""What becomes of open stores in a forked child: they stay the parent's.

SQLite's connections must not be used, nor even closed, in a child: that could undo what the parent has under way.
"""

import ctypes
import os
import weakref
from typing import Final, Protocol


class Inherited(Protocol):
    def leave_to_parent(self) -> None:
        """Called in the child, which has one thread: give up what is the parent's without touching it."""


_watched: Final[weakref.WeakSet[Inherited]] = weakref.WeakSet()


def watch(inherited: Inherited) -> None:
    """Tell it when it finds itself in a forked child."""
    _watched.add(inherited)


def _in_child() -> None:
    for inherited in list(_watched):
        # Never freed, not even at the end of the child: freeing a connection closes it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
        inherited.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
