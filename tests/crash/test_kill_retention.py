"""kill -9 while events go: only the oldest went, all that went is accounted for, and the next prune does the rest."""

import gzip
import json
import multiprocessing
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aegis_store import UNLIMITED, EventStore, NewEvent, RetentionPolicy, SessionNotFound, driver
from tests.crash import retention_writers as writers
from tests.crash.test_kill import assert_sound, killed

ROUNDS = 3
TORTURE_ROUNDS = 200
EVENTS = 300
LIVE = ("live a", "live b")
ENDED = ("ended a", "ended b", "ended c")
HELD = "held"
ALL = (*LIVE, *ENDED, HELD)
DAY = timedelta(days=1)
FAR = timedelta(days=3650)

ROUNDS_OF = pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(TORTURE_ROUNDS, marks=pytest.mark.torture)])

POLICIES = {
    "terminal_grace": RetentionPolicy(max_events=UNLIMITED),
    "max_age": RetentionPolicy(max_events=UNLIMITED, terminal_grace=FAR, max_age=DAY),
    "max_bytes": RetentionPolicy(max_events=UNLIMITED, terminal_grace=FAR, max_bytes=5000),
    "max_total_bytes": RetentionPolicy(max_events=UNLIMITED, terminal_grace=FAR, max_total_bytes=100_000),
    "forget": RetentionPolicy(max_events=UNLIMITED, forget_sessions_after=timedelta(0)),
    "all of them": RetentionPolicy(
        max_events=UNLIMITED,
        max_age=DAY,
        max_bytes=5000,
        max_total_bytes=38_000,
        forget_sessions_after=timedelta(0),
    ),
}


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Starts processes in milliseconds: each is a fork of one that has imported all and opened nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash.retention_writers", "aegis_store.store", "sqlalchemy.dialects.sqlite"])
    return context


@pytest.fixture
def chance() -> random.Random:
    """A fresh seed each time; pytest shows it when the test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A store of six sessions: two live, three ended two days ago, one on hold; half of their events are two days old."""
    path = tmp_path_factory.mktemp("full") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
        for name in ALL:
            store.create_session(name)
            new = [NewEvent(type="t", payload={"n": n, "text": "x" * (n % 200)}) for n in range(1, EVENTS + 1)]
            store.append_many(name, new)
        store.update_session(HELD, hold=True)
        for name in (*ENDED, HELD):
            store.set_status(name, "closed")
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as shell:
        (guard,) = shell.execute("SELECT sql FROM sqlite_schema WHERE name = 'event_guards_update'").fetchone()
        two_days = 2 * 86_400_000_000
        shell.execute("DROP TRIGGER event_guards_update")
        shell.execute("UPDATE event SET recorded_at = recorded_at - ? WHERE seq <= ?", (two_days, EVENTS // 2))
        shell.execute("UPDATE session SET oldest_at = oldest_at - ?", (two_days,))
        shell.execute("UPDATE session SET ended_at = ended_at - ? WHERE ended_at IS NOT NULL", (two_days,))
        shell.execute(guard)
    return path


def copy_of(full: Path, directory: Path, policy: RetentionPolicy) -> Path:
    directory.mkdir()
    path = directory / "aegis.db"
    shutil.copyfile(full, path)
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        store.set_retention_policy(policy)
    return path


class Standing(NamedTuple):
    """What is in a store: retained events and their payload bytes by session, of deleted ones under None."""

    events: int
    payload_bytes: int
    names: set[str]
    nameless: int
    tombstones: dict[str, int]


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(driver.dbapi.connect(str(path))) as connection:
        found: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return found


def standing(path: Path) -> Standing:
    """Look at the store, and see that it agrees with itself."""
    assert_sound(path)
    assert rows(path, "SELECT * FROM event JOIN session ON session.id = event.session WHERE seq < first_seq") == []
    # A session without a name has a tombstone, or was created again; nobody has both a tombstone and a session.
    assert rows(path, "SELECT * FROM session JOIN tombstone USING (session_id)") == []
    ((events, payload_bytes),) = rows(path, "SELECT count(*), coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM event")
    ((counted, budget),) = rows(path, "SELECT retained_bytes, max_total_bytes FROM store")
    assert counted == (None if budget is None else payload_bytes)
    names = {name for (name,) in rows(path, "SELECT session_id FROM session WHERE session_id IS NOT NULL")}
    ((nameless,),) = rows(path, "SELECT count(*) FROM session WHERE session_id IS NULL")
    return Standing(events, payload_bytes, names, nameless, dict(rows(path, "SELECT session_id, last_seq FROM tombstone")))


def assert_only_the_oldest_went(path: Path) -> None:
    """What is left of each session is its newest events, and its record tells how many went."""
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        for session in store.list_sessions().sessions:
            events = store.read(session.session_id, limit=1000).events
            assert session.last_seq == EVENTS
            assert [event.payload["n"] for event in events] == list(range(session.first_seq, EVENTS + 1))
            assert (session.removed_at is None) == (session.removed_events == 0)
            assert (session.removed_reason is None) == (session.removed_events == 0)


def assert_recorded(path: Path, before: Standing, after: Standing, trigger: str) -> None:
    """The run that was killed is in the history, with what really went: unless it was killed before its first slice."""
    recorded = rows(
        path,
        "SELECT trigger, coalesce(sum(events), 0), coalesce(sum(bytes), 0), coalesce(sum(sessions_forgotten), 0)"
        " FROM prune_run GROUP BY trigger",
    )
    went = (before.events - after.events, before.payload_bytes - after.payload_bytes)
    forgotten = len(before.names) + before.nameless - len(after.names) - after.nameless
    assert recorded == ([(trigger, *went, forgotten)] if went[0] or recorded else [])
    for events, reasons in rows(path, "SELECT events, reasons FROM prune_run"):
        assert sum(json.loads(reasons).values()) == events


def assert_finished(path: Path) -> None:
    """One more prune, and there is nothing left to do."""
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        store.prune()
        plan = store.plan_prune()
        assert plan.truncations == ()
        assert (plan.budget, store.prune(plan).events_removed) == (None, 0)
        assert store.get_session(HELD).event_count == EVENTS
    assert standing(path).nameless == 0


PRUNES: dict[str, tuple[Callable[..., None], str]] = {
    "prune": (writers.prune, "api"),
    "prune into an archive": (writers.prune_into_archive, "api"),
    "maintenance": (writers.maintain, "maintenance"),
}


@ROUNDS_OF
@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
@pytest.mark.parametrize(("task", "trigger"), PRUNES.values(), ids=list(PRUNES))
def test_a_prune_that_is_killed_has_removed_the_oldest_and_is_finished_by_the_next(
    context: ForkServerContext,
    chance: random.Random,
    tmp_path: Path,
    full: Path,
    rounds: int,
    task: Callable[..., None],
    trigger: str,
    policy: RetentionPolicy,
) -> None:
    if task is not writers.prune and rounds == ROUNDS:
        rounds = 1
    for number in range(rounds):
        path = copy_of(full, tmp_path / str(number), policy)
        before = standing(path)
        killed(context, chance, 0.12, task, path)
        after = standing(path)
        assert_only_the_oldest_went(path)
        assert_recorded(path, before, after, trigger)
        assert_finished(path)
        shutil.rmtree(path.parent)


@ROUNDS_OF
def test_the_run_that_was_killed_has_no_outcome_and_the_next_has_one(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, full: Path, rounds: int
) -> None:
    outcomes = []
    for number in range(rounds):
        path = copy_of(full, tmp_path / str(number), POLICIES["terminal_grace"])
        killed(context, chance, 0.05, writers.prune, path)
        outcomes += [outcome for (outcome,) in rows(path, "SELECT outcome FROM prune_run")]
        assert rows(path, "SELECT count(*) FROM prune_run WHERE outcome <> 'done'") == [(0,)]
        assert_finished(path)
        assert rows(path, "SELECT outcome FROM prune_run ORDER BY id DESC LIMIT 1") == [("done",)]
    assert set(outcomes) <= {None, "done"}


@ROUNDS_OF
def test_what_a_killed_prune_removed_is_in_its_archive(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, full: Path, rounds: int
) -> None:
    for number in range(min(rounds, 50)):
        path = copy_of(full, tmp_path / str(number), POLICIES["terminal_grace"])
        killed(context, chance, 0.12, writers.prune_into_archive, path)
        archived: set[tuple[str, int]] = set()
        for file in (path.parent / "archive").glob("*.jsonl.gz"):
            lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
            archived |= {(line["event"]["session_id"], line["event"]["seq"]) for line in lines if "event" in line}
        with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
            for session in store.list_sessions().sessions:
                assert {(session.session_id, seq) for seq in range(1, session.first_seq)} <= archived


@ROUNDS_OF
def test_a_deletion_that_is_killed_has_happened_or_not_and_is_finished_by_the_next_prune(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, full: Path, rounds: int
) -> None:
    with_budget = RetentionPolicy(max_events=UNLIMITED, terminal_grace=FAR, max_total_bytes=10**9)
    for number in range(rounds):
        path = copy_of(full, tmp_path / str(number), with_budget)
        with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
            store.update_session(HELD, hold=False)
        before = standing(path)
        deleted = {name for name, _, _ in killed(context, chance, 0.15, writers.delete, path)}
        after = standing(path)
        assert_only_the_oldest_went(path)
        assert_recorded(path, before, after, "api")
        assert deleted.isdisjoint(after.names)
        assert (set(ALL) - after.names, len(deleted) + 1 >= len(after.tombstones)) == (set(after.tombstones), True)
        assert set(after.tombstones.values()) <= {EVENTS}
        assert after.nameless <= 1
        with EventStore.open(path, durability="process", maintain_every=None) as store:  # the startup job finishes it
            assert store.stats().events == EVENTS * len(after.names)
            for name in after.tombstones:
                with pytest.raises(SessionNotFound):
                    store.get_session(name)
                assert store.ensure_session(name).last_seq == EVENTS
                assert store.append(name, "t", "new").seq == EVENTS + 1
        assert standing(path) == after._replace(
            events=EVENTS * len(after.names) + len(after.tombstones),
            payload_bytes=standing(path).payload_bytes,
            names=set(ALL),
            nameless=0,
            tombstones={},
        )
        shutil.rmtree(path.parent)


@ROUNDS_OF
def test_the_count_of_a_session_goes_on_though_it_is_killed_while_deleted_and_created_again(
    context: ForkServerContext, chance: random.Random, tmp_path: Path, full: Path, rounds: int
) -> None:
    path = copy_of(full, tmp_path / "store", RetentionPolicy(max_events=UNLIMITED, terminal_grace=FAR))
    last_seq = EVENTS
    for _ in range(rounds):
        with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
            last_seq = store.ensure_session("live a").last_seq
        seqs = [seq for _, seq, _ in killed(context, chance, 0.15, writers.delete_and_create_again, path)]
        assert seqs == list(range(last_seq + 1, last_seq + 1 + len(seqs)))
        standing(path)
        with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
            assert store.ensure_session("live a").last_seq - last_seq - len(seqs) in (0, 1)
    assert_finished(path)
    assert last_seq > EVENTS or rounds < 50  # on a busy machine a few rounds may be too short for an append
