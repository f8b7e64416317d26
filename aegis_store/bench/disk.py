"""The disk itself."""

import os
import statistics
import time
from pathlib import Path

from aegis_store.sqlite_errors import errors_of


def fsync_us(directory: Path, rounds: int = 50) -> float:
    """What writing 4 KiB and one fsync take here, in µs, the median: nothing durable can be faster.

    Raises `StoreFull` and `StoreUnavailable`, which name the directory.
    """
    name = directory / f".aegis-store-fsync-{os.getpid()}"
    taken = []
    with errors_of(str(directory)):
        try:
            with name.open("wb", buffering=0) as file:
                for _ in range(rounds):
                    started = time.perf_counter()
                    file.write(b"\0" * 4096)
                    os.fsync(file.fileno())
                    taken.append((time.perf_counter() - started) * 1e6)
        finally:
            name.unlink(missing_ok=True)
    return statistics.median(taken)
