"""What a record says a second time, so that damage to it shows, which SQLite does not notice.

`record_copy` is a copy of what seldom changes, in SQL's own notation. `counter_sum` is the sum of the counters, each times a
small prime, which each append moves. Triggers keep both, whoever writes. Both follow a change from what they were: a write to
a record that is damaged leaves it damaged, and is no cover for it. They prove damage, not malice.

The copy begins with the store's number, which is drawn when the schema is made and stands in a page that is never written
again. So a record that came in with another store's write-ahead log shows as well: SQLite would play any log into the file.
"""

from typing import Any, Final

from sqlalchemy import Boolean, ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal

STORE_NUMBER_SQL: Final = "(SELECT number FROM identity WHERE id = 1)"

_COPIED: Final = {
    "session": "session_id tenant owner status max_events hold created_at updated_at ended_at removed_reason metadata",
    "store": "max_events max_event_bytes terminal_grace_us max_bytes max_age_us max_total_bytes forget_sessions_after_us mode"
    " removed_reason",
    "tombstone": "session_id tenant owner last_seq total_bytes removed_at removed_reason",
    "prune_run": "id started_at now trigger events bytes sessions sessions_forgotten reasons duration_us outcome",
}
_COUNTED: Final = {
    "session": {"first_seq": 3, "last_seq": 5, "total_bytes": 7, "last_event_at": 11, "removed_at": 13},
    "store": {"removed_position": 3, "removed_at": 5, "retained_bytes": 7},
}


def _copy_of(table: str, row: str) -> str:
    return " || ',' || ".join([STORE_NUMBER_SQL, *(f"quote({row}{name})" for name in _COPIED[table].split())])


def _sum_of(table: str, row: str) -> str:
    return " + ".join(f"{factor} * coalesce({row}{name}, 0)" for name, factor in _COUNTED[table].items())


def intact(table: str) -> ColumnElement[bool]:
    """Whether a row of that table is what was written. For event see `checksum`."""
    return _Intact(table).label("intact")


class _Intact(ColumnElement[bool]):
    """On PostgreSQL true: it has checksums of its own pages, and no record is kept twice there."""

    type = Boolean()
    _traverse_internals = [("table", InternalTraversal.dp_string)]  # noqa: RUF012 - what SQLAlchemy caches it by

    def __init__(self, table: str) -> None:
        self.table = table


@compiles(_Intact)
def _intact(element: _Intact, compiler: Any, **_: Any) -> str:
    return f"({intact_sql(element.table)})"


@compiles(_Intact, "postgresql")
def _intact_on_postgresql(element: _Intact, compiler: Any, **_: Any) -> str:
    return "true"


def intact_sql(table: str) -> str:
    row = f"{table}."
    condition = f"{row}record_copy = {_copy_of(table, row)}"
    if table in _COUNTED:
        condition += f" AND {row}counter_sum = {_sum_of(table, row)} AND {_are_numbers(table, row)}"
    return condition


def _are_numbers(table: str, row: str) -> str:
    """Whether the counters are what was written where their sum does not tell it: it takes NULL, or text, for 0.

    A time of removal is NULL or a number, and not the very microsecond with which 1970 begins; a session that never had an
    event has no time of its last one.
    """
    conditions = {name: f"typeof({row}{name}) = 'integer'" for name in _COUNTED[table]}
    optional = {"removed_at": f"{row}removed_at <> 0", "last_event_at": f"({row}last_event_at <> 0 OR {row}last_seq > 0)"}
    conditions |= {
        name: f"({row}{name} IS NULL OR {conditions[name]} AND {is_one})"
        for name, is_one in optional.items()
        if name in conditions
    }
    if table == "store":
        conditions["retained_bytes"] = f"typeof({row}retained_bytes) = iif({row}max_total_bytes IS NULL, 'null', 'integer')"
    return " AND ".join(conditions.values())


def _triggers_of(table: str) -> dict[str, str]:
    """The triggers that have a record say what it holds a second time."""
    key = "session_id" if table == "tombstone" else "id"
    here = f"WHERE {key} = NEW.{key}"
    copied = _COPIED[table].split()
    triggers = {}
    if table != "store":  # whose one row is made with the schema
        counters = f", counter_sum = {_sum_of(table, 'NEW.')}" if table in _COUNTED else ""
        triggers[f"{table}_is_copied"] = f"""
CREATE TRIGGER {table}_is_copied AFTER INSERT ON {table} BEGIN
  UPDATE {table} SET record_copy = {_copy_of(table, "NEW.")}{counters}
  {here};
END"""
    if table != "tombstone":  # which does not change
        changed = " OR ".join(f"NEW.{name} IS NOT OLD.{name}" for name in copied)
        triggers[f"{table}_copy_follows"] = f"""
CREATE TRIGGER {table}_copy_follows AFTER UPDATE OF {", ".join(copied)} ON {table}
WHEN {changed} BEGIN
  UPDATE {table} SET record_copy = {_copy_of(table, "NEW.")}
  {here} AND OLD.record_copy = {_copy_of(table, "OLD.")};
END"""
    # (The other counters of a session go up with its events alone, which see to it, or together with first_seq.)
    if table in _COUNTED:  # unless the statement saw to it itself, as those of an append do
        moved = "first_seq, removed_at" if table == "session" else ", ".join(_COUNTED[table])
        triggers[f"{table}_sum_follows"] = f"""
CREATE TRIGGER {table}_sum_follows AFTER UPDATE OF {moved} ON {table}
WHEN NEW.counter_sum = OLD.counter_sum BEGIN
  UPDATE {table} SET counter_sum = counter_sum + ({_sum_of(table, "NEW.")}) - ({_sum_of(table, "OLD.")})
  {here};
END"""
    return triggers


def record_triggers() -> dict[str, str]:
    """Name and SQL of the triggers of all tables."""
    return {name: sql for table in _COPIED for name, sql in _triggers_of(table).items()}
