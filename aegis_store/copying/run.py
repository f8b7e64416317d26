"""A copy from its begin to its end."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection, func, select, update

from aegis_store.any_database import AnyDatabase, keep_appends_out
from aegis_store.checksum import STORE_NUMBER
from aegis_store.copying.equal import compare
from aegis_store.copying.events import Reached, bring_events, changed, highest_gap, move_counter, reached_by
from aegis_store.copying.records import bring_graves, bring_runs, bring_sessions, number_of, refuse_others
from aegis_store.errors import InvalidInput
from aegis_store.read import last_position, last_removed
from aegis_store.retention.limits import policy_in_force, set_policy
from aegis_store.schema import NAMED, event, session, store
from aegis_store.sessions import now_us
from aegis_store.settings import MAX_EVENT_BYTES_LIMIT

OnProgress = Callable[[int, int], None]
"""Called with (events done, events to do): each is written, then compared, so that is twice their number."""

BEFORE_COPY: Final = "before_copy"
"""`removed_reason` of a store on SQLite where PostgreSQL had left positions out, which SQLite never does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What the target holds now, all of it compared with the source. `events_standing` of the events were there before."""

    sessions: int
    tombstones: int
    events: int
    events_standing: int
    duration_s: float


def copy(source: AnyDatabase, target: AnyDatabase, on_progress: OnProgress | None = None) -> CopyReport:
    """See `EventStore.copy`."""
    started = time.monotonic()
    target.check_writable()
    settled = source.settled_position()
    with source.read() as conn:
        upto = last_position(conn) if settled is None else settled
        with target.read() as there:
            _refuse_same(source, target, conn, there)
            refuse_others(conn, there)
            after, standing = reached_by(there).event, _number_of_events(there)
        progress = _Progress(on_progress, standing, _number_of_events(conn))
        bring_sessions(conn, target)
        tombstones = bring_graves(conn, target)
        bring_runs(conn, target)
        policy = policy_in_force(conn)
        # Events may be there that are larger than what the policy allows by now.
        set_policy(target, replace(policy, max_event_bytes=MAX_EVENT_BYTES_LIMIT))
        removed_up_to = _tell_removed(conn, target, upto)
        bring_events(conn, target, Reached(after, removed_up_to), upto, progress.written)
        set_policy(target, policy)
        _set_counter(conn, target, upto)
        with target.read() as there:
            for equal in compare(conn, there, target, upto):
                progress.tell(progress.done + equal)
        sessions = number_of(conn)[0]
    duration_s = time.monotonic() - started
    return CopyReport(
        sessions=sessions, tombstones=tombstones, events=progress.done, events_standing=standing, duration_s=duration_s
    )


def _refuse_same(source: AnyDatabase, target: AnyDatabase, conn: Connection, there: Connection) -> None:
    """`InvalidInput` if both are one store. (SQLite: one file. PostgreSQL: the store's number, whatever way leads there.)"""
    if source.dialect != target.dialect:
        return
    if source.dialect == "sqlite":
        is_same = os.path.samefile(str(source.target), str(target.target))
    else:
        is_same = conn.execute(select(STORE_NUMBER)).scalar_one() == there.execute(select(STORE_NUMBER)).scalar_one()
    if is_same:
        raise InvalidInput("source and target are the same store: name another one to copy to")


def _number_of_events(conn: Connection) -> int:
    total = select(func.coalesce(func.sum(session.c.last_seq - session.c.first_seq + 1), 0)).where(NAMED)
    return int(conn.execute(total).scalar_one())


def _tell_removed(source: Connection, target: AnyDatabase, upto: int) -> int:
    """Up to which position something was removed, so that the cursors of those who missed it are told so there too."""
    removed = last_removed(source)
    position, at, reason = removed.position, removed.at, removed.reason
    if target.dialect == "sqlite" and source.dialect.name != "sqlite":
        gap = highest_gap(source, upto)
        if gap > position:
            position, at, reason = gap, now_us(), BEFORE_COPY
    values = {"removed_position": position, "removed_at": at, "removed_reason": reason}
    with target.write() as conn:
        conn.execute(update(store).where(store.c.removed_position < position).values(**values))
        return last_removed(conn).position


def _set_counter(source: Connection, target: AnyDatabase, upto: int) -> None:
    """The counter of positions as it is in the source: the next event gets the next position."""
    if target.dialect == "sqlite" and source.dialect.name != "sqlite":  # which takes a gap for damage
        query = select(func.max(event.c.position)).where(event.c.position <= upto)
        upto = max(source.execute(query).scalar_one() or 0, last_removed(source).position)
    with target.write() as conn:
        keep_appends_out(conn)
        reached = reached_by(conn)
        if max(reached) > upto:
            raise changed(target, "somebody else writes to it")
        if last_position(conn) != upto:
            move_counter(conn, upto)


class _Progress:
    def __init__(self, on_progress: OnProgress | None, done: int, events: int) -> None:
        self.done = done
        self._on_progress = on_progress
        self._events = events

    def written(self, events: int) -> None:
        self.done += events
        self.tell(self.done)

    def tell(self, done: int) -> None:
        if self._on_progress is not None:
            self._on_progress(min(done, 2 * self._events), 2 * self._events)
