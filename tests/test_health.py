"""The health of a store: whether it is well, and what to look at if not."""

import os
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, Health, NewEvent, RetentionPolicy, StoreClosed
from aegis_store.retention import maintenance, prune
from tests.test_sessions import add_sessions, vm_steps

OpenStore = Callable[..., EventStore]

HOUR = timedelta(hours=1)


def add(store: EventStore, session_id: str, events: int, status: str = "running") -> None:
    store.create_session(session_id, status=status)
    store.append_many(session_id, [NewEvent(type="t", payload=number) for number in range(events)])


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("boom")


# Well


def test_a_new_store_is_well(store: EventStore) -> None:
    health = store.health()
    assert (health.ok, health.problems) == (True, ())


def test_a_new_store_has_nothing_to_tell_of_budget_maintenance_or_prunes(store: EventStore) -> None:
    health = store.health()
    assert (health.retained_bytes, health.max_total_bytes, health.budget_used) == (None, None, None)
    assert (health.maintained_at, health.maintenance_error) == (None, None)
    assert (health.last_prune_at, health.last_prune_outcome) == (None, None)


@pytest.mark.parametrize(
    ("options", "every"),
    [({}, HOUR), ({"maintain_every": 2 * HOUR}, 2 * HOUR), ({"maintain_every": None}, None), ({"read_only": True}, None)],
)
def test_health_tells_how_often_this_process_maintains_the_store(
    open_store: OpenStore, options: dict[str, Any], every: timedelta | None
) -> None:
    assert open_store(**options).health().maintain_every == every


def test_the_sizes_are_those_of_the_files(store: EventStore, path: Path) -> None:
    add(store, "s", 100)
    health = store.health()
    assert health.file_bytes == path.stat().st_size
    assert health.wal_bytes == os.stat(f"{path}-wal").st_size > 0


def test_free_bytes_are_the_empty_pages(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s", status="closed")
    store.append_many("s", [NewEvent(type="t", payload="x" * 5000) for _ in range(50)])
    store.prune()
    (pages,) = shell.execute("PRAGMA freelist_count").fetchone()
    assert store.health().free_bytes == pages * 8192 > 0


def test_a_read_only_store_tells_its_health(store: EventStore, open_store: OpenStore) -> None:
    add(store, "s", 3)
    assert open_store(read_only=True).health().ok


def test_a_closed_store_tells_nothing(path: Path) -> None:
    store = EventStore.open(path)
    store.close()
    with pytest.raises(StoreClosed):
        store.health()


# Budget


@pytest.mark.parametrize(("budget", "used"), [(20, 0.5), (10, 1.0), (8, 1.25)])
def test_budget_used_is_the_part_of_the_budget_that_payloads_take(store: EventStore, budget: int, used: float) -> None:
    add(store, "s", 10)
    store.set_retention_policy(RetentionPolicy(max_total_bytes=budget))
    health = store.health()
    assert (health.retained_bytes, health.max_total_bytes, health.budget_used) == (10, budget, used)


@pytest.mark.parametrize(("budget", "ok"), [(11, True), (10, True), (9, False)])
def test_a_store_over_its_budget_is_not_well(store: EventStore, budget: int, ok: bool) -> None:
    add(store, "s", 10)
    store.set_retention_policy(RetentionPolicy(max_total_bytes=budget))
    assert store.health().ok == ok


def test_the_problem_tells_by_how_much_the_budget_is_exceeded(store: EventStore) -> None:
    add(store, "s", 10)
    store.append("s", "t", "x" * 2000)
    store.set_retention_policy(RetentionPolicy(max_total_bytes=12))
    (problem,) = store.health().problems
    assert "2,000 bytes over its budget" in problem
    assert "max_total_bytes" in problem


def test_a_store_brought_back_into_its_budget_is_well_again(store: EventStore) -> None:
    add(store, "s", 10)
    store.set_retention_policy(RetentionPolicy(max_total_bytes=5))
    store.prune()
    health = store.health()
    assert (health.ok, health.budget_used) == (True, 0.8)


def test_budget_used_follows_every_append(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_total_bytes=10))
    store.create_session("s")
    used = []
    for number in range(3):
        store.append("s", "t", number)
        used.append(store.health().budget_used)
    assert used == [0.1, 0.2, 0.3]


# Prunes


def test_the_last_prune_is_told_with_its_time_and_outcome(store: EventStore) -> None:
    before = datetime.now(UTC)
    store.prune()
    health = store.health()
    assert before <= (health.last_prune_at or before - HOUR) <= datetime.now(UTC)
    assert health.last_prune_outcome == "done"


@pytest.fixture
def failed_prune(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose last prune failed after its first slice."""
    add(store, "s", 3, "closed")
    with monkeypatch.context() as patch:
        patch.setattr(prune, "let_writers_through", fail)
        with pytest.raises(RuntimeError):
            store.prune()


@pytest.mark.usefixtures("failed_prune")
def test_a_store_whose_last_prune_failed_is_not_well(store: EventStore) -> None:
    health = store.health()
    assert (health.ok, health.last_prune_outcome) == (False, "failed: RuntimeError")
    (problem,) = health.problems
    assert "failed: RuntimeError" in problem


@pytest.mark.usefixtures("failed_prune")
def test_a_prune_that_failed_in_one_process_is_told_in_another(open_store: OpenStore) -> None:
    assert not open_store(prune_on_open=False).health().ok


@pytest.mark.usefixtures("failed_prune")
def test_a_store_is_well_again_once_a_prune_has_gone_well(store: EventStore) -> None:
    store.prune()
    assert store.health().ok


def test_a_prune_that_was_interrupted_is_no_problem(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    add(store, "s", 3, "closed")
    monkeypatch.setattr(prune, "let_writers_through", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.prune()
    health = store.health()
    assert (health.ok, health.last_prune_outcome) == (True, "interrupted")


def test_a_prune_that_was_killed_or_is_at_work_is_told_as_that(store: EventStore, shell: sqlite3.Connection) -> None:
    store.prune()
    shell.execute("UPDATE prune_run SET outcome = NULL")
    health = store.health()
    assert (health.ok, health.last_prune_outcome) == (True, "at work, or killed")


def test_a_deletion_is_told_as_a_prune(store: EventStore) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    assert store.health().last_prune_outcome == "done"


# Maintenance


def test_a_maintenance_that_failed_is_told_by_the_process_whose_it_was(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    monkeypatch.setattr(maintenance, "plan", fail)
    store = open_store(maintain_every=timedelta(milliseconds=20))
    wait = store._maintenance
    assert wait is not None
    whole_turn, turns = wait._turn, []

    def turn() -> float:
        turns.append(1)
        if len(turns) > 1:  # what the one before left behind is there by now
            told.set()
        return whole_turn()

    monkeypatch.setattr(wait, "_turn", turn)
    assert told.wait(60)
    health = store.health()
    assert (health.ok, health.maintenance_error) == (False, "RuntimeError: boom")
    assert health.problems == ("the last maintenance of this process failed: RuntimeError: boom",)
    assert open_store(prune_on_open=False).health().ok


def test_several_problems_are_told_together(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 10)
    store.set_retention_policy(RetentionPolicy(max_total_bytes=5))
    store.prune()
    store.append_many("s", [NewEvent(type="t", payload=1)] * 5)
    shell.execute("UPDATE prune_run SET outcome = 'failed: OSError'")
    assert len(store.health().problems) == 2


# Cost


def test_health_costs_the_same_in_a_small_and_in_a_large_store(store: EventStore, shell: sqlite3.Connection) -> None:
    def cost() -> int:
        return vm_steps(store, store.health)

    store.set_retention_policy(RetentionPolicy(max_total_bytes=10**9))
    add(store, "s", 1)
    for name in ("one", "two"):  # so that there is a note of what was removed, in the small store too
        add(store, name, 1)
        store.delete_session(name)
    store.prune()
    small = cost()
    add_sessions(shell, 3000)
    store.append_many("s", [NewEvent(type="t", payload="x" * 100) for _ in range(1000)])
    for _ in range(50):
        store.prune()
    store.create_session("deleted")
    store.delete_session("deleted")
    assert cost() == small > 0


def test_health_is_a_value(store: EventStore) -> None:
    health = store.health()
    assert isinstance(health, Health)
    assert health == store.health()
