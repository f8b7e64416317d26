"""What a host sees of a store: the metrics of `stats()`, and the fields of what is logged."""

import asyncio
import json
import logging
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aegis_store import (
    UNLIMITED,
    AsyncEventStore,
    EventStore,
    EventsTruncated,
    Histogram,
    NewEvent,
    RetentionPolicy,
    SequenceConflict,
    SessionNotFound,
    Status,
    checkpointer,
    driver,
)
from aegis_store.errors import AegisStoreError
from aegis_store.retention import maintenance
from tests.conftest import OpenStore

TOP = Path(__file__).resolve().parents[1]
SECTION = (TOP / "README.md").read_text().split("## Watching it from a host\n")[1].split("\n## ")[0]
WAIT_S = 60


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def sizes(store: EventStore) -> dict[str, int]:
    """How many commits held so many events: the buckets that are not empty, without those below."""
    found, below = {}, 0
    for bound, count in store.stats().commit_events.buckets.items():
        if count > below:
            found[bound] = count - below
        below = count
    return found


@pytest.fixture
def filled(store: EventStore) -> EventStore:
    store.create_session("s", max_events=UNLIMITED)
    return store


# Counters and histograms


def test_a_new_store_has_counted_nothing(store: EventStore) -> None:
    stats = store.stats()
    assert (stats.appended_events, stats.prunes, stats.pruned_events, stats.truncated_reads) == (0, 0, 0, 0)
    assert (stats.append_seconds.count, stats.append_seconds.sum) == (0, 0)
    assert set(stats.commit_events.buckets.values()) == {0}


def test_an_append_counts_its_event_its_commit_and_its_time(filled: EventStore) -> None:
    began = time.perf_counter()
    for number in range(10):
        filled.append("s", "t", number)
    took_s = time.perf_counter() - began
    stats = filled.stats()
    assert (stats.appended_events, stats.append_seconds.count, sizes(filled)) == (10, 10, {"1": 10})
    assert took_s / 2 < stats.append_seconds.sum <= took_s


def test_a_batch_is_one_call_and_one_commit_of_its_new_events(filled: EventStore) -> None:
    filled.append("s", "t", 0, event_id="a")
    filled.append_many("s", [NewEvent(type="t", payload=number, event_id=name) for number, name in enumerate("abcdef")])
    assert (filled.stats().appended_events, filled.stats().append_seconds.count, sizes(filled)) == (6, 2, {"1": 1, "8": 1})


def test_a_retry_is_a_call_without_a_new_event(filled: EventStore) -> None:
    for _ in range(3):
        filled.append("s", "t", 0, event_id="a")
    assert (filled.stats().appended_events, filled.stats().append_seconds.count, sizes(filled)) == (1, 3, {"1": 1})


def test_an_append_that_raises_does_not_count(filled: EventStore) -> None:
    for session_id, expected, error in (("none", None, SessionNotFound), ("s", 7, SequenceConflict)):
        with pytest.raises(error):
            filled.append(session_id, "t", 0, expected_seq=expected)
        with pytest.raises(error):
            filled.append_many(session_id, [NewEvent(type="t", payload=0)], expected_seq=expected)
    assert (filled.stats().appended_events, filled.stats().append_seconds.count, sizes(filled)) == (0, 0, {})


def test_threads_that_share_a_commit_count_once_each_and_their_commit_once(filled: EventStore) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with filled._db.turn():
            entered.set()
            assert leave.wait(WAIT_S)

    with ThreadPoolExecutor(9) as pool:
        holder = pool.submit(hold)
        assert entered.wait(WAIT_S)
        appends = [pool.submit(filled.append, "s", "t", number) for number in range(8)]
        wait_for(lambda: len(filled._db.turns._line) == 8)
        leave.set()
        holder.result()
        assert {append.result().seq for append in appends} == set(range(1, 9))
    assert (filled.stats().appended_events, filled.stats().append_seconds.count, sizes(filled)) == (8, 8, {"8": 1})


def test_nothing_is_lost_when_many_threads_count(filled: EventStore) -> None:
    def work() -> None:
        for number in range(50):
            filled.append("s", "t", number)

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(work) for _ in range(8)]:
            each.result()
    stats = filled.stats()
    assert (stats.appended_events, stats.append_seconds.count, stats.commit_events.sum) == (400, 400, 400)


def test_times_that_were_not_looked_at_take_little_memory(filled: EventStore) -> None:
    for number in range(600):
        filled.append("s", "t", number)
    assert len(filled._db.metrics._new_append_ns) < 256
    assert filled.stats().append_seconds.count == 600


def test_tasks_count_as_threads_do(path: Path) -> None:
    async def work() -> None:
        async with AsyncEventStore.open(path, durability="process") as store:
            await store.create_session("s")
            await asyncio.gather(*(store.append("s", "t", number) for number in range(100)))
            with pytest.raises(SessionNotFound):
                await store.append("none", "t", 0)
            stats = await store.stats()
            assert (stats.appended_events, stats.append_seconds.count, stats.commit_events.sum) == (100, 100, 100)
            assert stats.commit_events.count < 100

    asyncio.run(work())


def test_commits_that_could_not_be_shared_count_each(filled: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise driver.dbapi.OperationalError("database or disk is full")

    monkeypatch.setattr(filled._db.writer, "_carry_out", fail)

    entered = threading.Event()

    def hold() -> None:
        with filled._db.turn():
            entered.set()
            wait_for(lambda: len(filled._db.turns._line) == 4)

    with ThreadPoolExecutor(5) as pool:
        pool.submit(hold)
        assert entered.wait(WAIT_S)
        for append in [pool.submit(filled.append, "s", "t", number) for number in range(4)]:
            append.result()
    assert sizes(filled) == {"1": 4}


def test_a_signal_handler_that_appends_does_not_wait_for_the_thread_that_it_interrupts_in_counting(filled: EventStore) -> None:
    before = signal.signal(signal.SIGINT, lambda *_: filled.append("s", "t", "handler"))
    try:
        with filled._db.metrics._lock:
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (filled.stats().appended_events, filled.stats().append_seconds.count) == (1, 1)


def test_the_buckets_are_cumulative_and_end_with_all(filled: EventStore) -> None:
    for number in range(5):
        filled.append("s", "t", number)
    for histogram in (filled.stats().append_seconds, filled.stats().commit_events):
        bounds = [float(bound) for bound in histogram.buckets]
        counts = list(histogram.buckets.values())
        assert bounds == sorted(set(bounds))
        assert list(histogram.buckets)[-1] == "+Inf"
        assert counts == sorted(counts)
        assert counts[-1] == histogram.count == 5


def test_a_value_on_a_bound_is_in_its_bucket(filled: EventStore) -> None:
    for size in (2, 3, 1024, 1025):
        filled.append_many("s", [NewEvent(type="t", payload=0)] * size)
    assert sizes(filled) == {"2": 1, "4": 1, "1024": 1, "+Inf": 1}


def test_a_prune_counts_its_run_and_what_it_removed(filled: EventStore) -> None:
    for number in range(30):
        filled.append("s", "t", number)
    filled.set_status("s", "closed")
    filled.prune()
    stats = filled.stats()
    assert (stats.prunes, stats.pruned_events, stats.removed_events, stats.appended_events) == (1, 30, 30, 30)


def test_a_prune_that_is_interrupted_counts_what_went(filled: EventStore) -> None:
    for session_id in ("a", "b"):
        filled.create_session(session_id)
        filled.append(session_id, "t", 0)
        filled.set_status(session_id, "closed")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.prune(on_progress=interrupt)
    assert (filled.stats().prunes, filled.stats().pruned_events) == (1, 1)


def test_the_startup_job_counts_and_what_mode_warn_only_reports_does_not(open_store: OpenStore) -> None:
    store = open_store()
    store.create_session("s")
    store.append("s", "t", 0)
    store.set_status("s", "closed")
    store.set_retention_policy(RetentionPolicy(mode="warn"))
    store.close()
    warned = open_store()
    assert (warned.stats().prunes, warned.stats().pruned_events) == (0, 0)
    warned.set_retention_policy(RetentionPolicy())
    warned.close()
    stats = open_store().stats()
    assert (stats.prunes, stats.pruned_events) == (1, 1)


@pytest.fixture
def truncated(store: EventStore) -> EventStore:
    store.create_session("s", max_events=2)
    for number in range(5):
        store.append("s", "t", number)
    return store


@pytest.mark.parametrize(
    "read",
    [
        lambda store, gap: store.read("s", after_seq=1, on_gap=gap),
        lambda store, gap: store.read_all(after_position=1, on_gap=gap),
        lambda store, gap: list(store.follow("s", after=1, timeout=0, on_gap=gap)),
        lambda store, gap: list(store.follow(after=1, timeout=0, on_gap=gap)),
    ],
    ids=["read", "read_all", "follow", "follow all"],
)
def test_a_read_that_met_removed_events_counts_once_whether_it_raises_or_goes_on(
    truncated: EventStore, read: Callable[[EventStore, str], Any]
) -> None:
    with pytest.raises(EventsTruncated):
        read(truncated, "raise")
    assert truncated.stats().truncated_reads == 1
    assert read(truncated, "skip")
    assert truncated.stats().truncated_reads == 2


def test_a_read_of_what_is_retained_is_not_truncated(truncated: EventStore) -> None:
    truncated.read("s")
    truncated.read("s", after_seq=3)
    truncated.read_all()
    list(truncated.follow("s", after=3, timeout=0))
    list(truncated.follow(timeout=0))
    assert truncated.stats().truncated_reads == 0


def test_the_write_ahead_log_is_measured_apart_and_within_the_file(filled: EventStore, path: Path) -> None:
    filled.append("s", "t", "x" * 10_000)
    stats = filled.stats()
    assert stats.wal_bytes == path.with_name("aegis.db-wal").stat().st_size > 0
    assert stats.file_bytes == stats.wal_bytes + path.stat().st_size


# As a host takes them


def test_metrics_are_a_plain_mapping_of_counters_gauges_and_histograms(truncated: EventStore) -> None:
    metrics = truncated.stats().as_metrics()
    assert {f"sessions_{status}" for status in Status} <= metrics.keys()
    assert (metrics["sessions_running"], metrics["events"], metrics["removed_events_total"]) == (1, 2, 3)
    assert {name for name, value in metrics.items() if isinstance(value, Histogram)} == {"append_seconds", "commit_events"}
    assert all(isinstance(value, int | float | Histogram) for value in metrics.values())


def test_a_counter_never_falls_whatever_is_removed(filled: EventStore) -> None:
    counters: list[dict[str, Any]] = []

    def look() -> None:
        metrics = filled.stats().as_metrics()
        counters.append({name: value for name, value in metrics.items() if name.endswith("_total")})

    look()
    for session_id in ("a", "b"):
        filled.create_session(session_id, max_events=3)
        for number in range(6):
            filled.append(session_id, "t", number)
        look()
    filled.set_status("a", "closed")
    filled.prune()
    look()
    filled.delete_session("b")
    look()
    filled.create_session("b")
    look()
    filled.append("b", "t", 0)
    filled.delete_session("b")
    filled.prune()
    look()
    for before, after in pairwise(counters):
        assert all(after[name] >= value for name, value in before.items())


def test_the_readmes_table_names_each_metric(store: EventStore) -> None:
    table = SECTION.split("| metric |")[1].split("\n\n")[0]
    named = {name.strip(" `") for line in table.splitlines()[2:] for name in line.split("|")[1].split(",")}
    metrics = {name if not name.startswith("sessions_") else "sessions_STATUS" for name in store.stats().as_metrics()}
    assert named == metrics


def test_the_readmes_lines_feed_prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    program = SECTION.split("```python\n")[1].split("```")[0]
    exec(compile(program, "README.md", "exec"), {})
    families = {family.name: family for family in text_string_to_metric_families(capsys.readouterr().out)}
    assert families["aegis_appended_events"].type == "counter"
    assert families["aegis_appended_events"].samples[0].value == 1
    assert families["aegis_sessions_running"].type == "gauge"
    seconds = families["aegis_append_seconds"]
    assert seconds.type == "histogram"
    assert [s.value for s in seconds.samples if s.labels.get("le") == "+Inf"] == [1]
    assert [s.value for s in seconds.samples if s.name.endswith("_count")] == [1]
    assert all(family.documentation for family in families.values())


# The log


def acts(caplog: pytest.LogCaptureFixture) -> dict[str, logging.LogRecord]:
    return {record.aegis_act: record for record in caplog.records if record.name == "aegis_store"}  # type: ignore[attr-defined]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name.startswith("aegis_")}


@pytest.fixture
def all_acts(
    open_store: OpenStore,
    path: Path,
    shell: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> dict[str, logging.LogRecord]:
    """A record of each act that is logged."""
    caplog.set_level(logging.DEBUG, "aegis_store")

    def fail(*_: Any, **__: Any) -> None:
        raise AegisStoreError("boom")

    def add(session_id: str) -> None:
        store.create_session(session_id)
        store.append(session_id, "t", {"secret": "payload"})
        store.set_status(session_id, "failed")

    store = open_store(maintain_every=None)
    add("a")
    store.close()
    store = open_store(maintain_every=None)  # the startup job
    add("b")
    store.set_retention_policy(RetentionPolicy(mode="warn"))
    store.close()
    open_store(maintain_every=None).close()  # which only reports
    shell.execute("UPDATE store SET mode = 'enforce'")
    shell.execute("BEGIN IMMEDIATE")
    open_store(maintain_every=None, busy_timeout_ms=20).close()
    shell.execute("COMMIT")
    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "plan", fail)
        patch.setattr(checkpointer, "_checkpoint", fail)
        store = open_store(maintain_every=timedelta(milliseconds=20), prune_on_open=False)
        store._db._checkpointer.note_write()  # for a SQLite with which it is left alone
        wait_for(lambda: {"maintenance_failed", "checkpoint_put_off"} <= acts(caplog).keys())
        store.close()
    return acts(caplog)


def test_the_readmes_table_has_each_act_with_its_level_and_its_fields(all_acts: dict[str, logging.LogRecord]) -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in SECTION.split("| `aegis_act` |")[1].split("\n\n")[0].splitlines()[2:]
    ]
    written = {act.strip("`"): (level, {name.strip(" `") for name in named.split(",")}) for act, level, _, named in rows}
    always = {"aegis_act", "aegis_store"}
    assert written == {act: (record.levelname, fields(record).keys() - always) for act, record in all_acts.items()}


def test_what_is_logged_is_a_line_for_people_and_json_for_a_host(all_acts: dict[str, logging.LogRecord], path: Path) -> None:
    for act, record in all_acts.items():
        told = fields(record)
        assert json.loads(json.dumps(told)) == told
        assert (told["aegis_act"], told["aegis_store"]) == (act, str(path))
        assert len(record.getMessage().splitlines()) == 1
        assert "payload" not in f"{record.getMessage()}{told}"
        assert record.filename != "log.py"  # but who logged it
    pruned = fields(all_acts["prune"])
    assert (pruned["aegis_trigger"], pruned["aegis_events"], pruned["aegis_sessions"]) == ("startup", 1, 1)
    assert pruned["aegis_by_reason"] == {"terminal_grace": 1}
    assert (
        all_acts["prune"].getMessage().startswith("startup job removed 1 event (20 bytes) of 1 session (terminal_grace 1) in ")
    )


def test_only_the_module_for_it_logs() -> None:
    for source in (TOP / "aegis_store").rglob("*.py"):
        assert 'getLogger("aegis_store")' not in source.read_text() or source.name == "log.py", source
