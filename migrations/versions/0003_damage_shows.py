"""Damage that SQLite does not notice shows: a checksum of each event, and of each record what it holds a second time.

The tables are not built anew, and no event is looked at: those that stand have no checksum. Records get their copy here.

Revision ID: 0003
Revises: 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        return  # stores there begin with 0004
    op.create_table(
        "identity",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", INT64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_identity"),
        sa.CheckConstraint("id = 1", name=op.f("ck_identity_one_row")),
        sqlite_strict=True,
    )
    op.execute("INSERT INTO identity (id, number) VALUES (1, abs(random() % 4294967296))")
    for table in COPIED:
        op.add_column(table, sa.Column("record_copy", sa.Text(), server_default="", nullable=False))
    for table in COUNTED:
        op.add_column(table, sa.Column("counter_sum", INT64, server_default="0", nullable=False))
    op.add_column("event", sa.Column("checksum", INT64))
    op.execute("DROP TRIGGER tombstone_guards_update")  # it would refuse that a tombstone gets its copy
    for table in COPIED:
        counters = f", counter_sum = {sum_of(table, '')}" if table in COUNTED else ""
        op.execute(sa.text(f"UPDATE {table} SET record_copy = {copy_of(table, '')}{counters}"))
    for name, trigger in triggers().items():
        op.execute(f"DROP TRIGGER IF EXISTS {name}")
        op.execute(sa.text(trigger.strip()))


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        return  # stores there begin with 0004
    for name in triggers():
        op.execute(f"DROP TRIGGER {name}")
    op.drop_column("event", "checksum")
    for table in COUNTED:
        op.drop_column(table, "counter_sum")
    for table in COPIED:
        op.drop_column(table, "record_copy")
    op.drop_table("identity")
    before = triggers_before()
    for name in triggers().keys() & before.keys():
        op.execute(sa.text(before[name].strip()))


def triggers_before() -> dict[str, str]:
    revision_before: Any = context.script.get_revision(down_revision).module
    found: dict[str, str] = revision_before.triggers_before() | revision_before.SQLITE_TRIGGERS
    return found


def triggers() -> dict[str, str]:
    """Those that are new or changed."""
    found = dict(SQLITE_TRIGGERS)
    for table in COPIED:
        found |= record_triggers(table)
    return found


# What a record says a second time. `{0}` is the row: nothing, or NEW. or OLD. in a trigger.
STORE_NUMBER_SQL = "(SELECT number FROM identity WHERE id = 1)"

COPIED = {
    "session": "session_id tenant owner status max_events hold created_at updated_at ended_at removed_reason metadata",
    "store": "max_events max_event_bytes terminal_grace_us max_bytes max_age_us max_total_bytes forget_sessions_after_us mode"
    " removed_reason",
    "tombstone": "session_id tenant owner last_seq total_bytes removed_at removed_reason",
    "prune_run": "id started_at now trigger events bytes sessions sessions_forgotten reasons duration_us outcome",
}
COUNTED = {
    "session": {"first_seq": 3, "last_seq": 5, "total_bytes": 7, "last_event_at": 11, "removed_at": 13},
    "store": {"removed_position": 3, "removed_at": 5, "retained_bytes": 7},
}


def copy_of(table: str, row: str) -> str:
    return " || ',' || ".join([STORE_NUMBER_SQL, *(f"quote({row}{name})" for name in COPIED[table].split())])


def sum_of(table: str, row: str) -> str:
    return " + ".join(f"{factor} * coalesce({row}{name}, 0)" for name, factor in COUNTED[table].items())


def record_triggers(table: str) -> dict[str, str]:
    """The triggers that have a record say what it holds a second time."""
    key = "session_id" if table == "tombstone" else "id"
    here = f"WHERE {key} = NEW.{key}"
    copied = COPIED[table].split()
    triggers = {}
    if table != "store":  # whose one row is made with the schema
        counters = f", counter_sum = {sum_of(table, 'NEW.')}" if table in COUNTED else ""
        triggers[f"{table}_is_copied"] = f"""
CREATE TRIGGER {table}_is_copied AFTER INSERT ON {table} BEGIN
  UPDATE {table} SET record_copy = {copy_of(table, "NEW.")}{counters}
  {here};
END"""
    if table != "tombstone":  # which does not change
        changed = " OR ".join(f"NEW.{name} IS NOT OLD.{name}" for name in copied)
        triggers[f"{table}_copy_follows"] = f"""
CREATE TRIGGER {table}_copy_follows AFTER UPDATE OF {", ".join(copied)} ON {table}
WHEN {changed} BEGIN
  UPDATE {table} SET record_copy = {copy_of(table, "NEW.")}
  {here} AND OLD.record_copy = {copy_of(table, "OLD.")};
END"""
    if table in COUNTED:  # unless the statement saw to it itself, as those of an append do
        moved = "first_seq, removed_at" if table == "session" else ", ".join(COUNTED[table])
        triggers[f"{table}_sum_follows"] = f"""
CREATE TRIGGER {table}_sum_follows AFTER UPDATE OF {moved} ON {table}
WHEN NEW.counter_sum = OLD.counter_sum BEGIN
  UPDATE {table} SET counter_sum = counter_sum + ({sum_of(table, "NEW.")}) - ({sum_of(table, "OLD.")})
  {here};
END"""
    return triggers


SQLITE_TRIGGERS = {
    "identity_guards_insert": """
CREATE TRIGGER identity_guards_insert BEFORE INSERT ON identity WHEN EXISTS (SELECT 1 FROM identity) BEGIN
  SELECT RAISE(ABORT, 'aegis: a store keeps its number');
END""",
    "identity_guards_update": """
CREATE TRIGGER identity_guards_update BEFORE UPDATE ON identity BEGIN
  SELECT RAISE(ABORT, 'aegis: a store keeps its number');
END""",
    "identity_guards_delete": """
CREATE TRIGGER identity_guards_delete BEFORE DELETE ON identity BEGIN
  SELECT RAISE(ABORT, 'aegis: a store keeps its number');
END""",
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
    WHEN NEW.type IS NULL OR NEW.payload IS NULL OR NEW.occurred_at IS NULL OR NEW.recorded_at IS NULL
      THEN RAISE(ABORT, 'aegis: an event needs type, payload, occurred_at and recorded_at')
  END FROM (SELECT NEW.session AS id) AS n LEFT JOIN session AS s ON s.id = n.id;
END""",
    "event_counts": """
CREATE TRIGGER event_counts AFTER INSERT ON event BEGIN
  UPDATE session SET
    last_seq = NEW.seq,
    total_bytes = NEW.bytes_before + length(CAST(NEW.payload AS BLOB)),
    last_event_at = NEW.recorded_at,
    counter_sum = counter_sum + 5 + 7 * length(CAST(NEW.payload AS BLOB)) + 11 * (NEW.recorded_at - coalesce(last_event_at, 0)),
    unsorted_seq = CASE WHEN NEW.recorded_at < last_event_at THEN NEW.seq ELSE unsorted_seq END
  WHERE id = NEW.session;
  UPDATE session SET oldest_at = NEW.recorded_at
  WHERE id = NEW.session AND (oldest_at IS NULL OR oldest_at > NEW.recorded_at);
  UPDATE session SET oversize = 1
  WHERE id = NEW.session AND oversize = 0 AND (SELECT max_bytes FROM store) IS NOT NULL
    AND total_bytes - (SELECT bytes_before FROM event WHERE session = NEW.session AND seq = first_seq)
      > (SELECT max_bytes FROM store);
  UPDATE store SET retained_bytes = retained_bytes + length(CAST(NEW.payload AS BLOB))
  WHERE id = 1 AND retained_bytes IS NOT NULL;
  UPDATE session SET
    first_seq = NEW.seq + 1 - coalesce(max_events, (SELECT max_events FROM store)),
    removed_at = NEW.recorded_at,
    removed_reason = 'max_events',
    counter_sum = counter_sum + 13 * (NEW.recorded_at - coalesce(removed_at, 0))
      + 3 * (NEW.seq + 1 - coalesce(max_events, (SELECT max_events FROM store)) - first_seq)
  WHERE id = NEW.session AND first_seq <= NEW.seq - coalesce(max_events, (SELECT max_events FROM store));
END""",
    "session_truncates": """
CREATE TRIGGER session_truncates AFTER UPDATE OF first_seq ON session WHEN NEW.first_seq > OLD.first_seq BEGIN
  UPDATE store SET
    counter_sum = counter_sum + 5 * (coalesce(NEW.removed_at, 0) - coalesce(removed_at, 0)) + 3 * (
      (SELECT position FROM event WHERE session = NEW.id AND seq < NEW.first_seq ORDER BY seq DESC LIMIT 1)
      - removed_position
    ),
    removed_position = (SELECT position FROM event WHERE session = NEW.id AND seq < NEW.first_seq ORDER BY seq DESC LIMIT 1),
    removed_at = NEW.removed_at,
    removed_reason = NEW.removed_reason
  WHERE id = 1 AND removed_position
    < (SELECT position FROM event WHERE session = NEW.id AND seq < NEW.first_seq ORDER BY seq DESC LIMIT 1);
  UPDATE store SET retained_bytes = retained_bytes
    - coalesce((SELECT bytes_before FROM event WHERE session = NEW.id AND seq = NEW.first_seq), NEW.total_bytes)
    + coalesce((SELECT bytes_before FROM event WHERE session = NEW.id AND seq = OLD.first_seq), NEW.total_bytes)
  WHERE id = 1 AND retained_bytes IS NOT NULL;
  DELETE FROM event WHERE session = NEW.id AND seq < NEW.first_seq;
  UPDATE session SET oldest_at = NULL, oversize = 0 WHERE id = NEW.id AND first_seq > last_seq;
END""",
    "session_guards_counters": """
CREATE TRIGGER session_guards_counters BEFORE UPDATE OF id, session_id, first_seq, last_seq, total_bytes ON session
WHEN NEW.id <> OLD.id OR (NEW.session_id IS NOT NULL AND NEW.session_id IS NOT OLD.session_id)
  OR (NEW.session_id IS NULL AND OLD.session_id IS NOT NULL AND OLD.hold = 1)
  OR NEW.first_seq < OLD.first_seq OR NEW.last_seq < OLD.last_seq OR NEW.total_bytes < OLD.total_bytes
  OR (
    NEW.last_seq > OLD.last_seq AND NOT (OLD.last_seq = 0 AND NEW.first_seq > NEW.last_seq)
    AND NOT EXISTS (SELECT 1 FROM event WHERE session = NEW.id AND seq = NEW.last_seq)
  ) BEGIN
  SELECT RAISE(ABORT, 'aegis: the id of a session stays, its counters only go up, last_seq with its events');
END""",
    "tombstone_guards_update": """
CREATE TRIGGER tombstone_guards_update BEFORE UPDATE ON tombstone WHEN OLD.record_copy <> '' BEGIN
  SELECT RAISE(ABORT, 'aegis: a tombstone does not change');
END""",
}
