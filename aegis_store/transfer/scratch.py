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
from aegis_store.errors import StoreFull
from aegis_store.settings import SCRATCH_AGE_S
from aegis_store.sqlite_errors import errors_of, translated

_PREFIX: Final = "aegis-store-import-"

# The rest is left to everybody else: a small file may unpack to more than any disk holds.
_MOST_OF_FREE_ROOM: Final = 0.9
_MOST_PAGES: Final = 2**32 - 2


class _Connection(driver.dbapi.Connection):  # type: ignore[misc, name-defined]  # chosen at run time
    """One that says what is full. Around it errors are taken for those of the store, which is written at the same time."""

    place = ""
    most_bytes = 0

    def may_take(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        page_bytes = self.execute("PRAGMA page_size").fetchone()[0]
        self.execute(f"PRAGMA max_page_count = {min(most_bytes // page_bytes, _MOST_PAGES)}").fetchall()

    def execute(self, *arguments: Any) -> Any:
        try:
            return super().execute(*arguments)
        except driver.dbapi.OperationalError as error:
            told = translated(self.place, error, waited_ms=0)
            if not isinstance(told, StoreFull):
                raise
            detail = f"{told.detail}: it may take {self.most_bytes:,} bytes, nine tenths of what was free"
            raise StoreFull(store=self.place, detail=detail) from None


def _connected(file: str) -> _Connection:
    connection: _Connection = driver.dbapi.connect(file, isolation_level=None, factory=_Connection)
    return connection


@contextmanager
def scratch(what: str) -> Iterator[Any]:
    """A connection to an empty one; it goes with the block. `what` it is for stands in the errors inside.

    It takes nine tenths of what is free in the temporary directory at the most. Raises `StoreFull` when that is not enough, and
    `StoreUnavailable` when the directory is of no use.
    """
    with errors_of(f"{what} in the temporary directory"):
        _sweep(tempfile.gettempdir())
        directory = tempfile.mkdtemp(prefix=_PREFIX)
    place = f"{what} in {os.path.dirname(directory)}"
    try:
        with (
            errors_of(place),
            # In a file rather than SQLite's own temporary database: some builds keep that in memory.
            closing(_connected(os.path.join(directory, "scratch.db"))) as connection,
        ):
            connection.place = place
            connection.execute("PRAGMA journal_mode = OFF").fetchall()
            connection.execute("PRAGMA synchronous = OFF")
            connection.may_take(int(shutil.disk_usage(directory).free * _MOST_OF_FREE_ROOM))
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
