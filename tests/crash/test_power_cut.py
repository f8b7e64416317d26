"""Power cuts: at `power` every acknowledged append is there, at `process` the first of them; and every store opens.

A process is recorded at its work, and the disk made again as a cut may leave it: at each sync and acknowledgement, and at
random points between. A failure names the seed and the cut; POWER_CUT_SEED=… makes the same cuts again.
"""

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from random import Random, SystemRandom
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from aegis_store import Event, EventStore, SchemaMismatch, Session, StoreUnavailable
from aegis_store.connections import Durability
from tests.crash import power_writers as writers
from tests.crash.checks import all_events, assert_sound
from tests.crash.disk import Disk
from tests.crash.power_writers import BATCH, CAP, NEW, SESSIONS, THREADS
from tests.crash.recording import Record, Recording, compiled, record
from tests.migrations.test_0002 import FROZEN, content

IMAGES = 20
TORTURE_IMAGES = 700
EVENTS = 50

IMAGES_OF = pytest.mark.parametrize("images", [IMAGES, pytest.param(TORTURE_IMAGES, marks=pytest.mark.torture)])

Task = Callable[[writers.Author, Path, Durability], None]
Recorder = Callable[[Task, Durability, Path | None], Recording]
Said = list[list[Any]]
"""What the process has said before the cut."""

payload = cache(writers.payload)


# What is recorded


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="module")
def recorded(recorder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Records a task on a copy of a store, once. What the recorder tells is what stands there: it has seen all there was."""

    @cache
    def one(task: Task, durability: Durability, store: Path | None) -> Recording:
        place = tmp_path_factory.mktemp("power-cut")
        directory = place / "recorded"
        directory.mkdir()
        for file in () if store is None else (store, store.with_name("aegis.db-wal")):
            if file.exists():
                shutil.copyfile(file, directory / file.name)
        recording = record(recorder, directory, writers.__name__, task.__name__, durability)
        disk = Disk(recording)
        disk.advance(len(recording.records))
        disk.write_image(place / "told", Random(0), ["kept"])
        assert files_in(place / "told") == files_in(directory)
        return recording

    return one


def files_in(directory: Path) -> dict[str, bytes]:
    files = [file for file in directory.rglob("*") if file.is_file() and file.name != "said"]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A store with sessions that have no events yet."""
    path = tmp_path_factory.mktemp("ready") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path) as store:
        for session_id in SESSIONS:
            store.create_session(session_id)
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, ready: Path) -> Path:
    """A store whose sessions have events, and have ended but for one."""
    path = tmp_path_factory.mktemp("full") / "aegis.db"
    shutil.copyfile(ready, path)
    with EventStore.open(path, durability="process") as store:
        for seq in range(1, EVENTS + 1):
            for session_id in SESSIONS:
                store.append(session_id, "note", payload(session_id, seq))
        for session_id in SESSIONS[:-1]:
            store.set_status(session_id, "closed")
    return path


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, full: Path) -> Path:
    """The same, after the events of the ended sessions went: much of the file is free."""
    path = tmp_path_factory.mktemp("pruned") / "aegis.db"
    shutil.copyfile(full, path)
    EventStore.open(path).close()
    return path


# Cuts


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the images are looked at, since nothing of that needs a disk. None: where temporary files are."""


def new_seed() -> int:
    return int(os.environ.get("POWER_CUT_SEED") or SystemRandom().randrange(2**32))


def survive(recording: Recording, images: int, check: Callable[[Path, Said], None]) -> None:
    """Cut the power so many times, in the order of time, and check each time what is left."""
    seed = new_seed()
    disk = Disk(recording)
    with TemporaryDirectory(dir=MEMORY) as place:
        image = Path(place) / "image"
        for number, position in enumerate(cuts(recording, images, Random(seed))):
            disk.advance(position)
            disk.write_image(image, Random(f"{seed} {number}"))
            try:
                check(image, disk.said)
            except BaseException as error:
                kept = recording.directory.with_name(f"cut {number} of seed {seed}")
                disk.write_image(kept, Random(f"{seed} {number}"))
                error.add_note(f"seed {seed}, cut {number}, after {position} of {len(recording.records)} records: {kept}")
                raise
            shutil.rmtree(image)
    print(f"{images} power cuts, seed {seed}")


def cuts(recording: Recording, images: int, chance: Random) -> list[int]:
    """After how many records to cut: two thirds at the moments that tell most, each in its turn, the rest anywhere."""
    telling = recording.telling_moments()
    chance.shuffle(telling)
    chosen = list(islice(cycle(telling), images * 2 // 3))
    return sorted(chosen + [chance.randint(0, len(recording.records)) for _ in range(images - len(chosen))])


def standing(path: Path) -> dict[str, Session]:
    """Open what a cut has left: it is a whole store, its events are the right ones, and it takes the next."""
    with EventStore.open(path, prune_on_open=False, maintain_every=None, create=False) as store:
        assert_sound(path)
        sessions = store.list_sessions().sessions
        for session in sessions:
            events = all_events(store, session.session_id)
            assert [event.seq for event in events] == list(range(session.first_seq, session.last_seq + 1))
            assert_right(events)
            assert session.max_events != CAP or len(events) == min(session.last_seq, CAP)
        for session in sessions[:1]:
            assert store.append(session.session_id, "note", "after the cut").seq == session.last_seq + 1
    return {session.session_id: session for session in sessions}


def assert_right(events: list[Event]) -> None:
    assert [event.payload for event in events] == [payload(event.session_id, event.seq) for event in events]


def last_seqs(sessions: dict[str, Session]) -> Counter[str]:
    return Counter({name: session.last_seq for name, session in sessions.items()})


def acknowledged(said: Said) -> list[str]:
    """The session of each append that was acknowledged, in order."""
    return [pair[0] for line in said for pair in line if not isinstance(pair, str)]


# Appends

APPENDS: dict[Task, int] = {
    writers.append: 1,
    writers.append_at_the_cap: 1,
    writers.append_many: BATCH,
    writers.append_from_threads: THREADS,
    writers.append_while_the_log_is_begun_anew: 1,
    writers.close_and_open_again: 1,
    writers.append_beside_others: 1,
}
"""How many events may be there without having been acknowledged: those that were under way."""


@IMAGES_OF
@pytest.mark.parametrize(("task", "under_way"), APPENDS.items(), ids=[task.__name__ for task in APPENDS])
def test_at_power_every_acknowledged_append_is_there(
    recorded: Recorder, ready: Path, images: int, task: Task, under_way: int
) -> None:
    def check(image: Path, said: Said) -> None:
        there, promised = last_seqs(standing(image / "aegis.db")), Counter(acknowledged(said))
        assert promised <= there
        assert (there - promised).total() <= under_way

    survive(recorded(task, "power", ready), images, check)


IN_ORDER = [task for task in APPENDS if task is not writers.append_from_threads]
"""Those of one thread, whose appends are acknowledged in the order in which they are stored."""


@IMAGES_OF
@pytest.mark.parametrize("task", IN_ORDER, ids=[task.__name__ for task in IN_ORDER])
def test_at_process_the_first_of_the_acknowledged_appends_are_there(
    recorded: Recorder, ready: Path, images: int, task: Task
) -> None:
    lost = 0

    def check(image: Path, said: Said) -> None:
        nonlocal lost
        there, promised = last_seqs(standing(image / "aegis.db")), acknowledged(said)
        first = Counter(promised[: there.total()])
        assert first <= there
        assert (there - first).total() <= APPENDS[task]
        lost += len(promised) > there.total()

    survive(recorded(task, "process", ready), images, check)
    assert lost  # or the cuts would prove nothing


@IMAGES_OF
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_batch_is_there_as_a_whole_or_not_at_all(
    recorded: Recorder, ready: Path, images: int, durability: Durability
) -> None:
    def check(image: Path, said: Said) -> None:
        assert {seq % BATCH for seq in last_seqs(standing(image / "aegis.db")).values()} == {0}

    survive(recorded(writers.append_many, durability, ready), images // 2, check)


@pytest.mark.parametrize("durability", ["power", "process"])
def test_the_log_was_begun_anew_while_it_was_recorded(recorded: Recorder, ready: Path, durability: Durability) -> None:
    recording = recorded(writers.append_while_the_log_is_begun_anew, durability, ready)
    inodes = {record.inode for record in recording.records if record.name == "aegis.db-wal"}
    begun = [record for record in recording.records if record.inode in inodes and (record.kind, record.number) == ("w", 0)]
    assert len(begun) >= 3


@IMAGES_OF
def test_what_is_acknowledged_after_a_cut_survives_the_next(
    recorded: Recorder, ready: Path, tmp_path: Path, images: int
) -> None:
    first = recorded(writers.append_while_the_log_is_begun_anew, "process", ready)
    for number in range(max(images // 100, 1)):
        seed = new_seed()
        disk = Disk(first)
        disk.advance(Random(seed).randrange(len(first.records) // 2, len(first.records)))
        for name in ("look", "go on"):
            disk.write_image(tmp_path / f"{name} {number}", Random(seed))
        before = last_seqs(standing(tmp_path / f"look {number}" / "aegis.db"))

        def check(image: Path, said: Said, before: Counter[str] = before) -> None:
            there, promised = last_seqs(standing(image / "aegis.db")), before + Counter(acknowledged(said))
            assert promised <= there
            assert (there - promised).total() <= 1

        survive(recorded(writers.append, "power", tmp_path / f"go on {number}" / "aegis.db"), min(images, 100), check)


LIES: dict[str, tuple[Task, Callable[[Record], bool]]] = {
    "of files": (writers.append, lambda record: "." in record.name),
    "of directories": (writers.create, lambda record: "." not in record.name),
}


@pytest.mark.parametrize(("task", "is_lie"), LIES.values(), ids=list(LIES))
def test_a_disk_that_lies_about_syncs_would_be_found_out(
    recorded: Recorder, ready: Path, task: Task, is_lie: Callable[[Record], bool]
) -> None:
    recording = recorded(task, "power", None if task is writers.create else ready)
    done = [record for record in recording.records if record.kind not in "sS" or not is_lie(record)]

    def check(image: Path, said: Said) -> None:
        sessions = standing(image / (NEW if task is writers.create else "aegis.db")) if said else {}
        assert Counter(acknowledged(said)) <= last_seqs(sessions)

    with pytest.raises((AssertionError, StoreUnavailable)):
        survive(Recording(recording.directory, recording.before, done), IMAGES, check)


# A store in the making


@IMAGES_OF
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_new_store_is_there_as_a_whole_or_not_at_all(recorded: Recorder, images: int, durability: Durability) -> None:
    def check(image: Path, said: Said) -> None:
        path = image / NEW
        assert path.exists() or not said
        if not path.exists():
            EventStore.open(path).close()
        there, promised = last_seqs(standing(path)), Counter(acknowledged(said))
        assert promised <= there or durability == "process"

    survive(recorded(writers.create, durability, None), images, check)


@IMAGES_OF
def test_an_upgrade_has_happened_or_not_and_is_done_by_the_next(recorded: Recorder, tmp_path: Path, images: int) -> None:
    old = tmp_path / "aegis.db"
    old.write_bytes(gzip.decompress(FROZEN.read_bytes()))
    shutil.copyfile(old, moved := tmp_path / "moved.db")
    EventStore.upgrade(moved)
    whole = content(moved)

    def check(image: Path, said: Said) -> None:
        path = image / "aegis.db"
        try:
            EventStore.open(path, prune_on_open=False, maintain_every=None).close()
        except SchemaMismatch:
            assert not said
            EventStore.upgrade(path)
        assert_sound(path)
        assert content(path) == whole

    survive(recorded(writers.upgrade, "power", old), images, check)


# Removing


@IMAGES_OF
@pytest.mark.parametrize("durability", ["power", "process"])
def test_after_a_prune_each_event_is_in_the_store_or_in_its_archive(
    recorded: Recorder, full: Path, images: int, durability: Durability
) -> None:
    def check(image: Path, said: Said) -> None:
        sessions = standing(image / "aegis.db")
        there = archived(image / "old" / "events")
        for session_id, session in sessions.items():
            assert session.last_seq == EVENTS
            gone = {(session_id, seq): payload(session_id, seq) for seq in range(1, session.first_seq)}
            assert {key: there.get(key) for key in gone} == gone
        left = {session.event_count for name, session in sessions.items() if name in SESSIONS[:-1]}
        assert left == {0} or not said or durability == "process"

    survive(recorded(writers.prune_into_archive, durability, full), images, check)


def archived(directory: Path) -> dict[tuple[str, int], Any]:
    """The events in the archive files, each of which is whole."""
    events = {}
    for file in directory.glob("*.jsonl.gz"):
        lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        assert "end" in lines[-1]
        events.update({(line["event"]["session_id"], line["event"]["seq"]): line["event"]["payload"] for line in lines[2:-1]})
    return events


@IMAGES_OF
@pytest.mark.parametrize("task", [writers.give_back, writers.compact], ids=["reclaim", "compact"])
def test_a_file_that_is_made_smaller_loses_nothing(recorded: Recorder, pruned: Path, images: int, task: Task) -> None:
    def check(image: Path, said: Said) -> None:
        sessions = standing(image / "aegis.db")
        assert last_seqs(sessions) == Counter(dict.fromkeys(SESSIONS, EVENTS))
        assert {name: session.event_count for name, session in sessions.items()} == {"a": 0, "b": 0, "c": EVENTS}

    recording = recorded(task, "power", pruned)
    assert (recording.directory / "aegis.db").stat().st_size < pruned.stat().st_size
    survive(recording, images, check)
