"""The disk as a power cut may leave it, made from a recording.

What was written before a sync of the file began is on the disk when the sync has ended. Of what came after, each page or
sector of 512 bytes was last brought to the disk at a moment of its own, and so was the size. A name that was made, moved or
removed is so on the disk after a sync of its directory; of what came after, the first few are there: file systems keep a
journal of such changes. (POSIX asks no more of them. In fact most bring the name of a new file to the disk with the file.)
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from random import Random
from typing import Any, Final, Literal, NamedTuple

from tests.crash.recording import SAID, Record, Recording

Fate = Literal["lost", "kept", "cut short", "torn by page", "torn by sector"]
"""What becomes of the changes that no sync has brought to the disk."""

FATES: Final[tuple[Fate, ...]] = ("lost", "kept", "cut short", "torn by page", "torn by sector")

_PAGE_BYTES: Final = 4096
_SECTOR_BYTES: Final = 512


class Write(NamedTuple):
    at: int
    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class Resize(NamedTuple):
    at: int
    size: int


@dataclass(slots=True, eq=False)
class File:
    """What is on the disk for certain, and what has changed since."""

    durable: bytearray
    pending: list[Write | Resize] = field(default_factory=list)

    def settle(self, before: int) -> None:
        """All changes before that record are on the disk now."""
        settled = [change for change in self.pending if change.at < before]
        _change(self.durable, settled, "kept", Random(0))
        self.pending = self.pending[len(settled) :]

    def after_a_cut(self, fate: Fate, chance: Random) -> bytearray:
        content = bytearray(self.durable)
        _change(content, self.pending, fate, chance)
        return content


class Rename(NamedTuple):
    """Names that change at once. None: the name is removed."""

    at: int
    names: "dict[str, Node | None]"


@dataclass(slots=True, eq=False)
class Directory:
    durable: "dict[str, Node]" = field(default_factory=dict)
    pending: list[Rename] = field(default_factory=list)

    def settle(self, before: int) -> None:
        settled = [change for change in self.pending if change.at < before]
        self.durable = _renamed(self.durable, settled)
        self.pending = self.pending[len(settled) :]

    def names(self) -> "dict[str, Node]":
        """As the process sees them."""
        return _renamed(self.durable, self.pending)

    def after_a_cut(self, fate: Fate, chance: Random) -> "dict[str, Node]":
        return _renamed(self.durable, self.pending[: _moments(fate, len(self.pending), chance)()])


Node = File | Directory


class Disk:
    """Where a recording has come to: after `position` of its records."""

    def __init__(self, recording: Recording) -> None:
        self.position = 0
        self.said: list[Any] = []
        """What the process has said, line by line."""
        self._recording = recording
        self._files = {inode: File(bytearray(content)) for inode, content in recording.before.values()}
        self._root = Directory({name: self._files[inode] for name, (inode, _) in recording.before.items()})
        self._said_inode = 0
        self._under_way: dict[tuple[int, int], int] = {}  # syncs that have begun, and at which record

    def advance(self, position: int) -> None:
        """Go on to where so many records have happened."""
        for number in range(self.position, position):
            self._apply(number, self._recording.records[number])
        self.position = position

    def write_image(self, into: Path, chance: Random, fates: Sequence[Fate] = FATES) -> None:
        """Make a directory that has what the disk may have after a power cut here."""
        self._write(self._root, into, chance, fates, {})

    def _write(
        self, directory: Directory, into: Path, chance: Random, fates: Sequence[Fate], written: dict[File, Path]
    ) -> None:
        into.mkdir()
        for name, node in sorted(directory.after_a_cut(chance.choice(fates), chance).items()):
            if isinstance(node, Directory):
                self._write(node, into / name, chance, fates, written)
            elif node in written:
                os.link(written[node], into / name)
            elif not name.endswith("-shm"):  # SQLite makes it anew
                (into / name).write_bytes(node.after_a_cut(chance.choice(fates), chance))
                written[node] = into / name

    def _apply(self, at: int, record: Record) -> None:
        match record.kind:
            case "o" | "O":
                self._open(at, record)
            case "w" if record.inode == self._said_inode:
                self.said.append(json.loads(record.data))
            case "w":
                self._files[record.inode].pending.append(Write(at, record.number, record.data))
            case "t":
                self._files[record.inode].pending.append(Resize(at, record.number))
            case "s":
                self._under_way[record.inode, record.number] = at
            case "S":
                self._synced(record).settle(self._under_way.pop((record.inode, record.number)))
            case _:
                self._name(at, self._named(record))

    def _named(self, record: Record) -> dict[str, Node | None]:
        match record.kind:
            case "d":
                return {record.name: Directory()}
            case "l":
                return {record.new_name: self._find(record.name)}
            case "r":
                return {record.name: None, record.new_name: self._find(record.name)}
        return {record.name: None}

    def _open(self, at: int, record: Record) -> None:
        if record.name == SAID:
            self._said_inode = record.inode
        elif self._find(record.name) is None:
            self._files[record.inode] = File(bytearray())
            self._name(at, {record.name: self._files[record.inode]})
        elif record.kind == "O":
            self._files[record.inode].pending.append(Resize(at, 0))

    def _synced(self, record: Record) -> File | Directory:
        found = self._find(record.name)
        return found if isinstance(found, Directory) else self._files[record.inode]

    def _name(self, at: int, names: dict[str, Node | None]) -> None:
        """All in one directory."""
        (parent,) = {str(PurePath(name).parent) for name in names}
        directory = self._find(parent)
        assert isinstance(directory, Directory)
        directory.pending.append(Rename(at, {PurePath(name).name: node for name, node in names.items()}))

    def _find(self, name: str) -> Node | None:
        found: Node | None = self._root
        for part in PurePath(name).parts:
            found = found.names().get(part) if isinstance(found, Directory) else None
        return found


def _moments(fate: Fate, count: int, chance: Random) -> Callable[[], int]:
    """For each part of a file anew: how many of the changes had happened when it was last brought to the disk."""
    if fate == "lost":
        return lambda: 0
    if fate == "kept":
        return lambda: count
    moment = chance.randint(0, count)
    if fate == "cut short":
        return lambda: moment
    return lambda: chance.choice((0, count, chance.randint(0, count)))


def _change(content: bytearray, changes: list[Write | Resize], fate: Fate, chance: Random) -> None:
    """Make those of the changes that came to the disk."""
    block_bytes = _SECTOR_BYTES if fate == "torn by sector" else _PAGE_BYTES
    moment = _moments(fate, len(changes), chance)
    of_block: defaultdict[int, int] = defaultdict(moment)
    of_size = moment()
    size = len(content)
    for number, change in enumerate(changes):
        if isinstance(change, Write):
            for offset, piece in _blocks(change, block_bytes):
                if number < of_block[offset // block_bytes]:
                    content.extend(bytes(max(offset - len(content), 0)))
                    content[offset : offset + len(piece)] = piece
        if number < of_size:
            size = change.size if isinstance(change, Resize) else max(size, change.end)
            if isinstance(change, Resize):
                del content[size:]
    del content[size:]
    content.extend(bytes(size - len(content)))


def _blocks(change: Write, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a write that lie in one block each, with their offsets."""
    offset = change.offset
    while offset < change.end:
        end = min(offset - offset % block_bytes + block_bytes, change.end)
        yield offset, change.data[offset - change.offset : end - change.offset]
        offset = end


def _renamed(names: dict[str, Node], changes: list[Rename]) -> dict[str, Node]:
    found = dict(names)
    for change in changes:
        for name, node in change.names.items():
            if node is None:
                found.pop(name)
            else:
                found[name] = node
    return found
