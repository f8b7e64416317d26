"""What holds of every store, whoever was killed."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from aegis_store import Event, EventStore, driver
from aegis_store.file_lock import FileLock
from aegis_store.record_copy import intact_sql
from tests.crash.harness import Aftermath
from tests.crash.stores import opened
from tests.crash.writers import SESSIONS

_COUNTS_DIFFER = """
    SELECT session.session_id FROM session LEFT JOIN event ON event.session = session.id GROUP BY session.id
    HAVING count(event.seq) <> last_seq - first_seq + 1
        OR (count(event.seq) AND (min(event.seq) <> first_seq OR max(event.seq) <> last_seq))
        OR (count(event.seq) AND total_bytes <> min(bytes_before) + sum(length(CAST(payload AS BLOB))))
"""


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(driver.dbapi.connect(str(path))) as connection:
        found: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return found


def all_events(store: EventStore, session_id: str) -> list[Event]:
    events: list[Event] = []
    while True:
        page = store.read(session_id, after_seq=events[-1].seq if events else None, limit=1000)
        events += page.events
        if not page.has_more:
            return events


def assert_whole(path: Path) -> None:
    """The file is whole, and what the sessions count is what the events are. Of a store of any schema."""
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "PRAGMA foreign_key_check") == []
    assert rows(path, _COUNTS_DIFFER) == []


def assert_sound(path: Path) -> None:
    """The same, and all that the newest schema says of a store holds."""
    assert_whole(path)
    for table in ("session", "store", "tombstone", "prune_run"):
        assert rows(path, f"SELECT * FROM {table} WHERE NOT ({intact_sql(table)})") == []
    # A session without a name has a tombstone, or was created again; nobody has both a tombstone and a session.
    assert rows(path, "SELECT * FROM session JOIN tombstone USING (session_id)") == []
    ((counted, budget),) = rows(path, "SELECT retained_bytes, max_total_bytes FROM store")
    ((payload_bytes,),) = rows(path, "SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM event")
    assert counted == (None if budget is None else payload_bytes)


def assert_lock_is_free(path: Path) -> None:
    """The dead took the turn at the store with them. (Whoever they left it to has some time to die.)"""
    lock = FileLock(path.with_name(path.name + "-lock"), mode=0o600)
    try:
        deadline = time.monotonic() + 10
        while not lock.try_acquire():
            assert time.monotonic() < deadline, "the turn of a process that is dead was not given back"
    finally:
        lock.close()


def assert_kept(path: Path, aftermath: Aftermath, *, cap: int | None = None, in_flight: int = 1) -> None:
    """Of what the writers were told nothing is lost, but by the cap, and nothing is there twice; the next append has its turn.

    `in_flight`: how many events of each process that was killed may be there without having been acknowledged.
    """
    found: dict[tuple[str, int], int] = {}
    first_seqs: dict[str, int] = {}
    stored = 0
    with opened(path) as store:
        for name in SESSIONS:
            session, events = store.ensure_session(name), all_events(store, name)
            assert session.first_seq == (max(1, session.last_seq - cap + 1) if cap else 1)
            assert [event.seq for event in events] == list(range(session.first_seq, session.last_seq + 1))
            assert store.append(name, "note", {"number": -1}).seq == session.last_seq + 1
            found |= {(name, event.seq): event.payload["number"] for event in events}
            first_seqs[name] = session.first_seq
            stored += session.last_seq
    assert_sound(path)
    told = {(name, seq): number for name, seq, number in aftermath.acknowledged if name in SESSIONS}
    assert {key for key, number in told.items() if key[1] >= first_seqs[key[0]] and found.get(key) != number} == set()
    assert len(set(found.values())) == len(found)
    assert len(told) == sum(name in SESSIONS for name, *_ in aftermath.acknowledged)
    assert 0 <= stored - len(told) <= in_flight * aftermath.killed
