"""Every limit of a retention policy, tombstones of deleted sessions, a record of prune runs.

`store` and `session` are built anew, since SQLite cannot take NOT NULL from a column: as many rows as there are sessions.
The events stay where they are, and are not looked at.

Revision ID: 0002
Revises: 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KNOBS = {"max_bytes": None, "max_age_us": None, "max_total_bytes": None, "forget_sessions_after_us": None, "mode": "enforce"}
YEAR_1_US = -62_135_596_800_000_000
TERMINAL = "status IN ('closed', 'completed', 'failed')"

STORE_COLUMNS = "id, max_events, max_event_bytes, terminal_grace_us, removed_position, removed_at, removed_reason"
SESSION_COLUMNS = (
    "id, session_id, tenant, owner, status, max_events, hold, first_seq, last_seq, total_bytes, "
    "created_at, updated_at, ended_at, last_event_at, removed_at, removed_reason, metadata"
)


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        return  # stores there begin with 0004
    before = triggers_before()
    for name in before:
        op.execute(f"DROP TRIGGER IF EXISTS {name}")  # they speak of the tables that are built anew
    create_store()
    replace("store", STORE_COLUMNS)
    create_session()
    replace("session", SESSION_COLUMNS)
    # Of the events that stand nothing is known yet: their times may lie anywhere, in any order.
    op.execute(f"UPDATE session SET oldest_at = {YEAR_1_US}, unsorted_seq = last_seq WHERE first_seq <= last_seq")
    create_session_indexes()
    create_tombstone()
    create_prune_run()
    for trigger in (before | SQLITE_TRIGGERS).values():
        op.execute(sa.text(trigger.strip()))


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        return  # stores there begin with 0004
    revision_before().refuse_to_lose(["session", "tombstone"], KNOBS, down_revision)
    policy = op.get_bind().execute(sa.text("SELECT max_events, max_event_bytes, terminal_grace_us FROM store")).one()
    for name in triggers_before() | SQLITE_TRIGGERS:
        op.execute(f"DROP TRIGGER IF EXISTS {name}")
    for table in ("event", "session", "store", "tombstone", "prune_run"):
        op.drop_table(table)
    revision_before().upgrade()
    kept = sa.text("UPDATE store SET max_events = :max_events, max_event_bytes = :max_event_bytes, terminal_grace_us = :grace")
    op.get_bind().execute(kept, {"max_events": policy[0], "max_event_bytes": policy[1], "grace": policy[2]})


def revision_before() -> Any:
    return context.script.get_revision(down_revision).module


def triggers_before() -> dict[str, str]:
    return {text.split()[2]: text for text in revision_before().SQLITE_TRIGGERS}


def replace(table: str, columns: str) -> None:
    """Move the rows to the new table, and give it the name of the old one."""
    op.execute(f"INSERT INTO new_{table} ({columns}) SELECT {columns} FROM {table}")
    op.drop_table(table)
    op.rename_table(f"new_{table}", table)


def create_store() -> None:
    op.create_table(
        "new_store",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("max_events", INT64, nullable=False),
        sa.Column("max_event_bytes", INT64, nullable=False),
        sa.Column("terminal_grace_us", INT64, nullable=False),
        sa.Column("max_bytes", INT64),
        sa.Column("max_age_us", INT64),
        sa.Column("max_total_bytes", INT64),
        sa.Column("forget_sessions_after_us", INT64),
        sa.Column("mode", sa.Text(), server_default="enforce", nullable=False),
        sa.Column("retained_bytes", INT64),
        sa.Column("maintained_at", INT64),
        sa.Column("maintainer", sa.Text()),
        sa.Column("removed_position", INT64, server_default="0", nullable=False),
        sa.Column("removed_at", INT64),
        sa.Column("removed_reason", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_store"),
        sa.CheckConstraint("id = 1", name=op.f("ck_store_one_row")),
        sa.CheckConstraint("max_events >= 1", name=op.f("ck_store_max_events")),
        sa.CheckConstraint("max_event_bytes >= 1", name=op.f("ck_store_max_event_bytes")),
        sa.CheckConstraint("terminal_grace_us >= 0", name=op.f("ck_store_terminal_grace_us")),
        sa.CheckConstraint("max_bytes >= 1", name=op.f("ck_store_max_bytes")),
        sa.CheckConstraint("max_age_us >= 1", name=op.f("ck_store_max_age_us")),
        sa.CheckConstraint("max_total_bytes >= 1", name=op.f("ck_store_max_total_bytes")),
        sa.CheckConstraint("forget_sessions_after_us >= 0", name=op.f("ck_store_forget_sessions_after_us")),
        sa.CheckConstraint("mode IN ('enforce', 'warn')", name=op.f("ck_store_mode")),
        sa.CheckConstraint("(max_total_bytes IS NULL) = (retained_bytes IS NULL)", name=op.f("ck_store_retained_bytes")),
        sqlite_strict=True,
    )


def create_session() -> None:
    op.create_table(
        "new_session",
        sa.Column("id", INT64, nullable=False),
        sa.Column("session_id", sa.Text()),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("max_events", INT64),
        sa.Column("hold", sa.Integer(), server_default="0", nullable=False),
        sa.Column("first_seq", INT64, server_default="1", nullable=False),
        sa.Column("last_seq", INT64, server_default="0", nullable=False),
        sa.Column("total_bytes", INT64, server_default="0", nullable=False),
        sa.Column("created_at", INT64, nullable=False),
        sa.Column("updated_at", INT64, nullable=False),
        sa.Column("ended_at", INT64),
        sa.Column("last_event_at", INT64),
        sa.Column("removed_at", INT64),
        sa.Column("removed_reason", sa.Text()),
        sa.Column("oldest_at", INT64),
        sa.Column("unsorted_seq", INT64, server_default="0", nullable=False),
        sa.Column("oversize", sa.Integer(), server_default="0", nullable=False),
        sa.Column("metadata", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_session"),
        sa.UniqueConstraint("session_id", name="uq_session_session_id"),
        sa.CheckConstraint(
            "status IN ('initializing', 'idle', 'running', 'paused', 'intervening', 'closing', "
            "'closed', 'completed', 'failed')",
            name=op.f("ck_session_status"),
        ),
        sa.CheckConstraint(f"({TERMINAL}) = (ended_at IS NOT NULL)", name=op.f("ck_session_ended_at")),
        sa.CheckConstraint("max_events >= 1", name=op.f("ck_session_max_events")),
        sa.CheckConstraint("hold IN (0, 1)", name=op.f("ck_session_hold")),
        sa.CheckConstraint(
            "first_seq >= 1 AND first_seq <= last_seq + 1 AND last_seq <= 1000000000000", name=op.f("ck_session_range")
        ),
        sa.CheckConstraint("total_bytes >= 0", name=op.f("ck_session_total_bytes")),
        sa.CheckConstraint("oversize IN (0, 1)", name=op.f("ck_session_oversize")),
        sqlite_strict=True,
        sqlite_autoincrement=True,
    )


def create_session_indexes() -> None:
    for name, columns, condition in (
        ("session_by_update", "updated_at id", "session_id IS NOT NULL"),
        ("session_by_status", "status updated_at id", "session_id IS NOT NULL"),
        ("session_prunable", "ended_at", "ended_at IS NOT NULL AND hold = 0 AND first_seq <= last_seq"),
        ("session_forgettable", "ended_at", "ended_at IS NOT NULL AND hold = 0 AND first_seq > last_seq"),
        ("session_ageing", "oldest_at", "oldest_at IS NOT NULL AND hold = 0"),
        ("session_oversize", "id", "oversize = 1 AND hold = 0"),
    ):
        op.create_index(name, "session", columns.split(), sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))


def create_tombstone() -> None:
    op.create_table(
        "tombstone",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("last_seq", INT64, nullable=False),
        sa.Column("total_bytes", INT64, nullable=False),
        sa.Column("removed_at", INT64),
        sa.Column("removed_reason", sa.Text()),
        sa.PrimaryKeyConstraint("session_id", name="pk_tombstone"),
        sqlite_strict=True,
    )


def create_prune_run() -> None:
    op.create_table(
        "prune_run",
        sa.Column("id", INT64, nullable=False),
        sa.Column("started_at", INT64, nullable=False),
        sa.Column("now", INT64, nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("events", INT64, server_default="0", nullable=False),
        sa.Column("bytes", INT64, server_default="0", nullable=False),
        sa.Column("sessions", INT64, server_default="0", nullable=False),
        sa.Column("sessions_forgotten", INT64, server_default="0", nullable=False),
        sa.Column("reasons", sa.Text(), server_default="{}", nullable=False),
        sa.Column("duration_us", INT64, server_default="0", nullable=False),
        sa.Column("outcome", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_prune_run"),
        sa.CheckConstraint("trigger IN ('startup', 'maintenance', 'api', 'cli')", name=op.f("ck_prune_run_trigger")),
        sqlite_strict=True,
        sqlite_autoincrement=True,
    )


SQLITE_TRIGGERS = {
    "event_guards_insert": """
CREATE TRIGGER event_guards_insert BEFORE INSERT ON event BEGIN
  SELECT CASE
    WHEN s.session_id IS NULL THEN RAISE(ABORT, 'aegis: an event needs a session')
    WHEN NEW.position <> -1 THEN RAISE(ABORT, 'aegis: position is given by the store, leave it out')
    WHEN NEW.seq IS NOT s.last_seq + 1 THEN RAISE(ABORT, 'aegis: seq must be last_seq + 1 of the session')
    WHEN NEW.bytes_before IS NOT s.total_bytes THEN RAISE(ABORT, 'aegis: bytes_before must be total_bytes of the session')
    WHEN length(CAST(NEW.payload AS BLOB)) > (SELECT max_event_bytes FROM store)
      THEN RAISE(ABORT, 'aegis: payload is over max_event_bytes')
    WHEN NEW.event_id IS NOT NULL AND EXISTS (SELECT 1 FROM event WHERE session = NEW.session AND event_id = NEW.event_id)
      THEN RAISE(ABORT, 'aegis: event_id stands in the session already')
  END FROM (SELECT NEW.session AS id) AS n LEFT JOIN session AS s ON s.id = n.id;
END""",
    "event_counts": """
CREATE TRIGGER event_counts AFTER INSERT ON event BEGIN
  UPDATE session SET
    last_seq = NEW.seq,
    total_bytes = NEW.bytes_before + length(CAST(NEW.payload AS BLOB)),
    last_event_at = NEW.recorded_at,
    unsorted_seq = CASE WHEN NEW.recorded_at < last_event_at THEN NEW.seq ELSE unsorted_seq END
  WHERE id = NEW.session;
  UPDATE session SET oldest_at = NEW.recorded_at
  WHERE id = NEW.session AND (oldest_at IS NULL OR oldest_at > NEW.recorded_at);
  UPDATE session SET oversize = 1
  WHERE id = NEW.session AND oversize = 0 AND (SELECT max_bytes FROM store) IS NOT NULL
    AND total_bytes - (SELECT bytes_before FROM event WHERE session = NEW.session AND seq = first_seq)
      > (SELECT max_bytes FROM store);
  UPDATE store SET retained_bytes = retained_bytes + length(CAST(NEW.payload AS BLOB)) WHERE retained_bytes IS NOT NULL;
  UPDATE session SET
    first_seq = NEW.seq + 1 - coalesce(max_events, (SELECT max_events FROM store)),
    removed_at = NEW.recorded_at,
    removed_reason = 'max_events'
  WHERE id = NEW.session AND first_seq <= NEW.seq - coalesce(max_events, (SELECT max_events FROM store));
END""",
    "session_truncates": """
CREATE TRIGGER session_truncates AFTER UPDATE OF first_seq ON session WHEN NEW.first_seq > OLD.first_seq BEGIN
  UPDATE store SET
    removed_position = gone.position,
    removed_at = NEW.removed_at,
    removed_reason = NEW.removed_reason
  FROM (SELECT position FROM event WHERE session = NEW.id AND seq < NEW.first_seq ORDER BY seq DESC LIMIT 1) AS gone
  WHERE gone.position > store.removed_position;
  UPDATE store SET retained_bytes = retained_bytes
    - coalesce((SELECT bytes_before FROM event WHERE session = NEW.id AND seq = NEW.first_seq), NEW.total_bytes)
    + coalesce((SELECT bytes_before FROM event WHERE session = NEW.id AND seq = OLD.first_seq), NEW.total_bytes)
  WHERE retained_bytes IS NOT NULL;
  DELETE FROM event WHERE session = NEW.id AND seq < NEW.first_seq;
  UPDATE session SET oldest_at = NULL, oversize = 0 WHERE id = NEW.id AND first_seq > last_seq;
END""",
    "session_is_buried": """
CREATE TRIGGER session_is_buried AFTER UPDATE OF session_id ON session
WHEN NEW.session_id IS NULL AND OLD.session_id IS NOT NULL BEGIN
  INSERT INTO tombstone (session_id, tenant, owner, last_seq, total_bytes, removed_at, removed_reason)
  VALUES (OLD.session_id, NEW.tenant, NEW.owner, NEW.last_seq, NEW.total_bytes, NEW.removed_at, NEW.removed_reason);
  UPDATE store SET
    removed_position = gone.position,
    removed_at = NEW.removed_at,
    removed_reason = NEW.removed_reason
  FROM (SELECT position FROM event WHERE session = NEW.id ORDER BY seq DESC LIMIT 1) AS gone
  WHERE gone.position > store.removed_position;
END""",
    "session_revives": """
CREATE TRIGGER session_revives AFTER INSERT ON session BEGIN
  DELETE FROM tombstone WHERE session_id = NEW.session_id;
END""",
    "session_guards_counters": """
CREATE TRIGGER session_guards_counters BEFORE UPDATE OF id, session_id, first_seq, last_seq, total_bytes ON session
WHEN NEW.id <> OLD.id OR (NEW.session_id IS NOT NULL AND NEW.session_id IS NOT OLD.session_id)
  OR (NEW.session_id IS NULL AND OLD.hold = 1)
  OR NEW.first_seq < OLD.first_seq OR NEW.last_seq < OLD.last_seq OR NEW.total_bytes < OLD.total_bytes
  OR (
    NEW.last_seq > OLD.last_seq AND NOT (OLD.last_seq = 0 AND NEW.first_seq > NEW.last_seq)
    AND NOT EXISTS (SELECT 1 FROM event WHERE session = NEW.id AND seq = NEW.last_seq)
  ) BEGIN
  SELECT RAISE(ABORT, 'aegis: the id of a session stays, its counters only go up, last_seq with its events');
END""",
    "session_guards_insert": """
CREATE TRIGGER session_guards_insert BEFORE INSERT ON session
WHEN NEW.session_id IS NULL OR NEW.first_seq <> NEW.last_seq + 1
  OR EXISTS (SELECT 1 FROM session WHERE id = NEW.id OR session_id = NEW.session_id)
  OR EXISTS (
    SELECT 1 FROM tombstone AS t WHERE t.session_id = NEW.session_id
    AND NOT (t.tenant = NEW.tenant AND t.owner = NEW.owner AND t.last_seq = NEW.last_seq AND t.total_bytes = NEW.total_bytes)
  ) BEGIN
  SELECT RAISE(ABORT, 'aegis: a session begins without events, under an id that is free, or goes on from its tombstone');
END""",
    "session_guards_delete": """
CREATE TRIGGER session_guards_delete BEFORE DELETE ON session
WHEN OLD.session_id IS NOT NULL OR OLD.first_seq <= OLD.last_seq BEGIN
  SELECT RAISE(ABORT, 'aegis: to delete a session, set its session_id to NULL, then raise its first_seq to last_seq + 1');
END""",
    "tombstone_guards_insert": """
CREATE TRIGGER tombstone_guards_insert BEFORE INSERT ON tombstone
WHEN EXISTS (SELECT 1 FROM tombstone WHERE session_id = NEW.session_id)
  OR EXISTS (SELECT 1 FROM session WHERE session_id = NEW.session_id) BEGIN
  SELECT RAISE(ABORT, 'aegis: a tombstone is not replaced, and a session that stands has none');
END""",
    "tombstone_guards_update": """
CREATE TRIGGER tombstone_guards_update BEFORE UPDATE ON tombstone BEGIN
  SELECT RAISE(ABORT, 'aegis: a tombstone does not change');
END""",
    "tombstone_guards_delete": """
CREATE TRIGGER tombstone_guards_delete BEFORE DELETE ON tombstone
WHEN NOT EXISTS (SELECT 1 FROM session WHERE session_id = OLD.session_id) BEGIN
  SELECT RAISE(ABORT, 'aegis: a tombstone stays, so that its seq is not used again');
END""",
    "store_guards_cap": """
CREATE TRIGGER store_guards_cap BEFORE UPDATE OF max_events ON store
WHEN NEW.max_events < OLD.max_events AND EXISTS (
  SELECT 1 FROM session WHERE session_id IS NOT NULL AND max_events IS NULL AND last_seq - first_seq >= NEW.max_events
) BEGIN
  SELECT RAISE(ABORT, 'aegis: sessions hold more events than that: prune them first');
END""",
}
