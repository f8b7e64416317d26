"""The laws of retention: what holds of every policy, every history and every clock, and that the store keeps to it."""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aegis_store import (
    UNLIMITED,
    EventStore,
    EventsTruncated,
    InvalidSession,
    NewEvent,
    PrunePlan,
    RetentionPolicy,
    Status,
    driver,
)
from aegis_store.events import Json, Unlimited, from_us, to_us
from aegis_store.retention.history import StoredHistory
from aegis_store.retention.policy import MaxAge, MaxBytes, MaxEvents, SessionState
from aegis_store.retention.truncate import settle
from aegis_store.schema import session as session_table

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
TERMINAL = ("closed", "completed", "failed")


class Clock:
    """The clock of the writers, set by hand: it may go back."""

    def __init__(self) -> None:
        self.us = to_us(NOON)

    def time_ns(self) -> int:
        return self.us * 1000


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    hand = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", hand.time_ns)
        yield hand


def payload_of(size: int) -> Json:
    """A payload that takes so many bytes as JSON."""
    return 7 if size == 1 else "x" * (size - 2)


# The laws of a policy, without a store

PURE = settings(deadline=None, max_examples=50)


class Listed:
    """A history that is a list: the meaning of what a limit may ask, event by event."""

    def __init__(self, first_seq: int, events: Sequence[tuple[datetime, int]]) -> None:
        self.events = dict(enumerate(events, first_seq))
        self.end = first_seq + len(events)

    def since(self, moment: datetime, from_seq: int) -> int:
        return next((seq for seq, (at, _) in self.events.items() if seq >= from_seq and at >= moment), self.end)

    def within(self, payload_bytes: int) -> int:
        return next((seq for seq in self.events if self.bytes_from(seq) <= payload_bytes), self.end)

    def bytes_from(self, seq: int) -> int:
        return sum(size for at, (_, size) in self.events.items() if at >= seq)


@st.composite
def states(draw: st.DrawFn) -> SessionState:
    first_seq = draw(st.integers(1, 1000))
    events = draw(st.lists(st.tuples(moments, st.integers(1, 20)), max_size=12))
    status = draw(st.sampled_from(list(Status)))
    return SessionState(
        status=status,
        hold=draw(st.sampled_from([False, False, False, True])),
        first_seq=first_seq,
        last_seq=first_seq + len(events) - 1,
        ended_at=draw(moments) if status.is_terminal else None,
        history=Listed(first_seq, events),
        is_deleted=draw(st.sampled_from([False, False, False, True])),
    )


moments = st.integers(-30, 30).map(lambda seconds: NOON + seconds * SECOND)
spans = st.integers(1, 40).map(lambda seconds: seconds * SECOND)
policies = st.builds(
    RetentionPolicy,
    max_events=st.one_of(st.integers(1, 15), st.just(UNLIMITED)),
    max_bytes=st.one_of(st.none(), st.integers(1, 120)),
    max_age=st.one_of(st.none(), spans),
    terminal_grace=st.one_of(st.just(timedelta(0)), spans),
    max_total_bytes=st.one_of(st.none(), st.integers(1, 500)),
    forget_sessions_after=st.one_of(st.none(), st.just(timedelta(0)), spans),
)


def kept_from(policy: RetentionPolicy, state: SessionState, now: datetime) -> int:
    """The decision as a number: all stay from `first_seq` on."""
    decision = policy.keep_from(state, now)
    return state.first_seq if decision is None else decision.keep_from_seq


def in_turn(state: SessionState) -> SessionState:
    """The same session, standing, not on hold."""
    return state._replace(hold=False, is_deleted=False)


@PURE
@given(policies, states(), moments)
def test_a_decision_lies_behind_the_first_and_not_behind_the_next_event(
    policy: RetentionPolicy, state: SessionState, now: datetime
) -> None:
    decision = policy.keep_from(state, now)
    assert decision is None or state.first_seq < decision.keep_from_seq <= state.last_seq + 1


@PURE
@given(policies, states(), moments)
def test_the_same_input_gives_the_same_decision(policy: RetentionPolicy, state: SessionState, now: datetime) -> None:
    assert policy.keep_from(state, now) == policy.keep_from(state, now)


def combined(policy: RetentionPolicy, state: SessionState, now: datetime) -> tuple[int, set[str]]:
    """The highest answer, asked again of what that leaves; and the knobs that may be its reason."""
    reasons: set[str] = set()
    while True:
        answers = {name: limit.keep_from(state, now) for name, limit in policy.limits().items()}
        highest = max(answers.values())
        if highest <= state.first_seq:
            return state.first_seq, reasons
        reasons = {name for name, answer in answers.items() if answer == highest}
        state = state._replace(first_seq=highest)


@PURE
@given(policies, states().map(in_turn), moments)
def test_of_several_limits_the_highest_seq_counts(policy: RetentionPolicy, state: SessionState, now: datetime) -> None:
    if state.first_seq <= state.last_seq:
        answers = [limit.keep_from(state, now) for limit in policy.limits().values()]
        assert kept_from(policy, state, now) == combined(policy, state, now)[0] >= max(answers)


@PURE
@given(policies, states().map(in_turn), moments)
def test_of_what_a_decision_leaves_nothing_goes_at_the_same_moment(
    policy: RetentionPolicy, state: SessionState, now: datetime
) -> None:
    decision = policy.keep_from(state, now)
    if decision is not None:
        assert policy.keep_from(state._replace(first_seq=decision.keep_from_seq), now) is None


@PURE
@given(policies, states().map(in_turn), moments)
def test_the_reason_is_a_limit_that_gives_the_highest_seq(policy: RetentionPolicy, state: SessionState, now: datetime) -> None:
    decision = policy.keep_from(state, now)
    if decision is not None:
        assert decision.reason in combined(policy, state, now)[1]


@PURE
@given(policies, states().map(in_turn), moments)
def test_a_session_on_hold_keeps_all(policy: RetentionPolicy, state: SessionState, now: datetime) -> None:
    assert policy.keep_from(state._replace(hold=True), now) is None


@PURE
@given(policies, states(), moments)
def test_a_session_without_events_has_nothing_to_lose(policy: RetentionPolicy, state: SessionState, now: datetime) -> None:
    assert policy.keep_from(state._replace(last_seq=state.first_seq - 1), now) is None


@PURE
@given(policies, states(), moments)
def test_a_deleted_session_keeps_nothing_whatever_the_policy(
    policy: RetentionPolicy, state: SessionState, now: datetime
) -> None:
    if state.first_seq <= state.last_seq:
        assert policy.keep_from(state._replace(is_deleted=True), now) == (state.last_seq + 1, "deleted")


@PURE
@given(policies, states(), moments, moments)
def test_a_later_now_never_brings_an_event_back(
    policy: RetentionPolicy, state: SessionState, one: datetime, other: datetime
) -> None:
    assert kept_from(policy, state, min(one, other)) <= kept_from(policy, state, max(one, other))


@PURE
@given(spans, states(), moments)
def test_max_age_removes_no_event_that_is_as_old_as_that_or_newer(span: timedelta, state: SessionState, now: datetime) -> None:
    assert isinstance(state.history, Listed)
    keep = MaxAge(span).keep_from(state, now)
    assert all(at < now - span for seq, (at, _) in state.history.events.items() if seq < keep)


@PURE
@given(spans, states(), moments)
def test_max_age_removes_every_older_event_up_to_the_first_that_is_not(
    span: timedelta, state: SessionState, now: datetime
) -> None:
    assert isinstance(state.history, Listed)
    keep = MaxAge(span).keep_from(state, now)
    assert keep == state.last_seq + 1 or state.history.events[keep][0] >= now - span


@PURE
@given(st.integers(1, 200), states(), moments)
def test_max_bytes_keeps_the_largest_suffix_that_fits(payload_bytes: int, state: SessionState, now: datetime) -> None:
    assert isinstance(state.history, Listed)
    keep = MaxBytes(payload_bytes).keep_from(state, now)
    assert state.history.bytes_from(keep) <= payload_bytes
    assert keep == state.first_seq or state.history.bytes_from(keep - 1) > payload_bytes


@PURE
@given(st.integers(1, 20), states(), moments)
def test_max_events_keeps_the_newest_so_many(count: int, state: SessionState, now: datetime) -> None:
    assert state.last_seq + 1 - MaxEvents(count).keep_from(state, now) == count


@PURE
@given(states().map(in_turn), moments, st.integers(1, 60), st.integers(0, 60), spans, spans)
def test_a_wider_limit_never_removes_more(
    state: SessionState, now: datetime, size: int, more: int, span: timedelta, longer: timedelta
) -> None:
    assert MaxBytes(size + more).keep_from(state, now) <= MaxBytes(size).keep_from(state, now)
    assert MaxAge(span + longer).keep_from(state, now) <= MaxAge(span).keep_from(state, now)
    narrow, wide = RetentionPolicy(terminal_grace=span), RetentionPolicy(terminal_grace=span + longer)
    assert kept_from(wide, state, now) <= kept_from(narrow, state, now)


@PURE
@given(policies, states(), moments, moments)
def test_only_sessions_that_ended_and_are_not_on_hold_are_forgotten_and_once_due_they_stay_due(
    policy: RetentionPolicy, state: SessionState, one: datetime, other: datetime
) -> None:
    if policy.forgets(state, min(one, other)):
        assert state.ended_at is not None
        assert not state.hold
        assert policy.forgets(state, max(one, other))


@PURE
@given(st.integers(1, 10**6), st.integers(0, 2 * 10**6))
def test_a_store_within_its_budget_gives_nothing_up_and_one_over_it_comes_down_to_80_percent(budget: int, held: int) -> None:
    gives_up = RetentionPolicy(max_total_bytes=budget).over_budget(held)
    assert gives_up == (0 if held <= budget else held - budget * 8 // 10)


# The history in the store answers as the list does


@pytest.fixture(scope="module")
def shared_store(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    """One store for all examples of a test: each gets a session of its own."""
    path = tmp_path_factory.mktemp("laws") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
        store.set_retention_policy(RetentionPolicy(max_bytes=40, max_events=UNLIMITED))
        yield store


def record(store: EventStore, clock: Clock, session_id: str, events: Sequence[tuple[datetime, int]]) -> None:
    for at, size in events:
        clock.us = to_us(at)
        store.append(session_id, "t", payload_of(size))


some_events = st.lists(st.tuples(moments, st.integers(1, 20)), min_size=1, max_size=14)
rising_events = some_events.map(lambda events: sorted(events, key=lambda event: event[0]))


@given(
    events=st.one_of(some_events, rising_events),
    more=some_events,
    cap=st.one_of(st.just(UNLIMITED), st.integers(1, 12)),
    removed=st.integers(0, 20),
    settles=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_the_stored_history_answers_as_a_list_of_the_events_does(
    shared_store: EventStore,
    clock: Clock,
    events: list[tuple[datetime, int]],
    more: list[tuple[datetime, int]],
    cap: int | Unlimited,
    removed: int,
    settles: bool,
) -> None:
    name = shared_store.create_session(max_events=cap).session_id
    record(shared_store, clock, name, events)
    with shared_store._db.write() as conn:
        table = session_table.c
        row = conn.execute(session_table.select().where(table.session_id == name)).one()
        first_seq = max(row.first_seq, min(removed, row.last_seq + 1))
        conn.execute(session_table.update().where(table.id == row.id).values(first_seq=first_seq))
        if settles:
            settle(conn, row.id)
    record(shared_store, clock, name, more)
    with shared_store._db.read() as conn:
        row = conn.execute(session_table.select().where(table.session_id == name)).one()
        stored = StoredHistory(conn, row)
        listed = Listed(row.first_seq, [*events, *more][row.first_seq - 1 :])
        asked = {at + us * timedelta(microseconds=1) for at, _ in [*events, *more] for us in (-1, 0, 1)}
        for from_seq in range(row.first_seq, row.last_seq + 2):
            assert {at: stored.since(at, from_seq) for at in asked} == {at: listed.since(at, from_seq) for at in asked}
        assert [stored.within(size) for size in range(320)] == [listed.within(size) for size in range(320)]
        unsorted = [at for seq, (at, _) in listed.events.items() if seq >= row.unsorted_seq]
        assert unsorted == sorted(unsorted)
        assert row.oldest_at <= min(to_us(at) for at, _ in listed.events.values())
        assert row.oversize >= (listed.bytes_from(1) > 40)


# A model of the store, event by event


@dataclass
class Kept:
    """An event that is retained."""

    seq: int
    position: int
    at_us: int
    size: int


@dataclass
class Modelled:
    """A session as a reader of the documentation expects it to be."""

    order: int
    status: str
    ended_us: int | None
    cap: int | Unlimited | None
    last_seq: int
    hold: bool = False
    events: list[Kept] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(event.size for event in self.events)


@dataclass
class Expected:
    """What a prune leaves: how many events of each session go and why, and who is forgotten."""

    gone: dict[str, int]
    reasons: dict[str, str]
    forgotten: set[str]


def gone_by_limits(session: Modelled, policy: RetentionPolicy, now: datetime) -> dict[str, int]:
    """How many of its oldest events each knob removes, in the order of the table of knobs that a prune carries out."""
    gone = {"terminal_grace": 0}
    if session.ended_us is not None and (not policy.terminal_grace or from_us(session.ended_us) <= now - policy.terminal_grace):
        gone["terminal_grace"] = len(session.events)
    if policy.max_age is not None:
        limit = to_us(now - policy.max_age)
        gone["max_age"] = len(list(takewhile(lambda event: event.at_us < limit, session.events)))
    if policy.max_bytes is not None:
        sizes = [event.size for event in session.events]
        gone["max_bytes"] = next(count for count in range(len(sizes) + 1) if sum(sizes[count:]) <= policy.max_bytes)
    return gone


def expected_of(sessions: dict[str, Modelled], policy: RetentionPolicy, now: datetime) -> Expected:
    expected = Expected({}, {}, set())
    for name, session in sessions.items():
        by_knob = gone_by_limits(session, policy, now)
        knob = max(by_knob, key=by_knob.__getitem__)
        if by_knob[knob] and not session.hold:
            expected.gone[name], expected.reasons[name] = by_knob[knob], knob
    left = sum(event.size for name, session in sessions.items() for event in session.events[expected.gone.get(name, 0) :])
    if policy.max_total_bytes is not None and left > policy.max_total_bytes:
        target = policy.max_total_bytes * 8 // 10
        free = [(name, session) for name, session in sessions.items() if not session.hold]
        ended = sorted((s.ended_us, s.order, name) for name, s in free if s.ended_us is not None)
        queue = [(name, event) for *_, name in ended for event in sessions[name].events]
        live = [(name, event) for name, session in free if session.ended_us is None for event in session.events]
        for name, event in queue + sorted(live, key=lambda item: item[1].position):
            if left <= target:
                break
            if event.seq >= sessions[name].events[0].seq + expected.gone.get(name, 0):
                expected.gone[name], expected.reasons[name] = expected.gone.get(name, 0) + 1, "max_total_bytes"
                left -= event.size
    for name, session in sessions.items():
        after = policy.forget_sessions_after
        if after is None or session.hold or session.ended_us is None or from_us(session.ended_us) > now - after:
            continue
        if len(session.events) == expected.gone.get(name, 0):
            expected.forgotten.add(name)
    return expected


class Interrupted(Exception):
    """What a caller's progress bar may raise."""


names = st.sampled_from("abcd")
caps: st.SearchStrategy[int | Unlimited | None] = st.one_of(st.none(), st.just(UNLIMITED), st.integers(1, 8))
jumps = st.sampled_from([1, 1, 5, 60, -1, -30, 86_400, -86_400])
sizes = st.integers(1, 20)
model_spans = st.sampled_from([SECOND, 10 * SECOND, 60 * SECOND, DAY])
model_policies = st.builds(
    RetentionPolicy,
    max_events=st.one_of(st.integers(2, 12), st.just(UNLIMITED)),
    max_bytes=st.one_of(st.none(), st.integers(1, 100)),
    max_age=st.one_of(st.none(), model_spans),
    terminal_grace=st.one_of(st.just(timedelta(0)), model_spans),
    max_total_bytes=st.one_of(st.none(), st.integers(1, 250)),
    forget_sessions_after=st.one_of(st.none(), st.none(), st.just(timedelta(0)), model_spans),
)


budgets = st.builds(
    RetentionPolicy,
    max_age=st.sampled_from([None, None, DAY]),
    max_bytes=st.sampled_from([None, None, 40]),
    terminal_grace=st.just(100 * DAY),
    max_total_bytes=st.integers(1, 100),
    forget_sessions_after=st.sampled_from([None, SECOND]),
)


class RetentionModel(RuleBasedStateMachine):
    """The store and a list, side by side."""

    def __init__(self, template: Path, directory: Path, clock: Clock) -> None:
        super().__init__()
        self.path = directory / "model.db"
        shutil.copyfile(template, self.path)
        self.store = EventStore.open(self.path, durability="process", prune_on_open=False, maintain_every=None)
        self.shell = driver.dbapi.connect(str(self.path), isolation_level=None)
        self.clock = clock
        self.clock.us = to_us(NOON)
        self.policy = RetentionPolicy()
        self.sessions: dict[str, Modelled] = {}
        self.buried: dict[str, int] = {}
        self.created = 0

    def teardown(self) -> None:
        self.shell.close()
        self.store.close()
        for file in self.path.parent.iterdir():
            file.unlink()

    # What users do

    @initialize(policy=st.one_of(model_policies, budgets))
    def begin(self, policy: RetentionPolicy) -> None:
        self.set_policy(policy)

    def _standing(self, name: str) -> Modelled:
        if name not in self.sessions:
            self._create(name, "running", None)
        return self.sessions[name]

    def _create(self, name: str, status: str, cap: int | Unlimited | None) -> None:
        made = self.store.create_session(name, status=status, max_events=cap)
        self.created += 1
        ended_us = self.clock.us if status in TERMINAL else None
        self.sessions[name] = Modelled(self.created, status, ended_us, cap, self.buried.pop(name, 0))
        assert made.last_seq == self.sessions[name].last_seq

    @rule(name=names, status=st.sampled_from(["running", "closed"]), cap=caps)
    def create(self, name: str, status: str, cap: int | Unlimited | None) -> None:
        if name not in self.sessions:
            self._create(name, status, cap)

    @rule(seconds=jumps)
    def let_the_clock_jump(self, seconds: int) -> None:
        self.clock.us += seconds * 1_000_000

    @rule(name=names, events=st.lists(st.tuples(jumps, sizes), min_size=1, max_size=6))
    def append(self, name: str, events: list[tuple[int, int]]) -> None:
        session = self._standing(name)
        for seconds, size in events:
            self.clock.us += seconds * 1_000_000
            stored = self.store.append(name, "t", payload_of(size))
            session.last_seq += 1
            assert stored.seq == session.last_seq
            session.events.append(Kept(stored.seq, stored.position, self.clock.us, size))
            self._cap(session)

    @rule(name=names, batch=st.lists(sizes, min_size=3, max_size=8))
    def append_many(self, name: str, batch: list[int]) -> None:
        session = self._standing(name)
        stored = self.store.append_many(name, [NewEvent(type="t", payload=payload_of(size)) for size in batch])
        kept = [Kept(e.seq, e.position, self.clock.us, size) for e, size in zip(stored, batch, strict=True)]
        assert [event.seq for event in kept] == list(range(session.last_seq + 1, session.last_seq + 1 + len(batch)))
        session.last_seq += len(batch)
        session.events += kept
        self._cap(session)

    def _cap(self, session: Modelled) -> None:
        cap = self.policy.max_events if session.cap is None else session.cap
        if isinstance(cap, int):
            del session.events[:-cap]

    @rule(name=names, status=st.sampled_from(["running", "idle", "closed", "failed"]))
    def set_status(self, name: str, status: str) -> None:
        session = self._standing(name)
        self.store.set_status(name, status)
        if status not in TERMINAL:
            session.ended_us = None
        elif session.ended_us is None:
            session.ended_us = self.clock.us
        session.status = status

    @rule(name=names, hold=st.booleans())
    def hold(self, name: str, hold: bool) -> None:
        self._standing(name).hold = hold
        self.store.update_session(name, hold=hold)

    @rule(name=names, cap=caps)
    def set_cap(self, name: str, cap: int | Unlimited | None) -> None:
        session = self._standing(name)
        self.store.update_session(name, max_events=cap)
        session.cap = cap
        self._cap(session)

    @rule(policy=st.one_of(model_policies, budgets))
    def set_policy(self, policy: RetentionPolicy) -> None:
        self.store.set_retention_policy(policy)
        self.policy = policy
        for session in self.sessions.values():
            self._cap(session)

    @rule(name=names)
    def delete(self, name: str) -> None:
        session = self._standing(name)
        if session.hold:
            with pytest.raises(InvalidSession, match="on hold"):
                self.store.delete_session(name)
            return
        self.store.delete_session(name)
        self.buried[name] = self.sessions.pop(name).last_seq

    # Pruning

    @rule(ahead=st.sampled_from([0, 0, 1, 9, 60, 86_400, -60]))
    def prune(self, ahead: int) -> None:
        now = from_us(self.clock.us + ahead * 1_000_000)
        expected = expected_of(self.sessions, self.policy, now)
        if self._uncovers_older_events(expected, now):
            self.store.prune(self.store.plan_prune(now=now))
            self._take_over()
            assert self.store.plan_prune(now=now).truncations == ()
            return
        plan = self.store.plan_prune(now=now)
        self._compare_plan(plan, expected)
        report = self.store.prune(plan)
        assert report.events_removed == plan.events
        assert report.bytes_removed == plan.bytes
        assert report.sessions_forgotten == len(expected.forgotten)
        planned = {reason: total.events for reason, total in plan.by_reason().items() if total.events}
        # What both the budget and another limit ask for goes by whichever still asks for it when its turn comes.
        assert report.events_by_reason == planned or "max_total_bytes" in planned
        assert sum(report.events_by_reason.values()) == sum(planned.values())
        for name, count in expected.gone.items():
            del self.sessions[name].events[:count]
            if name not in expected.forgotten:
                assert self.store.get_session(name).removed_reason == expected.reasons[name]
        for name in expected.forgotten:
            self.buried[name] = self.sessions.pop(name).last_seq
        again = self.store.plan_prune(now=now)
        assert again.truncations == ()
        assert self.store.prune(again).events_removed == 0

    def _uncovers_older_events(self, expected: Expected, now: datetime) -> bool:
        """Whether a limit removes a newer event that older ones lay behind, so that these are too old at once.

        `test_limits` says what becomes of them.
        """
        after = {
            name: replace(session, events=session.events[expected.gone.get(name, 0) :])
            for name, session in self.sessions.items()
        }
        return expected_of(after, self.policy, now).gone != {}

    def _take_over(self) -> int:
        """Have the model lose the oldest events that the store has lost; how many sessions lost some."""
        standing = {session.session_id: session.first_seq for session in self.store.list_sessions().sessions}
        for name in self.sessions.keys() - standing.keys():
            self.buried[name] = self.sessions.pop(name).last_seq
        losers = 0
        for name, session in self.sessions.items():
            gone = sum(event.seq < standing[name] for event in session.events)
            losers += gone > 0
            del session.events[:gone]
        return losers

    def _compare_plan(self, plan: PrunePlan, expected: Expected) -> None:
        planned = {
            t.session_id: (t.events, t.bytes, t.reason) for t in plan.truncations if t.events and t.session_id is not None
        }
        assert planned == {
            name: (count, sum(event.size for event in self.sessions[name].events[:count]), expected.reasons[name])
            for name, count in expected.gone.items()
        }
        assert {t.session_id for t in plan.truncations if t.forgets} == expected.forgotten

    @rule(ahead=st.sampled_from([0, 60, 86_400]))
    def prune_in_vain(self, ahead: int) -> None:
        """Interrupted after its first slice: what went was to go, and the rest is as it was."""
        now = from_us(self.clock.us + ahead * 1_000_000)
        expected = expected_of(self.sessions, self.policy, now)

        def interrupt(*_: int) -> None:
            raise Interrupted

        if not expected.gone or self._uncovers_older_events(expected, now):
            return
        with pytest.raises(Interrupted):
            self.store.prune(self.store.plan_prune(now=now), on_progress=interrupt)
        losers = 0
        standing = {session.session_id: session.first_seq for session in self.store.list_sessions().sessions}
        for name in self.sessions.keys() - standing.keys():
            assert name in expected.forgotten
            self.buried[name] = self.sessions.pop(name).last_seq
        for name, session in self.sessions.items():
            first_seq = standing[name]
            gone = sum(event.seq < first_seq for event in session.events)
            assert gone <= min(3, expected.gone.get(name, 0))
            losers += gone > 0
            del session.events[:gone]
        assert losers <= 1

    # What holds at every moment

    @invariant()
    def the_store_retains_what_the_model_does(self) -> None:
        found = self.shell.execute(
            "SELECT s.session_id, e.seq, e.position, e.recorded_at, length(CAST(e.payload AS BLOB))"
            " FROM event AS e JOIN session AS s ON s.id = e.session ORDER BY s.session_id, e.seq"
        ).fetchall()
        assert found == [
            (name, event.seq, event.position, event.at_us, event.size)
            for name, session in sorted(self.sessions.items())
            for event in session.events
        ]

    @invariant()
    def the_notes_of_the_sessions_are_true(self) -> None:
        notes = "session_id, first_seq, last_seq, total_bytes, oldest_at, unsorted_seq, oversize, ended_at, hold"
        rows = self.shell.execute(f"SELECT {notes} FROM session").fetchall()
        assert {row[0] for row in rows} == set(self.sessions)
        for name, first_seq, last_seq, total_bytes, oldest_at, unsorted_seq, oversize, ended_at, hold in rows:
            session = self.sessions[name]
            assert (last_seq, ended_at, hold) == (session.last_seq, session.ended_us, session.hold)
            assert first_seq == last_seq + 1 - len(session.events)
            assert (oldest_at is None) == (not session.events)
            assert oldest_at is None or oldest_at <= min(event.at_us for event in session.events)
            times = [event.at_us for event in session.events if event.seq >= unsorted_seq]
            assert times == sorted(times)
            assert oversize >= (self.policy.max_bytes is not None and session.size > self.policy.max_bytes)
            before = self.shell.execute(
                "SELECT bytes_before FROM event WHERE session = (SELECT id FROM session WHERE session_id = ?) ORDER BY seq",
                (name,),
            ).fetchall()
            assert [total_bytes - each for (each,) in before] == [
                sum(event.size for event in session.events[index:]) for index in range(len(session.events))
            ]

    @invariant()
    def the_count_of_the_budget_is_the_sum(self) -> None:
        [(counted,)] = self.shell.execute("SELECT retained_bytes FROM store").fetchall()
        retained = sum(session.size for session in self.sessions.values())
        assert counted == (None if self.policy.max_total_bytes is None else retained)

    @invariant()
    def a_reader_is_told_of_what_it_missed(self) -> None:
        for name, session in self.sessions.items():
            if session.last_seq > len(session.events):
                with pytest.raises(EventsTruncated):
                    self.store.read(name, after_seq=session.last_seq - len(session.events) - 1)
            assert [event.seq for event in self.store.read(name).events] == [event.seq for event in session.events]


def test_the_store_does_to_the_event_what_the_documented_rules_say(
    template: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("truncate", "limits"):
        monkeypatch.setattr(f"aegis_store.retention.{module}.PRUNE_SLICE_EVENTS", 3)
    for module in ("prune", "limits"):
        monkeypatch.setattr(f"aegis_store.retention.{module}.let_writers_through", lambda _: None)
    monkeypatch.setattr("aegis_store.retention.budget.BUDGET_STEP_POSITIONS", 4)

    def machine() -> RetentionModel:
        return RetentionModel(template, tmp_path, clock)

    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # a function that makes one will do
        settings=settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)),
    )


# The budget, to the event


@pytest.fixture(scope="module")
def budget_store(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    """One store for all examples of a test: each begins by deleting the sessions of the last."""
    path = tmp_path_factory.mktemp("budget") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
        yield store


def clear(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy())
    for each in store.list_sessions(limit=1000).sessions:
        store.update_session(each.session_id, hold=False)
        store.delete_session(each.session_id)


@given(
    appends=st.lists(st.tuples(names, st.sampled_from([1, 2, 20])), min_size=5, max_size=25),
    ended=st.lists(names, unique=True, max_size=2),
    held=st.sets(names, max_size=1),
    percent=st.integers(50, 105),
    max_bytes=st.sampled_from([None, 30, 60]),
    step=st.sampled_from([1, 3, 10_000]),
)
@settings(deadline=None, max_examples=50)
def test_the_budget_takes_one_event_after_the_other_in_the_documented_order(
    budget_store: EventStore,
    clock: Clock,
    appends: list[tuple[str, int]],
    ended: list[str],
    held: set[str],
    percent: int,
    max_bytes: int | None,
    step: int,
) -> None:
    clear(budget_store)
    sessions: dict[str, Modelled] = {}
    for order, name in enumerate("abcd"):
        made = budget_store.create_session(name)
        sessions[name] = Modelled(order, "running", None, None, made.last_seq, hold=name in held)
        budget_store.update_session(name, hold=name in held)
    for name, size in appends:
        event = budget_store.append(name, "t", payload_of(size))
        sessions[name].events.append(Kept(event.seq, event.position, clock.us, size))
    for name in ended:
        clock.us += 1_000_000
        budget_store.set_status(name, "closed")
        sessions[name].ended_us = clock.us
    total = max(1, sum(size for _, size in appends) * percent // 100)
    policy = RetentionPolicy(max_total_bytes=total, max_bytes=max_bytes, terminal_grace=DAY)
    budget_store.set_retention_policy(policy)
    now = from_us(clock.us)
    expected = expected_of(sessions, policy, now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aegis_store.retention.budget.BUDGET_STEP_POSITIONS", step)
        plan = budget_store.plan_prune(now=now)
    assert {t.session_id: (t.events, t.reason) for t in plan.truncations} == {
        name: (count, expected.reasons[name]) for name, count in expected.gone.items()
    }
    budget_store.prune(plan)
    retained = {e.position for name in "abcd" for e in budget_store.read(name, limit=1000).events}
    assert retained == {e.position for name, s in sessions.items() for e in s.events[expected.gone.get(name, 0) :]}
