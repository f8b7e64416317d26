"""Drafts beside a name that several write to: what the killed left goes, what somebody is writing stays, whoever that is."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, InvalidInput
from aegis_store.draft import Draft, hold, is_orphan
from aegis_store.spool import Spool
from aegis_store.target import Target

LONG_AGO = (0, 0)


def prune(directory: Path) -> None:
    with EventStore.open(directory / "other.db", prune_on_open=False) as store:
        store.create_session("s")
        store.append("s", "t", 1)
        store.set_status("s", "completed")
        assert len(store.prune(archive_dir=directory).archived) == 1


def back_up(directory: Path) -> None:
    with EventStore.open(directory / "other.db") as store:
        store.backup(directory / "aegis.db")


def record(directory: Path) -> None:
    Spool(Target.of(directory / "aegis.db")).sweep()


SWEEPS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a store is made": ("aegis.db.123-0123abcd.tmp", lambda directory: EventStore.open(directory / "aegis.db").close()),
    "a store is made where one is restored": (
        "aegis.db.00-0123abcd.tmp",
        lambda directory: EventStore.open(directory / "aegis.db").close(),
    ),
    "a backup is made": ("aegis.db.00-0123abcd.tmp", back_up),
    "archives are written": ("20260101T000000.000000Z-s-1-2.jsonl.gz.tmp", prune),
    "a spool is emptied": ("aegis.db-spool/1-x.json.99.tmp", record),
}


@pytest.fixture(params=SWEEPS.values(), ids=list(SWEEPS))
def swept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    """The draft of somebody, not touched for ever, and what sweeps there."""
    name, sweep = request.param
    draft: Path = tmp_path / name
    draft.parent.mkdir(mode=0o700, exist_ok=True)
    draft.write_text("half")
    os.utime(draft, LONG_AGO)
    return draft, lambda: sweep(tmp_path)


@pytest.fixture
def held(swept: tuple[Path, Callable[[], Any]]) -> Iterator[None]:
    """Somebody writes it."""
    descriptor = os.open(swept[0], os.O_RDWR)
    hold(descriptor)
    yield
    os.close(descriptor)


def test_a_draft_that_nobody_writes_goes_when(swept: tuple[Path, Callable[[], Any]]) -> None:
    draft, sweep = swept
    sweep()
    assert not draft.exists()


@pytest.mark.usefixtures("held")
def test_a_draft_that_somebody_writes_stays_when(swept: tuple[Path, Callable[[], Any]]) -> None:
    draft, sweep = swept
    sweep()
    assert draft.read_text() == "half"


def test_a_draft_of_another_user_who_may_be_writing_it_stays_when(
    swept: tuple[Path, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, sweep = swept
    really_open = os.open

    def denied(path: Any, *rest: Any, **options: Any) -> int:
        if os.fspath(path) == os.fspath(draft):
            raise PermissionError(13, "Permission denied")
        return really_open(path, *rest, **options)

    monkeypatch.setattr(os, "open", denied)
    sweep()
    assert draft.read_text() == "half"


def test_a_journal_stays_with_the_draft_that_somebody_writes(tmp_path: Path) -> None:
    draft, journal = (tmp_path / f"aegis.db.00-0123abcd.tmp{suffix}" for suffix in ("", "-journal"))
    for file in (draft, journal):
        file.write_text("half")
        os.utime(file, LONG_AGO)
    descriptor = os.open(draft, os.O_RDWR)
    hold(descriptor)
    EventStore.open(tmp_path / "aegis.db").close()
    os.close(descriptor)
    assert journal.exists()


def test_who_restores_for_long_keeps_his_draft_when_others_make_a_store_of_that_name(store: EventStore, tmp_path: Path) -> None:
    store.backup(tmp_path / "backup")
    drafts: list[Path] = []

    def meanwhile(_done: int, _size: int) -> None:
        if not drafts:
            drafts.extend(tmp_path.glob("back.db.*.tmp"))
            os.utime(drafts[0], LONG_AGO)
            EventStore.open(tmp_path / "back.db").close()
            assert drafts[0].exists()

    with pytest.raises(InvalidInput, match="no file is overwritten"):
        EventStore.restore(tmp_path / "backup", tmp_path / "back.db", on_progress=meanwhile)
    assert len(drafts) == 1


def test_a_draft_is_held_until_its_process_dies(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from aegis_store.draft import Draft, is_orphan\n"
        "draft = Draft(Path(sys.argv[1]))\n"
        "os.utime(draft.path, (0, 0)); print(is_orphan(draft.path), flush=True); os.kill(os.getpid(), 9)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], check=False, stdout=subprocess.PIPE, text=True)
    assert said.stdout == "False\n"
    assert is_orphan(tmp_path / "f.tmp")


def test_a_file_is_not_taken_for_an_orphan_while_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Draft(tmp_path / "f")
    os.utime(draft.path, LONG_AGO)
    link, found = os.link, []

    def look(*names: Any, **options: Any) -> None:
        found.append(is_orphan(draft.path))
        link(*names, **options)

    monkeypatch.setattr(os, "link", look)
    draft.publish()
    assert found == [False]


@pytest.mark.parametrize("kind", ["a directory", "a link", "a pipe", "nothing"])
def test_what_is_no_file_is_no_orphan(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "f.tmp"
    if kind == "a directory":
        place.mkdir()
    elif kind == "a link":
        place.symlink_to(tmp_path)
    elif kind == "a pipe":
        os.mkfifo(place)
    if kind != "nothing":
        os.utime(place, LONG_AGO, follow_symlinks=False)
    assert not is_orphan(place)
