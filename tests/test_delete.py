"""Deleting and forgetting sessions: gone for everybody at once, never silently, and no number is used again."""

import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from aegis_store import (
    UNLIMITED,
    EventStore,
    EventsTruncated,
    InvalidSession,
    NewEvent,
    ReadOnlyStore,
    RetentionPolicy,
    SequenceConflict,
    SessionExists,
    SessionNotFound,
    driver,
)
from aegis_store.retention import delete, limits, prune, truncate

OpenStore = Callable[..., EventStore]
Refused: type[Exception] = driver.dbapi.IntegrityError

HOUR = timedelta(hours=1)
FAR = timedelta(days=3650)
SLICE = 5
"""Events of a slice in these tests, which need no more."""
COUNT = 2 * SLICE + 2
"""Events of a session that goes in three slices."""

Stage = Literal["marked", "half gone", "gone"]
STAGES: tuple[Stage, ...] = ("marked", "gone")
PENDING: tuple[Stage, ...] = ("marked", "half gone")


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (truncate, limits):
        monkeypatch.setattr(module, "PRUNE_SLICE_EVENTS", SLICE)


class Interrupted(BaseException):
    """What stops a deletion half way: Ctrl-C, say."""


def interrupt(*_: Any, **__: Any) -> None:
    raise Interrupted


def add(store: EventStore, session_id: str, count: int, **options: Any) -> int:
    """A session of so many events; the position of the last one."""
    store.create_session(session_id, max_events=UNLIMITED, **options)
    new = [NewEvent(type="t", payload=number, event_id=f"{session_id}{number}") for number in range(1, count + 1)]
    return store.append_many(session_id, new)[-1].position if count else 0


Delete = Callable[[str, Stage], None]


@pytest.fixture
def delete_to(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> Delete:
    """Deletes a session, up to a stage: just marked, its first slice gone, or all of it gone."""

    def delete_up_to(session_id: str, stage: Stage) -> None:
        if stage == "gone":
            store.delete_session(session_id)
            return
        with monkeypatch.context() as patch:
            if stage == "marked":
                patch.setattr(delete, "carry_out", interrupt)
            else:
                patch.setattr(prune, "let_writers_through", interrupt)
            with pytest.raises(Interrupted):
                store.delete_session(session_id)

    return delete_up_to


def left_of(shell: sqlite3.Connection) -> int:
    """Events in the store of sessions that have no name any more."""
    count: int = shell.execute(
        "SELECT count(*) FROM event JOIN session ON session.id = event.session WHERE session_id IS NULL"
    ).fetchone()[0]
    return count


def nameless(shell: sqlite3.Connection) -> int:
    count: int = shell.execute("SELECT count(*) FROM session WHERE session_id IS NULL").fetchone()[0]
    return count


def tombstones(shell: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return shell.execute("SELECT session_id, tenant, owner, last_seq, total_bytes, removed_reason FROM tombstone").fetchall()


def bytes_of(count: int) -> int:
    """What the payloads 1 to `count` take as JSON."""
    return sum(len(str(number)) for number in range(1, count + 1))


def seqs(store: EventStore, session_id: str) -> list[int]:
    return [event.seq for event in store.read(session_id, limit=1000).events]


# Gone for everybody, at once

CALLS: dict[str, Callable[[EventStore], object]] = {
    "get_session": lambda store: store.get_session("s"),
    "read": lambda store: store.read("s"),
    "read, skipping": lambda store: store.read("s", after_seq=0, on_gap="skip"),
    "append": lambda store: store.append("s", "t", 1),
    "append of a known event_id": lambda store: store.append("s", "t", 1, event_id="s1"),
    "append at the expected seq": lambda store: store.append("s", "t", 1, expected_seq=COUNT),
    "append_many": lambda store: store.append_many("s", [NewEvent(type="t", payload=1)]),
    "append_many of nothing": lambda store: store.append_many("s", []),
    "set_status": lambda store: store.set_status("s", "closed"),
    "update_session": lambda store: store.update_session("s", metadata={"a": 1}),
    "update_session of the cap": lambda store: store.update_session("s", max_events=1),
    "hold": lambda store: store.update_session("s", hold=True),
    "delete_session": lambda store: store.delete_session("s"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize("stage", STAGES)
def test_a_deleted_session_is_not_found(
    store: EventStore, delete_to: Delete, stage: Stage, call: Callable[[EventStore], object]
) -> None:
    add(store, "s", COUNT)
    delete_to("s", stage)
    with pytest.raises(SessionNotFound) as caught:
        call(store)
    assert caught.value.session_id == "s"


@pytest.mark.parametrize("call", [CALLS["get_session"], CALLS["read"], CALLS["append"]])
@pytest.mark.parametrize("stage", STAGES)
def test_a_session_deleted_through_one_open_store_is_not_found_through_another(
    open_store: OpenStore, store: EventStore, delete_to: Delete, stage: Stage, call: Callable[[EventStore], object]
) -> None:
    other = open_store()
    add(store, "s", COUNT)
    assert other.get_session("s").last_seq == COUNT
    delete_to("s", stage)
    with pytest.raises(SessionNotFound):
        call(other)


@pytest.mark.parametrize("statuses", [None, ["running"], ["running", "closed"]])
@pytest.mark.parametrize("stage", STAGES)
def test_a_deleted_session_is_in_no_list(
    store: EventStore, delete_to: Delete, stage: Stage, statuses: list[str] | None
) -> None:
    for session_id in ("s", "other"):
        add(store, session_id, COUNT)
    delete_to("s", stage)
    assert [session.session_id for session in store.list_sessions(statuses=statuses).sessions] == ["other"]


def test_a_list_goes_on_after_a_session_that_was_deleted_in_between(store: EventStore) -> None:
    for session_id in "abcd":
        add(store, session_id, 1)
    page = store.list_sessions(limit=2)
    store.delete_session(page.sessions[-1].session_id)
    assert [session.session_id for session in store.list_sessions(limit=2, cursor=page.cursor).sessions] == ["b", "a"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_figures_of_the_store_count_a_deleted_session_as_removed(
    store: EventStore, delete_to: Delete, stage: Stage
) -> None:
    for session_id in ("s", "other"):
        add(store, session_id, COUNT)
    delete_to("s", stage)
    stats = store.stats()
    assert dict(stats.sessions) == {"running": 1}
    assert (stats.events, stats.retained_bytes) == (COUNT, bytes_of(COUNT))
    assert (stats.removed_events, stats.removed_bytes) == (COUNT, bytes_of(COUNT))


@pytest.mark.parametrize("stage", STAGES)
def test_the_figures_of_the_store_stay_the_same_when_the_session_is_created_again(
    store: EventStore, delete_to: Delete, stage: Stage
) -> None:
    add(store, "s", COUNT)
    delete_to("s", stage)
    store.create_session("s")
    stats = store.stats()
    assert (stats.events, stats.retained_bytes) == (0, 0)
    assert (stats.removed_events, stats.removed_bytes) == (COUNT, bytes_of(COUNT))


@pytest.mark.parametrize("stage", STAGES)
def test_no_event_of_a_deleted_session_comes_to_a_reader_of_the_store(
    store: EventStore, delete_to: Delete, stage: Stage
) -> None:
    add(store, "s", COUNT)
    add(store, "other", 3)
    delete_to("s", stage)
    assert {event.session_id for event in store.read_all(limit=1000)} == {"other"}
    assert {event.session_id for event in store.read_all(after_position=0, limit=1000, on_gap="skip")} == {"other"}


def test_nothing_is_left_of_a_deleted_session_but_its_tombstone(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", COUNT, tenant="acme", owner="ci", metadata={"secret": "metadata"})
    store.delete_session("s")
    assert shell.execute("SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM session)").fetchone() == (0, 0)
    assert tombstones(shell) == [("s", "acme", "ci", COUNT, bytes_of(COUNT), "deleted")]


def test_a_tombstone_tells_when_the_session_was_deleted(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    before = datetime.now(UTC)
    store.delete_session("s")
    store.create_session("s")
    assert before <= (store.get_session("s").removed_at or before - HOUR) <= datetime.now(UTC)


def test_deleting_a_session_touches_no_other(store: EventStore) -> None:
    for session_id in ("before", "s", "after"):
        add(store, session_id, 5)
    before = [store.get_session(session_id) for session_id in ("before", "after")]
    store.delete_session("s")
    assert [store.get_session(session_id) for session_id in ("before", "after")] == before
    assert seqs(store, "before") == seqs(store, "after") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("status", ["running", "closed"])
def test_a_session_can_be_deleted_whether_it_ended_or_not(store: EventStore, status: str) -> None:
    add(store, "s", 3, status=status)
    store.delete_session("s")
    with pytest.raises(SessionNotFound):
        store.get_session("s")


def test_a_session_without_events_can_be_deleted(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    store.delete_session("s")
    assert (nameless(shell), tombstones(shell)) == (0, [("s", "default", "default", 0, 0, "deleted")])


def test_a_session_whose_events_were_pruned_can_be_deleted(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3, status="closed")
    store.prune()
    store.delete_session("s")
    assert (nameless(shell), tombstones(shell)) == (0, [("s", "default", "default", 3, 3, "deleted")])


@pytest.mark.parametrize("session_id", ["unknown", "", None, 7, "a\0b"])
def test_a_session_that_is_not_there_cannot_be_deleted(store: EventStore, session_id: Any) -> None:
    add(store, "s", 3)
    with pytest.raises(SessionNotFound):
        store.delete_session(session_id)
    assert seqs(store, "s") == [1, 2, 3]


def test_deleting_a_deleted_session_again_changes_nothing(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    before = tombstones(shell)
    with pytest.raises(SessionNotFound):
        store.delete_session("s")
    assert tombstones(shell) == before


def test_a_read_only_store_deletes_nothing(store: EventStore, open_store: OpenStore) -> None:
    add(store, "s", 3)
    with pytest.raises(ReadOnlyStore):
        open_store(read_only=True).delete_session("s")
    assert seqs(store, "s") == [1, 2, 3]


# In slices


def test_the_events_go_in_slices(store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, "s", COUNT)
    left = []
    monkeypatch.setattr(prune, "let_writers_through", lambda _: left.append(left_of(shell)))
    store.delete_session("s")
    assert left == [COUNT - SLICE, COUNT - 2 * SLICE, 0]


def test_the_name_goes_before_the_first_event_does(
    store: EventStore, open_store: OpenStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "s", COUNT)
    other = open_store()
    seen: list[int] = []

    def look(conn: Any, row: Any, *more: Any) -> Any:
        with pytest.raises(SessionNotFound):
            other.get_session("s")
        seen.append(left_of(shell))
        return truncate.truncate_slice(conn, row, *more)

    monkeypatch.setattr(prune, "truncate_slice", look)
    store.delete_session("s")
    assert seen[0] == COUNT


def test_writers_get_in_between_two_slices_of_a_deletion(
    store: EventStore, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_store(busy_timeout_ms=0)
    add(store, "s", COUNT)
    store.create_session("other")
    monkeypatch.setattr(prune, "let_writers_through", lambda _: other.append("other", "t", 1))
    store.delete_session("s")
    assert seqs(store, "other") == [1, 2, 3]


def test_a_deletion_is_a_run_in_the_history(store: EventStore) -> None:
    add(store, "s", COUNT)
    store.delete_session("s")
    run = store.prune_history(limit=1)[0]
    assert (run.trigger, run.outcome, run.sessions_forgotten) == ("api", "done", 1)
    assert (run.events, run.bytes, run.sessions, dict(run.by_reason)) == (COUNT, bytes_of(COUNT), 1, {"deleted": COUNT})


# Readers of the store are told


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("behind", [1, COUNT])
def test_a_reader_of_the_store_that_missed_events_of_a_deleted_session_is_told(
    store: EventStore, delete_to: Delete, stage: Stage, behind: int
) -> None:
    last = add(store, "s", COUNT)
    delete_to("s", stage)
    with pytest.raises(EventsTruncated) as caught:
        store.read_all(after_position=last - behind)
    assert (caught.value.session_id, caught.value.reason, caught.value.first_seq) == (None, "deleted", last + 1)


@pytest.mark.parametrize("stage", STAGES)
def test_a_reader_of_the_store_that_has_seen_all_of_a_deleted_session_goes_on(
    store: EventStore, delete_to: Delete, stage: Stage
) -> None:
    last = add(store, "s", COUNT)
    add(store, "other", 2)
    delete_to("s", stage)
    assert [event.seq for event in store.read_all(after_position=last)] == [1, 2]


@pytest.mark.parametrize("stage", STAGES)
def test_the_range_that_a_reader_is_told_of_can_be_read(store: EventStore, delete_to: Delete, stage: Stage) -> None:
    add(store, "s", COUNT)
    add(store, "other", 2)
    delete_to("s", stage)
    with pytest.raises(EventsTruncated) as caught:
        store.read_all(after_position=0)
    assert [event.session_id for event in store.read_all(after_position=caught.value.first_seq - 1)] == ["other", "other"]


def test_a_reader_is_told_when_events_of_others_lie_between_those_that_went(store: EventStore) -> None:
    for session_id in ("s", "other"):
        store.create_session(session_id)
    positions = [store.append(session_id, "t", 1).position for session_id in ("s", "other", "s", "other")]
    store.delete_session("s")
    with pytest.raises(EventsTruncated):
        store.read_all(after_position=positions[1])
    assert len(store.read_all(after_position=positions[2])) == 1


def test_the_mark_of_what_was_removed_stays_when_older_events_are_deleted(store: EventStore) -> None:
    add(store, "older", 3)
    last = add(store, "newer", 3)
    store.delete_session("newer")
    store.delete_session("older")
    with pytest.raises(EventsTruncated) as caught:
        store.read_all(after_position=0)
    assert caught.value.first_seq == last + 1


def test_no_reader_of_the_store_misses_a_session_without_events(store: EventStore) -> None:
    add(store, "other", 2)
    store.create_session("s")
    store.delete_session("s")
    assert len(store.read_all(after_position=0)) == 2


# Created again


@pytest.fixture(params=["create_session", "ensure_session"])
def make(request: pytest.FixtureRequest) -> str:
    """Both ways to create a session."""
    return str(request.param)


@pytest.mark.parametrize("stage", ["marked", "half gone", "gone"])
def test_a_session_created_again_continues_the_count(store: EventStore, delete_to: Delete, stage: Stage, make: str) -> None:
    add(store, "s", COUNT)
    delete_to("s", stage)
    again = getattr(store, make)("s")
    assert (again.first_seq, again.last_seq, again.event_count) == (COUNT + 1, COUNT, 0)
    assert store.append("s", "t", "new").seq == COUNT + 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_session_created_again_tells_what_was_removed(store: EventStore, delete_to: Delete, stage: Stage, make: str) -> None:
    add(store, "s", COUNT)
    delete_to("s", stage)
    again = getattr(store, make)("s")
    assert (again.removed_events, again.removed_bytes, again.removed_reason) == (COUNT, bytes_of(COUNT), "deleted")
    assert again.retained_bytes == 0


def test_a_session_created_again_is_new_in_all_else(store: EventStore, make: str) -> None:
    add(store, "s", 3, status="failed", metadata={"old": True})
    before = store.get_session("s")
    store.delete_session("s")
    again = getattr(store, make)("s", metadata={"new": True})
    assert (again.metadata, again.status, again.max_events, again.hold) == ({"new": True}, "running", None, False)
    assert (again.ended_at, again.last_event_at) == (None, None)
    assert again.created_at > before.created_at


def test_ensure_returns_the_session_that_was_created_again(store: EventStore) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    assert store.create_session("s") == store.ensure_session("s")


def test_a_session_created_again_has_no_tombstone(store: EventStore, shell: sqlite3.Connection, make: str) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    getattr(store, make)("s")
    assert tombstones(shell) == []


def test_a_session_can_be_created_again_as_one_that_ended(store: EventStore, make: str) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    assert getattr(store, make)("s", status="closed").last_seq == 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_reader_of_the_session_is_told_that_it_was_deleted_in_between(
    store: EventStore, delete_to: Delete, stage: Stage
) -> None:
    add(store, "s", COUNT)
    delete_to("s", stage)
    store.create_session("s")
    store.append("s", "t", "new")
    with pytest.raises(EventsTruncated) as caught:
        store.read("s", after_seq=COUNT - 1)
    assert (caught.value.first_seq, caught.value.last_seq, caught.value.reason) == (COUNT + 1, COUNT + 1, "deleted")


@pytest.mark.parametrize("stage", STAGES)
def test_a_reader_that_had_seen_all_of_the_session_goes_on_with_the_new_one(
    store: EventStore, delete_to: Delete, stage: Stage
) -> None:
    add(store, "s", COUNT)
    delete_to("s", stage)
    store.create_session("s")
    store.append("s", "t", "new")
    assert [event.payload for event in store.read("s", after_seq=COUNT).events] == ["new"]


def test_a_session_created_again_before_the_old_events_went_holds_its_own_alone(store: EventStore, delete_to: Delete) -> None:
    add(store, "s", COUNT)
    delete_to("s", "half gone")
    store.create_session("s")
    store.append("s", "t", "new")
    assert [event.payload for event in store.read("s").events] == ["new"]
    assert [event.payload for event in store.read_all()] == ["new"]


def test_the_old_events_go_and_those_of_the_session_created_again_stay(
    store: EventStore, delete_to: Delete, shell: sqlite3.Connection
) -> None:
    add(store, "s", COUNT)
    delete_to("s", "half gone")
    store.create_session("s")
    store.append("s", "t", "new")
    store.prune()
    assert (left_of(shell), nameless(shell)) == (0, 0)
    assert seqs(store, "s") == [COUNT + 1]


def test_a_session_created_again_while_its_old_events_are_going_is_left_alone(
    store: EventStore, open_store: OpenStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "s", COUNT)
    other = open_store()

    def create_and_append(_: float) -> None:
        other.ensure_session("s")
        other.append("s", "t", "new")

    monkeypatch.setattr(prune, "let_writers_through", create_and_append)
    store.delete_session("s")
    assert seqs(store, "s") == [COUNT + 1, COUNT + 2, COUNT + 3]
    assert left_of(shell) == 0


def test_a_position_is_not_used_again_after_all_events_were_deleted(store: EventStore) -> None:
    last = add(store, "s", 3)
    store.delete_session("s")
    store.create_session("s")
    assert store.append("s", "t", 1).position > last


def test_a_session_deleted_twice_still_continues_the_count(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    for last_seq in (3, 4, 5):
        store.delete_session("s")
        assert [row[3] for row in tombstones(shell)] == [last_seq]
        store.create_session("s")
        assert store.append("s", "t", 1).seq == last_seq + 1


def test_a_session_deleted_again_while_its_old_events_stand_is_finished_with_them(
    store: EventStore, delete_to: Delete, shell: sqlite3.Connection
) -> None:
    add(store, "s", COUNT)
    delete_to("s", "marked")
    add(store, "s", COUNT)
    delete_to("s", "half gone")
    assert left_of(shell) == 2 * COUNT - SLICE
    store.prune()
    assert (left_of(shell), nameless(shell)) == (0, 0)
    assert [row[3] for row in tombstones(shell)] == [2 * COUNT]


def test_the_expected_seq_of_a_session_created_again_is_the_continued_one(store: EventStore, make: str) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    getattr(store, make)("s")
    with pytest.raises(SequenceConflict) as caught:
        store.append("s", "t", 1, expected_seq=0)
    assert caught.value.actual == 3
    assert store.append("s", "t", 1, expected_seq=3).seq == 4


@pytest.mark.parametrize("stage", STAGES)
def test_an_event_id_is_forgotten_with_the_events_of_its_session(store: EventStore, delete_to: Delete, stage: Stage) -> None:
    add(store, "s", COUNT)
    delete_to("s", stage)
    store.create_session("s")
    assert store.append("s", "t", "other content", event_id="s1").seq == COUNT + 1


def test_a_cap_given_when_a_session_is_created_again_holds(store: EventStore) -> None:
    add(store, "s", 5)
    store.delete_session("s")
    store.create_session("s", max_events=2)
    for _ in range(3):
        store.append("s", "t", 1)
    assert seqs(store, "s") == [7, 8]


@pytest.mark.parametrize("other", [{"tenant": "evil"}, {"owner": "evil"}])
@pytest.mark.parametrize("stage", STAGES)
def test_the_id_of_a_deleted_session_stays_taken_for_others(
    store: EventStore, delete_to: Delete, stage: Stage, make: str, other: dict[str, str]
) -> None:
    add(store, "s", COUNT, tenant="acme", owner="ci")
    delete_to("s", stage)
    with pytest.raises(SessionExists) as caught:
        getattr(store, make)("s", **{"tenant": "acme", "owner": "ci", **other})
    assert caught.value.session_id == "s"
    assert "acme" not in str(caught.value)


def test_its_tenant_and_owner_may_create_a_session_again_after_others_were_refused(store: EventStore, make: str) -> None:
    add(store, "s", 3, tenant="acme", owner="ci")
    store.delete_session("s")
    with pytest.raises(SessionExists):
        getattr(store, make)("s", tenant="evil")
    assert getattr(store, make)("s", tenant="acme", owner="ci").last_seq == 3


def test_a_refused_creation_says_the_same_of_a_deleted_session_as_of_a_standing_one(store: EventStore, make: str) -> None:
    add(store, "s", 3)
    with pytest.raises(SessionExists) as standing:
        getattr(store, make)("s", tenant="evil")
    store.delete_session("s")
    with pytest.raises(SessionExists) as deleted:
        getattr(store, make)("s", tenant="evil")
    assert str(standing.value) == str(deleted.value)


# On hold


def test_a_session_on_hold_is_not_deleted(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    before = store.update_session("s", hold=True)
    with pytest.raises(InvalidSession, match="on hold"):
        store.delete_session("s")
    assert store.get_session("s") == before
    assert (seqs(store, "s"), tombstones(shell)) == ([1, 2, 3], [])


def test_a_session_released_from_its_hold_can_be_deleted(store: EventStore) -> None:
    add(store, "s", 3)
    store.update_session("s", hold=True)
    store.update_session("s", hold=False)
    store.delete_session("s")
    with pytest.raises(SessionNotFound):
        store.get_session("s")


# Interrupted

POLICIES = {
    "the default": RetentionPolicy(),
    "no cap": RetentionPolicy(max_events=UNLIMITED),
    "a long grace": RetentionPolicy(terminal_grace=FAR, forget_sessions_after=FAR),
    "a high budget": RetentionPolicy(max_total_bytes=10**9, max_bytes=10**9, max_age=FAR),
    "mode warn": RetentionPolicy(mode="warn", terminal_grace=FAR),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
@pytest.mark.parametrize("stage", PENDING)
def test_an_interrupted_deletion_is_finished_by_the_next_prune(
    store: EventStore, delete_to: Delete, shell: sqlite3.Connection, stage: Stage, policy: RetentionPolicy
) -> None:
    store.set_retention_policy(policy)
    add(store, "s", COUNT)
    delete_to("s", stage)
    report = store.prune()
    assert (left_of(shell), nameless(shell)) == (0, 0)
    assert report.events_removed == COUNT - (SLICE if stage == "half gone" else 0)
    assert (report.sessions_forgotten, dict(report.events_by_reason)) == (1, {"deleted": report.events_removed})


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(
            policy,
            id=name,
        )
        for name, policy in POLICIES.items()
    ],
)
@pytest.mark.parametrize("stage", PENDING)
def test_an_interrupted_deletion_is_finished_when_the_store_is_next_opened(
    open_store: OpenStore,
    store: EventStore,
    delete_to: Delete,
    shell: sqlite3.Connection,
    stage: Stage,
    policy: RetentionPolicy,
) -> None:
    store.set_retention_policy(policy)
    add(store, "s", COUNT)
    delete_to("s", stage)
    open_store()
    assert (left_of(shell), nameless(shell)) == (0, 0)


def test_a_session_that_was_marked_as_deleted_is_named_by_nobody(store: EventStore, delete_to: Delete) -> None:
    add(store, "s", COUNT)
    delete_to("s", "marked")
    (truncation,) = store.plan_prune().truncations
    assert (truncation.session_id, truncation.reason, truncation.forgets) == (None, "deleted", True)
    assert (truncation.events, truncation.bytes) == (COUNT, bytes_of(COUNT))
    assert "(a deleted session)" in str(store.plan_prune())


def test_a_deletion_that_was_interrupted_before_its_last_word_is_finished(
    store: EventStore, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "s", 3)
    with monkeypatch.context() as patch:
        patch.setattr(prune, "forget", interrupt)
        with pytest.raises(Interrupted):
            store.delete_session("s")
    assert (left_of(shell), nameless(shell)) == (0, 1)
    store.prune()
    assert nameless(shell) == 0


def test_the_history_says_what_an_interrupted_deletion_removed(store: EventStore, delete_to: Delete) -> None:
    add(store, "s", COUNT)
    delete_to("s", "half gone")
    run = store.prune_history(limit=1)[0]
    assert (run.outcome, run.events, run.sessions) == ("interrupted", SLICE, 1)
    assert (run.bytes, run.sessions_forgotten) == (bytes_of(SLICE), 0)


def test_a_plan_from_before_the_deletion_finishes_it_as_far_as_it_goes(
    store: EventStore, delete_to: Delete, shell: sqlite3.Connection
) -> None:
    add(store, "s", COUNT, status="closed")
    plan = store.plan_prune()
    delete_to("s", "half gone")
    report = store.prune(plan)
    assert (left_of(shell), report.events_removed) == (0, COUNT - SLICE)
    store.prune()
    assert nameless(shell) == 0


def test_two_prunes_of_one_pending_deletion_are_as_one(store: EventStore, delete_to: Delete, shell: sqlite3.Connection) -> None:
    add(store, "s", COUNT)
    delete_to("s", "marked")
    plan = store.plan_prune()
    assert store.prune(plan).sessions_forgotten == 1
    again = store.prune(plan)
    assert (again.events_removed, again.sessions_forgotten) == (0, 0)


def test_a_session_deleted_since_the_plan_is_not_archived(
    store: EventStore, delete_to: Delete, shell: sqlite3.Connection, tmp_path: Path
) -> None:
    add(store, "s", COUNT, status="closed")
    plan = store.plan_prune()
    delete_to("s", "marked")
    report = store.prune(plan, archive_dir=tmp_path / "archive")
    assert (report.archived, left_of(shell)) == ((), 0)


def test_a_pending_deletion_is_not_archived(store: EventStore, delete_to: Delete, tmp_path: Path) -> None:
    add(store, "s", COUNT)
    delete_to("s", "marked")
    assert store.prune(archive_dir=tmp_path / "archive").archived == ()
    assert list((tmp_path / "archive").iterdir()) == []


def test_a_store_opened_read_only_does_not_show_a_session_whose_deletion_is_pending(
    store: EventStore, open_store: OpenStore, delete_to: Delete
) -> None:
    add(store, "s", COUNT)
    delete_to("s", "marked")
    reader = open_store(read_only=True)
    assert (reader.list_sessions().sessions, reader.read_all()) == ([], [])


# Beside other limits


@pytest.mark.parametrize("stage", PENDING)
def test_a_lower_cap_is_put_in_force_while_a_deletion_is_pending(
    store: EventStore, delete_to: Delete, shell: sqlite3.Connection, stage: Stage
) -> None:
    for session_id in ("s", "other"):
        add(store, session_id, COUNT)
        store.update_session(session_id, max_events=None)
    delete_to("s", stage)
    store.set_retention_policy(RetentionPolicy(max_events=2))
    assert len(seqs(store, "other")) == 2
    store.prune()
    assert left_of(shell) == 0


def test_what_a_lower_cap_would_remove_does_not_count_a_pending_deletion(store: EventStore, delete_to: Delete) -> None:
    for session_id in ("s", "other"):
        add(store, session_id, COUNT)
        store.update_session(session_id, max_events=None)
    delete_to("s", "marked")
    assert store.plan_policy(RetentionPolicy(max_events=2)) == (1, COUNT - 2)


def test_a_cap_can_be_lowered_while_sessions_are_deleted(
    store: EventStore, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for session_id in ("a", "b"):
        add(store, session_id, COUNT)
        store.update_session(session_id, max_events=None)
    other = open_store()
    with monkeypatch.context() as patch:
        patch.setattr(limits, "let_writers_through", lambda _: other.delete_session("b") if _exists(other, "b") else None)
        store.set_retention_policy(RetentionPolicy(max_events=2))
    assert store.retention_policy().max_events == 2
    assert len(seqs(store, "a")) == 2


def _exists(store: EventStore, session_id: str) -> bool:
    return session_id in [session.session_id for session in store.list_sessions().sessions]


def budget_counted(shell: sqlite3.Connection) -> int:
    count: int = shell.execute("SELECT retained_bytes FROM store").fetchone()[0]
    return count


def bytes_stored(shell: sqlite3.Connection) -> int:
    count: int = shell.execute("SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM event").fetchone()[0]
    return count


@pytest.mark.parametrize("stage", ["marked", "half gone", "gone"])
def test_the_count_of_the_budget_agrees_with_the_events_at_every_stage(
    store: EventStore, delete_to: Delete, shell: sqlite3.Connection, stage: Stage
) -> None:
    store.set_retention_policy(RetentionPolicy(max_total_bytes=10**9))
    for session_id in ("s", "other"):
        add(store, session_id, COUNT)
    delete_to("s", stage)
    assert budget_counted(shell) == bytes_stored(shell)
    store.create_session("s")
    store.append("s", "t", "new")
    assert budget_counted(shell) == bytes_stored(shell)
    store.prune()
    assert budget_counted(shell) == bytes_stored(shell) == bytes_of(COUNT) + len('"new"')


def test_a_budget_set_while_a_deletion_is_pending_counts_right(
    store: EventStore, delete_to: Delete, shell: sqlite3.Connection
) -> None:
    add(store, "s", COUNT)
    delete_to("s", "half gone")
    store.set_retention_policy(RetentionPolicy(max_total_bytes=10**9))
    assert budget_counted(shell) == bytes_stored(shell) > 0
    store.prune()
    assert budget_counted(shell) == 0


def test_no_session_pays_for_bytes_that_a_pending_deletion_gives_back(store: EventStore, delete_to: Delete) -> None:
    for session_id in ("s", "other"):
        add(store, session_id, COUNT)
    delete_to("s", "marked")
    store.set_retention_policy(RetentionPolicy(max_total_bytes=bytes_of(COUNT) + 10))
    store.prune()
    assert store.get_session("other").event_count == COUNT


def test_of_two_deletions_of_one_session_at_once_one_does_it_and_the_other_finds_none(
    store: EventStore, open_store: OpenStore, shell: sqlite3.Connection
) -> None:
    stores, together = (store, open_store()), threading.Barrier(2)
    outcomes: list[str] = []

    def delete_it(mine: EventStore, session_id: str) -> None:
        together.wait(30)
        try:
            mine.delete_session(session_id)
            outcomes.append("deleted")
        except SessionNotFound:
            outcomes.append("not found")

    for number in range(5):
        add(store, f"s{number}", 30)
        threads = [threading.Thread(target=delete_it, args=(mine, f"s{number}")) for mine in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(outcomes) == ["deleted"] * 5 + ["not found"] * 5
    assert (left_of(shell), nameless(shell), len(tombstones(shell))) == (0, 0, 5)


def test_seq_has_no_gap_and_nothing_twice_while_a_session_is_deleted_again_and_again(
    store: EventStore, open_store: OpenStore
) -> None:
    writer, stop = open_store(), threading.Event()
    appended: list[int] = []

    def append_all_the_time() -> None:
        while not stop.is_set():
            writer.ensure_session("s")
            try:
                appended.append(writer.append("s", "t", 1).seq)
            except SessionNotFound:
                continue  # deleted between the two

    store.create_session("s")
    thread = threading.Thread(target=append_all_the_time)
    thread.start()
    for _ in range(20):
        store.ensure_session("s")
        store.delete_session("s")
    stop.set()
    thread.join(30)
    assert appended == list(range(1, len(appended) + 1))


# Forgetting

AT_ONCE = RetentionPolicy(forget_sessions_after=timedelta(0))


def after(span: timedelta) -> datetime:
    return datetime.now(UTC) + span


def test_a_session_that_ended_long_ago_and_has_no_events_is_forgotten(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=HOUR))
    store.create_session("s", status="closed")
    report = store.prune(store.plan_prune(now=after(2 * HOUR)))
    assert (report.sessions_forgotten, report.events_removed) == (1, 0)
    with pytest.raises(SessionNotFound):
        store.get_session("s")
    assert tombstones(shell) == [("s", "default", "default", 0, 0, "forget_sessions_after")]
    assert nameless(shell) == 0


@pytest.mark.parametrize("status", ["running", "paused", "closing"])
def test_a_session_that_has_not_ended_is_not_forgotten(store: EventStore, status: str) -> None:
    store.set_retention_policy(AT_ONCE)
    store.create_session("s", status=status)
    assert store.prune(store.plan_prune(now=after(FAR))).sessions_forgotten == 0
    assert store.get_session("s").status == status


def test_by_default_no_session_is_forgotten(store: EventStore) -> None:
    store.create_session("s", status="closed")
    store.prune(store.plan_prune(now=after(FAR)))
    assert store.get_session("s").status == "closed"


@pytest.mark.parametrize(("span", "stays"), [(HOUR - timedelta(minutes=1), True), (HOUR + timedelta(minutes=1), False)])
def test_a_session_is_forgotten_that_long_after_its_end(store: EventStore, span: timedelta, stays: bool) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=HOUR))
    store.create_session("s", status="closed")
    store.prune(store.plan_prune(now=after(span)))
    assert _exists(store, "s") == stays


@pytest.mark.parametrize(("us", "forgotten"), [(-1, 0), (0, 1)])
def test_a_session_is_forgotten_from_that_very_microsecond_on(store: EventStore, us: int, forgotten: int) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=HOUR))
    ended_at = store.create_session("s", status="closed").ended_at
    assert ended_at is not None
    plan = store.plan_prune(now=ended_at + HOUR + timedelta(microseconds=us))
    assert plan.sessions_forgotten == forgotten


def test_with_0_a_session_is_forgotten_with_the_next_prune(store: EventStore) -> None:
    store.set_retention_policy(AT_ONCE)
    store.create_session("s", status="closed")
    assert _exists(store, "s")
    assert store.prune().sessions_forgotten == 1
    assert not _exists(store, "s")


def test_opening_a_store_forgets_what_is_due(open_store: OpenStore, store: EventStore) -> None:
    store.set_retention_policy(AT_ONCE)
    add(store, "s", 3, status="closed")
    assert open_store().list_sessions().sessions == []


def test_one_prune_removes_the_events_and_the_record_when_both_are_due(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(AT_ONCE)
    add(store, "s", COUNT, status="closed")
    report = store.prune()
    assert (report.events_removed, report.sessions_forgotten, report.sessions_pruned) == (COUNT, 1, 1)
    assert dict(report.events_by_reason) == {"terminal_grace": COUNT}
    assert tombstones(shell) == [("s", "default", "default", COUNT, bytes_of(COUNT), "forget_sessions_after")]


def test_the_record_goes_after_the_last_event_has(
    store: EventStore, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_retention_policy(AT_ONCE)
    add(store, "s", COUNT, status="closed")
    other, counts = open_store(prune_on_open=False), []
    monkeypatch.setattr(prune, "let_writers_through", lambda _: counts.append(other.get_session("s").event_count))
    store.prune()
    assert counts == [COUNT - SLICE, COUNT - 2 * SLICE, 0]


def test_a_record_stays_as_long_as_its_session_keeps_events(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=FAR, forget_sessions_after=timedelta(0)))
    add(store, "s", 3, status="closed")
    store.prune()
    assert seqs(store, "s") == [1, 2, 3]


def test_a_record_goes_when_its_last_events_go_by_another_limit(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(terminal_grace=FAR, max_age=HOUR, forget_sessions_after=timedelta(0)))
    add(store, "s", 3, status="closed")
    report = store.prune(store.plan_prune(now=after(2 * HOUR)))
    assert (dict(report.events_by_reason), report.sessions_forgotten) == ({"max_age": 3}, 1)


def test_the_record_of_a_session_whose_events_go_first_stays_until_it_is_due(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=HOUR))
    add(store, "s", 3, status="closed")
    assert store.prune().sessions_forgotten == 0
    assert store.get_session("s").removed_events == 3
    assert store.prune(store.plan_prune(now=after(2 * HOUR))).sessions_forgotten == 1


@pytest.mark.parametrize("count", [0, 3])
def test_a_session_on_hold_is_not_forgotten(store: EventStore, count: int) -> None:
    store.set_retention_policy(AT_ONCE)
    add(store, "s", count, status="closed")
    store.update_session("s", hold=True)
    store.prune()
    assert store.get_session("s").event_count == count


CHANGES: dict[str, Callable[[EventStore], object]] = {
    "reopened": lambda store: store.set_status("s", "running"),
    "put on hold": lambda store: store.update_session("s", hold=True),
    "given an event": lambda store: store.append("s", "t", 1),
    "kept by a policy": lambda store: store.set_retention_policy(RetentionPolicy()),
    "kept longer by a policy": lambda store: store.set_retention_policy(RetentionPolicy(forget_sessions_after=FAR)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_session_is_not_forgotten_that_was_saved_after_the_plan(
    store: EventStore, change: Callable[[EventStore], object]
) -> None:
    store.set_retention_policy(AT_ONCE)
    store.create_session("s", status="closed")
    plan = store.plan_prune()
    change(store)
    assert store.prune(plan).sessions_forgotten == 0
    assert _exists(store, "s")


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_session_is_not_forgotten_that_was_saved_while_its_events_went(
    store: EventStore, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, change: Callable[[EventStore], object]
) -> None:
    store.set_retention_policy(AT_ONCE)
    add(store, "s", SLICE, status="closed")
    other = open_store(prune_on_open=False)
    monkeypatch.setattr(prune, "let_writers_through", lambda _: change(other))
    assert store.prune().sessions_forgotten == 0
    assert _exists(store, "s")


def test_a_session_that_was_reopened_and_ended_again_is_kept_from_its_new_end_on(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=HOUR))
    store.create_session("s", status="closed")
    plan_now = after(HOUR / 2)
    store.set_status("s", "running")
    store.set_status("s", "closed")
    store.prune(store.plan_prune(now=plan_now))
    assert _exists(store, "s")


def test_a_forgotten_session_created_again_continues_the_count(store: EventStore, make: str) -> None:
    store.set_retention_policy(AT_ONCE)
    add(store, "s", 3, status="closed")
    store.prune()
    again = getattr(store, make)("s")
    assert (again.last_seq, again.removed_events, again.removed_bytes) == (3, 3, 3)
    assert again.removed_reason == "forget_sessions_after"
    assert store.append("s", "t", 1).seq == 4


def test_the_id_of_a_forgotten_session_stays_taken_for_others(store: EventStore, make: str) -> None:
    store.set_retention_policy(AT_ONCE)
    add(store, "s", 3, status="closed")
    store.prune()
    with pytest.raises(SessionExists):
        getattr(store, make)("s", tenant="evil")


def test_the_figures_of_the_store_count_a_forgotten_session_as_removed(store: EventStore) -> None:
    store.set_retention_policy(AT_ONCE)
    add(store, "s", 3, status="closed")
    store.prune()
    stats = store.stats()
    assert (dict(stats.sessions), stats.events, stats.removed_events, stats.removed_bytes) == ({}, 0, 3, 3)
    assert store.list_sessions().sessions == []


def test_a_reader_of_the_store_is_told_of_the_events_of_a_forgotten_session(store: EventStore) -> None:
    store.set_retention_policy(AT_ONCE)
    last = add(store, "s", 3, status="closed")
    store.prune()
    with pytest.raises(EventsTruncated) as caught:
        store.read_all(after_position=last - 1)
    assert caught.value.reason == "terminal_grace"


def test_in_mode_warn_opening_a_store_forgets_nobody(open_store: OpenStore, store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(forget_sessions_after=timedelta(0), mode="warn"))
    store.create_session("s", status="closed")
    assert _exists(open_store(), "s")


def test_forgetting_twice_is_the_same_as_once(store: EventStore) -> None:
    store.set_retention_policy(AT_ONCE)
    store.create_session("s", status="closed")
    plan = store.plan_prune()
    assert [store.prune(plan).sessions_forgotten for _ in range(2)] == [1, 0]


# By hand, with a plain SQL shell

BURY = "UPDATE session SET session_id = NULL, removed_at = 1, removed_reason = 'by hand' WHERE session_id = 's'"
EMPTY = "UPDATE session SET first_seq = last_seq + 1 WHERE session_id IS NULL"
ERASE = "DELETE FROM session WHERE session_id IS NULL"
CREATE = """
    INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at, first_seq, last_seq, total_bytes)
    VALUES ('s', ?, ?, 'running', 1, 1, ?, ?, ?)
"""


def test_a_shell_that_takes_the_name_of_a_session_leaves_a_tombstone(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3, tenant="acme", owner="ci")
    shell.execute(BURY)
    assert tombstones(shell) == [("s", "acme", "ci", 3, 3, "by hand")]


def test_a_session_that_a_shell_deleted_is_not_found(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    shell.execute(BURY)
    with pytest.raises(SessionNotFound):
        store.append("s", "t", 1)
    assert store.list_sessions().sessions == []


def test_a_reader_of_the_store_is_told_of_what_a_shell_deleted(store: EventStore, shell: sqlite3.Connection) -> None:
    last = add(store, "s", 3)
    shell.execute(BURY)
    with pytest.raises(EventsTruncated) as caught:
        store.read_all(after_position=last - 1)
    assert caught.value.reason == "by hand"


def test_the_next_prune_finishes_what_a_shell_began_to_delete(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", COUNT)
    shell.execute(BURY)
    assert store.prune().events_removed == COUNT
    assert (left_of(shell), nameless(shell)) == (0, 0)


def test_a_shell_can_delete_a_session_to_its_end(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    for statement in (BURY, EMPTY, ERASE):
        shell.execute(statement)
    assert shell.execute("SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM session)").fetchone() == (0, 0)
    assert store.ensure_session("s").last_seq == 3
    assert store.append("s", "t", 1).seq == 4


def test_a_shell_can_take_the_name_and_the_events_in_one_statement(store: EventStore, shell: sqlite3.Connection) -> None:
    last = add(store, "s", 3)
    shell.execute(BURY.replace("SET", "SET first_seq = last_seq + 1,"))
    assert (tombstones(shell)[0][3], left_of(shell)) == (3, 0)
    with pytest.raises(EventsTruncated):
        store.read_all(after_position=last - 1)


@pytest.mark.parametrize("statements", [(), (BURY,)], ids=["as it stands", "without its name"])
def test_a_session_that_holds_events_is_not_erased(
    store: EventStore, shell: sqlite3.Connection, statements: tuple[str, ...]
) -> None:
    add(store, "s", 3)
    for statement in statements:
        shell.execute(statement)
    with pytest.raises(Refused, match="to delete a session"):
        shell.execute("DELETE FROM session")
    assert shell.execute("SELECT count(*) FROM event").fetchone() == (3,)


def test_a_session_that_has_its_name_is_not_erased_though_it_holds_nothing(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    store.create_session("s")
    with pytest.raises(Refused, match="to delete a session"):
        shell.execute("DELETE FROM session")
    assert _exists(store, "s")


@pytest.mark.parametrize("which", ["1", "seq = 2", "seq = 3"])
def test_events_of_a_deleted_session_do_not_go_from_the_middle(
    store: EventStore, shell: sqlite3.Connection, which: str
) -> None:
    add(store, "s", 3)
    shell.execute(BURY)
    with pytest.raises(Refused, match="from the oldest"):
        shell.execute(f"DELETE FROM event WHERE {which}")
    assert left_of(shell) == 3


@pytest.mark.parametrize("name", ["s", "other"])
def test_a_session_that_lost_its_name_does_not_get_one_again(store: EventStore, shell: sqlite3.Connection, name: str) -> None:
    add(store, "s", 3)
    shell.execute(BURY)
    with pytest.raises(Refused, match="the id of a session stays"):
        shell.execute("UPDATE session SET session_id = ?", (name,))


def test_a_session_that_lost_its_name_takes_no_events(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    shell.execute(BURY)
    with pytest.raises(Refused, match="an event needs a session"):
        shell.execute(
            "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
            " SELECT id, last_seq + 1, 't', 1, 1, total_bytes, '0' FROM session"
        )


def test_a_session_without_a_name_is_not_inserted(shell: sqlite3.Connection) -> None:
    with pytest.raises(Refused, match="begins without events"):
        shell.execute(
            "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at)"
            " VALUES (NULL, 't', 'o', 'running', 1, 1)"
        )


WRONG = {
    "from 1 again": ("default", "default", 1, 0, 0),
    "another seq": ("default", "default", 3, 2, 3),
    "a higher seq": ("default", "default", 10, 9, 3),
    "other bytes": ("default", "default", 4, 3, 0),
    "another tenant": ("evil", "default", 4, 3, 3),
    "another owner": ("default", "evil", 4, 3, 3),
}


@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR REPLACE"])
@pytest.mark.parametrize("values", WRONG.values(), ids=list(WRONG))
def test_a_shell_cannot_create_a_deleted_session_again_but_where_its_tombstone_says(
    store: EventStore, shell: sqlite3.Connection, verb: str, values: tuple[Any, ...]
) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    with pytest.raises(Refused, match="goes on from its tombstone"):
        shell.execute(CREATE.replace("INSERT", verb), values)
    assert len(tombstones(shell)) == 1


def test_a_shell_can_create_a_deleted_session_again(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    shell.execute(CREATE, ("default", "default", 4, 3, 3))
    assert tombstones(shell) == []
    assert store.append("s", "t", 1).seq == 4


TAMPERING = {
    "deleted": "DELETE FROM tombstone",
    "deleted by id": "DELETE FROM tombstone WHERE session_id = 's'",
    "given another seq": "UPDATE tombstone SET last_seq = 0",
    "given another seq or ignored": "UPDATE OR IGNORE tombstone SET last_seq = 0",
    "given another seq or replaced": "UPDATE OR REPLACE tombstone SET last_seq = 0",
    "given other bytes": "UPDATE tombstone SET total_bytes = 0",
    "given another tenant": "UPDATE tombstone SET tenant = 'evil'",
    "given another owner": "UPDATE tombstone SET owner = 'evil'",
    "given another id": "UPDATE tombstone SET session_id = 'x'",
    "given another reason": "UPDATE tombstone SET removed_reason = 'x'",
    "given the reason that it has": "UPDATE tombstone SET removed_reason = removed_reason",
    "inserted again": "INSERT INTO tombstone VALUES ('s', 'evil', 'evil', 0, 0, 1, 'x', '')",
    "replaced": "INSERT OR REPLACE INTO tombstone VALUES ('s', 'evil', 'evil', 0, 0, 1, 'x', '')",
    "upserted": (
        "INSERT INTO tombstone VALUES ('s', 'evil', 'evil', 0, 0, 1, 'x', '')"
        " ON CONFLICT (session_id) DO UPDATE SET last_seq = excluded.last_seq"
    ),
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=list(TAMPERING))
def test_a_tombstone_cannot_be(store: EventStore, shell: sqlite3.Connection, statement: str) -> None:
    add(store, "s", 3)
    store.delete_session("s")
    before = shell.execute("SELECT * FROM tombstone").fetchall()
    with pytest.raises(Refused, match="aegis: a tombstone"):
        shell.execute(statement)
    assert shell.execute("SELECT * FROM tombstone").fetchall() == before


@pytest.mark.parametrize("verb", ["UPDATE OR REPLACE", "UPDATE OR IGNORE"])
def test_taking_a_name_leaves_its_tombstone_whatever_the_shell_does_on_conflict(
    store: EventStore, shell: sqlite3.Connection, verb: str
) -> None:
    add(store, "s", 3)
    shell.execute(BURY.replace("UPDATE", verb))
    assert [row[3] for row in tombstones(shell)] == [3]


def test_no_tombstone_is_put_up_for_a_session_that_is_there(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    with pytest.raises(Refused):
        shell.execute("INSERT INTO tombstone VALUES ('s', 'evil', 'evil', 0, 0, 1, 'x', '')")


def test_the_cap_can_be_lowered_after_a_shell_has_begun_to_delete(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 20)
    store.update_session("s", max_events=None)
    shell.execute(BURY)
    store.set_retention_policy(RetentionPolicy(max_events=2))
    assert store.retention_policy().max_events == 2


def test_a_shell_cannot_delete_a_session_on_hold(store: EventStore, shell: sqlite3.Connection) -> None:
    add(store, "s", 3)
    store.update_session("s", hold=True)
    with pytest.raises(Refused):
        shell.execute(BURY)
    assert (store.get_session("s").event_count, nameless(shell), len(tombstones(shell))) == (3, 0, 0)


def test_the_count_of_the_budget_agrees_after_a_shell_has_deleted(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(max_total_bytes=10**9))
    add(store, "s", 3)
    for statement in (BURY, EMPTY, ERASE):
        shell.execute(statement)
        assert budget_counted(shell) == bytes_stored(shell)
