"""The stores that processes are killed at: each is made once, and copied for every kill."""

import gzip
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from aegis_store import UNLIMITED, EventStore, NewEvent, RetentionPolicy, driver
from tests.crash.writers import SESSIONS

CAP = 20
DAY = timedelta(days=1)
FROZEN = Path(__file__).parents[1] / "migrations" / "frozen" / "0001.db.gz"

EVENTS = 300
"""Of each session that has much to lose."""
LIVE = ("live a", "live b")
ENDED = ("ended a", "ended b", "ended c")
HELD = "held"

SPREAD = tuple(f"s{number}" for number in range(12))
"""Sessions of which each event lies on a page with those of others."""


def opened(path: Path) -> EventStore:
    """The store, for one who changes nothing by opening it."""
    return EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None)


class Stores:
    """The files; `empty` is a store as any is made."""

    def __init__(self, directory: Path, empty: Path) -> None:
        self._directory = directory
        self._empty = empty

    @cached_property
    def uncapped(self) -> Path:
        """The sessions that writers append to."""
        return self._with_sessions("uncapped.db", RetentionPolicy(max_events=UNLIMITED))

    @cached_property
    def capped(self) -> Path:
        return self._with_sessions("capped.db", RetentionPolicy(max_events=CAP))

    def _with_sessions(self, name: str, policy: RetentionPolicy) -> Path:
        path = self._directory / name
        shutil.copyfile(self._empty, path)
        with opened(path) as store:
            store.set_retention_policy(policy)
            for session_id in SESSIONS:
                store.create_session(session_id)
        return path

    def _with_sessions_apart(self, name: str) -> Path:
        """No prune touches what the writers append."""
        path = self._with_sessions(name, RetentionPolicy(max_events=UNLIMITED))
        with opened(path) as store:
            for session_id in SESSIONS:
                store.update_session(session_id, max_events=UNLIMITED, hold=True)
        return path

    @cached_property
    def full(self) -> Path:
        """Two live sessions, three that ended two days ago, one of them on hold beside; half of the events are as old."""
        path, half = self._with_sessions_apart("full.db"), EVENTS // 2
        new = [NewEvent(type="t", payload={"n": n, "text": "x" * (n % 200)}) for n in range(1, EVENTS + 1)]
        with opened(path) as store:
            with pytest.MonkeyPatch.context() as patch:
                two_days_ago_ns = time.time_ns() - 2 * 86_400_000_000_000
                patch.setattr(time, "time_ns", lambda: two_days_ago_ns)
                for name in (*LIVE, *ENDED, HELD):
                    store.create_session(name)
                    store.append_many(name, new[:half])
                store.update_session(HELD, hold=True)
                for name in (*ENDED, HELD):
                    store.set_status(name, "closed")
            for name in (*LIVE, *ENDED, HELD):
                store.append_many(name, new[half:])
        return path

    @cached_property
    def thin(self) -> Path:
        """Every second of the sessions that share pages was pruned: pages are free, others half empty."""
        path = self._with_sessions_apart("thin.db")
        with opened(path) as store:
            for name in SPREAD:
                store.create_session(name)
            for number in range(30):
                for name in SPREAD:
                    store.append(name, "note", {"number": number, "text": "x" * 2400}, event_id=f"{name} {number}")
            for name in SPREAD[::2]:
                store.set_status(name, "closed")
            store.prune()
        return path

    @cached_property
    def mixed(self) -> Path:
        """Sessions of every kind, at their caps and below, whose events take turns."""
        path = self._directory / "mixed.db"
        shutil.copyfile(self._empty, path)
        with opened(path) as store:
            for number, name in enumerate(SPREAD):
                store.create_session(name, tenant=f"t{number % 3}", metadata={"n": number}, max_events=15 + 5 * number)
            for number in range(25):
                for name in SPREAD:
                    store.append(name, "note", {"number": number, "zero": -0.0}, event_id=f"e{number}", run_id=name)
            for name in SPREAD[::4]:
                store.set_status(name, "failed")
        return path

    @cached_property
    def lines(self) -> Path:
        """All that `mixed` holds, as JSON lines."""
        file = self._directory / "events.jsonl"
        with opened(self.mixed) as store:
            store.export(file)
        return file

    @cached_property
    def state(self) -> Path:
        """40 sessions of 30 events in a state file of the orchestrator."""
        file = self._directory / "state.json"
        scope = {"tenantId": "t", "ownerKeyId": "o"}
        time_text = "2026-05-23T06:03:43.248Z"
        names = [f"s{number}" for number in range(40)]
        state = {
            "version": 1,
            "sessions": [{"id": name, "status": "running", "createdAt": 1, "updatedAt": 1, **scope} for name in names],
            "events": [
                {"sessionId": name, "eventSeq": seq, "eventId": f"{name}:{seq}", "eventType": "hook", "payload": seq, **scope}
                | {"occurredAt": time_text, "ingestedAt": time_text}
                for seq in range(1, 31)
                for name in names
            ],
        }
        file.write_text(json.dumps(state))
        return file

    @cached_property
    def old(self) -> Path:
        """A store of the first schema, with 2,000 events more than that release left in it."""
        path = self._directory / "old.db"
        path.write_bytes(gzip.decompress(FROZEN.read_bytes()))
        append = """
            INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)
            SELECT id, last_seq + 1, 't', 1, last_event_at, total_bytes, ? FROM session WHERE session_id = 'unlimited'
        """
        with closing(driver.dbapi.connect(str(path), isolation_level=None)) as shell:
            shell.execute("BEGIN")
            shell.executemany(append, [(json.dumps({"n": n, "text": "x" * 200}),) for n in range(2000)])
            shell.execute("COMMIT")
        return path


def records(path: Path, names: Sequence[str] = SPREAD) -> list[Any]:
    """All that an export says of these sessions and their events, in its order; positions are each store's own."""
    file = path.with_name("looked-at.jsonl")
    with opened(path) as store:
        store.export(file)
    found = []
    for line in map(json.loads, file.read_text().splitlines()):
        record = line.get("session") or line.get("event")
        if record is not None and record["session_id"] in names:
            record.pop("position", None)
            found.append(record)
    file.unlink()
    return found
