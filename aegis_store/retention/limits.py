"""The limits in force: reading the policy, and changing a limit so that its bound is exact from that moment on.

Lowering a cap first removes in slices what the new cap does not allow, then sets it, together with the last slice. The
guards of the schema refuse a cap that a session exceeds, so no order of events can leave one above its bound.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, func, select, update

from aegis_store.database import Database
from aegis_store.errors import InvalidPolicy
from aegis_store.events import Session, from_us
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.retention.truncate import let_writers_through, truncate_slice
from aegis_store.schema import session, store
from aegis_store.sessions import cap_of, change, row_of, stored_cap
from aegis_store.settings import PRUNE_SLICE_EVENTS


def policy_in_force(conn: Connection) -> RetentionPolicy:
    row = conn.execute(select(store)).one()
    return RetentionPolicy(
        max_events=cap_of(row.max_events),
        max_event_bytes=row.max_event_bytes,
        terminal_grace=from_us(row.terminal_grace_us) - from_us(0),
    )


class PolicyLoss(NamedTuple):
    """What a change of policy would remove at once."""

    sessions: int
    events: int


def loss(conn: Connection, policy: RetentionPolicy) -> PolicyLoss:
    """How many events the sessions hold that the policy's cap does not allow."""
    cap = stored_cap(policy.max_events)
    assert cap is not None
    over = _over(cap).subquery()
    sums = select(func.count(), func.coalesce(func.sum(over.c.last_seq - over.c.first_seq + 1 - cap), 0))
    return PolicyLoss(*conn.execute(sums.select_from(over)).one())


def set_policy(db: Database, policy: RetentionPolicy) -> None:
    """Put `policy` in force. A lower cap removes what it does not allow, then holds.

    Interrupted, the old policy is in force, and some sessions have lost part of what the new one would have removed.
    """
    if not isinstance(policy, RetentionPolicy):
        raise InvalidPolicy(f"policy must be a RetentionPolicy, not {type(policy).__name__}")
    cap = stored_cap(policy.max_events)
    assert cap is not None
    values = {
        "max_events": cap,
        "max_event_bytes": policy.max_event_bytes,
        "terminal_grace_us": policy.terminal_grace // (from_us(1) - from_us(0)),
    }
    while True:
        with db.read() as conn:
            over = conn.execute(_over(cap)).all()
        for row in over:
            _shrink(db, row.session_id, cap)
        with db.write() as conn:
            # Writers went on meanwhile. What they added goes together with the change, if it is little; else once more.
            late = conn.execute(_over(cap)).all()
            if sum(row.last_seq - row.first_seq + 1 - cap for row in late) <= PRUNE_SLICE_EVENTS:
                for row in late:
                    truncate_slice(conn, row, row.last_seq + 1 - cap, "max_events")
                conn.execute(update(store).values(values))
                return


def _over(cap: int) -> Select[Any]:
    return select(session).where(session.c.max_events.is_(None), session.c.last_seq - session.c.first_seq >= cap)


def _shrink(db: Database, session_id: str, cap: int) -> None:
    """Remove what `cap` does not allow, but for less than a slice."""
    while True:
        started = time.monotonic()
        with db.write() as conn:
            row = row_of(conn, session_id)
            truncate_slice(conn, row, row.last_seq + 1 - cap, "max_events")
            left = row.last_seq + 1 - cap - row.first_seq - PRUNE_SLICE_EVENTS
        if left <= 0:
            return
        let_writers_through(time.monotonic() - started)


def change_session(db: Database, session_id: str, changes: Mapping[str, Any]) -> Session:
    """Write checked `changes` to a session. A lower `max_events` removes what it does not allow, then holds."""
    if "max_events" in changes:
        with db.read() as conn:
            cap = _new_cap(conn, changes)
        _shrink(db, session_id, cap)
    with db.write() as conn:
        row = row_of(conn, session_id)
        if "max_events" in changes:
            _shrink_to(conn, row, _new_cap(conn, changes))
        return change(conn, row, changes)


def _new_cap(conn: Connection, changes: Mapping[str, Any]) -> int:
    """The cap that the changed session will have: its own, or that of the policy."""
    own = changes["max_events"]
    return int(own if own is not None else conn.execute(select(store.c.max_events)).scalar_one())


def _shrink_to(conn: Connection, row: Row[Any], cap: int) -> None:
    """Remove all that `cap` does not allow: what came since `_shrink`, which is little."""
    while truncate_slice(conn, row, row.last_seq + 1 - cap, "max_events").events:
        row = row_of(conn, row.session_id)
