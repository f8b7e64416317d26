"""Who reads a store, and how old what he sees is: from the -shm file of SQLite's write-ahead log, and the locks on it.

The format of that file is documented (sqlite.org/walformat.html). For Linux: elsewhere the kernel tells of locks in other ways.
"""

import os
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LAST_FRAME_AT: Final = 16
_BROUGHT_IN_AT: Final = 96
_MARKS_AT: Final = 100
_MARKS: Final = 5
_LOCKS_AT: Final = 123
_FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux


class Reader(NamedTuple):
    """A process with a snapshot, and how many pages of the log are newer than what it sees."""

    pid: int
    pages_behind: int


def readers(shared_memory: Path) -> list[Reader] | None:
    """Those at work now; None if that cannot be known here.

    Opens and closes the file, which drops all locks that this process has on it: not for one that has the store open.
    """
    if fcntl is None or sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    try:
        descriptor = os.open(shared_memory, os.O_RDONLY)
    except FileNotFoundError:
        return []
    except OSError:
        return None
    try:
        head = os.pread(descriptor, _MARKS_AT + 4 * _MARKS, 0)
        if len(head) < _MARKS_AT + 4 * _MARKS:
            return []
        (last,) = struct.unpack_from("=I", head, _LAST_FRAME_AT)
        (brought_in,) = struct.unpack_from("=I", head, _BROUGHT_IN_AT)
        marks = struct.unpack_from(f"={_MARKS}I", head, _MARKS_AT)
        holders = [_holder(descriptor, _LOCKS_AT + number) for number in range(_MARKS)]
    except OSError:
        return None
    finally:
        os.close(descriptor)
    # Mark 0 is that of readers who need nothing of the log: as long as one reads, nothing more of it is brought into the file.
    return [
        Reader(pid, max(last - (mark if number else brought_in), 0))
        for number, (mark, pid) in enumerate(zip(marks, holders, strict=True))
        if pid
    ]


def _holder(descriptor: int, byte: int) -> int:
    """The process that has a lock on that byte, 0 if none has."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)
