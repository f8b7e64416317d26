"""Trying one position after the other, and looking from outside at what became of the store."""

import errno
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from aegis_store import EventStore
from tests.faults.content import Contents, contents, is_between
from tests.faults.injection import DIRECTORY_VARIABLE, Fault
from tests.faults.script import QUIET, SCRIPT, Step
from tests.faults.shortage import Shortage
from tests.faults.victim import Task, Tried, serve

PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Course:
    """What a store holds before a step, after it, and at the end of all, when nothing goes wrong; and the calls of the step."""

    before: Contents
    after: Contents
    end: Contents
    calls: dict[str, int]


class Trial:
    """The steps of the script, where each begins and what it comes to; and the process in which they are tried."""

    def __init__(self, root: Path, states: Path, line: Connection) -> None:
        self._here = root / "here"
        self._temporary = root / "temporary"
        self._copy = states / "copy"
        self._states = states
        self._line = line
        self._courses: dict[int, Course] = {}

    def course(self, number: int) -> Course:
        """Without faults."""
        if number not in self._courses:
            before = contents(_copied(self._states / str(number), self._copy))
            tried = self._begin(number, None)
            after = contents(self._here)
            problem = self._end()
            assert tried.error is None, tried.stray or tried.error
            assert problem is None, problem
            self._courses[number] = Course(before, after, contents(self._here), tried.calls)
        return self._courses[number]

    def fired(self, number: int, fault: Fault | Shortage) -> tuple[bool, list[str]]:
        """Whether there was such a call, and what went wrong for the caller when it failed."""
        step, course = SCRIPT[number], self.course(number)
        tried = self._begin(number, fault)
        files = {path.relative_to(self._here) for path in self._here.rglob("*")}
        left = [str(path) for path in self._temporary.iterdir()]
        _copied(self._here, self._copy, "*.db", "*.db-wal", "*.db-journal")
        wrong = list(_wrong_words(tried, fault))
        wrong += _wrong_content("in the store", self._here, step, course, tried, at_once=True)
        wrong += _wrong_content("after a crash", self._copy, step, course, tried, at_once=False)
        if fault.kind != "unlink":
            wrong += [f"left behind: {file}" for file in files if ".tmp" in file.name]
        if fault.kind not in ("unlink", "open", "descriptors"):  # what cannot be opened cannot be emptied
            wrong += [f"left behind: {file}" for file in left]
        problem = self._end()
        if problem is not None:
            wrong.append(f"later: {problem}")
        elif contents(self._here) != course.end:
            wrong.append("later: not what it is without the fault")
        return tried.fired > 0, [f"{step.name}: {fault}: {tried.error}: {what}" for what in wrong]

    def _begin(self, number: int, fault: Fault | Shortage | None) -> Tried:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        self._line.send(Task(number, _copied(self._states / str(number), self._here), fault))
        assert self._line.poll(PATIENCE_S), f"{SCRIPT[number].name}: {fault}: it hangs"
        tried = self._line.recv()
        assert isinstance(tried, Tried)
        return tried

    def _end(self) -> str | None:
        self._line.send("go on")
        assert self._line.poll(PATIENCE_S), "it hangs afterwards"
        problem: str | None = self._line.recv()
        return problem


def _copied(source: Path, target: Path, *patterns: str) -> Path:
    """A database before its log, so that a checkpoint meanwhile takes nothing away."""
    shutil.rmtree(target, ignore_errors=True)
    if not patterns:
        return Path(shutil.copytree(source, target))
    target.mkdir()
    for pattern in patterns:
        for path in source.glob(pattern):
            shutil.copy(path, target)
    return target


def _wrong_words(tried: Tried, fault: Fault | Shortage) -> Iterator[str]:
    if tried.stray is not None and not (fault.kind == "memory" and tried.error == "MemoryError"):
        yield f"no error of this package: {tried.stray}"
    elif tried.error is not None and tried.error not in _told_of(fault):
        yield f"that is not what happened: {tried.said}"
    if tried.error is not None and not tried.fired:
        yield "an error without a fault"


def _told_of(fault: Fault | Shortage) -> set[str]:
    """What may be told. A file that cannot be read cannot be imported, SQLite takes a page that the disk cannot read for damage
    and a file that it cannot open for writing for a read-only one.
    """
    told = {"StoreUnavailable", "FileUnavailable"}
    if fault.kind in ("read", "open", "descriptors", "memory"):
        told |= {"ImportRejected", "MemoryError"}
    if fault.kind == "read":
        told |= {"StoreCorrupt"}
    if fault.kind == "file size" or (isinstance(fault, Fault) and fault.manner.error == errno.ENOSPC):
        told |= {"StoreFull"}
    if fault.kind in ("open", "descriptors") or (isinstance(fault, Fault) and fault.manner.error == errno.EROFS):
        told |= {"ReadOnlyStore"}
    return told


def _wrong_content(where: str, directory: Path, step: Step, course: Course, tried: Tried, *, at_once: bool) -> Iterator[str]:
    """What is there is what the caller was told: all of it or nothing, or what a step in slices may leave.

    A commit that was not acknowledged may come back after a crash: its fsync failed, and it had reached the disk all the same.
    """
    try:
        found = contents(directory)
    except Exception as error:  # noqa: BLE001 - it is reported
        yield f"{where}: {type(error).__name__}: {error}"
        return
    if tried.error is None and not step.puts_off:
        is_right = found == course.after
    elif step.in_slices:
        is_right = is_between(found, course.before, course.after)
    else:
        is_right = found == course.before or (found == course.after and (step.looks_again or not at_once))
    if not is_right:
        yield f"{where}: it is neither as before nor as after" if found != course.after else f"{where}: it happened"
    there = {event[1] for content in found.values() for event in content.events.values()}
    if not tried.acknowledged <= there:
        yield f"{where}: acknowledged and not there: {sorted(tried.acknowledged - there)[:5]}"


@contextmanager
def trial(shim: Path, directory: Path) -> Iterator[Trial]:
    """The victim is started, and the script has run once without faults; all of it below `directory`."""
    root, states = directory.resolve() / "root", directory / "states"
    (root / "temporary").mkdir(parents=True)
    states.mkdir()
    _write_states(states)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    more = {"LD_PRELOAD": str(shim), DIRECTORY_VARIABLE: str(root)}
    with _environment(more | dict.fromkeys(("TMPDIR", "SQLITE_TMPDIR"), str(root / "temporary"))):
        process.start()
    theirs.close()
    try:
        yield Trial(root, states, ours)
        ours.send(None)
        process.join(PATIENCE_S)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _write_states(states: Path) -> None:
    """Run the script without faults, and keep where each step begins."""
    work = states / "work"
    work.mkdir()
    for number, step in enumerate(SCRIPT):
        state = states / str(number)
        if step.was_killed:
            _leave_a_log(work / step.file, _copied(work, state))
        else:
            _copied(work, state)
        scene = step.scene(work)
        step.act(scene)
        if scene.store is not None:
            scene.store.close()


def _leave_a_log(path: Path, state: Path) -> None:
    """Leave in `state` what a process leaves behind that is killed after some appends."""
    with EventStore.open(path, durability="process", **QUIET) as store:
        for number in range(30):
            store.append("t", "note", number)
        for side in ("", "-wal"):
            shutil.copy(f"{path}{side}", state)
