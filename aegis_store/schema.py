"""The tables, indexes and triggers of a store. Nothing runs here.

`migrations/` is what makes them in a store; a test proves that both arrive at the same schema. The triggers are the part
that holds every writer to the promises, also one with a plain SQL shell:

    insert an event   event_guards_insert    only as the session's next event, within max_event_bytes
                      event_counts           last_seq goes up; at the cap, first_seq too
    raise first_seq   session_truncates      the events below go: the only DELETE of events there is
    anything else     *_guards_*             refused: changing an event, deleting from the middle, replacing a record

What the store needs to know of removed events costs no bookkeeping: `first_seq - 1` counts them, and `bytes_before` (the
payload bytes of all earlier events of the session) of the first retained one says how large they were.
"""

from typing import Final

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy import (
    event as sa_event,
)

HEAD: Final = "0001"
"""The revision that this library works with."""

APPLICATION_ID: Final = 0x41454753
"""`PRAGMA application_id` of a store: "AEGS"."""

NO_CAP: Final = 2**63 - 1
"""UNLIMITED as `max_events` in the database: the largest number needs no special case in the triggers."""

_Int64 = BigInteger().with_variant(Integer, "sqlite")  # STRICT tables know INTEGER alone, always 64 bits there

_TERMINAL = "status IN ('closed', 'completed', 'failed')"

metadata = MetaData(
    naming_convention={
        "ix": "%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

store = Table(
    "store",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("max_events", _Int64, nullable=False),
    Column("max_event_bytes", _Int64, nullable=False),
    Column("terminal_grace_us", _Int64, nullable=False),
    # The highest position that was ever removed: a reader of the whole store below it has missed something.
    Column("removed_position", _Int64, nullable=False, server_default="0"),
    Column("removed_at", _Int64),
    Column("removed_reason", Text),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("max_events >= 1", name="max_events"),
    CheckConstraint("max_event_bytes >= 1", name="max_event_bytes"),
    CheckConstraint("terminal_grace_us >= 0", name="terminal_grace_us"),
    sqlite_strict=True,
)

session = Table(
    "session",
    metadata,
    Column("id", _Int64, primary_key=True),
    Column("session_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("max_events", _Int64),
    Column("hold", Integer, nullable=False, server_default="0"),
    Column("first_seq", _Int64, nullable=False, server_default="1"),
    Column("last_seq", _Int64, nullable=False, server_default="0"),
    Column("total_bytes", _Int64, nullable=False, server_default="0"),
    Column("created_at", _Int64, nullable=False),
    Column("updated_at", _Int64, nullable=False),
    Column("ended_at", _Int64),
    Column("last_event_at", _Int64),
    Column("removed_at", _Int64),
    Column("removed_reason", Text),
    Column("metadata", Text, nullable=False, server_default="{}"),
    UniqueConstraint("session_id"),
    CheckConstraint(
        "status IN ('initializing', 'idle', 'running', 'paused', 'intervening', 'closing', 'closed', 'completed', 'failed')",
        name="status",
    ),
    CheckConstraint(f"({_TERMINAL}) = (ended_at IS NOT NULL)", name="ended_at"),
    CheckConstraint("max_events >= 1", name="max_events"),
    CheckConstraint("hold IN (0, 1)", name="hold"),
    CheckConstraint("first_seq >= 1 AND first_seq <= last_seq + 1 AND last_seq <= 1000000000000", name="range"),
    CheckConstraint("total_bytes >= 0", name="total_bytes"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

Index("session_by_update", session.c.updated_at, session.c.id)
Index("session_by_status", session.c.status, session.c.updated_at, session.c.id)

# Just the sessions that the startup job has work with: it looks at these and at no others.
# (`ended_at` and not the status in its condition: by a CHECK they are the same, and the planner prefers this form.)
PRUNABLE: Final = text("ended_at IS NOT NULL AND hold = 0 AND first_seq <= last_seq")
Index("session_prunable", session.c.ended_at, sqlite_where=PRUNABLE, postgresql_where=PRUNABLE)

event = Table(
    "event",
    metadata,
    Column("position", _Int64, primary_key=True),
    Column("session", _Int64, ForeignKey("session.id"), nullable=False),
    Column("seq", _Int64, nullable=False),
    Column("type", Text, nullable=False),
    Column("occurred_at", _Int64, nullable=False),
    Column("recorded_at", _Int64, nullable=False),
    Column("event_id", Text),
    Column("run_id", Text),
    Column("payload_ref", Text),
    Column("bytes_before", _Int64, nullable=False),
    # TEXT on PostgreSQL too: JSONB refuses U+0000 and drops the sign of -0.0. The last column, since it overflows.
    Column("payload", Text, nullable=False),
    UniqueConstraint("session", "seq"),
    CheckConstraint("position >= 1", name="position"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

_HAS_EVENT_ID = text("event_id IS NOT NULL")
Index(
    "event_by_event_id",
    event.c.session,
    event.c.event_id,
    unique=True,
    sqlite_where=_HAS_EVENT_ID,
    postgresql_where=_HAS_EVENT_ID,
)

# In a BEFORE INSERT trigger SQLite gives -1 for a rowid that the statement leaves to it. What must be unique is looked up
# in the triggers, not left to the indexes: INSERT OR REPLACE would settle a conflict by deleting the older row, unseen.
_SQLITE_TRIGGERS: Final = {
    "event_guards_insert": """
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
    "event_counts": """
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
    "event_guards_update": """
CREATE TRIGGER event_guards_update BEFORE UPDATE ON event BEGIN
  SELECT RAISE(ABORT, 'aegis: events do not change');
END""",
    "event_guards_delete": """
CREATE TRIGGER event_guards_delete BEFORE DELETE ON event
WHEN OLD.seq >= (SELECT first_seq FROM session WHERE id = OLD.session) BEGIN
  SELECT RAISE(ABORT, 'aegis: events go from the oldest: raise first_seq of the session instead');
END""",
    "session_truncates": """
CREATE TRIGGER session_truncates AFTER UPDATE OF first_seq ON session WHEN NEW.first_seq > OLD.first_seq BEGIN
  UPDATE store SET
    removed_position = gone.position,
    removed_at = NEW.removed_at,
    removed_reason = NEW.removed_reason
  FROM (SELECT position FROM event WHERE session = NEW.id AND seq < NEW.first_seq ORDER BY seq DESC LIMIT 1) AS gone
  WHERE gone.position > store.removed_position;
  DELETE FROM event WHERE session = NEW.id AND seq < NEW.first_seq;
END""",
    "session_guards_counters": """
CREATE TRIGGER session_guards_counters BEFORE UPDATE OF id, session_id, first_seq, last_seq, total_bytes ON session
WHEN NEW.id <> OLD.id OR NEW.session_id <> OLD.session_id OR NEW.first_seq < OLD.first_seq OR NEW.last_seq < OLD.last_seq
  OR NEW.total_bytes < OLD.total_bytes
  OR (
    NEW.last_seq > OLD.last_seq AND NOT (OLD.last_seq = 0 AND NEW.first_seq > NEW.last_seq)
    AND NOT EXISTS (SELECT 1 FROM event WHERE session = NEW.id AND seq = NEW.last_seq)
  ) BEGIN
  SELECT RAISE(ABORT, 'aegis: the id of a session stays, its counters only go up, last_seq with its events');
END""",
    "session_guards_insert": """
CREATE TRIGGER session_guards_insert BEFORE INSERT ON session
WHEN NEW.first_seq <> NEW.last_seq + 1
  OR EXISTS (SELECT 1 FROM session WHERE id = NEW.id OR session_id = NEW.session_id) BEGIN
  SELECT RAISE(ABORT, 'aegis: a session begins without events, under an id that is free');
END""",
    "session_guards_cap": """
CREATE TRIGGER session_guards_cap BEFORE UPDATE OF max_events ON session
WHEN NEW.last_seq - NEW.first_seq >= coalesce(NEW.max_events, (SELECT max_events FROM store)) BEGIN
  SELECT RAISE(ABORT, 'aegis: the session holds more events than that: prune it first');
END""",
    "session_guards_delete": """
CREATE TRIGGER session_guards_delete BEFORE DELETE ON session BEGIN
  SELECT RAISE(ABORT, 'aegis: a session stays, so that its seq is not used again');
END""",
    "store_guards_insert": """
CREATE TRIGGER store_guards_insert BEFORE INSERT ON store WHEN EXISTS (SELECT 1 FROM store) BEGIN
  SELECT RAISE(ABORT, 'aegis: the policy is changed, not replaced');
END""",
    "store_guards_cap": """
CREATE TRIGGER store_guards_cap BEFORE UPDATE OF max_events ON store
WHEN NEW.max_events < OLD.max_events AND EXISTS (
  SELECT 1 FROM session WHERE max_events IS NULL AND last_seq - first_seq >= NEW.max_events
) BEGIN
  SELECT RAISE(ABORT, 'aegis: sessions hold more events than that: prune them first');
END""",
    "store_guards_removed": """
CREATE TRIGGER store_guards_removed BEFORE UPDATE OF removed_position ON store
WHEN NEW.removed_position < OLD.removed_position BEGIN
  SELECT RAISE(ABORT, 'aegis: removed_position only goes up');
END""",
    "store_guards_delete": """
CREATE TRIGGER store_guards_delete BEFORE DELETE ON store BEGIN
  SELECT RAISE(ABORT, 'aegis: the policy is changed, not deleted');
END""",
}

for _trigger in _SQLITE_TRIGGERS.values():
    _ddl = DDL(_trigger.strip().replace("%", "%%"))  # type: ignore[no-untyped-call]
    sa_event.listen(metadata, "after_create", _ddl.execute_if(dialect="sqlite"))
