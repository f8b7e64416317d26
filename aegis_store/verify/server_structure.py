"""What PostgreSQL knows of a store: tables, triggers, functions and views as the migrations make them; pages and indexes.

There is no `integrity_check`. The extension amcheck stands in for it, where the database has it and this user may call it.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from aegis_store.errors import plural
from aegis_store.read import last_position
from aegis_store.schema import metadata
from aegis_store.verify.report import Problem

Shape = dict[str, str]
"""Kind and name of each table, index, trigger and so on, and a digest of its definition."""

_MOST: Final = 100
"""How many faults of a kind are told at the most."""

_TABLES: Final = ", ".join(f"'{name}'" for name in metadata.tables)

# In the schema that the search path leads to, and of it what is ours; partitions follow the table that they are of. An index of
# the operator's own changes no promise, unless it is unique.
_OURS: Final = f"""
WITH ours AS (
  SELECT * FROM pg_class WHERE relkind IN ('r', 'p') AND relname IN ({_TABLES})
  AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'event_position'::regclass)
)
"""
_SHAPE: Final = f"""{_OURS}
SELECT 'table ' || t.relname, concat_ws(' ', t.relpersistence, t.relrowsecurity, string_agg(
    concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
      pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY a.attname)), ''
  FROM ours AS t JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef AS d ON d.adrelid = t.oid AND d.adnum = a.attnum
  GROUP BY t.oid, t.relname, t.relpersistence, t.relrowsecurity
UNION ALL SELECT 'constraint ' || c.conname, concat_ws(' ', t.relname, c.convalidated, pg_get_constraintdef(c.oid)), ''
  FROM ours AS t JOIN pg_constraint AS c ON c.conrelid = t.oid AND c.contype IN ('p', 'u', 'c', 'f', 'x')
UNION ALL SELECT CASE WHEN i.indisunique THEN 'unique index ' ELSE 'index ' END || x.relname,
    concat_ws(' ', i.indisvalid, i.indisready, pg_get_indexdef(x.oid)), ''
  FROM ours AS t JOIN pg_index AS i ON i.indrelid = t.oid JOIN pg_class AS x ON x.oid = i.indexrelid
  WHERE NOT EXISTS (SELECT 1 FROM pg_constraint AS c WHERE c.conindid = x.oid AND c.contype IN ('p', 'u', 'x'))
UNION ALL SELECT 'trigger ' || g.tgname, pg_get_triggerdef(g.oid, true), ''
  FROM ours AS t JOIN pg_trigger AS g ON g.tgrelid = t.oid AND NOT g.tgisinternal
UNION ALL SELECT 'rule ' || r.rulename, pg_get_ruledef(r.oid), ''
  FROM ours AS t JOIN pg_rewrite AS r ON r.ev_class = t.oid
UNION ALL SELECT 'function ' || f.proname, concat_ws(' ', pg_get_function_arguments(f.oid), pg_get_function_result(f.oid),
    l.lanname, f.provolatile, f.prosecdef, f.proconfig::text), f.prosrc
  FROM pg_proc AS f JOIN pg_language AS l ON l.oid = f.prolang
  WHERE f.proname LIKE 'aegis\\_%%' AND f.pronamespace = (SELECT min(relnamespace::bigint) FROM ours)
UNION ALL SELECT 'view ' || v.relname, pg_get_viewdef(v.oid, true), ''
  FROM pg_class AS v WHERE v.relkind = 'v' AND v.relnamespace = (SELECT min(relnamespace::bigint) FROM ours)
UNION ALL SELECT 'sequence ' || s.relname, concat_ws(' ', s.relpersistence, q.seqtypid::regtype, q.seqincrement, q.seqcycle), ''
  FROM pg_class AS s JOIN pg_sequence AS q ON q.seqrelid = s.oid WHERE s.oid = 'event_position'::regclass
"""
_MAY_BE_THERE: Final = ("index ", "view ")
"""Kinds of which there may be others than ours."""

# Also those of partitions, and those that PostgreSQL makes for a reference.
_SWITCHED_OFF: Final = f"""{_OURS}
SELECT g.tgname, g.tgrelid::regclass::text FROM pg_trigger AS g WHERE g.tgenabled IN ('D', 'R') AND (
  g.tgrelid IN (SELECT oid FROM ours)
  OR g.tgrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent IN (SELECT oid FROM ours)))
ORDER BY 2, 1 LIMIT {_MOST}
"""
_UNLOGGED_PARTITIONS: Final = f"""{_OURS}
SELECT i.inhrelid::regclass::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent IN (SELECT oid FROM ours) AND c.relpersistence <> 'p' LIMIT {_MOST}
"""


def changes_of_schema(conn: Connection) -> Iterator[Problem]:
    """Tables, constraints, indexes, triggers, functions and views that are missing, changed or not ours; switched off ones."""
    expected, found = _shape_in_code(), shape(conn)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield Problem("schema", f"the {name} is missing")
        elif name in expected and found[name] != expected[name]:
            yield Problem("schema", f"the {name} was changed")
        elif name not in expected and not name.startswith(_MAY_BE_THERE):
            yield Problem("schema", f"the {name} is not one of this library's")
    for trigger, table in conn.exec_driver_sql(_SWITCHED_OFF):
        yield Problem("schema", f"the trigger {trigger} of {table} is switched off")
    for (partition,) in conn.exec_driver_sql(_UNLOGGED_PARTITIONS):
        yield Problem("schema", f"the partition {partition} is not logged: a crash of the server empties it")


def shape(conn: Connection) -> Shape:
    """All of them, as far as every version of PostgreSQL writes their definitions alike."""
    rows = conn.exec_driver_sql(_SHAPE).all()
    return {name: _digest(_squeezed(definition) + " ".join(body.split())) for name, definition, body in rows}


def _squeezed(definition: str) -> str:
    """Without names of schemas and aliases, white space and parentheses, which version, search path and partitions change."""
    return re.sub(r"[\s()]|\bONLY\b|\b(?!(?:new|old|NEW|OLD)\.)[A-Za-z_]\w*\.(?=[A-Za-z_*\"])", "", definition)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shape_in_code() -> Shape:
    found: Shape = json.loads(files("aegis_store.postgres").joinpath("shape.json").read_text(encoding="ascii"))
    return found


# Pages and indexes

_INDEXES: Final = f"""{_OURS}
SELECT x.oid::regclass::text FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid AND x.relkind = 'i'
JOIN pg_am AS m ON m.oid = x.relam AND m.amname = 'btree' WHERE i.indisvalid AND (
  i.indrelid IN (SELECT oid FROM ours)
  OR i.indrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent IN (SELECT oid FROM ours)))
ORDER BY 1
"""
_HEAPS: Final = f"""{_OURS}
SELECT coalesce(i.inhrelid, t.oid)::regclass::text FROM ours AS t LEFT JOIN pg_inherits AS i ON i.inhparent = t.oid ORDER BY 1
"""
# By what they are called: the schema of the extension need not be in the search path.
_AMCHECK: Final = """
SELECT f.proname, quote_ident(n.nspname) || '.' || quote_ident(f.proname), has_function_privilege(f.oid, 'EXECUTE')
FROM pg_extension AS e JOIN pg_depend AS d ON d.refobjid = e.oid AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
JOIN pg_proc AS f ON f.oid = d.objid JOIN pg_namespace AS n ON n.oid = f.pronamespace
WHERE e.extname = 'amcheck' AND (f.proname = 'verify_heapam'
  OR f.proname = 'bt_index_check' AND f.oid::regprocedure::text LIKE '%%(regclass,boolean%%')
ORDER BY f.pronargs
"""
_DAMAGE: Final = "XX"
"""How codes of PostgreSQL begin that tell of it."""


def structure(conn: Connection) -> Iterator[Problem | str]:
    """What amcheck finds, in tables and indexes; as text what could not be looked at, and why."""
    if conn.exec_driver_sql("SHOW data_checksums").scalar_one() != "on":
        yield "the server keeps no checksums of its pages (data_checksums is off): not all damage to one can be seen"
    found = {name: (call, allowed) for name, call, allowed in conn.exec_driver_sql(_AMCHECK)}
    if not found:
        yield "indexes and pages by themselves: `CREATE EXTENSION amcheck` in this database has verify look at them"
    elif not all(allowed for _, allowed in found.values()):
        yield "indexes and pages by themselves: this user may not call amcheck (GRANT EXECUTE ON its functions)"
    else:
        yield from _of_heaps(conn, found["verify_heapam"][0])
        yield from _of_indexes(conn, found["bt_index_check"][0])


def _of_heaps(conn: Connection, call: str) -> Iterator[Problem | str]:
    for table in conn.exec_driver_sql(_HEAPS).scalars().all():
        told = _checked(conn, f"SELECT blkno, msg FROM {call}(%(name)s::regclass) LIMIT {_MOST}", table)
        for block, message in told if isinstance(told, list) else []:
            yield Problem("structure", f"block {block} of {table}: {message}")
        if not isinstance(told, list):
            yield told


def _of_indexes(conn: Connection, call: str) -> Iterator[Problem | str]:
    """Each index by itself, and that it has each row of its table."""
    for index in conn.exec_driver_sql(_INDEXES).scalars().all():
        told = _checked(conn, f"SELECT {call}(%(name)s::regclass, true)", index)
        if not isinstance(told, list):
            yield told


def _checked(conn: Connection, sql: str, name: str) -> list[Any] | Problem | str:
    """The rows; the problem that it met instead; or, as text, why it could not look."""
    try:
        with conn.begin_nested():
            return list(conn.exec_driver_sql(sql, {"name": name}).all())
    except DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", ""))
        message = str(getattr(getattr(error.orig, "diag", None), "message_primary", "")) or type(error.orig).__name__
        if state.startswith(_DAMAGE):
            return Problem("structure", f"{name}: {message}")
        if not state or state.startswith(("08", "57")):
            raise
        return f"{name}: {message}"


# What the store counts, held against its rows

_LOST: Final = f"""
SELECT e.session, count(*) FROM event AS e LEFT JOIN session AS s ON s.id = e.session
WHERE s.id IS NULL GROUP BY e.session ORDER BY e.session LIMIT {_MOST}
"""
_BELOW: Final = f"""
SELECT s.session_id, min(e.seq), max(e.seq) FROM event AS e JOIN session AS s ON s.id = e.session
WHERE e.seq < s.first_seq GROUP BY s.id ORDER BY s.id LIMIT {_MOST}
"""
_TWICE: Final = f"SELECT position FROM event GROUP BY position HAVING count(*) > 1 ORDER BY position LIMIT {_MOST}"
_HIGHEST: Final = """
SELECT greatest((SELECT max(position) FROM event), (SELECT max(removed_position) FROM session),
  (SELECT removed_position FROM store), 0)
"""
# A session that is being deleted has noted already what is still to go.
_WRONG_NOTES: Final = f"""
SELECT s.session_id, s.removed_position, e.position FROM session AS s
LEFT JOIN event AS e ON e.session = s.id AND e.seq = s.first_seq
WHERE s.removed_block <> (s.removed_position + 4095) >> 12
  OR s.session_id IS NOT NULL AND (e.position <= s.removed_position OR s.first_seq = 1 AND s.removed_position > 0)
ORDER BY s.id LIMIT {_MOST}
"""
_BUDGET: Final = """
SELECT retained_bytes, (SELECT coalesce(sum(octet_length(payload)), 0)::bigint FROM event) FROM store
WHERE retained_bytes IS NOT NULL
"""


def wrong_totals(conn: Connection) -> Iterator[Problem]:
    """Events without a session or below its range, positions that are wrong, notes of removals, the budget."""
    for key, number in conn.exec_driver_sql(_LOST):
        yield Problem("structure", f"{plural(number, 'event')} of session number {key}, which is not there")
    for session_id, first, last in conn.exec_driver_sql(_BELOW):
        yield Problem("range", f"events {first} to {last} lie below its first_seq, and are there", session_id, first)
    for (position,) in conn.exec_driver_sql(_TWICE):
        yield Problem("range", f"position {position} stands twice")
    highest = conn.exec_driver_sql(_HIGHEST).scalar_one()
    given = last_position(conn)
    if highest > given:
        yield Problem("range", f"position {highest} stands in the store, and the sequence event_position is at {given}")
    for session_id, removed, first in conn.exec_driver_sql(_WRONG_NOTES):
        held = "" if first is None else f", and it holds an event at position {first}"
        yield Problem("record", f"it notes that its events up to position {removed} were removed{held}", session_id)
    for noted, held in conn.exec_driver_sql(_BUDGET):
        if noted != held:
            yield Problem("record", f"the budget counts {noted:,} bytes of payloads, and {held:,} are there")
