"""Whatever is done to a store, in whatever order, it answers as a list of events would (see `model`).

Two `EventStore` objects on one file are used in turn, and a second store takes what the first one exports. Sync and async are
driven by the same steps.
"""

import asyncio
import math
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from aegis_store import (
    UNCHANGED,
    UNLIMITED,
    AegisStoreError,
    AsyncEventStore,
    EventStore,
    InvalidEvent,
    InvalidInput,
    InvalidPolicy,
    InvalidSession,
    NewEvent,
    PrunePlan,
    PruneRun,
    ReadOnlyStore,
    RetentionPolicy,
    SessionNotFound,
    Status,
    driver,
)
from aegis_store.events import Json, Unlimited, to_us
from aegis_store.retention import delete, find
from tests.properties.model import TERMINAL, Exported, ModelPlan, ModelStore, Run

# Few examples of a seed, since after ten Hypothesis mostly makes slight changes to those that it has tried.
SETTINGS = settings(
    max_examples=9, stateful_step_count=100, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)

names = st.sampled_from("abcabcabcd")
tenants = st.sampled_from(["default", "default", "default", "acme"])
statuses = st.sampled_from([*Status, *TERMINAL, Status.RUNNING])
caps: st.SearchStrategy[int | Unlimited | None] = st.sampled_from([None, None, UNLIMITED, 1, 2, 4, 8])
metadatas = st.sampled_from([{}, {"model": "sonnet"}, {"a": {"b": [1, None, "é"]}}])
jumps = st.sampled_from([SECOND, 60 * SECOND, DAY, -SECOND, -60 * SECOND, -DAY])
moments = st.sampled_from(
    [None, None, datetime(2020, 2, 29, 12, tzinfo=timezone(5 * SECOND * 60)), datetime(1, 1, 1, tzinfo=UTC)]
)
ids = st.sampled_from([None, None, None, None, "e1", "e2", "e3", "e4"])
types = st.sampled_from(["hook", "step"])
filters = st.sampled_from([None, None, ["hook"], ["step", "none such"]])
gaps = st.sampled_from(["raise", "raise", "skip"])
limits = st.sampled_from([1, 2, 5, 100, 1000])
offsets = st.sampled_from([None, None, None, 0, 0, 1, -1])
PAYLOADS: list[Json] = [
    None,
    True,
    1,
    -0.0,
    1e308,
    10**40,
    "",
    "é😀\0",
    "\ud83d",
    [],
    {},
    {"a": [1, {"b": None}]},
    "x" * 40,
    "x" * 80,
]
payloads = st.sampled_from(PAYLOADS)
refs = st.sampled_from([None, None, "s3://bucket/key"])
new_events = st.builds(NewEvent, type=types, payload=payloads, event_id=ids, run_id=refs, occurred_at=moments)

spans = st.sampled_from([None, None, SECOND, 60 * SECOND, DAY])
graces = st.sampled_from([0 * SECOND, SECOND, DAY, DAY])
event_limits = st.sampled_from([60, 1024, 1024 * 1024])
policies = st.builds(
    RetentionPolicy,
    max_events=st.sampled_from([2, 5, 10, 1000, UNLIMITED]),
    max_bytes=st.sampled_from([None, None, 1, 50, 200]),
    max_age=spans,
    max_event_bytes=event_limits,
    terminal_grace=graces,
    forget_sessions_after=spans,
    mode=st.sampled_from(["enforce", "enforce", "warn"]),
)
# A budget beside `max_age` is left to `test_retention_laws`: taking for the one uncovers what is due by the other.
budgets = st.builds(
    RetentionPolicy,
    max_events=st.sampled_from([10, UNLIMITED]),
    max_bytes=st.sampled_from([None, 100]),
    max_event_bytes=event_limits,
    terminal_grace=st.sampled_from([0 * SECOND, 100 * DAY, 100 * DAY]),
    max_total_bytes=st.sampled_from([1, 100, 300]),
    forget_sessions_after=spans,
)

CANNOT_BE: list[tuple[type[AegisStoreError], Callable[[Any, str], Any]]] = [
    (InvalidEvent, lambda store, name: store.append(name, "t", {"a": [math.nan]})),
    (InvalidEvent, lambda store, name: store.append(name, "t", (1, 2))),
    (InvalidEvent, lambda store, name: store.append(name, "t", {1: "key"})),
    (InvalidEvent, lambda store, name: store.append(name, "t", "\ud83d\ude00")),
    (InvalidEvent, lambda store, name: store.append(name, "line\nend", None)),
    (InvalidEvent, lambda store, name: store.append(name, "t", None, event_id="")),
    (InvalidEvent, lambda store, name: store.append(name, "t", None, expected_seq=-1)),
    (InvalidEvent, lambda store, name: store.append(name, "t", None, occurred_at=datetime(2026, 1, 1))),
    (
        InvalidEvent,
        lambda store, name: store.append_many(name, [NewEvent(type="t", payload=1), NewEvent(type="t", payload=b"")]),
    ),
    (SessionNotFound, lambda store, name: store.append("none such", "t", None)),
    (SessionNotFound, lambda store, name: store.get_session("")),
    (InvalidSession, lambda store, name: store.create_session("")),
    (InvalidSession, lambda store, name: store.create_session("e", metadata={"a": {1}})),
    (InvalidPolicy, lambda store, name: store.create_session("e", max_events=0)),
    (InvalidSession, lambda store, name: store.set_status(name, "done")),
    (InvalidSession, lambda store, name: store.update_session(name, hold=1)),
    (InvalidPolicy, lambda store, name: store.update_session(name, max_events=True)),
    (InvalidInput, lambda store, name: store.list_sessions(cursor="none such")),
    (InvalidInput, lambda store, name: store.read(name, limit=1001)),
    (InvalidInput, lambda store, name: store.read_all(after_position=-1)),
    (InvalidInput, lambda store, name: list(store.follow(name, after=0, last=1))),
    (InvalidInput, lambda store, name: store.plan_prune(now=datetime(2026, 1, 1))),
    (InvalidInput, lambda store, name: store.reclaim(free_ratio=2)),
]


class Clock:
    """The clock of all who write and plan, set by hand: it may go back."""

    def __init__(self) -> None:
        self.time = NOON

    def now(self, _: object = None) -> datetime:
        return self.time

    def time_ns(self) -> int:
        return to_us(self.time) * 1000


class Awaited:
    """An `AsyncEventStore` with the methods of `EventStore`: each runs the event loop until it is answered."""

    def __init__(self, runner: asyncio.Runner, store: AsyncEventStore) -> None:
        self._runner = runner
        self._store = store

    def follow(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        async def collected(events: AsyncIterator[Any]) -> list[Any]:
            return [event async for event in events]

        return iter(self._runner.run(collected(self._store.follow(*args, **kwargs))))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._runner.run(getattr(self._store, name)(*args, **kwargs))

        return call


Open = Callable[..., Any]
"""Opens a store as `EventStore.open` does."""


@contextmanager
def opener(kind: str) -> Iterator[Open]:
    if kind == "sync":
        yield EventStore.open
        return
    with asyncio.Runner() as runner:

        async def opened(path: Path, options: dict[str, Any]) -> AsyncEventStore:
            return await AsyncEventStore.open(path, **options)

        yield lambda path, **options: Awaited(runner, runner.run(opened(path, options)))


def outcome(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What it returns, or the error that it raises with its fields, its words aside."""
    try:
        return call(*args, **kwargs)
    except AegisStoreError as error:
        return type(error), {name: value for name, value in vars(error).items() if name not in ("what", "hint")}


class StoreMachine(RuleBasedStateMachine):
    """The store and the list, side by side."""

    steps = 0

    def __init__(self, open_store: Open, template: Path, directory: Path, clock: Clock) -> None:
        super().__init__()
        self.open_store = open_store
        self.clock = clock
        self.clock.time = NOON
        self.directory = directory / "machine"
        self.directory.mkdir()
        self.path, self.copy_path = self.directory / "aegis.db", self.directory / "copy.db"
        for path in (self.path, self.copy_path):
            shutil.copyfile(template, path)
        self.model, self.copy_model = ModelStore(clock.now), ModelStore(clock.now)
        self.exports: list[tuple[Path, Exported]] = []
        self.copy: Any = None
        self._open_pair()

    def _opened(self, path: Path, **options: Any) -> Any:
        defaults = {"durability": "process", "maintain_every": None, "prune_on_open": False}
        return self.open_store(path, **{**defaults, **options})

    def _open_pair(self, **options: Any) -> None:
        self.pair = [self._opened(self.path, **options), self._opened(self.path)]
        self.shell = driver.dbapi.connect(str(self.path), isolation_level=None)

    def _close_pair(self) -> None:
        self.shell.close()
        for store in self.pair:
            store.close()

    def teardown(self) -> None:
        try:
            self.assert_same_content(self.store, self.model)
            if self.copy is not None:
                self.assert_same_content(self.copy, self.copy_model)
        finally:
            self._close_pair()
            if self.copy is not None:
                self.copy.close()
            shutil.rmtree(self.directory)

    @property
    def store(self) -> Any:
        """The two that are open take turns."""
        self.pair.reverse()
        return self.pair[0]

    def both(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call it on the store and on the model: both must give the same, or raise the same."""
        self.clock.time += 1000 * MICROSECOND
        expected = outcome(getattr(self.model, method), *args, **kwargs)
        found = outcome(getattr(self.store, method), *args, **kwargs)
        assert found == expected
        return found

    # Sessions

    @initialize(policy=st.one_of(policies, budgets), cap=caps)
    def begin(self, policy: RetentionPolicy, cap: int | Unlimited | None) -> None:
        self.set_policy(policy)
        for name in "abc":
            self.both("create_session", name, max_events=cap)

    @rule(name=names, tenant=tenants, status=statuses, metadata=metadatas, cap=caps)
    def create(self, name: str, tenant: str, status: str, metadata: Json, cap: int | Unlimited | None) -> None:
        self.both("create_session", name, tenant=tenant, status=status, metadata=metadata, max_events=cap)

    @rule(status=statuses)
    def create_under_a_name_of_its_own(self, status: str) -> None:
        if len(self.model.sessions) < 8:
            made = self.store.create_session(status=status)
            assert made == self.model.create_session(made.session_id, status=status)

    @rule(name=names, tenant=tenants, cap=caps)
    def ensure(self, name: str, tenant: str, cap: int | Unlimited | None) -> None:
        self.both("ensure_session", name, tenant=tenant, max_events=cap)

    @rule(name=names)
    def get(self, name: str) -> None:
        self.both("get_session", name)

    @rule(name=names, status=statuses)
    def set_status(self, name: str, status: str) -> None:
        self.both("set_status", name, status)

    @rule(
        name=names,
        metadata=st.one_of(st.just(UNCHANGED), metadatas),
        cap=st.one_of(st.just(UNCHANGED), caps),
        hold=st.sampled_from([UNCHANGED, UNCHANGED, True, False, False]),
    )
    def update(self, name: str, metadata: Any, cap: Any, hold: Any) -> None:
        self.both("update_session", name, metadata=metadata, max_events=cap, hold=hold)

    @rule(name=names, again=st.sampled_from([True, True, False]))
    def delete(self, name: str, again: bool) -> None:
        self.both("delete_session", name)
        if again:
            self.both("create_session", name)

    @rule(
        limit=st.sampled_from([3, 1000, 1000]),
        wanted=st.sampled_from([None, None, ["running"], ["closed", "failed", "idle"]]),
        after=st.booleans(),
    )
    def list_sessions(self, limit: int, wanted: list[str] | None, after: bool) -> None:
        since = self.clock.time - SECOND if after else None
        self.assert_lists(self.store, self.model, limit=limit, statuses=wanted, updated_after=since)

    def assert_lists(self, store: Any, model: ModelStore, *, limit: int, **options: Any) -> None:
        """Page by page each session comes once, newest update first; of those updated at the same time any."""
        wanted, since = options["statuses"], options["updated_after"]
        expected = [
            session.record()
            for session in model.sessions.values()
            if (wanted is None or session.status in wanted) and (since is None or session.updated_at > since)
        ]
        listed, cursor = [], None
        while True:
            page = store.list_sessions(limit=limit, cursor=cursor, **options)
            listed += page.sessions
            cursor = page.cursor
            if cursor is None:
                break
            assert len(page.sessions) == limit
        assert sorted(listed, key=lambda s: s.session_id) == sorted(expected, key=lambda s: s.session_id)
        updates = [session.updated_at for session in listed]
        assert updates == sorted(updates, reverse=True)

    # Events

    def _expected_seq(self, name: str, offset: int | None) -> int | None:
        session = self.model.sessions.get(name)
        return None if offset is None or session is None else max(session.last_seq + offset, 0)

    @rule(name=names, new=new_events, ref=refs, offset=offsets)
    def append(self, name: str, new: NewEvent, ref: str | None, offset: int | None) -> None:
        expected = self._expected_seq(name, offset)
        more = {"event_id": new.event_id, "run_id": new.run_id, "occurred_at": new.occurred_at, "payload_ref": ref}
        self.both("append", name, new.type, new.payload, expected_seq=expected, **more)

    @rule(
        name=names, payload=payloads, by=st.lists(st.sampled_from([MICROSECOND, SECOND, -SECOND, DAY]), min_size=1, max_size=6)
    )
    def append_some(self, name: str, payload: Json, by: list[timedelta]) -> None:
        """While time passes, or seems to go back."""
        for each in by:
            self.clock.time += each
            self.both("append", name, "step", payload)

    @rule(name=names, back=st.integers(0, 5), offset=offsets)
    def append_again(self, name: str, back: int, offset: int | None) -> None:
        """A retry, of events that are retained: of one, or of several together."""
        session = self.model.sessions.get(name)
        known = [] if session is None else [event for event in session.events if event.event_id is not None]
        expected = self._expected_seq(name, offset)
        for event in known[-1 - back : len(known) - back]:
            more = {"event_id": event.event_id, "run_id": event.run_id, "payload_ref": event.payload_ref}
            assert self.both("append", name, event.type, event.payload, expected_seq=expected, **more) == event
        ours = ("type", "payload", "event_id", "run_id", "payload_ref")
        batch = [NewEvent(**{field: getattr(event, field) for field in ours}) for event in known[-3:]]
        if batch:
            assert self.both("append_many", name, batch, expected_seq=expected) == known[-3:]

    @rule(name=names, batch=st.lists(new_events, max_size=5), offset=offsets)
    def append_many(self, name: str, batch: list[NewEvent], offset: int | None) -> None:
        self.both("append_many", name, batch, expected_seq=self._expected_seq(name, offset))

    @rule(name=names, case=st.integers(0, len(CANNOT_BE) - 1))
    def ask_for_what_cannot_be(self, name: str, case: int) -> None:
        if name in self.model.sessions:
            error, call = CANNOT_BE[case]
            with pytest.raises(error):
                call(self.store, name)

    @rule(name=names, back=st.integers(-1, 12), limit=limits, wanted=filters, on_gap=gaps)
    def read(self, name: str, back: int, limit: int, wanted: list[str] | None, on_gap: str) -> None:
        session = self.model.sessions.get(name)
        after = None if back == 12 or session is None else max(session.last_seq - back, 0)
        self.both("read", name, after_seq=after, limit=limit, types=wanted, on_gap=on_gap)

    @rule(back=st.integers(-1, 40), limit=limits, on_gap=gaps)
    def read_all(self, back: int, limit: int, on_gap: str) -> None:
        after = None if back == 40 else max(self.model.last_position - back, 0)
        self.both("read_all", after_position=after, limit=limit, on_gap=on_gap)

    @rule(
        name=st.one_of(st.none(), names),
        start=st.sampled_from(["oldest", "last", "after"]),
        number=st.integers(-1, 12),
        timeout=st.sampled_from([0, 0, 0, 0, 0.001]),
        wanted=filters,
        on_gap=gaps,
    )
    def follow(self, name: str | None, start: str, number: int, timeout: float, wanted: list[str] | None, on_gap: str) -> None:
        session = None if name is None else self.model.sessions.get(name)
        end = self.model.last_position if session is None else session.last_seq
        begin = {"after": max(end - number, 0)} if start == "after" else {"last": max(number, 0)} if start == "last" else {}
        options = {**begin, "types": None if name is None else wanted, "on_gap": on_gap}
        expected = outcome(self.model.follow, name, **options)
        assert outcome(lambda: list(self.store.follow(name, timeout=timeout, **options))) == expected

    # Retention

    @rule(by=jumps)
    def let_the_clock_jump(self, by: timedelta) -> None:
        self.clock.time += by

    @rule(policy=st.one_of(policies, budgets))
    def set_policy(self, policy: RetentionPolicy) -> None:
        self.both("plan_policy", policy)
        self.both("set_retention_policy", policy)

    def _planned(self, now: datetime) -> tuple[PrunePlan, ModelPlan]:
        found, expected = self.store.plan_prune(now=now), self.model.plan_prune(now=now)
        parts = {
            (t.session_id, t.status, t.first_seq, t.keep_from_seq, t.events, t.bytes, t.reason, t.forgets)
            for t in found.truncations
        }
        assert parts == {
            (p.session.session_id, p.status, p.first_seq, p.first_seq + p.events, p.events, p.bytes, p.reason, p.forgets)
            for p in expected.parts
        }
        return found, expected

    def _carried_out(self, plan: PrunePlan, expected: ModelPlan) -> None:
        self.clock.time += 1000 * MICROSECOND
        report, run = self.store.prune(plan), self.model.prune(expected)
        counts = (report.events_removed, report.bytes_removed, report.sessions_pruned, report.sessions_forgotten)
        assert counts == (run.events, run.bytes, run.sessions, run.sessions_forgotten)
        assert report.events_by_reason == run.by_reason

    @rule(
        ahead=st.sampled_from([0 * SECOND, 0 * SECOND, 60 * SECOND, DAY, -DAY]),
        which=st.integers(0, 3),
        meanwhile=st.sampled_from(["append", "append", "status", "hold", "policy", "delete"]),
        policy=policies,
    )
    def prune_by_a_plan_of_before(self, ahead: timedelta, which: int, meanwhile: str, policy: RetentionPolicy) -> None:
        """To one of the sessions that lose something, something else happens before it is carried out."""
        plan, expected = self._planned(self.clock.time + ahead)
        if not expected.parts or expected.takes_for_the_budget:  # of that the model knows only what becomes of it at once
            return
        name = expected.parts[which % len(expected.parts)].session.session_id
        if meanwhile == "append":
            self.both("append", name, "late", None)
        elif meanwhile == "status":
            self.both("set_status", name, "running")
        elif meanwhile == "hold":
            self.both("update_session", name, hold=True)
        elif meanwhile == "policy":
            self.set_policy(policy)
        else:
            self.delete(name, again=True)
        self._carried_out(plan, expected)

    @rule(ahead=st.sampled_from([0 * SECOND, 60 * SECOND, DAY]))
    def prune(self, ahead: timedelta) -> None:
        now = self.clock.time + ahead
        self._carried_out(*self._planned(now))
        again, _ = self._planned(now)
        assert again.truncations == ()

    @rule(runs=st.integers(1, 3))
    def overview(self, runs: int) -> None:
        self.assert_overview(self.store, self.model, runs=runs)

    def assert_overview(self, store: Any, model: ModelStore, *, runs: int) -> None:
        stats, expected = store.stats(), model.stats()
        assert {name: getattr(stats, name) for name in expected} == expected
        health, budget = store.health(), model.policy.max_total_bytes
        assert health.retained_bytes == (None if budget is None else expected["retained_bytes"])
        assert health.ok == (budget is None or expected["retained_bytes"] <= budget)
        assert [row_of(run) for run in store.prune_history(limit=runs)] == [row_of(run) for run in model.runs[: -1 - runs : -1]]

    @rule(ratio=st.sampled_from([0, 0.5]))
    def reclaim(self, ratio: float) -> None:
        report = self.store.reclaim(free_ratio=ratio)
        assert report.complete
        assert report.free_bytes_after <= ratio * report.bytes_after

    # Files

    @rule(
        chosen=st.sampled_from([None, None, ["a", "b"], ["d", "a", "d"]]),
        suffix=st.sampled_from(["jsonl", "jsonl.gz", "jsonl.zst"]),
    )
    def export(self, chosen: list[str] | None, suffix: str) -> None:
        file = self.directory / f"{len(self.exports)}.{suffix}"
        expected = outcome(self.model.export, chosen)
        found = outcome(self.store.export, file, session_ids=chosen)
        if not isinstance(expected, Exported):
            assert found == expected
            return
        assert (found.sessions, found.events) == (len(expected.sessions), len(expected.events))
        self.exports.append((file, expected))

    @precondition(lambda self: self.exports)
    @rule(back=st.integers(0, 2), hold=st.sampled_from([False, False, True]))
    def import_back(self, back: int, hold: bool) -> None:
        """What the store has written at some time, into itself."""
        self._import(self.store, self.model, back, hold)

    @precondition(lambda self: self.exports)
    @rule(back=st.sampled_from([0, 0, 0, 1]), hold=st.sampled_from([False, False, True]))
    def import_into_the_copy(self, back: int, hold: bool) -> None:
        if self.copy is None:
            self.copy = self._opened(self.copy_path)
        self._import(self.copy, self.copy_model, back, hold)

    def _import(self, store: Any, model: ModelStore, back: int, hold: bool) -> None:
        file, exported = self.exports[-1 - back % len(self.exports)]
        report, expected = store.import_lines(file, hold=hold), model.import_lines(exported, hold=hold)
        refused = [refusal.session_id for refusal in report.refused]
        assert {name: getattr(report, name) for name in expected} | {"refused": refused} == expected

    # Opening and closing

    @rule(which=st.sampled_from(["one", "one", "all"]), prunes=st.booleans())
    def reopen(self, which: str, prunes: bool) -> None:
        """One, beside the other, which stays open; or all, of which the last leaves a single file."""
        if which == "one":
            self.pair.pop().close()
            self.pair.append(self._opened(self.path, prune_on_open=prunes))
        else:
            self._close_pair()
            assert not list(self.directory.glob("aegis.db-*"))
            self._open_pair(prune_on_open=prunes)
        if prunes:
            self.model.open()

    @rule(name=names, seldom=st.integers(0, 2))
    def read_only(self, name: str, seldom: int) -> None:
        if seldom == 2:
            with closing(self._opened(self.path, read_only=True)) as reader:
                assert outcome(reader.read, name) == outcome(self.model.read, name)
                with pytest.raises(ReadOnlyStore):
                    reader.append(name, "t", None)

    # What holds at every moment

    @invariant()
    def the_file_holds_what_the_list_does(self) -> None:
        StoreMachine.steps += 1
        retained = "SELECT position, session_id, seq FROM event JOIN session AS s ON s.id = event.session ORDER BY position"
        assert self.shell.execute(retained).fetchall() == [(e.position, e.session_id, e.seq) for e in self.model.events()]
        ranges = self.shell.execute("SELECT session_id, first_seq, last_seq FROM session ORDER BY id").fetchall()
        assert ranges == [(name, session.first_seq, session.last_seq) for name, session in self.model.sessions.items()]

    def assert_same_content(self, store: Any, model: ModelStore) -> None:
        """All that can be asked, once more."""
        self.assert_lists(store, model, limit=1000, statuses=None, updated_after=None)
        for name in model.sessions:
            found, expected = store.read(name, limit=1000), model.read(name, limit=1000)
            assert found == expected
            assert repr(found.events) == repr(expected.events)  # type for type: True is not 1
        assert store.read_all(limit=1000) == model.read_all(limit=1000)
        assert store.retention_policy() == model.policy
        self.assert_overview(store, model, runs=1000)


def row_of(run: PruneRun | Run) -> tuple[Any, ...]:
    """A row of the history as far as it does not depend on how fast the machine is."""
    when = (run.started_at, run.now, run.trigger, run.outcome)
    return *when, run.events, run.bytes, run.sessions, run.sessions_forgotten, run.by_reason


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In the place of every clock that the store looks at to write a time or to plan by it."""
    hand, checked_now = Clock(), find.checked_now
    monkeypatch.setattr(time, "time_ns", hand.time_ns)
    monkeypatch.setattr(find, "checked_now", lambda now: checked_now(hand.time if now is None else now))
    monkeypatch.setattr(delete, "datetime", hand)
    for module in ("prune", "limits"):
        monkeypatch.setattr(f"aegis_store.retention.{module}.let_writers_through", lambda _: None)
    return hand


def in_order(kind: str, first: int, number: int) -> list[str]:
    return [f"{kind} {each}" for each in range(first, first + number)]


def by_chance(number: int) -> list[str]:
    return [f"chance {random.SystemRandom().randrange(2**32)}" for _ in range(number)]


@pytest.mark.parametrize(
    "seeds_of",
    [
        pytest.param(lambda kind: in_order(kind, 0, 1), id="short"),
        pytest.param(lambda kind: in_order(kind, 1, 5), id="long"),
        pytest.param(lambda _: by_chance(56), id="torture", marks=[pytest.mark.torture, pytest.mark.timeout(3600)]),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_store_is_what_a_list_would_be(
    kind: str, seeds_of: Callable[[str], list[str]], template: Path, tmp_path: Path, clock: Clock
) -> None:
    """Some 900 steps a seed: 10,000 by default, short and long together, the same ones each time; 100,000 under torture."""
    with opener(kind) as open_store:
        for each in seeds_of(kind):
            print("seed", each)  # pytest shows it when the test fails
            machine = seed(each)(lambda: StoreMachine(open_store, template, tmp_path, clock))
            run_state_machine_as_test(machine, settings=SETTINGS)  # type: ignore[arg-type]  # what makes one will do
