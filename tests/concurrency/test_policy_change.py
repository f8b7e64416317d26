"""The policy is changed while other processes write: every bound holds from then on, and nobody gets an error."""

from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path

from aegis_store import UNLIMITED, EventStore, RetentionPolicy

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


def write(ready: Event, path: Path, first: int) -> None:
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
        ready.set()
        for number in range(500):
            store.append(f"s{(first + number) % 6}", "note", "x" * 98)


def test_a_policy_changed_while_4_processes_write_holds_for_all_of_them(path: Path, context: ForkServerContext) -> None:
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        for number in range(6):
            store.create_session(f"s{number}")
        ready = [context.Event() for _ in range(PROCESSES)]
        writers = [context.Process(target=write, args=(ready[number], path, number)) for number in range(PROCESSES)]
        for writer in writers:
            writer.start()
        assert all(each.wait(60) for each in ready)
        changes = 0
        while changes < len(POLICIES) or any(writer.is_alive() for writer in writers):
            policy = POLICIES[changes % len(POLICIES)]
            store.set_retention_policy(policy)
            assert_within(store, policy)
            store.prune()
            changes += 1
        assert [writer.exitcode for writer in writers] == [0] * PROCESSES
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
