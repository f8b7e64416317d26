"""Processes that remove events, and give back their room, while they may be killed."""

from datetime import timedelta
from pathlib import Path

import pytest

from aegis_store import EventStore, RetentionPolicy, StoreBusy
from aegis_store.retention import archive, truncate
from tests.crash.harness import Line
from tests.crash.writers import opened

LOWER_CAP = 10
SLICE = 20
"""Events of a slice, so that there are many moments between two."""


def in_small_slices() -> None:
    pytest.MonkeyPatch().setattr(truncate, "PRUNE_SLICE_EVENTS", SLICE)


def start(line: Line, path: Path) -> None:
    """Open a store whose startup job has work."""
    in_small_slices()
    line.begin()
    EventStore.open(path, durability="process", maintain_every=None).close()


def prune(line: Line, path: Path) -> None:
    in_small_slices()
    with opened(line, path) as store:
        line.begin()
        store.prune()


def prune_into_archive(line: Line, path: Path) -> None:
    in_small_slices()
    pytest.MonkeyPatch().setattr(archive, "ARCHIVE_FILE_EVENTS", 5 * SLICE)
    with opened(line, path) as store:
        line.begin()
        store.prune(archive_dir=path.with_name("archive"))


def maintain(line: Line, path: Path) -> None:
    """Live on while the maintenance is at work."""
    in_small_slices()
    every = timedelta(milliseconds=1)
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=every) as store:
        line.begin()
        while store.plan_prune().truncations:
            line.acknowledge()


def lower_the_cap(line: Line, path: Path) -> None:
    in_small_slices()
    with opened(line, path) as store:
        line.begin()
        store.set_retention_policy(RetentionPolicy(max_events=LOWER_CAP))


def delete(line: Line, path: Path) -> None:
    """Delete the live and the ended sessions one after the other; (session, 0, 0) for each deletion that returned."""
    in_small_slices()
    with opened(line, path) as store:
        names = sorted(session.session_id for session in store.list_sessions().sessions if " " in session.session_id)
        line.begin()
        for name in names:
            store.delete_session(name)
            line.acknowledge((name, 0, 0))


def delete_and_create_again(line: Line, path: Path) -> None:
    """Delete a session and create it again, over and over; (session, seq, 0) of what was appended."""
    in_small_slices()
    with opened(line, path) as store:
        line.begin()
        while line.goes_on():
            store.delete_session("live a")
            store.create_session("live a")
            for _ in range(30):
                line.acknowledge(("live a", store.append("live a", "t", "again").seq, 0))


def reclaim(line: Line, path: Path) -> None:
    with opened(line, path) as store:
        line.begin()
        store.reclaim()


def compact(line: Line, path: Path) -> None:
    """Until it gets the store, which others open now and then, for itself."""
    line.begin()
    while line.goes_on():
        try:
            EventStore.compact(path)
        except StoreBusy:
            line.acknowledge()
        else:
            return
