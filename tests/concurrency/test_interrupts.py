"""Ctrl-C may come at any moment: the append happened or did not, and the store goes on."""

import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from aegis_store import UNLIMITED, EventStore, NewEvent

INTERRUPTS = 300


@pytest.fixture
def interrupt_soon() -> Iterator[Callable[[], None]]:
    """Raises KeyboardInterrupt in this thread within the next 2 ms."""
    if sys.platform == "win32":
        pytest.skip("Windows has no timer signals")
    chance = random.Random(1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.002)) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupts that fall into destructors
@pytest.mark.parametrize("batch", [None, 3], ids=["append", "append_many"])
def test_an_interrupted_append_happened_or_did_not_and_the_store_goes_on(
    store: EventStore, interrupt_soon: Callable[[], None], batch: int | None
) -> None:
    store.create_session("s", max_events=UNLIMITED)
    acknowledged = []
    for _ in range(INTERRUPTS):
        try:
            interrupt_soon()
            for _ in range(200):  # an interrupt that falls into a destructor is lost
                if batch:
                    acknowledged += [event.seq for event in store.append_many("s", [NewEvent(type="t", payload=0)] * batch)]
                else:
                    acknowledged.append(store.append("s", "t", 0).seq)
        except KeyboardInterrupt:
            continue
    last_seq = store.get_session("s").last_seq
    assert acknowledged == sorted(set(acknowledged))
    assert acknowledged[-1] <= last_seq
    assert not batch or last_seq % batch == 0

    from_another_thread = []
    thread = threading.Thread(target=lambda: from_another_thread.append(store.append("s", "t", 1).seq))
    thread.start()
    thread.join()
    assert from_another_thread == [last_seq + 1]
