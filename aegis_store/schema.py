"""The tables, indexes and triggers of a store. Nothing runs here.

`migrations/` is what makes them in a store; a test proves that both arrive at the same schema. The triggers are the part
that holds every writer to the promises, also one with a plain SQL shell:

    insert an event   event_guards_insert    only as the session's next event, within max_event_bytes
                      event_counts           last_seq goes up, what a prune goes by is noted; at the cap, first_seq goes up too
    raise first_seq   session_truncates      the events below go: the only DELETE of events there is
    take the name     session_is_buried      a tombstone keeps the id, its scope and its seq; the events go in slices
    create again      session_revives        the session goes on where its tombstone says
    anything else     *_guards_*             refused: changing an event, deleting from the middle, replacing a record

What the store needs to know of removed events costs no bookkeeping: `first_seq - 1` counts them, and `bytes_before` (the
payload bytes of all earlier events of the session) of the first retained one says how large they were.

So that a prune finds its work without looking at sessions that have none, a session carries three notes. `oldest_at`: no
retained event was recorded before. `unsorted_seq`: from this seq on, `recorded_at` only rises (a clock may go back).
`oversize`: it grew past the policy's `max_bytes`. They change once in many appends, and their indexes with them.

So that damage to a row is seen, which SQLite does not notice, an event has a `checksum` (see `checksum`), and each record
says what it holds a second time, whoever writes it (see `record_copy`).
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

from aegis_store.record_copy import record_triggers

HEAD: Final = "0003"
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
    Column("max_bytes", _Int64),
    Column("max_age_us", _Int64),
    Column("max_total_bytes", _Int64),
    Column("forget_sessions_after_us", _Int64),
    Column("mode", Text, nullable=False, server_default="enforce"),
    # The payload bytes of all sessions, counted only while there is a budget (max_total_bytes); NULL otherwise.
    Column("retained_bytes", _Int64),
    # Maintenance: when it was last at work, and in which process, while it is.
    Column("maintained_at", _Int64),
    Column("maintainer", Text),
    # The highest position that was ever removed: a reader of the whole store below it has missed something.
    Column("removed_position", _Int64, nullable=False, server_default="0"),
    Column("removed_at", _Int64),
    Column("removed_reason", Text),
    Column("record_copy", Text, nullable=False, server_default=""),
    Column("counter_sum", _Int64, nullable=False, server_default="0"),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("max_events >= 1", name="max_events"),
    CheckConstraint("max_event_bytes >= 1", name="max_event_bytes"),
    CheckConstraint("terminal_grace_us >= 0", name="terminal_grace_us"),
    CheckConstraint("max_bytes >= 1", name="max_bytes"),
    CheckConstraint("max_age_us >= 1", name="max_age_us"),
    CheckConstraint("max_total_bytes >= 1", name="max_total_bytes"),
    CheckConstraint("forget_sessions_after_us >= 0", name="forget_sessions_after_us"),
    CheckConstraint("mode IN ('enforce', 'warn')", name="mode"),
    CheckConstraint("(max_total_bytes IS NULL) = (retained_bytes IS NULL)", name="retained_bytes"),
    sqlite_strict=True,
)

# The store's number, drawn when the schema is made; see `record_copy`.
identity = Table(
    "identity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", _Int64, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    sqlite_strict=True,
)

session = Table(
    "session",
    metadata,
    Column("id", _Int64, primary_key=True),
    # NULL: the session was deleted, and its events are going; its tombstone has the name.
    Column("session_id", Text),
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
    Column("oldest_at", _Int64),
    Column("unsorted_seq", _Int64, nullable=False, server_default="0"),
    Column("oversize", Integer, nullable=False, server_default="0"),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("record_copy", Text, nullable=False, server_default=""),
    Column("counter_sum", _Int64, nullable=False, server_default="0"),
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
    CheckConstraint("oversize IN (0, 1)", name="oversize"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

# Lists leave out what was deleted: as a condition of the indexes, it costs them nothing.
NAMED: Final = text("session_id IS NOT NULL")
Index("session_by_update", session.c.updated_at, session.c.id, sqlite_where=NAMED, postgresql_where=NAMED)
Index("session_by_status", session.c.status, session.c.updated_at, session.c.id, sqlite_where=NAMED, postgresql_where=NAMED)

# Where a prune finds its work: each index holds just the sessions that a limit may concern, in the order of what it asks.
# An append changes none of the columns in their conditions or keys, but for those of sessions that have ended.
# Sessions without a name are found by the unique index of `session_id`.
# (`ended_at` and not the status in the conditions: by a CHECK they are the same, and the planner prefers this form.)
PRUNABLE: Final = text("ended_at IS NOT NULL AND hold = 0 AND first_seq <= last_seq")
FORGETTABLE: Final = text("ended_at IS NOT NULL AND hold = 0 AND first_seq > last_seq")
AGEING: Final = text("oldest_at IS NOT NULL AND hold = 0")
OVERSIZE: Final = text("oversize = 1 AND hold = 0")
Index("session_prunable", session.c.ended_at, sqlite_where=PRUNABLE, postgresql_where=PRUNABLE)
Index("session_forgettable", session.c.ended_at, sqlite_where=FORGETTABLE, postgresql_where=FORGETTABLE)
Index("session_ageing", session.c.oldest_at, sqlite_where=AGEING, postgresql_where=AGEING)
Index("session_oversize", session.c.id, sqlite_where=OVERSIZE, postgresql_where=OVERSIZE)

# What is left of a session that was deleted or forgotten: its id goes on where it ended, for the same tenant and owner.
tombstone = Table(
    "tombstone",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("last_seq", _Int64, nullable=False),
    Column("total_bytes", _Int64, nullable=False),
    Column("removed_at", _Int64),
    Column("removed_reason", Text),
    Column("record_copy", Text, nullable=False, server_default=""),
    sqlite_strict=True,
)

# A row for each run of a prune that had something to do, kept to the newest thousand.
prune_run = Table(
    "prune_run",
    metadata,
    Column("id", _Int64, primary_key=True),
    Column("started_at", _Int64, nullable=False),
    Column("now", _Int64, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("events", _Int64, nullable=False, server_default="0"),
    Column("bytes", _Int64, nullable=False, server_default="0"),
    Column("sessions", _Int64, nullable=False, server_default="0"),
    Column("sessions_forgotten", _Int64, nullable=False, server_default="0"),
    Column("reasons", Text, nullable=False, server_default="{}"),
    Column("duration_us", _Int64, nullable=False, server_default="0"),
    # NULL: at work, or killed.
    Column("outcome", Text),
    Column("record_copy", Text, nullable=False, server_default=""),
    CheckConstraint("trigger IN ('startup', 'maintenance', 'api', 'cli')", name="trigger"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

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
    # TEXT on PostgreSQL too: JSONB refuses U+0000 and drops the sign of -0.0. Late, since it overflows.
    Column("payload", Text, nullable=False),
    Column("checksum", _Int64),
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
# in the triggers, not left to the indexes: INSERT OR REPLACE would settle a conflict by deleting the older row, unseen. And so
# is what must not be NULL: INSERT OR IGNORE would leave such an event out, but use its position up.
_SQLITE_TRIGGERS: Final = {
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
  OR (NEW.session_id IS NULL AND OLD.session_id IS NOT NULL AND OLD.hold = 1)
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
    "session_guards_cap": """
CREATE TRIGGER session_guards_cap BEFORE UPDATE OF max_events ON session
WHEN NEW.last_seq - NEW.first_seq >= coalesce(NEW.max_events, (SELECT max_events FROM store)) BEGIN
  SELECT RAISE(ABORT, 'aegis: the session holds more events than that: prune it first');
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
CREATE TRIGGER tombstone_guards_update BEFORE UPDATE ON tombstone WHEN OLD.record_copy <> '' BEGIN
  SELECT RAISE(ABORT, 'aegis: a tombstone does not change');
END""",
    "tombstone_guards_delete": """
CREATE TRIGGER tombstone_guards_delete BEFORE DELETE ON tombstone
WHEN NOT EXISTS (SELECT 1 FROM session WHERE session_id = OLD.session_id) BEGIN
  SELECT RAISE(ABORT, 'aegis: a tombstone stays, so that its seq is not used again');
END""",
    "store_guards_insert": """
CREATE TRIGGER store_guards_insert BEFORE INSERT ON store WHEN EXISTS (SELECT 1 FROM store) BEGIN
  SELECT RAISE(ABORT, 'aegis: the policy is changed, not replaced');
END""",
    "store_guards_cap": """
CREATE TRIGGER store_guards_cap BEFORE UPDATE OF max_events ON store
WHEN NEW.max_events < OLD.max_events AND EXISTS (
  SELECT 1 FROM session WHERE session_id IS NOT NULL AND max_events IS NULL AND last_seq - first_seq >= NEW.max_events
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
    **record_triggers(),
}

for _trigger in _SQLITE_TRIGGERS.values():
    _ddl = DDL(_trigger.strip().replace("%", "%%"))  # type: ignore[no-untyped-call]
    sa_event.listen(metadata, "after_create", _ddl.execute_if(dialect="sqlite"))
