"""A store of a million events, and what pruning half of it costs beside a writer: by hand, since it takes minutes.

    python -m tests.scale.million make DIRECTORY            1,000,000 events of 1 KB in 2,000 sessions, half of them ended
    python -m tests.scale.million plan DIRECTORY            how long planning takes, in how much memory
    python -m tests.scale.million prune DIRECTORY           five rounds: a prune, a plain chunked DELETE, a control run

Sessions live `--together` at a time, so that many events of a page belong to others; with `--together 2000` all do at once.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from typing import Any

from aegis_store import UNLIMITED, EventStore, NewEvent, RetentionPolicy, driver
from aegis_store.settings import PRUNE_SLICE_EVENTS

WRITER_HZ = 200
TEXT = "agent platform event " * 47  # a payload of 1 KB


def make(path: Path, *, sessions: int, events_each: int, together: int) -> None:
    """Sessions in waves of `together`, whose events take turns; those of the first half have ended."""
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
        for wave in range(0, sessions, together):
            names = [f"session-{number:05d}" for number in range(wave, min(wave + together, sessions))]
            for name in names:
                store.create_session(name)
            for start in range(0, events_each, 10):
                for name in names:
                    batch = [NewEvent(type="hook", payload={"n": n, "text": TEXT}) for n in range(start, start + 10)]
                    store.append_many(name, batch)
            for name in names:
                if int(name[-5:]) < sessions // 2:
                    store.set_status(name, "completed")


def copy_of(path: Path, name: str) -> Path:
    target = path.with_name(name)
    for suffix in ("", "-wal", "-shm"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    shutil.copyfile(path, target)
    if hasattr(os, "sync"):
        os.sync()  # a gigabyte that is still on its way to the disk would be measured as the writer's latency
    return target


# The writer beside


def write_beside(path: Path, line: Connection, stop: Flag) -> None:
    """Append 200 times a second until told to stop; the latencies in ms."""
    taken: list[float] = []
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        store.ensure_session("beside")
        line.send("ready")
        due = time.perf_counter()
        while not stop.is_set():
            started = time.perf_counter()
            store.append("beside", "beat", {"text": TEXT})
            taken.append((time.perf_counter() - started) * 1e3)
            due += 1 / WRITER_HZ
            time.sleep(max(due - time.perf_counter(), 0))
    line.send(taken)


@contextmanager
def writer(path: Path) -> Iterator[Callable[[], list[float]]]:
    """A writer process beside the block; the function given stops it and tells its latencies."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    stop = context.Event()
    process = context.Process(target=write_beside, args=(path, theirs, stop))
    process.start()
    assert ours.recv() == "ready"

    def latencies() -> list[float]:
        stop.set()
        taken: list[float] = ours.recv()
        return sorted(taken)

    yield latencies
    process.join()


def pruned(path: Path) -> int:
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        return store.prune().events_removed


def plainly_deleted(path: Path) -> int:
    """The floor: the same slices as bare DELETEs, without the triggers that account for them."""
    gone = 0
    with closing(driver.dbapi.connect(str(path), isolation_level=None, timeout=10)) as connection:
        connection.execute("DROP TRIGGER event_guards_delete")
        connection.execute("PRAGMA synchronous = FULL")
        ended: list[tuple[int]] = connection.execute("SELECT id FROM session WHERE ended_at IS NOT NULL").fetchall()
        chunk = f"SELECT position FROM event WHERE session = ? ORDER BY seq LIMIT {PRUNE_SLICE_EVENTS}"
        for (key,) in ended:
            while True:
                count = connection.execute(f"DELETE FROM event WHERE position IN ({chunk})", (key,)).rowcount
                gone += count
                if count < PRUNE_SLICE_EVENTS:
                    break
    return gone


def beside_a_writer(path: Path, work: Callable[[Path], int]) -> dict[str, float]:
    with writer(path) as latencies:
        time.sleep(0.3)
        started = time.perf_counter()
        done = work(path)
        seconds = time.perf_counter() - started
        taken = latencies()
    figures = {"p50_ms": taken[len(taken) // 2], "p99_ms": taken[int(len(taken) * 0.99)], "max_ms": taken[-1]}
    return {"per_s": done / seconds, "seconds": seconds, "appends": len(taken), **figures}


def idle(seconds: float) -> Callable[[Path], int]:
    def wait(_: Path) -> int:
        time.sleep(seconds)
        return 0

    return wait


def prune_rounds(path: Path, rounds: int) -> list[dict[str, Any]]:
    found = []
    for number in range(rounds):
        works = {"prune": pruned, "plain": plainly_deleted}
        order = list(works) if number % 2 == 0 else list(reversed(works))
        figures: dict[str, Any] = {}
        for name in order:
            figures[name] = beside_a_writer(copy_of(path, "round.db"), works[name])
        figures["control"] = beside_a_writer(copy_of(path, "round.db"), idle(min(figures["prune"]["seconds"], 20)))
        figures["ratio"] = figures["prune"]["per_s"] / figures["plain"]["per_s"]
        found.append(figures)
        print(json.dumps(figures, default=float), flush=True)
    print("median ratio", statistics.median(figures["ratio"] for figures in found))
    return found


def planned(path: Path) -> None:
    import resource
    from datetime import timedelta

    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        policies = {
            "terminal_grace 0": RetentionPolicy(max_events=UNLIMITED),
            "half of the bytes": RetentionPolicy(max_events=UNLIMITED, max_bytes=250_000, terminal_grace=timedelta(days=9)),
            "half of the budget": RetentionPolicy(
                max_events=UNLIMITED, max_total_bytes=600_000_000, terminal_grace=timedelta(days=9)
            ),
        }
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as shell:
            ((middle,),) = shell.execute("SELECT recorded_at FROM event WHERE position = 500000").fetchall()
        age = timedelta(microseconds=time.time_ns() // 1000 - middle)
        policies["half by age"] = RetentionPolicy(max_events=UNLIMITED, max_age=age, terminal_grace=timedelta(days=9))
        for name, policy in policies.items():
            store.set_retention_policy(policy)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started = time.perf_counter()
            plan = store.plan_prune()
            seconds = time.perf_counter() - started
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(f"{name}: {plan.events:,} events of {len(plan.truncations):,} sessions in {seconds:.3f} s, +{grown:,} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "plan", "prune"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--events-each", type=int, default=500)
    parser.add_argument("--together", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    path = given.directory / "million.db"
    if given.what == "make":
        make(path, sessions=given.sessions, events_each=given.events_each, together=given.together)
    elif given.what == "plan":
        planned(copy_of(path, "plan.db"))
    else:
        prune_rounds(path, given.rounds)


if __name__ == "__main__":
    main()
