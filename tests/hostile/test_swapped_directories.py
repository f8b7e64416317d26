"""A directory that is moved away amid the work, with a link in its place that leads to another one.

At whatever moment: no file there is changed or removed, and what is said to be done is done where it is said to be.
"""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from aegis_store import EventStore, FileUnavailable, InvalidInput, NewEvent, StoreUnavailable, driver
from aegis_store.retention import archive as archiving

FOREIGN: Final = b"somebody's"
CALLS: Final = ("open", "link", "unlink", "utime", "fsync", "chmod")


class Swap:
    """Swaps the directory just before, or just after, the so-manieth call that has to do with files."""

    def __init__(self, directory: Path, names: tuple[str, ...] | None, at: int) -> None:
        """`names`: of what stands in the other directory besides what stands in this one; None: it is empty."""
        self.moved = directory.with_name("moved")
        self.other = directory.with_name("other")
        self.calls = 0
        self.planted: set[str] = set()
        self.came_late = False
        self._directory, self._names, self._at = directory, names, at

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.look()
            try:
                return call(*arguments, **options)
            finally:
                self.look()

        return wrapped

    def look(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            self.came_late = not list(self._directory.glob("*.tmp")) and bool(os.listdir(self._directory))
            names = set() if self._names is None else {*os.listdir(self._directory), *self._names}
            self._directory.rename(self.moved)
            self.other.mkdir()
            self.planted = names
            for name in names:  # the worst case: there is a file of each name
                (self.other / name).write_bytes(FOREIGN)
            self._directory.symlink_to(self.other)

    @property
    def was_made(self) -> bool:
        return self.other.exists()

    def is_harmless(self) -> bool:
        return all((self.other / name).read_bytes() == FOREIGN for name in self.planted)


def export(store: EventStore, directory: Path) -> list[str]:
    store.export(directory / "all.jsonl")
    return [str(directory / "all.jsonl")]


def backup(store: EventStore, directory: Path) -> list[str]:
    store.backup(directory / "backup")
    return [str(directory / "backup")]


def archive(store: EventStore, directory: Path) -> list[str]:
    return list(store.prune(archive_dir=directory).archived)


WORK: dict[str, tuple[Callable[[EventStore, Path], list[str]], tuple[str, ...]]] = {
    "an export": (export, ("all.jsonl",)),
    "a backup": (backup, ("backup",)),
    "an archive": (archive, ()),
}


def archived_seqs(files: list[Path]) -> list[int]:
    return [
        line["event"]["seq"]
        for file in files
        if file.read_bytes() != FOREIGN
        for line in map(json.loads, gzip.decompress(file.read_bytes()).splitlines())
        if "event" in line
    ]


@pytest.mark.parametrize(
    "is_empty",
    [
        pytest.param(False, id="for one with such files"),
        pytest.param(True, id="for an empty one", marks=pytest.mark.torture),
    ],
)
@pytest.mark.parametrize(("work", "names"), WORK.values(), ids=list(WORK))
def test_a_directory_that_is_swapped_at_any_moment_of(
    tmp_path: Path,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[EventStore, Path], list[str]],
    names: tuple[str, ...],
    is_empty: bool,
) -> None:
    monkeypatch.setattr(archiving, "ARCHIVE_FILE_EVENTS", 2)
    at, swapped = 1, True
    while swapped:
        place = tmp_path / str(at)
        (place / "out").mkdir(parents=True)
        (place / "aegis.db").write_bytes(template.read_bytes())
        swap = Swap(place / "out", None if is_empty else names, at)
        with EventStore.open(place / "aegis.db", durability="process", prune_on_open=False, maintain_every=None) as store:
            store.create_session("s")
            for number in range(3):
                store.append("s", "t", number)
            store.set_status("s", "completed")
            with monkeypatch.context() as patch:
                for name in CALLS:
                    patch.setattr(os, name, swap.wrap(getattr(os, name)))
                patch.setattr(driver.dbapi, "connect", swap.wrap(driver.dbapi.connect))
                try:
                    done = work(store, place / "out")
                except (FileUnavailable, InvalidInput, StoreUnavailable):
                    done = []
            swapped = swap.was_made
            if swapped:
                assert swap.is_harmless(), at
                assert not list(swap.moved.glob("*.tmp")), at
            where = swap.moved if swap.came_late else place / "out"
            assert all((where / Path(file).name).read_bytes() != FOREIGN for file in done), at
            removed = set(range(1, store.get_session("s").first_seq))
            files = [file for each in (place / "out", swap.moved) for file in each.glob("*.jsonl.gz")]
            assert removed <= set(archived_seqs(files)), at
        at += 1
    assert at > 10


@pytest.mark.parametrize("call", ["open", "fsync", "link", "unlink"])
def test_nothing_is_pruned_when_the_archive_is_not_where_it_would_be_said_to_be(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store.create_session("s")
    store.append("s", "t", 1)
    store.set_status("s", "completed")
    swap = Swap(tmp_path / "out", (), 2 if call != "open" else 4)
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, swap.wrap(getattr(os, call)))
        with pytest.raises((FileUnavailable, InvalidInput)):
            store.prune(archive_dir=tmp_path / "out")
    assert swap.was_made
    assert store.get_session("s").event_count == 1
    assert list(swap.moved.iterdir()) == []
    (tmp_path / "out").unlink()
    assert store.prune(archive_dir=tmp_path / "out").events_removed == 1


def test_a_run_does_not_go_on_in_another_directory(store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "ARCHIVE_FILE_EVENTS", 1)
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload=number) for number in range(3)])
    store.set_status("s", "completed")

    def look(*_: object) -> None:
        if not (tmp_path / "moved").exists():
            (tmp_path / "out").rename(tmp_path / "moved")
            (tmp_path / "out").mkdir()

    with pytest.raises(FileUnavailable, match="another directory stands there"):
        store.prune(archive_dir=tmp_path / "out", on_progress=look)
    assert list((tmp_path / "out").iterdir()) == []
    assert len(list((tmp_path / "moved").iterdir())) == store.get_session("s").removed_events == 1
