"""`EventStore.copy`: what comes along, what is refused, and that an interrupted copy goes on. Here on SQLite alone."""

import os
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, InvalidInput, NewEvent, ReadOnlyStore, RetentionPolicy, StoreCorrupt, StoreUnavailable
from aegis_store.copying import events as copied_events
from aegis_store.copying import records
from tests.conftest import OpenStore
from tests.copies import all_of, last_position, live


@pytest.fixture
def source(path: Path) -> Path:
    live(path)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where no store is yet."""
    return tmp_path / "target.db"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BATCH_LINES", 7)


def test_all_that_a_store_holds_comes_along(source: Path, target: Path) -> None:
    report = EventStore.copy(source, target)
    assert all_of(target) == all_of(source)
    assert (report.sessions, report.tombstones, report.events_standing) == (7, 3, 0)
    assert report.events == len(all_of(source)["event"])
    with EventStore.open(target, prune_on_open=False) as store:
        assert store.verify().ok
    assert last_position(target) == last_position(source)


def test_an_empty_store_is_copied_too(path: Path, target: Path) -> None:
    assert EventStore.copy(path, target).events == 0
    assert last_position(target) == 0


def test_a_copy_of_the_same_again_finds_all_there(source: Path, target: Path) -> None:
    first = EventStore.copy(source, target)
    before = all_of(target)
    again = EventStore.copy(source, target)
    assert again.events_standing == first.events
    assert all_of(target) == before


def test_the_source_stays_as_it_is(source: Path, target: Path) -> None:
    before = all_of(source)
    EventStore.copy(source, target)
    assert all_of(source) == before


@pytest.mark.usefixtures("small_batches")
def test_a_copy_that_is_interrupted_after_any_batch_goes_on(source: Path, tmp_path: Path) -> None:
    whole = all_of(source)
    stops = 0
    while True:
        target = tmp_path / f"{stops}.db"
        told: list[int] = []

        def stop(done: int, total: int, told: list[int] = told, at: int = stops) -> None:
            told.append(done)
            if len(told) > at:
                raise KeyboardInterrupt

        try:
            EventStore.copy(source, target, on_progress=stop)
        except KeyboardInterrupt:
            EventStore.copy(source, target)
        else:
            break
        assert all_of(target) == whole
        stops += 3
    assert stops > 12


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("step", ["bring_graves", "bring_runs", "_tell_removed", "bring_events", "_set_counter", "compare"])
def test_a_copy_that_stops_before_any_step_goes_on(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from aegis_store.copying import run

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, step, stop)
        with pytest.raises(KeyboardInterrupt):
            EventStore.copy(source, target)
    EventStore.copy(source, target)
    assert all_of(target) == all_of(source)


def test_what_the_source_got_since_comes_with_the_next_copy(source: Path, target: Path) -> None:
    EventStore.copy(source, target)
    with EventStore.open(source, prune_on_open=False) as store:
        store.append_many("a", [NewEvent(type="t", payload=n) for n in range(5)])
        store.set_status("b", "closed")
        store.update_session("held", metadata={"new": 1}, hold=False)
        store.create_session("new")
        store.append("new", "t", 1)
        store.set_retention_policy(RetentionPolicy(max_events=9))
        store.prune()
    EventStore.copy(source, target)
    assert all_of(target) == all_of(source)


def test_a_reader_goes_on_in_the_copy_with_its_cursor(open_store: OpenStore, path: Path, target: Path) -> None:
    store = open_store()
    store.create_session("s", max_events=2)
    positions = [store.append("s", "t", n).position for n in range(5)]
    EventStore.copy(path, target)
    with EventStore.open(target) as copied:
        assert [event.position for event in copied.read_all(after_position=positions[3])] == positions[4:]


# What is refused


def test_a_copy_to_the_store_itself_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(source)
    for target in (source, tmp_path / "link.db", f"sqlite:///{source}"):
        with pytest.raises(InvalidInput, match="the same store"):
            EventStore.copy(source, target)


@pytest.mark.parametrize("held", ["another session", "another tenant", "more events", "a tombstone", "later events"])
def test_a_target_that_is_no_part_of_the_source_is_refused_and_left_as_it_is(source: Path, target: Path, held: str) -> None:
    EventStore.copy(source, target)
    with EventStore.open(target, prune_on_open=False) as store:
        if held == "another session":
            store.create_session("mine")
        elif held == "another tenant":
            store.delete_session("b")
        elif held == "more events":
            store.append("b", "t", 1)
        elif held == "a tombstone":
            store.create_session("mine")
            store.delete_session("mine")
        else:
            store.update_session("unlimited", max_events=3)
    before = all_of(target)
    with pytest.raises(InvalidInput, match="no copy of the source that was begun"):
        EventStore.copy(source, target)
    assert all_of(target) == before


def test_a_source_that_removed_what_was_not_copied_yet_is_told(source: Path, target: Path) -> None:
    EventStore.copy(source, target)
    with EventStore.open(source, prune_on_open=False) as store:
        store.append_many("a", [NewEvent(type="t", payload=n) for n in range(50)])
    with pytest.raises(InvalidInput, match="the source has meanwhile removed events of session 'a'"):
        EventStore.copy(source, target)


def test_a_source_that_is_not_there_makes_no_target(tmp_path: Path, target: Path) -> None:
    with pytest.raises(StoreUnavailable):
        EventStore.copy(tmp_path / "missing.db", target)
    assert not target.exists()


@pytest.mark.usefixtures("small_batches")
def test_a_writer_in_the_target_meanwhile_is_noticed(source: Path, target: Path) -> None:
    def write(done: int, total: int) -> None:
        with EventStore.open(target, prune_on_open=False) as store:
            store.append("b", "t", done)

    with pytest.raises(StoreUnavailable, match="somebody else writes to it"):
        EventStore.copy(source, target, on_progress=write)


def test_a_damaged_event_of_the_source_stops_the_copy(source: Path, target: Path, shell: Any) -> None:
    shell.execute("DROP TRIGGER event_guards_update")
    shell.execute("UPDATE event SET payload = '[]' WHERE seq = 40")
    with pytest.raises(StoreCorrupt):
        EventStore.copy(source, target)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE session SET metadata = '{}' WHERE session_id = 'held'",
        "UPDATE session SET status = 'idle' WHERE session_id = 'held'",
        "UPDATE session SET first_seq = first_seq + 1 WHERE session_id = 'a'",
        "INSERT INTO tombstone (session_id, tenant, owner, last_seq, total_bytes) VALUES ('x', 't', 'o', 1, 1)",
        "UPDATE store SET max_events = 77",
    ],
)
def test_what_is_another_in_the_end_is_found(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    from aegis_store import driver
    from aegis_store.copying import run

    def meddle(*given: Any) -> Any:
        with_shell = driver.dbapi.connect(str(target), isolation_level=None)
        with_shell.execute(change)
        with_shell.close()

    monkeypatch.setattr(run, "_set_counter", meddle)
    with pytest.raises(StoreUnavailable, match="it is not as the copy has left it"):
        EventStore.copy(source, target)


def test_progress_goes_up_to_all_written_and_compared(source: Path, target: Path) -> None:
    told: list[tuple[int, int]] = []
    report = EventStore.copy(source, target, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (2 * report.events, 2 * report.events)
    assert told == sorted(told)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_that_may_not_be_written_is_told(source: Path, target: Path) -> None:
    EventStore.copy(source, target)
    target.chmod(0o400)
    with pytest.raises(ReadOnlyStore):
        EventStore.copy(source, target)


def test_the_counter_moves_between_gaps_alone(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a store without gaps costs one statement an event."""
    moved: list[int] = []
    move = copied_events.move_counter

    def noted(conn: Any, position: int) -> None:
        moved.append(position)
        move(conn, position)

    monkeypatch.setattr(copied_events, "move_counter", noted)
    EventStore.copy(source, target)
    assert len(moved) < len(all_of(source)["event"]) / 2
