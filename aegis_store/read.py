"""The read path: pages of a session by seq, of the store by position, and what is missing below them.

Each page is one short snapshot, found through an index at both ends, so it costs the same at the start and at the end.
"""

import json
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, cast

from sqlalchemy import Connection, bindparam, select

from aegis_store import payload as payloads
from aegis_store import sessions
from aegis_store.checksum import (
    LAST_POSITION_POSTGRESQL,
    LAST_POSITION_SQL,
    STORE_NUMBER,
    SUMMED,
    has_columns_in_place,
    row_sum,
    summed_of,
)
from aegis_store.driver_text import DriverText
from aegis_store.errors import CursorAhead, EventsTruncated, InvalidEvent, InvalidInput, SessionNotFound, shown
from aegis_store.events import Event, Page, StorePage, checked_count, checked_text, from_us
from aegis_store.record_copy import intact
from aegis_store.schema import PAYLOAD_BYTES, event, session, store
from aegis_store.scope import Scope
from aegis_store.settings import FILTERED_SCAN_EVENTS, MAX_PAGE_EVENTS, MAX_TYPES, SCOPED_SCAN
from aegis_store.sqlite_errors import check_intact, damaged

OnGap = Literal["raise", "skip"]

_MAX_CURSOR: Final = 2**63 - 1

# What an event is made of, in the order in which `row_sum` takes it. The payload in bytes, of which the checksum is one.
_READ: Final = (
    *(PAYLOAD_BYTES if name == "payload" else event.c[name] for name in SUMMED),
    *(event.c.bytes_before, STORE_NUMBER, event.c.checksum),
)

# They go to the driver as text, and come back as its rows: SQLAlchemy's take more time than decoding the payloads.
_LIMITED: Final = " LIMIT :most"
_PAGE: Final = DriverText(
    select(*_READ)
    .where(event.c.session == bindparam("key"), event.c.seq > bindparam("start"), event.c.seq <= bindparam("stop"))
    .order_by(event.c.seq),
    tail=_LIMITED,
)
_OF_ALL: Final = (
    select(*_READ, session.c.id, session.c.session_id)
    .join_from(event, session, session.c.id == event.c.session, isouter=True)  # an event without one is damage
    .where(  # those of a session that was deleted are passed over: one that has no name, and never is told to have one
        event.c.position > bindparam("start"),
        session.c.id.is_(None) | session.c.session_id.is_not(None) | ~intact("session"),
    )
    .order_by(event.c.position)
)
_PAGE_OF_ALL: Final = DriverText(_OF_ALL, postgresql=_OF_ALL.where(event.c.position <= bindparam("settled")), tail=_LIMITED)
# The same of a scope, as far as a look goes.
_LOOK_END: Final = DriverText("""
SELECT max(position), count(*) FROM (SELECT position FROM event WHERE position > :start ORDER BY position LIMIT :most) AS look
""")
_PAGE_OF_SCOPE: Final = DriverText(
    select(*_READ, session.c.id, session.c.session_id)
    .join_from(event, session, session.c.id == event.c.session, isouter=True)
    .where(event.c.position > bindparam("start"), event.c.position <= bindparam("end"))
    .where(session.c.session_id.is_not(None), sessions.IN_SCOPE)
    .order_by(event.c.position),
    tail=_LIMITED,
)
# What was removed of a scope's sessions, each up to where at the most: a session that holds events tells by the first of them,
# of others it is not known where in the store theirs were.
_REMOVED_OF_SCOPE_SQL: Final = """
SELECT up_to, removed_at, removed_reason, 1 FROM (
    SELECT {least}(coalesce(event.position - 1, :removed), :removed) AS up_to, session.removed_at, session.removed_reason
    FROM session LEFT JOIN event ON event.session = session.id AND event.seq = session.first_seq
    WHERE session.tenant = :tenant AND session.owner = :owner AND session_id IS NOT NULL AND first_seq > 1
    UNION ALL
    SELECT :removed, removed_at, removed_reason FROM tombstone WHERE tenant = :tenant AND owner = :owner AND last_seq > 0
) AS gap WHERE up_to > :after ORDER BY up_to DESC, removed_at DESC LIMIT 1
"""
_REMOVED_OF_SCOPE: Final = DriverText(
    _REMOVED_OF_SCOPE_SQL.format(least="min"), postgresql=_REMOVED_OF_SCOPE_SQL.format(least="least")
)
_NUMBER_REMOVED_OF_SCOPE: Final = DriverText("""
SELECT
    (SELECT coalesce(sum(first_seq - 1), 0) FROM session WHERE tenant = :tenant AND owner = :owner AND session_id IS NOT NULL)
    + (SELECT coalesce(sum(last_seq), 0) FROM tombstone WHERE tenant = :tenant AND owner = :owner)
""")
_PLACE: Final = DriverText(
    select(
        *(session.c[name] for name in ("id", "session_id", "first_seq", "last_seq", "removed_at", "removed_reason")),
        intact("session"),
    ).where(session.c.session_id == bindparam("name"))
)
_REMOVED: Final = DriverText(
    select(store.c.removed_position, store.c.removed_at, store.c.removed_reason, intact("store")).select_from(store),
    postgresql="SELECT position, removed_at, removed_reason, true FROM removal",
)
_ANY_OF: Final = DriverText("""
SELECT 1 FROM json_each(:places) AS place
CROSS JOIN event ON session = json_extract(place.value, '$[0]') AND seq = json_extract(place.value, '$[1]')
WHERE position > :start AND position <= :end LIMIT 1
""")
_LAST_POSITION: Final = DriverText(f"SELECT {LAST_POSITION_SQL}", postgresql=LAST_POSITION_POSTGRESQL)


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
    wanted = checked_types(types)
    place, after = place_of(conn, session_id, after_seq=after_seq, skips=checked_skips(on_gap))
    start = max(after, place.first_seq - 1)
    # Filtering looks at a bounded stretch, found or not, so that a rare type does not make a page a scan. It is done here,
    # after each event was checked: SQLite would pass over one whose type is damaged.
    stop = min(place.last_seq, start + (limit if wanted is None else FILTERED_SCAN_EVENTS))
    bounds = {"key": place.key, "start": start, "stop": stop, "most": stop - start}
    if wanted is None:
        events = list(_events(conn, session_id, _in_order(conn, session_id, _fetched(conn, _PAGE, bounds), start, stop)))
    else:
        with closing(_rows(conn, _PAGE, bounds)) as rows:
            events = list(islice(_events(conn, session_id, _in_order(conn, session_id, rows, start, stop), wanted), limit))
    seen = events[-1].seq if len(events) == limit else stop
    return Page(
        events=events,
        first_seq=place.first_seq,
        last_seq=place.last_seq,
        next_after_seq=seen,
        has_more=seen < place.last_seq,
        missed=start - after,
    )


class Place(NamedTuple):
    """What a session retains, and what was removed of it last."""

    key: int
    session_id: str
    first_seq: int
    last_seq: int
    removed_at: int | None
    removed_reason: str | None
    intact: bool


def place_of(conn: Connection, session_id: str, *, after_seq: int | None, skips: bool) -> tuple[Place, int]:
    """What the session retains, and the cursor as a number. Raises what an unknown session and a bad cursor raise."""
    found = _fetched(conn, _PLACE, {"name": sessions.known_id(session_id)})
    if not found:
        raise SessionNotFound(session_id=session_id)
    row = Place(*found[0])
    sessions.check_found(conn, row, session_id)
    check_intact(conn, row.intact, f"session {shown(session_id)}")
    oldest = row.first_seq - 1
    after: int = oldest if after_seq is None else checked_cursor("after_seq", after_seq)
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
    return row, after


class PageOfAll(NamedTuple):
    """Events of all sessions, and whether some after the cursor had been removed."""

    events: StorePage
    is_truncated: bool


def page_of_all(
    conn: Connection,
    *,
    after_position: int | None,
    limit: int,
    on_gap: OnGap,
    settled: int | None = None,
    scope: Scope | None = None,
) -> PageOfAll:
    """Events of all sessions, or of those of the scope, after the cursor; see `EventStore.read_all`.

    `settled`: none of higher positions.
    """
    checked_count("limit", limit, 1, MAX_PAGE_EVENTS)
    skips = checked_skips(on_gap)
    is_truncated = False
    if after_position is not None:
        is_truncated = check_position(conn, checked_cursor("after_position", after_position), skips=skips, scope=scope)
    start = after_position or 0
    if scope is not None:
        return PageOfAll(_page_of_scope(conn, scope, start, limit, settled), is_truncated)
    events: list[Event] = []
    keys = {}
    for *row, key, session_id in _fetched(conn, _PAGE_OF_ALL, {"start": start, "most": limit, "settled": settled}):
        if key is None or session_id is None:
            raise damaged(conn, f"the event at position {shown(row[1])} belongs to no session")
        events += _events(conn, session_id, [row])
        keys[session_id] = key
    if settled is None:  # where gaps in the positions are normal, they tell nothing
        _check_nothing_is_missing(conn, start, events, keys, end=_MAX_CURSOR if len(events) < limit else events[-1].position)
    end = events[-1].position if events else start
    return PageOfAll(StorePage(events, next_after_position=end, has_more=len(events) == limit), is_truncated)


def _page_of_scope(conn: Connection, scope: Scope, start: int, limit: int, settled: int | None) -> StorePage:
    """The scope's among the next events of the store, so that its page is no scan of all that others have."""
    looked_to, looked_at = _fetched(conn, _LOOK_END, {"start": start, "most": SCOPED_SCAN})[0]
    last = last_position(conn) if settled is None else settled
    end = min(looked_to, max(last, start)) if looked_at == SCOPED_SCAN else max(last, start)
    events: list[Event] = []
    seqs: dict[str, int] = {}
    for *row, _, session_id in _fetched(conn, _PAGE_OF_SCOPE, {"start": start, "end": end, "most": limit, **scope._asdict()}):
        events += _events(conn, session_id, [row])
        if events[-1].seq != seqs.setdefault(session_id, events[-1].seq - 1) + 1:
            raise damaged(conn, f"events of session {shown(session_id)} are missing, or not in their order")
        seqs[session_id] = events[-1].seq
    if len(events) == limit:
        end = events[-1].position
    return StorePage(events, next_after_position=end, has_more=end < last)


def _check_nothing_is_missing(conn: Connection, start: int, events: list[Event], keys: dict[str, int], *, end: int) -> None:
    """`StoreCorrupt` for a gap that no removal has made. SQLite does not notice that a damaged page hides some of its rows.

    Above the highest position that was ever removed there is none at all. Below, what is left of a session is one range: its
    events in the page follow one another, and those before and after them, by the index, lie outside of it. (A session all of
    whose events in the page are hidden is not missed here: `verify` finds it.)
    """
    complete_above = last_removed(conn).position
    seen: dict[str, tuple[int, int]] = {}
    before = start
    for each in events:
        first, last = seen.get(each.session_id, (each.seq, each.seq - 1))
        is_next = each.position == before + 1 if before >= complete_above else each.position > before
        if not is_next or each.seq != last + 1:
            raise damaged(conn, f"events between positions {before} and {each.position} are missing, or not in their order")
        before, seen[each.session_id] = each.position, (first, each.seq)
    if end == _MAX_CURSOR and max(before, complete_above) < last_position(conn):
        raise damaged(conn, f"events after position {before} are missing")
    if start < complete_above:
        around = [[keys[name], seq] for name, (first, last) in seen.items() for seq in (first - 1, last + 1)]
        if _fetched(conn, _ANY_OF, {"places": json.dumps(around), "start": start, "end": end}):
            raise damaged(conn, f"events after position {start} are hidden")


class Removed(NamedTuple):
    """What was removed last of the whole store."""

    position: int
    at: int | None
    reason: str | None
    intact: bool


def last_removed(conn: Connection) -> Removed:
    found = _fetched(conn, _REMOVED, {})
    removed = Removed(*found[0]) if found else Removed(0, None, None, False)
    check_intact(conn, removed.intact, "the policy and of what was removed")
    return removed


def _removed_of(conn: Connection, scope: Scope | None, after: int) -> Removed:
    """The same of a scope, if anything of it may have been removed above that cursor."""
    removed = last_removed(conn)
    if scope is not None and after < removed.position:
        found = _fetched(conn, _REMOVED_OF_SCOPE, {"removed": removed.position, "after": after, **scope._asdict()})
        return Removed(*found[0]) if found else Removed(0, None, None, intact=True)
    return removed


def number_removed(conn: Connection, scope: Scope) -> int:
    """How many events were ever removed of the scope's sessions. It only goes up."""
    return int(_fetched(conn, _NUMBER_REMOVED_OF_SCOPE, scope._asdict())[0][0])


def check_position(conn: Connection, after_position: int, *, skips: bool, scope: Scope | None = None) -> bool:
    """Whether events after this cursor of the whole store were removed. Raises what one that cannot be raises."""
    removed = _removed_of(conn, scope, after_position)
    last = last_position(conn)
    if after_position > last:
        raise CursorAhead(session_id=None, requested_seq=after_position, last_seq=last)
    is_truncated = after_position < removed.position
    if is_truncated and not skips:
        raise EventsTruncated(
            session_id=None,
            requested_seq=after_position,
            first_seq=removed.position + 1,
            last_seq=last,
            removed_at=None if removed.at is None else from_us(removed.at),
            reason=removed.reason,
        )
    return is_truncated


def last_position(conn: Connection) -> int:
    """The highest position that was ever given; 0 before the first event."""
    position = conn.exec_driver_sql(_LAST_POSITION.on(conn)).scalar_one()
    if not isinstance(position, int):
        raise damaged(conn, "its count of positions is no number")
    return position


def checked_cursor(name: str, value: object) -> int:
    """`value` if it can be a cursor; `InvalidInput` otherwise."""
    return checked_count(name, value, 0, _MAX_CURSOR)


def checked_skips(on_gap: OnGap) -> bool:
    """Whether what was removed is passed over; `InvalidInput` for what is no way to treat a gap."""
    if on_gap not in ("raise", "skip"):
        raise InvalidInput(f"on_gap must be 'raise' or 'skip', not {shown(on_gap)}")
    return on_gap == "skip"


def checked_types(types: Collection[str] | None) -> list[str] | None:
    """The types to filter by; `InvalidInput` for what cannot be."""
    if types is None:
        return None
    if isinstance(types, str) or not isinstance(types, Collection) or not 1 <= len(types) <= MAX_TYPES:
        raise InvalidInput(f"types must be a collection of 1 to {MAX_TYPES} types, such as ['hook'], not {shown(types)}")
    return [checked_text("types", type_, InvalidEvent) for type_ in types]


# A cursor is closed whatever happens. The traceback of an error would keep it, and pysqlite3 has one statement for each text:
# when the cursor goes at last, it sets back the statement of whoever reads by it then, whose rows begin again.


def _rows(conn: Connection, sql: DriverText, parameters: dict[str, Any]) -> Generator[tuple[Any, ...]]:
    """The driver's rows, one by one: what is passed over takes no memory. Close it before the transaction ends."""
    with closing(conn.exec_driver_sql(sql.on(conn), parameters)) as result:
        yield from cast(Any, result.cursor)


def _fetched(conn: Connection, sql: DriverText, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The driver's rows, all at once."""
    with closing(conn.exec_driver_sql(sql.on(conn), parameters)) as result:
        return cast(list[tuple[Any, ...]], cast(Any, result.cursor).fetchall())


def _in_order(
    conn: Connection, session_id: str, rows: Iterable[tuple[Any, ...]], start: int, stop: int
) -> Iterator[tuple[Any, ...]]:
    """The rows of a session's events after `start` up to `stop`. `StoreCorrupt` where one is missing."""
    seq = start
    for row in rows:
        seq += 1
        if row[0] != seq:
            break
        yield row
    else:
        if seq == stop:
            return
        seq += 1
    raise damaged(conn, f"event {seq} of session {shown(session_id)} is missing, or not in its place")


def _events(
    conn: Connection, session_id: str, rows: Iterable[Sequence[Any]], types: Collection[str] | None = None
) -> Iterator[Event]:
    """Rows of `_READ` as events, those of these types. `StoreCorrupt` if one, of whatever type, is not what was written.

    One without a checksum must at least be JSON, have times, and hold in each column what belongs there. The times tell a row
    whose header has lost its last column: its others begin a byte early, and the times with the end of the type, which is a
    number far beyond any year.
    """
    decode = payloads.decode
    for row in rows:
        seq, position, type_, encoded, occurred_us, recorded_us, event_id, run_id, payload_ref, _, _, checksum = row
        is_intact = has_columns_in_place(row) if checksum is None else checksum == row_sum(session_id, row)
        if not is_intact:
            what = f"event {shown(seq)} of session {shown(session_id)}"
            raise damaged(conn, f"{what} is not what was written: its checksum differs, or its columns are shifted")
        if checksum is not None and types is not None and type_ not in types:
            continue
        try:
            payload = decode(encoded.decode())
        except (ValueError, AttributeError) as error:
            raise damaged(conn, f"payload of event {seq} of session {shown(session_id)}: {error}") from None
        try:
            recorded_at = from_us(recorded_us)
            occurred_at = recorded_at if occurred_us == recorded_us else from_us(occurred_us)
        except (OverflowError, TypeError):
            what = f"event {shown(seq)} of session {shown(session_id)}"
            raise damaged(conn, f"{what} has a time that is none of the years 1 to 9999") from None
        if types is not None and type_ not in types:
            continue
        yield Event(session_id, seq, position, type_, payload, occurred_at, recorded_at, event_id, run_id, payload_ref)


def event_of(conn: Connection, session_id: str, row: Any) -> Event:
    """A row of the table `event`, read with `STORE_NUMBER`, as an `Event`. `StoreCorrupt` if it is not what was written."""
    (found,) = _events(conn, session_id, [summed_of(row)])
    return found
