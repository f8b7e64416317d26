"""The budget of the whole store: when it bites, whose events go and in which order, down to where, and its counter."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aegis_store import UNLIMITED, EventStore, NewEvent, PrunePlan, RetentionPolicy
from aegis_store.events import Json, to_us
from aegis_store.retention.plan import BudgetPlan

OpenStore = Callable[..., EventStore]

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
FOREVER = timedelta(days=365_000)
TERMINAL = ("closed", "completed", "failed")


@pytest.fixture
def store(open_store: OpenStore) -> EventStore:
    """An open, empty store that nothing prunes but what a test calls."""
    return open_store(maintain_every=None)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of two events, without pauses."""
    monkeypatch.setattr("aegis_store.retention.truncate.PRUNE_SLICE_EVENTS", 2)
    monkeypatch.setattr("aegis_store.retention.prune.let_writers_through", lambda _: None)


def payload_of(size: int) -> Json:
    """A payload that takes so many bytes as JSON."""
    return 7 if size == 1 else "x" * (size - 2)


def append(store: EventStore, session_id: str, *sizes: int) -> None:
    store.append_many(session_id, [NewEvent(type="t", payload=payload_of(size)) for size in sizes])


def add(store: EventStore, session_id: str, *sizes: int, **options: Any) -> None:
    store.create_session(session_id, **options)
    append(store, session_id, *sizes)


def end(shell: sqlite3.Connection, store: EventStore, session_id: str, moment: datetime, status: str = "closed") -> None:
    store.set_status(session_id, status)
    shell.execute("UPDATE session SET ended_at = ? WHERE session_id = ?", (to_us(moment), session_id))


def budget(total: int, **knobs: Any) -> RetentionPolicy:
    """A policy under which ended sessions keep their events, but for the budget."""
    values: dict[str, Any] = {"max_total_bytes": total, "terminal_grace": FOREVER}
    return RetentionPolicy(**values | knobs)


def prune(store: EventStore) -> PrunePlan:
    """Prune at noon; the plan that was carried out."""
    plan = store.plan_prune(now=NOON)
    report = store.prune(plan)
    assert (report.events_removed, report.bytes_removed) == (plan.events, plan.bytes)
    return plan


def part(plan: PrunePlan) -> BudgetPlan:
    assert plan.budget is not None
    return plan.budget


def left(store: EventStore) -> dict[str, list[int]]:
    """The seq that each session retains."""
    sessions = store.list_sessions(limit=1000).sessions
    return {each.session_id: list(range(each.first_seq, each.last_seq + 1)) for each in sessions}


def counted(shell: sqlite3.Connection) -> int | None:
    count: int | None = shell.execute("SELECT retained_bytes FROM store").fetchone()[0]
    return count


def held(shell: sqlite3.Connection) -> int:
    total: int = shell.execute("SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM event").fetchone()[0]
    return total


# When it bites, and down to where


@pytest.mark.parametrize("total", [100, 101, 10**9])
def test_a_store_within_its_budget_loses_nothing(store: EventStore, total: int) -> None:
    add(store, "s", *[10] * 10)
    store.set_retention_policy(budget(total))
    plan = prune(store)
    assert (plan.truncations, plan.budget) == ((), None)
    assert left(store) == {"s": list(range(1, 11))}


def test_a_store_one_byte_over_its_budget_comes_down_to_80_percent(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", *[1] * 101)
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"s": list(range(22, 102))}
    assert held(shell) == 80


@pytest.mark.parametrize(
    ("total", "kept"),
    [
        (1, 0),  # 80 % of 1 byte is none
        (10, 0),  # 8 bytes hold no event of 10
        (12, 0),
        (13, 1),
        (25, 2),
        (26, 2),
        (99, 7),
    ],
)
def test_the_budget_takes_the_fewest_events_that_bring_the_store_to_80_percent(
    store: EventStore, shell: sqlite3.Connection, total: int, kept: int
) -> None:
    add(store, "s", *[10] * 10)
    store.set_retention_policy(budget(total))
    plan = prune(store)
    assert left(store)["s"] == list(range(11 - kept, 11))
    assert part(plan).left_bytes == held(shell) == 10 * kept <= total * 8 // 10


@pytest.mark.parametrize("sizes", [(30, 1, 1, 80), (1, 30, 1, 80), (1, 1, 30, 80)])
def test_large_and_small_events_go_by_their_age_alone(store: EventStore, sizes: tuple[int, ...]) -> None:
    add(store, "s", *sizes)
    store.set_retention_policy(budget(110))  # holds 112, to get down to 88
    prune(store)
    gone = next(count for count in range(5) if sum(sizes[count:]) <= 88)
    assert left(store) == {"s": list(range(gone + 1, 5))}


def test_a_plan_tells_how_the_budget_comes_about(store: EventStore) -> None:
    add(store, "s", *[10] * 11)
    store.set_retention_policy(budget(100))
    plan = store.plan_prune(now=NOON)
    assert plan.budget == BudgetPlan(retained_bytes=110, max_total_bytes=100, target_bytes=80, freed_bytes=30, left_bytes=80)
    assert [(t.session_id, t.events, t.bytes, t.reason) for t in plan.truncations] == [("s", 3, 30, "max_total_bytes")]


def test_after_a_prune_the_store_takes_a_fifth_of_the_budget_before_the_next(store: EventStore) -> None:
    add(store, "s", *[10] * 11)
    store.set_retention_policy(budget(100))
    prune(store)
    append(store, "s", 10, 10)
    assert prune(store).events == 0
    append(store, "s", 1)
    assert prune(store).events == 3


# Whose events go


@pytest.mark.parametrize("status", TERMINAL)
def test_events_of_ended_sessions_go_before_older_ones_of_live_sessions(store: EventStore, status: str) -> None:
    add(store, "live", *[10] * 6)
    add(store, "ended", *[10] * 5, status=status)
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"live": [1, 2, 3, 4, 5, 6], "ended": [4, 5]}


def test_of_ended_sessions_the_one_that_ended_first_goes_first(store: EventStore, shell: sqlite3.Connection) -> None:
    for number, session_id in enumerate("abc"):
        add(store, session_id, *[10] * 4)
        end(shell, store, session_id, NOON - number * HOUR)
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"a": [1, 2, 3, 4], "b": [1, 2, 3, 4], "c": []}


def test_the_second_ended_session_gives_what_the_first_did_not_have(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "second", *[10] * 6)
    add(store, "first", *[10] * 2)
    add(store, "live", *[10] * 4)
    end(shell, store, "first", NOON - 2 * HOUR)
    end(shell, store, "second", NOON - HOUR)
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"first": [], "second": [3, 4, 5, 6], "live": [1, 2, 3, 4]}


def test_live_sessions_lose_their_oldest_events_by_position_over_all_of_them(store: EventStore) -> None:
    for session_id in "abc":
        store.create_session(session_id)
    for session_id in "abcabcabcabaa":  # positions 1 to 13
        append(store, session_id, 10)
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"a": [3, 4, 5, 6], "b": [3, 4], "c": [2, 3]}


def test_live_sessions_give_only_what_the_ended_ones_could_not(store: EventStore) -> None:
    add(store, "live", *[10] * 9)
    add(store, "ended", *[10] * 2, status="closed")
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"live": [2, 3, 4, 5, 6, 7, 8, 9], "ended": []}


def test_a_session_that_was_reopened_counts_as_live(store: EventStore) -> None:
    add(store, "reopened", *[10] * 3, status="closed")
    add(store, "ended", *[10] * 8, status="closed")
    store.set_status("reopened", "running")
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"reopened": [1, 2, 3], "ended": [4, 5, 6, 7, 8]}


def test_sessions_within_their_grace_give_events_all_the_same(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", *[10] * 11)
    end(shell, store, "s", NOON)
    store.set_retention_policy(budget(100, terminal_grace=HOUR))
    [truncation] = prune(store).truncations
    assert (truncation.reason, truncation.events) == ("max_total_bytes", 3)


def test_sessions_on_hold_give_nothing(store: EventStore) -> None:
    add(store, "held", *[10] * 5)
    add(store, "held and ended", *[10] * 5, status="closed")
    add(store, "live", *[10] * 5)
    for session_id in ("held", "held and ended"):
        store.update_session(session_id, hold=True)
    store.set_retention_policy(budget(140))
    prune(store)
    assert left(store) == {"held": [1, 2, 3, 4, 5], "held and ended": [1, 2, 3, 4, 5], "live": [5]}


def test_a_session_emptied_by_the_budget_is_forgotten_when_that_is_due(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 50)
    add(store, "live", 60)
    end(shell, store, "s", NOON - HOUR)
    store.set_retention_policy(budget(100, forget_sessions_after=HOUR))
    [truncation] = prune(store).truncations
    assert (truncation.reason, truncation.forgets) == ("max_total_bytes", True)
    assert left(store) == {"live": [1]}


def test_the_newest_events_are_taken_too_when_nothing_else_is_left(store: EventStore) -> None:
    add(store, "s", 200)
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"s": []}


def test_a_deleted_session_whose_events_are_still_there_frees_the_budget(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "live", *[10] * 8)
    add(store, "deleted", *[10] * 5)
    store.set_retention_policy(budget(100))
    with monkeypatch.context() as patch:
        patch.setattr("aegis_store.retention.delete.carry_out", lambda *_, **__: None)
        store.delete_session("deleted")
    plan = prune(store)
    assert (list(plan.by_reason()), plan.budget) == (["deleted"], None)
    assert left(store) == {"live": [1, 2, 3, 4, 5, 6, 7, 8]}


# Falling short


def test_a_budget_that_holds_cannot_meet_takes_all_the_rest(store: EventStore) -> None:
    add(store, "held", *[10] * 9)
    add(store, "live", *[10] * 3)
    store.update_session("held", hold=True)
    store.set_retention_policy(budget(100))
    plan = prune(store)
    assert left(store) == {"held": list(range(1, 10)), "live": []}
    assert (part(plan).freed_bytes, part(plan).left_bytes, part(plan).target_bytes) == (30, 90, 80)


def test_a_plan_that_falls_short_says_so_in_words(store: EventStore) -> None:
    add(store, "held", *[1000] * 9)
    add(store, "live", *[1000] * 3)
    store.update_session("held", hold=True)
    store.set_retention_policy(budget(10_000))
    assert "Short of that by 1,000 bytes, since what is left is on hold." in str(store.plan_prune(now=NOON))


def test_a_plan_that_falls_short_because_all_is_on_hold_says_so_too(store: EventStore) -> None:
    add(store, "held", *[1000] * 11)
    store.update_session("held", hold=True)
    store.set_retention_policy(budget(10_000))
    plan = store.plan_prune(now=NOON)
    assert plan.truncations == ()
    assert part(plan).left_bytes == 11_000
    assert "Short of that by 3,000 bytes, since what is left is on hold." in str(plan)


def test_a_plan_that_meets_the_budget_does_not_speak_of_falling_short(store: EventStore) -> None:
    add(store, "s", *[1000] * 11)
    store.set_retention_policy(budget(10_000))
    text = str(store.plan_prune(now=NOON))
    assert "The store holds 11,000 bytes of payloads, its budget (max_total_bytes) is 10,000. To get down to 8,000," in text
    assert "Short" not in text


def test_a_store_over_its_budget_that_cannot_give_anything_is_not_well(store: EventStore) -> None:
    add(store, "held", *[10] * 11)
    store.update_session("held", hold=True)
    store.set_retention_policy(budget(100))
    prune(store)
    [problem] = store.health().problems
    assert "10 bytes over its budget" in problem


# Together with the other limits


def test_what_other_limits_remove_is_not_taken_by_the_budget(store: EventStore) -> None:
    add(store, "ended", *[10] * 3, status="closed")
    add(store, "live", *[10] * 8)
    store.set_retention_policy(budget(100, terminal_grace=timedelta(0)))
    plan = prune(store)
    assert (list(plan.by_reason()), plan.budget) == (["terminal_grace"], None)
    assert left(store) == {"ended": [], "live": [1, 2, 3, 4, 5, 6, 7, 8]}


def test_the_budget_takes_what_it_needs_beyond_the_other_limits(store: EventStore) -> None:
    add(store, "large", *[10] * 10)
    add(store, "live", *[10] * 5)
    add(store, "too", *[10] * 3)
    store.set_retention_policy(budget(100, max_bytes=50))  # large loses 50, then 130 are left, of which 50 are to go
    plan = prune(store)
    assert left(store) == {"large": [], "live": [1, 2, 3, 4, 5], "too": [1, 2, 3]}
    assert {t.session_id: (t.events, t.reason) for t in plan.truncations} == {"large": (10, "max_total_bytes")}
    assert (part(plan).retained_bytes, part(plan).freed_bytes, part(plan).left_bytes) == (180, 50, 80)


def test_other_limits_that_suffice_leave_the_store_between_80_percent_and_its_budget(store: EventStore) -> None:
    add(store, "s", *[10] * 11)
    store.set_retention_policy(budget(100, max_bytes=95))
    assert prune(store).budget is None
    assert left(store) == {"s": list(range(3, 12))}


def test_an_ended_session_that_loses_by_another_limit_gives_the_rest_first(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    add(store, "live", *[10] * 6)
    add(store, "ended", *[10] * 8)
    end(shell, store, "ended", NOON - HOUR)
    store.set_retention_policy(budget(100, max_bytes=60))  # ended loses 2, then 120 are left
    plan = prune(store)
    assert left(store) == {"live": [1, 2, 3, 4, 5, 6], "ended": [7, 8]}
    assert plan.by_reason() == {"max_total_bytes": (1, 6, 60)}


# A prune does what its plan says: each event counts


def test_the_oldest_go_also_where_the_last_event_taken_is_larger_than_needed(store: EventStore) -> None:
    for session_id in ("a", "b"):
        store.create_session(session_id)
    append(store, "a", 1)
    append(store, "b", 2)
    append(store, "a", 5)  # of which one byte would do
    append(store, "b", 8)
    store.set_retention_policy(budget(15))  # holds 16, to get down to 12
    prune(store)
    assert left(store) == {"a": [], "b": [2]}


def test_the_oldest_go_also_where_the_session_of_the_last_event_loses_by_another_limit_first(store: EventStore) -> None:
    add(store, "limited", 6)
    append(store, "limited", 1)
    add(store, "live", 2)
    append(store, "limited", 5)
    append(store, "live", 8)
    store.set_retention_policy(budget(15, max_bytes=10))  # limited loses its first, 16 are left, to get down to 12
    prune(store)
    assert left(store) == {"limited": [], "live": [2]}


@pytest.mark.usefixtures("unhurried")
def test_a_prune_in_slices_leaves_what_its_plan_says(store: EventStore) -> None:
    for session_id in "abc":
        store.create_session(session_id)
    for session_id in "abcabcabcabcabcabc":
        append(store, session_id, 10)
    store.set_retention_policy(budget(100))
    planned = {t.session_id: t.keep_from_seq for t in store.plan_prune(now=NOON).truncations}
    prune(store)
    assert {session_id: seqs[0] for session_id, seqs in left(store).items()} == planned
    assert left(store) == {"a": [5, 6], "b": [4, 5, 6], "c": [4, 5, 6]}


# Held against what has happened since the plan


def over_by_one(store: EventStore) -> PrunePlan:
    """A store of 101 bytes in 101 events, and the plan for a budget of 100."""
    add(store, "s", *[1] * 101)
    store.set_retention_policy(budget(100))
    plan = store.plan_prune(now=NOON)
    assert plan.events == 21
    return plan


def test_two_plans_of_one_moment_remove_only_once(store: EventStore) -> None:
    first, second = over_by_one(store), store.plan_prune(now=NOON)
    assert (store.prune(first).events_removed, store.prune(second).events_removed) == (21, 0)
    assert left(store) == {"s": list(range(22, 102))}


def test_two_plans_of_one_moment_remove_only_once_though_the_store_grows_in_between(store: EventStore) -> None:
    first, second = over_by_one(store), store.plan_prune(now=NOON)
    store.prune(first)
    append(store, "s", *[1] * 15)  # within the budget, over 80 %
    assert store.prune(second).events_removed == 0


def test_a_store_that_is_within_its_budget_by_now_loses_nothing(store: EventStore) -> None:
    plan = over_by_one(store)
    store.update_session("s", max_events=95)  # within the budget, over 80 %
    assert store.prune(plan).events_removed == 0
    assert left(store) == {"s": list(range(7, 102))}


@pytest.mark.parametrize("total", [101, 120, 10**6])
def test_a_plan_removes_nothing_once_the_budget_was_raised_to_what_the_store_holds(store: EventStore, total: int) -> None:
    plan = over_by_one(store)
    store.set_retention_policy(budget(total))
    assert store.prune(plan).events_removed == 0


def test_a_plan_removes_nothing_once_the_budget_was_taken_off(store: EventStore) -> None:
    plan = over_by_one(store)
    store.set_retention_policy(RetentionPolicy())
    assert store.prune(plan).events_removed == 0


def test_a_plan_removes_no_more_than_it_says_when_the_budget_was_lowered_since(store: EventStore) -> None:
    plan = over_by_one(store)
    store.set_retention_policy(budget(10))
    assert store.prune(plan).events_removed == 21


def test_a_session_put_on_hold_since_the_plan_gives_nothing(store: EventStore) -> None:
    plan = over_by_one(store)
    store.update_session("s", hold=True)
    assert store.prune(plan).events_removed == 0


def test_a_session_reopened_since_the_plan_gives_nothing(store: EventStore) -> None:
    add(store, "s", *[1] * 101, status="closed")
    store.set_retention_policy(budget(100))
    plan = store.plan_prune(now=NOON)
    store.set_status("s", "running")
    assert store.prune(plan).events_removed == 0


def test_events_that_came_since_the_plan_stay_however_full_the_store_is(store: EventStore) -> None:
    plan = over_by_one(store)
    append(store, "s", *[10] * 50)
    assert store.prune(plan).events_removed == 21


def test_a_plan_for_a_budget_that_is_not_in_force_removes_nothing(store: EventStore) -> None:
    add(store, "s", *[1] * 101)
    plan = store.plan_prune(now=NOON, policy=budget(100))
    assert plan.events == 21
    assert store.prune(plan).events_removed == 0


def test_a_plan_for_another_budget_shows_what_it_would_do(store: EventStore) -> None:
    add(store, "s", *[1] * 101)
    store.set_retention_policy(budget(1000))
    plan = store.plan_prune(now=NOON, policy=budget(50))
    assert (plan.events, part(plan).retained_bytes, part(plan).left_bytes) == (61, 101, 40)
    assert store.prune(plan).events_removed == 0


class Interrupted(Exception):
    """What a caller's progress bar may raise."""


@pytest.mark.usefixtures("unhurried")
def test_an_interrupted_prune_goes_on_where_it_stopped(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "a", *[10] * 8, status="closed")
    add(store, "b", *[10] * 8)
    store.set_retention_policy(budget(100))

    def interrupt(*_: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        store.prune(store.plan_prune(now=NOON), on_progress=interrupt)
    assert (held(shell), counted(shell)) == (140, 140)
    prune(store)
    assert left(store) == {"a": [], "b": list(range(1, 9))}


# The counter


def test_without_a_budget_nothing_is_counted(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 10)
    assert counted(shell) is None


def test_a_new_budget_counts_what_is_there(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "a", 10, 20)
    add(store, "b", 5, 5, max_events=1)
    store.create_session("empty")
    store.set_retention_policy(budget(1000))
    assert counted(shell) == 35


def cap_one(store: EventStore) -> None:
    store.update_session("a", max_events=1)


def cap_all(store: EventStore) -> None:
    store.set_retention_policy(budget(1000, max_events=2))


def delete_one(store: EventStore) -> None:
    store.delete_session("a")


def delete_and_create_again(store: EventStore) -> None:
    store.delete_session("a")
    add_again(store)


def add_again(store: EventStore) -> None:
    store.create_session("a")
    append(store, "a", 9, 9)


def end_and_prune(store: EventStore) -> None:
    store.set_status("a", "closed")
    store.set_retention_policy(budget(1000, terminal_grace=timedelta(0)))
    store.prune(store.plan_prune(now=NOON))


def forget(store: EventStore) -> None:
    store.set_status("a", "closed")
    store.set_retention_policy(budget(1000, terminal_grace=timedelta(0), forget_sessions_after=timedelta(0)))
    store.prune(store.plan_prune(now=NOON + 365_000 * HOUR))


def bring_down(store: EventStore) -> None:
    store.set_retention_policy(budget(40))
    store.prune(store.plan_prune(now=NOON))


def off_and_on(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy())
    append(store, "a", 17)
    store.set_retention_policy(budget(1000))


def refused(store: EventStore) -> None:
    store.append("a", "t", "once", event_id="e")
    store.append("a", "t", "once", event_id="e")


CHANGES: list[Callable[[EventStore], None]] = [
    cap_one,
    cap_all,
    delete_one,
    delete_and_create_again,
    end_and_prune,
    forget,
    bring_down,
    off_and_on,
    refused,
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_counter_is_the_sum_after_each_change(
    store: EventStore, shell: sqlite3.Connection, change: Callable[[EventStore], None]
) -> None:
    store.set_retention_policy(budget(1000))
    add(store, "a", 10, 20, 30)
    add(store, "b", 3, 4, 5, max_events=2)
    assert counted(shell) == held(shell) == 69
    change(store)
    assert counted(shell) == held(shell)
    append(store, "b", 8)
    assert counted(shell) == held(shell)


def test_the_counter_goes_when_the_budget_does(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(budget(1000))
    add(store, "s", 10)
    store.set_retention_policy(RetentionPolicy())
    assert counted(shell) is None


def test_a_cap_and_a_budget_set_at_once_count_what_is_left(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", *[10] * 10)
    store.set_retention_policy(budget(1000, max_events=3))
    assert counted(shell) == 30


def test_an_append_that_fails_does_not_count(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(budget(1000, max_event_bytes=10))
    store.create_session("s")
    with pytest.raises(Exception, match="max_event_bytes"):
        append(store, "s", 5, 11)
    assert counted(shell) == 0


def test_a_shell_that_truncates_is_counted(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(budget(1000))
    add(store, "s", 10, 20, 30)
    shell.execute("UPDATE session SET first_seq = 3")
    assert counted(shell) == 30


# The walk by age


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_the_walk_over_the_positions_finds_the_same_however_long_its_steps_are(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr("aegis_store.retention.budget.BUDGET_STEP_POSITIONS", step)
    for session_id in ("a", "held", "b"):
        store.create_session(session_id)
    for number in range(30):
        append(store, ("a", "held", "b", "b", "a")[number % 5], 1 + number % 4)
    store.update_session("held", hold=True)
    store.set_retention_policy(budget(60))
    events = store.read_all(limit=1000)
    sizes = {event.position: 1 if event.payload == 7 else len(str(event.payload)) + 2 for event in events}
    total, gone = sum(sizes.values()), 0
    for event in events:
        if event.session_id != "held" and total > 48:
            total -= sizes[event.position]
            gone += 1
    plan = prune(store)
    assert (plan.events, part(plan).left_bytes) == (gone, total)
    kept = [event.position for event in store.read_all(limit=1000) if event.session_id != "held"]
    assert kept == [event.position for event in events if event.session_id != "held"][gone:]


@pytest.mark.parametrize("step", [2, 5, 10_000])
def test_gaps_between_positions_do_not_disturb_the_walk(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr("aegis_store.retention.budget.BUDGET_STEP_POSITIONS", step)
    store.create_session("a")
    store.create_session("b")
    for position in (0, 5, 30_000, 10**9, 10**15):
        shell.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'event'", (position,))
        for session_id in "ab":
            append(store, session_id, 10)
    store.set_retention_policy(budget(80))
    prune(store)
    assert left(store) == {"a": [3, 4, 5], "b": [3, 4, 5]}


def test_positions_of_events_that_went_are_no_work(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_store.retention.budget.BUDGET_STEP_POSITIONS", 3)
    add(store, "gone", *[1] * 40)
    add(store, "s", *[10] * 11)
    store.delete_session("gone")
    store.set_retention_policy(budget(100))
    prune(store)
    assert left(store) == {"s": [4, 5, 6, 7, 8, 9, 10, 11]}


def test_many_sessions_lose_a_little_each(store: EventStore) -> None:
    for number in range(30):
        store.create_session(str(number), max_events=UNLIMITED)
    for _ in range(4):
        for number in range(30):
            append(store, str(number), 1)
    store.set_retention_policy(budget(100))  # 120 bytes, 40 of which go
    prune(store)
    assert {name: seqs[0] for name, seqs in left(store).items()} == {
        str(number): 3 if number < 10 else 2 for number in range(30)
    }
