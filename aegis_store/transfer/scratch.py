"""A database in the temporary directory, for what an import has to keep beside the store so that it needs flat memory."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

from aegis_store import driver
from aegis_store.settings import SCRATCH_AGE_S
from aegis_store.sqlite_errors import errors_of

_PREFIX: Final = "aegis-store-import-"


@contextmanager
def scratch(what: str) -> Iterator[Any]:
    """A connection to an empty one; it goes with the block. `what` it is for stands in the errors inside.

    Raises `StoreFull` and `StoreUnavailable` when the temporary directory is of no use.
    """
    with errors_of(f"{what} in the temporary directory"):
        _sweep(tempfile.gettempdir())
        directory = tempfile.mkdtemp(prefix=_PREFIX)
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


def _sweep(temporary: str) -> None:
    """Remove what imports that were killed have left. One that is at work all the same holds its file open, and goes on."""
    oldest = time.time() - SCRATCH_AGE_S
    # Not to be able to look, or to meet another import that sweeps, keeps no import from its work.
    with suppress(OSError), os.scandir(temporary) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode) and found.st_mtime < oldest and _is_ours(found):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _is_ours(found: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or found.st_uid == os.getuid()  # on Windows each user has a directory of his own
