"""Views for a plain SQL shell: sessions, events and prunes with readable times. No table is touched, no event looked at.

On PostgreSQL all of the schema, since stores there begin here. `-x partitions=16` has their events partitioned by session.

Revision ID: 0004
Revises: 0003
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        create_on_postgresql()
        return
    for view in SQLITE_VIEWS.values():
        op.execute(sa.text(view.strip()))


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        raise CommandError("refused: stores on PostgreSQL begin with 0004; drop its schema if nothing in it is needed")
    for name in SQLITE_VIEWS:
        op.execute(f"DROP VIEW {name}")


def create_on_postgresql() -> None:
    sql = (Path(__file__).parents[1] / "postgresql" / "0004.sql").read_text(encoding="utf-8")
    partitions = number_of_partitions()
    if partitions:
        sql = sql.replace("/*partition by*/", "PARTITION BY HASH (session)")
    # (A colon would be a parameter.)
    op.execute(sa.text(sql.replace(":", r"\:")))
    for number in range(partitions):
        values = f"WITH (MODULUS {partitions}, REMAINDER {number})"
        op.execute(sa.text(f"CREATE TABLE event_{number} PARTITION OF event FOR VALUES {values}"))


def number_of_partitions() -> int:
    given = context.get_x_argument(as_dictionary=True).get("partitions", "0")
    if not str(given).isdecimal() or int(given) > 1024:
        raise CommandError(f"partitions must be a whole number up to 1024, not {given!r}")
    return int(given)


def time(us: str) -> str:
    """Microseconds since 1970 as text."""
    return f"""
  CASE WHEN {us} BETWEEN -62135596800000000 AND 253402300799999999 THEN
    strftime('%Y-%m-%dT%H:%M:%S', {us} / 1000000 - ({us} % 1000000 < 0), 'unixepoch')
    || printf('.%06d+00:00', ({us} % 1000000 + 1000000) % 1000000)
  END"""


SQLITE_VIEWS = {
    "session_overview": f"""
CREATE VIEW session_overview AS SELECT
  s.session_id, s.tenant, s.owner, s.status, s.hold,
  s.last_seq - s.first_seq + 1 AS event_count, s.first_seq, s.last_seq,
  s.total_bytes - coalesce(e.bytes_before, s.total_bytes) AS retained_bytes,
  nullif(coalesce(s.max_events, (SELECT max_events FROM store)), 9223372036854775807) AS max_events,
  {time("s.created_at")} AS created_at,
  {time("s.updated_at")} AS updated_at,
  {time("s.ended_at")} AS ended_at,
  {time("s.last_event_at")} AS last_event_at,
  s.first_seq - 1 AS removed_events,
  coalesce(e.bytes_before, s.total_bytes) AS removed_bytes,
  {time("s.removed_at")} AS removed_at,
  s.removed_reason, s.metadata
FROM session AS s LEFT JOIN event AS e ON e.session = s.id AND e.seq = s.first_seq
WHERE s.session_id IS NOT NULL
""",
    "event_readable": f"""
CREATE VIEW event_readable AS SELECT
  s.session_id, e.seq, e.position, e.type,
  {time("e.occurred_at")} AS occurred_at,
  {time("e.recorded_at")} AS recorded_at,
  e.event_id, e.run_id, s.tenant, s.owner, e.payload_ref,
  length(CAST(e.payload AS BLOB)) AS payload_bytes, e.payload
FROM event AS e JOIN session AS s ON s.id = e.session
WHERE s.session_id IS NOT NULL
""",
    "prune_history": f"""
CREATE VIEW prune_history AS SELECT
  r.id,
  {time("r.started_at")} AS started_at,
  r.trigger, r.events, r.bytes, r.sessions, r.sessions_forgotten, r.reasons, r.duration_us / 1e6 AS duration_s, r.outcome
FROM prune_run AS r
""",
}
