"""The policy, the startup job, and pruning: what goes, what stays, and what is said of it."""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    EventStore,
    EventsTruncated,
    InvalidInput,
    InvalidPolicy,
    NewEvent,
    PrunePlan,
    ReadOnlyStore,
    RetentionPolicy,
    SessionNotFound,
    Status,
    driver,
)
from aegis_store.events import EPOCH
from aegis_store.retention.find import work_queries
from aegis_store.retention.policy import Decision, SessionState

OpenStore = Callable[..., EventStore]

TERMINAL = ("closed", "completed", "failed")
LIVE = ("initializing", "idle", "running", "paused", "intervening", "closing")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def fill(store: EventStore, session_id: str, count: int) -> None:
    store.append_many(session_id, [NewEvent(type="t", payload=number) for number in range(count)])


def add(store: EventStore, session_id: str, count: int, status: str = "running", **options: Any) -> None:
    store.create_session(session_id, status=status, **options)
    fill(store, session_id, count)


def seqs(store: EventStore, session_id: str = "s") -> list[int]:
    return [event.seq for event in store.read(session_id, limit=1000).events]


def counts(store: EventStore) -> dict[str, int]:
    return {session.session_id: session.event_count for session in store.list_sessions().sessions}


def set_ended_at(shell: sqlite3.Connection, session_id: str, moment: datetime) -> None:
    us = (moment - EPOCH) // timedelta(microseconds=1)
    shell.execute("UPDATE session SET ended_at = ? WHERE session_id = ?", (us, session_id))


def agrees_with_itself(store: EventStore, shell: sqlite3.Connection) -> bool:
    """Whether each session holds exactly the events from first_seq to last_seq."""
    for session in store.list_sessions(limit=1000).sessions:
        query = "SELECT seq FROM event WHERE session = (SELECT id FROM session WHERE session_id = ?) ORDER BY seq"
        stored = [row[0] for row in shell.execute(query, (session.session_id,))]
        if stored != list(range(session.first_seq, session.last_seq + 1)):
            return False
    return True


# The startup job


@pytest.mark.parametrize("status", TERMINAL)
def test_opening_a_store_removes_the_events_of_sessions_that_ended(open_store: OpenStore, status: str) -> None:
    first = open_store()
    add(first, "s", 5)
    first.set_status("s", status)
    first.close()
    assert counts(open_store()) == {"s": 0}


@pytest.mark.parametrize("status", LIVE)
def test_opening_a_store_leaves_the_events_of_other_sessions(open_store: OpenStore, status: str) -> None:
    first = open_store()
    add(first, "s", 5, status)
    first.close()
    assert seqs(open_store()) == [1, 2, 3, 4, 5]


def test_opening_a_store_leaves_a_session_on_hold(open_store: OpenStore) -> None:
    first = open_store()
    add(first, "s", 5, "closed")
    first.update_session("s", hold=True)
    first.close()
    assert seqs(open_store()) == [1, 2, 3, 4, 5]


def test_a_session_released_from_its_hold_is_pruned_at_the_next_open(open_store: OpenStore) -> None:
    first = open_store()
    add(first, "s", 5, "closed")
    first.update_session("s", hold=True)
    first.update_session("s", hold=False)
    first.close()
    assert counts(open_store()) == {"s": 0}


@pytest.mark.parametrize("options", [{"prune_on_open": False}, {"read_only": True}])
def test_opening_a_store_prunes_nothing_when_told_so_or_when_read_only(open_store: OpenStore, options: dict[str, bool]) -> None:
    first = open_store()
    add(first, "s", 5, "closed")
    first.close()
    assert counts(open_store(**options)) == {"s": 5}


def test_seq_goes_on_after_a_session_was_pruned_and_the_store_reopened_twice(open_store: OpenStore) -> None:
    store = open_store()
    add(store, "s", 5)
    store.set_status("s", "completed")
    for _ in range(2):
        store.close()
        store = open_store()
    assert store.append("s", "t", "last words").seq == 6


def test_last_words_after_the_startup_job_go_with_the_next(open_store: OpenStore) -> None:
    store = open_store()
    add(store, "s", 5, "completed")
    for seq in (6, 7):
        store.close()
        store = open_store()
        assert store.append("s", "t", "last words").seq == seq
        assert seqs(store) == [seq]


def test_the_session_itself_stays_when_its_events_go(open_store: OpenStore) -> None:
    first = open_store()
    add(first, "s", 5, "closed", metadata={"k": 1}, tenant="t")
    before = first.get_session("s")
    first.close()
    after = open_store().get_session("s")
    assert (after.metadata, after.tenant, after.status) == ({"k": 1}, "t", "closed")
    assert (after.updated_at, after.ended_at, after.last_seq) == (before.updated_at, before.ended_at, 5)


def test_the_session_says_what_the_startup_job_removed(open_store: OpenStore) -> None:
    first = open_store()
    first.create_session("s", status="closed")
    for payload in ("aa", "bbb"):
        first.append("s", "t", payload)
    first.close()
    before = datetime.now(UTC) - timedelta(microseconds=1)
    session = open_store().get_session("s")
    assert (session.removed_events, session.removed_bytes, session.retained_bytes) == (2, len('"aa""bbb"'), 0)
    assert session.removed_reason == "terminal_grace"
    assert session.removed_at is not None
    assert before <= session.removed_at <= datetime.now(UTC)


def test_the_startup_job_logs_one_line_that_says_what_went(open_store: OpenStore, caplog: pytest.LogCaptureFixture) -> None:
    first = open_store()
    add(first, "a", 5, "closed")
    add(first, "b", 2, "failed")
    add(first, "c", 9)
    first.close()
    with caplog.at_level(logging.INFO, logger="aegis_store"):
        open_store()
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("aegis_store")]
    assert "7 events" in line
    assert "2 sessions" in line
    assert "terminal_grace 7" in line


def test_the_startup_job_logs_nothing_when_nothing_goes(open_store: OpenStore, caplog: pytest.LogCaptureFixture) -> None:
    first = open_store()
    add(first, "s", 5)
    add(first, "ended", 0, "closed")
    first.close()
    with caplog.at_level(logging.DEBUG, logger="aegis_store"):
        open_store()
    assert [record for record in caplog.records if record.name.startswith("aegis_store")] == []


def test_a_store_opened_with_a_grace_leaves_sessions_that_just_ended(open_store: OpenStore) -> None:
    first = open_store()
    first.set_retention_policy(RetentionPolicy(terminal_grace=HOUR))
    add(first, "s", 3, "closed")
    first.close()
    assert counts(open_store()) == {"s": 3}


# What the startup job looks at


def add_rows_without_work(shell: sqlite3.Connection, name: str, count: int) -> None:
    """Sessions that have nothing to lose: live ones that hold events, ended ones that hold none."""
    shell.execute("DROP TRIGGER IF EXISTS session_guards_insert")  # which would want the events too
    shell.execute("BEGIN")
    shell.executemany(
        "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at, ended_at, first_seq, last_seq)"
        " VALUES (?, 't', 'o', ?, 1, 1, ?, ?, 5)",
        [(f"{name} {number}", *(("running", None, 1) if number % 2 else ("closed", number, 6))) for number in range(count)],
    )
    shell.execute("COMMIT")


EVERY_LIMIT = RetentionPolicy(
    terminal_grace=HOUR, max_age=HOUR, max_bytes=10**6, max_total_bytes=10**9, forget_sessions_after=HOUR
)


@pytest.mark.parametrize("policy", [RetentionPolicy(), EVERY_LIMIT], ids=["the default", "every limit"])
def test_sessions_to_prune_are_found_by_the_index_of_each_limit(
    store: EventStore, shell: sqlite3.Connection, policy: RetentionPolicy
) -> None:
    indexes = []
    for query in work_queries(policy, NOON, in_force=True):
        statement = str(query.compile(store._db._engine, compile_kwargs={"literal_binds": True}))
        (*_, step), *number_of_store = shell.execute(f"EXPLAIN QUERY PLAN {statement}")
        assert all("identity" in each or "SCALAR" in each for *_, each in number_of_store)
        assert step.startswith(("SCAN session USING INDEX ", "SEARCH session USING INDEX ")), step
        indexes.append(step.split()[4])
    wanted = ["sqlite_autoindex_session_1", "session_prunable", "session_ageing", "session_oversize", "session_forgettable"]
    assert indexes == (wanted if policy is EVERY_LIMIT else wanted[:2])


def test_opening_costs_the_same_with_10_and_20000_sessions_when_there_is_nothing_to_prune(
    open_store: OpenStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connect = driver.dbapi.connect

    def connect_counted(*args: Any, **options: Any) -> Any:
        connection = connect(*args, **options)
        connection.set_progress_handler(count, 1)
        return connection

    monkeypatch.setattr(driver.dbapi, "connect", connect_counted)

    def cost_of_opening() -> int:
        nonlocal steps
        steps = 0
        open_store().close()
        return steps

    add_rows_without_work(shell, "few", 10)
    few = cost_of_opening()
    add_rows_without_work(shell, "many", 20_000)
    assert few > 0
    assert cost_of_opening() == few


# Plans


def test_a_plan_shows_what_would_go_and_removes_nothing(store: EventStore) -> None:
    store.create_session("s", status="completed")
    for payload in ("aa", "bbb"):
        store.append("s", "t", payload)
    plan = store.plan_prune(now=NOON)
    [truncation] = plan.truncations
    assert (truncation.session_id, truncation.status, truncation.reason) == ("s", Status.COMPLETED, "terminal_grace")
    assert (truncation.first_seq, truncation.keep_from_seq, truncation.events, truncation.bytes) == (1, 3, 2, 9)
    assert (plan.events, plan.bytes, plan.now, plan.policy) == (2, 9, NOON, RetentionPolicy())
    assert seqs(store) == [1, 2]


def test_a_plan_counts_only_what_is_still_there(store: EventStore) -> None:
    add(store, "s", 5, "closed", max_events=3)
    [truncation] = store.plan_prune().truncations
    assert (truncation.first_seq, truncation.keep_from_seq, truncation.events, truncation.bytes) == (3, 6, 3, 3)


def test_a_plan_names_sessions_that_ended_first_first(store: EventStore, shell: sqlite3.Connection) -> None:
    for number, session_id in enumerate(("b", "a", "c")):
        add(store, session_id, 1, "closed")
        set_ended_at(shell, session_id, NOON + number * HOUR)
    assert [truncation.session_id for truncation in store.plan_prune().truncations] == ["b", "a", "c"]


def test_a_plan_of_nothing_is_empty(store: EventStore) -> None:
    add(store, "live", 3)
    add(store, "empty", 0, "closed")
    plan = store.plan_prune()
    assert (plan.truncations, plan.events, plan.bytes) == ((), 0, 0)


@pytest.mark.parametrize(("late", "goes"), [(timedelta(0), True), (timedelta(microseconds=-1), False), (HOUR, True)])
def test_a_session_keeps_its_events_until_its_grace_is_over(
    store: EventStore, shell: sqlite3.Connection, late: timedelta, goes: bool
) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=HOUR))
    add(store, "s", 2, "closed")
    set_ended_at(shell, "s", NOON)
    assert store.plan_prune(now=NOON + HOUR + late).events == (2 if goes else 0)


def test_without_a_grace_the_clock_is_not_asked(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 2, "closed")
    set_ended_at(shell, "s", NOON)
    assert store.plan_prune(now=NOON - 10_000 * HOUR).events == 2


def test_with_a_grace_a_clock_that_went_back_removes_nothing(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=HOUR))
    add(store, "s", 2, "closed")
    set_ended_at(shell, "s", NOON)
    assert store.prune(store.plan_prune(now=NOON - HOUR)).events_removed == 0
    assert seqs(store) == [1, 2]


def test_now_may_be_given_in_any_time_zone(store: EventStore) -> None:
    plan = store.plan_prune(now=NOON.astimezone(timezone(timedelta(hours=5))))
    assert plan.now == NOON
    assert plan.now.utcoffset() == timedelta(0)


@pytest.mark.parametrize("now", [datetime(2026, 1, 1), "now", 5])
def test_now_is_an_aware_datetime(store: EventStore, now: Any) -> None:
    with pytest.raises(InvalidInput, match="now"):
        store.plan_prune(now=now)


def test_a_now_at_the_beginning_of_time_removes_nothing_under_a_grace(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=HOUR))
    add(store, "s", 2, "closed")
    assert store.plan_prune(now=datetime.min.replace(tzinfo=UTC)).events == 0


def test_a_read_only_store_plans_and_does_not_prune(store: EventStore, open_store: OpenStore) -> None:
    add(store, "s", 3, "closed")
    reader = open_store(read_only=True)
    plan = reader.plan_prune()
    assert plan.events == 3
    with pytest.raises(ReadOnlyStore):
        reader.prune(plan)
    with pytest.raises(ReadOnlyStore):
        reader.prune()
    assert seqs(store) == [1, 2, 3]


# Prune


def test_a_prune_does_what_its_plan_says(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "ended", 3, "closed")
    add(store, "failed", 2, "failed")
    add(store, "live", 4)
    plan = store.plan_prune(now=NOON)
    report = store.prune(plan)
    assert (report.events_removed, report.bytes_removed, report.sessions_pruned) == (plan.events, plan.bytes, 2)
    assert report.now == NOON
    assert counts(store) == {"ended": 0, "failed": 0, "live": 4}
    assert agrees_with_itself(store, shell)


def test_a_prune_without_a_plan_makes_its_own(store: EventStore) -> None:
    add(store, "s", 3, "closed")
    assert store.prune().events_removed == 3
    assert seqs(store) == []


def test_pruning_twice_is_the_same_as_once(store: EventStore) -> None:
    add(store, "s", 3, "closed")
    plan = store.plan_prune()
    store.prune(plan)
    before = store.get_session("s")
    for again in (store.prune(plan), store.prune()):
        assert (again.events_removed, again.bytes_removed, again.sessions_pruned) == (0, 0, 0)
    assert store.get_session("s") == before


def test_a_session_reopened_after_the_plan_keeps_its_events(store: EventStore) -> None:
    add(store, "s", 3, "closed")
    plan = store.plan_prune()
    store.set_status("s", "running")
    assert store.prune(plan).events_removed == 0
    assert seqs(store) == [1, 2, 3]


def test_a_session_put_on_hold_after_the_plan_keeps_its_events(store: EventStore) -> None:
    add(store, "s", 3, "closed")
    plan = store.plan_prune()
    store.update_session("s", hold=True)
    assert store.prune(plan).sessions_pruned == 0
    assert seqs(store) == [1, 2, 3]


def test_events_that_came_after_the_plan_stay(store: EventStore) -> None:
    add(store, "s", 3, "closed")
    plan = store.plan_prune()
    store.append("s", "t", "last words")
    assert store.prune(plan).events_removed == 3
    assert seqs(store) == [4]


def test_a_session_that_ended_again_within_its_grace_keeps_its_events(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=HOUR))
    add(store, "s", 3, "closed")
    set_ended_at(shell, "s", NOON)
    plan = store.plan_prune(now=NOON + HOUR)
    store.set_status("s", "running")
    store.set_status("s", "closed")
    set_ended_at(shell, "s", NOON + HOUR / 2)
    assert (plan.events, store.prune(plan).events_removed) == (3, 0)


def test_what_the_cap_removed_since_the_plan_is_not_counted_again(store: EventStore) -> None:
    add(store, "s", 3, "closed", max_events=3)
    plan = store.plan_prune()
    fill(store, "s", 2)
    assert store.prune(plan).events_removed == 1
    assert seqs(store) == [4, 5]


def test_a_session_created_after_the_plan_is_not_in_it(store: EventStore) -> None:
    plan = store.plan_prune()
    add(store, "s", 3, "closed")
    assert store.prune(plan).events_removed == 0


def test_a_reader_is_told_of_what_was_pruned(store: EventStore) -> None:
    add(store, "s", 3, "closed")
    report = store.prune()
    assert report.events_removed == 3
    with pytest.raises(EventsTruncated, match="terminal_grace"):
        store.read("s", after_seq=1)


# Slices


@pytest.fixture
def slices_of_10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_store.retention.truncate.PRUNE_SLICE_EVENTS", 10)
    monkeypatch.setattr("aegis_store.retention.limits.PRUNE_SLICE_EVENTS", 10)
    monkeypatch.setattr("aegis_store.retention.prune.let_writers_through", lambda _: None)
    monkeypatch.setattr("aegis_store.retention.limits.let_writers_through", lambda _: None)


class Interrupted(Exception):
    """What a caller's progress bar may raise."""


@pytest.mark.usefixtures("slices_of_10")
def test_a_prune_reports_its_progress_after_each_slice(store: EventStore) -> None:
    add(store, "a", 25, "closed")
    add(store, "b", 5, "closed")
    seen: list[tuple[int, int]] = []
    store.prune(on_progress=lambda done, planned: seen.append((done, planned)))
    assert seen == [(10, 30), (20, 30), (25, 30), (30, 30)]


@pytest.mark.usefixtures("slices_of_10")
def test_a_slice_is_committed_when_its_progress_is_reported(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 25, "closed")
    left: list[int] = []
    store.prune(on_progress=lambda *_: left.append(shell.execute("SELECT count(*) FROM event").fetchone()[0]))
    assert left == [15, 5, 0]


@pytest.mark.usefixtures("slices_of_10")
def test_writers_get_in_between_two_slices(store: EventStore) -> None:
    add(store, "s", 25, "closed")
    store.create_session("live")

    def write(*_: int) -> None:
        store.append("live", "t", 1)

    store.prune(on_progress=write)
    assert counts(store) == {"s": 0, "live": 3}


@pytest.mark.usefixtures("slices_of_10")
@pytest.mark.parametrize("slices_done", [1, 2, 3])
def test_an_interrupted_prune_leaves_a_store_that_agrees_with_itself(
    store: EventStore, shell: sqlite3.Connection, slices_done: int
) -> None:
    add(store, "a", 25, "closed")
    add(store, "b", 25, "closed")

    def interrupt(done: int, _: int) -> None:
        if done >= (10, 20, 25)[slices_done - 1]:
            raise Interrupted

    with pytest.raises(Interrupted):
        store.prune(on_progress=interrupt)
    assert store.get_session("a").removed_events == (10, 20, 25)[slices_done - 1]
    assert store.get_session("a").removed_reason == "terminal_grace"
    assert agrees_with_itself(store, shell)


@pytest.mark.usefixtures("slices_of_10")
def test_the_next_prune_finishes_what_was_interrupted(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "a", 25, "closed")
    add(store, "b", 25, "closed")
    plan = store.plan_prune()

    def interrupt(*_: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        store.prune(plan, on_progress=interrupt)
    assert store.prune(plan).events_removed == 40
    assert counts(store) == {"a": 0, "b": 0}
    assert agrees_with_itself(store, shell)


@pytest.mark.usefixtures("slices_of_10")
def test_a_session_reopened_between_two_slices_keeps_the_rest(store: EventStore) -> None:
    add(store, "s", 25, "closed")

    def reopen(*_: int) -> None:
        store.set_status("s", "running")

    report = store.prune(on_progress=reopen)
    assert report.events_removed == 10
    assert seqs(store) == list(range(11, 26))


@pytest.mark.usefixtures("slices_of_10")
def test_last_words_between_two_slices_stay(store: EventStore) -> None:
    add(store, "s", 25, "closed")

    def write(*_: int) -> None:
        store.append("s", "t", "last words")

    store.prune(on_progress=write)
    assert seqs(store) == [26, 27, 28]


# The policy


def test_a_new_store_has_the_documented_policy(store: EventStore) -> None:
    policy = store.retention_policy()
    assert (policy.max_events, policy.max_event_bytes, policy.terminal_grace) == (1000, 1024 * 1024, timedelta(0))
    assert policy == RetentionPolicy()


@pytest.mark.parametrize(
    "policy",
    [
        RetentionPolicy(max_events=1, max_event_bytes=1, terminal_grace=timedelta(microseconds=1)),
        RetentionPolicy(max_events=UNLIMITED, max_event_bytes=16 * 1024 * 1024, terminal_grace=timedelta(days=365_000)),
        RetentionPolicy(max_events=2**63 - 2),
    ],
    ids=["smallest", "largest", "largest number"],
)
def test_a_policy_comes_back_as_it_was_set_also_after_a_restart(open_store: OpenStore, policy: RetentionPolicy) -> None:
    first = open_store()
    first.set_retention_policy(policy)
    assert first.retention_policy() == policy
    first.close()
    assert open_store().retention_policy() == policy


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        *(("max_events", value) for value in (0, -1, True, 1.5, "5", None, 2**63)),
        *(("max_event_bytes", value) for value in (0, -1, True, 1.5, None, UNLIMITED, 16 * 1024 * 1024 + 1)),
        *(("terminal_grace", value) for value in (timedelta(microseconds=-1), 5, None, timedelta(days=365_001))),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_its_knob(knob: str, value: Any) -> None:
    with pytest.raises(InvalidPolicy, match=knob):
        RetentionPolicy(**{knob: value})


@pytest.mark.parametrize("policy", [None, {"max_events": 5}, 5])
def test_what_is_no_policy_is_refused_and_the_old_one_stays(store: EventStore, policy: Any) -> None:
    with pytest.raises(InvalidPolicy):
        store.set_retention_policy(policy)
    assert store.retention_policy() == RetentionPolicy()


def test_a_policy_is_a_value(store: EventStore) -> None:
    policy = store.retention_policy()
    with pytest.raises(FrozenInstanceError):
        policy.max_events = 5  # type: ignore[misc]


def test_a_policy_is_in_force_in_another_open_store_at_once(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    add(second, "s", 5)
    first.set_retention_policy(RetentionPolicy(max_events=2))
    assert second.retention_policy().max_events == 2
    second.append("s", "t", 1)
    assert seqs(second) == [5, 6]


def test_a_read_only_store_tells_the_policy_and_does_not_change_it(store: EventStore, open_store: OpenStore) -> None:
    reader = open_store(read_only=True)
    with pytest.raises(ReadOnlyStore):
        reader.set_retention_policy(RetentionPolicy(max_events=1))
    assert reader.retention_policy() == RetentionPolicy()


# The policy's decision, without a store


class NoHistory:
    """The history of a session of which nothing but its record matters."""

    def since(self, moment: datetime, from_seq: int) -> int:
        raise AssertionError("not asked for")

    def within(self, payload_bytes: int) -> int:
        raise AssertionError("not asked for")


def state(**given: Any) -> SessionState:
    values: dict[str, Any] = {"status": Status.CLOSED, "hold": False, "first_seq": 3, "last_seq": 5, "ended_at": NOON}
    return SessionState(**values | {"history": NoHistory()} | given)


def test_a_session_that_ended_keeps_nothing_below_its_next_event() -> None:
    assert RetentionPolicy().keep_from(state(), NOON) == Decision(6, "terminal_grace")


@pytest.mark.parametrize(
    "given",
    [
        {"hold": True},
        {"first_seq": 6},
        {"status": Status.RUNNING, "ended_at": None},
        {"status": Status.CLOSING, "ended_at": None},
    ],
)
def test_a_session_that_is_held_empty_or_live_keeps_all(given: dict[str, Any]) -> None:
    assert RetentionPolicy().keep_from(state(**given), NOON) is None


@pytest.mark.parametrize(
    ("now", "keeps_all"), [(NOON, True), (NOON + HOUR, False), (NOON + 2 * HOUR, False), (NOON - HOUR, True)]
)
def test_a_grace_runs_from_the_end_of_the_session(now: datetime, keeps_all: bool) -> None:
    assert (RetentionPolicy(terminal_grace=HOUR).keep_from(state(), now) is None) is keeps_all


# Lowering a cap


def test_a_lower_cap_of_the_store_holds_from_the_moment_it_is_set(store: EventStore, shell: sqlite3.Connection) -> None:
    for session_id, count in (("large", 30), ("small", 3), ("exact", 5)):
        add(store, session_id, count)
    store.set_retention_policy(RetentionPolicy(max_events=5))
    assert counts(store) == {"large": 5, "small": 3, "exact": 5}
    assert seqs(store, "large") == [26, 27, 28, 29, 30]
    assert agrees_with_itself(store, shell)


def test_a_lower_cap_of_the_store_leaves_sessions_with_their_own(store: EventStore) -> None:
    add(store, "own", 9, max_events=9)
    add(store, "none", 9, max_events=UNLIMITED)
    add(store, "inherits", 9)
    store.set_retention_policy(RetentionPolicy(max_events=2))
    assert counts(store) == {"own": 9, "none": 9, "inherits": 2}


def test_a_lower_cap_holds_for_sessions_on_hold(store: EventStore) -> None:
    add(store, "s", 9)
    store.update_session("s", hold=True)
    store.set_retention_policy(RetentionPolicy(max_events=2))
    assert seqs(store) == [8, 9]


def test_what_a_lower_cap_removed_is_accounted_for(store: EventStore) -> None:
    add(store, "s", 9)
    store.set_retention_policy(RetentionPolicy(max_events=2))
    session = store.get_session("s")
    assert (session.removed_events, session.removed_bytes, session.removed_reason) == (7, 7, "max_events")
    assert session.removed_at is not None


def test_a_higher_cap_removes_nothing(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=3))
    add(store, "s", 5)
    store.set_retention_policy(RetentionPolicy(max_events=10))
    assert seqs(store) == [3, 4, 5]


@pytest.mark.parametrize("cap", [1, 4, 5, 6, UNLIMITED])
def test_a_cap_of_a_session_holds_from_the_moment_it_is_set(store: EventStore, cap: Any) -> None:
    add(store, "s", 5)
    changed = store.update_session("s", max_events=cap)
    kept = 5 if cap is UNLIMITED else min(cap, 5)
    assert (changed.event_count, changed.max_events) == (kept, cap)
    assert seqs(store) == list(range(6 - kept, 6))


def test_a_session_that_falls_back_to_a_lower_policy_is_cut_to_it(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=2))
    add(store, "s", 9, max_events=UNLIMITED)
    assert store.update_session("s", max_events=None).event_count == 2


def test_a_cap_of_a_session_touches_no_other(store: EventStore) -> None:
    add(store, "s", 5)
    add(store, "other", 5)
    store.update_session("s", max_events=1)
    assert counts(store) == {"s": 1, "other": 5}


def removals(store: EventStore, work: Callable[[], object]) -> int:
    """How many transactions of the writer raise a first_seq."""
    seen: list[str] = []
    store._db.writer.driver.set_trace_callback(seen.append)
    try:
        work()
    finally:
        store._db.writer.driver.set_trace_callback(None)
    transactions = "\n".join(seen).split("BEGIN IMMEDIATE")
    return sum("UPDATE session SET first_seq" in transaction for transaction in transactions)


@pytest.mark.usefixtures("slices_of_10")
def test_a_lower_cap_of_the_store_removes_in_slices(store: EventStore) -> None:
    add(store, "s", 45)
    assert removals(store, lambda: store.set_retention_policy(RetentionPolicy(max_events=5))) == 4
    assert seqs(store) == [41, 42, 43, 44, 45]


@pytest.mark.usefixtures("slices_of_10")
def test_a_lower_cap_of_a_session_removes_in_slices(store: EventStore) -> None:
    add(store, "s", 45)
    assert removals(store, lambda: store.update_session("s", max_events=5)) == 4
    assert seqs(store) == [41, 42, 43, 44, 45]


def interrupted_pause(*_: float) -> None:
    raise Interrupted


@pytest.mark.usefixtures("slices_of_10")
def test_lowering_the_cap_of_the_store_interrupted_leaves_the_old_policy(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "s", 45)
    with monkeypatch.context() as patch:
        patch.setattr("aegis_store.retention.limits.let_writers_through", interrupted_pause)
        with pytest.raises(Interrupted):
            store.set_retention_policy(RetentionPolicy(max_events=5))
    assert store.retention_policy() == RetentionPolicy()
    assert seqs(store) == list(range(11, 46))
    assert agrees_with_itself(store, shell)
    store.set_retention_policy(RetentionPolicy(max_events=5))
    assert seqs(store) == [41, 42, 43, 44, 45]


@pytest.mark.usefixtures("slices_of_10")
def test_lowering_the_cap_of_a_session_interrupted_leaves_the_old_cap(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "s", 45, max_events=50)
    with monkeypatch.context() as patch:
        patch.setattr("aegis_store.retention.limits.let_writers_through", interrupted_pause)
        with pytest.raises(Interrupted):
            store.update_session("s", max_events=5)
    assert (store.get_session("s").max_events, seqs(store)) == (50, list(range(11, 46)))


@pytest.mark.usefixtures("slices_of_10")
def test_a_cap_is_exact_though_writers_go_on_while_it_is_lowered(
    store: EventStore, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_store()
    add(store, "s", 45)
    monkeypatch.setattr("aegis_store.retention.limits.let_writers_through", lambda _: fill(other, "s", 3))
    store.set_retention_policy(RetentionPolicy(max_events=5))
    session = store.get_session("s")
    assert session.event_count == 5
    assert session.last_seq > 45


def test_the_cap_of_an_unknown_session_cannot_be_lowered(store: EventStore) -> None:
    with pytest.raises(SessionNotFound):
        store.update_session("unknown", max_events=1)


def test_a_plan_can_be_carried_out_by_another_open_store(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    add(first, "s", 3, "closed")
    plan: PrunePlan = first.plan_prune()
    assert second.prune(plan).events_removed == 3
    assert seqs(first) == []
