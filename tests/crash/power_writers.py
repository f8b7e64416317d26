"""Processes under whose writes the power is cut, run as `python -m tests.crash.power_writers DIRECTORY TASK DURABILITY`.

Each works on the store DIRECTORY/aegis.db and says line by line what was acknowledged: the pairs (session, seq) of an append,
or a word. What an event holds follows from its session and seq, so that anybody can tell whether it is the right one.
"""

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, Final

from aegis_store import EventStore, NewEvent, checkpointer
from aegis_store.connections import Durability
from aegis_store.retention import archive, prune, reclaim, truncate
from tests.crash.recording import SAID

SESSIONS: Final = ("a", "b", "c")
CAP: Final = 10
BATCH: Final = 12
THREADS: Final = 6
NEW: Final = "new/deep/aegis.db"
"""Where a store is created, below DIRECTORY."""


def payload(session_id: str, seq: int) -> dict[str, Any]:
    chance = Random(f"{session_id} {seq}")
    size = chance.choice((0, 100, 2500, 2500, 20_000))
    return {"session": session_id, "seq": seq, "text": f"{chance.random()} " * (size // 20)}


class Author:
    """Appends to a store, and says so."""

    def __init__(self, directory: Path) -> None:
        self._said = os.open(directory / SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._seqs = Counter[str]()

    def say(self, *what: Any) -> None:
        os.write(self._said, json.dumps(what).encode())

    def go_on_in(self, store: EventStore) -> None:
        """Count on from what the sessions have."""
        self._seqs.update({session.session_id: session.last_seq for session in store.list_sessions().sessions})

    def append(self, store: EventStore, session_id: str) -> None:
        seq = self._seqs[session_id] + 1
        assert store.append(session_id, "note", payload(session_id, seq)).seq == seq
        self._seqs[session_id] = seq
        self.say((session_id, seq))

    def append_many(self, store: EventStore, session_id: str) -> None:
        first = self._seqs[session_id] + 1
        seqs = range(first, first + BATCH)
        events = store.append_many(session_id, [NewEvent(type="note", payload=payload(session_id, seq)) for seq in seqs])
        assert [event.seq for event in events] == list(seqs)
        self._seqs[session_id] = seqs[-1]
        self.say(*((session_id, seq) for seq in seqs))


def opened(path: Path, durability: Durability) -> EventStore:
    return EventStore.open(path, durability=durability, prune_on_open=False, maintain_every=None)


def set_in(module: ModuleType, **settings: float) -> None:
    """Smaller numbers, so that little work has many steps."""
    for name, value in settings.items():
        setattr(module, name, value)


def append(author: Author, path: Path, durability: Durability) -> None:
    chance = Random(1)
    with opened(path, durability) as store:
        author.go_on_in(store)
        for _ in range(60):
            author.append(store, chance.choice(SESSIONS))


def append_at_the_cap(author: Author, path: Path, durability: Durability) -> None:
    chance = Random(2)
    with opened(path, durability) as store:
        for session_id in SESSIONS:
            store.update_session(session_id, max_events=CAP)
        for _ in range(80):
            author.append(store, chance.choice(SESSIONS))


def append_many(author: Author, path: Path, durability: Durability) -> None:
    chance = Random(3)
    with opened(path, durability) as store:
        for _ in range(15):
            author.append_many(store, chance.choice(SESSIONS))


def append_from_threads(author: Author, path: Path, durability: Durability) -> None:
    """A session for each thread; they share commits."""

    def write(session_id: str) -> None:
        for _ in range(15):
            author.append(store, session_id)

    with opened(path, durability) as store:
        names = [f"thread {number}" for number in range(THREADS)]
        for session_id in names:
            store.create_session(session_id)
        threads = [threading.Thread(target=write, args=(session_id,)) for session_id in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def append_while_the_log_is_begun_anew(author: Author, path: Path, durability: Durability) -> None:
    """Checkpoints all the time, on the thread that is for that, or on the writer where there must be no such thread."""
    chance = Random(4)
    set_in(checkpointer, CHECKPOINT_EVERY_S=0.002, CHECKPOINT_PAGES=15, LOG_PAGES_MAX=60, LOG_PAGES_FEW=10, LOG_PAGES_LIMIT=80)
    with opened(path, durability) as store:
        store._db.writer.driver.execute("PRAGMA wal_autocheckpoint = 40")
        for _ in range(150):
            author.append(store, chance.choice(SESSIONS))
            time.sleep(0.001)


def close_and_open_again(author: Author, path: Path, durability: Durability) -> None:
    for _ in range(8):
        with opened(path, durability) as store:
            for session_id in SESSIONS:
                author.append(store, session_id)


def append_beside_others(author: Author, path: Path, durability: Durability) -> None:
    """The log is made by one who syncs nothing: first by a reader, then by a store of less durability."""
    for other in ({"read_only": True}, {"durability": "process"}):
        with EventStore.open(path, prune_on_open=False, maintain_every=None, **other) as first:
            first.stats()
            with opened(path, durability) as store:
                for _ in range(4):
                    author.append(store, "a")


def create(author: Author, path: Path, durability: Durability) -> None:
    """A store that does not stand yet, in directories that do not either."""
    with opened(path.parent / NEW, durability) as store:
        author.say("created")
        for session_id in SESSIONS:
            store.create_session(session_id)
        for _ in range(5):
            author.append(store, "b")


def prune_into_archive(author: Author, path: Path, durability: Durability) -> None:
    set_in(truncate, PRUNE_SLICE_EVENTS=20)
    set_in(prune, PRUNE_SLICE_EVENTS=20, PRUNE_CHECKPOINT_EVENTS=40, ARCHIVE_FILE_EVENTS=30)
    set_in(archive, ARCHIVE_FILE_EVENTS=30)
    with opened(path, durability) as store:
        store.prune(archive_dir=path.parent / "old" / "events")
        author.say("pruned")


def give_back(author: Author, path: Path, durability: Durability) -> None:
    set_in(reclaim, _CHECKPOINT_PAGES=16)
    with opened(path, durability) as store:
        store.reclaim()
        author.say("reclaimed")


def compact(author: Author, path: Path, durability: Durability) -> None:
    EventStore.compact(path)
    author.say("compacted")


def upgrade(author: Author, path: Path, durability: Durability) -> None:
    EventStore.upgrade(path)
    author.say("upgraded")


TASKS: Final[tuple[Callable[[Author, Path, Durability], None], ...]] = (
    *(append, append_at_the_cap, append_many, append_from_threads, append_while_the_log_is_begun_anew),
    *(close_and_open_again, append_beside_others, create, prune_into_archive, give_back, compact, upgrade),
)

if __name__ == "__main__":
    place, name, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    (task,) = (each for each in TASKS if each.__name__ == name)
    task(Author(place), place / "aegis.db", "power" if how == "power" else "process")
