"""A forked child must open the store again, is told so, and harms no one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_store import EventStore
from aegis_store.file_lock import FileLock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

PYTHON = (sys.executable, "-W", "ignore::DeprecationWarning", "-c")  # which Python 3.12 raises at forks beside threads

PROLOGUE = """
import os, sys, threading, time
from aegis_store import EventStore, StoreClosed, UNLIMITED
path = sys.argv[1]
store = EventStore.open(path)
store.ensure_session("s", max_events=UNLIMITED)
store.append("s", "t", "parent")

def told(call):
    try:
        call()
    except StoreClosed as error:
        return "forked" in str(error) and "open it again" in str(error)
    return False

def wait(child):
    assert os.waitpid(child, 0)[1] == 0
"""


def run(path: Path, code: str) -> None:
    done = ran(path, code)
    assert (done.returncode, done.stderr) == (0, "")


def ran(path: Path, code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*PYTHON, PROLOGUE + code, str(path)], capture_output=True, text=True, timeout=120, check=False)


def payloads(path: Path) -> list[object]:
    with EventStore.open(path, prune_on_open=False) as store:
        return [event.payload for event in store.read("s", limit=1000).events]


def test_the_child_is_told_whatever_it_does_and_its_parent_goes_on(path: Path) -> None:
    code = """
child = os.fork()
if not child:
    calls = [lambda: store.append("s", "t", 0), lambda: store.append_many("s", []), lambda: store.read("s"), store.stats,
             store.prune, lambda: store.set_status("s", "closed"), store.reclaim, store.health]
    os._exit(0 if all([told(call) for call in calls]) else 3)
wait(child)
store.append("s", "t", "again")
store.close()
"""
    run(path, code)
    assert payloads(path) == ["parent", "again"]


@pytest.mark.parametrize("end", ["store.close(); sys.exit(0)", "sys.exit(0)", "del store; sys.exit(0)"])
def test_a_child_that_ends_takes_nothing_of_its_parent_along(path: Path, end: str) -> None:
    code = f"""
with store._db.write() as conn:  # a transaction is under way, and pages of it may be in the log
    conn.exec_driver_sql("UPDATE session SET metadata = '{{}}'")
    child = os.fork()
    if not child:
        import contextlib
        {end}
    wait(child)
for number in range(50):
    store.append("s", "t", number)
again = EventStore.open(path, prune_on_open=False)
assert again.append("s", "t", "other").seq == 52
again.close()
store.close()
"""
    # The child leaves through the block of the transaction as well: its rollback must find nothing to undo.
    done = ran(path, code)
    assert done.returncode == 0, done.stderr
    assert payloads(path) == ["parent", *range(50), "other"]


def test_the_child_opens_the_store_again_and_both_write(path: Path) -> None:
    code = """
child = os.fork()
if not child:
    own = EventStore.open(path)
    for number in range(100):
        own.append("s", "t", ["child", number])
    own.close()
    store.close()
    os._exit(0)
for number in range(100):
    store.append("s", "t", ["parent", number])
wait(child)
store.close()
"""
    run(path, code)
    found = payloads(path)
    assert [one for one in found if one[0] == "child"] == [["child", number] for number in range(100)]  # type: ignore[index]
    assert len(found) == 201


def test_a_fork_amid_the_writing_of_other_threads_harms_neither(path: Path) -> None:
    code = """
stop = threading.Event()
def write():
    while not stop.is_set():
        store.append("s", "t", 0)
threads = [threading.Thread(target=write) for _ in range(4)]
for thread in threads: thread.start()
for number in range(20):
    child = os.fork()
    if not child:
        ok = told(lambda: store.append("s", "t", 1)) and told(lambda: store.read("s"))
        store.close()
        own = EventStore.open(path, prune_on_open=False)
        own.append("s", "t", "child")
        own.close()
        os._exit(0 if ok else 3)
    wait(child)
stop.set()
for thread in threads: thread.join()
last = store.get_session("s").last_seq
store.close()
again = EventStore.open(path)
assert again.get_session("s").event_count == last
assert again.health().ok
"""
    run(path, code)
    with EventStore.open(path) as store:
        assert [event.payload for event in store.read("s", types=["t"], limit=1000).events].count("child") <= 20


def test_a_child_of_a_process_that_was_at_work_is_refused_the_store_and_its_parent_goes_on(path: Path) -> None:
    code = """
from aegis_store import StoreUnavailable
with store._db.write() as conn:
    conn.exec_driver_sql("UPDATE session SET metadata = '{}'")
    child = os.fork()
    if not child:
        try:
            EventStore.open(path)
        except StoreUnavailable as error:
            os._exit(0 if "spawn" in str(error) else 3)
        os._exit(4)
    wait(child)
store.append("s", "t", "again")
store.close()
"""
    run(path, code)
    assert payloads(path) == ["parent", "again"]


def test_a_child_keeps_no_lock_of_a_parent_that_was_killed(path: Path) -> None:
    code = """
import signal
from_child, to_parent = os.pipe()
with store._db.turn():
    child = os.fork()
    if not child:
        os.write(to_parent, b"here")
        time.sleep(60)
        os._exit(0)
    os.read(from_child, 4)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROLOGUE + code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.wait(60) == -9
        try:
            lock = FileLock(path.with_name("aegis.db-lock"), mode=0o600)
            assert lock.try_acquire()
            lock.close()
        finally:
            os.kill(child, 9)
