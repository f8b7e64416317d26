"""Who waits for more in an open store is rung when something was committed.

A commit of this process rings at once, through whichever store object of that place it was made (`note_commit`). Those of other
processes are noticed by a thread. For a file it asks SQLite for the `data_version` many times a second, which costs a fraction
of a millisecond and keeps no transaction open; `postgres.watcher` is told by the server. There is such a thread only while
somebody waits.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from aegis_store import driver
from aegis_store.errors import AegisStoreError
from aegis_store.settings import FOLLOW_POLL_S

Ring = Callable[[], None]
"""Wakes somebody who waits. It is called in the thread that commits: it must be quick, and must neither wait nor raise."""

awake: Final[set["Watcher"]] = set()
"""The watchers of this process whom somebody has asked to ring. Empty: a commit need not look any further."""


def note_commit(place: Hashable) -> None:
    """Ring all in this process who wait for something new there. Takes no lock, so it may come at any moment."""
    for watcher in awake.copy():
        if watcher.place == place:
            watcher.ring()


class Watcher(ABC):
    """The watcher of one open store at a place: the path of its file, or its server."""

    def __init__(self, place: Hashable) -> None:
        self.place = place
        self._rings: set[Ring] = set()
        self._starting = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_watching = False

    @abstractmethod
    def _look_out(self) -> None:
        """In the thread: ring when another process may have committed something. Return after a while, to be called again."""

    @abstractmethod
    def _put_away(self) -> None:
        """In the thread, at its end: close the connection."""

    @abstractmethod
    def _wake(self) -> None:
        """Have `_look_out` return soon. Called in any thread at any moment."""

    def subscribe(self, ring: Ring) -> None:
        """Ring when something is committed from now on; for what was before, ring once now. Asked again, it changes nothing.

        It may also ring for nothing. Where no thread can be had, it rings for no commit at all: look yourself now and then.
        """
        if ring in self._rings:
            return
        with self._starting:
            self._rings.add(ring)
            if not self._is_watching and not self._stopped.is_set():
                self._join()
                with suppress(RuntimeError):  # no more threads are to be had
                    self._start()
        ring()

    def _start(self) -> None:
        thread = threading.Thread(target=self._watch, name="aegis-store watcher", daemon=True)
        thread.start()
        self._thread = thread
        self._is_watching = True
        awake.add(self)

    def unsubscribe(self, ring: Ring) -> None:
        """Ring it no more. Takes no lock: it may be called by a destructor, in any thread at any moment."""
        self._rings.discard(ring)
        if not self._rings:
            self._wake()

    def ring(self) -> None:
        """Ring everybody who asked for it."""
        for ring in self._rings.copy():
            ring()

    def close(self) -> None:
        """Ring a last time, and have the thread end."""
        with self._starting:
            self._stopped.set()
        self._wake()
        self.ring()
        self._join()

    def _join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def leave_to_parent(self) -> None:
        """In a forked child, where there is no such thread: ring nobody who waits in the parent."""
        awake.discard(self)
        self._rings.clear()

    def _watch(self) -> None:
        try:
            while self._goes_on():
                self._look_out()
        finally:
            self._put_away()

    def _goes_on(self) -> bool:
        with self._starting:
            if self._rings and not self._stopped.is_set():
                return True
            awake.discard(self)
            self._is_watching = False
            return False


class FileWatcher(Watcher):
    """That of a file."""

    def __init__(self, path: Path, connect: Callable[[], Any]) -> None:
        super().__init__(path)
        self._connect = connect
        self._connection: Any = None
        self._seen: int | None = None
        self.at_work = threading.Lock()
        """Held while the connection is in use."""

    def _look_out(self) -> None:
        try:
            version = self._data_version()
        except (driver.dbapi.Error, AegisStoreError):
            version = None  # who waits is to look for himself: if it is there to stay, he meets it too, and tells it
        if version is None or version != self._seen:
            self.ring()
        self._seen = version
        self._stopped.wait(FOLLOW_POLL_S)

    def _wake(self) -> None:
        """It does: it waits for `_stopped` and never for long."""

    def _data_version(self) -> int:
        """A number that changes whenever another connection, of whichever process, has committed."""
        with self.at_work:
            if self._connection is None:
                self._connection = self._connect()
            with closing(self._connection.execute("PRAGMA data_version")) as cursor:
                return int(cursor.fetchall()[0][0])

    def _put_away(self) -> None:
        with self.at_work:
            self.close_connection()

    def close_connection(self) -> None:
        """When the thread has ended, or is not in this process."""
        self._seen = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
