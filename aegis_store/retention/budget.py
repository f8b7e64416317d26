"""The budget of the whole store: whose events go when it is over `max_total_bytes`.

Events of terminal sessions first, those that ended first before the others; then the oldest events of the rest, by position;
never of sessions on hold. As much as brings the store down to 80 % of the budget, to the event.
"""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, select

from aegis_store.driver_text import DriverText
from aegis_store.retention.history import SESSION_ROW, StoredHistory, session_row, state_of, sum_of_retained_bytes
from aegis_store.retention.plan import BudgetPlan, Truncation, truncation_of
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.schema import AGEING, PRUNABLE, session, store
from aegis_store.settings import BUDGET_STEP_POSITIONS

# Live sessions that lose events of this stretch of positions: up to which seq, and the bytes before the seq after that.
_ELIGIBLE: Final = "s.hold = 0 AND s.ended_at IS NULL AND s.session_id IS NOT NULL"
_BY_SESSION: Final = DriverText(f"""
SELECT s.id, gone.seq, coalesce(next.bytes_before, s.total_bytes)
FROM (SELECT session, max(seq) AS seq FROM event WHERE position > :low AND position <= :high GROUP BY session) AS gone
JOIN session AS s ON s.id = gone.session
LEFT JOIN event AS next ON next.session = gone.session AND next.seq = gone.seq + 1
WHERE {_ELIGIBLE}
""")
_BY_EVENT: Final = DriverText(f"""
SELECT s.id, e.seq, coalesce(next.bytes_before, s.total_bytes)
FROM event AS e
JOIN session AS s ON s.id = e.session
LEFT JOIN event AS next ON next.session = e.session AND next.seq = e.seq + 1
WHERE e.position > :low AND e.position <= :high AND {_ELIGIBLE}
ORDER BY e.position
""")
_NEXT_POSITION: Final = DriverText("SELECT min(position) FROM event WHERE position > :low")


def retained_bytes(conn: Connection) -> int:
    """Payload bytes of all sessions: the counter that runs while there is a budget, else a sum over the sessions."""
    counted = conn.execute(select(store.c.retained_bytes)).scalar_one()
    return int(counted) if counted is not None else sum_of_retained_bytes(conn)


def add_to(
    conn: Connection, policy: RetentionPolicy, now: datetime, truncations: dict[int, Truncation]
) -> tuple[dict[int, Truncation], BudgetPlan | None]:
    """The truncations that the other limits ask for, and those that the budget needs beyond them.

    Costs in proportion to what goes, and to the events of sessions on hold that lie between.
    """
    if policy.max_total_bytes is None or policy.budget_target_bytes is None:
        return truncations, None
    retained = retained_bytes(conn)
    left = retained - sum(truncation.bytes for truncation in truncations.values())
    excess = policy.over_budget(left)
    if not excess:
        return truncations, None
    taking = _Taking(conn, truncations, excess)
    taking.from_ended_sessions()
    taking.from_the_oldest_events()
    taken = taking.truncations(policy, now)
    combined = {key: truncation for key, truncation in truncations.items() if key not in taken} | taken
    freed = excess - taking.needed
    plan = BudgetPlan(
        retained_bytes=retained,
        max_total_bytes=policy.max_total_bytes,
        target_bytes=policy.budget_target_bytes,
        freed_bytes=freed,
        left_bytes=left - freed,
    )
    return combined, plan


class _Taking:
    """Taking events until enough bytes are found. `needed` may end below 0, by less than the last event taken."""

    def __init__(self, conn: Connection, standing: dict[int, Truncation], needed: int) -> None:
        self.needed = needed
        self._conn = conn
        self._standing = standing
        self._keep: dict[int, int] = {}
        self._bytes: dict[int, int] = {}  # by session: bytes_before of the seq that it keeps, as far as it was taken from

    def from_ended_sessions(self) -> None:
        rows = self._conn.execute(SESSION_ROW.where(PRUNABLE, session.c.session_id.is_not(None)).order_by(session.c.ended_at))
        for row in rows:
            if self.needed <= 0:
                break
            history = StoredHistory(self._conn, row)
            start = self._start(row.id, history, row.first_seq)
            if row.total_bytes - start <= self.needed:
                self._take(row.id, row.last_seq, row.total_bytes)
            else:
                keep = history.reaching(start + self.needed)
                self._take(row.id, keep - 1, history.bytes_before(keep))
        rows.close()

    def from_the_oldest_events(self) -> None:
        live = SESSION_ROW.where(AGEING, session.c.ended_at.is_(None)).limit(1)
        if self.needed <= 0 or self._conn.execute(live).first() is None:
            return
        low = self._next_position(0)
        while low is not None:
            step = {"low": low - 1, "high": low - 1 + BUDGET_STEP_POSITIONS}
            found = self._conn.exec_driver_sql(_BY_SESSION.on(self._conn), step).all()
            if sum(max(after - self._start_of(key), 0) for key, _, after in found) >= self.needed:
                self._take_one_by_one(step)
                return
            for key, seq, after in found:
                self._take(key, seq, after)
            low = self._next_position(step["high"])

    def _take_one_by_one(self, step: dict[str, int]) -> None:
        rows = self._conn.exec_driver_sql(_BY_EVENT.on(self._conn), step)
        for key, seq, after in rows:
            self._take(key, seq, after)
            if self.needed <= 0:
                break
        rows.close()

    def _next_position(self, after: int) -> int | None:
        found: int | None = self._conn.exec_driver_sql(_NEXT_POSITION.on(self._conn), {"low": after}).scalar()
        return found

    def _take(self, key: int, seq: int, bytes_after: int) -> None:
        """Take the session's events up to `seq`, before which and with which its payloads take `bytes_after`."""
        gain = bytes_after - self._start_of(key)
        if gain > 0:
            self.needed -= gain
            self._keep.pop(key, None)  # in the order of the last event taken
            self._bytes[key], self._keep[key] = bytes_after, seq + 1

    def _start_of(self, key: int) -> int:
        if key not in self._bytes:
            row = self._row(key)
            self._start(key, StoredHistory(self._conn, row), row.first_seq)
        return self._bytes[key]

    def _start(self, key: int, history: StoredHistory, first_seq: int) -> int:
        standing = self._standing.get(key)
        self._bytes.setdefault(key, history.bytes_before(standing.keep_from_seq if standing else first_seq))
        return self._bytes[key]

    def _row(self, key: int) -> Any:
        return session_row(self._conn, key)

    def truncations(self, policy: RetentionPolicy, now: datetime) -> dict[int, Truncation]:
        """What was taken, in the order in which it is to go: the session whose last event is the oldest first.

        Events that are now the oldest of their session, and over another limit, go along.
        """
        found = {}
        for key, keep in self._keep.items():
            row = self._row(key)
            state = state_of(self._conn, row)
            more = policy.keep_from(state._replace(first_seq=keep), now)
            keep_from_seq = more.keep_from_seq if more else keep
            forgets = keep_from_seq > row.last_seq and policy.forgets(state, now)
            found[key] = truncation_of(self._conn, row, keep_from_seq, "max_total_bytes", forgets=forgets)
        return found
