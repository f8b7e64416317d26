"""A process that runs short: of descriptors, of memory, or of the size that a file may have."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

_DESCRIPTORS_AT_MOST: Final = 256


@dataclass(frozen=True, slots=True)
class Shortage:
    """`amount` is how many descriptors are free, how many bytes more memory there are, or how many a file may have."""

    kind: Literal["descriptors", "memory", "file size"]
    amount: int

    def __str__(self) -> str:
        return f"{self.kind}: {self.amount:,}"


SHORTAGES: Final = (
    *(Shortage("descriptors", free) for free in range(16)),
    *(Shortage("memory", bytes_more) for bytes_more in (0, *(2**exponent for exponent in range(12, 25)))),
    *(Shortage("file size", int(1024 * 1.25**step)) for step in range(30)),
)


@contextmanager
def short_of(shortage: Shortage) -> Iterator[None]:
    """Inside there is no more than that."""
    if shortage.kind == "descriptors":
        with _few_descriptors(shortage.amount):
            yield
    elif shortage.kind == "memory":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        with _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + shortage.amount):
            yield
    else:
        with _limited(resource.RLIMIT_FSIZE, shortage.amount):  # Python ignores SIGXFSZ, so that a write fails
            yield


@contextmanager
def _limited(number: int, amount: int) -> Iterator[None]:
    before = resource.getrlimit(number)
    resource.setrlimit(number, (amount, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(number, before)


@contextmanager
def _few_descriptors(free: int) -> Iterator[None]:
    with _limited(resource.RLIMIT_NOFILE, _DESCRIPTORS_AT_MOST):
        taken = []
        try:
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                for _ in range(free):
                    os.close(taken.pop())
            yield
        finally:
            for descriptor in taken:
                os.close(descriptor)
