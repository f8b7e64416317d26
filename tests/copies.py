"""What the tests of copies share: stores that have lived, and all that a store holds."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from aegis_store import UNLIMITED, EventStore, NewEvent, RetentionPolicy, schema

# Notes for prunes and against damage, which each store makes for itself, and numbers of rows.
_OWN = {"id", "oldest_at", "unsorted_seq", "oversize", "record_copy", "counter_sum", "maintained_at", "maintainer"}
POLICY = RetentionPolicy(
    max_events=20, terminal_grace=timedelta(days=3), max_bytes=10**6, max_total_bytes=10**8, max_event_bytes=2000
)


def live(path: Path | str) -> None:
    """Fill the store at `path` with all that can happen to sessions, as short as can be."""
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
        for name in ("a", "b", "held", "gone", "again", "ended", "forgotten", "emptied"):
            store.create_session(name, tenant=f"of {name}", owner="ö", metadata={"größe": [1.0, "\ud83d", name]})
        for number in range(30):
            for name in ("a", "b", "gone", "again", "ended", "emptied"):
                store.append(name, "hook", {"n": number, "cut": "\ud83d \0"}, event_id=f"{name}-{number}", run_id="r")
        store.append("a", "late", -0.0, occurred_at=datetime(1970, 1, 1, tzinfo=UTC), payload_ref="s3://x")
        store.create_session("unlimited", max_events=UNLIMITED)
        store.append_many("unlimited", [NewEvent(type="t", payload="x" * n) for n in range(50)])
        store.append("unlimited", "large", "x" * 5000)
        store.update_session("held", hold=True, max_events=7)
        store.set_status("forgotten", "completed")
        store.set_retention_policy(RetentionPolicy(forget_sessions_after=timedelta(0)))
        store.prune()
        store.set_retention_policy(RetentionPolicy())
        store.set_status("emptied", "closed")
        store.prune()
        store.set_status("ended", "failed")
        for name in ("gone", "again"):
            store.delete_session(name)
        store.set_retention_policy(POLICY)
        store.create_session("again", tenant="of again", owner="ö")
        store.append("again", "t", 1)
        store.create_session("last")
        store.append("last", "t", 1)
        store.delete_session("last")


def all_of(target: Path | str) -> dict[str, Any]:
    """All that the store holds, for a comparison with another."""
    tables = schema.metadata.tables
    with EventStore.open(target, read_only=True) as store, store._db.read() as conn:
        found: dict[str, Any] = {}
        for name, key in (("session", "session_id"), ("tombstone", "session_id"), ("prune_run", "started_at"), ("store", "id")):
            columns = [column for column in tables[name].c if column.name not in _OWN]
            rows = conn.execute(select(tables[name].c[key], *columns)).all()
            found[name] = sorted(tuple(row) for row in rows)
        columns = [column for column in schema.event.c if column.name not in ("session", "checksum")]
        query = select(schema.session.c.session_id, *columns).join_from(schema.event, schema.session)
        found["event"] = [tuple(row) for row in conn.execute(query.order_by(schema.event.c.position))]
        found["sessions in order"] = [each.session_id for each in store.list_sessions().sessions]
        found["policy"] = store.retention_policy()
    return found


def last_position(target: Path | str) -> int:
    """The position that the next event of the store gets, less one."""
    with EventStore.open(target, prune_on_open=False, maintain_every=None) as store:
        store.ensure_session("one more")
        return store.append("one more", "t", 0).position - 1
