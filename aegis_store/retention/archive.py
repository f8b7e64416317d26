"""Archive before delete: what will go is written as compressed JSON lines, and removed only once that is safe on disk."""

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, select

from aegis_store.any_database import streamed
from aegis_store.checksum import STORE_NUMBER
from aegis_store.draft import file_errors, is_orphan, make_directories, path_of
from aegis_store.errors import FileUnavailable
from aegis_store.lines import LinesWriter
from aegis_store.retention.history import StoredHistory
from aegis_store.schema import event, session
from aegis_store.settings import ARCHIVE_FILE_EVENTS

_LONGEST_NAME: Final = 80
_SUFFIX: Final = ".jsonl.gz"  # gzip, which every machine can read without us, for as long as archives are kept
_DRAFT: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z-.+-\d+-\d+\.jsonl\.gz\.tmp")  # the directory may hold what is not ours


class Archive:
    """The archive files of one run. Each holds a range of one session, and sorts by run, session and seq."""

    def __init__(self, directory: Path) -> None:
        self.files: list[Path] = []
        self._directory = directory
        self._found = os.stat(directory)
        self._run = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")

    @classmethod
    def at(cls, directory: str | os.PathLike[str]) -> Self:
        """Make what is missing of the directory, mode 0700. Raises `InvalidInput`, `FileUnavailable`, `StoreFull`."""
        path = path_of(directory)
        with file_errors(path):
            make_directories(path)
            _sweep(path)
            return cls(path)

    def write(self, conn: Connection, row: Row[Any], keep_from_seq: int) -> int:
        """Archive the session's events from its first up to `keep_from_seq`, as many as a file takes; up to which seq it was.

        All in the snapshot of `conn`. When this returns the file is complete, synced and was read back.
        """
        self._check_directory()
        end = min(keep_from_seq, row.first_seq + ARCHIVE_FILE_EVENTS)
        file = self._directory / self._name(row.session_id, row.first_seq, end - 1)
        record = conn.execute(select(session).where(session.c.id == row.id)).one()
        events = select(event, STORE_NUMBER).where(event.c.session == row.id, event.c.seq >= row.first_seq, event.c.seq < end)
        with LinesWriter(file, store=conn.get_execution_options()["store"]) as out:
            out.session(record, row.first_seq, end - 1, StoredHistory(conn, row).bytes_before(row.first_seq))
            with streamed(conn, events.order_by(event.c.seq)) as rows:  # one by one: a payload may take 16 MiB
                for stored in rows:
                    out.event(stored)
        self._check_directory()
        self.files.append(file)
        return int(end)

    def _check_directory(self) -> None:
        """Refuse another directory than that of the run's other archives."""
        with file_errors(self._directory):
            if not os.path.samestat(os.stat(self._directory), self._found):
                todo = "another directory stands there since the run began: find out why, and try again"
                raise FileUnavailable(file=str(self._directory), detail=todo)

    def _name(self, session_id: str, first_seq: int, last_seq: int) -> str:
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", session_id)[:_LONGEST_NAME]
        if readable != session_id:  # two ids must not meet in one name
            readable += f"~{sha256(session_id.encode()).hexdigest()[:12]}"
        return f"{self._run}-{readable}-{first_seq:013d}-{last_seq:013d}{_SUFFIX}"


def _sweep(directory: Path) -> None:
    """Remove what runs that were killed have left half written."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):  # another run sweeps too; what is another user's, or a directory, is in nobody's way
                if _DRAFT.fullmatch(entry.name) and is_orphan(entry.path):
                    os.unlink(entry.path)
