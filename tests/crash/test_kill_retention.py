"""kill -9 while events go: only the oldest went, all that went is accounted for, and the next prune does the rest."""

import gzip
import json
import random
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aegis_store import UNLIMITED, EventStore, RetentionPolicy, SessionNotFound
from tests.crash import removers, writers
from tests.crash.activities import Activity, Check, Given
from tests.crash.checks import all_events, assert_kept, assert_sound, rows
from tests.crash.conftest import Crash
from tests.crash.harness import Aftermath
from tests.crash.removers import LOWER_CAP
from tests.crash.stores import DAY, ENDED, EVENTS, HELD, LIVE, Stores, opened, records

ALL = (*LIVE, *ENDED, HELD)
FAR = timedelta(days=3650)

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


class Standing(NamedTuple):
    """What is in a store: retained events and their payload bytes, sessions by name and deleted ones, tombstones.

    Without the sessions that others write to meanwhile.
    """

    events: int
    payload_bytes: int
    names: set[str]
    nameless: int
    tombstones: dict[str, int]


def standing(path: Path) -> Standing:
    """Look at the store, and see that it agrees with itself."""
    assert_sound(path)
    assert rows(path, "SELECT * FROM event JOIN session ON session.id = event.session WHERE seq < first_seq") == []
    ((events, payload_bytes),) = rows(
        path,
        "SELECT count(*), coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM event JOIN session ON session.id = event.session"
        f" WHERE session_id IS NULL OR session_id NOT IN {writers.SESSIONS}",
    )
    names = {name for (name,) in rows(path, "SELECT session_id FROM session WHERE session_id IS NOT NULL")}
    ((nameless,),) = rows(path, "SELECT count(*) FROM session WHERE session_id IS NULL")
    tombstones = dict(rows(path, "SELECT session_id, last_seq FROM tombstone"))
    return Standing(events, payload_bytes, names - set(writers.SESSIONS), nameless, tombstones)


def assert_only_the_oldest_went(path: Path) -> None:
    """What is left of each session is its newest events, and its record tells how many went."""
    with opened(path) as store:
        for session in store.list_sessions().sessions:
            if session.session_id in ALL:
                events = store.read(session.session_id, limit=1000).events
                assert session.last_seq == EVENTS
                assert [event.payload["n"] for event in events] == list(range(session.first_seq, EVENTS + 1))
                assert (session.removed_at is None) == (session.removed_events == 0)
                assert (session.removed_reason is None) == (session.removed_events == 0)


def assert_recorded(path: Path, before: Standing, after: Standing, trigger: str) -> None:
    """Runs that were killed are in the history, with what really went: unless that was before their first slice."""
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
    with opened(path) as store:
        store.prune()
        plan = store.plan_prune()
        assert plan.truncations == ()
        assert (plan.budget is None or plan.budget.freed_bytes == 0, store.prune(plan).events_removed) == (True, 0)
        assert store.get_session(HELD).event_count == EVENTS
    assert standing(path).nameless == 0


def copy_of(full: Path, path: Path, policy: RetentionPolicy) -> Standing:
    shutil.copyfile(full, path)
    with opened(path) as store:
        store.set_retention_policy(policy)
    return standing(path)


def much_to_prune(trigger: str) -> Given:
    def given(path: Path, stores: Stores, chance: random.Random) -> Check:
        policy = chance.choice(list(POLICIES))
        print("policy", policy)
        before = copy_of(stores.full, path, POLICIES[policy])

        def check(aftermath: Aftermath) -> None:
            assert_kept(path, aftermath)
            assert_only_the_oldest_went(path)
            assert_recorded(path, before, standing(path), trigger)
            assert_finished(path)

        return check

    return given


def a_run_to_record(path: Path, stores: Stores, chance: random.Random) -> Check:
    """A run that was killed has no outcome, and the next has one."""
    check_prune = much_to_prune("api")(path, stores, chance)

    def check(aftermath: Aftermath) -> None:
        assert {outcome for (outcome,) in rows(path, "SELECT outcome FROM prune_run")} <= {None, "done"}
        check_prune(aftermath)
        assert rows(path, "SELECT outcome FROM prune_run ORDER BY id DESC LIMIT 1") in ([], [("done",)])

    return check


def much_to_archive(path: Path, stores: Stores, chance: random.Random) -> Check:
    """What went is in the archive, as it was."""
    check_prune = much_to_prune("api")(path, stores, chance)
    with opened(path) as store:
        payloads = {(name, event.seq): event.payload for name in ALL for event in all_events(store, name)}

    def check(aftermath: Aftermath) -> None:
        archived: dict[tuple[str, int], Any] = {}
        for file in (path.parent / "archive").glob("*.jsonl.gz"):
            lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
            events = [line["event"] for line in lines if "event" in line]
            archived |= {(event["session_id"], event["seq"]): event["payload"] for event in events}
        with opened(path) as store:
            held = {(name, event.seq) for name in standing(path).names for event in all_events(store, name)}
        assert payloads.keys() - held <= archived.keys()
        assert archived.items() <= payloads.items()
        check_prune(aftermath)

    return check


def a_cap_to_lower(path: Path, stores: Stores, chance: random.Random) -> Check:
    """A lower cap is in force with its bound, or not at all."""
    copy_of(stores.full, path, RetentionPolicy(max_events=UNLIMITED))

    def check(aftermath: Aftermath) -> None:
        assert_kept(path, aftermath)
        assert_only_the_oldest_went(path)
        with opened(path) as store:
            cap = store.retention_policy().max_events
            left = {store.get_session(name).event_count for name in ALL}
            assert cap in (UNLIMITED, LOWER_CAP)
            assert left == {LOWER_CAP} if cap == LOWER_CAP else min(left) >= LOWER_CAP
            store.set_retention_policy(RetentionPolicy(max_events=LOWER_CAP))
            assert {store.get_session(name).event_count for name in ALL} == {LOWER_CAP}
        assert_only_the_oldest_went(path)

    return check


def sessions_to_delete(path: Path, stores: Stores, chance: random.Random) -> Check:
    """A deletion has happened or not, and the next prune finishes it."""
    before = copy_of(stores.full, path, RetentionPolicy(max_events=UNLIMITED, terminal_grace=FAR, max_total_bytes=10**9))

    def check(aftermath: Aftermath) -> None:
        assert_kept(path, aftermath)
        after = standing(path)
        assert_only_the_oldest_went(path)
        assert_recorded(path, before, after, "api")
        deleted = {name for name, *_ in aftermath.acknowledged} - set(writers.SESSIONS)
        assert deleted.isdisjoint(after.names)
        assert (set(ALL) - after.names, len(deleted) + 1 >= len(after.tombstones)) == (set(after.tombstones), True)
        assert set(after.tombstones.values()) <= {EVENTS}
        assert after.nameless <= 1
        EventStore.open(path, durability="process", maintain_every=None).close()  # the startup job finishes it
        assert standing(path) == after._replace(
            events=EVENTS * len(after.names), payload_bytes=standing(path).payload_bytes, nameless=0
        )
        with opened(path) as store:
            for name in after.tombstones:
                with pytest.raises(SessionNotFound):
                    store.get_session(name)
                assert store.ensure_session(name).last_seq == EVENTS
                assert store.append(name, "t", "new").seq == EVENTS + 1
        assert (standing(path).names, standing(path).tombstones) == (set(ALL), {})

    return check


def a_session_to_delete_over_and_over(path: Path, stores: Stores, chance: random.Random) -> Check:
    """Its count goes on, whether it was just deleted or created again."""
    copy_of(stores.full, path, RetentionPolicy(max_events=UNLIMITED, terminal_grace=FAR))

    def check(aftermath: Aftermath) -> None:
        assert_kept(path, aftermath)
        standing(path)
        seqs = [seq for name, seq, _ in aftermath.acknowledged if name == "live a"]
        assert seqs == list(range(EVENTS + 1, EVENTS + 1 + len(seqs)))
        with opened(path) as store:
            assert store.ensure_session("live a").last_seq - EVENTS - len(seqs) in (0, 1)
        assert_finished(path)

    return check


def room_to_reclaim(path: Path, stores: Stores, chance: random.Random) -> Check:
    shutil.copyfile(stores.thin, path)

    def check(aftermath: Aftermath) -> None:
        assert_kept(path, aftermath)
        assert records(path) == records(stores.thin)
        with opened(path) as store:
            report = store.reclaim()
        assert (report.outcome, report.free_bytes_after) == ("complete", 0)
        assert records(path) == records(stores.thin)
        assert_sound(path)

    return check


def room_to_pack(path: Path, stores: Stores, chance: random.Random) -> Check:
    """The store is as it was or packed, and the next compaction tidies up."""
    shutil.copyfile(stores.thin, path)

    def check(aftermath: Aftermath) -> None:
        assert_kept(path, aftermath)
        assert records(path) == records(stores.thin)
        EventStore.compact(path)
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        assert records(path) == records(stores.thin)
        assert_sound(path)

    return check


ACTIVITIES = {
    "startup job": Activity(much_to_prune("startup"), removers.start, 0.12),
    "prune": Activity(a_run_to_record, removers.prune, 0.15),
    "archive": Activity(much_to_archive, removers.prune_into_archive, 0.25),
    "maintenance": Activity(much_to_prune("maintenance"), removers.maintain, 0.25, doers=1),
    "lower cap": Activity(a_cap_to_lower, removers.lower_the_cap, 0.25),
    "deletion": Activity(sessions_to_delete, removers.delete, 0.25, doers=1),
    "deletion and creation": Activity(a_session_to_delete_over_and_over, removers.delete_and_create_again, 0.15, doers=1),
    "reclaim": Activity(room_to_reclaim, removers.reclaim, 0.06),
    "compaction": Activity(room_to_pack, removers.compact, 0.06, beside=writers.come_and_go),
}


@pytest.mark.parametrize("activity", ACTIVITIES.values(), ids=list(ACTIVITIES))
def test_nothing_is_lost_but_what_was_to_go_and_the_next_does_the_rest_after_deaths_at(
    crash: Crash, activity: Activity
) -> None:
    crash(activity)
