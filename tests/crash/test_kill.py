"""kill -9 at random moments: what was acknowledged is there, what was not is there as a whole or not at all."""

import os
import random
import shutil
import time
from collections import Counter
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from aegis_store import EventStore
from aegis_store.schema import HEAD
from tests.crash import writers
from tests.crash.activities import Activity, Check, Given
from tests.crash.checks import all_events, assert_kept, assert_sound, rows
from tests.crash.conftest import Crash
from tests.crash.harness import Aftermath, run_and_kill
from tests.crash.stores import CAP, Stores, opened, records


def appends(in_flight: int) -> Given:
    def given(path: Path, stores: Stores, chance: random.Random) -> Check:
        cap = chance.choice((None, CAP))
        shutil.copyfile(stores.capped if cap else stores.uncapped, path)

        def check(aftermath: Aftermath) -> None:
            assert_kept(path, aftermath, cap=cap, in_flight=in_flight)
            if cap is None:
                assert_groups_are_whole(path)

        return check

    return given


def assert_groups_are_whole(path: Path) -> None:
    """Of a group of which an event is there, all are."""
    with opened(path) as store:
        payloads = [event.payload for name in writers.SESSIONS for event in all_events(store, name)]
    found = Counter((payload["first"], payload["size"]) for payload in payloads if "first" in payload)
    assert {group: number for group, number in found.items() if number != group[1]} == {}


def nothing_yet(path: Path, stores: Stores, chance: random.Random) -> Check:
    path.parent.rmdir()

    def check(aftermath: Aftermath) -> None:
        if not path.exists():
            assert aftermath.acknowledged == []
            EventStore.open(path).close()
        assert_kept(path, aftermath)
        assert_drafts_are_swept_later(path)

    return check


def assert_drafts_are_swept_later(path: Path) -> None:
    """What creations that were killed have left goes when the next store is made there."""
    path.unlink()
    drafts = list(path.parent.iterdir())
    for draft in drafts:
        os.utime(draft, (time.time() - 3600,) * 2)
    if drafts:
        EventStore.open(path).close()
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def a_store_of_the_first_schema(path: Path, stores: Stores, chance: random.Random) -> Check:
    shutil.copyfile(stores.old, path)
    before = {table: rows(path, f"SELECT * FROM {table} ORDER BY 1") for table in ("session", "event")}
    columns = {table: ", ".join(name for _, name, *_ in rows(path, f"PRAGMA table_info({table})")) for table in before}

    def assert_as_before() -> None:
        for table, old in before.items():
            now = rows(path, f"SELECT {columns[table]} FROM {table} ORDER BY 1")
            assert now[: len(old)] == old

    def check(aftermath: Aftermath) -> None:
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        assert rows(path, "SELECT version_num FROM alembic_version") in ([("0001",)], [(HEAD,)])
        assert_as_before()
        assert EventStore.upgrade(path)[1] == HEAD
        assert_as_before()
        assert_kept(path, aftermath)

    return check


def lines_to_import(path: Path, stores: Stores, chance: random.Random) -> Check:
    shutil.copyfile(stores.uncapped, path)
    shutil.copyfile(stores.lines, path.with_name("events.jsonl"))

    def check(aftermath: Aftermath) -> None:
        assert_kept(path, aftermath)
        with opened(path) as store:
            assert store.import_lines(path.with_name("events.jsonl")).refused == []
        assert records(path) == records(stores.mixed)
        assert_sound(path)

    return check


def a_state_file_to_import(path: Path, stores: Stores, chance: random.Random) -> Check:
    """Each session comes in as a whole or not at all."""
    shutil.copyfile(stores.uncapped, path)
    shutil.copyfile(stores.state, path.with_name("state.json"))

    def check(aftermath: Aftermath) -> None:
        assert_kept(path, aftermath)
        with opened(path) as store:
            there = [s for s in store.list_sessions().sessions if s.session_id not in writers.SESSIONS]
            assert {(session.first_seq, session.last_seq) for session in there} <= {(1, 30)}
            report = store.import_aegis(path.with_name("state.json"))
            assert (report.sessions_added, report.sessions_unchanged) == (40 - len(there), len(there))
            for number in range(40):
                assert [event.payload for event in all_events(store, f"s{number}")] == list(range(1, 31))
        assert_sound(path)

    return check


def a_store_to_export(path: Path, stores: Stores, chance: random.Random) -> Check:
    """A file that has its name is whole; what else was begun has another name, and is in nobody's way once it is removed."""
    shutil.copyfile(stores.mixed, path)
    with opened(path) as store:
        for session_id in writers.SESSIONS:
            store.create_session(session_id, max_events=10**6)

    def check(aftermath: Aftermath) -> None:
        assert_kept(path, aftermath)
        for draft in path.parent.glob("*.jsonl.gz.tmp"):
            draft.unlink()
            with opened(path) as store:
                store.export(draft.with_suffix(""))
        for file in path.parent.glob("*.jsonl.gz"):
            copy = path.with_name(f"{file.name}.db")
            shutil.copyfile(stores.uncapped, copy)
            with opened(copy) as store:
                assert store.import_lines(file).refused == []
            assert records(copy) == records(stores.mixed)

    return check


ACTIVITIES = {
    "appends": Activity(appends(1), writers.append, 0.12, doers=4),
    "group commits of threads": Activity(appends(writers.THREADS), writers.append_in_threads, 0.12, doers=4),
    "group commits of tasks": Activity(appends(writers.TASKS), writers.append_in_tasks, 0.12, doers=4),
    "append_many": Activity(appends(writers.GROUP), writers.append_many, 0.12, doers=4),
    "opening and closing": Activity(appends(1), writers.come_and_go, 0.12, doers=4),
    "creation": Activity(nothing_yet, writers.create, 0.08, doers=4),
    "migration": Activity(a_store_of_the_first_schema, writers.upgrade, 0.1, doers=4),
    "import": Activity(lines_to_import, writers.import_lines, 0.12),
    "import-aegis": Activity(a_state_file_to_import, writers.import_aegis, 0.25),
    "export": Activity(a_store_to_export, writers.export, 0.03),
}


@pytest.mark.parametrize("activity", ACTIVITIES.values(), ids=list(ACTIVITIES))
def test_nothing_acknowledged_is_lost_and_the_store_works_on_after_deaths_at(crash: Crash, activity: Activity) -> None:
    crash(activity)


def test_a_store_survives_the_deaths_of_many_writers_one_after_the_other(
    context: ForkServerContext, chance: random.Random, path: Path, stores: Stores, kills: int
) -> None:
    shutil.copyfile(stores.capped, path)
    before = dict.fromkeys(writers.SESSIONS, 0)
    for _ in range(kills):
        aftermath = run_and_kill(context, chance, [writers.append], path, 0.1)
        with EventStore.open(path) as store:
            after = {name: store.get_session(name).last_seq for name in writers.SESSIONS}
        assert_sound(path)
        for name in writers.SESSIONS:
            seqs = [seq for found, seq, _ in aftermath.acknowledged if found == name]
            assert seqs == list(range(before[name] + 1, before[name] + 1 + len(seqs)))
            assert after[name] - before[name] - len(seqs) in (0, 1)
        before = after
