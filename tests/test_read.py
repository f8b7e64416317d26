"""Reading: pages, cursors, and what is missing below them."""

import gc
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event as sa_event

from aegis_store import (
    UNLIMITED,
    CursorAhead,
    Event,
    EventStore,
    EventsTruncated,
    InvalidInput,
    NewEvent,
    SessionNotFound,
    StoreClosed,
    StoreCorrupt,
    payload,
)

OpenStore = Callable[..., EventStore]


def fill(store: EventStore, session_id: str, count: int, type_: str = "t") -> list[Event]:
    return store.append_many(session_id, [NewEvent(type=type_, payload=number) for number in range(count)])


def with_events(store: EventStore, count: int, *, max_events: Any = None, status: str = "running") -> list[Event]:
    """Session `s` with so many events appended."""
    store.create_session("s", max_events=max_events, status=status)
    return fill(store, "s", count)


def vm_steps(store: EventStore, work: Callable[[], object]) -> int:
    """How many steps SQLite's virtual machine takes for what `work` reads: a cost that does not depend on the machine."""
    store._db._checkpointer.stop()  # on a SQLite with the WAL-reset bug it begins transactions on the connection watched here
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    def watch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(count, 1)

    def unwatch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(None, 0)

    engine = store._db._engine
    sa_event.listen(engine, "checkout", watch)
    sa_event.listen(engine, "checkin", unwatch)
    try:
        work()  # the first time a connection also reads the schema
        taken = 0
        work()
    finally:
        sa_event.remove(engine, "checkout", watch)
        sa_event.remove(engine, "checkin", unwatch)
    return taken


def query_plans(store: EventStore, work: Callable[[], object]) -> list[str]:
    """The lines of the query plans of all that `work` reads."""
    plans: list[str] = []

    def explain(connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith("SELECT"):
            rows = connection.connection.dbapi_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in rows)

    engine = store._db._engine
    sa_event.listen(engine, "before_cursor_execute", explain)
    try:
        work()
    finally:
        sa_event.remove(engine, "before_cursor_execute", explain)
    return plans


# Pages of a session


def test_a_page_begins_at_the_oldest_retained_event(store: EventStore) -> None:
    events = with_events(store, 5, max_events=3)
    page = store.read("s")
    assert page.events == events[2:]
    assert (page.first_seq, page.last_seq, page.next_after_seq, page.has_more, page.missed) == (3, 5, 5, False, 0)


def test_a_page_of_a_session_without_events_is_empty(store: EventStore) -> None:
    store.create_session("s")
    page = store.read("s")
    assert (page.events, page.first_seq, page.last_seq, page.next_after_seq) == ([], 1, 0, 0)
    assert (page.has_more, page.missed) == (False, 0)


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (8, [7])])
def test_pages_give_each_event_once_in_order(store: EventStore, limit: int, sizes: list[int]) -> None:
    events = with_events(store, 7)
    pages = [store.read("s", limit=limit)]
    while pages[-1].has_more:
        pages.append(store.read("s", after_seq=pages[-1].next_after_seq, limit=limit))
    assert [len(page.events) for page in pages] == sizes
    assert [event for page in pages for event in page.events] == events


def test_a_page_holds_100_events_unless_told_otherwise(store: EventStore) -> None:
    with_events(store, 101)
    page = store.read("s")
    assert (len(page.events), page.next_after_seq, page.has_more) == (100, 100, True)


@pytest.mark.parametrize("limit", [1, 1000])
def test_a_page_holds_1_to_1000_events(store: EventStore, limit: int) -> None:
    with_events(store, 1001, max_events=UNLIMITED)
    assert len(store.read("s", limit=limit).events) == limit
    assert len(store.read_all(limit=limit)) == limit


def test_a_page_is_full_without_more_when_the_session_ends_with_it(store: EventStore) -> None:
    with_events(store, 4)
    page = store.read("s", limit=4)
    assert (len(page.events), page.has_more) == (4, False)


def test_a_cursor_is_the_last_seq_that_was_seen(store: EventStore) -> None:
    events = with_events(store, 5)
    assert store.read("s", after_seq=3).events == events[3:]


def test_cursor_0_begins_at_the_first_event(store: EventStore) -> None:
    events = with_events(store, 2)
    assert store.read("s", after_seq=0).events == events


def test_a_cursor_at_the_last_event_gives_an_empty_page_to_go_on_from(store: EventStore) -> None:
    with_events(store, 3)
    page = store.read("s", after_seq=3)
    assert (page.events, page.next_after_seq, page.has_more, page.missed) == ([], 3, False, 0)
    fourth = store.append("s", "t", 4)
    assert store.read("s", after_seq=page.next_after_seq).events == [fourth]


def test_a_page_holds_no_event_of_another_session(store: EventStore) -> None:
    for session_id in ("a", "b"):
        store.create_session(session_id)
    for session_id in "abab":
        store.append(session_id, "t", session_id)
    assert [event.payload for event in store.read("b").events] == ["b", "b"]


# Gaps


def test_a_cursor_below_what_is_retained_raises_and_states_the_valid_range(store: EventStore) -> None:
    events = with_events(store, 5, max_events=3)
    with pytest.raises(EventsTruncated) as caught:
        store.read("s", after_seq=1)
    error = caught.value
    assert (error.session_id, error.requested_seq, error.first_seq, error.last_seq) == ("s", 1, 3, 5)
    assert (error.removed_at, error.reason) == (events[-1].recorded_at, "max_events")
    assert "3..5" in str(error)


def test_a_cursor_just_below_what_is_retained_has_missed_nothing(store: EventStore) -> None:
    events = with_events(store, 5, max_events=3)
    assert store.read("s", after_seq=2).events == events[2:]


@pytest.mark.parametrize(("after_seq", "missed"), [(None, 0), (0, 2), (1, 1), (2, 0), (3, 0)])
def test_skipping_a_gap_says_how_many_events_were_missed(store: EventStore, after_seq: int | None, missed: int) -> None:
    events = with_events(store, 5, max_events=3)
    page = store.read("s", after_seq=after_seq, on_gap="skip")
    assert page.missed == missed
    assert page.events == events[max(2, after_seq or 0) :]


def test_a_limit_counts_from_the_first_retained_event_when_a_gap_is_skipped(store: EventStore) -> None:
    with_events(store, 9, max_events=5)
    page = store.read("s", after_seq=0, limit=2, on_gap="skip")
    assert ([event.seq for event in page.events], page.next_after_seq, page.has_more) == ([5, 6], 6, True)


@pytest.mark.parametrize("on_gap", ["raise", "skip"])
@pytest.mark.parametrize("after_seq", [6, 2**63 - 1])
def test_a_cursor_beyond_the_last_event_raises(store: EventStore, after_seq: int, on_gap: Any) -> None:
    with_events(store, 5)
    with pytest.raises(CursorAhead) as caught:
        store.read("s", after_seq=after_seq, on_gap=on_gap)
    assert (caught.value.session_id, caught.value.requested_seq, caught.value.last_seq) == ("s", after_seq, 5)


def test_a_pruned_session_gives_an_empty_page(store: EventStore) -> None:
    with_events(store, 3, status="closed")
    store.prune()
    for after_seq in (None, 3):
        page = store.read("s", after_seq=after_seq)
        assert (page.events, page.first_seq, page.last_seq, page.next_after_seq) == ([], 4, 3, 3)
        assert (page.has_more, page.missed) == (False, 0)


def test_a_reader_of_a_pruned_session_is_told(store: EventStore) -> None:
    with_events(store, 3, status="closed")
    store.prune()
    with pytest.raises(EventsTruncated) as caught:
        store.read("s", after_seq=2)
    assert (caught.value.first_seq, caught.value.last_seq, caught.value.reason) == (4, 3, "terminal_grace")
    assert isinstance(caught.value.removed_at, datetime)
    assert "none" in str(caught.value)


def test_skipping_all_of_a_pruned_session_counts_all_of_it(store: EventStore) -> None:
    with_events(store, 3, status="closed")
    store.prune()
    page = store.read("s", after_seq=0, on_gap="skip")
    assert (page.events, page.missed, page.next_after_seq, page.has_more) == ([], 3, 3, False)


def test_a_gap_is_found_with_types_too(store: EventStore) -> None:
    with_events(store, 5, max_events=3)
    with pytest.raises(EventsTruncated):
        store.read("s", after_seq=0, types=["t"])
    assert store.read("s", after_seq=0, types=["other"], on_gap="skip").missed == 2


# Types


@pytest.fixture
def mixed(store: EventStore) -> list[Event]:
    """Session `s`: types a, b, c by turns, 30 events."""
    store.create_session("s")
    return store.append_many("s", [NewEvent(type="abc"[number % 3], payload=number) for number in range(30)])


@pytest.mark.parametrize("types", [["a"], ["b", "c"], ("a", "b", "c"), {"c"}, ["a", "a"], ["a", "unknown"]])
def test_a_page_can_be_limited_to_types(store: EventStore, mixed: list[Event], types: Any) -> None:
    page = store.read("s", types=types)
    assert page.events == [event for event in mixed if event.type in types]
    assert (page.next_after_seq, page.has_more) == (30, False)


def test_a_page_of_a_type_that_does_not_occur_is_empty_and_final(store: EventStore, mixed: list[Event]) -> None:
    page = store.read("s", types=["unknown"])
    assert (page.events, page.next_after_seq, page.has_more) == ([], 30, False)


def test_pages_of_a_type_give_each_of_its_events_once(store: EventStore, mixed: list[Event]) -> None:
    pages = [store.read("s", types=["b"], limit=4)]
    while pages[-1].has_more:
        pages.append(store.read("s", types=["b"], limit=4, after_seq=pages[-1].next_after_seq))
    assert [event for page in pages for event in page.events] == [event for event in mixed if event.type == "b"]
    assert len(pages) == 3


def test_a_page_of_a_type_looks_at_so_many_events_and_no_more(
    store: EventStore, mixed: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_store.read.FILTERED_SCAN_EVENTS", 10)
    page = store.read("s", types=["a"])
    assert [event.seq for event in page.events] == [1, 4, 7, 10]
    assert (page.next_after_seq, page.has_more) == (10, True)


def test_a_page_that_found_nothing_so_far_is_empty_and_has_more(
    store: EventStore, mixed: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_store.read.FILTERED_SCAN_EVENTS", 12)
    last = store.append("s", "rare", "found")
    pages = [store.read("s", types=["rare"])]
    while pages[-1].has_more:
        pages.append(store.read("s", types=["rare"], after_seq=pages[-1].next_after_seq))
    assert [page.next_after_seq for page in pages] == [12, 24, 31]
    assert [event for page in pages for event in page.events] == [last]


@pytest.mark.parametrize("types", ["a", [], (), [""], [None], [7], ["a\n"], ["half \ud83d"]])
def test_types_that_cannot_be_are_refused(store: EventStore, mixed: list[Event], types: Any) -> None:
    with pytest.raises(InvalidInput, match="types"):
        store.read("s", types=types)


# The whole store


@pytest.fixture
def woven(store: EventStore) -> list[Event]:
    """Sessions `a` and `b`, 3 events each, by turns."""
    for session_id in ("a", "b"):
        store.create_session(session_id)
    return [store.append(session_id, "t", number) for number, session_id in enumerate("ababab")]


def test_the_whole_store_is_read_in_the_order_of_its_appends(store: EventStore, woven: list[Event]) -> None:
    assert store.read_all() == woven


def test_pages_of_the_whole_store_give_each_event_once(store: EventStore, woven: list[Event]) -> None:
    read: list[Event] = []
    while page := store.read_all(after_position=read[-1].position if read else None, limit=4):
        read.extend(page)
    assert read == woven


def test_a_page_of_the_whole_store_holds_100_events_unless_told_otherwise(store: EventStore) -> None:
    with_events(store, 101)
    assert len(store.read_all()) == 100


def test_an_empty_store_has_no_events_and_one_valid_cursor(store: EventStore) -> None:
    assert store.read_all() == []
    assert store.read_all(after_position=0) == []
    with pytest.raises(CursorAhead):
        store.read_all(after_position=1)


def test_a_position_beyond_the_last_ever_given_raises(store: EventStore, woven: list[Event]) -> None:
    last = woven[-1].position
    assert store.read_all(after_position=last) == []
    with pytest.raises(CursorAhead) as caught:
        store.read_all(after_position=last + 1)
    assert (caught.value.session_id, caught.value.requested_seq, caught.value.last_seq) == (None, last + 1, last)


def test_a_position_stays_valid_when_its_event_is_gone(store: EventStore, woven: list[Event]) -> None:
    store.set_status("b", "closed")
    store.prune()
    assert store.read_all(after_position=woven[-1].position) == []


def test_a_reader_of_the_store_is_told_of_an_event_that_was_removed_unread(store: EventStore, woven: list[Event]) -> None:
    store.set_status("a", "closed")
    store.prune()
    last_removed = woven[4].position
    with pytest.raises(EventsTruncated) as caught:
        store.read_all(after_position=woven[3].position)
    error = caught.value
    assert (error.session_id, error.requested_seq) == (None, woven[3].position)
    assert (error.first_seq, error.last_seq, error.reason) == (last_removed + 1, woven[5].position, "terminal_grace")
    assert error.removed_at == store.get_session("a").removed_at


def test_a_reader_of_the_store_who_saw_all_that_was_removed_goes_on(store: EventStore, woven: list[Event]) -> None:
    store.set_status("a", "closed")
    store.prune()
    assert store.read_all(after_position=woven[4].position) == [woven[5]]


def test_a_reader_of_the_store_is_told_what_the_cap_removed(store: EventStore) -> None:
    events = with_events(store, 4, max_events=2)
    with pytest.raises(EventsTruncated) as caught:
        store.read_all(after_position=0)
    assert caught.value.reason == "max_events"
    assert store.read_all(after_position=events[1].position) == events[2:]


def test_skipping_gives_a_reader_of_the_store_what_is_retained(store: EventStore, woven: list[Event]) -> None:
    store.set_status("a", "closed")
    store.prune()
    assert store.read_all(after_position=0, on_gap="skip") == [woven[1], woven[3], woven[5]]


def test_a_reader_of_the_store_without_a_cursor_gets_what_is_retained(store: EventStore, woven: list[Event]) -> None:
    store.set_status("a", "closed")
    store.prune()
    assert store.read_all() == [woven[1], woven[3], woven[5]]


def test_positions_are_not_used_again_when_the_store_was_emptied(store: EventStore, woven: list[Event]) -> None:
    for session_id in ("a", "b"):
        store.set_status(session_id, "closed")
    store.prune()
    assert store.read_all() == []
    assert store.append("a", "t", 1).position > woven[-1].position


# Arguments


@pytest.mark.parametrize("limit", [0, -1, 1001, True, 1.0, "5", None])
def test_the_limit_of_a_page_is_1_to_1000(store: EventStore, limit: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidInput, match="limit"):
        store.read("s", limit=limit)
    with pytest.raises(InvalidInput, match="limit"):
        store.read_all(limit=limit)


@pytest.mark.parametrize("cursor", [-1, 2**63, True, 1.0, "5", b"5"])
def test_a_cursor_is_a_whole_number_from_0_on(store: EventStore, cursor: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidInput, match="after_seq"):
        store.read("s", after_seq=cursor)
    with pytest.raises(InvalidInput, match="after_position"):
        store.read_all(after_position=cursor)


@pytest.mark.parametrize("on_gap", ["", "ignore", None, True])
def test_on_gap_is_raise_or_skip(store: EventStore, on_gap: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidInput, match="on_gap"):
        store.read("s", on_gap=on_gap)
    with pytest.raises(InvalidInput, match="on_gap"):
        store.read_all(on_gap=on_gap)


@pytest.mark.parametrize("session_id", ["unknown", "", "a\0", None, 7])
def test_a_session_that_is_not_there_is_not_read(store: EventStore, session_id: Any) -> None:
    with pytest.raises(SessionNotFound):
        store.read(session_id)


def test_a_closed_store_is_not_read(store: EventStore) -> None:
    store.create_session("s")
    store.close()
    with pytest.raises(StoreClosed):
        store.read("s")
    with pytest.raises(StoreClosed):
        store.read_all()


def test_a_read_only_store_is_read_while_another_writes(store: EventStore, open_store: OpenStore) -> None:
    store.create_session("s")
    reader = open_store(read_only=True)
    event = store.append("s", "t", 1)
    assert reader.read("s").events == [event]
    assert reader.read_all() == [event]


def test_events_that_are_missing_inside_the_range_are_reported_as_damage(store: EventStore, shell: sqlite3.Connection) -> None:
    with_events(store, 5)
    shell.execute("DROP TRIGGER event_guards_delete")
    shell.execute("DELETE FROM event WHERE seq = 3")
    with pytest.raises(StoreCorrupt):
        store.read("s")
    assert [event.seq for event in store.read("s", after_seq=3).events] == [4, 5]


def test_rows_of_a_read_do_not_begin_again_when_what_is_left_of_a_failed_one_goes(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both use one statement of the driver's, and a cursor that goes sets it back."""
    events = with_events(store, 60)
    looks = iter([0, 0, 0, 0, 1])  # the fifth time SQLite asks, it gives up amid the rows
    with store._db.read() as conn:
        connection: Any = conn.connection.dbapi_connection
    connection.set_progress_handler(lambda: next(looks), 100)
    failures: list[BaseException] = []
    try:
        store.read("s")
    except KeyboardInterrupt as error:
        failures.append(error)
    connection.set_progress_handler(None, 0)
    assert failures
    decode = payload.decode

    def decode_the_tenth_without_it(text: str) -> Any:
        if text == "10":
            failures.clear()
            gc.collect()
        return decode(text)

    monkeypatch.setattr(payload, "decode", decode_the_tenth_without_it)
    assert store.read("s", types=["t"]).events == events
    assert not failures


# What a page costs


@pytest.fixture(scope="module")
def large_store(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    """20,000 events in session `s`, after some of a session `before` and before some of `after`."""
    path = tmp_path_factory.mktemp("large") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process") as store:
        for session_id, count in (("before", 200), ("s", 20_000), ("after", 200)):
            store.create_session(session_id, max_events=UNLIMITED)
            fill(store, session_id, count)
        yield store


def test_a_page_costs_the_same_at_the_start_and_at_the_end_of_a_session(large_store: EventStore) -> None:
    at_the_start = vm_steps(large_store, lambda: large_store.read("s", after_seq=100))
    assert vm_steps(large_store, lambda: large_store.read("s", after_seq=19_800)) == at_the_start


def test_a_page_of_the_store_costs_the_same_at_its_start_and_at_its_end(large_store: EventStore) -> None:
    last = large_store.append("after", "t", None).position
    at_the_start = vm_steps(large_store, lambda: large_store.read_all(after_position=10))
    assert vm_steps(large_store, lambda: large_store.read_all(after_position=last - 150)) == at_the_start


def test_a_page_costs_the_same_in_a_session_of_200_and_of_20000_events(large_store: EventStore) -> None:
    small = vm_steps(large_store, lambda: large_store.read("before", after_seq=50))
    assert vm_steps(large_store, lambda: large_store.read("s", after_seq=50)) == small


def test_a_page_of_a_rare_type_costs_no_more_than_10000_looks(large_store: EventStore) -> None:
    whole = vm_steps(large_store, lambda: large_store.read("s", types=["rare"]))
    rest = vm_steps(large_store, lambda: large_store.read("s", types=["rare"], after_seq=10_000))
    assert whole == rest
    assert not large_store.read("s", types=["rare"]).events


@pytest.mark.parametrize("options", [{}, {"after_seq": 500}, {"types": ["t"]}, {"types": ["t", "u"], "after_seq": 5}])
def test_a_page_of_a_session_is_found_by_an_index(large_store: EventStore, options: dict[str, Any]) -> None:
    plans = query_plans(large_store, lambda: large_store.read("s", **options))
    assert any(line.startswith("SEARCH event USING INDEX") and "session=? AND seq>? AND seq<?" in line for line in plans)
    assert [line for line in plans if line.startswith("SCAN") or "TEMP B-TREE" in line] == []


@pytest.mark.parametrize("options", [{}, {"after_position": 500}, {"after_position": 0, "on_gap": "skip"}])
def test_a_page_of_the_store_is_found_by_its_key(large_store: EventStore, options: dict[str, Any]) -> None:
    plans = query_plans(large_store, lambda: large_store.read_all(**options))
    assert "SEARCH event USING INTEGER PRIMARY KEY (rowid>?)" in plans
    # `store` has one row and `sqlite_sequence` one for each table: to scan these is to look them up.
    small = ("SCAN store", "SCAN sqlite_sequence", "SCAN CONSTANT ROW")
    assert [line for line in plans if line.startswith("SCAN") and line not in small] == []
    assert [line for line in plans if "TEMP B-TREE" in line] == []
