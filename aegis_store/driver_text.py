"""Statements as text for the driver: SQLAlchemy takes longer to build and compile one than a database to carry it out."""

import re
from typing import Final

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.dialects import sqlite

_NAMED: Final = re.compile(r"(?<!:):([a-z_]+)")


def driver_text(statement: ClauseElement) -> str:
    """A statement as SQLite's driver takes it, with named parameters."""
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))


class DriverText:
    """One statement for both databases, or one for each, compiled once for each. Parameters have names: `:name` in a text."""

    def __init__(
        self, statement: ClauseElement | str, *, postgresql: ClauseElement | str | None = None, tail: str = ""
    ) -> None:
        self._postgresql = statement if postgresql is None else postgresql
        self._tail = tail
        self._texts = {"sqlite": (statement if isinstance(statement, str) else driver_text(statement)) + tail}

    def on(self, conn: Connection) -> str:
        """The text for the driver of that connection."""
        name = conn.dialect.name
        if name not in self._texts:
            given = self._postgresql
            text = given if isinstance(given, str) else str(given.compile(dialect=conn.dialect))
            self._texts[name] = _NAMED.sub(r"%(\1)s", text + self._tail)
        return self._texts[name]

    def __str__(self) -> str:
        return self._texts["sqlite"]
