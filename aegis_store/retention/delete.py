"""Deleting a session: first its name goes, in one small transaction; then its events, in slices, as in every prune."""

from dataclasses import replace
from datetime import UTC, datetime

from aegis_store.any_database import AnyDatabase
from aegis_store.errors import InvalidSession, shown
from aegis_store.retention.limits import policy_in_force
from aegis_store.retention.plan import PrunePlan, truncation_of
from aegis_store.retention.prune import carry_out
from aegis_store.retention.truncate import bury
from aegis_store.sessions import row_of


def delete_session(db: AnyDatabase, session_id: str) -> None:
    """See `EventStore.delete_session`."""
    with db.write() as conn:
        row = row_of(conn, session_id)
        if row.hold:
            raise InvalidSession(f"session {shown(session_id)} is on hold: release it with update_session(…, hold=False) first")
        bury(conn, row, "deleted")
        rest = replace(truncation_of(conn, row, row.last_seq + 1, "deleted", forgets=True), session_id=None)
        policy = policy_in_force(conn)
    plan = PrunePlan(now=datetime.now(UTC), policy=policy, truncations=(rest,))
    carry_out(db, plan, trigger="api")
