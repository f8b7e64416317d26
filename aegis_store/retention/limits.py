"""The limits in force: reading the policy, and changing a limit so that its bound is exact from that moment on.

Lowering a cap first removes in slices what the new cap does not allow, then sets it, together with the last slice. The
guards of the schema refuse a cap that a session exceeds, so no order of events can leave one above its bound.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, func, select, update

from aegis_store.any_database import AnyDatabase, keep_appends_out
from aegis_store.errors import InvalidPolicy, SessionNotFound
from aegis_store.events import EPOCH, Session, from_us
from aegis_store.record_copy import intact
from aegis_store.retention.history import SESSION_ROW, over_bytes, sum_of_retained_bytes
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.retention.truncate import let_writers_through, truncate_slice
from aegis_store.schema import NAMED, NO_CAP, session, store
from aegis_store.sessions import cap_of, change, row_of, stored_cap
from aegis_store.settings import PRUNE_SLICE_EVENTS
from aegis_store.sqlite_errors import check_intact

_POLICY: Final = select(store, intact("store"))


def policy_in_force(conn: Connection) -> RetentionPolicy:
    row = conn.execute(_POLICY).one()
    check_intact(conn, row.intact, "the policy and of what was removed")
    return RetentionPolicy(
        max_events=cap_of(row.max_events),
        max_bytes=row.max_bytes,
        max_age=_span(row.max_age_us),
        max_event_bytes=row.max_event_bytes,
        terminal_grace=from_us(row.terminal_grace_us) - EPOCH,
        max_total_bytes=row.max_total_bytes,
        forget_sessions_after=_span(row.forget_sessions_after_us),
        mode=row.mode,
    )


def _span(us: int | None) -> timedelta | None:
    return None if us is None else timedelta(microseconds=us)


def _us(span: timedelta | None) -> int | None:
    return None if span is None else span // timedelta(microseconds=1)


def _stored(policy: RetentionPolicy) -> dict[str, Any]:
    return {
        "max_events": stored_cap(policy.max_events),
        "max_bytes": policy.max_bytes,
        "max_age_us": _us(policy.max_age),
        "max_event_bytes": policy.max_event_bytes,
        "terminal_grace_us": _us(policy.terminal_grace),
        "max_total_bytes": policy.max_total_bytes,
        "forget_sessions_after_us": _us(policy.forget_sessions_after),
        "mode": policy.mode,
    }


class PolicyLoss(NamedTuple):
    """What a change of policy would remove at once."""

    sessions: int
    events: int


def loss(conn: Connection, policy: RetentionPolicy) -> PolicyLoss:
    """How many events the sessions hold that the policy's cap does not allow."""
    over = _over(_stored(checked(policy))["max_events"]).subquery()
    cap = stored_cap(policy.max_events)
    sums = select(func.count(), func.coalesce(func.sum(over.c.last_seq - over.c.first_seq + 1 - cap), 0))
    return PolicyLoss(*conn.execute(sums.select_from(over)).one())


def checked(policy: RetentionPolicy) -> RetentionPolicy:
    if not isinstance(policy, RetentionPolicy):
        raise InvalidPolicy(f"policy must be a RetentionPolicy, not {type(policy).__name__}")
    return policy


def set_policy(db: AnyDatabase, policy: RetentionPolicy) -> None:
    """Put `policy` in force. A lower cap removes what it does not allow, then holds.

    Interrupted, the old policy is in force, and some sessions have lost part of what the new one would have removed.
    """
    values = _stored(checked(policy))
    cap: int = values["max_events"]

    def cap_of_heir(conn: Connection, row: Row[Any]) -> int:
        return cap if row.max_events is None else NO_CAP  # a cap of its own, given meanwhile, counts

    while True:
        with db.read() as conn:
            over = conn.execute(_over(cap)).all()
        for row in over:
            with suppress(SessionNotFound):  # deleted meanwhile
                _shrink(db, row.session_id, cap_of_heir)
        with db.write() as conn:
            keep_appends_out(conn)
            # Writers went on meanwhile. What they added goes together with the change, if it is little; else once more.
            late = conn.execute(_over(cap)).all()
            is_little = sum(_excess(row, cap) for row in late) <= PRUNE_SLICE_EVENTS
            if is_little and all(_shrink_once(conn, row, cap) for row in late):
                _put_in_force(conn, values)
                return


def adopt(db: AnyDatabase, policy: RetentionPolicy | None) -> bool:
    """Put `policy` in force if the store holds no session, and its own policy is still that of a new store.

    Whether that changed anything.
    """
    if policy is None or policy == RetentionPolicy():
        return False
    with db.write() as conn:
        keep_appends_out(conn)
        is_new = conn.execute(select(session.c.id).limit(1)).first() is None and policy_in_force(conn) == RetentionPolicy()
        if is_new:
            _put_in_force(conn, _stored(policy))
    return is_new


def _put_in_force(conn: Connection, values: dict[str, Any]) -> None:
    before = conn.execute(select(store)).one()
    counted = None
    if values["max_total_bytes"] is not None:  # from here on the schema's triggers count
        counted = before.retained_bytes if before.retained_bytes is not None else sum_of_retained_bytes(conn)
    conn.execute(update(store).values(**values, retained_bytes=counted))
    if values["max_bytes"] != before.max_bytes:
        # Each session is looked at, once: from here on the triggers mark those that grow past the limit.
        over = over_bytes(values["max_bytes"])
        conn.execute(update(session).where(session.c.oversize == 1, ~over).values(oversize=0))
        conn.execute(update(session).where(session.c.oversize == 0, over).values(oversize=1))


def _over(cap: int) -> Select[Any]:
    return SESSION_ROW.where(NAMED, session.c.max_events.is_(None), session.c.last_seq - session.c.first_seq >= cap)


def _excess(row: Row[Any], cap: int) -> int:
    return int(row.last_seq - row.first_seq + 1 - cap)


_CapInForce = Callable[[Connection, Row[Any]], int]
"""The cap to shrink a session to, as it is in this transaction."""


def _shrink_once(conn: Connection, row: Row[Any], cap: int) -> bool:
    """Remove what the cap does not allow, a slice of it at the most; whether that was all."""
    return truncate_slice(conn, row, row.last_seq + 1 - cap, "max_events").events >= _excess(row, cap)


def _shrink(db: AnyDatabase, session_id: str, cap_in_force: _CapInForce) -> None:
    """Remove slice by slice what the cap does not allow."""
    while True:
        started = time.monotonic()
        with db.write() as conn:
            row = row_of(conn, session_id)
            if _shrink_once(conn, row, cap_in_force(conn, row)):
                return
        let_writers_through(time.monotonic() - started)


def change_session(db: AnyDatabase, session_id: str, changes: Mapping[str, Any]) -> Session:
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
