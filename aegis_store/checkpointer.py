"""Checkpoints off the writers' path: a thread that brings the log into the file little by little.

SQLite's own checkpoints run inside some writer's commit, which then takes ten to twenty milliseconds. This thread's run
beside the writers, and only while this store writes. Beside writers that never pause, though, it never catches up with the
last of them, so that SQLite would never begin the log anew: where the log has grown long, it takes a turn as a writer does
and finishes, which is little work then, but for the file's fsync. Commits checkpoint only while this thread cannot: one that
came as a long reader, a backup say, let go of a log of 1 GB would bring in all of it, and hold up everybody for half a second.

A SQLite with the WAL-reset bug (`driver.has_wal_reset_bug`) may lose commits when one connection checkpoints while another
commits. There every checkpoint, of this thread and of all else, runs while this store's writer holds SQLite's own write lock
in a transaction that writes nothing: nobody can commit meanwhile, nor begin the log anew, in whichever process and with
whichever program. Writers wait for it, a few ms. No writer's commit checkpoints. (A checkpoint at the close of the last
connection is alone by SQLite's exclusive lock on the file.)
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from typing import Any, Final, NamedTuple

from aegis_store import driver
from aegis_store.errors import AegisStoreError, StoreBusy
from aegis_store.log import log
from aegis_store.settings import (
    CHECKPOINT_ALONE_MAX_S,
    CHECKPOINT_EVERY_S,
    CHECKPOINT_PAGES,
    LOG_PAGES_FEW,
    LOG_PAGES_LIMIT,
    LOG_PAGES_MAX,
    LOG_PAGES_OF_WRITERS,
)
from aegis_store.sqlite_errors import errors_of

# Rounds beside the writers, before the rest is done in a turn: each leaves what came in during the one before it.
_ROUNDS: Final = 8


class _Log(NamedTuple):
    """Pages in the log, and how many of them are in the file."""

    pages: int
    done: int

    @property
    def waiting(self) -> int:
        return self.pages - self.done


class Checkpointer:
    """The thread of one open store. It starts with the first write, and looks at the log only after writes."""

    def __init__(
        self, store: str, connect: Callable[[], Any], turn: Callable[[], AbstractContextManager[Any]], *, alone: bool
    ) -> None:
        """`alone`: no checkpoint while anybody may commit."""
        self._store = store
        self._alone = alone
        self._pause_s = CHECKPOINT_EVERY_S
        self._connect = connect
        self._turn = turn
        self.at_work = threading.Lock()
        """Held while the connection is in use."""
        self.pages_left_to_writers = 0
        """A commit is to checkpoint a log of so many pages; 0: none is."""
        self._connection: Any = None
        self._written = threading.Lock()  # released: something was written since the thread looked
        self._written.acquire()
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def note_write(self) -> None:
        """Say that something was committed. Costs next to nothing, and never fails."""
        if self._written.locked():
            with suppress(RuntimeError):  # another thread said so just now
                self._written.release()
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._stopped.is_set():
                thread = threading.Thread(target=self._run, name="aegis-store checkpointer", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads are to be had: the next write tries again
                    self._written.acquire(blocking=False)
                    self._leave_to_writers()
                else:
                    self._thread = thread

    def run(self) -> None:
        """Checkpoint here and now, beside the writers: for who writes much, and is to do it himself, little by little."""
        with self.at_work:
            if not self._stopped.is_set():
                if self._alone:
                    self._checkpoint_alone(self._connected())
                else:
                    _checkpoint(self._connected(), "PASSIVE")

    def stop(self) -> None:
        """Have it end, and wait for the checkpoint under way."""
        self._stopped.set()
        with suppress(RuntimeError):
            self._written.release()
        if self._thread is not None:
            self._thread.join()

    def close_connection(self) -> None:
        """When the thread has stopped, or is not in this process."""
        if self._connection is not None:
            self._connection.close()

    def _run(self) -> None:
        while True:
            self._written.acquire()
            if self._stopped.wait(self._pause_s):
                return
            try:
                with self.at_work:
                    if self._alone:
                        self._checkpoint_alone(self._connected())
                    else:
                        self._checkpoint_beside(self._connected())
                self.pages_left_to_writers = 0
            except (driver.dbapi.Error, AegisStoreError) as error:
                # What is in the log is safe there. The next write has it tried again.
                self._leave_to_writers()
                log(
                    logging.WARNING,
                    "checkpoint_put_off",
                    self._store,
                    "checkpoint put off: %s",
                    error,
                    error=type(error).__name__,
                )

    def _leave_to_writers(self) -> None:
        if not self._alone:
            self.pages_left_to_writers = LOG_PAGES_OF_WRITERS

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _checkpoint_beside(self, connection: Any) -> None:
        pages = self._keep_log_short(connection)
        self._pause_s = CHECKPOINT_EVERY_S / 5 if LOG_PAGES_MAX // 2 < pages <= LOG_PAGES_MAX else CHECKPOINT_EVERY_S

    def _keep_log_short(self, connection: Any) -> int:
        state = _checkpoint(connection, "NOOP")
        for _ in range(_ROUNDS):
            is_long = state.pages > LOG_PAGES_MAX
            if state.waiting < (LOG_PAGES_FEW if is_long else CHECKPOINT_PAGES):
                break
            # Much may wait when a reader with an old snapshot has ended. Writers would wait for all of that.
            is_over = state.pages > LOG_PAGES_LIMIT and state.waiting < LOG_PAGES_MAX // 2
            if is_over or self._stopped.is_set():
                break
            before = state
            _checkpoint(connection, "PASSIVE")
            state = _checkpoint(connection, "NOOP")  # the other tells of the log as it was when it began
            if state.done == before.done:
                return state.pages  # held by a reader: nothing would come of a turn
        if state.pages > LOG_PAGES_MAX:
            with suppress(StoreBusy), self._turn():
                _checkpoint(connection, "RESTART")
        return state.pages

    def _checkpoint_alone(self, connection: Any) -> None:
        with errors_of(self._store):
            state = checkpoint_alone(connection, self._turn)
        # An affected SQLite cannot just look how long the log is. So it is looked after less often where little is written.
        is_busy = state.pages >= CHECKPOINT_PAGES
        self._pause_s = CHECKPOINT_EVERY_S if is_busy else min(2 * self._pause_s, CHECKPOINT_ALONE_MAX_S)


def checkpoint_alone(connection: Any, turn: Callable[[], AbstractContextManager[Any]]) -> _Log:
    """Checkpoint while the writer, whose `turn` gives its connection, holds SQLite's write lock. `connection`: another one."""
    with turn() as writer, writer.begin():
        return _checkpoint(connection, "PASSIVE")


def _checkpoint(connection: Any, mode: str) -> _Log:
    """NOOP only looks, PASSIVE waits for nobody, RESTART waits for short readers, so that the next writer begins anew."""
    with closing(connection.execute(f"PRAGMA wal_checkpoint({mode})")) as cursor:
        _busy, pages, done = cursor.fetchall()[0]
    return _Log(max(pages, 0), max(done, 0))
