"""The policy is changed while other processes write: every bound holds from then on, and nobody gets an error."""

import subprocess
import sys
from pathlib import Path

from aegis_store import UNLIMITED, EventStore, RetentionPolicy

WRITER = """
import sys
from aegis_store import EventStore
path, first = sys.argv[1], int(sys.argv[2])
with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
    print("ready", flush=True)
    for number in range(500):
        store.append(f"s{(first + number) % 6}", "note", "x" * 98)
print("done", flush=True)
"""
PROCESSES = 4
POLICIES = (
    RetentionPolicy(max_events=200),
    RetentionPolicy(max_events=UNLIMITED, max_bytes=5_000),
    RetentionPolicy(max_events=40, max_total_bytes=20_000),
    RetentionPolicy(max_events=UNLIMITED, max_total_bytes=12_000),
    RetentionPolicy(max_events=25, max_bytes=2_000),
)


def assert_within(store: EventStore, policy: RetentionPolicy) -> None:
    sessions = store.list_sessions().sessions
    assert policy.max_events is UNLIMITED or all(session.event_count <= policy.max_events for session in sessions)
    for session in sessions:
        page = store.read(session.session_id, limit=1000)
        assert [event.seq for event in page.events] == list(range(page.first_seq, page.first_seq + len(page.events)))


def test_a_policy_changed_while_4_processes_write_holds_for_all_of_them(path: Path) -> None:
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        for number in range(6):
            store.create_session(f"s{number}")
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)], stdout=subprocess.PIPE, text=True)
            for number in range(PROCESSES)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        changes = 0
        while changes < len(POLICIES) or any(writer.poll() is None for writer in writers):
            policy = POLICIES[changes % len(POLICIES)]
            store.set_retention_policy(policy)
            assert_within(store, policy)
            store.prune()
            changes += 1
        assert [writer.communicate()[0] for writer in writers] == ["done\n"] * PROCESSES
        assert [writer.returncode for writer in writers] == [0] * PROCESSES
        for policy in POLICIES:
            store.set_retention_policy(policy)
            store.prune()
            assert_within(store, policy)
            stats = store.stats()
            assert policy.max_bytes is None or all(
                session.retained_bytes <= policy.max_bytes for session in store.list_sessions().sessions
            )
            assert policy.max_total_bytes is None or stats.retained_bytes <= policy.max_total_bytes
        assert sum(session.last_seq for session in store.list_sessions().sessions) == PROCESSES * 500
