"""Appending: one statement, one transaction, exact numbers, exact bounds."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    Event,
    EventIdConflict,
    EventStore,
    EventTooLarge,
    InvalidEvent,
    NewEvent,
    ReadOnlyStore,
    RetentionPolicy,
    SequenceConflict,
    SessionNotFound,
    StoreClosed,
)
from aegis_store.events import Json

OpenStore = Callable[..., EventStore]

UNTAKEABLE: list[Any] = ["", "x" * 513, "a\0", "\x1b[31m", "\x85", "half \ud83d", 7, b"t"]


def statements_of(store: EventStore, work: Callable[[], object]) -> list[str]:
    """What SQLite is given to run by the writer of the store. A statement with triggers is reported once for each."""
    seen: list[str] = []
    store._db.writer.driver.set_trace_callback(seen.append)
    try:
        work()
    finally:
        store._db.writer.driver.set_trace_callback(None)
    return seen


def vm_steps(store: EventStore, work: Callable[[], object]) -> int:
    """How many steps SQLite's virtual machine takes, triggers included: a cost that does not depend on the machine."""
    store._db._checkpointer.stop()  # on a SQLite with the WAL-reset bug it begins transactions on the connection watched here
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    store._db.writer.driver.set_progress_handler(count, 1)
    try:
        work()
    finally:
        store._db.writer.driver.set_progress_handler(None, 0)
    return taken


def fill(store: EventStore, session_id: str, count: int) -> None:
    store.append_many(session_id, [NewEvent(type="t", payload=number) for number in range(count)])


def append_with(store: EventStore, field: str, value: object) -> Event:
    arguments: dict[str, Any] = {"type": "t", "payload": 1, field: value}
    return store.append("s", **arguments)


def seqs(store: EventStore, session_id: str = "s") -> list[int]:
    return [event.seq for event in store.read(session_id, limit=1000).events]


# One statement, one transaction


def test_an_append_is_one_statement(store: EventStore) -> None:
    store.create_session("s")
    seen = set(statements_of(store, lambda: store.append("s", "t", {"k": 1}, event_id="e", expected_seq=0)))
    assert len(seen) == 1
    assert seen.pop().startswith("INSERT INTO event ")


def test_an_append_at_the_cap_is_one_statement(store: EventStore) -> None:
    store.create_session("s", max_events=2)
    fill(store, "s", 2)
    seen = set(statements_of(store, lambda: store.append("s", "t", 1)))
    assert len(seen) == 1
    assert seen.pop().startswith("INSERT INTO event ")


def test_an_append_is_committed_when_it_returns(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    store.append("s", "t", "there")
    assert not store._db.writer.driver.in_transaction
    assert shell.execute("SELECT seq, payload FROM event").fetchall() == [(1, '"there"')]


@pytest.mark.parametrize("count", [1, 3, 50])
def test_appends_are_as_many_commits_as_events(store: EventStore, shell: sqlite3.Connection, count: int) -> None:
    store.create_session("s")

    def commits() -> int:
        return int(shell.execute("PRAGMA data_version").fetchone()[0])

    moved = 0
    for _ in range(count):
        before = commits()
        store.append("s", "t", 1)
        moved += commits() != before
    assert moved == count


def test_a_batch_is_one_transaction(store: EventStore) -> None:
    store.create_session("s")
    seen = statements_of(store, lambda: fill(store, "s", 5))
    assert [sql for sql in seen if sql.startswith(("BEGIN", "COMMIT", "ROLLBACK"))] == ["BEGIN IMMEDIATE", "COMMIT"]


@pytest.mark.parametrize("named", [(), ("event_id",), ("expected_seq",), ("event_id", "expected_seq")])
def test_an_append_costs_the_same_with_10_and_with_5000_events_stored(store: EventStore, named: tuple[str, ...]) -> None:
    store.create_session("s", max_events=UNLIMITED)

    def cost_with(count: int) -> int:
        fill(store, "s", count - store.get_session("s").last_seq)
        given: dict[str, Any] = {"event_id": f"e{count}", "expected_seq": count}
        return vm_steps(store, lambda: store.append("s", "t", 1, **{name: given[name] for name in named}))

    assert cost_with(10) == cost_with(5000)


def test_an_append_at_the_cap_costs_the_same_with_a_cap_of_10_and_of_5000(store: EventStore) -> None:
    for cap in (10, 5000):
        store.create_session(f"cap {cap}", max_events=cap)
        fill(store, f"cap {cap}", cap + 5)
    few = vm_steps(store, lambda: store.append("cap 10", "t", 1))
    # Not to the step: the one that removes the later position writes that to the policy's row.
    assert abs(vm_steps(store, lambda: store.append("cap 5000", "t", 1)) - few) < 300


def test_an_append_costs_the_same_with_1_and_with_1000_sessions(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    store.append("s", "t", 1)
    few = vm_steps(store, lambda: store.append("s", "t", 1))
    shell.execute("BEGIN")
    shell.executemany(
        "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at) VALUES (?, 't', 'o', 'idle', 1, 1)",
        [(f"n{number}",) for number in range(1000)],
    )
    shell.execute("COMMIT")
    assert vm_steps(store, lambda: store.append("s", "t", 1)) == few


def test_an_append_that_is_refused_leaves_no_transaction_open(store: EventStore) -> None:
    store.create_session("s")
    with pytest.raises(SequenceConflict):
        store.append("s", "t", 1, expected_seq=7)
    assert not store._db.writer.driver.in_transaction
    assert store.append("s", "t", 1).seq == 1


# What comes back


def test_an_event_is_returned_as_it_is_read(store: EventStore) -> None:
    store.create_session("s")
    occurred_at = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
    event = store.append("s", "tool", {"k": [1]}, event_id="e", occurred_at=occurred_at, run_id="r", payload_ref="s3://b/k")
    assert store.read("s").events == [event]
    assert (event.session_id, event.seq, event.type, event.payload) == ("s", 1, "tool", {"k": [1]})
    assert (event.event_id, event.run_id, event.payload_ref, event.occurred_at) == ("e", "r", "s3://b/k", occurred_at)


def test_what_is_not_given_is_none(store: EventStore) -> None:
    store.create_session("s")
    event = store.append("s", "t", None)
    assert (event.payload, event.event_id, event.run_id, event.payload_ref) == (None, None, None, None)


def test_seq_starts_at_1_and_goes_up_by_1(store: EventStore) -> None:
    store.create_session("s")
    assert [store.append("s", "t", None).seq for _ in range(20)] == list(range(1, 21))


def test_each_session_has_its_own_seq_and_all_share_the_positions(store: EventStore) -> None:
    store.create_session("a")
    store.create_session("b")
    events = [store.append(session_id, "t", None) for session_id in "abbaab"]
    assert [event.seq for event in events] == [1, 1, 2, 2, 3, 3]
    positions = [event.position for event in events]
    assert positions == sorted(set(positions))


def test_seq_goes_on_over_two_open_stores(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    first.create_session("s")
    assert [store.append("s", "t", None).seq for store in (first, second, second, first)] == [1, 2, 3, 4]


def test_an_append_that_is_refused_uses_up_no_seq(store: EventStore) -> None:
    store.create_session("s")
    store.append("s", "t", 1, event_id="e")
    with pytest.raises(EventIdConflict):
        store.append("s", "t", 2, event_id="e")
    with pytest.raises(SequenceConflict):
        store.append("s", "t", 2, expected_seq=0)
    assert store.append("s", "t", 2).seq == 2


# The cap


@pytest.mark.parametrize("cap", [1, 2, 3, 7])
def test_a_session_never_holds_more_than_its_cap_and_the_oldest_go_first(store: EventStore, cap: int) -> None:
    store.create_session("s", max_events=cap)
    for seq in range(1, 3 * cap + 1):
        store.append("s", "t", seq)
        assert seqs(store) == list(range(max(1, seq - cap + 1), seq + 1))


@pytest.mark.parametrize("cap", [1, 5])
def test_the_cap_of_the_policy_is_exact_after_every_append(store: EventStore, shell: sqlite3.Connection, cap: int) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=cap))
    store.create_session("s")
    for seq in range(1, 3 * cap + 1):
        store.append("s", "t", seq)
        assert shell.execute("SELECT count(*), max(seq) FROM event").fetchone() == (min(seq, cap), seq)


def test_a_session_keeps_1000_events_unless_told_otherwise(store: EventStore) -> None:
    store.create_session("s")
    fill(store, "s", 1003)
    assert seqs(store) == list(range(4, 1004))


def test_a_session_without_a_limit_keeps_all_events(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=2))
    store.create_session("s", max_events=UNLIMITED)
    fill(store, "s", 50)
    assert seqs(store) == list(range(1, 51))


def test_a_store_without_a_limit_keeps_all_events(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
    store.create_session("s")
    fill(store, "s", 1005)
    assert store.get_session("s").event_count == 1005


@pytest.mark.parametrize(("own", "kept"), [(2, 2), (6, 6), (None, 4), (UNLIMITED, 9)])
def test_a_cap_of_the_session_goes_before_that_of_the_policy(store: EventStore, own: Any, kept: int) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=4))
    store.create_session("s", max_events=own)
    fill(store, "s", 9)
    assert store.get_session("s").event_count == kept


def test_a_cap_holds_for_a_session_on_hold(store: EventStore) -> None:
    store.create_session("s", max_events=2)
    store.update_session("s", hold=True)
    fill(store, "s", 5)
    assert seqs(store) == [4, 5]


def test_a_raised_cap_holds_from_the_next_append_on(store: EventStore) -> None:
    store.create_session("s", max_events=2)
    fill(store, "s", 5)
    store.update_session("s", max_events=4)
    fill(store, "s", 5)
    assert seqs(store) == [7, 8, 9, 10]


def test_a_cap_touches_no_other_session(store: EventStore) -> None:
    store.create_session("small", max_events=1)
    store.create_session("other")
    fill(store, "other", 3)
    fill(store, "small", 3)
    assert seqs(store, "other") == [1, 2, 3]


def test_what_the_cap_removed_is_accounted_for_on_the_session(store: EventStore) -> None:
    store.create_session("s", max_events=2)
    for payload in ("aa", "bbb", "c", "d"):
        last = store.append("s", "t", payload)
    session = store.get_session("s")
    assert (session.removed_events, session.removed_bytes, session.retained_bytes) == (2, len('"aa""bbb"'), len('"c""d"'))
    assert (session.removed_at, session.removed_reason) == (last.recorded_at, "max_events")
    assert (session.first_seq, session.last_seq, session.event_count) == (3, 4, 2)


def test_a_batch_larger_than_the_cap_leaves_its_newest_events(store: EventStore) -> None:
    store.create_session("s", max_events=3)
    events = store.append_many("s", [NewEvent(type="t", payload=number) for number in range(10)])
    assert [event.seq for event in events] == list(range(1, 11))
    assert store.read("s").events == events[-3:]


# event_id


def test_a_repeated_append_returns_the_original_event(store: EventStore) -> None:
    store.create_session("s")
    original = store.append("s", "t", {"k": 1}, event_id="e", run_id="r", payload_ref="p")
    store.append("s", "t", 2)
    assert store.append("s", "t", {"k": 1}, event_id="e", run_id="r", payload_ref="p") == original
    assert seqs(store) == [1, 2]


def test_a_repeated_append_returns_the_original_whatever_expected_seq_says(store: EventStore) -> None:
    store.create_session("s")
    original = store.append("s", "t", 1, event_id="e", expected_seq=0)
    for expected_seq in (0, 1, 99):
        assert store.append("s", "t", 1, event_id="e", expected_seq=expected_seq) == original


def test_a_repeated_append_keeps_the_times_of_the_original(store: EventStore) -> None:
    store.create_session("s")
    original = store.append("s", "t", 1, event_id="e")
    assert store.append("s", "t", 1, event_id="e", occurred_at=datetime(2020, 1, 1, tzinfo=UTC)) == original


@pytest.mark.parametrize(
    "other",
    [{"type": "u"}, {"payload": 2}, {"run_id": "q"}, {"run_id": None}, {"payload_ref": "q"}, {"payload_ref": None}],
)
def test_an_event_id_with_other_content_is_a_conflict(store: EventStore, other: dict[str, Any]) -> None:
    store.create_session("s")
    content: dict[str, Any] = {"type": "t", "payload": 1, "run_id": "r", "payload_ref": "p"}
    store.append("s", "t", 0)
    store.append("s", **content, event_id="e")
    with pytest.raises(EventIdConflict) as caught:
        store.append("s", **content | other, event_id="e")
    assert (caught.value.session_id, caught.value.event_id, caught.value.seq) == ("s", "e", 2)
    assert caught.value.path is None
    assert store.get_session("s").last_seq == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (True, 1),
        (1, 1.0),
        (0, False),
        (0.0, -0.0),
        (None, False),
        ("1", 1),
        ([], {}),
        ([1, 2], [2, 1]),
        ({"a": True}, {"a": 1}),
    ],
)
def test_payloads_that_python_or_json_might_confuse_are_other_content(store: EventStore, first: Json, second: Json) -> None:
    store.create_session("s")
    store.append("s", "t", first, event_id="e")
    with pytest.raises(EventIdConflict):
        store.append("s", "t", second, event_id="e")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        ({"a": "\ud83d", "b": 1}, {"b": 1, "a": "\ud83d"}),
        ([{"é": 1, "z": 2}], [{"z": 2, "é": 1}]),
    ],
)
def test_the_order_of_keys_makes_no_other_content(store: EventStore, first: Json, second: Json) -> None:
    store.create_session("s")
    original = store.append("s", "t", first, event_id="e")
    assert store.append("s", "t", second, event_id="e").seq == original.seq


def test_the_same_event_id_in_another_session_is_another_event(store: EventStore) -> None:
    for session_id in ("a", "b"):
        store.create_session(session_id)
        assert store.append(session_id, "t", session_id, event_id="e").seq == 1


def test_events_without_an_event_id_never_conflict(store: EventStore) -> None:
    store.create_session("s")
    assert [store.append("s", "t", 1).seq for _ in range(3)] == [1, 2, 3]


def test_an_event_id_is_remembered_as_long_as_its_event_is_retained(store: EventStore) -> None:
    store.create_session("s", max_events=2)
    store.append("s", "t", 1, event_id="e")
    store.append("s", "t", 2)
    assert store.append("s", "t", 1, event_id="e").seq == 1
    store.append("s", "t", 3)
    assert store.append("s", "t", 1, event_id="e").seq == 4


def test_an_event_id_is_remembered_over_a_restart(open_store: OpenStore) -> None:
    first = open_store()
    first.create_session("s")
    original = first.append("s", "t", 1, event_id="e")
    first.close()
    assert open_store().append("s", "t", 1, event_id="e") == original


# expected_seq


def test_an_append_at_the_expected_seq_goes_through(store: EventStore) -> None:
    store.create_session("s")
    assert [store.append("s", "t", None, expected_seq=seq).seq for seq in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("expected_seq", [0, 1, 3, 2**63 - 1])
def test_an_append_at_another_seq_is_a_conflict_that_states_both(store: EventStore, expected_seq: int) -> None:
    store.create_session("s")
    fill(store, "s", 2)
    with pytest.raises(SequenceConflict) as caught:
        store.append("s", "t", None, expected_seq=expected_seq)
    assert (caught.value.session_id, caught.value.expected, caught.value.actual) == ("s", expected_seq, 2)
    assert store.get_session("s").last_seq == 2


def test_expected_seq_is_the_last_seq_also_when_the_events_are_gone(store: EventStore) -> None:
    store.create_session("s", status="closed")
    fill(store, "s", 3)
    store.prune()
    with pytest.raises(SequenceConflict):
        store.append("s", "t", None, expected_seq=0)
    assert store.append("s", "t", None, expected_seq=3).seq == 4


@pytest.mark.parametrize("expected_seq", [-1, 2**63, True, 1.0, "1"])
def test_an_expected_seq_that_no_session_can_have_is_refused(store: EventStore, expected_seq: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidEvent, match="expected_seq"):
        store.append("s", "t", None, expected_seq=expected_seq)
    with pytest.raises(InvalidEvent, match="expected_seq"):
        store.append_many("s", [], expected_seq=expected_seq)


# append_many


def test_a_batch_is_appended_in_order(store: EventStore) -> None:
    store.create_session("s")
    events = store.append_many("s", (NewEvent(type="t", payload=number) for number in range(5)), expected_seq=0)
    assert [(event.seq, event.payload) for event in events] == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]
    assert store.read("s").events == events


def test_an_empty_batch_appends_nothing(store: EventStore) -> None:
    store.create_session("s")
    assert store.append_many("s", []) == []


def test_an_empty_batch_needs_its_session_too(store: EventStore) -> None:
    with pytest.raises(SessionNotFound):
        store.append_many("unknown", [])


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (NewEvent(type="t", payload=float("nan")), InvalidEvent),
        (NewEvent(type="", payload=1), InvalidEvent),
        (NewEvent(type="t", payload="x" * 200), EventTooLarge),
        (NewEvent(type="t", payload=1, event_id="known"), EventIdConflict),
        ("no event", InvalidEvent),
    ],
)
def test_a_batch_with_one_event_that_cannot_be_appends_none(store: EventStore, last: Any, error: type[Exception]) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=100))
    store.create_session("s")
    store.append("s", "t", 0, event_id="known")
    with pytest.raises(error):
        store.append_many("s", [NewEvent(type="t", payload=1), NewEvent(type="t", payload=2), last])
    assert seqs(store) == [1]
    assert store.append("s", "t", 1).seq == 2


def test_a_batch_whose_source_fails_appends_none(store: EventStore) -> None:
    store.create_session("s")

    def source() -> Any:
        yield NewEvent(type="t", payload=1)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.append_many("s", source())
    assert seqs(store) == []


def test_a_batch_that_is_refused_over_its_cap_removes_none(store: EventStore) -> None:
    store.create_session("s", max_events=2)
    store.append("s", "t", 1, event_id="known")
    with pytest.raises(EventIdConflict):
        store.append_many("s", [*(NewEvent(type="t", payload=2),) * 2, NewEvent(type="t", payload=3, event_id="known")])
    assert seqs(store) == [1]


def test_a_batch_at_another_seq_is_a_conflict(store: EventStore) -> None:
    store.create_session("s")
    store.append("s", "t", 1)
    with pytest.raises(SequenceConflict) as caught:
        store.append_many("s", [NewEvent(type="t", payload=1)], expected_seq=0)
    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert seqs(store) == [1]


def test_a_batch_that_is_repeated_returns_the_events_that_stand(store: EventStore) -> None:
    store.create_session("s")
    batch = [NewEvent(type="t", payload=number, event_id=f"e{number}") for number in range(3)]
    events = store.append_many("s", batch, expected_seq=0)
    assert store.append_many("s", batch, expected_seq=0) == events
    assert seqs(store) == [1, 2, 3]


def test_a_batch_that_is_known_in_part_appends_the_rest(store: EventStore) -> None:
    store.create_session("s")
    store.append("s", "t", 0, event_id="e0")
    events = store.append_many("s", [NewEvent(type="t", payload=number, event_id=f"e{number}") for number in range(3)])
    assert [event.seq for event in events] == [1, 2, 3]


def test_an_event_id_that_stands_twice_in_a_batch_is_appended_once(store: EventStore) -> None:
    store.create_session("s")
    events = store.append_many("s", [NewEvent(type="t", payload=1, event_id="e")] * 2)
    assert [event.seq for event in events] == [1, 1]


def test_an_event_id_that_stands_twice_in_a_batch_with_other_content_is_a_conflict(store: EventStore) -> None:
    store.create_session("s")
    store.append("s", "t", 0)
    batch = [NewEvent(type="t", payload=0), *(NewEvent(type="t", payload=number, event_id="e") for number in (1, 1, 2))]
    with pytest.raises(
        EventIdConflict, match=r"^events\[3\]\.event_id 'e' is that of events\[1\] with other content"
    ) as caught:
        store.append_many("s", batch)
    assert (caught.value.path, caught.value.seq) == ("events[3]", None)
    assert seqs(store) == [1]


def test_a_conflict_with_an_event_that_stands_tells_which_event_of_the_batch_it_is(store: EventStore) -> None:
    store.create_session("s")
    store.append("s", "t", 0, event_id="e")
    batch = [NewEvent(type="t", payload=0, event_id="new"), NewEvent(type="t", payload=1, event_id="e")]
    with pytest.raises(EventIdConflict, match=r"^events\[1\]\.event_id 'e' stands in session 's' at seq 1 ") as caught:
        store.append_many("s", batch)
    assert (caught.value.path, caught.value.seq) == ("events[1]", 1)


# Times


def test_recorded_at_is_when_the_store_took_the_event(store: EventStore) -> None:
    store.create_session("s")
    before = datetime.now(UTC) - timedelta(microseconds=1)
    event = store.append("s", "t", 1)
    assert before <= event.recorded_at <= datetime.now(UTC)
    assert event.occurred_at == event.recorded_at


@pytest.mark.parametrize(
    "occurred_at",
    [
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    ],
)
def test_occurred_at_comes_back_as_the_same_moment_in_utc(store: EventStore, occurred_at: datetime) -> None:
    store.create_session("s")
    event = store.append("s", "t", 1, occurred_at=occurred_at)
    read_back = store.read("s").events[0].occurred_at
    assert event.occurred_at == read_back == occurred_at
    assert read_back.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "occurred_at",
    [
        datetime(2026, 1, 1),
        "2026-01-01T00:00:00Z",
        1767225600,
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1))),
    ],
    ids=["without a zone", "text", "a number", "before year 1 in UTC", "after year 9999 in UTC"],
)
def test_an_occurred_at_that_is_no_moment_of_utc_is_refused(store: EventStore, occurred_at: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidEvent, match="occurred_at"):
        store.append("s", "t", 1, occurred_at=occurred_at)
    assert seqs(store) == []


# Names and refusals


@pytest.mark.parametrize("field", ["type", "event_id", "run_id", "payload_ref"])
@pytest.mark.parametrize("value", [value for value in UNTAKEABLE if value != "x" * 513])
def test_names_that_are_no_clean_text_are_refused(store: EventStore, field: str, value: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidEvent) as caught:
        append_with(store, field, value)
    assert caught.value.path == field
    assert seqs(store) == []


@pytest.mark.parametrize(("field", "limit_bytes"), [("type", 512), ("event_id", 512), ("run_id", 512), ("payload_ref", 4096)])
def test_names_are_taken_up_to_their_limit_in_bytes(store: EventStore, field: str, limit_bytes: int) -> None:
    store.create_session("s")
    longest = "é" * (limit_bytes // 2)
    append_with(store, field, longest)
    assert getattr(store.read("s").events[0], field) == longest
    with pytest.raises(InvalidEvent) as caught:
        append_with(store, field, longest + "x")
    assert caught.value.path == field


def test_a_type_is_needed(store: EventStore) -> None:
    store.create_session("s")
    with pytest.raises(InvalidEvent, match="type"):
        store.append("s", None, 1)  # type: ignore[arg-type]


def test_a_payload_over_the_limit_is_too_large_and_not_stored(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=10))
    store.create_session("s")
    with pytest.raises(EventTooLarge) as caught:
        store.append("s", "t", "x" * 9)
    assert (caught.value.payload_bytes, caught.value.max_event_bytes) == (11, 10)
    assert seqs(store) == []


def test_the_default_limit_of_a_payload_is_1_mib(store: EventStore) -> None:
    store.create_session("s")
    store.append("s", "t", "x" * (1024 * 1024 - 2))
    with pytest.raises(EventTooLarge):
        store.append("s", "t", "x" * (1024 * 1024 - 1))


@pytest.mark.parametrize("session_id", ["unknown", *UNTAKEABLE, None])
def test_an_append_to_a_session_that_is_not_there_is_refused(store: EventStore, session_id: Any) -> None:
    store.create_session("s")
    with pytest.raises(SessionNotFound) as caught:
        store.append(session_id, "t", 1)
    assert caught.value.session_id == session_id
    with pytest.raises(SessionNotFound):
        store.append_many(session_id, [NewEvent(type="t", payload=1)])


def test_an_append_makes_no_session(store: EventStore) -> None:
    with pytest.raises(SessionNotFound):
        store.append("unknown", "t", 1, event_id="e", expected_seq=0)
    assert store.list_sessions().sessions == []


def test_a_closed_store_takes_no_event(store: EventStore) -> None:
    store.create_session("s")
    store.close()
    store.close()
    with pytest.raises(StoreClosed):
        store.append("s", "t", 1)
    with pytest.raises(StoreClosed):
        store.append_many("s", [NewEvent(type="t", payload=1)])


def test_a_read_only_store_takes_no_event(store: EventStore, open_store: OpenStore) -> None:
    store.create_session("s")
    reader = open_store(read_only=True)
    with pytest.raises(ReadOnlyStore):
        reader.append("s", "t", 1)
    with pytest.raises(ReadOnlyStore):
        reader.append_many("s", [NewEvent(type="t", payload=1)])
    assert seqs(store) == []
