"""Events from store to store, in the order of their positions, which they keep; see the package."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, func, select

from aegis_store.any_database import KEEP_APPENDS_OUT, AnyDatabase, keep_appends_out, streamed
from aegis_store.append import APPEND_SQL
from aegis_store.checksum import STORE_NUMBER, content_sum, event_is_intact
from aegis_store.copying.records import batches
from aegis_store.driver_text import DriverText
from aegis_store.errors import StoreUnavailable, shown
from aegis_store.read import last_removed
from aegis_store.schema import AT_HEAD_SQL, event, session
from aegis_store.sqlite_errors import ConstraintRefused, damaged

# A sub-select and no join, so that the events are walked in the order in which they lie, whatever the planner thinks.
_SESSION_ID: Final = select(session.c.session_id).where(session.c.id == event.c.session).scalar_subquery()
_EVENTS: Final = select(event, STORE_NUMBER, _SESSION_ID.label("session_id")).order_by(event.c.position)

_HIGHEST: Final = select(func.coalesce(func.max(event.c.position), 0))

# The counter stands in SQLite's own table, without a row before the first event.
_MOVE_COUNTER: Final = DriverText(
    """
INSERT OR REPLACE INTO sqlite_sequence (rowid, name, seq)
VALUES ((SELECT rowid FROM sqlite_sequence WHERE name = 'event'), 'event', :position)
""",
    postgresql="SELECT setval('event_position', greatest(:position, 1), :position > 0)",
)

# With the counter moved in the same statement, so that many of them go to the server at once. It looks whether the event before
# is still the last there: if not, `seq` is NULL, which the schema refuses, and what was sent behind it is not carried out.
_POSTGRESQL_INSERT: Final = f"""
WITH counter AS (
  SELECT setval('event_position', greatest(%(position)s::bigint - 1, 1), %(position)s::bigint > 1) AS moved_to
  WHERE %(after)s::bigint = (SELECT coalesce(max(position), 0) FROM event)
    AND %(removed)s::bigint = (SELECT position FROM removal) AND {AT_HEAD_SQL}
), s AS (
  SELECT id, total_bytes FROM session WHERE session_id = %(session_id)s::text FOR UPDATE
)
INSERT INTO event (
  session, seq, bytes_before, type, occurred_at, recorded_at, event_id, run_id, payload_ref, payload, checksum
) SELECT
  id, CASE WHEN moved_to IS NOT NULL THEN %(expected_seq)s::bigint + 1 END, total_bytes, %(type)s::text,
  %(occurred_at)s::bigint, %(recorded_at)s::bigint, %(event_id)s::text, %(run_id)s::text, %(payload_ref)s::text,
  %(payload)s::text, %(checksum)s::bigint
FROM (SELECT) AS this LEFT JOIN s ON true LEFT JOIN counter ON true
"""

# Ends a transaction amid others that were sent: what comes next is one of its own.
_NEXT_TRANSACTION: Final = ("COMMIT AND CHAIN", "SET LOCAL synchronous_commit = off", KEEP_APPENDS_OUT)

# Up to the highest position, those that no event has. SQLite has none that no removal has made, PostgreSQL has: of appends
# that were refused, or rolled back.
_HIGHEST_GAP: Final = """
SELECT coalesce(max(position) - 1, 0) FROM (
  SELECT position, coalesce(lag(position) OVER (ORDER BY position), 0) AS before FROM event
  WHERE position <= {upto}
) AS each_event WHERE position > before + 1
"""

OnEvents = Callable[[int], None]
"""Called with the number of events that came in with a transaction."""


def events_up_to(upto: int, after: int = 0) -> Select[Any]:
    """Events of these positions, in their order; without a `session_id` where the session is being deleted."""
    return _EVENTS.where(event.c.position > after, event.c.position <= upto)


class Reached(NamedTuple):
    """The highest positions of a store: of an event that is there, and of one that was removed. 0 for none."""

    event: int
    removed: int


def reached_by(conn: Connection) -> Reached:
    return Reached(int(conn.execute(_HIGHEST).scalar_one()), last_removed(conn).position)


def highest_gap(conn: Connection, upto: int) -> int:
    """The highest position up to `upto` that no event has, and below one that has; 0 if there is none."""
    return int(conn.exec_driver_sql(_HIGHEST_GAP.format(upto=int(upto))).scalar_one())


def bring_events(source: Connection, target: AnyDatabase, reached: Reached, upto: int, on_events: OnEvents) -> None:
    """Append to the target, which has `reached` so far, what the source holds beyond. What was committed stays, whatever is
    raised.
    """
    with streamed(source, events_up_to(upto, reached.event)) as rows:
        named = (checked(source, row) for row in rows if row.session_id is not None)
        for batch in batches(named, lambda row: len(row.payload)):
            try:
                with target.writes() as write, write() as conn:
                    keep_appends_out(conn)
                    if reached_by(conn) != reached:
                        raise changed(target, "somebody else writes to it")
                    _insert_all(conn, target, [_parameters(row) for row in batch], reached)
            except ConstraintRefused as error:
                with target.read():  # which says whether a deploy has changed it
                    raise changed(target, str(error)) from None
            reached = reached._replace(event=batch[-1].position)
            on_events(len(batch))


def checked(conn: Connection, row: Row[Any]) -> Row[Any]:
    """The row; `StoreCorrupt` if it is not what was written."""
    if not event_is_intact(row.session_id, row):
        raise damaged(conn, f"event {shown(row.seq)} of session {shown(row.session_id)} is not what was written")
    return row


def changed(target: AnyDatabase, what: str) -> StoreUnavailable:
    """The error for a target that is not as the copy has left it."""
    detail = f"it is not as the copy has left it ({what}): have nobody else use it and copy again, into a new store if need be"
    return StoreUnavailable(store=str(target.target), detail=detail)


def move_counter(conn: Connection, position: int) -> None:
    """The next event gets the position after this one. Only for who keeps other writers out."""
    conn.exec_driver_sql(_MOVE_COUNTER.on(conn), {"position": position})


def _parameters(row: Row[Any]) -> dict[str, Any]:
    """Of the statement of an append."""
    texts = {name: getattr(row, name) for name in ("session_id", "type", "payload", "event_id", "run_id", "payload_ref")}
    times = {"occurred_at": row.occurred_at, "recorded_at": row.recorded_at}
    checksum = content_sum(
        row.session_id,
        row.type,
        row.payload.encode(),
        row.occurred_at,
        row.recorded_at,
        row.event_id,
        row.run_id,
        row.payload_ref,
    )
    return {**texts, **times, "expected_seq": row.seq - 1, "checksum": checksum, "position": row.position}


def _insert_all(conn: Connection, target: AnyDatabase, events: list[dict[str, Any]], reached: Reached) -> None:
    if conn.dialect.name == "postgresql":
        _insert_many(conn, target, events, reached)
    elif _insert_each(conn, events) != [each["position"] for each in events]:
        raise changed(target, "an event got another place")


def _insert_each(conn: Connection, events: list[dict[str, Any]]) -> list[int]:
    """One by one; the positions that they got, up to one that was not inserted."""
    cursor: Any = conn.connection.cursor()
    given: list[int] = []
    for each in events:
        if not given or each["position"] != given[-1] + 1:
            move_counter(conn, each["position"] - 1)
        rows = cursor.execute(APPEND_SQL, each).fetchall()
        if not rows:
            break
        given.append(rows[0][1])
    cursor.close()
    return given


def _insert_many(conn: Connection, target: AnyDatabase, events: list[dict[str, Any]], reached: Reached) -> None:
    """All at once: psycopg sends them, and the ends of transactions between them, without waiting for the answer to each.

    The last part is in the transaction of `conn` when this returns. An error ends all: what was committed before it stays.
    """
    after = reached.event
    for each in events:
        each |= {"after": after, "removed": reached.removed}
        after = each["position"]
    raw: Any = conn.connection.driver_connection
    with raw.pipeline(), raw.cursor() as cursor, raw.cursor() as between:
        for number, part in enumerate(target.parts(events, itemgetter("session_id"))):
            for statement in _NEXT_TRANSACTION if number else ():
                between.execute(statement)
            cursor.executemany(_POSTGRESQL_INSERT, part)
