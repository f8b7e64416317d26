"""Views of a store, for a plain SQL shell: names and times that people read. The library itself reads none of them.

session_overview   each session that was not deleted: what it holds, and what was removed of it
event_readable     each retained event, with the id of its session
prune_history      what each prune removed, and by which knob

Times are texts as in an export; NULL where a shell wrote a number that is no time of the years 1 to 9999. No function here
fails on any row, whatever its payload holds, as SQLite's json functions could.

A revision that renames or drops a column or table of theirs drops them first, and makes them again: SQLite refuses it else.
"""

from typing import Final


def _time(us: str) -> str:
    """Microseconds since 1970 as text. SQLite divides towards zero, and what is left over of an earlier moment is negative."""
    return f"""
  CASE WHEN {us} BETWEEN -62135596800000000 AND 253402300799999999 THEN
    strftime('%Y-%m-%dT%H:%M:%S', {us} / 1000000 - ({us} % 1000000 < 0), 'unixepoch')
    || printf('.%06d+00:00', ({us} % 1000000 + 1000000) % 1000000)
  END"""


SQLITE_VIEWS: Final = {
    "session_overview": f"""
CREATE VIEW session_overview AS SELECT
  s.session_id, s.tenant, s.owner, s.status, s.hold,
  s.last_seq - s.first_seq + 1 AS event_count, s.first_seq, s.last_seq,
  s.total_bytes - coalesce(e.bytes_before, s.total_bytes) AS retained_bytes,
  nullif(coalesce(s.max_events, (SELECT max_events FROM store)), 9223372036854775807) AS max_events,
  {_time("s.created_at")} AS created_at,
  {_time("s.updated_at")} AS updated_at,
  {_time("s.ended_at")} AS ended_at,
  {_time("s.last_event_at")} AS last_event_at,
  s.first_seq - 1 AS removed_events,
  coalesce(e.bytes_before, s.total_bytes) AS removed_bytes,
  {_time("s.removed_at")} AS removed_at,
  s.removed_reason, s.metadata
FROM session AS s LEFT JOIN event AS e ON e.session = s.id AND e.seq = s.first_seq
WHERE s.session_id IS NOT NULL
""",
    # A join and no sub-select, so that what is asked of one session goes by its index.
    "event_readable": f"""
CREATE VIEW event_readable AS SELECT
  s.session_id, e.seq, e.position, e.type,
  {_time("e.occurred_at")} AS occurred_at,
  {_time("e.recorded_at")} AS recorded_at,
  e.event_id, e.run_id, s.tenant, s.owner, e.payload_ref,
  length(CAST(e.payload AS BLOB)) AS payload_bytes, e.payload
FROM event AS e JOIN session AS s ON s.id = e.session
WHERE s.session_id IS NOT NULL
""",
    "prune_history": f"""
CREATE VIEW prune_history AS SELECT
  r.id,
  {_time("r.started_at")} AS started_at,
  r.trigger, r.events, r.bytes, r.sessions, r.sessions_forgotten, r.reasons, r.duration_us / 1e6 AS duration_s, r.outcome
FROM prune_run AS r
""",
}
