"""What an open store counts of its own work, for the metrics of the process that it works in; `StoreStats` shows it.

On the path of a lone append, which takes 90 µs, a lock and a sum that has gone cold are a percent of it. So an append only puts
its time into a queue, which needs no lock, and whoever has the turn to write the events of his commit into another, or counts
`commits_of_one`; each 256th call sorts them into their buckets. That and all else is done under a lock, which nobody takes who
has the turn to write: a signal handler that appends, and waits for its turn, may have interrupted the thread that holds it.
"""

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final

from aegis_store.events import Histogram

_NS: Final = 1_000_000_000

# From a commit without an fsync on a fast disk (90 µs here) to a store that is held until the busy timeout: two or three a
# decade, as Prometheus has them.
_APPEND_BOUNDS_NS: Final = tuple(
    int(seconds * _NS)
    for seconds in (
        *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
        *(1.0, 2.5, 5.0, 10.0),
    )
)
# Appends that wait together share a commit, 128 of them at the most; a batch may be larger.
_COMMIT_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_SORTED_AT_ONCE: Final = 256

now_ns: Final[Callable[[], int]] = time.perf_counter_ns
"""The clock of `Metrics.appended`."""


class _Buckets:
    """How often a whole number was found in each range: up to a bound, and over the one before it."""

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    def take(self, values: deque[int]) -> None:
        with suppress(IndexError):  # a signal handler has come in between, and left nothing
            for _ in range(len(values)):
                value = values.popleft()
                self.counts[bisect_left(self.bounds, value)] += 1
                self.sum += value

    def histogram(self, unit: int = 1, *, ones: int = 0) -> Histogram:
        """As it is shown: in other units, with so many ones more, and each bucket with those below it."""
        names = [*(f"{bound / unit:g}" for bound in self.bounds), "+Inf"]
        counts = list(accumulate(self.counts, initial=ones))[1:]
        total = self.sum + ones
        return Histogram(
            count=counts[-1], sum=total / unit if unit > 1 else total, buckets=dict(zip(names, counts, strict=True))
        )


class Metrics:
    """The counters of one open store, from its opening on. Safe for threads."""

    def __init__(self) -> None:
        self.commits_of_one = 0
        """Commits of a single append. Counted by whoever has the turn to write, without the lock."""
        self._lock = threading.RLock()
        self._new_append_ns = deque[int]()
        self._new_commits = deque[int]()
        self._append_ns = _Buckets(_APPEND_BOUNDS_NS)
        self._commit_events = _Buckets(_COMMIT_BOUNDS)
        self._prunes = 0
        self._pruned_events = 0
        self._truncated_reads = 0

    def committed(self, events: int) -> None:
        """A transaction with so many new events of appends was committed; none: nothing happened. Takes no lock."""
        if events:
            self._new_commits.append(events)

    def appended(self, began_ns: int) -> None:
        """A call of `append` or `append_many` that began then is about to return what was asked for. Not inside of a turn."""
        self._new_append_ns.append(now_ns() - began_ns)
        if len(self._new_append_ns) >= _SORTED_AT_ONCE:
            self._sort()

    def _sort(self) -> None:
        with self._lock:
            self._append_ns.take(self._new_append_ns)
            self._commit_events.take(self._new_commits)

    def pruned(self, events: int) -> None:
        """A slice of a prune was committed."""
        with self._lock:
            self._pruned_events += events

    def ran_prune(self) -> None:
        """A prune has come to its end, whichever."""
        with self._lock:
            self._prunes += 1

    def read_truncated(self) -> None:
        """A reader met events that had been removed before he had read them."""
        with self._lock:
            self._truncated_reads += 1

    def shown(self) -> dict[str, Any]:
        """All of it at one moment, by the names of `StoreStats`."""
        with self._lock:
            self._sort()
            commit_events = self._commit_events.histogram(ones=self.commits_of_one)
            return {
                "appended_events": commit_events.sum,
                "append_seconds": self._append_ns.histogram(_NS),
                "commit_events": commit_events,
                "prunes": self._prunes,
                "pruned_events": self._pruned_events,
                "truncated_reads": self._truncated_reads,
            }
