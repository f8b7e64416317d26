"""What a process does to the files of a directory, in order and with all data: `recorder.c` sees it, this reads its log."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pytest

SAID: Final = "said"
"""The file in which a process says what was acknowledged, so that it stands between its writes. No power cut takes it."""

_TOP: Final = Path(__file__).resolve().parents[2]
_HEAD: Final = struct.Struct("<c7xQqQQ")


class Record(NamedTuple):
    """One call. `number` is an offset, a size, or which sync. Names are relative to the directory."""

    kind: str
    inode: int
    number: int
    name: str
    new_name: str
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A directory as it was, with the inode of each file, and all that was done in it since."""

    directory: Path
    before: dict[str, tuple[int, bytes]]
    records: list[Record]

    def telling_moments(self) -> list[int]:
        """After how many records a sync begins, is under way or has ended, or something was said to be safe."""
        said = {record.inode for record in self.records if record.name == SAID}
        moments = set()
        for number, record in enumerate(self.records):
            if record.kind in "sS":
                moments |= {number, number + 1}
            elif record.kind == "w" and record.inode in said:
                moments.add(number + 1)
        return sorted(moments)


def compiled(directory: Path) -> Path:
    """The recorder, made for this machine. Skips the test where that cannot be."""
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        pytest.skip("power cuts are recorded on 64-bit Linux")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or _run(compiler, "-E", "-include", "sys/syscall.h", "-x", "c", os.devnull).returncode != 0:
        pytest.skip("recording power cuts takes a C compiler and the headers of the C library")
    library = directory / "recorder.so"
    done = _run(compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(Path(__file__).with_name("recorder.c")))
    assert done.returncode == 0, done.stderr
    return library


def record(recorder: Path, directory: Path, module: str, *arguments: str) -> Recording:
    """Run the module in a process of its own, with `directory` as its first argument, and record what it does there."""
    directory = directory.resolve()
    before = {entry.name: (entry.stat().st_ino, entry.read_bytes()) for entry in directory.iterdir()}
    log = directory.with_name(f"{directory.name}.log")
    surroundings = {"LD_PRELOAD": str(recorder), "RECORD_DIRECTORY": str(directory), "RECORD_LOG": str(log)}
    done = _run(sys.executable, "-m", module, str(directory), *arguments, **surroundings)
    assert done.returncode == 0, done.stderr
    records = list(_parsed(log.read_bytes(), directory))
    log.unlink()
    return Recording(directory, before, records)


def _run(*command: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **surroundings}
    return subprocess.run(command, cwd=_TOP, env=env, capture_output=True, text=True, check=False)


def _parsed(log: bytes, directory: Path) -> Iterator[Record]:
    def relative(name: bytes) -> str:
        return os.fsdecode(name).removeprefix(str(directory)).removeprefix("/")

    position = 0
    while position < len(log):
        kind, inode, number, name_length, data_length = _HEAD.unpack_from(log, position)
        name_at = position + _HEAD.size
        data_at = name_at + name_length
        position = data_at + data_length
        name, data = log[name_at:data_at], log[data_at:position]
        yield Record(kind.decode(), inode, number, relative(name), relative(data) if kind in b"lr" else "", data)
