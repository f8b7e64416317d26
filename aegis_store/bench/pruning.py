"""Removing the events of sessions that have ended."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aegis_store.bench import floor
from aegis_store.bench.measure import Row, Sides, Turn, timed
from aegis_store.bench.room import Room, copied
from aegis_store.settings import PRUNE_SLICE_EVENTS
from aegis_store.store import EventStore

_SLICE_SQL: Final = f"""
DELETE FROM event WHERE position IN (SELECT position FROM event WHERE session = ? ORDER BY seq LIMIT {PRUNE_SLICE_EVENTS})"""


@contextmanager
def prunes(room: Room) -> Iterator[Sides]:
    """A turn is one prune, plan and all, of a store of ended sessions. The floor: the same slices as bare DELETEs."""
    full = room.filled("full.db", ended=True)
    names = (room.directory / f"turn-{number}.db" for number in itertools.count())
    yield Sides(lambda: _pruned(copied(full, next(names))), lambda: _deleted(copied(full, next(names))))


def _pruned(path: Path) -> Turn:
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        turn = timed(lambda: store.prune().events_removed)
    path.unlink()
    return turn


def _deleted(path: Path) -> Turn:
    with floor.connection(path, "power") as connection:
        connection.execute("DROP TRIGGER event_guards_delete")  # which lets no one delete what is not accounted for
        turn = timed(lambda: delete_ended(connection))
    path.unlink()
    return turn


def delete_ended(connection: Any) -> int:
    """Delete the events of all ended sessions, a slice a transaction; how many that were. Accounts for none of them."""
    gone = 0
    for (key,) in connection.execute("SELECT id FROM session WHERE ended_at IS NOT NULL").fetchall():
        while deleted := connection.execute(_SLICE_SQL, (key,)).rowcount:
            gone += deleted
    return gone


ROWS: Final = [Row("prune", "prune, power", "events", prunes)]
