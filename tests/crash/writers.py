"""Processes that are killed in the middle of their work. Each says through `line` what it was told is done."""

import random
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from aegis_store import EventStore, NewEvent, RetentionPolicy

SESSIONS = ("a", "b", "c")


def append(line: Connection, path: Path, seed: int, durability: Literal["power", "process"]) -> None:
    """One event after the other; (session, seq, number) of each that was acknowledged."""
    chance = random.Random(seed)
    with EventStore.open(path, durability=durability) as store:
        line.send("ready")
        for number in count():
            event = store.append(chance.choice(SESSIONS), "note", payload(chance, number))
            line.send([(event.session_id, event.seq, number)])


def append_many(line: Connection, path: Path, seed: int) -> None:
    """Groups of events in one transaction each."""
    chance = random.Random(seed)
    with EventStore.open(path, durability="process") as store:
        line.send("ready")
        numbers = count()
        while True:
            group = [next(numbers) for _ in range(chance.randint(1, 30))]
            whole = {"first": group[0], "size": len(group)}
            new = [NewEvent(type="note", payload=payload(chance, number) | whole) for number in group]
            events = store.append_many(chance.choice(SESSIONS), new)
            line.send([(event.session_id, event.seq, number) for event, number in zip(events, group, strict=True)])


def payload(chance: random.Random, number: int) -> dict[str, Any]:
    return {"number": number, "text": "x" * chance.choice((0, 100, 2500, 20_000))}


def create(line: Connection, path: Path, seed: int) -> None:
    """Open a store that does not stand yet."""
    line.send("ready")
    EventStore.open(path).close()
    line.send([])


def prune(line: Connection, path: Path, seed: int) -> None:
    """Open a store whose startup job has work."""
    line.send("ready")
    EventStore.open(path, durability="process").close()
    line.send([])


def lower_the_cap(line: Connection, path: Path, seed: int) -> None:
    with EventStore.open(path, durability="process", prune_on_open=False) as store:
        line.send("ready")
        store.set_retention_policy(RetentionPolicy(max_events=10))
    line.send([])


def bring_in(line: Connection, path: Path, seed: int) -> None:
    with EventStore.open(path, durability="process", prune_on_open=False) as store:
        line.send("ready")
        store.import_aegis(path.with_name("state.json"))
    line.send([])
