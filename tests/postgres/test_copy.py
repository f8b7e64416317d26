"""`EventStore.copy` to PostgreSQL and back, and what PostgreSQL adds: gaps in the positions, writers that do not take turns."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, EventsTruncated, InvalidInput, NewEvent, StoreUnavailable
from aegis_store.copying import records
from tests.copies import all_of, last_position, live
from tests.postgres.server import Postgres, connect


@pytest.fixture
def other_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a database without a store."""
    with postgres.database() as url:
        yield url


def test_a_store_comes_back_from_postgresql_as_it_was(path: Path, postgres_url: str, tmp_path: Path) -> None:
    live(path)
    for source, target in ((path, postgres_url), (postgres_url, tmp_path / "back.db")):
        report = EventStore.copy(source, target)
        assert (report.sessions, report.tombstones, report.events_standing) == (7, 3, 0)
    assert all_of(tmp_path / "back.db") == all_of(postgres_url) == all_of(path)
    for place in (postgres_url, tmp_path / "back.db"):
        with EventStore.open(place, prune_on_open=False) as store:
            assert store.verify().ok
    assert last_position(tmp_path / "back.db") == last_position(postgres_url) == last_position(path)


def test_a_store_that_has_lived_on_postgresql_is_copied_to_another(postgres_url: str, other_url: str) -> None:
    live(postgres_url)
    EventStore.copy(postgres_url, other_url)
    ours, theirs = all_of(postgres_url), all_of(other_url)
    del ours["store"], theirs["store"]  # which says of another what each session says there
    assert theirs == ours
    assert last_position(other_url) == last_position(postgres_url)


def test_a_copy_of_the_same_again_and_of_what_came_since(path: Path, postgres_url: str) -> None:
    live(path)
    first = EventStore.copy(path, postgres_url)
    assert EventStore.copy(path, postgres_url).events_standing == first.events
    with EventStore.open(path, prune_on_open=False) as store:
        store.append_many("a", [NewEvent(type="t", payload=n) for n in range(5)])
        store.update_session("held", metadata={"new": 1}, hold=False)
    EventStore.copy(path, postgres_url)
    assert all_of(postgres_url) == all_of(path)


@pytest.mark.parametrize("stop", [0, 3, 7, 13, 16])
def test_a_copy_that_is_interrupted_goes_on(path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    monkeypatch.setattr(records, "BATCH_LINES", 7)
    live(path)
    told: list[int] = []

    def interrupt(done: int, total: int) -> None:
        told.append(done)
        if len(told) > stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EventStore.copy(path, postgres_url, on_progress=interrupt)
    EventStore.copy(path, postgres_url)
    assert all_of(postgres_url) == all_of(path)


def test_a_batch_that_was_rolled_back_leaves_no_gap(path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL does not take the counter back: the copy does, while no one else can write."""
    from aegis_store.copying import events

    live(path)
    insert = events._insert_many

    def half(conn: Any, target: Any, batch: list[dict[str, Any]], reached: events.Reached) -> None:
        insert(conn, target, batch[:40], reached)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(events, "_insert_many", half)
        with pytest.raises(KeyboardInterrupt):
            EventStore.copy(path, postgres_url)
    EventStore.copy(path, postgres_url)
    assert all_of(postgres_url) == all_of(path)


def test_who_gets_in_between_two_transactions_of_a_batch_is_found_out(
    path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from aegis_store.copying import events

    append = """
        INSERT INTO event (session, seq, bytes_before, type, occurred_at, recorded_at, payload)
        SELECT id, last_seq + 1, total_bytes, 'mine', 1, 1, '{}' FROM session WHERE session_id = 'b'"""
    woven_in(path, ["a", "a", "b", "c", "b", "a"])
    commit, *begin = events._NEXT_TRANSACTION
    monkeypatch.setattr(events, "_NEXT_TRANSACTION", (commit, append, commit, *begin))
    with pytest.raises(StoreUnavailable, match="it is not as the copy has left it"):
        EventStore.copy(path, postgres_url)
    with EventStore.open(postgres_url, prune_on_open=False) as store:
        assert [(event.session_id, event.position) for event in store.read_all()] == [("a", 1), ("a", 2), ("b", 3)]
        assert store.verify().ok
    assert not caplog.records


def woven_in(target: str | Path, order: list[str]) -> None:
    """A store with an event of these sessions each, in this order."""
    with EventStore.open(target, durability="process", prune_on_open=False) as store:
        for session_id in sorted(set(order)):
            store.create_session(session_id)
        for number, session_id in enumerate(order):
            store.append(session_id, "t", number)


def gapped(store: EventStore) -> list[int]:
    """Events with a gap in their positions, as a retry with a known `event_id` leaves it on PostgreSQL."""
    store.create_session("s")
    positions = []
    for number in range(4):
        positions.append(store.append("s", "t", number, event_id=f"e{number}").position)
        store.append("s", "t", number, event_id=f"e{number}")
    return positions


def test_positions_that_postgresql_left_out_are_no_damage_on_sqlite(postgres_url: str, tmp_path: Path) -> None:
    with EventStore.open(postgres_url) as store:
        positions = gapped(store)
    assert positions[-1] > 4
    EventStore.copy(postgres_url, tmp_path / "to.db")
    with EventStore.open(tmp_path / "to.db") as copied:
        assert copied.verify().ok
        assert [event.position for event in copied.read_all()] == positions
        assert copied.read_all(after_position=positions[-1]) == []
        with pytest.raises(EventsTruncated, match="before_copy"):
            copied.read_all(after_position=positions[0])
        copied.append("s", "t", 5)
        assert len(copied.read_all(after_position=positions[-1])) == 1
        assert copied.verify().ok


def test_a_reader_of_the_copy_on_postgresql_is_told_what_was_removed(path: Path, postgres_url: str) -> None:
    live(path)
    EventStore.copy(path, postgres_url)
    with EventStore.open(postgres_url, prune_on_open=False) as copied, pytest.raises(EventsTruncated, match="deleted"):
        copied.read_all(after_position=3)


def test_a_transaction_that_has_not_ended_is_left_for_the_next_copy(postgres_url: str, tmp_path: Path) -> None:
    with EventStore.open(postgres_url) as store:
        store.create_session("early")
        store.create_session("late")
        store.append("early", "t", 1)
        with connect(postgres_url) as shell:
            shell.autocommit = False
            shell.execute(
                "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload) "
                "SELECT id, 1, 't', 1, 1, 0, '{}' FROM session WHERE session_id = 'late'"
            )
            store.append("early", "t", 2)
            assert EventStore.copy(postgres_url, tmp_path / "to.db").events == 1
            shell.commit()
        assert EventStore.copy(postgres_url, tmp_path / "to.db").events == 3
    assert all_of(tmp_path / "to.db")["event"] == all_of(postgres_url)["event"]


def test_a_copy_to_the_store_itself_is_refused(postgres_url: str) -> None:
    with pytest.raises(InvalidInput, match="the same store"):
        EventStore.copy(postgres_url, postgres_url)


def test_a_writer_of_the_target_waits_for_the_batch_and_gets_no_position_of_it(path: Path, postgres_url: str) -> None:
    with EventStore.open(path) as store:
        store.create_session("s")
        store.append_many("s", [NewEvent(type="t", payload=n) for n in range(3)])
    written: list[int] = []

    def write() -> None:
        with EventStore.open(postgres_url, prune_on_open=False) as other:
            other.create_session("mine")
            written.append(other.append("mine", "t", 1).position)

    thread = threading.Thread(target=write)

    def begin(done: int, total: int) -> None:
        if not thread.ident:
            thread.start()
            thread.join()

    with pytest.raises(StoreUnavailable, match="it is not as the copy has left it"):
        EventStore.copy(path, postgres_url, on_progress=begin)
    assert written == [4]


@pytest.mark.parametrize("removed", [False, True])
def test_the_counter_never_goes_below_what_somebody_else_was_given(
    path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    from aegis_store.copying import run

    with EventStore.open(path) as store:
        store.create_session("s")
        store.append_many("s", [NewEvent(type="t", payload=n) for n in range(3)])
    set_counter = run._set_counter

    def write_before(*given: object) -> None:
        with EventStore.open(postgres_url, prune_on_open=False) as other:
            other.create_session("mine")
            assert other.append("mine", "t", 1).position == 4
            if removed:
                other.delete_session("mine")
        set_counter(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "_set_counter", write_before)
    with pytest.raises(StoreUnavailable, match="somebody else writes to it"):
        EventStore.copy(path, postgres_url)
    assert last_position(postgres_url) == 4
