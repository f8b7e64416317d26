"""Who writes next: of the threads and tasks of one process, and of all processes.

A thread that finds nobody at work writes at once. Everybody else stands in one line, which a thread of its own serves: it
waits for the file lock, then lets those in front have their go. Statements that stand behind each other are carried out
together, in one transaction; whoever wants a transaction of his own gets the turn, and the line waits until he is done.

Those who have shared a commit may come again at once. So the next commit waits while they keep coming, at most twice as long as
the last one took; after each time that they did not come, twice as many do not wait. And they are woken one by one: all at
once, they would fight for the interpreter. 64 threads write 1.3 times as fast for both.

So no caller waits without limit (the thread that waits in the kernel is none that anybody depends on), and Ctrl-C, which
strikes a caller, never strikes the one who carries out the others' statements.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, Final

from aegis_store.errors import StoreBusy
from aegis_store.file_lock import FileLock
from aegis_store.target import Target

Rows = list[tuple[Any, ...]]

# How often who was interrupted looks whether his statement, which is being carried out, has come to its end.
_SETTLED_POLL_S: Final = 0.0002

# Threads that write one event after the other come back within 50 µs of each other here.
_COMING_S: Final = 0.0002

# Where it never pays to wait for those who shared the last commit, one in so many shared commits finds that out again.
_IN_VAIN_MOST: Final = 63


class NoTurn(Exception):
    """The wait in the line was in vain: the caller is to see for himself whether he can write."""


class Statement:
    """A statement in the line. Who carries it out sets `rows` or `error`, then `is_settled`, then wakes who waits."""

    __slots__ = ("error", "following", "is_settled", "is_taken", "parameters", "rows", "size_bytes", "sql", "wake")

    def __init__(
        self, sql: str, parameters: dict[str, Any], size_bytes: int, wake: Callable[[list["Statement"]], None]
    ) -> None:
        self.sql = sql
        self.parameters = parameters
        self.size_bytes = size_bytes
        self.wake = wake
        self.rows: Rows = []
        self.error: Exception | None = None
        self.is_taken = False
        self.is_settled = False
        self.following: Statement | None = None
        """The next one of the same commit with the same `wake`, for one that tells only the first."""

    def outcome(self) -> Rows:
        if self.error is not None:
            raise self.error
        return self.rows


Wake = Callable[[list[Statement]], None]
"""Tells those who wait for these statements that they are settled. From the thread that carried them out: be quick."""


def settle(statements: list[Statement]) -> None:
    """Tell those who wait, in order; all that wait in the same place at once."""
    waiting: dict[Wake, list[Statement]] = {}
    for statement in statements:
        waiting.setdefault(statement.wake, []).append(statement)
    for ones in waiting.values():
        for one, following in pairwise(ones):
            one.following = following
    for statement in statements:
        statement.is_settled = True
    for wake, ones in waiting.items():
        wake(ones)


class _OfThread(Statement):
    """A statement in the line for which a thread waits. Of those of one commit, each thread wakes the next."""

    __slots__ = ("done",)

    def __init__(self, sql: str, parameters: dict[str, Any], size_bytes: int) -> None:
        super().__init__(sql, parameters, size_bytes, _wake_first)
        self.done = _taken_lock()

    def wake_next(self) -> None:
        if self.following is not None:
            _wake_first([self.following])


def _wake_first(statements: list[Statement]) -> None:
    first = statements[0]
    if isinstance(first, _OfThread):
        first.done.release()


class _Turn:
    """A place in the line for a transaction of one's own. One that is thrown away is over."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.granted, self.over = _taken_lock(), _taken_lock()

    def end(self) -> None:
        with suppress(RuntimeError):  # it is over already
            self.over.release()

    __del__ = end


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class Turns:
    """The turns at one store file, as one open store sees them.

    `lock` is held by whoever writes. It is taken by `with` in the caller's own frame wherever that can be: between a call of
    `acquire` and what follows it, or on the way out of a generator, Ctrl-C could come, and it would never be given back.
    `owner` is the thread that has it. It is set and taken back without a call in between, in which a signal could come: a
    handler that writes is to be refused, and not to wait for the thread that it has interrupted.
    """

    def __init__(self, target: Target, carry_out: Callable[[], None], *, has_file_lock: bool) -> None:
        """`carry_out` is called with the lock held when a statement stands in front: it is to `take` those that do."""
        self.lock = threading.Lock()
        self.owner = 0
        self._store = str(target)
        self._lock_file = target.side_file("-lock") if has_file_lock else None
        self._log_file = target.side_file("-wal")
        self._mode = 0o600
        with suppress(OSError):
            self._mode = os.stat(target.path).st_mode & 0o666  # as SQLite's own side files have it
        self.file_lock = self._new_file_lock()
        self._line: deque[Statement | _Turn] = deque()
        self._expected = 0  # so many are to stand in the line before it is served
        self._in_vain = 0  # after the last wait for them, so many commits were not to wait
        self._hurried = 0  # so many of those are left
        self._carry_out = carry_out
        self._bell = _taken_lock()
        self._starting = threading.Lock()
        self._server: threading.Thread | None = None
        self._file_lock_of_line: FileLock | None = None
        self._is_stopped = False

    def _new_file_lock(self) -> FileLock:
        return FileLock(self._lock_file, mode=self._mode)

    def nobody_writes(self) -> bool:
        """Whether there is nobody to wait for, as far as one can see."""
        return not (self._line or self._expected or self.lock.locked())

    @contextmanager
    def at_once(self) -> Iterator[bool]:
        """The turn, without a line. False: another process has it."""
        thread = threading.get_ident()
        with self.lock:
            try:
                self.owner = thread
                yield self.file_lock.try_acquire()
            finally:
                try:
                    self.file_lock.release()
                finally:
                    self.owner = 0

    # In the line

    def outcome_of(self, sql: str, parameters: dict[str, Any], size_bytes: int, patience_s: float) -> Rows:
        """What became of a statement that was carried out for us. Raises its error, and `NoTurn` after `patience_s`."""
        statement = _OfThread(sql, parameters, size_bytes)
        try:
            self.put(statement)
            if not statement.done.acquire(timeout=patience_s) and self.withdraw(statement):
                raise NoTurn
        finally:
            try:
                if not statement.is_settled:
                    self._leave(statement)
            finally:  # Ctrl-C may come once more, and is not to hold up those behind
                statement.wake_next()
        return statement.outcome()

    def _leave(self, statement: Statement) -> None:
        """Out of the line; if it is just being carried out, when it has happened, or not."""
        self.withdraw(statement)
        while statement.is_taken and not statement.is_settled and self.lock.locked():
            time.sleep(_SETTLED_POLL_S)

    @contextmanager
    def in_line(self, patience_s: float, asked_s: float, longest_s: float) -> Iterator[None]:
        """The turn, when those before have had theirs; after `patience_s`, round the line.

        Raises `StoreBusy` when another thread still writes `longest_s` after `asked_s`.
        """
        turn = _Turn()
        try:
            if self._stood(turn, patience_s):
                try:
                    yield
                finally:
                    self.owner = 0
                    turn.over.release()
                return
        finally:
            self.withdraw(turn)
            if self.owner == turn.thread:  # it was granted, and Ctrl-C came before it began
                self.owner = 0
            turn.end()
        with self.round_the_line(asked_s, longest_s):
            yield

    def _stood(self, turn: _Turn, patience_s: float) -> bool:
        """Whether the turn was granted in time."""
        with suppress(NoTurn):
            self.put(turn)
            if turn.granted.acquire(timeout=patience_s):
                return True
            if not self.withdraw(turn):
                return turn.granted.acquire()  # it was granted just now
        return False

    @contextmanager
    def round_the_line(self, asked_s: float, longest_s: float) -> Iterator[None]:
        """The turn in this process, without asking for the file lock. Raises `StoreBusy` `longest_s` after `asked_s`."""
        thread = threading.get_ident()
        if not self.lock.acquire(timeout=max(asked_s + longest_s - time.monotonic(), 0)):
            raise StoreBusy(store=self._store, waited_ms=int((time.monotonic() - asked_s) * 1000))
        try:
            self.owner = thread
            yield
        finally:
            self.owner = 0
            self.lock.release()

    def withdraw(self, waiting: Statement | _Turn) -> bool:
        """Out of the line. False: it is not there any more, or not yet."""
        try:
            self._line.remove(waiting)
        except ValueError:
            return False
        return True

    def anybody_waits(self) -> bool:
        return bool(self._line)

    def put(self, waiting: Statement | _Turn) -> None:
        """Into the line. Raises `NoTurn` if there can be none."""
        if self._server is None or not self._server.is_alive():
            self._start()
        self._line.append(waiting)
        if len(self._line) >= self._expected:
            self._ring()

    # The thread that serves the line

    def _start(self) -> None:
        with self._starting:
            if self._is_stopped:
                raise NoTurn
            if self._server is None or not self._server.is_alive():
                self._expected = 0  # if one has died that waited for others
                server = threading.Thread(target=self._serve, name="aegis-store writer", daemon=True)
                try:
                    server.start()
                except RuntimeError:  # no more threads are to be had
                    raise NoTurn from None
                self._server = server

    def _ring(self) -> None:
        if self._bell.locked():
            with suppress(RuntimeError):  # another rang it just now
                self._bell.release()

    def _serve(self) -> None:
        file_lock = self._file_lock_of_line = self._new_file_lock()
        try:
            while not self._is_stopped:
                self._bell.acquire()
                while self._line:
                    file_lock.acquire()
                    began_s = time.monotonic()
                    try:
                        with self.lock:
                            self._serve_first()
                    finally:
                        file_lock.release()
                    self._await_expected(time.monotonic() - began_s)
        finally:
            file_lock.close()

    def _await_expected(self, took_s: float) -> None:
        if self._expected:
            self._bell.acquire(blocking=False)  # it may still ring for one of those who stand there
            until_s, stood = time.monotonic() + 2 * took_s, -1
            while stood < len(self._line) < self._expected and time.monotonic() < until_s and not self._is_stopped:
                stood = len(self._line)
                self._bell.acquire(timeout=_COMING_S)
            self._in_vain = 0 if len(self._line) >= self._expected else min(2 * self._in_vain + 1, _IN_VAIN_MOST)
            self._hurried, self._expected = self._in_vain, 0

    def _serve_first(self) -> None:
        try:
            first = self._line[0]
        except IndexError:  # who stood there has left
            return
        if isinstance(first, Statement):
            self._carry_out()
        elif self.withdraw(first):
            over, self.owner = first.over, first.thread
            first.granted.release()
            del first  # if its owner drops it too, it is over
            over.acquire()
            self.owner = 0

    def take(self, most: int, most_bytes: int) -> list[Statement]:
        """The statements that stand in front, within these limits, at least one. Who is taken cannot leave any more."""
        taken: list[Statement] = []
        size_bytes = 0
        with suppress(IndexError):  # nobody is left
            while len(taken) < most and isinstance(first := self._line[0], Statement):
                size_bytes += first.size_bytes
                if taken and size_bytes > most_bytes:
                    break
                first.is_taken = True  # before it is out of the line, so that nobody takes it for one that left
                if self.withdraw(first):
                    taken.append(first)
        if len(taken) > 1:
            self._hurried -= 1
            if self._hurried < 0:
                self._expected = min(len(taken) + len(self._line), most)
        return taken

    def stop(self) -> None:
        """No more line. Who stands there is told by `carry_out`, or by his patience. The last one out takes the file away.

        If another process is just opening the store, it is left with a lock of its own: SQLite's then decides between it and
        those that come later.
        """
        self._is_stopped = True
        self._ring()
        self.file_lock.close()
        if self._lock_file is not None and not self._log_file.exists():  # SQLite took its own side files away
            with suppress(OSError):
                self._lock_file.unlink()

    def give_up_descriptors(self) -> None:
        """In a forked child: its copies of the descriptors would keep the parent's locks beyond the parent's death."""
        for lock in (self.file_lock, self._file_lock_of_line):
            if lock is not None:
                lock.close()
