"""Processes that are killed while they remove: each opens a store that has much to lose, says "ready" and begins."""

from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from aegis_store import EventStore
from aegis_store.retention import truncate

SLICE = 20
"""Events of a slice, so that there are many moments between two."""


def opened(path: Path, maintain_every: timedelta | None = None) -> EventStore:
    pytest.MonkeyPatch().setattr(truncate, "PRUNE_SLICE_EVENTS", SLICE)
    return EventStore.open(path, durability="process", prune_on_open=False, maintain_every=maintain_every)


def prune(line: Connection, path: Path, seed: int) -> None:
    with opened(path) as store:
        line.send("ready")
        store.prune()
    line.send([])


def prune_into_archive(line: Connection, path: Path, seed: int) -> None:
    with opened(path) as store:
        line.send("ready")
        store.prune(archive_dir=path.with_name("archive"))
    line.send([])


def delete(line: Connection, path: Path, seed: int) -> None:
    """Delete the sessions one after the other; (session, 0, 0) of each deletion that returned."""
    with opened(path) as store:
        names = sorted(session.session_id for session in store.list_sessions().sessions)
        line.send("ready")
        for name in names:
            store.delete_session(name)
            line.send([(name, 0, 0)])


def delete_and_create_again(line: Connection, path: Path, seed: int) -> None:
    """Delete a session and create it again, over and over; (session, seq, 0) of what was appended."""
    with opened(path) as store:
        line.send("ready")
        while True:
            store.delete_session("live a")
            store.create_session("live a")
            for _ in range(30):
                line.send([("live a", store.append("live a", "t", "again").seq, 0)])


def maintain(line: Connection, path: Path, seed: int) -> None:
    """Live on while the maintenance is at work."""
    with opened(path, timedelta(milliseconds=1)) as store:
        line.send("ready")
        while store.plan_prune().truncations:
            pass
    line.send([])
