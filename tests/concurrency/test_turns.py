"""Threads of one process take turns at writing, and nobody is taken for somebody who came back amid his own turn."""

import sys
import threading

from aegis_store import UNLIMITED, EventStore

THREADS = 4
APPENDS = 1500


def test_threads_that_follow_each_other_closely_are_never_told_that_the_store_is_busy(store: EventStore) -> None:
    store.create_session("s", max_events=UNLIMITED)
    errors: list[Exception] = []

    def write() -> None:
        try:
            for number in range(APPENDS):
                store.append("s", "t", number)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is to show it
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=write) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    assert store.get_session("s").last_seq == THREADS * APPENDS


def test_a_thread_that_wrote_last_waits_for_one_that_just_took_its_turn(store: EventStore) -> None:
    store.create_session("s")
    assert store.append("s", "t", 1).seq == 1
    store._db.turns.lock.acquire()  # as another thread that has the lock, and has not run on yet
    threading.Timer(0.05, store._db.turns.lock.release).start()
    assert store.append("s", "t", 2).seq == 2
