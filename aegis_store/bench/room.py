"""Where a row is measured: a directory of its own, stores to begin with, and what is appended to them."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from aegis_store import workload
from aegis_store.events import Json, NewEvent
from aegis_store.store import EventStore

SESSION_IDS: Final = [f"session-{number:03d}" for number in range(workload.LIVE_SESSIONS)]
FULL_IDS: Final = SESSION_IDS[:20]
TYPE: Final = "hook.post_tool_use"
_PAYLOADS: Final = [workload.payload(number) for number in range(64)]

WARM_UP: Final = 50
"""So many appends before the first turn: pages are allocated then, statements prepared, files grown."""

# What a store holds that is full already, for turns of a second and more; for shorter ones it is filled in less time.
_STORED_EVENTS: Final = 20_000
_BATCH: Final = 100


def session_of(number: int) -> str:
    """The session of append number n: all take turns."""
    return SESSION_IDS[number % len(SESSION_IDS)]


def payload_of(number: int) -> Json:
    """The payload of append number n: 2.5 KB, 64 different ones."""
    return _PAYLOADS[number % len(_PAYLOADS)]


class Room:
    """A directory for one row, and how long a turn is. Stores are copies of a template, so that all begin alike."""

    def __init__(self, directory: Path, template: Path, seconds: float) -> None:
        self.directory = directory
        self.seconds = seconds
        self._template = template

    def store(self, name: str) -> Path:
        """A store of this name with the sessions of `SESSION_IDS` and no events, which nobody has open."""
        return copied(self._template, self.directory / name)

    def filled(self, name: str, *, ended: bool = False) -> Path:
        """A store that is full already: 1,000 events, which is the cap, in each of `FULL_IDS`; less for turns under a second.

        They took turns, a hundred each; `ended`: and have ended.
        """
        path = self.store(name)
        fill(path, self.seconds)
        if ended:
            with EventStore.open(path, durability="process", maintain_every=None) as store:
                for session_id in FULL_IDS:
                    store.set_status(session_id, "completed")
        return path


def fill(target: Path | str, seconds: float) -> None:
    """See `Room.filled`."""
    batches = int(_STORED_EVENTS * min(seconds, 1)) // len(FULL_IDS) // _BATCH
    with EventStore.open(target, durability="process", maintain_every=None) as store:
        for number in range(max(batches, 1)):
            for session_id in FULL_IDS:
                store.append_many(session_id, batch(number))


def batch(number: int) -> list[NewEvent]:
    """Batch number n: a hundred events."""
    return [NewEvent(type=TYPE, payload=payload_of(number * _BATCH + each)) for each in range(_BATCH)]


@contextmanager
def template(directory: Path, session_ids: Iterable[str] = SESSION_IDS) -> Iterator[Path]:
    """A store with these sessions and no events, for copying."""
    with TemporaryDirectory(prefix="template-", dir=directory) as made:
        path = Path(made) / "template.db"
        with EventStore.open(path, durability="process", maintain_every=None) as store:
            for session_id in session_ids:
                store.create_session(session_id)
        yield path


def copied(path: Path, to: Path) -> Path:
    """A copy of a store that nobody has open."""
    shutil.copyfile(path, to)
    synced(to)
    return to


def synced(path: Path) -> None:
    """Bring a store that nobody has open to the disk, so that its way there falls into nobody's turn."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
