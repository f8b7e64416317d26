"""Session records: create, look up, list, change. Their events are the business of `append`, `read` and `retention`."""

import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    func,
    insert,
    literal,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError

from aegis_store import payload
from aegis_store.any_database import AnyDatabase, locking
from aegis_store.errors import (
    InvalidInput,
    InvalidPolicy,
    InvalidSession,
    SessionExists,
    SessionNotFound,
    shown,
)
from aegis_store.events import (
    UNCHANGED,
    UNLIMITED,
    Json,
    Session,
    SessionPage,
    Status,
    Unchanged,
    Unlimited,
    checked_count,
    checked_text,
    from_us,
    to_us,
)
from aegis_store.record_copy import intact
from aegis_store.schema import NAMED, NO_CAP, event, session, tombstone
from aegis_store.scope import Scope
from aegis_store.settings import MAX_PAGE_EVENTS
from aegis_store.sqlite_errors import check_intact, damaged

_FIRST: Final = event.alias("first")
_REMOVED_BYTES: Final = func.coalesce(_FIRST.c.bytes_before, session.c.total_bytes).label("removed_bytes")
_RECORD_COLUMNS: Final = (session, _REMOVED_BYTES, _FIRST.c.position.label("first_position"), intact("session"))
_ITS_FIRST: Final = and_(_FIRST.c.session == session.c.id, _FIRST.c.seq == session.c.first_seq)
RECORD: Final = select(*_RECORD_COLUMNS).join_from(session, _FIRST, _ITS_FIRST, isouter=True)
"""The whole record of sessions: their rows, `removed_bytes`, and whether they are `intact`."""

_TAKEN: Final = "23505"
"""PostgreSQL's word for a key that another transaction has stored meanwhile."""

_ROW: Final = select(session, intact("session")).where(session.c.session_id == bindparam("name"))

# `IS` and not `=`: with that SQLite could turn an outer join around, and begin with all sessions.
IN_SCOPE: Final = and_(
    session.c.tenant.is_not_distinct_from(bindparam("tenant")), session.c.owner.is_not_distinct_from(bindparam("owner"))
)
"""Of an outer join with sessions: those of the scope whose `tenant` and `owner` are given."""

OWN: Final = and_(session.c.tenant == bindparam("tenant"), session.c.owner == bindparam("owner"))
"""The same where sessions are what is looked for."""

_IN_SCOPE: Final = select(session.c.id).where(session.c.session_id == bindparam("name"), OWN)
_IDS_IN_SCOPE: Final = select(session.c.session_id).where(NAMED, OWN).order_by(session.c.id)
_KEY_IN_SCOPE: Final = select(session.c.id).where(session.c.id == bindparam("key"), OWN)


def now_us() -> int:
    """Now, as the store writes it: microseconds since the epoch."""
    return time.time_ns() // 1000


def new_session_id() -> str:
    """A fresh UUID that sorts by the time it was made (version 7: milliseconds, then 74 random bits)."""
    millis = time.time_ns() // 1_000_000
    bits = (millis << 80) | int.from_bytes(os.urandom(10))
    bits = bits & ~(0xF << 76) | 0x7 << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    text = f"{bits:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def missing_id() -> InvalidSession:
    return InvalidSession("session_id must be text, not None: only create_session makes one up")


def known_id(session_id: object) -> str:
    """`session_id` if a session can have it; `SessionNotFound` otherwise, since none has."""
    try:
        return checked_text("session_id", session_id, InvalidSession)
    except InvalidSession:
        raise SessionNotFound(session_id=session_id) from None


def row_of(conn: Connection, session_id: str) -> Row[Any]:
    """The row of the table `session` for that id; `SessionNotFound` if there is none."""
    row = conn.execute(locking(conn, _ROW), {"name": known_id(session_id)}).one_or_none()
    if row is None:
        raise SessionNotFound(session_id=session_id)
    check_found(conn, row, session_id)
    check_intact(conn, row.intact, f"session {shown(row.session_id)}")
    return row


def known_in_scope(conn: Connection, scope: Scope, session_id: object) -> str:
    """`session_id` if the scope has such a session; `SessionNotFound` otherwise, whether another has or not."""
    name = known_id(session_id)
    if conn.execute(_IN_SCOPE, {"name": name, **scope._asdict()}).first() is None:
        raise SessionNotFound(session_id=session_id)
    return name


def ids_in_scope(conn: Connection, scope: Scope) -> list[str]:
    """The ids of all sessions of the scope, the oldest first."""
    return list(conn.execute(_IDS_IN_SCOPE, scope._asdict()).scalars())


def keys_in_scope(conn: Connection, scope: Scope, keys: Iterable[int]) -> set[int]:
    """Which of these sessions, standing or deleted, are the scope's."""
    own = scope._asdict()
    return {key for key in keys if conn.execute(_KEY_IN_SCOPE, {"key": key, **own}).first() is not None}


def check_found(conn: Connection, row: Any, session_id: str) -> None:
    """`StoreCorrupt` if a damaged index has led from that id to the record of another session."""
    if row.session_id != session_id:
        raise damaged(conn, f"its index leads from session {shown(session_id)} to another")


def check_first(conn: Connection, row: Row[Any]) -> None:
    """`StoreCorrupt` if the first event of a `RECORD` is missing, or does not say what went before it."""
    is_there = row.first_position is not None or row.first_seq > row.last_seq
    if not is_there or not isinstance(row.removed_bytes, int):
        raise damaged(conn, f"event {row.first_seq} of session {shown(row.session_id)} is missing, or damaged")


def get(conn: Connection, session_id: str) -> Session:
    row = conn.execute(RECORD.where(session.c.session_id == known_id(session_id))).one_or_none()
    if row is None:
        raise SessionNotFound(session_id=session_id)
    check_found(conn, row, session_id)
    return _record(conn, row)


def new_record(
    session_id: str | None,
    *,
    tenant: str,
    owner: str,
    status: str,
    metadata: Mapping[str, Json] | None,
    max_events: int | Unlimited | None,
) -> dict[str, Any]:
    """The row of a new session, checked. Raises `InvalidSession`, `InvalidPolicy`."""
    now = now_us()
    state = Status.of(status)
    return {
        "session_id": new_session_id() if session_id is None else checked_text("session_id", session_id, InvalidSession),
        "tenant": checked_text("tenant", tenant, InvalidSession),
        "owner": checked_text("owner", owner, InvalidSession),
        "status": state.value,
        "metadata": payload.encode_metadata({} if metadata is None else metadata),
        "max_events": stored_cap(max_events),
        "created_at": now,
        "updated_at": now,
        "ended_at": now if state.is_terminal else None,
    }


def create(conn: Connection, record: Mapping[str, Any]) -> Session:
    """Insert `record`. `SessionExists` if the id is taken, or was by a session of another tenant or owner."""
    taken = select(session.c.id).where(session.c.session_id == record["session_id"])
    if conn.execute(taken).first() is not None:
        raise SessionExists(session_id=record["session_id"])
    try:
        conn.execute(insert(session).values(**record, **after_tombstone(conn, record)))
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) != _TAKEN:
            raise
        raise SessionExists(session_id=record["session_id"]) from None
    return get(conn, record["session_id"])


def after_tombstone(conn: Connection, record: Mapping[str, Any]) -> dict[str, Any]:
    """Where a session of that id goes on, if one was deleted or forgotten. `SessionExists` if that was another scope's."""
    query = select(tombstone, intact("tombstone")).where(tombstone.c.session_id == record["session_id"])
    buried = conn.execute(query).one_or_none()
    if buried is None:
        return {}
    check_found(conn, buried, record["session_id"])
    check_intact(conn, buried.intact, f"session {shown(buried.session_id)}")
    if (buried.tenant, buried.owner) != (record["tenant"], record["owner"]):
        raise SessionExists(session_id=record["session_id"])
    return {
        "first_seq": buried.last_seq + 1,
        "last_seq": buried.last_seq,
        "total_bytes": buried.total_bytes,
        "removed_at": buried.removed_at,
        "removed_reason": buried.removed_reason,
    }


def ensure(db: AnyDatabase, record: Mapping[str, Any]) -> Session:
    """The session of that id, created if it is missing. `SessionExists` if another tenant or owner has it."""
    with db.read() as conn:
        standing = _standing(conn, record)
    if standing is not None:
        return standing
    try:
        with db.write() as conn:
            return standing_or_new(conn, record)
    except SessionExists:
        with db.read() as conn:  # by now, where writers do not take turns
            standing = _standing(conn, record)
        if standing is None:
            raise
        return standing


def standing_or_new(conn: Connection, record: Mapping[str, Any]) -> Session:
    """The same inside your transaction."""
    return _standing(conn, record) or create(conn, record)


def _standing(conn: Connection, record: Mapping[str, Any]) -> Session | None:
    row = conn.execute(RECORD.where(session.c.session_id == record["session_id"])).one_or_none()
    if row is None:
        return None
    check_found(conn, row, record["session_id"])
    check_intact(conn, row.intact, f"session {shown(row.session_id)}")
    if (row.tenant, row.owner) != (record["tenant"], record["owner"]):
        raise SessionExists(session_id=record["session_id"])
    return _record(conn, row)


def set_status(conn: Connection, session_id: str, status: Status) -> Session:
    """Set it, and `ended_at` with it: the moment a session became terminal; none while it is not."""
    row = row_of(conn, session_id)
    if row.status != status.value:
        ended_at = (now_us() if row.ended_at is None else row.ended_at) if status.is_terminal else None
        return change(conn, row, {"status": status.value, "ended_at": ended_at})
    return get(conn, session_id)


def changes_of(
    *, metadata: Mapping[str, Json] | Unchanged, max_events: int | Unlimited | Unchanged | None, hold: bool | Unchanged
) -> dict[str, Any]:
    """The columns to change, checked. Raises `InvalidSession`, `InvalidPolicy`."""
    changes: dict[str, Any] = {}
    if metadata is not UNCHANGED:
        changes["metadata"] = payload.encode_metadata(metadata)
    if max_events is not UNCHANGED:
        changes["max_events"] = stored_cap(max_events)
    if hold is not UNCHANGED:
        if not isinstance(hold, bool):
            raise InvalidSession(f"hold must be True or False, not {shown(hold)}")
        changes["hold"] = int(hold)
    return changes


def change(conn: Connection, row: Row[Any], changes: Mapping[str, Any]) -> Session:
    """Write the changed columns; nothing moves when there are none."""
    if changes:
        conn.execute(update(session).where(session.c.id == row.id).values(**changes, updated_at=now_us()))
    return get(conn, row.session_id)


# Lists


def page(
    conn: Connection,
    *,
    statuses: Collection[str] | None,
    updated_after: datetime | None,
    limit: int,
    cursor: str | None,
    scope: Scope | None = None,
) -> SessionPage:
    """Sessions by falling `updated_at`. A page costs the same wherever in the list it lies, and whatever it filters."""
    checked_count("limit", limit, 1, MAX_PAGE_EVENTS)
    only: list[ColumnElement[bool]] = [] if scope is None else [OWN]
    if updated_after is not None:
        only.append(session.c.updated_at > _moment("updated_after", updated_after))
    if cursor is not None:
        only.append(tuple_(session.c.updated_at, session.c.id) < tuple_(*map(literal, _cursor_parts(cursor))))
    if scope is not None and statuses is None:
        statuses = tuple(Status)  # as its index has them
    ids = _newest(statuses, only, limit + 1)
    listed = ids.outerjoin(session, session.c.id == ids.c.id).outerjoin(_FIRST, _ITS_FIRST)
    query = select(*_RECORD_COLUMNS, ids.c.updated_at.label("listed_at")).select_from(listed)
    own = {} if scope is None else scope._asdict()
    rows = conn.execute(query.order_by(ids.c.updated_at.desc(), ids.c.id.desc()), own).all()
    is_listed_rightly = len({row.id for row in rows}) == len(rows) and all(
        row.updated_at == row.listed_at
        and (statuses is None or row.status in statuses)
        and (scope is None or (row.tenant, row.owner) == scope)
        for row in rows
    )
    if not is_listed_rightly:
        raise damaged(conn, "an index of the sessions is not that of their records")
    last = rows[limit - 1] if len(rows) > limit else None
    return SessionPage(
        sessions=[_record(conn, row) for row in rows[:limit]], cursor=f"{last.updated_at}-{last.id}" if last else None
    )


def _newest(statuses: Collection[str] | None, conditions: list[ColumnElement[bool]], count: int) -> Any:
    """The newest `count` sessions. With statuses: the newest of each by its index, merged."""
    columns = (session.c.updated_at, session.c.id)

    def newest(*more: ColumnElement[bool]) -> Select[Any]:
        return select(*columns).where(NAMED, *conditions, *more).order_by(*(c.desc() for c in columns)).limit(count)

    if statuses is None:
        return newest().subquery()
    if isinstance(statuses, str) or not isinstance(statuses, Collection):
        raise InvalidInput(f"statuses must be a collection such as ['failed'], not {shown(statuses)}")
    wanted = sorted({Status.of(status).value for status in statuses})
    if not wanted:
        raise InvalidInput("statuses must name one status at least; None lists all sessions")
    merged = union_all(*(select(newest(session.c.status == status).subquery()) for status in wanted)).subquery()
    return select(merged).order_by(merged.c.updated_at.desc(), merged.c.id.desc()).limit(count).subquery()


def _cursor_parts(cursor: str) -> tuple[int, int]:
    match = re.fullmatch(r"(-?[0-9]{1,18})-([0-9]{1,18})", cursor) if isinstance(cursor, str) else None
    if match is None:
        raise InvalidInput(f"cursor {shown(cursor)} is not one that list_sessions gave")
    return int(match[1]), int(match[2])


def _moment(name: str, moment: object) -> int:
    if not isinstance(moment, datetime):
        raise InvalidInput(f"{name} must be a datetime, not {type(moment).__name__}")
    try:
        return to_us(moment)
    except ValueError as error:
        raise InvalidInput(f"{name} {error}") from None


# Between rows and records


def stored_cap(max_events: int | Unlimited | None) -> int | None:
    """`max_events` as the database holds it. `InvalidPolicy` if it is neither None, UNLIMITED nor a number from 1 on."""
    if max_events is None:
        return None
    if max_events is UNLIMITED:
        return NO_CAP
    if isinstance(max_events, bool) or not isinstance(max_events, int) or not 1 <= max_events < NO_CAP:
        raise InvalidPolicy(f"max_events must be a whole number from 1 on, or UNLIMITED, not {shown(max_events)}")
    return max_events


def cap_of(stored: int) -> int | Unlimited:
    return UNLIMITED if stored == NO_CAP else stored


def _record(conn: Connection, row: Row[Any]) -> Session:
    def moment(us: int | None) -> datetime | None:
        return None if us is None else from_us(us)

    check_intact(conn, row.intact, f"session {shown(row.session_id)}")
    check_first(conn, row)
    try:
        metadata = payload.decode(row.metadata)
    except ValueError as error:
        raise damaged(conn, f"metadata of session {shown(row.session_id)}: {error}") from None
    return Session(
        session_id=row.session_id,
        tenant=row.tenant,
        owner=row.owner,
        status=Status(row.status),
        metadata=metadata,
        first_seq=row.first_seq,
        last_seq=row.last_seq,
        retained_bytes=row.total_bytes - row.removed_bytes,
        max_events=None if row.max_events is None else cap_of(row.max_events),
        hold=bool(row.hold),
        created_at=from_us(row.created_at),
        updated_at=from_us(row.updated_at),
        ended_at=moment(row.ended_at),
        last_event_at=moment(row.last_event_at),
        removed_bytes=row.removed_bytes,
        removed_at=moment(row.removed_at),
        removed_reason=row.removed_reason,
    )
