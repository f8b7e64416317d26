"""The limits of single sessions: age, bytes, grace; which events each removes, to the event, and what is said of it."""

import json
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis_store import UNLIMITED, EventStore, EventsTruncated, InvalidPolicy, NewEvent, RetentionPolicy
from aegis_store.events import Json, to_us

OpenStore = Callable[..., EventStore]

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
FOREVER = timedelta(days=365_000)


class Clock:
    """The clock of the writers, set by hand: it may go back."""

    def __init__(self) -> None:
        self.now = NOON

    def time_ns(self) -> int:
        return to_us(self.now) * 1000


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hand = Clock()
    monkeypatch.setattr(time, "time_ns", hand.time_ns)
    return hand


@pytest.fixture
def store(open_store: OpenStore) -> EventStore:
    """An open store with one session, `s`, that nothing prunes but what a test calls."""
    opened = open_store(maintain_every=None)
    opened.create_session("s")
    return opened


def payload_of(size: int) -> Json:
    """A payload that takes so many bytes as JSON."""
    return 7 if size == 1 else "x" * (size - 2)


def append_at(store: EventStore, clock: Clock, *moments: datetime, session_id: str = "s") -> None:
    for clock.now in moments:
        store.append(session_id, "t", 1)


def append_sizes(store: EventStore, *sizes: int, session_id: str = "s") -> None:
    store.append_many(session_id, [NewEvent(type="t", payload=payload_of(size)) for size in sizes])


def prune(store: EventStore, now: datetime = NOON) -> int:
    return store.prune(store.plan_prune(now=now)).events_removed


def seqs(store: EventStore, session_id: str = "s") -> list[int]:
    return [event.seq for event in store.read(session_id, limit=1000).events]


def note(shell: sqlite3.Connection, column: str, session_id: str = "s") -> Any:
    return shell.execute(f"SELECT {column} FROM session WHERE session_id = ?", (session_id,)).fetchone()[0]


# Age


@pytest.mark.parametrize(
    ("late", "left"),
    [(-MICROSECOND, [1, 2]), (timedelta(0), [1, 2]), (MICROSECOND, [2]), (HOUR, [2]), (HOUR + MICROSECOND, [])],
)
def test_an_event_stays_until_it_is_older_than_max_age_to_the_microsecond(
    store: EventStore, clock: Clock, late: timedelta, left: list[int]
) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=DAY))
    append_at(store, clock, NOON, NOON + HOUR)
    prune(store, NOON + DAY + late)
    assert seqs(store) == left


@pytest.mark.parametrize("status", ["running", "paused", "closing", "closed", "failed"])
def test_max_age_holds_for_sessions_that_ended_and_for_those_that_did_not(store: EventStore, clock: Clock, status: str) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=DAY, terminal_grace=FOREVER))
    append_at(store, clock, NOON, NOON + DAY)
    store.set_status("s", status)
    prune(store, NOON + DAY + HOUR)
    assert seqs(store) == [2]


def test_max_age_goes_by_the_time_of_storing_not_of_occurring(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=DAY))
    store.append("s", "t", 1, occurred_at=NOON - 100 * DAY)
    assert prune(store, NOON + DAY) == 0
    assert prune(store, NOON + DAY + HOUR) == 1


def test_without_max_age_no_event_is_too_old(store: EventStore) -> None:
    append_sizes(store, 1)
    assert prune(store, NOON + 300_000 * DAY) == 0


def test_max_age_asked_at_the_beginning_of_time_removes_nothing(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=FOREVER))
    append_sizes(store, 1)
    assert prune(store, datetime.min.replace(tzinfo=UTC)) == 0


def test_max_age_asked_at_the_end_of_time_removes_all(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=MICROSECOND))
    append_sizes(store, 1)
    assert prune(store, datetime.max.replace(tzinfo=UTC)) == 1


def test_each_session_is_as_old_as_its_own_events(store: EventStore, clock: Clock) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=DAY))
    for session_id in ("young", "mixed"):
        store.create_session(session_id)
    append_at(store, clock, NOON, NOON + MINUTE)
    append_at(store, clock, NOON, NOON + DAY, session_id="mixed")
    append_at(store, clock, NOON + DAY, session_id="young")
    prune(store, NOON + DAY + HOUR)
    assert {name: seqs(store, name) for name in ("s", "mixed", "young")} == {"s": [], "mixed": [2], "young": [1]}


# A clock that goes back

THERE_AND_BACK = (
    NOON,
    NOON + 30 * MINUTE,
    NOON - DAY,  # a day back
    NOON - DAY + 20 * MINUTE,
    NOON + DAY,  # two days forward
    NOON + DAY + 10 * MINUTE,
)


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (NOON + MINUTE, [1, 2, 3, 4, 5, 6]),  # seq 3 and 4 are older than a day by then, but lie behind newer ones
        (NOON + DAY, [1, 2, 3, 4, 5, 6]),
        (NOON + DAY + MINUTE, [2, 3, 4, 5, 6]),
        (NOON + DAY + 30 * MINUTE, [2, 3, 4, 5, 6]),
        (NOON + DAY + 31 * MINUTE, [5, 6]),
        (NOON + 2 * DAY, [5, 6]),
        (NOON + 2 * DAY + MINUTE, [6]),
        (NOON + 2 * DAY + HOUR, []),
    ],
)
def test_after_a_clock_that_jumped_only_the_oldest_go_and_none_that_is_newer_than_the_limit(
    store: EventStore, clock: Clock, now: datetime, left: list[int]
) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=DAY))
    append_at(store, clock, *THERE_AND_BACK)
    prune(store, now)
    assert seqs(store) == left


def test_after_a_clock_that_jumped_a_prune_every_few_minutes_leaves_what_one_at_the_end_does(
    store: EventStore, clock: Clock
) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=DAY))
    store.create_session("once")
    append_at(store, clock, *THERE_AND_BACK)
    append_at(store, clock, *THERE_AND_BACK, session_id="once")
    store.update_session("once", hold=True)
    for minutes in range(0, 3 * 24 * 60, 97):
        now = NOON + minutes * MINUTE
        prune(store, now)
        store.update_session("once", hold=False)
        planned = store.plan_prune(now=now).truncations
        assert [seq for seq in range(1, 7) if all(seq >= t.keep_from_seq for t in planned)] == seqs(store)
        store.update_session("once", hold=True)


def test_a_prune_whose_own_clock_went_back_removes_nothing(store: EventStore, clock: Clock) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=HOUR))
    append_at(store, clock, NOON)
    assert prune(store, NOON - DAY) == 0


def test_writers_whose_clocks_differ_lose_nothing_that_is_newer_than_the_limit(store: EventStore, clock: Clock) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=HOUR))
    append_at(store, clock, *(NOON + number * MINUTE - (number % 2) * 90 * MINUTE for number in range(60)))
    prune(store, NOON + HOUR + 20 * MINUTE)
    assert seqs(store) == list(range(21, 61))


# Bytes


@pytest.mark.parametrize(
    ("max_bytes", "left"),
    [
        (1, []),
        (3, []),
        (4, [5]),
        (6, [5]),
        (7, [4, 5]),
        (19, [3, 4, 5]),
        (29, [3, 4, 5]),
        (30, [2, 3, 4, 5]),
        (31, [1, 2, 3, 4, 5]),
        (10**9, [1, 2, 3, 4, 5]),
    ],
)
def test_max_bytes_keeps_the_newest_events_that_fit_to_the_event(store: EventStore, max_bytes: int, left: list[int]) -> None:
    append_sizes(store, 1, 11, 12, 3, 4)
    store.set_retention_policy(RetentionPolicy(max_bytes=max_bytes))
    prune(store)
    assert seqs(store) == left


def test_an_event_larger_than_max_bytes_goes_with_all_before_it(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=10))
    append_sizes(store, 2, 2, 11, 2)
    prune(store)
    assert seqs(store) == [4]


def test_max_bytes_counts_bytes_of_json_not_characters(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=8))
    for _ in range(3):
        store.append("s", "t", "é")  # 2 bytes and 2 quotes
    prune(store)
    assert seqs(store) == [2, 3]


def test_max_bytes_is_enforced_by_a_prune_not_by_an_append(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=2))
    append_sizes(store, 2, 2, 2)
    assert seqs(store) == [1, 2, 3]
    assert prune(store) == 2


def test_max_bytes_holds_for_each_session_by_itself(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=5))
    store.create_session("other")
    for session_id in ("s", "other"):
        append_sizes(store, 3, 3, session_id=session_id)
    prune(store)
    assert (seqs(store), seqs(store, "other")) == ([2], [2])


def test_max_bytes_counts_what_is_retained_not_what_went_long_ago(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=10))
    append_sizes(store, 9, 9)
    prune(store)
    append_sizes(store, 1)
    assert prune(store) == 0
    assert seqs(store) == [2, 3]


# Several limits at once


@pytest.mark.parametrize(
    ("max_age", "max_bytes", "grace", "left", "reason"),
    [
        (DAY, 100, FOREVER, [3, 4, 5], "max_age"),
        (DAY, 2, FOREVER, [4, 5], "max_bytes"),
        (DAY, 4, FOREVER, [3, 4, 5], "max_age"),
        (3 * DAY, 4, FOREVER, [2, 3, 4, 5], "max_bytes"),
        (DAY, 2, timedelta(0), [], "terminal_grace"),
        (None, None, timedelta(0), [], "terminal_grace"),
    ],
)
def test_the_limit_that_bites_first_wins_and_gives_the_reason(
    store: EventStore,
    clock: Clock,
    max_age: timedelta | None,
    max_bytes: int | None,
    grace: timedelta,
    left: list[int],
    reason: str,
) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=max_age, max_bytes=max_bytes, terminal_grace=grace))
    append_at(store, clock, NOON, NOON, *[NOON + DAY] * 3)
    store.set_status("s", "closed")
    [truncation] = store.plan_prune(now=NOON + DAY + HOUR).truncations
    assert truncation.reason == reason
    prune(store, NOON + DAY + HOUR)
    assert seqs(store) == left
    assert store.get_session("s").removed_reason == reason


def test_a_session_with_a_cap_of_its_own_is_subject_to_the_other_limits(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=4))
    store.update_session("s", max_events=3)
    append_sizes(store, 2, 2, 2, 2)
    assert seqs(store) == [2, 3, 4]
    prune(store)
    assert seqs(store) == [3, 4]


# Where the clock went back, a limit may remove a newer event that others lay behind


@pytest.mark.parametrize(
    "knobs",
    [{"max_bytes": 5}, {"max_total_bytes": 6}],
    ids=["max_bytes", "max_total_bytes"],
)
def test_a_second_prune_of_the_same_moment_removes_nothing_also_where_the_first_uncovered_older_events(
    store: EventStore, clock: Clock, knobs: dict[str, Any]
) -> None:
    append_at(store, clock, NOON, NOON, *[NOON - 2 * DAY] * 3, NOON, NOON)
    store.set_retention_policy(RetentionPolicy(max_age=DAY, **knobs))
    prune(store, NOON + HOUR)
    assert prune(store, NOON + HOUR) == 0


# Hold

EVERY_LIMIT = RetentionPolicy(
    max_age=MICROSECOND, max_bytes=1, max_total_bytes=1, terminal_grace=timedelta(0), forget_sessions_after=timedelta(0)
)


@pytest.mark.parametrize("status", ["running", "closed"])
def test_no_limit_touches_a_session_on_hold(store: EventStore, status: str) -> None:
    append_sizes(store, 3, 3, 3)
    store.set_status("s", status)
    store.update_session("s", hold=True)
    store.set_retention_policy(EVERY_LIMIT)
    assert store.plan_prune(now=NOON + DAY).truncations == ()
    assert prune(store, NOON + DAY) == 0
    assert seqs(store) == [1, 2, 3]


@pytest.mark.parametrize("status", ["running", "closed"])
def test_every_limit_catches_up_with_a_session_released_from_its_hold(store: EventStore, status: str) -> None:
    store.set_retention_policy(EVERY_LIMIT)
    store.update_session("s", hold=True)
    append_sizes(store, 3, 3, 3)
    store.set_status("s", status)
    store.update_session("s", hold=False)
    assert prune(store, NOON + DAY) == 3


def test_the_cap_touches_a_session_on_hold(store: EventStore) -> None:
    store.update_session("s", hold=True, max_events=2)
    append_sizes(store, 1, 1, 1)
    assert seqs(store) == [2, 3]


def test_a_session_on_hold_that_grows_past_max_bytes_is_pruned_once_released(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=4))
    store.update_session("s", hold=True)
    append_sizes(store, 3, 3)
    assert prune(store) == 0
    store.update_session("s", hold=False)
    assert prune(store) == 1


# What a reader is told


def over_the_cap(store: EventStore) -> None:
    store.update_session("s", max_events=1)


def too_old(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=HOUR))
    prune(store, NOON + HOUR + MICROSECOND)


def over_max_bytes(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=1))
    prune(store)


def over_the_budget(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_total_bytes=2))
    prune(store)


def ended(store: EventStore) -> None:
    store.set_status("s", "closed")
    prune(store)


def forgotten_and_created_again(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=FOREVER, max_bytes=1, forget_sessions_after=timedelta(0)))
    store.append("s", "t", "larger than max_bytes")
    store.set_status("s", "closed")
    prune(store, NOON + 5 * HOUR)
    store.create_session("s")


def deleted_and_created_again(store: EventStore) -> None:
    store.delete_session("s")
    store.create_session("s")


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        (over_the_cap, "max_events"),
        (too_old, "max_age"),
        (over_max_bytes, "max_bytes"),
        (over_the_budget, "max_total_bytes"),
        (ended, "terminal_grace"),
        (forgotten_and_created_again, "forget_sessions_after"),
        (deleted_and_created_again, "deleted"),
    ],
)
def test_a_reader_who_missed_events_is_told_by_which_knob_and_when(
    store: EventStore, clock: Clock, remove: Callable[[EventStore], None], reason: str
) -> None:
    append_at(store, clock, NOON - HOUR, NOON)
    append_at(store, clock, NOON)
    clock.now = NOON + 5 * HOUR
    remove(store)
    clock.now = NOON + DAY
    with pytest.raises(EventsTruncated, match=reason) as told:
        store.read("s", after_seq=0)
    session = store.get_session("s")
    assert (told.value.reason, told.value.removed_at) == (reason, NOON + 5 * HOUR)
    assert (told.value.first_seq, told.value.last_seq) == (session.first_seq, session.last_seq)


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        (over_the_cap, "max_events"),
        (over_max_bytes, "max_bytes"),
        (over_the_budget, "max_total_bytes"),
        (ended, "terminal_grace"),
    ],
)
def test_a_reader_of_the_whole_store_is_told_the_same(
    store: EventStore, clock: Clock, remove: Callable[[EventStore], None], reason: str
) -> None:
    append_sizes(store, 1, 1, 1)
    clock.now = NOON + 5 * HOUR
    remove(store)
    with pytest.raises(EventsTruncated) as told:
        store.read_all(after_position=0)
    assert (told.value.reason, told.value.removed_at) == (reason, NOON + 5 * HOUR)


def test_the_session_counts_what_each_limit_removed(store: EventStore, clock: Clock) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=4))
    append_sizes(store, 3, 3)
    clock.now = NOON + HOUR
    prune(store)
    session = store.get_session("s")
    assert (session.removed_events, session.removed_bytes, session.retained_bytes) == (1, 3, 3)
    assert (session.removed_reason, session.removed_at) == ("max_bytes", NOON + HOUR)


# What a session notes for the next plan


def test_a_session_without_events_has_no_oldest_moment(store: EventStore, shell: sqlite3.Connection) -> None:
    assert note(shell, "oldest_at") is None
    append_sizes(store, 1)
    store.set_status("s", "closed")
    prune(store)
    assert note(shell, "oldest_at") is None


def test_the_oldest_moment_is_that_of_the_oldest_event_wherever_it_lies(
    store: EventStore, clock: Clock, shell: sqlite3.Connection
) -> None:
    append_at(store, clock, NOON, NOON - HOUR, NOON + HOUR)
    assert note(shell, "oldest_at") == to_us(NOON - HOUR)


def test_a_prune_moves_the_oldest_moment_to_the_first_event_that_stays(
    store: EventStore, clock: Clock, shell: sqlite3.Connection
) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=HOUR))
    append_at(store, clock, NOON, NOON + HOUR, NOON + 2 * HOUR)
    prune(store, NOON + 2 * HOUR)
    assert note(shell, "oldest_at") == to_us(NOON + HOUR)


def test_the_oldest_moment_stays_below_all_events_where_the_clock_went_back(
    store: EventStore, clock: Clock, shell: sqlite3.Connection
) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=DAY))
    append_at(store, clock, NOON - DAY, NOON + HOUR, NOON - DAY, NOON + 2 * HOUR)
    prune(store, NOON + MINUTE)
    assert seqs(store) == [2, 3, 4]
    assert note(shell, "oldest_at") <= to_us(NOON - DAY)


def test_a_session_notes_where_the_clock_went_back_the_last_time(
    store: EventStore, clock: Clock, shell: sqlite3.Connection
) -> None:
    append_at(store, clock, NOON, NOON, NOON + HOUR)
    assert note(shell, "unsorted_seq") == 0
    append_at(store, clock, NOON)
    assert note(shell, "unsorted_seq") == 4
    append_at(store, clock, NOON + MINUTE, NOON + HOUR)
    assert note(shell, "unsorted_seq") == 4
    append_at(store, clock, NOON - MINUTE)
    assert note(shell, "unsorted_seq") == 7


def test_a_session_created_again_has_sorted_events_whatever_the_clock_did_since(
    store: EventStore, clock: Clock, shell: sqlite3.Connection
) -> None:
    append_at(store, clock, NOON)
    store.delete_session("s")
    store.create_session("s")
    append_at(store, clock, NOON - DAY)
    assert (note(shell, "unsorted_seq"), note(shell, "oldest_at")) == (0, to_us(NOON - DAY))


def test_a_session_is_marked_as_oversize_by_the_append_that_makes_it_so(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=4))
    append_sizes(store, 2, 2)
    assert note(shell, "oversize") == 0
    append_sizes(store, 1)
    assert note(shell, "oversize") == 1


def test_a_prune_takes_the_mark_of_oversize_away(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=4))
    append_sizes(store, 3, 3)
    prune(store)
    assert note(shell, "oversize") == 0


def test_without_max_bytes_no_session_is_oversize(store: EventStore, shell: sqlite3.Connection) -> None:
    append_sizes(store, 100)
    assert note(shell, "oversize") == 0


@pytest.mark.parametrize(
    ("before", "after", "marked"), [(None, 4, 1), (None, 6, 0), (4, 6, 0), (6, 4, 1), (4, None, 0), (4, 5, 1), (4, 4, 1)]
)
def test_a_change_of_max_bytes_marks_exactly_the_sessions_that_are_over_it(
    store: EventStore, shell: sqlite3.Connection, before: int | None, after: int | None, marked: int
) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=before))
    store.create_session("small")
    store.create_session("empty")
    append_sizes(store, 3, 3)
    append_sizes(store, 1, session_id="small")
    store.set_retention_policy(RetentionPolicy(max_bytes=after))
    assert [note(shell, "oversize", name) for name in ("s", "small", "empty")] == [marked, 0, 0]
    assert (prune(store) > 0) is bool(marked)


def test_a_session_whose_cap_brought_it_below_max_bytes_again_loses_nothing(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=4))
    store.update_session("s", max_events=2)
    append_sizes(store, 2, 2, 2)
    assert prune(store) == 0
    assert seqs(store) == [2, 3]


def test_a_prune_settles_sessions_that_were_looked_at_in_vain(store: EventStore, clock: Clock) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=HOUR, max_bytes=4))
    store.update_session("s", max_events=2)
    append_at(store, clock, NOON - HOUR)
    append_sizes(store, 2, 2, 2)
    clock.now = NOON
    append_sizes(store, 2, 2)
    plan = store.plan_prune(now=NOON + MINUTE)
    assert (plan.truncations, len(plan.settled)) == ((), 1)
    assert store.prune(plan).events_removed == 0
    assert store.plan_prune(now=NOON + MINUTE).settled == ()
    assert seqs(store) == [5, 6]


# Imported events

CREATED_MS = 1_779_516_223_248


@pytest.fixture
def import_events(store: EventStore, tmp_path: Path) -> Callable[[list[str]], None]:
    """Imports the session `i` with an event for each time of storing."""

    def bring(moments: list[str]) -> None:
        scope = {"tenantId": "t", "ownerKeyId": "o"}
        session = {"id": "i", "status": "running", "createdAt": CREATED_MS, "updatedAt": CREATED_MS} | scope
        events = [
            {
                "sessionId": "i",
                "eventSeq": seq,
                "eventId": f"i:{seq}",
                "eventType": "t",
                "occurredAt": "2026-06-01T12:00:00Z",
                "ingestedAt": moment,
                "payload": 1,
            }
            | scope
            for seq, moment in enumerate(moments, 1)
        ]
        file = tmp_path / "state.json"
        file.write_text(json.dumps({"version": 1, "sessions": [session], "events": events}))
        report = store.import_aegis(file)
        assert (report.refused, report.events_added) == ([], len(moments))

    return bring


@pytest.mark.parametrize(
    ("moments", "left"),
    [
        (["0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z", "2026-06-01T11:00:00Z"], [3]),
        (["9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"], [1, 2]),
        (["1950-01-01T00:00:00Z", "2026-06-01T11:00:00Z", "1950-01-01T00:00:00Z"], [2, 3]),
        (["1950-01-01T00:00:00Z", "1940-01-01T00:00:00Z", "1930-01-01T00:00:00Z"], []),
        (["1950-01-01T00:00:00+05:00", "2026-06-01T00:00:00+12:00"], []),
    ],
)
def test_imported_events_are_as_old_as_their_time_of_storing_says(
    store: EventStore, import_events: Callable[[list[str]], None], moments: list[str], left: list[int]
) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=2 * HOUR))
    import_events(moments)
    prune(store)
    assert seqs(store, "i") == left


def test_an_event_appended_after_imported_ones_from_the_future_is_noted_as_out_of_order(
    store: EventStore, import_events: Callable[[list[str]], None], shell: sqlite3.Connection
) -> None:
    store.set_retention_policy(RetentionPolicy(max_age=2 * HOUR))
    import_events(["1950-01-01T00:00:00Z", "2100-01-01T00:00:00Z"])
    append_sizes(store, 1, session_id="i")
    assert note(shell, "unsorted_seq", "i") == 3
    prune(store, NOON + DAY)
    assert seqs(store, "i") == [2, 3]


def test_imported_sessions_that_are_over_max_bytes_are_pruned(
    store: EventStore, import_events: Callable[[list[str]], None]
) -> None:
    store.set_retention_policy(RetentionPolicy(max_bytes=2))
    import_events(["2026-06-01T11:00:00Z"] * 5)
    prune(store)
    assert seqs(store, "i") == [4, 5]


# The policy as a value


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        *(
            (knob, value)
            for knob in ("max_bytes", "max_total_bytes")
            for value in (0, -1, True, 1.5, "5", UNLIMITED, 2**62 + 1)
        ),
        *(("max_age", value) for value in (timedelta(0), -HOUR, 5, "1d", FOREVER + MICROSECOND)),
        *(("forget_sessions_after", value) for value in (-MICROSECOND, 5, FOREVER + MICROSECOND)),
        *(("mode", value) for value in ("", "ENFORCE", None, True)),
    ],
)
def test_a_limit_that_cannot_be_is_refused_by_its_knob(knob: str, value: Any) -> None:
    with pytest.raises(InvalidPolicy, match=knob):
        RetentionPolicy(**{knob: value})


@pytest.mark.parametrize(
    "policy",
    [
        RetentionPolicy(max_bytes=1, max_age=MICROSECOND, max_total_bytes=1, forget_sessions_after=timedelta(0), mode="warn"),
        RetentionPolicy(max_bytes=2**62, max_age=FOREVER, max_total_bytes=2**62, forget_sessions_after=FOREVER),
    ],
    ids=["smallest", "largest"],
)
def test_every_knob_comes_back_as_it_was_set_also_after_a_restart(open_store: OpenStore, policy: RetentionPolicy) -> None:
    first = open_store()
    first.set_retention_policy(policy)
    assert first.retention_policy() == policy
    first.close()
    assert open_store().retention_policy() == policy


def test_every_knob_can_be_taken_back(store: EventStore) -> None:
    store.set_retention_policy(EVERY_LIMIT)
    store.set_retention_policy(RetentionPolicy())
    assert store.retention_policy() == RetentionPolicy()
    append_sizes(store, 3, 3)
    assert prune(store, NOON + 1000 * DAY) == 0


def test_the_largest_limits_remove_nothing(store: EventStore) -> None:
    store.set_retention_policy(
        RetentionPolicy(max_bytes=2**62, max_age=FOREVER, max_total_bytes=2**62, forget_sessions_after=FOREVER)
    )
    append_sizes(store, 3, 3)
    assert prune(store) == 0


@pytest.mark.parametrize("knobs", [{"max_bytes": 1}, {"max_age": MICROSECOND}, {"max_total_bytes": 1}])
def test_setting_a_limit_removes_nothing_by_itself(store: EventStore, knobs: dict[str, Any]) -> None:
    append_sizes(store, 3, 3)
    policy = RetentionPolicy(**knobs)
    assert store.plan_policy(policy).events == 0
    store.set_retention_policy(policy)
    assert seqs(store) == [1, 2]
    assert store.plan_prune(now=NOON + DAY).events > 0
