"""Who waits for more in an open store is rung when something was committed.

A commit of this process rings at once, through whichever store object of the file it was made (`note_commit`). Those of other
processes are noticed by a thread that asks SQLite for the file's `data_version` many times a second, which costs a fraction
of a millisecond and keeps no transaction open. There is such a thread only while somebody waits.
"""

import threading
from collections.abc import Callable
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


def note_commit(path: Path) -> None:
    """Ring all in this process who wait for something new in that file. Takes no lock, so it may come at any moment."""
    for watcher in awake.copy():
        if watcher.path == path:
            watcher.ring()


class Watcher:
    """The watcher of one open store."""

    def __init__(self, path: Path, connect: Callable[[], Any]) -> None:
        self.path = path
        self._connect = connect
        self._connection: Any = None
        self.at_work = threading.Lock()
        """Held while the connection is in use."""
        self._rings: set[Ring] = set()
        self._starting = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_watching = False

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

    def ring(self) -> None:
        """Ring everybody who asked for it."""
        for ring in self._rings.copy():
            ring()

    def close(self) -> None:
        """Ring a last time, and have the thread end."""
        with self._starting:
            self._stopped.set()
        self.ring()
        self._join()

    def _join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def close_connection(self) -> None:
        """When the thread has ended, or is not in this process."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def leave_to_parent(self) -> None:
        """In a forked child, where there is no such thread: ring nobody who waits in the parent."""
        awake.discard(self)
        self._rings.clear()

    def _watch(self) -> None:
        seen: int | None = None
        try:
            while self._goes_on():
                try:
                    version = self._data_version()
                except (driver.dbapi.Error, AegisStoreError):
                    version = None  # who waits is to look for himself: if it is there to stay, he meets it too, and tells it
                if version is None or version != seen:
                    self.ring()
                seen = version
                self._stopped.wait(FOLLOW_POLL_S)
        finally:
            with self.at_work:
                self.close_connection()

    def _data_version(self) -> int:
        """A number that changes whenever another connection, of whichever process, has committed."""
        with self.at_work:
            if self._connection is None:
                self._connection = self._connect()
            with closing(self._connection.execute("PRAGMA data_version")) as cursor:
                return int(cursor.fetchall()[0][0])

    def _goes_on(self) -> bool:
        with self._starting:
            if self._rings and not self._stopped.is_set():
                return True
            awake.discard(self)
            self._is_watching = False
            return False
