"""What limits ask of a session's events, answered by halving the range: a dozen look-ups for a session of thousands.

`bytes_before` rises with seq. `recorded_at` does too, from the session's `unsorted_seq` on; what lies before that, where the
clock went back, is read event by event, up to the first that stays.
"""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, false, func, select

from aegis_store.any_database import locking
from aegis_store.driver_text import DriverText
from aegis_store.errors import shown
from aegis_store.events import Status, from_us, to_us
from aegis_store.record_copy import intact
from aegis_store.retention.policy import SessionState
from aegis_store.schema import event, session
from aegis_store.sqlite_errors import check_intact, damaged

# All of a session's row but its metadata, which may be 64 KiB and decides nothing; and whether it is intact.
SESSION_ROW: Final[Select[Any]] = select(
    *(column for column in session.c if column not in (session.c.metadata, session.c.record_copy)), intact("session")
)

# From `low` on, the first event that is not below `bound`; `high` where all are. One statement, on the driver's own
# parameters: through SQLAlchemy's compiler a plan over 2,000 sessions took twice as long.
_HALVING: Final = """
WITH RECURSIVE span(low, high) AS (
  VALUES (CAST(:low AS BIGINT), CAST(:high AS BIGINT))
  UNION ALL
  SELECT CASE WHEN e.{column} < :bound THEN e.seq + 1 ELSE low END, CASE WHEN e.{column} < :bound THEN high ELSE e.seq END
  FROM span JOIN event AS e ON e.session = :session AND e.seq = (low + high) / 2 WHERE low < high
) SELECT low FROM span WHERE low = high
"""
_BY_TIME: Final = DriverText(_HALVING.format(column="recorded_at"))
_BY_BYTES: Final = DriverText(_HALVING.format(column="bytes_before"))
_UNSORTED: Final = DriverText("""
SELECT seq FROM event WHERE session = :session AND seq >= :low AND seq < :high AND recorded_at >= :bound ORDER BY seq LIMIT 1
""")
_EVENT: Final = DriverText("SELECT bytes_before, recorded_at FROM event WHERE session = :session AND seq = :seq")


_BY_KEY: Final = SESSION_ROW.where(session.c.id == bindparam("key"))


def session_row(conn: Connection, key: int) -> Row[Any] | None:
    """The row of that session, without its metadata; None if it is gone. `StoreCorrupt` if it is not what was written."""
    row = conn.execute(locking(conn, _BY_KEY), {"key": key}).one_or_none()
    if row is not None:
        check_intact(conn, row.intact, f"session {shown(row.session_id)}")
    return row


class StoredHistory:
    """The retained events of one session, in the snapshot of `conn`. `row` is its row of the table `session`."""

    def __init__(self, conn: Connection, row: Row[Any], look_to_seq: int | None = None) -> None:
        """`look_to_seq`: what is asked one by one (see above) need not be looked at beyond; the answer may then be that seq."""
        self._conn = conn
        self._row = row
        self._look_to_seq: int = row.last_seq + 1 if look_to_seq is None else look_to_seq

    def since(self, moment: datetime, from_seq: int) -> int:
        """The lowest seq, from `from_seq` on, recorded at `moment` or later; `last_seq + 1` if there is none."""
        row, bound = self._row, to_us(moment)
        if row.oldest_at is not None and row.oldest_at >= bound:
            return from_seq
        sorted_from = max(from_seq, int(row.unsorted_seq))
        if sorted_from > from_seq:
            look_to = min(sorted_from, max(self._look_to_seq, from_seq))
            found = self._one(_UNSORTED, low=from_seq, high=look_to, bound=bound)
            if found is not None:
                return int(found[0])
            if look_to < sorted_from:
                return look_to
        return self._halved(_BY_TIME, sorted_from, bound)

    def within(self, payload_bytes: int) -> int:
        """The lowest seq from which on the payloads take `payload_bytes` at the most."""
        if self._row.total_bytes - self.bytes_before(self._row.first_seq) <= payload_bytes:
            return int(self._row.first_seq)
        return self.reaching(self._row.total_bytes - payload_bytes)

    def reaching(self, bytes_before: int) -> int:
        """The lowest seq before which the payloads of the session's whole life take `bytes_before` or more."""
        return self._halved(_BY_BYTES, self._row.first_seq, bytes_before)

    def bytes_before(self, seq: int) -> int:
        """Payload bytes of all events before `seq` in the session's life. `seq` is retained, or `last_seq + 1`."""
        return int(self._row.total_bytes) if seq > self._row.last_seq else int(self.event(seq).bytes_before)

    def event(self, seq: int) -> Row[Any]:
        """`bytes_before` and `recorded_at` (microseconds since the epoch) of a retained event."""
        return self._found(_EVENT, seq=seq)

    def _halved(self, query: DriverText, low: int, bound: int) -> int:
        return int(self._found(query, low=low, high=self._row.last_seq + 1, bound=bound)[0])

    def _found(self, query: DriverText, **parameters: int) -> Row[Any]:
        row = self._one(query, **parameters)
        if row is None:
            raise damaged(self._conn, f"events of session {shown(self._row.session_id)} are missing")
        return row

    def _one(self, query: DriverText, **parameters: int) -> Row[Any] | None:
        return self._conn.exec_driver_sql(query.on(self._conn), {"session": self._row.id, **parameters}).fetchone()


# Over all sessions: each costs two look-ups, however many events it has.

_FIRST: Final = (
    select(event.c.bytes_before)
    .where(event.c.session == session.c.id, event.c.seq == session.c.first_seq)
    .correlate(session)
    .scalar_subquery()
)
_RETAINED: Final = session.c.total_bytes - func.coalesce(_FIRST, session.c.total_bytes)


def sum_of_retained_bytes(conn: Connection) -> int:
    """Payload bytes of all sessions."""
    return int(conn.execute(select(func.coalesce(func.sum(_RETAINED), 0))).scalar_one())


def over_bytes(max_bytes: int | None) -> ColumnElement[bool]:
    """The sessions that hold more; none where there is no limit."""
    return false() if max_bytes is None else max_bytes < _RETAINED


def state_of(conn: Connection, row: Row[Any], look_to_seq: int | None = None) -> SessionState:
    """What a policy may know of a session, from its row of the table `session` (without metadata will do)."""
    return SessionState(
        status=Status(row.status),
        hold=bool(row.hold),
        first_seq=row.first_seq,
        last_seq=row.last_seq,
        ended_at=None if row.ended_at is None else from_us(row.ended_at),
        history=StoredHistory(conn, row, look_to_seq),
        is_deleted=row.session_id is None,
    )
