"""The limits in force: reading the policy, and changing a limit so that its bound is exact from that moment on.

Lowering a cap first removes in slices what the new cap does not allow, then sets it, together with the last slice. The
guards of the schema refuse a cap that a session exceeds, so no order of events can leave one above its bound.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, func, select, update

from aegis_store.database import Database
from aegis_store.errors import InvalidPolicy
from aegis_store.events import Session, from_us
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.retention.truncate import let_writers_through, truncate_slice
from aegis_store.schema import NO_CAP, session, store
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
    _check(policy)
    cap = stored_cap(policy.max_events)
    assert cap is not None
    over = _over(cap).subquery()
    sums = select(func.count(), func.coalesce(func.sum(over.c.last_seq - over.c.first_seq + 1 - cap), 0))
    return PolicyLoss(*conn.execute(sums.select_from(over)).one())


def _check(policy: object) -> None:
    if not isinstance(policy, RetentionPolicy):
        raise InvalidPolicy(f"policy must be a RetentionPolicy, not {type(policy).__name__}")


def set_policy(db: Database, policy: RetentionPolicy) -> None:
    """Put `policy` in force. A lower cap removes what it does not allow, then holds.

    Interrupted, the old policy is in force, and some sessions have lost part of what the new one would have removed.
    """
    _check(policy)
    cap = stored_cap(policy.max_events)
    assert cap is not None
    values = {
        "max_events": cap,
        "max_event_bytes": policy.max_event_bytes,
        "terminal_grace_us": policy.terminal_grace // (from_us(1) - from_us(0)),
    }

    def cap_of_heir(conn: Connection, row: Row[Any]) -> int:
        return cap if row.max_events is None else NO_CAP  # a cap of its own, given meanwhile, counts

    while True:
        with db.read() as conn:
            over = conn.execute(_over(cap)).all()
        for row in over:
            _shrink(db, row.session_id, cap_of_heir)
        with db.write() as conn:
            # Writers went on meanwhile. What they added goes together with the change, if it is little; else once more.
            late = conn.execute(_over(cap)).all()
            if sum(_excess(row, cap) for row in late) <= PRUNE_SLICE_EVENTS:
                for row in late:
                    truncate_slice(conn, row, row.last_seq + 1 - cap, "max_events")
                conn.execute(update(store).values(values))
                return


def _over(cap: int) -> Select[Any]:
    return select(session).where(session.c.max_events.is_(None), session.c.last_seq - session.c.first_seq >= cap)


def _excess(row: Row[Any], cap: int) -> int:
    return int(row.last_seq - row.first_seq + 1 - cap)


_CapInForce = Callable[[Connection, Row[Any]], int]
"""The cap to shrink a session to, as it is in this transaction."""


def _shrink(db: Database, session_id: str, cap_in_force: _CapInForce) -> None:
    """Remove slice by slice what the cap does not allow."""
    while True:
        started = time.monotonic()
        with db.write() as conn:
            row = row_of(conn, session_id)
            cap = cap_in_force(conn, row)
            truncate_slice(conn, row, row.last_seq + 1 - cap, "max_events")
        if _excess(row, cap) <= PRUNE_SLICE_EVENTS:
            return
        let_writers_through(time.monotonic() - started)


def change_session(db: Database, session_id: str, changes: Mapping[str, Any]) -> Session:
    """Write checked `changes` to a session. A lower `max_events` removes what it does not allow, then holds."""

    def new_cap(conn: Connection, row: Row[Any]) -> int:
        own = changes.get("max_events", row.max_events)
        return int(own if own is not None else conn.execute(select(store.c.max_events)).scalar_one())

    if "max_events" in changes:
        _shrink(db, session_id, new_cap)
    with db.write() as conn:
        row = row_of(conn, session_id)
        while "max_events" in changes and truncate_slice(conn, row, row.last_seq + 1 - new_cap(conn, row), "max_events").events:
            row = row_of(conn, session_id)  # what came since, which is little
        return change(conn, row, changes)
