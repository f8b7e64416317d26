"""A scope: one tenant and one owner see what is theirs, by each method, and nothing of what others have."""

import asyncio
import functools
import inspect
import random
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    AegisStoreError,
    AsyncEventStore,
    CursorAhead,
    EventsMissed,
    EventStore,
    EventsTruncated,
    InvalidEvent,
    InvalidInput,
    InvalidSession,
    NewEvent,
    OutOfScope,
    RetentionPolicy,
    ScopedStore,
    SessionExists,
    SessionNotFound,
)
from aegis_store.settings import SCOPED_SCAN
from tests.test_read import vm_steps

ACME: dict[str, Any] = {"tenant": "acme", "owner": "ci"}
OTHERS: tuple[dict[str, Any], ...] = ({"tenant": "acme", "owner": "ops"}, {"tenant": "evil", "owner": "ci"})

OF_A_SESSION: dict[str, Callable[[Any, str], Any]] = {
    "get_session": lambda store, name: store.get_session(name),
    "set_status": lambda store, name: store.set_status(name, "failed"),
    "update_session": lambda store, name: store.update_session(name, metadata={"mine": True}, max_events=1, hold=True),
    "delete_session": lambda store, name: store.delete_session(name),
    "append": lambda store, name: store.append(name, "t", "mine", event_id="e1", expected_seq=7),
    "append_many": lambda store, name: store.append_many(name, [NewEvent(type="t", payload=1)], expected_seq=7),
    "read": lambda store, name: store.read(name, after_seq=99),
    "follow": lambda store, name: list(store.follow(name, after=99, timeout=0)),
    "session_overview": lambda store, name: store.session_overview(session_id=name, last=3),
    "export": lambda store, name: store.export("never.jsonl", session_ids=[name]),
}
LIMITED = {"create_session", "ensure_session", "list_sessions", "read_all", "follow", "plan_prune", "prune", "export"}
OF_THE_WHOLE_STORE: dict[str, Callable[[Any], Any]] = {
    "set_retention_policy": lambda store: store.set_retention_policy(RetentionPolicy(max_events=1)),
    "plan_policy": lambda store: store.plan_policy(RetentionPolicy(max_events=1)),
    "prune_history": lambda store: store.prune_history(limit=1),
    "reclaim": lambda store: store.reclaim(max_seconds=1),
    "import_lines": lambda store: store.import_lines("some.jsonl"),
    "import_aegis": lambda store: store.import_aegis("some.json", rest="rest.json"),
    "backup": lambda store: store.backup("backup.db"),
    "overview": lambda store: store.overview(),
    "stats": lambda store: store.stats(),
    "health": lambda store: store.health(),
    "verify": lambda store: store.verify(),
    "scoped": lambda store: store.scoped(**OTHERS[0]),
}
FOR_EVERYBODY = {"retention_policy", "close"}
OF_A_FILE = {"open", "upgrade", "compact", "copy", "doctor", "restore", "sqlite_version"}  # asked of the class, with a path


def names(of: type) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")}


def test_every_method_of_the_surface_has_its_place_in_a_scope_and_in_these_tests() -> None:
    tried = OF_A_SESSION.keys() | LIMITED | OF_THE_WHOLE_STORE.keys() | FOR_EVERYBODY
    assert tried == names(EventStore) - OF_A_FILE == names(ScopedStore)


@pytest.mark.parametrize("name", sorted(names(ScopedStore)))
def test_a_method_has_the_same_arguments_as_that_of_the_whole_store(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(of, name)).parameters for of in (ScopedStore, EventStore))
    assert list(ours) == list(theirs)
    for each in set(ours) - {"tenant", "owner"}:
        assert (ours[each].kind, ours[each].default) == (theirs[each].kind, theirs[each].default)


class Awaited:
    """An `AsyncEventStore` of a scope, whose methods are awaited for the caller."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: AsyncEventStore) -> None:
        self._loop, self._store = loop, store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **options: Any) -> Any:
            found = method(*args, **options)
            if isinstance(found, AsyncEventStore):
                return Awaited(self._loop, found)
            if inspect.isasyncgen(found):

                async def gathered() -> list[Any]:
                    return [event async for event in found]

                return self._loop.run_until_complete(gathered())
            return self._loop.run_until_complete(found) if inspect.iscoroutine(found) else found

        return call


@pytest.fixture(params=["sync", "async"])
def mine(request: pytest.FixtureRequest, store: EventStore, path: Path) -> Iterator[Any]:
    """The scope of acme's ci in a store where others have the same, through either class."""
    for scope in (ACME, *OTHERS):
        prefix = "mine" if scope == ACME else f"{scope['tenant']}-{scope['owner']}"
        for number in range(3):
            store.create_session(f"{prefix}-{number}", **scope)
    for number in range(5):
        for session in store.list_sessions().sessions:
            store.append(session.session_id, "t", {"number": number}, event_id=f"e{number}")
    store.create_session("evil-gone", **OTHERS[1])
    store.append("evil-gone", "t", 1)
    store.delete_session("evil-gone")
    if request.param == "sync":
        yield store.scoped(**ACME)
        return
    loop = asyncio.new_event_loop()
    whole = loop.run_until_complete(_opened(path))
    yield Awaited(loop, whole.scoped(**ACME))
    loop.run_until_complete(whole.close())
    loop.close()


async def _opened(path: Path) -> AsyncEventStore:
    return await AsyncEventStore.open(path, durability="process", prune_on_open=False, maintain_every=None)


def told(error: AegisStoreError, name: str) -> tuple[Any, ...]:
    """All that an error says, but for the id."""
    fields = {key: str(value).replace(name, "…") for key, value in vars(error).items()}
    return type(error), str(error).replace(name, "…"), fields


def of_others(store: EventStore) -> list[Any]:
    """All that others have."""
    sessions = [each for each in store.list_sessions(limit=1000).sessions if (each.tenant, each.owner) != ("acme", "ci")]
    return [(each, store.read(each.session_id).events) for each in sessions]


# Sessions that are named


@pytest.mark.parametrize("name", OF_A_SESSION)
@pytest.mark.parametrize("foreign", ["acme-ops-1", "evil-ci-1", "evil-gone"])
def test_what_others_have_is_as_what_never_was(mine: Any, store: EventStore, name: str, foreign: str) -> None:
    before = of_others(store)
    with pytest.raises(SessionNotFound) as of_foreign:
        OF_A_SESSION[name](mine, foreign)
    with pytest.raises(SessionNotFound) as of_nobody:
        OF_A_SESSION[name](mine, "nobody")
    assert told(of_foreign.value, foreign) == told(of_nobody.value, "nobody")
    assert of_others(store) == before


def test_what_is_asked_wrongly_tells_no_more_of_others_than_of_nobody(mine: Any) -> None:
    for foreign in ("evil-ci-1", "nobody"):
        with pytest.raises(InvalidEvent):
            mine.append(foreign, "t", float("nan"))
        with pytest.raises(SessionNotFound):
            mine.append(foreign, "t", "x" * 1_048_600)  # over max_event_bytes
        with pytest.raises(SessionNotFound):
            mine.update_session(foreign, max_events=0)
        with pytest.raises(SessionNotFound):
            mine.set_status(foreign, "no status")
        with pytest.raises(SessionNotFound):
            mine.read(foreign, limit=0)
        with pytest.raises(SessionNotFound):
            mine.follow(foreign, after=1, last=1)


def test_finding_that_there_is_no_session_takes_the_same_work_for_those_of_others(store: EventStore) -> None:
    store.create_session("theirs-1", **OTHERS[0])
    mine = store.scoped(**ACME)

    def in_vain(name: str) -> None:
        with pytest.raises(SessionNotFound):
            mine.append(name, "t", 1)

    of_others, of_nobody = (vm_steps(store, functools.partial(in_vain, name)) for name in ("theirs-1", "nobody-1"))
    assert abs(of_others - of_nobody) <= 6


def test_the_whole_surface_works_on_its_own_sessions(mine: Any, store: EventStore, tmp_path: Path) -> None:
    assert mine.append("mine-0", "t", 6, expected_seq=5).seq == 6
    assert [event.seq for event in mine.append_many(session_id="mine-0", events=[NewEvent(type="t", payload=7)])] == [7]
    assert mine.read("mine-0", limit=1000).events == store.read("mine-0", limit=1000).events
    assert [event.seq for event in mine.follow("mine-0", last=2, timeout=0)] == [6, 7]
    assert mine.set_status("mine-1", "idle") == mine.get_session("mine-1") == store.get_session("mine-1")
    assert mine.update_session("mine-1", max_events=2).first_seq == 4
    assert mine.session_overview("mine-0").session == store.get_session("mine-0")
    mine.delete_session("mine-2")
    with pytest.raises(SessionNotFound):
        store.get_session("mine-2")
    assert mine.create_session("mine-2").last_seq == 5
    assert mine.retention_policy() == store.retention_policy()


@pytest.mark.parametrize("name", OF_THE_WHOLE_STORE)
def test_what_concerns_all_is_refused_by_name(mine: Any, store: EventStore, name: str) -> None:
    before = of_others(store), store.retention_policy()
    with pytest.raises(OutOfScope, match=f"^{name} is for the whole store") as refused:
        OF_THE_WHOLE_STORE[name](mine)
    assert refused.value.method == name
    assert (of_others(store), store.retention_policy()) == before


def test_a_redact_hook_sees_what_a_scope_appends(path: Path) -> None:
    def redact(session_id: str, type: str, payload: Any) -> Any:
        return {**payload, "key": "(removed)"}

    with EventStore.open(path, durability="process", redact=redact) as store:
        mine = store.scoped(**ACME)
        mine.create_session("s")
        mine.append("s", "t", {"key": "secret"})
        mine.append_many("s", [NewEvent(type="t", payload={"key": "secret"})])
        assert [event.payload for event in mine.read("s").events] == [{"key": "(removed)"}] * 2


# New sessions


def test_a_session_is_made_in_the_scope(mine: Any) -> None:
    for made in (mine.create_session("a"), mine.ensure_session("b"), mine.create_session("c", **ACME), mine.create_session()):
        assert (made.tenant, made.owner) == ("acme", "ci")


@pytest.mark.parametrize("make", ["create_session", "ensure_session"])
@pytest.mark.parametrize("scope", [{"tenant": "evil"}, {"owner": "ops"}, OTHERS[1], {"tenant": "ACME"}])
def test_a_session_for_others_is_refused(mine: Any, store: EventStore, make: str, scope: dict[str, str]) -> None:
    with pytest.raises(InvalidSession, match="must be that of the scope"):
        getattr(mine, make)("new", **scope)
    with pytest.raises(SessionNotFound):
        store.get_session("new")


@pytest.mark.parametrize("taken", ["evil-ci-1", "acme-ops-1", "evil-gone"])
def test_an_id_that_is_taken_is_all_that_a_scope_hears_of_others(mine: Any, taken: str) -> None:
    for make in (mine.create_session, mine.ensure_session):
        with pytest.raises(SessionExists) as of_others:
            make(taken)
        with pytest.raises(SessionExists) as of_its_own:
            mine.create_session("mine-1")
        assert told(of_others.value, taken) == told(of_its_own.value, "mine-1")


def test_the_scope_of_a_scope_is_itself(mine: Any) -> None:
    assert mine.scoped(**ACME).get_session("mine-0") == mine.get_session("mine-0")


@pytest.mark.parametrize(
    "wrong", [{"tenant": "", "owner": "ci"}, {"tenant": "acme", "owner": None}, {"tenant": "a\0", "owner": "b"}]
)
def test_what_can_be_no_tenant_or_owner_makes_no_scope(store: EventStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSession):
        store.scoped(**wrong)


def test_closing_a_scope_leaves_the_store_open(store: EventStore, path: Path) -> None:
    with store.scoped(**ACME) as mine:
        mine.create_session("a")
    mine.close()
    assert mine.append("a", "t", 1) == store.read("a").events[0]

    async def main() -> None:
        whole = await _opened(path)
        async with whole.scoped(**ACME) as scoped:
            await scoped.append("a", "t", 2)
        await whole.append("a", "t", 3)
        await scoped.append("a", "t", 4)
        await whole.close()

    asyncio.run(main())
    assert mine.get_session("a").last_seq == 4


# Lists


def listed(mine: Any, **options: Any) -> list[str]:
    """All ids, page by page."""
    found, cursor = [], None
    while True:
        page = mine.list_sessions(cursor=cursor, **options)
        found += [session.session_id for session in page.sessions]
        if page.cursor is None:
            return found
        cursor = page.cursor


@pytest.mark.parametrize("options", [{}, {"limit": 1}, {"limit": 2}, {"statuses": ["running", "idle"], "limit": 1}])
def test_a_list_has_the_scopes_sessions_newest_first(mine: Any, options: dict[str, Any]) -> None:
    mine.set_status("mine-1", "idle")
    assert listed(mine, **options) == ["mine-1", "mine-2", "mine-0"]


def others_have(store: EventStore, count: int) -> None:
    """So many sessions of others."""
    with store._db.write() as conn:
        conn.exec_driver_sql(
            f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})"
            "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at)"
            "SELECT 'theirs-' || n, 'evil', 'ci', 'running', 4e15 + n, 4e15 + n FROM n"
        )


@pytest.mark.parametrize("options", [{}, {"statuses": ["running"]}, {"limit": 2}])
def test_a_list_among_many_others_is_whole_and_no_more_work(store: EventStore, options: dict[str, Any]) -> None:
    mine = store.scoped(**ACME)
    for name in "abc":
        mine.create_session(name)
    alone = vm_steps(store, lambda: mine.list_sessions(**options))
    others_have(store, 2500)
    assert listed(mine, **options) == ["c", "b", "a"]
    assert vm_steps(store, lambda: mine.list_sessions(**options)) <= alone + 50  # trees grow by a level


# Events of all sessions


def read_through(mine: Any, **options: Any) -> list[tuple[str, int]]:
    """All events, page by page, and the cursors only rise."""
    found: list[tuple[str, int]] = []
    after = None
    while True:
        page = mine.read_all(after_position=after, **options)
        found += [(event.session_id, event.seq) for event in page]
        assert after is None or page.next_after_position >= after
        if not page.has_more:
            return found
        after = page.next_after_position


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_read_all_has_the_scopes_events_in_order(mine: Any, store: EventStore, limit: int) -> None:
    own = [(event.session_id, event.seq) for event in store.read_all(limit=1000) if event.session_id.startswith("mine")]
    assert len(own) == 15
    assert read_through(mine, limit=limit) == own


def test_the_whole_store_is_read_by_the_same_cursors(store: EventStore) -> None:
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload=number) for number in range(5)])
    assert read_through(store, limit=2) == [("s", seq) for seq in range(1, 6)]
    assert store.read_all(after_position=5).next_after_position == 5


def crowd(store: EventStore, count: int) -> None:
    """So many events of others."""
    store.ensure_session("crowd", **OTHERS[1], max_events=UNLIMITED)
    for start in range(0, count, 1000):
        store.append_many("crowd", [NewEvent(type="t", payload=None)] * min(count - start, 1000))


def test_among_many_others_a_page_is_short_and_the_cursor_goes_on(store: EventStore) -> None:
    mine = store.scoped(**ACME)
    mine.create_session("s")
    mine.append("s", "t", "first")
    crowd(store, 2 * SCOPED_SCAN + 500)
    mine.append("s", "t", "last")
    pages = [mine.read_all()]
    while pages[-1].has_more:
        pages.append(mine.read_all(after_position=pages[-1].next_after_position))
    assert [[event.payload for event in page] for page in pages] == [["first"], [], ["last"]]
    assert [event.payload for event in mine.follow(timeout=0)] == ["first", "last"]
    assert [event.payload for event in mine.follow(last=1, timeout=0)] == ["last"]


@pytest.mark.parametrize(
    "look",
    [
        lambda mine: mine.read_all(after_position=1),
        lambda mine: mine.read("s"),
        lambda mine: next(mine.follow(last=1)),
        lambda mine: mine.get_session("s"),
        lambda mine: mine.plan_prune(),
        lambda mine: mine.session_overview("s"),
    ],
)
def test_work_does_not_grow_with_the_events_of_others(store: EventStore, look: Callable[[ScopedStore], object]) -> None:
    mine = store.scoped(**ACME)
    mine.create_session("s")
    mine.append("s", "t", 1)
    crowd(store, 1500)
    few = vm_steps(store, lambda: look(mine))
    crowd(store, 5000)
    assert vm_steps(store, lambda: look(mine)) <= few + 100  # trees grow by a level


def test_looking_for_what_was_removed_does_not_grow_with_the_events_of_others_either(store: EventStore) -> None:
    mine = store.scoped(**ACME)
    mine.create_session("s", max_events=1)
    for number in range(3):
        mine.append("s", "t", number)
    crowd(store, 1500)

    def look() -> object:
        store.update_session("crowd", max_events=1)
        store.update_session("crowd", max_events=UNLIMITED)
        return mine.read_all(after_position=1, on_gap="skip")

    few = vm_steps(store, look)
    crowd(store, 5000)
    assert vm_steps(store, look) <= few + 100


@pytest.mark.parametrize("look", [lambda mine: mine.read_all(after_position=1), lambda mine: next(mine.follow(last=1))])
def test_looking_for_what_was_removed_does_not_grow_with_the_sessions_of_others(
    store: EventStore, look: Callable[[ScopedStore], object]
) -> None:
    mine = store.scoped(**ACME)
    store.create_session("other", **OTHERS[1], max_events=1)
    store.append_many("other", [NewEvent(type="t", payload=None)] * 2)
    mine.create_session("s")
    mine.append("s", "t", 1)
    store.append("other", "t", None)
    alone = vm_steps(store, lambda: look(mine))
    others_have(store, 2500)
    with store._db.write() as conn:
        conn.exec_driver_sql("UPDATE session SET session_id = NULL WHERE id % 2 = 0 AND session_id LIKE 'theirs-%'")
    assert vm_steps(store, lambda: look(mine)) <= alone + 50


def test_a_cursor_beyond_the_store_is_ahead_in_a_scope_too(mine: Any) -> None:
    end = mine.read_all().next_after_position
    assert mine.read_all(after_position=end) == []
    with pytest.raises(CursorAhead):
        mine.read_all(after_position=end + 1)


# What was removed


def test_what_others_lose_is_not_told(mine: Any, store: EventStore) -> None:
    for name in ("evil-ci-0", "acme-ops-0"):
        store.update_session(name, max_events=1)
    store.delete_session("evil-ci-1")
    with pytest.raises(EventsTruncated):
        store.read_all(after_position=0)
    assert len(mine.read_all(after_position=0)) == 15
    assert len(list(mine.follow(after=0, timeout=0))) == 15


def lose_to_the_cap(store: EventStore) -> None:
    store.update_session("mine-1", max_events=2)


def lose_by_deletion(store: EventStore) -> None:
    store.delete_session("mine-1")


def lose_by_a_prune(store: EventStore) -> None:
    store.set_status("mine-1", "completed")
    store.prune()


@pytest.mark.parametrize("lose", [lose_to_the_cap, lose_by_deletion, lose_by_a_prune])
def test_what_the_scope_loses_unread_is_told(mine: Any, store: EventStore, lose: Callable[[EventStore], None]) -> None:
    everything = [event for event in store.read_all(limit=1000) if event.session_id.startswith("mine")]
    lose(store)
    left = [event for session in mine.list_sessions().sessions for event in mine.read(session.session_id).events]
    assert len(left) < len(everything)
    with pytest.raises(EventsTruncated) as lost:
        mine.read_all(after_position=0)
    assert (lost.value.session_id, lost.value.requested_seq) == (None, 0)
    assert lost.value.reason in ("max_events", "deleted", "terminal_grace")
    assert sorted(event.position for event in mine.read_all(after_position=0, on_gap="skip")) == sorted(
        e.position for e in left
    )
    with pytest.raises(EventsTruncated):
        list(mine.follow(after=0, timeout=0))
    followed = list(mine.follow(after=0, timeout=0, on_gap="skip"))
    assert len([event for event in followed if isinstance(event, EventsMissed)]) == 1
    assert len(followed) == len(left) + 1


def test_a_reader_who_was_at_the_end_is_not_told_of_what_he_has_read(mine: Any, store: EventStore) -> None:
    end = mine.read_all(limit=1000).next_after_position
    lose_by_deletion(store)
    new = mine.append("mine-0", "t", "new")
    assert mine.read_all(after_position=end) == [new]


def test_a_follower_is_told_of_what_goes_before_him_and_of_nothing_else(store: EventStore) -> None:
    mine = store.scoped(**ACME)
    for name, scope in (("own", ACME), ("old", ACME), ("theirs", OTHERS[1])):
        store.create_session(name, **scope)
    store.append("old", "t", 0)
    store.delete_session("old")
    events = mine.follow(timeout=0.2, on_gap="skip")
    store.append("own", "t", 1)
    assert getattr(next(events), "payload", None) == 1
    store.append_many("theirs", [NewEvent(type="t", payload=number) for number in range(3)])
    store.update_session("theirs", max_events=1)
    store.append("own", "t", 2)
    assert getattr(next(events), "payload", None) == 2
    store.append_many("own", [NewEvent(type="t", payload=number) for number in (3, 4)])
    store.update_session("own", max_events=1)
    assert isinstance(next(events), EventsMissed)
    assert getattr(next(events), "payload", None) == 4
    assert list(events) == []


def test_what_a_follower_without_a_cursor_loses_on_his_way_is_told(store: EventStore) -> None:
    mine = store.scoped(**ACME)
    mine.create_session("s")
    mine.append_many("s", [NewEvent(type="t", payload=number) for number in range(300)])
    crowd(store, 10)
    store.delete_session("crowd")
    events = mine.follow(timeout=0)
    assert next(events).seq == 1
    mine.update_session("s", max_events=50)
    with pytest.raises(EventsTruncated):
        list(events)


# Pruning


def ended(store: EventStore) -> None:
    for session in store.list_sessions(limit=1000).sessions:
        if not session.session_id.endswith("-0"):
            store.set_status(session.session_id, "completed")


def test_a_plan_and_a_prune_concern_the_scope(mine: Any, store: EventStore, tmp_path: Path) -> None:
    ended(store)
    before = of_others(store)
    plan = mine.plan_prune()
    assert [each.session_id for each in plan.truncations] == ["mine-2", "mine-1"]
    report = mine.prune(archive_dir=tmp_path / "archive")
    assert (report.events_removed, report.sessions_pruned, report.run_id, report.reclaimable_bytes) == (10, 2, None, 0)
    assert len(report.archived) == 2
    assert of_others(store) == before
    assert mine.prune().events_removed == 0


def test_of_a_plan_of_the_whole_store_a_scope_carries_out_its_part(mine: Any, store: EventStore) -> None:
    ended(store)
    plan = store.plan_prune(now=datetime.now(UTC) + timedelta(days=1))
    before = of_others(store)
    assert mine.prune(plan).events_removed == 10
    assert of_others(store) == before


def test_the_budget_of_the_store_is_not_a_scopes_to_enforce(mine: Any, store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_total_bytes=100))
    assert (mine.plan_prune().truncations, mine.plan_prune().budget) == ((), None)
    before = store.read_all(limit=1000)
    assert mine.prune(store.plan_prune()).events_removed == 0
    assert store.read_all(limit=1000) == before


def test_a_prune_of_no_plan_is_refused(mine: Any) -> None:
    with pytest.raises(InvalidInput, match="plan must be a PrunePlan"):
        mine.prune("all")


# Export


def test_an_export_has_the_scopes_sessions(mine: Any, tmp_path: Path) -> None:
    report = mine.export(tmp_path / "mine.jsonl")
    assert (report.sessions, report.events) == (3, 15)
    text = (tmp_path / "mine.jsonl").read_text()
    assert "evil" not in text
    assert "ops" not in text
    with EventStore.open(tmp_path / "other.db") as other:
        assert other.import_lines(tmp_path / "mine.jsonl").events_added == 15


def test_an_export_that_names_a_session_of_others_writes_nothing(mine: Any, tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound):
        mine.export(tmp_path / "mine.jsonl", session_ids=["mine-0", "evil-ci-0"])
    assert not (tmp_path / "mine.jsonl").exists()


def test_a_scope_without_sessions_has_nothing_to_export(store: EventStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no session"):
        store.scoped(**ACME).export(tmp_path / "mine.jsonl")


# Names that are made to confuse

E_ACUTE = "\N{LATIN SMALL LETTER E WITH ACUTE}"
CONFUSING = [
    "acme",
    "ACME",
    "acme ",
    " acme",
    "\N{CYRILLIC SMALL LETTER A}cme",
    "acme\N{ZERO WIDTH SPACE}",
    "acme\N{RIGHT-TO-LEFT OVERRIDE}",
    "'acme'",
    '"acme"',
    "acme'--",
    "acme' OR '1'='1",
    "%",
    "_cme",
    "*",
    "../acme",
    "acme/../acme",
    "acme\\",
    ":tenant",
    "NULL",
    E_ACUTE,
    unicodedata.normalize("NFD", E_ACUTE),
    "a" * 512,
    "a" * 511 + "b",
    "\N{PILE OF POO}" * 128,
]


@pytest.mark.parametrize("field", ["tenant", "owner"])
def test_tenants_and_owners_that_look_alike_see_each_their_own(store: EventStore, field: str) -> None:
    scopes = [store.scoped(**{**ACME, field: name}) for name in CONFUSING]
    for number, scope in enumerate(scopes):
        scope.create_session(f"s{number}")
        scope.append(f"s{number}", "t", number)
    for number, scope in enumerate(scopes):
        assert [session.session_id for session in scope.list_sessions().sessions] == [f"s{number}"]
        assert [event.payload for event in scope.read_all()] == [number]
        assert [event.payload for event in scope.follow(timeout=0)] == [number]
        with pytest.raises(SessionNotFound):
            scope.read(f"s{(number + 1) % len(scopes)}")


def test_sessions_that_look_alike_are_each_their_own(store: EventStore) -> None:
    mine, theirs = store.scoped(**ACME), store.scoped(**OTHERS[1])
    for number, name in enumerate(CONFUSING):
        (mine, theirs)[number % 2].create_session(name)
    for number, name in enumerate(CONFUSING):
        own, other = (mine, theirs) if number % 2 == 0 else (theirs, mine)
        assert own.append(name, "t", number).seq == 1
        with pytest.raises(SessionNotFound):
            other.append(name, "t", number)
        with pytest.raises(SessionExists):
            other.ensure_session(name)


@pytest.mark.parametrize("wrong", [None, 1, b"mine-0", "", "a" * 513, "\ud800", "mine-0\0", ["mine-0"]])
def test_what_can_be_no_id_is_no_session(mine: Any, wrong: Any) -> None:
    with pytest.raises(SessionNotFound):
        mine.get_session(wrong)


# All of it at once


def steps_of(chance: random.Random, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Calls of one tenant, some of them in vain."""
    names = [f"run-{number}" for number in range(4)] + ["theirs", "nobody"]
    made: list[tuple[str, dict[str, Any]]] = []
    for _ in range(count):
        name = chance.choice(names)
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("append", {"session_id": name, "type": "t", "payload": chance.random(), "event_id": chance.choice("abc")}),
            ("append", {"session_id": name, "type": "t", "payload": 1, "expected_seq": chance.randrange(4)}),
            ("append_many", {"session_id": name, "events": [NewEvent(type="u", payload=n) for n in range(3)]}),
            ("create_session", {"session_id": chance.choice(names[:4])}),
            ("set_status", {"session_id": name, "status": chance.choice(["running", "failed", "idle"])}),
            ("update_session", {"session_id": name, "max_events": chance.randrange(1, 6), "metadata": {"n": name}}),
            ("update_session", {"session_id": name, "hold": chance.random() < 0.3}),
            ("delete_session", {"session_id": name}),
            ("get_session", {"session_id": name}),
            ("read", {"session_id": name, "after_seq": chance.randrange(8)}),
            ("list_sessions", {"limit": 1000}),
            ("read_all", {}),
            ("plan_prune", {"policy": RetentionPolicy(max_bytes=chance.randrange(1, 40))}),
            ("prune", {}),
        ]
        made.append(chance.choice(kinds))
    return made


TIMES = re.compile(r"datetime.datetime\(.*?\)|[\d-]{10}[T ][\d:.+]+|position=\d+|duration_s=[\d.e-]+")


def outcome(store: ScopedStore, name: str, options: dict[str, Any]) -> str:
    """What came of a call, without what says where in the store and when."""
    try:
        found = getattr(store, name)(**options)
    except AegisStoreError as error:
        return TIMES.sub("…", str(error))
    if name == "plan_prune":
        found = [(each.session_id, each.first_seq, each.keep_from_seq, each.bytes) for each in found.truncations]
    if name == "list_sessions":
        found = found.sessions
    return TIMES.sub("…", repr(found))


def test_a_tenant_in_a_crowd_meets_what_he_meets_alone(tmp_path: Path, template: Path, chance: random.Random) -> None:
    shutil.copyfile(template, tmp_path / "alone.db")
    shutil.copyfile(template, tmp_path / "crowd.db")
    with (
        EventStore.open(tmp_path / "alone.db", durability="process") as alone,
        EventStore.open(tmp_path / "crowd.db", durability="process") as crowded,
    ):
        crowded.create_session("theirs", **OTHERS[1], max_events=2)
        for number, (name, options) in enumerate(steps_of(chance, 300)):
            crowded.append("theirs", "t", number)
            if number % 20 == 0:
                crowded.create_session(f"theirs-{number}", **OTHERS[0], status="failed")
                crowded.append(f"theirs-{number}", "t", number)
            expected = outcome(alone.scoped(**ACME), name, options)
            assert outcome(crowded.scoped(**ACME), name, options) == expected, (number, name, options)
