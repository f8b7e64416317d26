"""Processes queue for a store on a lock that the kernel grants, and do well without it, or beside one who keeps it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from aegis_store import UNLIMITED, EventStore, StoreBusy, file_lock
from aegis_store.file_lock import FileLock
from tests.conftest import OpenStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")

HOLD_TURN = "with store._db.turn(): print('go', flush=True); time.sleep(600)"
HOLD_TRANSACTION = "with store._db.write(): print('go', flush=True); time.sleep(600)"
HOLDERS = pytest.mark.parametrize("hold", [HOLD_TURN, HOLD_TRANSACTION], ids=["turn", "transaction"])


@contextmanager
def process(path: Path, code: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that has `store` open, runs the code, and said "go"; killed at the end."""
    program = f"import sys, time\nfrom aegis_store import EventStore\nstore = EventStore.open({str(path)!r})\n{code}\n"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "go\n"
        try:
            yield started
        finally:
            started.kill()


def test_one_has_it_at_a_time_and_whoever_gives_it_back_lets_the_next_in(tmp_path: Path) -> None:
    first, second = (FileLock(tmp_path / "lock", mode=0o600) for _ in range(2))
    assert first.try_acquire()
    assert not second.try_acquire()
    second.release()  # it does not have it
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.close()
    first.acquire()
    first.close()


def test_where_it_is_not_to_be_had_everybody_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "no" / "directory", tmp_path, tmp_path / "link", None):
        assert FileLock(path, mode=0o600).try_acquire()
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setattr(file_lock, "fcntl", None)
    assert FileLock(tmp_path / "lock", mode=0o600).try_acquire()


def exit_codes(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Of processes that are at work at the same time."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def append_without_locks(path: Path) -> None:
    pytest.MonkeyPatch().setattr(file_lock, "fcntl", None)
    with EventStore.open(path, durability="process") as store:
        for number in range(300):
            store.append("s", "t", number)


def append_to_its_own(path: Path, session_id: str) -> None:
    with EventStore.open(path) as store:
        for number in range(100):
            store.append(session_id, "t", number)


def test_processes_without_it_lose_and_double_nothing(path: Path, open_store: OpenStore, context: ForkServerContext) -> None:
    open_store().create_session("s", max_events=UNLIMITED)
    assert exit_codes([context.Process(target=append_without_locks, args=(path,)) for _ in range(4)]) == [0] * 4
    assert [event.seq for event in open_store().read("s", after_seq=1190).events] == list(range(1191, 1201))


def test_the_file_is_there_while_the_store_is_open_for_its_owner_alone(path: Path, open_store: OpenStore) -> None:
    path.chmod(0o640)
    lock = path.with_name("aegis.db-lock")
    first, second = open_store(), open_store()
    assert lock.stat().st_mode & 0o777 == 0o640 & ~current_umask()
    first.append(first.create_session().session_id, "t", 0)
    first.close()
    assert lock.exists()
    second.close()
    assert not lock.exists()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_store_that_is_read_makes_none(path: Path, open_store: OpenStore) -> None:
    open_store(read_only=True).stats()
    assert not path.with_name("aegis.db-lock").exists()


@HOLDERS
def test_a_holder_that_is_killed_holds_nobody_up(path: Path, open_store: OpenStore, hold: str) -> None:
    store = open_store(busy_timeout_ms=60_000)
    store.create_session("s")
    with process(path, hold) as holder:
        holder.kill()
        holder.wait()
        assert store.append("s", "t", 0).seq == 1


def test_a_holder_that_was_stopped_in_a_transaction_gives_the_others_store_busy_on_time(
    path: Path, open_store: OpenStore
) -> None:
    store = open_store(busy_timeout_ms=600)
    store.create_session("s")
    with process(path, HOLD_TRANSACTION) as holder:
        holder.send_signal(signal.SIGSTOP)
        for write in (lambda: store.append("s", "t", 0), lambda: store.set_status("s", "closed")):
            with pytest.raises(StoreBusy) as busy:
                write()
            assert 580 <= busy.value.waited_ms < 30_000
        holder.kill()
        holder.wait()
    assert store.append("s", "t", 1).seq == 1


def test_one_that_was_stopped_with_nothing_but_the_lock_is_gone_round(path: Path, open_store: OpenStore) -> None:
    store = open_store(busy_timeout_ms=60_000)
    store.create_session("s")
    with process(path, HOLD_TURN) as holder:
        holder.send_signal(signal.SIGSTOP)
        assert store.append("s", "t", 0).seq == 1
        assert store.set_status("s", "closed").status == "closed"


def test_8_processes_that_write_without_a_pause_all_come_to_their_end(
    path: Path, open_store: OpenStore, context: ForkServerContext
) -> None:
    store, names = open_store(), [f"s{number}" for number in range(8)]
    for name in names:
        store.create_session(name, max_events=UNLIMITED)
    assert exit_codes([context.Process(target=append_to_its_own, args=(path, name)) for name in names]) == [0] * 8
    assert [store.get_session(f"s{number}").last_seq for number in range(8)] == [100] * 8


def test_a_store_is_opened_and_closed_a_hundred_times_without_leaving_a_descriptor(path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here")
    EventStore.open(path).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        with EventStore.open(path, maintain_every=None, prune_on_open=False) as store:
            store.ensure_session("s")
    assert len(os.listdir("/proc/self/fd")) == before
