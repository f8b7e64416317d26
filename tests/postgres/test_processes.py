"""Many processes on one server: nobody fails, nothing is lost, nothing comes twice, the cap is exact."""

from collections.abc import Callable

import pytest

from aegis_store import UNLIMITED, EventStore
from tests.concurrency.test_processes import PROCESSES, Team, all_events, assert_contiguous, write, written
from tests.concurrency.test_processes import team as team

OpenStore = Callable[..., EventStore]

SESSIONS = ["a", "b", "c"]
APPENDS = pytest.mark.parametrize("appends", [150, pytest.param(2000, marks=[pytest.mark.torture, pytest.mark.timeout(900)])])


@APPENDS
def test_eight_processes_append_to_the_same_sessions(store: EventStore, team: Team, postgres_url: str, appends: int) -> None:
    for name in SESSIONS:
        store.create_session(name, max_events=UNLIMITED)
    team.run(write, postgres_url, SESSIONS, appends)
    events = [event for name in SESSIONS for event in assert_contiguous(store, name)]
    assert sorted(written(events).elements()) == [(writer, index) for writer in range(PROCESSES) for index in range(appends)]


@APPENDS
def test_the_cap_is_exact_when_eight_processes_append_and_whoever_looks_meanwhile(
    store: EventStore, team: Team, postgres_url: str, appends: int
) -> None:
    for name in SESSIONS:
        store.create_session(name, max_events=20)
    results = team.start(write, postgres_url, SESSIONS, appends)
    for _ in range(40):
        for name in SESSIONS:
            assert len(all_events(store, name)) <= 20
            assert store.get_session(name).event_count <= 20
    results()
    for name in SESSIONS:
        assert len(assert_contiguous(store, name)) == 20
    assert sum(store.get_session(name).last_seq for name in SESSIONS) == PROCESSES * appends
