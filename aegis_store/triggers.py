"""The triggers of a store: what holds every writer to the promises, also one with a plain SQL shell.

insert an event   event_guards_insert    only as the session's next event, within max_event_bytes
                  event_counts           last_seq goes up, what a prune goes by is noted; at the cap, first_seq goes up too
raise first_seq   session_truncates      the events below go: the only DELETE of events there is
take the name     session_is_buried      a tombstone keeps the id, its scope and its seq; the events go in slices
create again      session_revives        the session goes on where its tombstone says
anything else     *_guards_*             refused: changing an event, deleting from the middle, replacing a record
"""

from typing import Final

from aegis_store.record_copy import record_triggers

# In a BEFORE INSERT trigger SQLite gives -1 for a rowid that the statement leaves to it. What must be unique is looked up
# in the triggers, not left to the indexes: INSERT OR REPLACE would settle a conflict by deleting the older row, unseen. And so
# is what must not be NULL: INSERT OR IGNORE would leave such an event out, but use its position up.
SQLITE_TRIGGERS: Final = {
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
