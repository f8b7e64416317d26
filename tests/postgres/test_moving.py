"""The move of the orchestrator's state: imported into SQLite, copied to PostgreSQL and back, killed on the way or not."""

import json
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aegis_store import EventStore, RetentionPolicy, workload
from tests.copies import all_of

BEGAN = datetime(2026, 5, 23, 6, tzinfo=UTC)
COPY = """
import sys
from aegis_store import EventStore
from aegis_store.copying import records
records.BATCH_LINES = 20
EventStore.copy(*sys.argv[1:], on_progress=lambda done, total: print(done, flush=True))
"""


def state_file(file: Path, events: int) -> Path:
    """The state at which the old design fell over, or the begin of it, as its own file store wrote it."""
    ms = int(BEGAN.timestamp() * 1000)
    scope = {"tenantId": "acme", "ownerKeyId": "ci"}
    sessions = [
        {"id": f"s{n}", **scope, "status": status.value, "createdAt": ms + n, "updatedAt": ms + n, "correlationId": f"c{n}"}
        for n, status in enumerate(workload.statuses())
    ]
    counts = [0] * len(sessions)
    played = []
    for number, event in zip(range(events), workload.incident(), strict=False):
        counts[event.session] += 1
        at = (BEGAN + timedelta(microseconds=number)).isoformat()
        ids = {"sessionId": f"s{event.session}", "eventSeq": counts[event.session], "eventId": f"e{number}"}
        told = {"eventType": event.type, "occurredAt": at, "ingestedAt": at, "payload": event.payload}
        played.append({**ids, **scope, **told})
    file.write_text(json.dumps({"version": 1, "sessions": sessions, "events": played}, ensure_ascii=False))
    return file


def imported(path: Path, file: Path) -> Path:
    """A store of the file, with a cap that bites and a session that was deleted."""
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
        store.set_retention_policy(RetentionPolicy(max_events=30, terminal_grace=timedelta(days=10_000)))
        assert not store.import_aegis(file).refused
        store.delete_session("s7")
    return path


SIZES = [400, pytest.param(workload.EVENTS, marks=pytest.mark.torture)]


@pytest.mark.parametrize("events", SIZES)
def test_the_state_comes_back_from_postgresql_event_for_event(
    path: Path, postgres_url: str, tmp_path: Path, events: int
) -> None:
    source = imported(path, state_file(tmp_path / "state.json", events))
    EventStore.copy(source, postgres_url)
    EventStore.copy(postgres_url, tmp_path / "back.db")
    assert all_of(tmp_path / "back.db") == all_of(postgres_url) == all_of(source)
    with EventStore.open(tmp_path / "back.db", prune_on_open=False) as store:
        assert store.verify().ok


@pytest.mark.parametrize(("events", "kills"), [(400, 3), pytest.param(2000, 20, marks=pytest.mark.torture)])
@pytest.mark.parametrize("way", ["there", "back"])
def test_a_copy_that_is_killed_at_any_moment_goes_on(
    path: Path, postgres_url: str, tmp_path: Path, chance: random.Random, way: str, events: int, kills: int
) -> None:
    source: Path | str = imported(path, state_file(tmp_path / "state.json", events))
    target: Path | str = postgres_url
    if way == "back":
        EventStore.copy(source, target)
        source, target = postgres_url, tmp_path / "back.db"
    steps = events // 20 // kills
    for _ in range(kills):
        command = [sys.executable, "-c", COPY, str(source), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(steps)):
                process.stdout.readline()
            try:
                process.wait(chance.uniform(0, 0.05))
            except subprocess.TimeoutExpired:
                process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
    EventStore.copy(source, target)
    assert all_of(target) == all_of(source)
