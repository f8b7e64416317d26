"""Who waits for more in a store on a server is rung when another process has committed an event there.

NOTIFY tells, but a transaction that notifies takes a lock on the whole server until its commit is on disk: then writers no
longer share an fsync, and 8 of them keep a sixth to a half of their appends/s. So nobody notifies while somebody looks anyway.
The thread falls asleep when it has rung for a second: it takes a lock that appends look for (`aegis_wake_followers` in the
schema), so that the next one notifies. Woken, it gives the lock back and rings many times a second, as for a file. So a store
at rest wakes its followers at once, and a busy one notifies once a second.

An append that looked for the lock before it was taken, and commits later, is found by the ring after the first wait, or a
second later, since followers look now and then without being rung (`FOLLOW_LOOK_S`).
"""

import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from aegis_store.errors import AegisStoreError
from aegis_store.server import Server
from aegis_store.settings import FOLLOW_AWAKE_RINGS, FOLLOW_POLL_S
from aegis_store.watcher import Watcher

_LISTEN: Final = "LISTEN aegis_store"
_ASLEEP: Final = "SELECT pg_advisory_lock_shared(1095059283, 2)"
_AWAKE: Final = "SELECT pg_advisory_unlock_shared(1095059283, 2)"


class ServerWatcher(Watcher):
    """That of a server. Where notifications are not to be had, it rings many times a second as long as somebody waits."""

    def __init__(self, server: Server, connect: Callable[[], "psycopg.Connection[object]"]) -> None:
        super().__init__(server)
        self._connect = connect
        self._listening: _Listening | None = None

    def _look_out(self) -> None:
        try:
            self._sleep()
        except (psycopg.Error, SQLAlchemyError, AegisStoreError, OSError):
            self._put_away()  # who waits is to look for himself: if it is there to stay, he meets it too, and tells it
        for _ in range(FOLLOW_AWAKE_RINGS):
            self.ring()
            if self._stopped.wait(FOLLOW_POLL_S) or not self._rings:
                return

    def _sleep(self) -> None:
        """Return when there was a notification, or nobody waits any more."""
        if self._listening is None:
            self._listening = _Listening(self._connect())
        listening = self._listening
        listening.notified(0)  # of what came while nobody slept here
        listening.execute(_ASLEEP)
        self.ring()
        if not listening.notified(FOLLOW_POLL_S):
            self.ring()
            while self._rings and not self._stopped.is_set() and not listening.notified(None):
                pass
        listening.execute(_AWAKE)

    def _wake(self) -> None:
        listening = self._listening
        if listening is not None:
            listening.wake()

    def _put_away(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()


class _Listening:
    """A connection that listens, in autocommit."""

    def __init__(self, connection: "psycopg.Connection[object]") -> None:
        self._connection = connection
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            self._selector.register(connection.fileno(), selectors.EVENT_READ)
            self.execute(_LISTEN)
        except BaseException:
            self.close()
            raise

    def execute(self, sql: str) -> None:
        self._connection.execute(sql.encode()).close()

    def notified(self, longest_s: float | None) -> bool:
        """Whether there was a notification, if need be after a wait: for so long, or until `wake` (None)."""
        if self._any_notification():
            return True
        for key, _ in self._selector.select(longest_s):
            if key.fileobj is self._woken:
                self._woken.recv(1024)
        return self._any_notification()

    def _any_notification(self) -> bool:
        return bool(list(self._connection.notifies(timeout=0)))

    def wake(self) -> None:
        """End the wait, or the next one. For any thread at any moment."""
        with suppress(OSError):  # it is closed, or woken already
            self._waker.send(b"\0")

    def close(self) -> None:
        self._selector.close()
        for each in (self._woken, self._waker, self._connection):
            with suppress(OSError, psycopg.Error):
                each.close()
