"""A database in the temporary directory, for what an import has to keep beside the store so that it needs flat memory."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from aegis_store import driver
from aegis_store.sqlite_errors import errors_of


@contextmanager
def scratch(what: str) -> Iterator[Any]:
    """A connection to an empty one; it goes with the block. `what` it is for stands in the errors inside.

    Raises `StoreFull` and `StoreUnavailable` when the temporary directory is of no use.
    """
    with errors_of(f"{what} in the temporary directory"):
        directory = tempfile.mkdtemp(prefix="aegis-store-import-")
    try:
        with (
            errors_of(f"{what} in {os.path.dirname(directory)}"),
            # In a file rather than SQLite's own temporary database: some builds keep that in memory.
            closing(driver.dbapi.connect(os.path.join(directory, "scratch.db"), isolation_level=None)) as connection,
        ):
            connection.execute("PRAGMA journal_mode = OFF").fetchall()
            connection.execute("PRAGMA synchronous = OFF")
            yield connection
    finally:
        # What cannot be removed does not undo what the import did.
        shutil.rmtree(directory, ignore_errors=True)
