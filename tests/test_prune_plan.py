"""Plans and their carrying out: what a plan says, what it costs, and that a prune does what it says, and no more."""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

import pytest

from aegis_store import (
    UNLIMITED,
    EventStore,
    InvalidInput,
    InvalidPolicy,
    NewEvent,
    PrunePlan,
    PruneRun,
    RetentionPolicy,
    Truncation,
    driver,
)
from aegis_store.events import Json, to_us

OpenStore = Callable[..., EventStore]

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
FOREVER = timedelta(days=365_000)
LATER = NOON + 50_000 * DAY
"""A moment at which whatever the tests write is old."""


@pytest.fixture
def store(open_store: OpenStore) -> EventStore:
    """An open, empty store that nothing prunes but what a test calls."""
    return open_store(maintain_every=None)


@pytest.fixture
def slices_of_10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_store.retention.truncate.PRUNE_SLICE_EVENTS", 10)
    monkeypatch.setattr("aegis_store.retention.prune.let_writers_through", lambda _: None)


class Interrupted(Exception):
    """What a caller's progress bar may raise."""


def interrupt(*_: int) -> None:
    raise Interrupted


def payload_of(size: int) -> Json:
    """A payload that takes so many bytes as JSON."""
    return 7 if size == 1 else "x" * (size - 2)


def append(store: EventStore, session_id: str, *sizes: int) -> None:
    store.append_many(session_id, [NewEvent(type="t", payload=payload_of(size)) for size in sizes])


def add(store: EventStore, session_id: str, *sizes: int, **options: Any) -> None:
    store.create_session(session_id, **options)
    append(store, session_id, *sizes)


def set_ended_at(shell: sqlite3.Connection, session_id: str, moment: datetime) -> None:
    shell.execute("UPDATE session SET ended_at = ? WHERE session_id = ?", (to_us(moment), session_id))


def left(store: EventStore) -> dict[str, list[int]]:
    """The seq that each session retains."""
    sessions = store.list_sessions(limit=1000).sessions
    return {each.session_id: list(range(each.first_seq, each.last_seq + 1)) for each in sessions}


def delete_in_vain(store: EventStore, monkeypatch: pytest.MonkeyPatch, session_id: str) -> None:
    """Delete a session whose events stay for the next prune."""
    with monkeypatch.context() as patch:
        patch.setattr("aegis_store.retention.delete.carry_out", lambda *_, **__: None)
        store.delete_session(session_id)


def last_run(store: EventStore) -> PruneRun:
    return store.prune_history(limit=1)[0]


MIXED = RetentionPolicy(terminal_grace=HOUR, max_bytes=40, forget_sessions_after=2 * HOUR)


def mixed(store: EventStore, shell: sqlite3.Connection) -> None:
    """Sessions that lose by grace, by bytes, their record alone, and nothing."""
    store.set_retention_policy(MIXED)
    add(store, "large", *[10] * 7)
    add(store, "ended", *[3] * 2, status="closed")
    add(store, "long ended", 5, status="failed")
    add(store, "empty", status="completed")
    add(store, "live", *[10] * 4)
    set_ended_at(shell, "ended", NOON - HOUR)
    set_ended_at(shell, "long ended", NOON - 3 * HOUR)
    set_ended_at(shell, "empty", NOON - 2 * HOUR)


# What a plan says


def test_a_plan_has_a_part_for_each_session_that_loses_something(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    assert [
        (t.session_id, t.first_seq, t.keep_from_seq, t.events, t.bytes, t.reason, t.forgets)
        for t in store.plan_prune(now=NOON).truncations
    ] == [
        ("long ended", 1, 2, 1, 5, "terminal_grace", True),
        ("empty", 1, 1, 0, 0, "forget_sessions_after", True),
        ("ended", 1, 3, 2, 6, "terminal_grace", False),
        ("large", 1, 4, 3, 30, "max_bytes", False),
    ]


def test_a_plan_sums_up_by_reason_the_most_events_first(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    append(store, "large", 10)
    assert list(store.plan_prune(now=NOON).by_reason().items()) == [
        ("max_bytes", (1, 4, 40)),
        ("terminal_grace", (2, 3, 11)),
        ("forget_sessions_after", (1, 0, 0)),
    ]


def test_the_figures_of_a_plan_are_the_sums_of_its_parts(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    plan = store.plan_prune(now=NOON)
    assert (plan.events, plan.bytes, plan.sessions_forgotten) == (6, 41, 2)
    assert sum(total.events for total in plan.by_reason().values()) == plan.events
    assert sum(total.bytes for total in plan.by_reason().values()) == plan.bytes


def test_a_plan_prints_what_goes_and_why(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    assert str(store.plan_prune(now=NOON)).splitlines() == [
        "To prune at 2026-06-01 12:00:00+00:00: 6 events, 41 bytes, of 4 sessions.",
        "  by terminal_grace: 3 events, 11 bytes, of 2 sessions",
        "  by max_bytes: 3 events, 30 bytes, of 1 session",
        "  by forget_sessions_after: 0 events, 0 bytes, of 1 session",
        "  'large': seq 1..3, 3 events, 30 bytes, by max_bytes",
        "  'ended': seq 1..2, 2 events, 6 bytes, by terminal_grace",
        "  'long ended': seq 1..1, 1 event, 5 bytes, by terminal_grace, and its record",
        "  'empty': no events, 0 events, 0 bytes, by forget_sessions_after, and its record",
    ]


def test_a_plan_of_nothing_prints_that(store: EventStore) -> None:
    assert str(store.plan_prune(now=NOON)) == "Nothing to prune at 2026-06-01 12:00:00+00:00."


def test_a_plan_over_the_budget_prints_how_that_comes_about(store: EventStore) -> None:
    add(store, "s", *[1000] * 11)
    store.set_retention_policy(RetentionPolicy(max_total_bytes=10_000))
    assert str(store.plan_prune(now=NOON)).splitlines() == [
        "To prune at 2026-06-01 12:00:00+00:00: 3 events, 3,000 bytes, of 1 session.",
        "  by max_total_bytes: 3 events, 3,000 bytes, of 1 session",
        "  The store holds 11,000 bytes of payloads, its budget (max_total_bytes) is 10,000. To get down to 8,000, events of "
        "ended sessions go first, those that ended first before the others, then the oldest of the rest; sessions on hold "
        "keep theirs.",
        "  's': seq 1..3, 3 events, 3,000 bytes, by max_total_bytes",
    ]


def test_a_plan_of_many_sessions_prints_the_ten_largest(store: EventStore) -> None:
    for number in range(1, 13):
        add(store, f"s{number}", *[1] * number, status="closed")
    lines = str(store.plan_prune(now=NOON)).splitlines()
    assert [line.split(":")[0].strip() for line in lines[2:12]] == [f"'s{number}'" for number in range(12, 2, -1)]
    assert lines[12:] == ["  … and 2 sessions more"]


def test_a_name_that_a_terminal_would_obey_is_printed_harmlessly(store: EventStore) -> None:
    add(store, "a\u202eb", 1, status="closed")
    assert "\u202e" not in str(store.plan_prune(now=NOON))


def test_what_is_left_of_a_deleted_session_is_in_the_plan_without_its_name(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "s", 2, 2)
    delete_in_vain(store, monkeypatch, "s")
    plan = store.plan_prune(now=NOON)
    [part] = plan.truncations
    assert (part.session_id, part.events, part.reason, part.forgets) == (None, 2, "deleted", True)
    assert "  (a deleted session): seq 1..2, 2 events, 4 bytes, by deleted, and its record" in str(plan)
    assert "'s'" not in repr(plan)


def test_a_deleted_session_without_events_is_in_the_plan_for_its_record(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_session("s")
    delete_in_vain(store, monkeypatch, "s")
    [part] = store.plan_prune(now=NOON).truncations
    assert (part.events, part.reason, part.forgets) == (0, "deleted", True)


def test_sessions_that_ended_first_come_first_whatever_they_lose_by(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=2 * HOUR, max_bytes=10))
    add(store, "live", 10, 10)
    for number, session_id in enumerate(("c", "b", "a")):
        add(store, session_id, 10, 10, status="closed")
        set_ended_at(shell, session_id, NOON - (number + 1) * HOUR)
    parts = store.plan_prune(now=NOON).truncations
    assert [(t.session_id, t.reason) for t in parts] == [
        ("a", "terminal_grace"),
        ("b", "terminal_grace"),
        ("c", "max_bytes"),
        ("live", "max_bytes"),
    ]


def test_two_plans_of_one_moment_are_equal(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    assert store.plan_prune(now=NOON) == store.plan_prune(now=NOON)


def test_planning_writes_nothing(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    before = shell.execute("PRAGMA data_version").fetchone()
    str(store.plan_prune(now=NOON))
    assert shell.execute("PRAGMA data_version").fetchone() == before
    assert store.prune_history() == []


# By another policy


@pytest.mark.parametrize(
    "knobs", [{"max_bytes": 4}, {"max_age": HOUR}, {"max_total_bytes": 5}, {"terminal_grace": timedelta(0)}]
)
def test_a_plan_by_another_policy_shows_what_that_would_remove(store: EventStore, knobs: dict[str, Any]) -> None:
    add(store, "s", 2, 2, 2, status="closed")
    store.set_retention_policy(RetentionPolicy(terminal_grace=FOREVER))
    other = RetentionPolicy(**{"terminal_grace": FOREVER} | knobs)
    plan = store.plan_prune(now=LATER, policy=other)
    assert (plan.policy, [t.reason for t in plan.truncations]) == (other, list(knobs))
    assert store.plan_prune(now=LATER).events == 0
    store.set_retention_policy(other)
    assert store.plan_prune(now=LATER).truncations == plan.truncations


def test_a_plan_by_another_policy_removes_only_what_the_policy_in_force_does_not_keep(store: EventStore) -> None:
    add(store, "s", *[10] * 10)
    store.set_retention_policy(RetentionPolicy(max_bytes=80))
    plan = store.plan_prune(now=NOON, policy=RetentionPolicy(max_bytes=20))
    assert (plan.events, store.prune(plan).events_removed) == (8, 2)


def test_a_plan_by_a_milder_policy_removes_only_what_it_says(store: EventStore) -> None:
    add(store, "s", *[10] * 10)
    store.set_retention_policy(RetentionPolicy(max_bytes=20))
    plan = store.plan_prune(now=NOON, policy=RetentionPolicy(max_bytes=80))
    assert (plan.events, store.prune(plan).events_removed) == (2, 2)


@pytest.mark.parametrize("policy", [{"max_bytes": 1}, 5, "enforce"])
def test_a_plan_by_what_is_no_policy_is_refused(store: EventStore, policy: Any) -> None:
    with pytest.raises(InvalidPolicy):
        store.plan_prune(policy=policy)


@pytest.mark.parametrize("plan", [NOON, "plan", (), RetentionPolicy()])
def test_a_prune_by_what_is_no_plan_is_refused(store: EventStore, plan: Any) -> None:
    with pytest.raises(InvalidInput, match="plan"):
        store.prune(plan)


# What a plan costs, in steps of SQLite's machine


class Steps:
    """Counts the steps of the machine on all connections that are opened from now on, those of this thread: not what the
    checkpointer does at the same time."""

    def __init__(self) -> None:
        self.count = 0
        self._thread = threading.get_ident()

    def __call__(self) -> int:
        self.count += threading.get_ident() == self._thread
        return 0

    def of(self, work: Callable[[], object]) -> int:
        for _ in range(3):
            work()  # the first time a connection of the pool also reads the schema
        before = self.count
        work()
        return self.count - before


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    counter = Steps()
    connect = driver.dbapi.connect

    def connect_counted(*args: Any, **options: Any) -> Any:
        connection = connect(*args, **options)
        connection.set_progress_handler(counter, 1)
        return connection

    monkeypatch.setattr(driver.dbapi, "connect", connect_counted)
    return counter


UNTOUCHED: dict[str, tuple[str, str | None, int]] = {
    "live, with an event": ("running", None, 0),
    "ended, with an event": ("closed", "now", 0),
    "ended, on hold": ("closed", "long ago", 1),
    "live, on hold": ("running", None, 1),
}


def add_untouched(shell: sqlite3.Connection, name: str, count: int, status: str, ended: str | None, hold: int) -> None:
    """So many sessions of one event of a byte each, recorded at noon."""
    ended_at = None if ended is None else to_us(NOON if ended == "now" else NOON - 1000 * DAY)
    shell.execute("BEGIN")
    shell.executemany(
        "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at, ended_at, hold)"
        " VALUES (?, 't', 'o', ?, 1, 1, ?, ?)",
        [(f"{name} {number}", status, ended_at, hold) for number in range(count)],
    )
    shell.execute(
        "INSERT INTO event (session, seq, bytes_before, type, payload, occurred_at, recorded_at)"
        " SELECT id, 1, 0, 't', '1', ?, ? FROM session WHERE last_seq = 0",
        (to_us(NOON), to_us(NOON)),
    )
    shell.execute("COMMIT")


def add_untouched_of_each_kind(shell: sqlite3.Connection, name: str, count: int) -> None:
    for kind, values in UNTOUCHED.items():
        add_untouched(shell, f"{name}, {kind}", count // len(UNTOUCHED), *values)


KNOBS = {
    "terminal_grace": RetentionPolicy(terminal_grace=HOUR),
    "max_age": RetentionPolicy(terminal_grace=HOUR, max_age=HOUR),
    "max_bytes": RetentionPolicy(terminal_grace=HOUR, max_bytes=100),
    "max_total_bytes": RetentionPolicy(terminal_grace=HOUR, max_total_bytes=10**6),
    "forget_sessions_after": RetentionPolicy(terminal_grace=HOUR, forget_sessions_after=HOUR),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_a_plan_costs_the_same_with_12_and_5012_sessions_that_lose_nothing(
    open_store: OpenStore, shell: sqlite3.Connection, steps: Steps, knob: str
) -> None:
    store = open_store(maintain_every=None, prune_on_open=False)
    store.set_retention_policy(KNOBS[knob])
    add_untouched_of_each_kind(shell, "few", 12)
    assert store.plan_prune(now=NOON).truncations == ()
    few = steps.of(lambda: store.plan_prune(now=NOON))
    add_untouched_of_each_kind(shell, "many", 5000)
    assert few > 0
    assert steps.of(lambda: store.plan_prune(now=NOON)) == few


@pytest.mark.parametrize("knob", ["terminal_grace", "max_bytes"])
def test_a_session_that_loses_something_costs_the_same_among_12_and_5012_that_do_not(
    open_store: OpenStore, shell: sqlite3.Connection, steps: Steps, knob: str
) -> None:
    store = open_store(maintain_every=None, prune_on_open=False)
    store.set_retention_policy(KNOBS[knob])
    add(store, "loser", *[60] * 3, status="closed")
    set_ended_at(shell, "loser", NOON - (2 * HOUR if knob == "terminal_grace" else timedelta(0)))
    add_untouched_of_each_kind(shell, "few", 12)
    assert [t.reason for t in store.plan_prune(now=NOON).truncations] == [knob]
    few = steps.of(lambda: store.plan_prune(now=NOON))
    add_untouched_of_each_kind(shell, "many", 5000)
    assert steps.of(lambda: store.plan_prune(now=NOON)) == few


def add_long(shell: sqlite3.Connection, session_id: str, count: int) -> None:
    """A session of so many events, one a second, the last at noon, ten bytes each."""
    shell.execute(
        "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at, max_events)"
        " VALUES (?, 't', 'o', 'running', 1, 1, 1000000)",
        (session_id,),
    )
    shell.execute("BEGIN")
    shell.executemany(
        "INSERT INTO event (session, seq, bytes_before, type, payload, occurred_at, recorded_at)"
        " SELECT id, last_seq + 1, total_bytes, 't', '\"12345678\"', 1, ? FROM session WHERE session_id = ?",
        [(to_us(NOON) - (count - number) * 1_000_000, session_id) for number in range(1, count + 1)],
    )
    shell.execute("COMMIT")


@pytest.mark.parametrize("knobs", [{"max_age": timedelta(seconds=50)}, {"max_bytes": 500}], ids=["max_age", "max_bytes"])
def test_a_plan_costs_with_the_logarithm_of_the_events_of_a_session(
    open_store: OpenStore, shell: sqlite3.Connection, steps: Steps, knobs: dict[str, Any]
) -> None:
    store = open_store(maintain_every=None, prune_on_open=False)
    store.set_retention_policy(RetentionPolicy(**knobs))
    costs = []
    for count in (128, 1024, 8192):
        add_long(shell, f"of {count}", count)
        plan = store.plan_prune(now=NOON)
        assert plan.events == count - 50 - ("max_age" in knobs)
        costs.append(steps.of(lambda: store.plan_prune(now=NOON)))
        store.delete_session(f"of {count}")
    few, more, most = costs
    assert more - few == pytest.approx(most - more, rel=0.2)
    assert most < 2 * few


@pytest.mark.usefixtures("slices_of_10")
def test_a_prune_costs_in_proportion_to_what_goes_also_where_the_clock_went_back(
    open_store: OpenStore, shell: sqlite3.Connection, steps: Steps
) -> None:
    store = open_store(maintain_every=None, prune_on_open=False)
    store.set_retention_policy(RetentionPolicy(max_age=HOUR))
    costs = []
    for count in (500, 2000):
        name = f"of {count}"
        add_long(shell, name, count)
        shell.execute(  # an event whose clock stood at 1970
            "INSERT INTO event (session, seq, bytes_before, type, payload, occurred_at, recorded_at)"
            " SELECT id, last_seq + 1, total_bytes, 't', '1', 1, 1 FROM session WHERE session_id = ?",
            (name,),
        )
        plan = store.plan_prune(now=NOON + DAY)
        assert plan.events == count + 1
        costs.append(steps.of(partial(store.prune, plan)))
    assert costs[1] < 6 * costs[0]


# A prune looks again

EVERY_REASON: dict[str, RetentionPolicy] = {
    "terminal_grace": RetentionPolicy(terminal_grace=HOUR),
    "max_age": RetentionPolicy(terminal_grace=FOREVER, max_age=HOUR),
    "max_bytes": RetentionPolicy(terminal_grace=FOREVER, max_bytes=1),
    "max_total_bytes": RetentionPolicy(terminal_grace=FOREVER, max_total_bytes=1),
}
reasons = pytest.mark.parametrize("reason", EVERY_REASON)


def planned(store: EventStore, reason: str) -> PrunePlan:
    """Three events of an ended session, and the plan to remove them for that reason."""
    store.set_retention_policy(EVERY_REASON[reason])
    add(store, "s", 2, 2, 2, status="closed")
    plan = store.plan_prune(now=LATER)
    assert [(t.events, t.reason) for t in plan.truncations] == [(3, reason)]
    return plan


@reasons
def test_a_plan_that_still_holds_is_carried_out(store: EventStore, reason: str) -> None:
    report = store.prune(planned(store, reason))
    assert (report.events_removed, report.events_by_reason) == (3, {reason: 3})
    assert left(store) == {"s": []}


@reasons
def test_a_session_put_on_hold_since_the_plan_loses_nothing(store: EventStore, reason: str) -> None:
    plan = planned(store, reason)
    store.update_session("s", hold=True)
    assert store.prune(plan).events_removed == 0
    assert left(store) == {"s": [1, 2, 3]}


@reasons
def test_a_policy_relaxed_since_the_plan_keeps_the_events(store: EventStore, reason: str) -> None:
    plan = planned(store, reason)
    store.set_retention_policy(RetentionPolicy(terminal_grace=FOREVER))
    assert store.prune(plan).events_removed == 0


@reasons
def test_last_words_since_the_plan_stay(store: EventStore, reason: str) -> None:
    plan = planned(store, reason)
    append(store, "s", 2)
    assert store.prune(plan).events_removed == 3
    assert left(store) == {"s": [4]}


@reasons
def test_the_same_plan_twice_removes_once(store: EventStore, reason: str) -> None:
    plan = planned(store, reason)
    store.prune(plan)
    append(store, "s", 2, 2)
    assert store.prune(plan).events_removed == 0
    assert left(store) == {"s": [4, 5]}


@reasons
def test_a_session_deleted_since_the_plan_is_not_counted_twice(store: EventStore, reason: str) -> None:
    plan = planned(store, reason)
    store.delete_session("s")
    assert store.prune(plan).events_removed == 0


@reasons
def test_a_session_deleted_and_created_again_since_the_plan_keeps_its_new_events(store: EventStore, reason: str) -> None:
    plan = planned(store, reason)
    store.delete_session("s")
    add(store, "s", 2, status="closed")
    assert store.prune(plan).events_removed == 0
    assert left(store) == {"s": [4]}


@pytest.mark.parametrize("reason", ["terminal_grace", "max_total_bytes"])
def test_a_session_reopened_since_the_plan_keeps_its_events(store: EventStore, reason: str) -> None:
    plan = planned(store, reason)
    store.set_status("s", "running")
    assert store.prune(plan).events_removed == 0


@pytest.mark.parametrize("reason", ["max_age", "max_bytes"])
def test_a_session_reopened_since_the_plan_is_still_too_old_or_too_large(store: EventStore, reason: str) -> None:
    plan = planned(store, reason)
    store.set_status("s", "running")
    assert store.prune(plan).events_removed == 3


def test_a_policy_made_stricter_since_the_plan_removes_no_more_than_the_plan_says(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=80))
    add(store, "s", *[10] * 10)
    plan = store.plan_prune(now=NOON)
    store.set_retention_policy(RetentionPolicy(max_bytes=10))
    assert store.prune(plan).events_removed == 2


@pytest.mark.parametrize(
    "save",
    [
        lambda store: store.update_session("s", hold=True),
        lambda store: store.set_status("s", "running"),
        lambda store: store.set_retention_policy(RetentionPolicy(terminal_grace=HOUR)),
        lambda store: append(store, "s", 1),
    ],
    ids=["held", "reopened", "relaxed", "written to"],
)
def test_a_record_that_was_saved_since_the_plan_is_not_forgotten(
    store: EventStore, shell: sqlite3.Connection, save: Callable[[EventStore], object]
) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=HOUR, forget_sessions_after=HOUR))
    store.create_session("s", status="closed")
    set_ended_at(shell, "s", NOON)
    plan = store.plan_prune(now=NOON + DAY)
    assert plan.sessions_forgotten == 1
    save(store)
    assert store.prune(plan).sessions_forgotten == 0
    assert "s" in left(store)


# Slices


@contextmanager
def losses_of_transactions(store: EventStore, shell: sqlite3.Connection) -> Iterator[list[tuple[int, int]]]:
    """Events and bytes that each transaction of a prune removes, as another connection sees it."""
    seen: list[tuple[int, int]] = []
    query = "SELECT count(*), coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM event"
    before = shell.execute(query).fetchone()

    def look(*_: int) -> None:
        nonlocal before
        now = shell.execute(query).fetchone()
        seen.append((before[0] - now[0], before[1] - now[1]))
        before = now

    store.prune(store.plan_prune(now=LATER), on_progress=look)
    yield seen


@reasons
@pytest.mark.usefixtures("slices_of_10")
def test_a_transaction_removes_no_more_than_a_slice_of_events(
    store: EventStore, shell: sqlite3.Connection, reason: str
) -> None:
    planned(store, reason)
    append(store, "s", *[2] * 22)
    with losses_of_transactions(store, shell) as losses:
        assert [events for events, _ in losses] == [10, 10, 5]


@reasons
def test_a_transaction_removes_no_more_than_a_slice_of_bytes(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr("aegis_store.retention.truncate.PRUNE_SLICE_BYTES", 100)
    planned(store, reason)
    append(store, "s", 30, 30, 30, 30, 30, 100, 99, 2, 51, 51)
    with losses_of_transactions(store, shell) as losses:
        assert all(size <= 100 for _, size in losses)
        assert sum(events for events, _ in losses) == 13


def test_an_event_larger_than_a_slice_goes_by_itself(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_store.retention.truncate.PRUNE_SLICE_BYTES", 100)
    add(store, "s", 10, 500, 600, 10, status="closed")
    with losses_of_transactions(store, shell) as losses:
        assert losses == [(1, 10), (1, 500), (1, 600), (1, 10)]


@pytest.mark.usefixtures("slices_of_10")
def test_progress_is_told_over_all_sessions(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=10))
    add(store, "a", *[1] * 22)
    add(store, "b", *[1] * 15)
    seen: list[tuple[int, int]] = []
    store.prune(store.plan_prune(now=NOON), on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(10, 17), (12, 17), (17, 17)]


@reasons
@pytest.mark.usefixtures("slices_of_10")
def test_an_interrupted_prune_keeps_to_its_plan_when_it_is_run_again(
    store: EventStore, shell: sqlite3.Connection, reason: str
) -> None:
    planned(store, reason)
    append(store, "s", *[2] * 22)
    plan = store.plan_prune(now=LATER)
    for gone in (10, 20):
        with pytest.raises(Interrupted):
            store.prune(plan, on_progress=interrupt)
        assert left(store) == {"s": list(range(gone + 1, 26))}
        assert store.get_session("s").removed_reason == reason
    assert store.prune(plan).events_removed == 5
    assert store.plan_prune(now=LATER).truncations == ()


@reasons
@pytest.mark.usefixtures("slices_of_10")
def test_an_interrupted_prune_is_finished_by_the_next_plan(store: EventStore, reason: str) -> None:
    planned(store, reason)
    append(store, "s", *[2] * 22)
    with pytest.raises(Interrupted):
        store.prune(store.plan_prune(now=LATER), on_progress=interrupt)
    assert store.prune(store.plan_prune(now=LATER)).events_removed == 15


@reasons
@pytest.mark.usefixtures("slices_of_10")
def test_last_words_between_two_slices_stay(store: EventStore, reason: str) -> None:
    planned(store, reason)
    append(store, "s", *[2] * 22)
    report = store.prune(store.plan_prune(now=LATER), on_progress=lambda *_: append(store, "s", 2))
    assert report.events_removed == 25
    assert left(store) == {"s": [26, 27, 28]}


@reasons
@pytest.mark.usefixtures("slices_of_10")
def test_a_hold_between_two_slices_saves_the_rest(store: EventStore, reason: str) -> None:
    planned(store, reason)
    append(store, "s", *[2] * 22)

    def hold(*_: int) -> None:
        store.update_session("s", hold=True)

    report = store.prune(store.plan_prune(now=LATER), on_progress=hold)
    assert report.events_removed == 10
    assert left(store) == {"s": list(range(11, 26))}


# The report


def test_a_report_says_what_went(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    plan = store.plan_prune(now=NOON)
    report = store.prune(plan)
    assert (report.now, report.events_removed, report.bytes_removed) == (NOON, 6, 41)
    assert (report.sessions_pruned, report.sessions_forgotten) == (3, 2)
    assert report.events_by_reason == {"terminal_grace": 3, "max_bytes": 3}
    assert report.archived == ()
    assert report.duration_s >= 0
    assert left(store) == {"ended": [], "large": [4, 5, 6, 7], "live": [1, 2, 3, 4]}


def test_a_report_names_its_run(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    assert store.prune(store.plan_prune(now=NOON)).run_id == last_run(store).id


def test_a_report_tells_how_much_of_the_file_is_free(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", *[9000] * 50, status="closed")
    assert store.prune().reclaimable_bytes == store.stats().free_bytes > 0


# The history of runs


def test_a_run_is_recorded_with_what_it_removed(store: EventStore, shell: sqlite3.Connection) -> None:
    mixed(store, shell)
    report = store.prune(store.plan_prune(now=NOON))
    [run] = store.prune_history()
    assert (run.now, run.events, run.bytes, run.sessions, run.sessions_forgotten) == (NOON, 6, 41, 3, 2)
    assert run.by_reason == report.events_by_reason
    assert (run.trigger, run.outcome) == ("api", "done")
    assert run.started_at > NOON - 10_000 * DAY


@pytest.mark.parametrize("trigger", ["api", "cli"])
def test_an_explicit_prune_leaves_a_row_with_its_trigger_though_nothing_went(
    store: EventStore, trigger: Literal["api", "cli"]
) -> None:
    store.prune(trigger=trigger)
    run = last_run(store)
    assert (run.trigger, run.events, run.by_reason, run.outcome) == (trigger, 0, {}, "done")


def test_a_startup_job_is_recorded_as_such(open_store: OpenStore) -> None:
    first = open_store()
    add(first, "s", 1, 1, status="closed")
    first.close()
    run = last_run(open_store())
    assert (run.trigger, run.events, run.by_reason, run.outcome) == ("startup", 2, {"terminal_grace": 2}, "done")


def test_a_startup_job_that_finds_nothing_leaves_no_row(open_store: OpenStore) -> None:
    first = open_store()
    add(first, "s", 1)
    first.close()
    assert open_store().prune_history() == []


@pytest.mark.usefixtures("slices_of_10")
@pytest.mark.parametrize(
    ("error", "outcome"),
    [(Interrupted, "failed: Interrupted"), (KeyboardInterrupt, "interrupted"), (SystemExit, "interrupted")],
)
def test_a_run_that_ended_early_says_how_and_what_it_had_removed(
    store: EventStore, error: type[BaseException], outcome: str
) -> None:
    add(store, "s", *[1] * 25, status="closed")

    def stop(*_: int) -> None:
        raise error

    with pytest.raises(error):
        store.prune(on_progress=stop)
    run = last_run(store)
    assert (run.outcome, run.events, run.bytes, run.sessions) == (outcome, 10, 10, 1)


@pytest.mark.usefixtures("slices_of_10")
def test_a_run_at_work_is_in_the_history_without_an_outcome(store: EventStore) -> None:
    add(store, "s", *[1] * 25, status="closed")
    seen: list[tuple[int, str | None]] = []
    store.prune(on_progress=lambda *_: seen.append((last_run(store).events, last_run(store).outcome)))
    assert seen == [(10, None), (20, None), (25, None)]
    assert last_run(store).outcome == "done"


@pytest.mark.usefixtures("slices_of_10")
def test_a_prune_inside_of_a_prune_has_a_row_of_its_own(store: EventStore) -> None:
    add(store, "s", *[1] * 25, status="closed")
    inner: list[int] = []

    def prune_too(*_: int) -> None:
        if not inner:
            inner.append(0)
            inner[0] = store.prune().events_removed

    outer = store.prune(on_progress=prune_too).events_removed
    assert (outer, inner) == (10, [15])
    assert sorted(run.events for run in store.prune_history()) == [10, 15]


def test_the_history_gives_the_newest_first(store: EventStore, shell: sqlite3.Connection) -> None:
    for number in range(3):
        store.prune(store.plan_prune(now=NOON + number * HOUR))
    assert [run.now for run in store.prune_history()] == [NOON + 2 * HOUR, NOON + HOUR, NOON]
    assert [run.now for run in store.prune_history(limit=1)] == [NOON + 2 * HOUR]


def test_the_history_keeps_the_newest_thousand_runs(store: EventStore, shell: sqlite3.Connection) -> None:
    store.prune()
    shell.execute(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1005)"
        " INSERT INTO prune_run (started_at, now, trigger, outcome) SELECT i, i, 'api', 'done' FROM n"
    )
    newest = store.prune().run_id
    assert newest is not None
    ids = [run.id for run in store.prune_history(limit=1000)]
    assert ids == list(range(newest, newest - 1000, -1))
    assert shell.execute("SELECT count(*) FROM prune_run").fetchone() == (1000,)


@pytest.mark.parametrize("limit", [0, 1001, -1, True, "5", None])
def test_the_history_is_asked_for_1_to_1000_runs(store: EventStore, limit: Any) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        store.prune_history(limit=limit)


# Mode warn


@pytest.fixture
def warned(open_store: OpenStore) -> EventStore:
    """A store in mode `warn`, opened when an ended session had three events."""
    first = open_store(maintain_every=None)
    first.set_retention_policy(RetentionPolicy(mode="warn", forget_sessions_after=timedelta(0)))
    add(first, "s", 2, 3, 4, status="closed")
    first.close()
    return open_store(maintain_every=None)


def test_in_mode_warn_opening_a_store_removes_nothing(warned: EventStore) -> None:
    assert left(warned) == {"s": [1, 2, 3]}


def test_in_mode_warn_opening_a_store_records_what_it_would_have_removed(warned: EventStore) -> None:
    [run] = warned.prune_history()
    assert (run.trigger, run.outcome) == ("startup", "reported")
    assert (run.events, run.bytes, run.sessions, run.sessions_forgotten) == (3, 9, 1, 1)
    assert run.by_reason == {"terminal_grace": 3}


def test_a_session_that_would_only_lose_its_record_is_told_in_mode_warn_as_it_is_when_it_goes(
    open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_store(maintain_every=None)
    first.set_retention_policy(RetentionPolicy(mode="warn", forget_sessions_after=timedelta(0)))
    first.create_session("s", status="closed")
    first.close()
    with caplog.at_level(logging.INFO, logger="aegis_store"):
        store = open_store(maintain_every=None)
        store.set_retention_policy(RetentionPolicy(forget_sessions_after=timedelta(0)))
        store.close()
        store = open_store(maintain_every=None)
    gone, reported = store.prune_history()
    assert (gone.outcome, reported.outcome) == ("done", "reported")
    for run in (gone, reported):
        assert (run.events, run.sessions, run.sessions_forgotten, run.by_reason) == (0, 0, 1, {})
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("aegis_store")]
    assert ["0 events (0 bytes) of 0 sessions and 1 session record (no events)" in line for line in lines] == [True, True]


def test_in_mode_warn_opening_a_store_logs_one_warning(open_store: OpenStore, caplog: pytest.LogCaptureFixture) -> None:
    first = open_store(maintain_every=None)
    first.set_retention_policy(RetentionPolicy(mode="warn"))
    add(first, "s", 2, 3, 4, status="closed")
    first.close()
    with caplog.at_level(logging.INFO, logger="aegis_store"):
        open_store(maintain_every=None)
    [line] = [record for record in caplog.records if record.name.startswith("aegis_store")]
    assert line.levelno == logging.WARNING
    for words in ("would remove 3 events (9 bytes) of 1 session", "terminal_grace 3", "mode is warn"):
        assert words in line.getMessage()


def test_in_mode_warn_opening_a_store_with_nothing_to_prune_says_nothing(
    open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_store(maintain_every=None)
    first.set_retention_policy(RetentionPolicy(mode="warn"))
    first.close()
    with caplog.at_level(logging.DEBUG, logger="aegis_store"):
        assert open_store(maintain_every=None).prune_history() == []
    assert [record for record in caplog.records if record.name.startswith("aegis_store")] == []


def test_in_mode_warn_an_explicit_prune_acts(warned: EventStore) -> None:
    assert warned.prune().events_removed == 3
    assert last_run(warned).outcome == "done"


def test_in_mode_warn_the_cap_acts(warned: EventStore) -> None:
    warned.update_session("s", max_events=2)
    append(warned, "s", 1)
    assert left(warned) == {"s": [3, 4]}


def test_in_mode_warn_a_deletion_acts(warned: EventStore) -> None:
    warned.delete_session("s")
    assert left(warned) == {}


@pytest.mark.parametrize("knobs", [{"max_bytes": 1}, {"max_age": timedelta(microseconds=1)}, {"max_total_bytes": 1}])
def test_in_mode_warn_no_limit_acts_at_startup_and_in_mode_enforce_each_does(
    open_store: OpenStore, knobs: dict[str, Any]
) -> None:
    store = open_store(maintain_every=None)
    add(store, "s", 2, 2)
    store.set_retention_policy(RetentionPolicy(mode="warn", **knobs))
    store.close()
    store = open_store(maintain_every=None)
    assert left(store) == {"s": [1, 2]}
    store.set_retention_policy(RetentionPolicy(mode="enforce", **knobs))
    store.close()
    assert left(open_store(maintain_every=None)) == {"s": []}


# The plan as a value


def test_a_plan_made_by_hand_removes_no_more_than_the_policy_asks_for(store: EventStore) -> None:
    add(store, "s", 1, 1, 1)
    add(store, "ended", 1, status="closed")
    [real] = store.plan_prune(now=NOON).truncations
    forged = Truncation(
        session_id="s", status=real.status, first_seq=1, keep_from_seq=4, events=3, bytes=3, reason="deleted", key=real.key - 1
    )
    plan = PrunePlan(now=NOON, policy=RetentionPolicy(), truncations=(forged,))
    assert store.prune(plan).events_removed == 0
    assert left(store) == {"s": [1, 2, 3], "ended": [1]}


def test_an_unlimited_session_is_pruned_like_any_other(store: EventStore) -> None:
    add(store, "s", *[1] * 1200, max_events=UNLIMITED)
    store.set_retention_policy(RetentionPolicy(max_bytes=100))
    assert store.prune().events_removed == 1100
