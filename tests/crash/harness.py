"""Processes that work on a store and are killed with SIGKILL at random moments, one alone or several on one file.

Each says through a pipe what was acknowledged to it, as soon as it was: so the test knows what has to be there. Those that are
spared have to go on.
"""

import random
import threading
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

PROCESSES = 4

_WAIT_S = 60.0
_SIGNS_OF_LIFE = 20

Acknowledged = tuple[str, int, int]
"""(session, seq, number) of an event whose append returned."""


class Line:
    """What a process says to the test, and hears from it. `number` and `numbers` are those of no other process."""

    def __init__(self, pipe: Connection, number: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.number = number
        self.numbers = count(number, PROCESSES)
        self._pipe = pipe
        self._saying = threading.Lock()

    def begin(self) -> None:
        """Say that all is ready, and wait until the others are: from now on anybody may be killed."""
        self._pipe.send("ready")
        self._pipe.recv()

    def acknowledge(self, *said: Acknowledged) -> None:
        """From whichever thread. Saying nothing is a sign of life."""
        with self._saying:
            self._pipe.send(said)

    def goes_on(self) -> bool:
        """Whether this process was not told to end."""
        return not self._pipe.poll()


Task = Callable[[Line, Path], None]
"""What a process does with the store at that path."""


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What all processes together were told is done, and how many of them were killed before they came to their end."""

    acknowledged: list[Acknowledged]
    killed: int


def _work(pipe: Connection, number: int, seed: int, task: Task, path: Path) -> None:
    try:
        task(Line(pipe, number, seed), path)
    except Exception:
        pipe.send(traceback.format_exc())
        raise


class _Process:
    """A process that may be killed, as the test sees it."""

    def __init__(self, context: ForkServerContext, number: int, seed: int, task: Task, path: Path) -> None:
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, number, seed, task, path), daemon=True)
        self._process.start()
        theirs.close()
        self.acknowledged: list[Acknowledged] = []
        self.signs_of_life = 0
        self.is_over = False

    def hear_ready(self) -> None:
        assert self.pipe.poll(_WAIT_S), "it does not get ready"
        said = self.pipe.recv()
        assert said == "ready", said

    def hear(self) -> None:
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):  # its last word may be cut off
            self.is_over = True
            return
        assert not isinstance(said, str), said
        self.acknowledged += said
        self.signs_of_life += 1

    def tell(self, word: str) -> None:
        if not self.is_over:
            try:
                self.pipe.send(word)
            except OSError:  # it came to its end just now
                return

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> int | None:
        """Its exit code."""
        self._process.join(_WAIT_S)
        code = self._process.exitcode
        self.pipe.close()
        self._process.close()
        return code


def run_and_kill(
    context: ForkServerContext, chance: random.Random, tasks: Collection[Task], path: Path, longest_s: float
) -> Aftermath:
    """Run the tasks, a process each; some or all are killed within `longest_s`, at the same moment or each at its own."""
    processes = [_Process(context, number, chance.randrange(2**32), task, path) for number, task in enumerate(tasks)]
    for process in processes:
        process.hear_ready()
    for process in processes:
        process.tell("go")
    victims = chance.sample(processes, chance.randint(1, len(processes)))
    began_s, together_s = time.monotonic(), chance.uniform(0, longest_s)
    each_alone = chance.random() < 0.5
    moments_s = sorted(chance.uniform(0, longest_s) if each_alone else together_s for _ in victims)
    for moment_s, victim in zip(moments_s, victims, strict=True):
        _listen(processes, began_s + moment_s)
        victim.kill()
    spared = [process for process in processes if process not in victims]
    _see_that_they_go_on(spared)
    for process in spared:
        process.tell("end")
    _listen(processes, time.monotonic() + _WAIT_S)
    assert all(process.is_over for process in processes), "a process does not end"
    codes = {process: process.join() for process in processes}
    assert {codes[process] for process in spared} <= {0}
    assert {codes[process] for process in victims} <= {0, -9}
    acknowledged = [event for process in processes for event in process.acknowledged]
    return Aftermath(acknowledged, sum(code == -9 for code in codes.values()))


def _listen(processes: Collection[_Process], until_s: float, *, is_enough: Callable[[], bool] = lambda: False) -> None:
    """Until then, or until it is enough, or until all are over."""
    while not is_enough() and (left_s := until_s - time.monotonic()) > 0:
        speaking = {process.pipe.fileno(): process for process in processes if not process.is_over}
        if not speaking:
            return
        for descriptor in wait(list(speaking), left_s):
            assert isinstance(descriptor, int)
            speaking[descriptor].hear()


def _see_that_they_go_on(spared: Collection[_Process]) -> None:
    """Each comes to its end, or speaks again so often that it was not all said before the others died."""
    heard = {process: process.signs_of_life for process in spared}

    def go_on() -> bool:
        return all(process.is_over or process.signs_of_life >= heard[process] + _SIGNS_OF_LIFE for process in spared)

    _listen(spared, time.monotonic() + _WAIT_S, is_enough=go_on)
    assert go_on(), "a process that was spared does not go on"
