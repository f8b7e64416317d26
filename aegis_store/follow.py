"""Waiting for more: the events of a session or of the whole store, what is stored first, then what comes.

A follower (`Following`) is a cursor. Each look of his is one short read of what lies beyond it, so that nothing is held between
two looks, and nothing lost or repeated. When there is nothing he waits to be rung (`watcher`), then looks again.
"""

import functools
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final

from sqlalchemy import Connection, func, select

from aegis_store import read
from aegis_store.database import Database
from aegis_store.driver_text import DriverText
from aegis_store.errors import EventsTruncated, InvalidInput, StoreClosed, StoreUnavailable, shown
from aegis_store.events import Event, EventsMissed, StorePage
from aegis_store.read import OnGap
from aegis_store.schema import event, session
from aegis_store.scope import Scope
from aegis_store.settings import DEFAULT_PAGE_EVENTS, FOLLOW_GATHER_S, FOLLOW_LOOK_S

_LOOK_EVENTS: Final = DEFAULT_PAGE_EVENTS

_RETAINED: Final = event.join(session, session.c.id == event.c.session)
_NAMED: Final = session.c.session_id.is_not(None)  # the events of a session that was deleted are going

# (CROSS: so that SQLite begins with the sessions.)
_OF_SCOPE: Final = "session CROSS JOIN event WHERE event.session = session.id AND tenant = :tenant AND owner = :owner"
_NEWEST_OF_SCOPE: Final = DriverText(f"""
SELECT position FROM {_OF_SCOPE} AND session_id IS NOT NULL AND seq > last_seq - :last ORDER BY position DESC LIMIT :last
""")
_BELOW_OF_SCOPE: Final = DriverText(f"""
SELECT count(*) FROM {_OF_SCOPE} AND session_id IS NOT NULL AND position + 0 <= :known
""")


class Following(ABC):
    """Where a follower is. Made by `following`; for one thread at a time."""

    def __init__(self, cursor: int, *, skips: bool) -> None:
        self.cursor = cursor
        self._skips = skips

    def next_batch(self, db: Database) -> Sequence[Event | EventsMissed]:
        """What comes next, in order: up to 100 events, or what is missing; nothing when there is no more yet.

        The cursor moves beyond it. Raises what `read` and `read_all` raise, and has then not moved.
        """
        try:
            try:
                return self._look(db)
            except StoreUnavailable:  # a connection that was lost amid it, perhaps: the cursor has not moved
                return self._look(db)
        except EventsTruncated as lost:
            if not self._skips:
                raise
            missed = self._missed(lost)
            self._skip(lost)
            return [missed]

    @abstractmethod
    def _look(self, db: Database) -> list[Event]: ...

    @abstractmethod
    def _missed(self, lost: EventsTruncated) -> EventsMissed: ...

    @abstractmethod
    def _skip(self, lost: EventsTruncated) -> None: ...


class _OfSession(Following):
    """By seq. What a session retains is one range, so what is missing lies before it."""

    def __init__(self, session_id: str, cursor: int, types: Collection[str] | None, *, skips: bool) -> None:
        super().__init__(cursor, skips=skips)
        self._session_id = session_id
        self._types = types

    def _look(self, db: Database) -> list[Event]:
        while True:
            with db.read() as conn:
                page = read.page(
                    conn, self._session_id, after_seq=self.cursor, limit=_LOOK_EVENTS, types=self._types, on_gap="raise"
                )
            self.cursor = page.next_after_seq
            if page.events or not page.has_more:  # otherwise a long stretch of other types
                return page.events

    def _missed(self, lost: EventsTruncated) -> EventsMissed:
        return EventsMissed(
            session_id=lost.session_id,
            after=lost.requested_seq,
            first_seq=lost.first_seq,
            first_position=None,
            count=lost.first_seq - 1 - lost.requested_seq,
            removed_at=lost.removed_at,
            reason=lost.reason,
        )

    def _skip(self, lost: EventsTruncated) -> None:
        self.cursor = lost.first_seq - 1


class _OfStore(Following):
    """By position, in the whole store or in a scope.

    Up to `known`, the last removal that the follower knows of, what is retained has holes. A later removal above the cursor
    is told by the store if it lies beyond that too. One that does not, while a follower who began without a cursor is on his
    way there, is not; so `unread` counts the events that he is to find up to there. None: he was told that some are missing.

    Of a scope it is not known where what was removed lay; so `removed` counts it, and as long as it stays nothing is told.
    """

    def __init__(
        self, cursor: int, known: int, unread: int | None, *, skips: bool, scope: Scope | None = None, removed: int = 0
    ) -> None:
        super().__init__(cursor, skips=skips)
        self._known = known
        self._unread = unread
        self._scope = scope
        self._removed = removed

    def _look(self, db: Database) -> list[Event]:
        while True:
            settled = db.settled_position()
            with db.read() as conn:
                try:
                    page = self._page(conn, settled, "raise")
                except EventsTruncated as lost:
                    if lost.first_seq - 1 > self._known and self._has_lost(conn):
                        raise
                    page = self._page(conn, settled, "skip")
                unread = self._still_unread(conn, page)
            self._unread = unread
            self.cursor = page.next_after_position
            if page or not page.has_more:  # otherwise a long stretch of others' events
                return page

    def _page(self, conn: Connection, settled: int | None, on_gap: OnGap) -> StorePage:
        page = read.page_of_all(
            conn, after_position=self.cursor, limit=_LOOK_EVENTS, on_gap=on_gap, settled=settled, scope=self._scope
        )
        return page.events

    def _has_lost(self, conn: Connection) -> bool:
        before = self._removed
        if self._scope is not None:
            self._removed = read.number_removed(conn, self._scope)
        return self._scope is None or self._removed > before

    def _still_unread(self, conn: Connection, page: StorePage) -> int | None:
        if not self._unread:
            return self._unread
        unread = self._unread - sum(event.position <= self._known for event in page)
        is_through = not page.has_more or page.next_after_position > self._known
        if is_through and unread:
            raise EventsTruncated(
                session_id=None,
                requested_seq=self.cursor,
                first_seq=self._known + 1,
                last_seq=read.last_position(conn),
                removed_at=None,
                reason=None,
            )
        return unread

    def _missed(self, lost: EventsTruncated) -> EventsMissed:
        return EventsMissed(
            session_id=None,
            after=lost.requested_seq,
            first_seq=None,
            first_position=lost.first_seq,
            count=None,
            removed_at=lost.removed_at,
            reason=lost.reason,
        )

    def _skip(self, lost: EventsTruncated) -> None:
        self._known, self._unread = lost.first_seq - 1, None


def following(
    db: Database,
    session_id: str | None,
    *,
    after: int | None,
    last: int | None,
    types: Collection[str] | None,
    on_gap: OnGap,
    scope: Scope | None = None,
) -> Following:
    """A follower at his start. Raises all that `EventStore.follow` raises at the call."""
    skips = read.checked_skips(on_gap)
    if after is not None:
        read.checked_cursor("after", after)
    if last is not None:
        read.checked_cursor("last", last)
    if after is not None and last is not None:
        raise InvalidInput("a follower begins after a cursor (after) or with the last events (last), not both")
    if session_id is None and types is not None:
        raise InvalidInput("types are those of a session: pass its session_id")
    wanted = read.checked_types(types)
    settled = db.settled_position() if session_id is None else None
    with db.read() as conn:
        if session_id is None:
            return _store_following(conn, after, last, settled, skips=skips, scope=scope)
        row, cursor = read.place_of(conn, session_id, after_seq=after, skips=skips)
        if last is not None:
            cursor = max(cursor, row.last_seq - last)
        return _OfSession(session_id, cursor, wanted, skips=skips)


def _store_following(
    conn: Connection, after: int | None, last: int | None, settled: int | None, *, skips: bool, scope: Scope | None
) -> Following:
    """`settled`: beyond it events may yet appear below those that stand, so nobody begins there, and none is counted."""
    removed = 0 if scope is None else read.number_removed(conn, scope)
    begin = functools.partial(_OfStore, skips=skips, scope=scope, removed=removed)
    if after is not None:
        is_truncated = read.check_position(conn, after, skips=skips, scope=scope)
        return begin(after, 0, None, removed=-1 if is_truncated else removed)
    end = read.last_position(conn) if settled is None else settled
    known = min(read.last_removed(conn).position, end)
    if last is not None:
        newest = _newest_positions(conn, last, scope)
        cursor = min(newest[-1] - 1, end) if newest else end
        return begin(cursor, known, sum(position <= known for position in newest))
    return begin(0, known, _number_up_to(conn, known, scope) if known else 0)


def _number_up_to(conn: Connection, position: int, scope: Scope | None) -> int:
    """How many events are retained up to that position: of a scope, found by its sessions and not among the events of all."""
    if scope is not None:
        below = conn.exec_driver_sql(_BELOW_OF_SCOPE.on(conn), {"known": position, **scope._asdict()})
    else:
        # `+ 0`: so that SQLite counts in the index by session and seq, which is a hundredth of the table.
        query = select(func.count()).select_from(_RETAINED).where(_NAMED, event.c.position + 0 <= position)
        below = conn.execute(query)
    return int(below.scalar_one())


def _newest_positions(conn: Connection, count: int, scope: Scope | None) -> list[int]:
    """Those of the last events that the store, or the scope, retains, the newest first."""
    if scope is not None:
        return list(conn.exec_driver_sql(_NEWEST_OF_SCOPE.on(conn), {"last": count, **scope._asdict()}).scalars())
    newest = select(event.c.position).select_from(_RETAINED).where(_NAMED).order_by(event.c.position.desc()).limit(count)
    return list(conn.execute(newest).scalars())


class Bell:
    """Wakes one thread. Ringing it waits for nobody, whoever does it: a signal handler, a destructor, a commit."""

    def __init__(self) -> None:
        self._is_quiet = threading.Lock()
        self._is_quiet.acquire()

    def ring(self) -> None:
        if self._is_quiet.locked():
            with suppress(RuntimeError):  # another rang it just now
                self._is_quiet.release()

    def wait(self, longest_s: float) -> None:
        """Until it has been rung since the last wait."""
        self._is_quiet.acquire(timeout=longest_s)


def checked_timeout_s(timeout: float | None) -> float:
    """Seconds to wait for the next event; infinite without a limit."""
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidInput(f"timeout must be a number of seconds from 0 on, or None, not {shown(timeout)}")
    return float(timeout)


def stream(db: Database, follower: Following, timeout_s: float) -> Iterator[Event | EventsMissed]:
    """What the follower finds, until nothing has come for `timeout_s`, or the store is closed."""
    bell = Bell()
    try:
        while True:
            until_s = time.monotonic() + timeout_s
            while not (batch := follower.next_batch(db)):
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return
                db.watcher.subscribe(bell.ring)  # which rings it the first time: what came since that look is found, too
                bell.wait(min(left_s, FOLLOW_LOOK_S))
                time.sleep(FOLLOW_GATHER_S)
            yield from batch
    except StoreClosed:
        if not db.was_closed:  # but belongs to the parent of this process
            raise
    finally:
        db.watcher.unsubscribe(bell.ring)
