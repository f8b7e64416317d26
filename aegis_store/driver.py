"""Which SQLite this process works with.

Many Pythons ship a SQLite with the WAL-reset bug (sqlite.org/wal.html#walresetbug), which can corrupt a store when two
connections commit and checkpoint at the same moment. The wheel `pysqlite3` brings a current SQLite behind the same DB-API.
The newer of the two serves the library and the migrations alike.
"""

import importlib
import os
import sqlite3
from types import ModuleType
from typing import Final

from aegis_store.errors import InvalidInput, shown

DRIVER_VARIABLE: Final = "AEGIS_STORE_DRIVER"
"""Names the driver to use, `sqlite3` or `pysqlite3`, instead of the newer one: for tests and for trouble-shooting."""


def _chosen() -> ModuleType:
    named = os.environ.get(DRIVER_VARIABLE)
    if named not in (None, "", "sqlite3", "pysqlite3"):
        raise InvalidInput(f"{DRIVER_VARIABLE} must be sqlite3 or pysqlite3, not {shown(named)}")
    if named == "sqlite3":
        return sqlite3
    try:
        wheel = importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        if named == "pysqlite3":
            raise InvalidInput(f"{DRIVER_VARIABLE} is pysqlite3, which is not installed: install it, or unset it") from None
        return sqlite3  # no wheel for this platform
    if named == "pysqlite3" or wheel.sqlite_version_info > sqlite3.sqlite_version_info:
        return wheel
    return sqlite3


dbapi: Final = _chosen()
VERSION_INFO: Final[tuple[int, int, int]] = dbapi.sqlite_version_info
VERSION: Final[str] = dbapi.sqlite_version


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Whether that SQLite may lose commits when a commit and a checkpoint meet: 3.7.0 to 3.51.2, but for the back-ports."""
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)
    return not fixed
