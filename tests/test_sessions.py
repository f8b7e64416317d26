"""Sessions: made, found, changed and listed."""

import math
import sqlite3
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event as sa_event

from aegis_store import (
    UNLIMITED,
    EventStore,
    InvalidInput,
    InvalidPolicy,
    InvalidSession,
    ReadOnlyStore,
    SessionExists,
    SessionNotFound,
    Status,
    StoreClosed,
)
from aegis_store.events import EPOCH, Json

OpenStore = Callable[..., EventStore]

STATUSES = ("initializing", "idle", "running", "paused", "intervening", "closing", "closed", "completed", "failed")
TERMINAL = ("closed", "completed", "failed")
LIVE = tuple(status for status in STATUSES if status not in TERMINAL)

UNTAKEABLE_IDS: list[Any] = ["", "x" * 513, "é" * 257, "a\0b", "a\n", "\x1b[31m", "\x7f", "\x85", "half \ud83d", None, 7, b"a"]


def moment(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def ids_listed(store: EventStore, **options: Any) -> list[str]:
    return [session.session_id for session in store.list_sessions(**options).sessions]


def ids_over_all_pages(store: EventStore, **options: Any) -> list[list[str]]:
    pages = []
    cursor = None
    while True:
        page = store.list_sessions(cursor=cursor, **options)
        pages.append([session.session_id for session in page.sessions])
        cursor = page.cursor
        if cursor is None:
            return pages


def set_updated_at(shell: sqlite3.Connection, **updated_at_us: int) -> None:
    for session_id, us in updated_at_us.items():
        shell.execute("UPDATE session SET updated_at = ? WHERE session_id = ?", (us, session_id))


def add_sessions(shell: sqlite3.Connection, count: int, status: str = "running") -> None:
    ended_at = 1 if status in TERMINAL else None
    shell.execute("BEGIN")
    shell.executemany(
        "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at, ended_at)"
        " VALUES (?, 't', 'o', ?, 1, ?, ?)",
        [(f"{status} {number}", status, number, ended_at) for number in range(count)],
    )
    shell.execute("COMMIT")


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


def query_plans(store: EventStore, shell: sqlite3.Connection, work: Callable[[], object]) -> list[str]:
    """The lines of the query plans of all that `work` reads."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    engine = store._db._engine
    sa_event.listen(engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        sa_event.remove(engine, "before_cursor_execute", note)
    selects = [(sql, parameters) for sql, parameters in statements if sql.lstrip().startswith("SELECT")]
    assert selects
    return [row[3] for sql, parameters in selects for row in shell.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]


# Create, ensure, get


def test_a_new_session_is_what_was_asked_for(store: EventStore) -> None:
    created = store.create_session("s", tenant="t", owner="o", status="idle", metadata={"k": [1]}, max_events=5)
    assert (created.session_id, created.tenant, created.owner, created.status) == ("s", "t", "o", Status.IDLE)
    assert (created.metadata, created.max_events, created.hold) == ({"k": [1]}, 5, False)


def test_a_new_session_holds_no_event(store: EventStore) -> None:
    created = store.create_session("s")
    assert (created.first_seq, created.last_seq, created.event_count, created.removed_events) == (1, 0, 0, 0)
    assert (created.last_event_at, created.removed_at, created.removed_reason, created.removed_bytes) == (None, None, None, 0)


def test_a_session_read_again_is_the_one_that_was_created(store: EventStore) -> None:
    assert store.create_session("s", metadata={"a": -0.0}) == store.get_session("s")


def test_a_new_session_bears_the_time_of_its_creation(store: EventStore) -> None:
    before = datetime.now(UTC)
    created = store.create_session("s")
    assert before - timedelta(microseconds=1) <= created.created_at <= datetime.now(UTC)
    assert created.created_at == created.updated_at
    assert created.created_at.tzinfo is UTC


def test_a_session_without_an_id_gets_a_uuid_of_version_7(store: EventStore) -> None:
    made = uuid.UUID(store.create_session().session_id)
    assert made.version == 7
    assert made.variant == uuid.RFC_4122


def test_ids_that_the_store_makes_sort_by_time(store: EventStore) -> None:
    before_ms = time.time_ns() // 1_000_000
    ids = [store.create_session().session_id for _ in range(50)]
    stamps_ms = [uuid.UUID(session_id).int >> 80 for session_id in ids]
    assert stamps_ms == sorted(stamps_ms)
    assert before_ms <= stamps_ms[0] <= stamps_ms[-1] <= time.time_ns() // 1_000_000
    assert len(set(ids)) == 50


def test_an_id_that_is_taken_is_refused_whoever_asks(store: EventStore) -> None:
    store.create_session("s", tenant="a")
    for tenant in ("a", "b"):
        with pytest.raises(SessionExists) as caught:
            store.create_session("s", tenant=tenant)
        assert caught.value.session_id == "s"


def test_ensure_creates_a_session_that_is_missing(store: EventStore) -> None:
    ensured = store.ensure_session("s", tenant="t", status="paused", metadata={"k": 1}, max_events=UNLIMITED)
    assert ensured == store.get_session("s")
    assert (ensured.tenant, ensured.status, ensured.metadata, ensured.max_events) == ("t", "paused", {"k": 1}, UNLIMITED)


def test_ensure_leaves_a_standing_session_as_it_is(store: EventStore) -> None:
    standing = store.create_session("s", metadata={"k": 1}, max_events=5)
    assert store.ensure_session("s", status="failed", metadata={"k": 2}, max_events=7) == standing
    assert store.get_session("s") == standing


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"owner": "b"}])
def test_ensure_refuses_a_session_of_another_scope(store: EventStore, other: dict[str, Any]) -> None:
    store.create_session("s")
    with pytest.raises(SessionExists):
        store.ensure_session("s", **other)


def test_what_another_scope_is_told_of_a_session_names_no_one(store: EventStore) -> None:
    store.create_session("s", tenant="acme", owner="alice")
    with pytest.raises(SessionExists) as caught:
        store.ensure_session("s", tenant="rival", owner="bob")
    assert "acme" not in str(caught.value)
    assert "alice" not in str(caught.value)


def test_ensure_needs_an_id(store: EventStore) -> None:
    with pytest.raises(InvalidSession):
        store.ensure_session(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("session_id", ["unknown", *UNTAKEABLE_IDS])
def test_a_session_that_cannot_be_or_is_not_there_is_not_found(store: EventStore, session_id: Any) -> None:
    with pytest.raises(SessionNotFound):
        store.get_session(session_id)


# Ids


@pytest.mark.parametrize("field", ["session_id", "tenant", "owner"])
@pytest.mark.parametrize("value", [value for value in UNTAKEABLE_IDS if value is not None])
def test_ids_that_are_no_1_to_512_bytes_of_clean_text_are_refused(store: EventStore, field: str, value: Any) -> None:
    with pytest.raises(InvalidSession, match=field):
        store.create_session(**{field: value})
    assert ids_listed(store) == []


@pytest.mark.parametrize("value", ["x", "x" * 512, "é" * 256, "\U0001f600" * 128])
def test_ids_of_1_to_512_bytes_are_taken(store: EventStore, value: str) -> None:
    store.create_session(value, tenant=value, owner=value)
    found = store.get_session(value)
    assert (found.session_id, found.tenant, found.owner) == (value, value, value)


def test_ids_that_look_alike_name_different_sessions(store: EventStore) -> None:
    confusing = ["a", "A", " a", "a ", "\u00e9", "e\u0301", "1", "01", "1.0", "null", "a%", "a_", "' OR 1=1 --", "../a", "а"]
    for number, session_id in enumerate(confusing):
        store.create_session(session_id, metadata={"n": number})
    assert [store.get_session(session_id).metadata["n"] for session_id in confusing] == list(range(len(confusing)))


def test_an_id_that_is_a_subclass_of_str_comes_back_plain(store: EventStore) -> None:
    class Name(str):
        def __str__(self) -> str:
            return "other"

    assert type(store.create_session(Name("s")).session_id) is str
    assert store.get_session("s").session_id == "s"


# Status


@pytest.mark.parametrize("status", STATUSES)
def test_a_session_can_have_each_of_the_nine_statuses(store: EventStore, status: str) -> None:
    assert store.create_session("made so", status=status).status == status
    store.create_session("set so", status="running" if status != "running" else "idle")
    assert store.set_status("set so", status).status == status


def test_there_are_nine_statuses_and_no_more() -> None:
    assert tuple(Status) == STATUSES


@pytest.mark.parametrize("status", ["Running", "", "done", "running ", None, 3])
def test_other_statuses_are_refused(store: EventStore, status: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidSession, match="is not one of"):
        store.create_session("t", status=status)
    with pytest.raises(InvalidSession, match="is not one of"):
        store.set_status("s", status)
    assert store.get_session("s").status == "running"


@pytest.mark.parametrize("status", TERMINAL)
def test_a_session_that_becomes_terminal_gets_the_moment_of_it(store: EventStore, status: str) -> None:
    store.create_session("s")
    ended = store.set_status("s", status)
    assert ended.ended_at is not None
    assert ended.created_at <= ended.ended_at <= datetime.now(UTC)


@pytest.mark.parametrize("status", TERMINAL)
def test_a_session_created_terminal_ended_when_it_was_created(store: EventStore, status: str) -> None:
    created = store.create_session("s", status=status)
    assert created.ended_at == created.created_at


@pytest.mark.parametrize("status", LIVE)
def test_a_session_that_is_not_terminal_has_not_ended(store: EventStore, status: str) -> None:
    assert store.create_session("s", status=status).ended_at is None


@pytest.mark.parametrize("status", LIVE)
def test_a_reopened_session_has_not_ended(store: EventStore, status: str) -> None:
    store.create_session("s", status="closed")
    assert store.set_status("s", status).ended_at is None


def test_a_session_that_goes_from_one_end_to_another_ended_the_first_time(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s", status="closed")
    shell.execute("UPDATE session SET ended_at = 5")
    assert store.set_status("s", "failed").ended_at == moment(5)


def test_setting_the_status_that_a_session_has_changes_nothing(store: EventStore) -> None:
    before = store.create_session("s", status="closed")
    assert store.set_status("s", "closed") == before


@pytest.mark.parametrize("status", TERMINAL)
def test_a_terminal_session_takes_events_and_is_not_reopened(store: EventStore, status: str) -> None:
    store.create_session("s")
    ended = store.set_status("s", status)
    assert store.append("s", "t", "last words").seq == 1
    after = store.get_session("s")
    assert (after.status, after.ended_at, after.last_seq) == (status, ended.ended_at, 1)


def test_the_status_of_an_unknown_session_cannot_be_set(store: EventStore) -> None:
    with pytest.raises(SessionNotFound) as caught:
        store.set_status("unknown", "idle")
    assert caught.value.session_id == "unknown"


# Update


def test_metadata_is_replaced_as_a_whole(store: EventStore) -> None:
    store.create_session("s", metadata={"a": 1, "b": 2})
    assert store.update_session("s", metadata={"c": 3}).metadata == {"c": 3}


def test_an_update_leaves_what_it_does_not_name(store: EventStore) -> None:
    store.create_session("s", metadata={"a": 1}, max_events=5)
    held = store.update_session("s", hold=True)
    assert (held.metadata, held.max_events, held.hold) == ({"a": 1}, 5, True)
    assert store.update_session("s", metadata={}).hold


def test_an_update_of_everything_at_once_takes(store: EventStore) -> None:
    store.create_session("s")
    updated = store.update_session("s", metadata={"a": 1}, max_events=UNLIMITED, hold=True)
    assert (updated.metadata, updated.max_events, updated.hold) == ({"a": 1}, UNLIMITED, True)


def test_a_session_can_go_back_to_the_cap_of_the_policy(store: EventStore) -> None:
    store.create_session("s", max_events=5)
    assert store.update_session("s", max_events=None).max_events is None


def test_an_update_of_nothing_changes_nothing(store: EventStore) -> None:
    before = store.create_session("s")
    assert store.update_session("s") == before


@pytest.mark.parametrize("hold", [None, 0, 1, "yes"])
def test_a_hold_is_true_or_false(store: EventStore, hold: Any) -> None:
    store.create_session("s")
    with pytest.raises(InvalidSession, match="hold"):
        store.update_session("s", hold=hold)


@pytest.mark.parametrize("cap", [0, -1, True, 1.5, "5", 2**63])
def test_a_cap_that_is_no_whole_number_from_1_on_is_refused(store: EventStore, cap: Any) -> None:
    store.create_session("s", max_events=5)
    with pytest.raises(InvalidPolicy, match="max_events"):
        store.create_session("t", max_events=cap)
    with pytest.raises(InvalidPolicy, match="max_events"):
        store.update_session("s", max_events=cap)
    assert store.get_session("s").max_events == 5


def test_an_update_that_is_refused_in_part_changes_nothing(store: EventStore) -> None:
    before = store.create_session("s")
    with pytest.raises(InvalidPolicy):
        store.update_session("s", metadata={"a": 1}, hold=True, max_events=0)
    assert store.get_session("s") == before


@pytest.mark.parametrize("changes", [{}, {"hold": True}, {"max_events": 5}, {"metadata": {}}])
def test_an_unknown_session_cannot_be_updated(store: EventStore, changes: dict[str, Any]) -> None:
    with pytest.raises(SessionNotFound):
        store.update_session("unknown", **changes)


# Metadata


@pytest.mark.parametrize(
    "metadata",
    [{"": {"\0": ["\ud83d", -0.0, 10**4299, True, None]}}, {}, {"é": "\U0001f600"}],
)
def test_metadata_comes_back_as_it_was(store: EventStore, metadata: dict[str, Json]) -> None:
    store.create_session("s", metadata=metadata)
    assert store.get_session("s").metadata == metadata


def test_metadata_keeps_the_sign_of_zero(store: EventStore) -> None:
    assert math.copysign(1, store.create_session("s", metadata={"z": -0.0}).metadata["z"]) == -1


def test_metadata_of_a_subclass_of_dict_comes_back_plain(store: EventStore) -> None:
    assert type(store.create_session("s", metadata=OrderedDict(a=1)).metadata) is dict


@pytest.mark.parametrize("metadata", [[], "text", 1, ("a", 1), {"a"}])
def test_metadata_that_is_no_object_is_refused(store: EventStore, metadata: Any) -> None:
    with pytest.raises(InvalidSession, match="metadata must be a dict"):
        store.create_session("s", metadata=metadata)


@pytest.mark.parametrize("value", [float("nan"), (1,), {2: 1}, b"x", "\ud83d\ude00"])
def test_metadata_obeys_the_rules_of_payloads_and_names_the_place(store: EventStore, value: Any) -> None:
    with pytest.raises(InvalidSession, match=r"metadata\.a"):
        store.create_session("s", metadata={"a": value})


def test_metadata_of_up_to_64_kib_is_taken(store: EventStore) -> None:
    metadata = {"k": "x" * (64 * 1024 - len('{"k":""}'))}
    assert store.create_session("s", metadata=metadata).metadata == metadata


def test_metadata_over_64_kib_is_refused(store: EventStore) -> None:
    with pytest.raises(InvalidSession, match="65,536"):
        store.create_session("s", metadata={"k": "x" * (64 * 1024 - len('{"k":""}') + 1)})


# The two clocks of a session


def test_updated_at_moves_with_the_record_of_a_session(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    changes: list[dict[str, Any]] = [{"metadata": {"a": 1}}, {"hold": True}, {"max_events": 7}]
    for change in changes:
        set_updated_at(shell, s=5)
        assert store.update_session("s", **change).updated_at > moment(5)
    set_updated_at(shell, s=5)
    assert store.set_status("s", "idle").updated_at > moment(5)


def test_updated_at_does_not_move_with_events(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s", max_events=1)
    set_updated_at(shell, s=5)
    store.append("s", "t", 1)
    store.append("s", "t", 2)
    assert store.get_session("s").updated_at == moment(5)


def test_updated_at_does_not_move_when_events_are_pruned(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s", status="closed")
    store.append("s", "t", 1)
    set_updated_at(shell, s=5)
    assert store.prune().events_removed == 1
    assert store.get_session("s").updated_at == moment(5)


def test_last_event_at_is_when_the_last_event_was_recorded(store: EventStore) -> None:
    store.create_session("s")
    store.append("s", "t", 1)
    last = store.append("s", "t", 2, occurred_at=datetime(2020, 1, 1, tzinfo=UTC))
    store.update_session("s", hold=True)
    assert store.get_session("s").last_event_at == last.recorded_at


def test_last_event_at_stays_when_the_events_are_gone(store: EventStore) -> None:
    store.create_session("s", status="closed")
    last = store.append("s", "t", 1)
    store.prune()
    assert store.get_session("s").last_event_at == last.recorded_at


# Lists


def test_an_empty_store_lists_nothing(store: EventStore) -> None:
    page = store.list_sessions()
    assert (page.sessions, page.cursor) == ([], None)


def test_sessions_are_listed_by_their_last_update_newest_first(store: EventStore, shell: sqlite3.Connection) -> None:
    for session_id in ("a", "b", "c"):
        store.create_session(session_id)
    set_updated_at(shell, a=2, b=3, c=1)
    assert ids_listed(store) == ["b", "a", "c"]


def test_a_session_that_is_updated_moves_to_the_front(store: EventStore, shell: sqlite3.Connection) -> None:
    for session_id in ("a", "b"):
        store.create_session(session_id)
    set_updated_at(shell, a=1, b=2)
    store.update_session("a", metadata={"n": 1})
    assert ids_listed(store) == ["a", "b"]


def test_a_listed_session_is_the_session(store: EventStore) -> None:
    store.create_session("s", metadata={"a": 1}, max_events=1)
    store.append_many("s", [])
    store.append("s", "t", "gone")
    store.append("s", "t", 1)
    assert store.list_sessions().sessions == [store.get_session("s")]
    assert store.get_session("s").removed_bytes == len('"gone"')


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (8, [7])])
def test_pages_hold_each_session_once_and_end_without_a_cursor(
    store: EventStore, shell: sqlite3.Connection, limit: int, sizes: list[int]
) -> None:
    add_sessions(shell, 7)
    pages = ids_over_all_pages(store, limit=limit)
    assert list(map(len, pages)) == sizes
    assert [number for page in pages for number in page] == [f"running {number}" for number in (6, 5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize("statuses", [None, ["idle", "running", "closed"]])
def test_sessions_updated_at_the_same_moment_are_listed_once_each(
    store: EventStore, shell: sqlite3.Connection, statuses: list[str] | None
) -> None:
    for status in ("idle", "running", "closed"):
        add_sessions(shell, 4, status)
    shell.execute("UPDATE session SET updated_at = 5")
    pages = ids_over_all_pages(store, limit=5, statuses=statuses)
    assert list(map(len, pages)) == [5, 5, 2]
    assert len({session_id for page in pages for session_id in page}) == 12


def test_a_list_can_be_limited_to_statuses(store: EventStore, shell: sqlite3.Connection) -> None:
    for status in STATUSES:
        store.create_session(status, status=status)
    set_updated_at(shell, **{status: number for number, status in enumerate(STATUSES)})
    assert ids_listed(store, statuses=["idle", "failed", "paused"]) == ["failed", "paused", "idle"]
    assert ids_listed(store, statuses={Status.CLOSED}) == ["closed"]
    assert ids_listed(store, statuses=STATUSES) == list(reversed(STATUSES))


def test_a_status_that_is_named_twice_counts_once(store: EventStore) -> None:
    store.create_session("s")
    assert ids_listed(store, statuses=["running", "running"]) == ["s"]


def test_pages_of_some_statuses_are_merged_in_order(store: EventStore, shell: sqlite3.Connection) -> None:
    for status in ("idle", "running", "closed"):
        add_sessions(shell, 3, status)
    pages = ids_over_all_pages(store, limit=2, statuses=["closed", "idle"])
    assert pages == [["closed 2", "idle 2"], ["closed 1", "idle 1"], ["closed 0", "idle 0"]]


def test_updated_after_leaves_out_what_was_not_updated_since(store: EventStore, shell: sqlite3.Connection) -> None:
    for session_id in ("a", "b", "c"):
        store.create_session(session_id)
    set_updated_at(shell, a=10, b=20, c=30)
    assert ids_listed(store, updated_after=moment(9)) == ["c", "b", "a"]
    assert ids_listed(store, updated_after=moment(10)) == ["c", "b"]
    assert ids_listed(store, updated_after=moment(30)) == []


def test_all_conditions_of_a_list_hold_together(store: EventStore, shell: sqlite3.Connection) -> None:
    add_sessions(shell, 10, "idle")
    add_sessions(shell, 10, "closed")
    pages = ids_over_all_pages(store, statuses=["idle"], updated_after=moment(5), limit=3)
    assert pages == [["idle 9", "idle 8", "idle 7"], ["idle 6"]]


@pytest.mark.parametrize("limit", [0, -1, 1001, True, 1.0, "5", None])
def test_the_limit_of_a_list_is_1_to_1000(store: EventStore, limit: Any) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        store.list_sessions(limit=limit)


@pytest.mark.parametrize("limit", [1, 1000])
def test_limits_of_1_and_1000_are_taken(store: EventStore, shell: sqlite3.Connection, limit: int) -> None:
    add_sessions(shell, 1001)
    assert len(ids_listed(store, limit=limit)) == limit


@pytest.mark.parametrize(
    "cursor", ["", "5", "5-", "-5", "a-b", "1-2-3", "1 - 2", "9" * 19 + "-1", "1-" + "9" * 19, "1" * 50 + "-1", 5, b"1-2"]
)
def test_a_cursor_that_no_list_gave_is_refused(store: EventStore, cursor: Any) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        store.list_sessions(cursor=cursor)


@pytest.mark.parametrize("statuses", ["running", [], ["unknown"], [None]])
def test_statuses_that_are_none_are_refused(store: EventStore, statuses: Any) -> None:
    with pytest.raises(InvalidInput, match="status"):
        store.list_sessions(statuses=statuses)


@pytest.mark.parametrize("updated_after", [datetime(2026, 1, 1), "2026-01-01", 5])
def test_updated_after_is_an_aware_datetime(store: EventStore, updated_after: Any) -> None:
    with pytest.raises(InvalidInput, match="updated_after"):
        store.list_sessions(updated_after=updated_after)


LISTS: list[dict[str, Any]] = [
    {},
    {"cursor": "50-9"},
    {"updated_after": moment(50)},
    {"statuses": ["idle"]},
    {"statuses": ["idle", "closed"], "cursor": "50-9"},
    {"statuses": list(STATUSES), "updated_after": moment(50), "cursor": "99-9"},
]


@pytest.mark.parametrize("options", LISTS, ids=lambda options: " ".join(options) or "plain")
def test_a_page_of_sessions_is_found_by_an_index(store: EventStore, shell: sqlite3.Connection, options: dict[str, Any]) -> None:
    plans = query_plans(store, shell, lambda: store.list_sessions(**options))
    assert any("USING INDEX session_by_" in line for line in plans)
    assert [line for line in plans if line.startswith("SCAN session") and "USING" not in line] == []
    assert [line for line in plans if line.startswith(("SCAN event", "SCAN first"))] == []


@pytest.mark.parametrize("options", [{}, {"statuses": ["running"]}, {"statuses": ["running", "idle"]}])
def test_a_page_of_sessions_costs_the_same_wherever_it_lies(
    store: EventStore, shell: sqlite3.Connection, options: dict[str, Any]
) -> None:
    add_sessions(shell, 5000)
    add_sessions(shell, 5000, "idle")
    at_the_start = vm_steps(store, lambda: store.list_sessions(limit=10, cursor="4990-0", **options))
    at_the_end = vm_steps(store, lambda: store.list_sessions(limit=10, cursor="20-0", **options))
    assert at_the_start == at_the_end


def test_looking_up_a_session_costs_the_same_in_a_small_and_a_large_store(store: EventStore, shell: sqlite3.Connection) -> None:
    store.create_session("s")
    few = vm_steps(store, lambda: store.get_session("s"))
    add_sessions(shell, 5000)
    assert vm_steps(store, lambda: store.get_session("s")) == few


# Stores that cannot be written


def test_a_read_only_store_lists_sessions_and_changes_none(store: EventStore, open_store: OpenStore) -> None:
    before = store.create_session("s")
    reader = open_store(read_only=True)
    writes: list[Callable[[], object]] = [
        lambda: reader.create_session("t"),
        lambda: reader.ensure_session("t"),
        lambda: reader.set_status("s", "idle"),
        lambda: reader.update_session("s", hold=True),
    ]
    for write in writes:
        with pytest.raises(ReadOnlyStore):
            write()
    assert reader.list_sessions().sessions == [before]


def test_a_read_only_store_ensures_a_session_that_stands(store: EventStore, open_store: OpenStore) -> None:
    standing = store.create_session("s")
    assert open_store(read_only=True).ensure_session("s") == standing


def test_a_closed_store_answers_nothing(store: EventStore) -> None:
    store.create_session("s")
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.create_session("t"),
        lambda: store.ensure_session("s"),
        lambda: store.get_session("s"),
        lambda: store.list_sessions(),
        lambda: store.set_status("s", "idle"),
        lambda: store.update_session("s", hold=True),
    ]
    for call in calls:
        with pytest.raises(StoreClosed):
            call()
