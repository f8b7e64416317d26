"""Writing a store, or some of its sessions, into a file of JSON lines (see `lines`)."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, select

from aegis_store.any_database import streamed
from aegis_store.checksum import STORE_NUMBER
from aegis_store.errors import InvalidInput, shown
from aegis_store.events import Json
from aegis_store.lines import LinesWriter
from aegis_store.schema import event, session
from aegis_store.sessions import RECORD, row_of
from aegis_store.sqlite_errors import check_intact

OnEvents = Callable[[int, int], None]
"""Called with (events written, events to write)."""

# Often enough for a progress bar, seldom enough to cost nothing.
_PROGRESS_EVENTS: Final = 500

_RECORD: Final = RECORD.where(session.c.session_id.is_not(None))  # a session that is being deleted has lost its id already
_ALL_EVENTS: Final = select(func.coalesce(func.sum(session.c.last_seq - session.c.first_seq + 1), 0)).where(
    session.c.session_id.is_not(None)
)
# A sub-select and no join, so that the events are walked in the order in which they lie, whatever the planner thinks.
_SESSION_ID: Final = select(session.c.session_id).where(session.c.id == event.c.session).scalar_subquery()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote. `file_bytes` is the size of the file, compressed if it is."""

    sessions: int
    events: int
    file_bytes: int


def export(
    conn: Connection,
    file: str | os.PathLike[str],
    session_ids: Collection[str] | None = None,
    *,
    policy: Mapping[str, Json] | None = None,
    on_progress: OnEvents | None = None,
) -> ExportReport:
    """Write the whole store, or the sessions of these ids, into a new `file`: .jsonl, .jsonl.gz or .jsonl.zst.

    All of it is as it stood at one moment: the transaction of `conn` is one snapshot. Others go on reading and writing, but
    until the export ends SQLite cannot begin its write-ahead log anew, which grows meanwhile by what is written. Memory is
    flat. A whole store is written in the order of its positions and says its `policy`, chosen sessions come one after the
    other. `on_progress` is called every 500 events, and at the end.

    The file has mode 0600 and stands under its name only when it is complete, synced and read back; whatever is raised, it is
    not there. Raises `SessionNotFound` before anything is written, `InvalidInput` if the name is taken or has another suffix,
    `StoreFull` and `FileUnavailable` for the disk, `StoreCorrupt` for damage in the store.
    """
    store = conn.get_execution_options()["store"]
    if session_ids is None:
        total = int(conn.execute(_ALL_EVENTS).scalar_one())
        with LinesWriter(file, {"policy": None if policy is None else dict(policy)}, store=store) as out:
            _write_store(conn, out, _Progress(on_progress, total))
    else:
        rows = [row_of(conn, session_id) for session_id in dict.fromkeys(checked_ids(session_ids))]
        total = sum(row.last_seq - row.first_seq + 1 for row in rows)
        with LinesWriter(file, {}, store=store) as out:
            _write_sessions(conn, out, [row.id for row in rows], _Progress(on_progress, total))
    return ExportReport(sessions=out.sessions, events=out.events, file_bytes=out.file_bytes)


def checked_ids(session_ids: Collection[str]) -> Collection[str]:
    """`session_ids`, if it can be ids of sessions to export; `InvalidInput` otherwise."""
    if isinstance(session_ids, str) or not isinstance(session_ids, Collection):
        raise InvalidInput(f"session_ids must be a collection such as ['run-42'], not {shown(session_ids)}")
    if not session_ids:
        raise InvalidInput("session_ids must name one session at least; None exports the whole store")
    return session_ids


def _write_store(conn: Connection, out: LinesWriter, progress: "_Progress") -> None:
    with streamed(conn, _RECORD.order_by(session.c.id)) as records:
        for record in records:
            check_intact(conn, record.intact, f"session {shown(record.session_id)}")
            out.session(record, record.first_seq, record.last_seq, record.removed_bytes)
    with streamed(conn, select(event, STORE_NUMBER, _SESSION_ID.label("session_id")).order_by(event.c.position)) as rows:
        for row in rows:
            if row.session_id is not None:
                out.event(row, row.session_id)
                progress.count()
    progress.tell()


def _write_sessions(conn: Connection, out: LinesWriter, ids: list[int], progress: "_Progress") -> None:
    for number in ids:
        record = conn.execute(_RECORD.where(session.c.id == number)).one()
        check_intact(conn, record.intact, f"session {shown(record.session_id)}")
        out.session(record, record.first_seq, record.last_seq, record.removed_bytes)
        with streamed(conn, select(event, STORE_NUMBER).where(event.c.session == number).order_by(event.c.seq)) as rows:
            for row in rows:
                out.event(row)
                progress.count()
    progress.tell()


class _Progress:
    def __init__(self, on_progress: OnEvents | None, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0

    def count(self) -> None:
        self._done += 1
        if self._done % _PROGRESS_EVENTS == 0 and self._done < self._total:
            self.tell()

    def tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)
