"""What a process may be killed at: how the store stands before, what is done, and what must hold afterwards."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crash import writers
from tests.crash.harness import PROCESSES, Aftermath, Task
from tests.crash.stores import Stores

Check = Callable[[Aftermath], None]
Given = Callable[[Path, Stores, random.Random], Check]
"""Makes a store at the path, and gives the check of what must hold when processes that worked on it were killed."""


@dataclass(frozen=True, slots=True)
class Activity:
    """`task` takes some `longest_s`. Of 4 processes `doers` do it, and the others do what is done `beside` it."""

    given: Given
    task: Task
    longest_s: float
    doers: int = 2
    beside: Task = writers.append

    def tasks(self, processes: int) -> list[Task]:
        if processes == 1:
            return [self.task]
        return [self.task] * self.doers + [self.beside] * (PROCESSES - self.doers)
