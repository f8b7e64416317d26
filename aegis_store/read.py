"""The read path: pages of a session by seq, of the store by position, and what is missing below them.

Each page is one short snapshot, found through an index at both ends, so it costs the same at the start and at the end.
"""

from collections.abc import Collection
from typing import Any, Final, Literal

from sqlalchemy import Connection, select

from aegis_store import payload as payloads
from aegis_store import sessions
from aegis_store.errors import CursorAhead, EventsTruncated, InvalidEvent, InvalidInput, shown
from aegis_store.events import Event, Page, checked_count, checked_text, from_us
from aegis_store.schema import event, session, store
from aegis_store.settings import FILTERED_SCAN_EVENTS, MAX_PAGE_EVENTS, MAX_TYPES
from aegis_store.sqlite_errors import damaged

OnGap = Literal["raise", "skip"]

_MAX_CURSOR: Final = 2**63 - 1
_LAST_POSITION: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'event'"


def page(
    conn: Connection,
    session_id: str,
    *,
    after_seq: int | None,
    limit: int,
    types: Collection[str] | None,
    on_gap: OnGap,
) -> Page:
    """Events after the cursor; see `EventStore.read`."""
    checked_count("limit", limit, 1, MAX_PAGE_EVENTS)
    skips = _skips(on_gap)
    wanted = _checked_types(types)
    row = sessions.row_of(conn, session_id)
    oldest = row.first_seq - 1
    after = oldest if after_seq is None else checked_count("after_seq", after_seq, 0, _MAX_CURSOR)
    if after > row.last_seq:
        raise CursorAhead(session_id=session_id, requested_seq=after, last_seq=row.last_seq)
    if after < oldest and not skips:
        raise EventsTruncated(
            session_id=session_id,
            requested_seq=after,
            first_seq=row.first_seq,
            last_seq=row.last_seq,
            removed_at=None if row.removed_at is None else from_us(row.removed_at),
            reason=row.removed_reason,
        )
    start = max(after, oldest)
    # Filtering looks at a bounded stretch, found or not, so that a rare type does not make a page a scan.
    stop = min(row.last_seq, start + (limit if wanted is None else FILTERED_SCAN_EVENTS))
    query = select(event).where(event.c.session == row.id, event.c.seq > start, event.c.seq <= stop)
    if wanted is not None:
        query = query.where(event.c.type.in_(wanted))
    events = [event_of(conn, session_id, found) for found in conn.execute(query.order_by(event.c.seq).limit(limit))]
    seen = events[-1].seq if len(events) == limit else stop
    if wanted is None and len(events) != stop - start:
        raise damaged(conn, f"events between {start + 1} and {stop} of session {shown(session_id)} are missing")
    return Page(
        events=events,
        first_seq=row.first_seq,
        last_seq=row.last_seq,
        next_after_seq=seen,
        has_more=seen < row.last_seq,
        missed=start - after,
    )


def page_of_all(conn: Connection, *, after_position: int | None, limit: int, on_gap: OnGap) -> list[Event]:
    """Events of all sessions after the cursor; see `EventStore.read_all`."""
    checked_count("limit", limit, 1, MAX_PAGE_EVENTS)
    skips = _skips(on_gap)
    if after_position is not None:
        checked_count("after_position", after_position, 0, _MAX_CURSOR)
        _check_position(conn, after_position, skips=skips)
    query = (
        select(event, session.c.session_id)
        .join_from(event, session, session.c.id == event.c.session)
        .where(event.c.position > (after_position or 0), session.c.session_id.is_not(None))
        .order_by(event.c.position)
        .limit(limit)
    )
    return [event_of(conn, row.session_id, row) for row in conn.execute(query)]


def _check_position(conn: Connection, after_position: int, *, skips: bool) -> None:
    removed = conn.execute(select(store.c.removed_position, store.c.removed_at, store.c.removed_reason)).one()
    last = last_position(conn)
    if after_position > last:
        raise CursorAhead(session_id=None, requested_seq=after_position, last_seq=last)
    if after_position < removed.removed_position and not skips:
        raise EventsTruncated(
            session_id=None,
            requested_seq=after_position,
            first_seq=removed.removed_position + 1,
            last_seq=last,
            removed_at=None if removed.removed_at is None else from_us(removed.removed_at),
            reason=removed.removed_reason,
        )


def last_position(conn: Connection) -> int:
    """The highest position that was ever given; 0 before the first event."""
    return int(conn.exec_driver_sql(_LAST_POSITION).scalar() or 0)


def _skips(on_gap: OnGap) -> bool:
    if on_gap not in ("raise", "skip"):
        raise InvalidInput(f"on_gap must be 'raise' or 'skip', not {shown(on_gap)}")
    return on_gap == "skip"


def _checked_types(types: Collection[str] | None) -> list[str] | None:
    if types is None:
        return None
    if isinstance(types, str) or not isinstance(types, Collection) or not 1 <= len(types) <= MAX_TYPES:
        raise InvalidInput(f"types must be a collection of 1 to {MAX_TYPES} types, such as ['hook'], not {shown(types)}")
    return [checked_text("types", type_, InvalidEvent) for type_ in types]


def event_of(conn: Connection, session_id: str, row: Any) -> Event:
    """A row of the table `event` as an `Event`. `StoreCorrupt` if its payload is not JSON."""
    try:
        payload = payloads.decode(row.payload)
    except ValueError as error:
        raise damaged(conn, f"payload of event {row.seq} of session {shown(session_id)}: {error}") from None
    return Event(
        session_id,
        row.seq,
        row.position,
        row.type,
        payload,
        from_us(row.occurred_at),
        from_us(row.recorded_at),
        row.event_id,
        row.run_id,
        row.payload_ref,
    )
