"""Whether the store is well: its own row, the newest prune run, its spool, the sizes of its files. Looks at no session."""

from sqlalchemy import Connection, select

from aegis_store.any_database import AnyDatabase
from aegis_store.errors import plural
from aegis_store.events import Health, from_us
from aegis_store.record_copy import intact
from aegis_store.retention.maintenance import MaintenanceState, maintained_at
from aegis_store.schema import prune_run, store
from aegis_store.spool import Spool
from aegis_store.sqlite_errors import check_intact


def health(conn: Connection, db: AnyDatabase, maintenance: MaintenanceState | None) -> Health:
    """See `EventStore.health`."""
    row = conn.execute(select(store, intact("store"))).one()
    check_intact(conn, row.intact, "the policy and of what was removed")
    last = conn.execute(select(prune_run, intact("prune_run")).order_by(prune_run.c.id.desc()).limit(1)).one_or_none()
    if last is not None:
        check_intact(conn, last.intact, f"run {last.id} of a prune")
    error = maintenance.last_error if maintenance else None
    problems = []
    waiting = rejected = 0
    try:
        spool = Spool(db.target)
        waiting, rejected = len(spool.waiting()), len(spool.rejected())
    except OSError as problem:
        problems.append(f"the spool cannot be read: {problem.strerror}")
    if error:
        problems.append(f"the last maintenance of this process failed: {error}")
    if row.max_total_bytes is not None and row.retained_bytes > row.max_total_bytes:
        over = row.retained_bytes - row.max_total_bytes
        problems.append(f"the store is {over:,} bytes over its budget (max_total_bytes): prune it, or raise the budget")
    if last is not None and (last.outcome or "").startswith("failed"):
        problems.append(f"the last prune, at {from_us(last.started_at).isoformat()}, {last.outcome}: see prune --history")
    if waiting:
        problems.append(f"{plural(waiting, 'event')} in the spool, not recorded yet: aegis-store spool flush brings them in")
    if rejected:
        problems.append(f"{plural(rejected, 'event')} set aside in the spool, not recorded: aegis-store spool show tells why")
    return Health(
        problems=tuple(problems),
        **db.sizes(conn)._asdict(),
        retained_bytes=row.retained_bytes,
        max_total_bytes=row.max_total_bytes,
        maintain_every=maintenance.every if maintenance else None,
        maintained_at=maintained_at(conn),
        maintenance_error=error,
        last_prune_at=None if last is None else from_us(last.started_at),
        last_prune_outcome=None if last is None else last.outcome or "at work, or killed",
        spooled_events=waiting,
        rejected_events=rejected,
    )
