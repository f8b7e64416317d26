"""Processes that write while they may be killed. Each says what was acknowledged to it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aegis_store import AsyncEventStore, EventStore, NewEvent
from aegis_store.transfer import line_rows
from tests.crash.harness import Line

SESSIONS = ("a", "b", "c")
"""What these processes append to; others only remove elsewhere."""

THREADS = 16
TASKS = 32
GROUP = 30
"""The most events of a process that may be there without having been acknowledged."""

BATCH_LINES = 40
"""Lines a transaction of an import, so that there are many moments between two."""


def options(line: Line) -> dict[str, Any]:
    """What a death leaves must not depend on the durability."""
    return {"durability": line.chance.choice(("power", "process")), "prune_on_open": False, "maintain_every": None}


def opened(line: Line, path: Path) -> EventStore:
    return EventStore.open(path, **options(line))


def new_event(line: Line) -> tuple[str, str, dict[str, Any]]:
    """For whom, of which type, and what."""
    text = "x" * line.chance.choice((0, 100, 2500, 20_000))
    return line.chance.choice(SESSIONS), "note", {"number": next(line.numbers), "text": text}


def append_one(line: Line, store: EventStore) -> None:
    event = store.append(*new_event(line))
    line.acknowledge((event.session_id, event.seq, event.payload["number"]))


def append(line: Line, path: Path) -> None:
    """One event after the other."""
    with opened(line, path) as store:
        line.begin()
        while line.goes_on():
            append_one(line, store)


def come_and_go(line: Line, path: Path) -> None:
    """Open the store for each event."""
    line.begin()
    while line.goes_on():
        with opened(line, path) as store:
            append_one(line, store)


def append_in_threads(line: Line, path: Path) -> None:
    """Threads whose appends share commits."""

    def work() -> None:
        while line.goes_on():
            append_one(line, store)

    threads = line.chance.randint(8, THREADS)
    with opened(line, path) as store, ThreadPoolExecutor(threads) as pool:
        line.begin()
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()


def append_in_tasks(line: Line, path: Path) -> None:
    """Tasks of one event loop, whose appends share commits."""

    async def work(store: AsyncEventStore) -> None:
        while line.goes_on():
            event = await store.append(*new_event(line))
            line.acknowledge((event.session_id, event.seq, event.payload["number"]))

    async def all_tasks() -> None:
        async with AsyncEventStore.open(path, **options(line)) as store:
            line.begin()
            await asyncio.gather(*(work(store) for _ in range(TASKS)))

    asyncio.run(all_tasks())


def append_many(line: Line, path: Path) -> None:
    """Groups of events in one transaction each; an event says how many its group has."""
    with opened(line, path) as store:
        line.begin()
        while line.goes_on():
            session_id, _, first = new_event(line)
            payloads = [first, *(new_event(line)[2] for _ in range(line.chance.randrange(GROUP)))]
            whole = {"first": first["number"], "size": len(payloads)}
            events = store.append_many(session_id, [NewEvent(type="note", payload=payload | whole) for payload in payloads])
            line.acknowledge(*((event.session_id, event.seq, event.payload["number"]) for event in events))


def append_to_made(line: Line, store: EventStore) -> None:
    """One event to a session that may not stand yet."""
    session_id, number = line.chance.choice(SESSIONS), next(line.numbers)
    store.ensure_session(session_id)
    line.acknowledge((session_id, store.append(session_id, "note", {"number": number}).seq, number))


def create(line: Line, path: Path) -> None:
    """Open a store that does not stand yet."""
    line.begin()
    with opened(line, path) as store:
        append_to_made(line, store)


def upgrade(line: Line, path: Path) -> None:
    """Move the store to this library's schema, then work with it, as a deploy does."""
    line.begin()
    EventStore.upgrade(path)
    with opened(line, path) as store:
        append_to_made(line, store)


def import_lines(line: Line, path: Path) -> None:
    pytest.MonkeyPatch().setattr(line_rows, "BATCH_LINES", BATCH_LINES)
    with opened(line, path) as store:
        line.begin()
        assert store.import_lines(path.with_name("events.jsonl")).refused == []


def import_aegis(line: Line, path: Path) -> None:
    with opened(line, path) as store:
        line.begin()
        assert store.import_aegis(path.with_name("state.json")).refused == []


def export(line: Line, path: Path) -> None:
    with opened(line, path) as store:
        line.begin()
        store.export(path.with_name(f"{line.number}.jsonl.gz"))
