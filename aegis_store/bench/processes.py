"""Several processes that append to one store at once. Their floor is one writer alone."""

import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from aegis_store.bench import floor
from aegis_store.bench.append import append_to
from aegis_store.bench.groups import combined
from aegis_store.bench.measure import Row, Sides, Turn, repeated
from aegis_store.bench.room import Room
from aegis_store.store import EventStore

PROCESSES: Final = 8


@contextmanager
def at_once(room: Room) -> Iterator[Sides]:
    """Eight processes, each of which appends one event after the other, at `power`."""
    with floor.lone_writer(room.store("floor.db"), "power", room.seconds) as lone:
        with children(PROCESSES, append_when_told, room.store("store.db")) as lines:
            yield Sides(lambda: turn_of(lines, room.seconds), lone)


def turn_of(lines: list[Connection], seconds: float) -> Turn:
    for line in lines:
        line.send(seconds)
    told = [answer(line) for line in lines]
    began, ended = min(began for began, _, _ in told), max(ended for _, ended, _ in told)
    return combined([turn for _, _, turn in told], ended - began)


def append_when_told(line: Connection, target: Path | str) -> None:
    with EventStore.open(target, durability="power", prune_on_open=False, maintain_every=None) as store:
        work_when_told(line, append_to(store))


def work_when_told(line: Connection, append: floor.Operation) -> None:
    """Append for as many seconds as are told, each time, and tell of it."""
    numbers = itertools.count()
    append(next(numbers))
    line.send("ready")
    while True:
        seconds = line.recv()
        began = time.perf_counter()  # the same clock in all processes
        turn = repeated(append, seconds, numbers)
        line.send((began, time.perf_counter(), turn))


# Processes that measure


Work = Callable[..., None]
"""What a child does: is given its end of a line, says "ready" on it, then does what it is told, until the line is closed."""


@contextmanager
def children(count: int, work: Work, *arguments: Any) -> Iterator[list[Connection]]:
    """So many processes, all of them ready; they end with the block."""
    context = _context()
    lines: list[Connection] = []
    processes = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            lines.append(ours)
            process = context.Process(target=_child, args=(work, theirs, *arguments), daemon=True)
            with _interrupts_blocked():
                process.start()
            processes.append(process)
            theirs.close()
        for line in lines:
            answer(line)
        yield lines
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for line in lines:
            line.close()
        for process in processes:
            process.join()


def _context() -> Any:
    """Where it can be, children are forked from a process that has imported this and opened nothing: they come up at once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _child(work: Work, line: Connection, *arguments: Any) -> None:
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the line was closed: there is no more to do
        work(line, *arguments)


def answer(line: Connection) -> Any:
    """What the process at the other end says."""
    try:
        return line.recv()
    except (EOFError, ConnectionResetError):
        raise RuntimeError("a process that measured has ended early; its own error is above") from None


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started inside never hears of Ctrl-C: this one ends it. (Windows has no such mask.)"""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


ROWS: Final = [Row("processes", f"{PROCESSES} processes, power", "events", at_once)]
