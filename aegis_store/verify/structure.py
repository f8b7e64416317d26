"""What SQLite knows of a file: that its pages and indexes fit together, and which tables, triggers and views it has."""

from collections.abc import Iterator
from contextlib import closing
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import StaticPool

from aegis_store import driver, schema
from aegis_store.verify.report import Problem

_LITESTREAM: Final = ("_litestream_lock", "_litestream_seq")
"""Tables that Litestream makes in what it replicates. Nothing of the store depends on them."""

_MOST: Final = 100
"""How many faults SQLite tells of at the most: damage to one page has dozens."""

Shape = dict[tuple[str, str], str]
"""Kind and name of each table, index, trigger and view, and its SQL."""


def structure(conn: Connection) -> Iterator[Problem]:
    """Reads the whole file, in one snapshot: as long as that takes, the log cannot be begun anew."""
    for (message,) in conn.exec_driver_sql(f"PRAGMA integrity_check({_MOST})"):
        if message != "ok":
            yield Problem("structure", " ".join(str(message).split()))
    for table, row, parent, _ in conn.exec_driver_sql("PRAGMA foreign_key_check"):
        yield Problem("structure", f"row {row} of table {table} refers to a {parent} that is not there")


def changes_of_schema(conn: Connection) -> Iterator[Problem]:
    """Tables, indexes, triggers and views that are missing, changed or not ours."""
    expected, found = _shape_in_code(), shape(conn.connection.dbapi_connection)
    for kind, name in sorted(expected.keys() | found.keys()):
        if (kind, name) not in found:
            yield Problem("schema", f"the {kind} {name} is missing")
        elif (kind, name) not in expected:
            yield Problem("schema", f"the {kind} {name} is not one of this library's")
        elif found[kind, name] != expected[kind, name]:
            yield Problem("schema", f"the {kind} {name} was changed")


def shape(connection: Any) -> Shape:
    """What `sqlite_schema` says of all of them, whatever the white space. Alembic's own table is left out, Litestream's, and
    SQLite's, among which are the statistics that ANALYZE and PRAGMA optimize leave.

    SQLite quotes the name of a table that was renamed.
    """
    columns = ", ".join(f"CAST({name} AS TEXT)" for name in ("type", "name", "sql"))  # damage may have made one a blob
    rows = connection.execute(f"SELECT {columns} FROM sqlite_schema WHERE sql IS NOT NULL AND name IS NOT NULL").fetchall()
    return {
        (kind, name): " ".join(sql.replace(f'"{name}"', name).split()).replace("( ", "(").replace(" )", ")").replace(" ,", ",")
        for kind, name, sql in rows
        if name not in ("alembic_version", *_LITESTREAM) and not name.startswith("sqlite_")
    }


@cache
def _shape_in_code() -> Shape:
    with closing(driver.dbapi.connect(":memory:", isolation_level=None)) as memory:
        engine = create_engine("sqlite://", module=driver.dbapi, creator=lambda: memory, poolclass=StaticPool)
        schema.metadata.create_all(engine)
        return shape(memory)
