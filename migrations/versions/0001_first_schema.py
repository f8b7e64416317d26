"""The first schema: store, session, event, and the triggers that hold every writer to the promises.

Revision ID: 0001
Revises:
"""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPLICATION_ID = 0x41454753  # "AEGS"

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TERMINAL = "status IN ('closed', 'completed', 'failed')"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        return  # stores there begin with 0004
    create_store()
    create_session()
    create_event()
    for trigger in SQLITE_TRIGGERS:
        op.execute(sa.text(trigger.strip()))
    op.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    # The policy in force from the first event on: 1,000 events a session, 1 MiB an event, ended sessions keep nothing.
    op.execute("INSERT INTO store (id, max_events, max_event_bytes, terminal_grace_us) VALUES (1, 1000, 1048576, 0)")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        return  # stores there begin with 0004
    refuse_to_lose(["session"], {"max_events": 1000, "max_event_bytes": 1048576, "terminal_grace_us": 0}, "base")
    op.execute("DROP TRIGGER session_guards_delete")
    op.execute("DROP TRIGGER store_guards_delete")
    for table in ("event", "session", "store"):
        op.drop_table(table)


def refuse_to_lose(tables: Sequence[str], knobs: Mapping[str, object], target: str) -> None:
    """Raise if one of `tables` has a row, or the policy another value than these of `knobs`: `target` has no place for it."""
    if context.is_offline_mode():
        raise CommandError("refused: SQL cannot tell whether anything would be lost; run the downgrade on the store")
    connection = op.get_bind()
    if any(connection.execute(sa.text(f"SELECT EXISTS (SELECT 1 FROM {table})")).scalar() for table in tables):
        held = "s or ".join(tables)
        raise CommandError(f"refused: the store holds {held}s, and {target} has no place for all that they say")
    policy = connection.execute(sa.text(f"SELECT {', '.join(knobs)} FROM store")).one()._mapping
    given_up = [
        f"--{name.removesuffix('_us').replace('_', '-')} {'none' if default is None else default}"
        for name, default in knobs.items()
        if policy[name] != default
    ]
    if given_up:
        raise CommandError(
            f"refused: {target} has no place for all of the retention policy; "
            f"to give that up: aegis-store policy set {' '.join(given_up)}"
        )


def create_store() -> None:
    op.create_table(
        "store",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("max_events", INT64, nullable=False),
        sa.Column("max_event_bytes", INT64, nullable=False),
        sa.Column("terminal_grace_us", INT64, nullable=False),
        sa.Column("removed_position", INT64, server_default="0", nullable=False),
        sa.Column("removed_at", INT64),
        sa.Column("removed_reason", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_store"),
        sa.CheckConstraint("id = 1", name=op.f("ck_store_one_row")),
        sa.CheckConstraint("max_events >= 1", name=op.f("ck_store_max_events")),
        sa.CheckConstraint("max_event_bytes >= 1", name=op.f("ck_store_max_event_bytes")),
        sa.CheckConstraint("terminal_grace_us >= 0", name=op.f("ck_store_terminal_grace_us")),
        sqlite_strict=True,
    )


def create_session() -> None:
    op.create_table(
        "session",
        sa.Column("id", INT64, nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
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
        sqlite_strict=True,
        sqlite_autoincrement=True,
    )
    op.create_index("session_by_update", "session", ["updated_at", "id"])
    op.create_index("session_by_status", "session", ["status", "updated_at", "id"])
    prunable = sa.text("ended_at IS NOT NULL AND hold = 0 AND first_seq <= last_seq")
    op.create_index("session_prunable", "session", ["ended_at"], sqlite_where=prunable, postgresql_where=prunable)


def create_event() -> None:
    op.create_table(
        "event",
        sa.Column("position", INT64, nullable=False),
        sa.Column("session", INT64, nullable=False),
        sa.Column("seq", INT64, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("occurred_at", INT64, nullable=False),
        sa.Column("recorded_at", INT64, nullable=False),
        sa.Column("event_id", sa.Text()),
        sa.Column("run_id", sa.Text()),
        sa.Column("payload_ref", sa.Text()),
        sa.Column("bytes_before", INT64, nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_event"),
        sa.UniqueConstraint("session", "seq", name="uq_event_session_seq"),
        sa.CheckConstraint("position >= 1", name=op.f("ck_event_position")),
        sa.ForeignKeyConstraint(["session"], ["session.id"], name="fk_event_session"),
        sqlite_strict=True,
        sqlite_autoincrement=True,
    )
    has_event_id = sa.text("event_id IS NOT NULL")
    op.create_index(
        "event_by_event_id",
        "event",
        ["session", "event_id"],
        unique=True,
        sqlite_where=has_event_id,
        postgresql_where=has_event_id,
    )


SQLITE_TRIGGERS = (
    """
CREATE TRIGGER event_guards_insert BEFORE INSERT ON event BEGIN
  SELECT CASE
    WHEN s.id IS NULL THEN RAISE(ABORT, 'aegis: an event needs a session')
    WHEN NEW.position <> -1 THEN RAISE(ABORT, 'aegis: position is given by the store, leave it out')
    WHEN NEW.seq IS NOT s.last_seq + 1 THEN RAISE(ABORT, 'aegis: seq must be last_seq + 1 of the session')
    WHEN NEW.bytes_before IS NOT s.total_bytes THEN RAISE(ABORT, 'aegis: bytes_before must be total_bytes of the session')
    WHEN length(CAST(NEW.payload AS BLOB)) > (SELECT max_event_bytes FROM store)
      THEN RAISE(ABORT, 'aegis: payload is over max_event_bytes')
    WHEN NEW.event_id IS NOT NULL AND EXISTS (SELECT 1 FROM event WHERE session = NEW.session AND event_id = NEW.event_id)
      THEN RAISE(ABORT, 'aegis: event_id stands in the session already')
  END FROM (SELECT NEW.session AS id) AS n LEFT JOIN session AS s ON s.id = n.id;
END""",
    """
CREATE TRIGGER event_counts AFTER INSERT ON event BEGIN
  UPDATE session SET
    last_seq = NEW.seq,
    total_bytes = NEW.bytes_before + length(CAST(NEW.payload AS BLOB)),
    last_event_at = NEW.recorded_at
  WHERE id = NEW.session;
  UPDATE session SET
    first_seq = NEW.seq + 1 - coalesce(max_events, (SELECT max_events FROM store)),
    removed_at = NEW.recorded_at,
    removed_reason = 'max_events'
  WHERE id = NEW.session AND first_seq <= NEW.seq - coalesce(max_events, (SELECT max_events FROM store));
END""",
    """
CREATE TRIGGER event_guards_update BEFORE UPDATE ON event BEGIN
  SELECT RAISE(ABORT, 'aegis: events do not change');
END""",
    """
CREATE TRIGGER event_guards_delete BEFORE DELETE ON event
WHEN OLD.seq >= (SELECT first_seq FROM session WHERE id = OLD.session) BEGIN
  SELECT RAISE(ABORT, 'aegis: events go from the oldest: raise first_seq of the session instead');
END""",
    """
CREATE TRIGGER session_truncates AFTER UPDATE OF first_seq ON session WHEN NEW.first_seq > OLD.first_seq BEGIN
  UPDATE store SET
    removed_position = gone.position,
    removed_at = NEW.removed_at,
    removed_reason = NEW.removed_reason
  FROM (SELECT position FROM event WHERE session = NEW.id AND seq < NEW.first_seq ORDER BY seq DESC LIMIT 1) AS gone
  WHERE gone.position > store.removed_position;
  DELETE FROM event WHERE session = NEW.id AND seq < NEW.first_seq;
END""",
    """
CREATE TRIGGER session_guards_counters BEFORE UPDATE OF id, session_id, first_seq, last_seq, total_bytes ON session
WHEN NEW.id <> OLD.id OR NEW.session_id <> OLD.session_id OR NEW.first_seq < OLD.first_seq OR NEW.last_seq < OLD.last_seq
  OR NEW.total_bytes < OLD.total_bytes
  OR (
    NEW.last_seq > OLD.last_seq AND NOT (OLD.last_seq = 0 AND NEW.first_seq > NEW.last_seq)
    AND NOT EXISTS (SELECT 1 FROM event WHERE session = NEW.id AND seq = NEW.last_seq)
  ) BEGIN
  SELECT RAISE(ABORT, 'aegis: the id of a session stays, its counters only go up, last_seq with its events');
END""",
    """
CREATE TRIGGER session_guards_insert BEFORE INSERT ON session
WHEN NEW.first_seq <> NEW.last_seq + 1
  OR EXISTS (SELECT 1 FROM session WHERE id = NEW.id OR session_id = NEW.session_id) BEGIN
  SELECT RAISE(ABORT, 'aegis: a session begins without events, under an id that is free');
END""",
    """
CREATE TRIGGER session_guards_cap BEFORE UPDATE OF max_events ON session
WHEN NEW.last_seq - NEW.first_seq >= coalesce(NEW.max_events, (SELECT max_events FROM store)) BEGIN
  SELECT RAISE(ABORT, 'aegis: the session holds more events than that: prune it first');
END""",
    """
CREATE TRIGGER session_guards_delete BEFORE DELETE ON session BEGIN
  SELECT RAISE(ABORT, 'aegis: a session stays, so that its seq is not used again');
END""",
    """
CREATE TRIGGER store_guards_insert BEFORE INSERT ON store WHEN EXISTS (SELECT 1 FROM store) BEGIN
  SELECT RAISE(ABORT, 'aegis: the policy is changed, not replaced');
END""",
    """
CREATE TRIGGER store_guards_cap BEFORE UPDATE OF max_events ON store
WHEN NEW.max_events < OLD.max_events AND EXISTS (
  SELECT 1 FROM session WHERE max_events IS NULL AND last_seq - first_seq >= NEW.max_events
) BEGIN
  SELECT RAISE(ABORT, 'aegis: sessions hold more events than that: prune them first');
END""",
    """
CREATE TRIGGER store_guards_removed BEFORE UPDATE OF removed_position ON store
WHEN NEW.removed_position < OLD.removed_position BEGIN
  SELECT RAISE(ABORT, 'aegis: removed_position only goes up');
END""",
    """
CREATE TRIGGER store_guards_delete BEFORE DELETE ON store BEGIN
  SELECT RAISE(ABORT, 'aegis: the policy is changed, not deleted');
END""",
)
