"""The part of `EventStore` that brings events in from files and out to them, and makes copies of the store."""

import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext

from aegis_store import backup as backups
from aegis_store.backup import BackupReport, OnProgress
from aegis_store.errors import InvalidInput
from aegis_store.events import Json
from aegis_store.retention import limits
from aegis_store.retention.stored import policy_from_fields, policy_to_fields
from aegis_store.server import Server
from aegis_store.store.base import OpenStore
from aegis_store.transfer.aegis_file import OnBytes, StagedState, staged
from aegis_store.transfer.aegis_import import ImportReport, OnSessions
from aegis_store.transfer.aegis_import import bring_in as bring_aegis_in
from aegis_store.transfer.bring_lines import LinesReport, bring_in
from aegis_store.transfer.export import ExportReport, OnEvents, export


class Transfer(OpenStore):
    """Export and import, backups."""

    def export(
        self,
        file: str | os.PathLike[str],
        *,
        session_ids: Collection[str] | None = None,
        on_progress: OnEvents | None = None,
    ) -> ExportReport:
        """Write the store, or the sessions of those ids, as it is at this moment to `file`: JSON lines, by its suffix
        plain (.jsonl), gzip (.jsonl.gz) or zstd (.jsonl.zst). `import_lines` brings them into another store, exactly.

        The file is written beside its name, mode 0600, synced, read back and compared, and only then has the name; one that
        stands is not replaced. All is read in one snapshot, in flat memory: writers go on, and the write-ahead log grows
        by what they write meanwhile. `on_progress` is called with (events written, events in all).

        Raises `SessionNotFound`, `InvalidInput` for a name that is taken or another suffix, `StoreFull` and
        `FileUnavailable` if the file cannot be written: nothing is left of it then.
        """
        with self._db.read() as conn:
            policy = policy_to_fields(limits.policy_in_force(conn)) if session_ids is None else None
            return export(conn, file, session_ids, policy=policy, on_progress=on_progress)

    def import_lines(self, file: str | os.PathLike[str], *, hold: bool = False, on_bytes: OnBytes | None = None) -> LinesReport:
        """Import what `export`, or a prune with `archive_dir`, has written.

        The file is first read to its end and checked against the store; then it is written in small transactions. Sessions
        and events come in exactly as they were (positions are new, and keep their order). What the store has already must be
        equal and is not written again; what was pruned or deleted does not return; over its cap the newest events stay. A
        session that contradicts the store is named in the report with the reason and left out. A store that holds no session
        and still has the policy of a new one takes over that of the file, and the report says so. `hold` puts the sessions
        on hold, so that no prune touches them. `on_bytes` is called with (bytes read, bytes to read).

        Raises `ImportRejected`, with the line, for a malformed or cut-off file: nothing was written. Interrupted, import
        again: the rest comes in.
        """

        def adopt(fields: Mapping[str, Json] | None) -> bool:
            return limits.adopt(self._db, policy_from_fields(fields, file))

        return bring_in(self._db, file, hold=hold, on_bytes=on_bytes, on_checked=adopt)

    def import_aegis(
        self,
        file: str | os.PathLike[str] | StagedState,
        *,
        rest: str | os.PathLike[str] | None = None,
        on_bytes: OnBytes | None = None,
        on_sessions: OnSessions | None = None,
    ) -> ImportReport:
        """Import a state file of the orchestrator that this store replaces: JSON of `version: 1`, plain or gzip, or one
        that `staged` has read already.

        The file is first read to its end, in flat memory; then each session comes in with its events, in one transaction,
        whole or not at all. Seq, times, ids, tenant and owner are kept, other fields of a session go to its metadata. Over the
        cap the newest events stay. What the store has already must be equal and is not written again; newer events are
        added; what was pruned does not return. A session with a gap, a duplicate or a value that cannot be is named in the
        report and left out.

        `rest` names a new file for what an event log does not take: an object of all other parts of the file (`actions`,
        `pauseInterventions`), the text of each byte for byte as it stands there; `{}` if there are none. It has mode 0600, and
        stands under its name, synced, once the import has come to its end, also where sessions were refused; else not at all.
        (With a file that `staged` has read, give it to that.)

        `on_bytes` is called while reading with (bytes read, bytes in all), `on_sessions` while writing with (sessions done,
        sessions in all). Raises `ImportRejected` for a malformed file, and for `rest` `InvalidInput` if its name is taken,
        `StoreFull` and `FileUnavailable` if it cannot be written: nothing was imported, unless it failed at the very end, when
        the file was to get its name. Interrupted, the sessions done so far are in, and importing again brings the others.
        """
        self._db.check_writable()
        if isinstance(file, StagedState) and rest is not None:
            raise InvalidInput("the file was read already: give rest to `staged`, which reads it")
        with nullcontext(file) if isinstance(file, StagedState) else staged(file, on_bytes, rest=rest) as state:
            return bring_aegis_in(self._db, state, on_sessions)

    def backup(self, path: str | os.PathLike[str], *, on_progress: OnProgress | None = None) -> BackupReport:
        """Copy the store, as it is at this moment, to a new file at `path`, beside running writers. `restore` makes it a store.

        The copy is read to its end, every record and event, before it gets its name, mode 0600; a file is never replaced.
        Writers go on meanwhile. Their log cannot be begun anew while pages are copied, and takes what they write in
        that time. A million events of 1 KB took 38 s here, 5 of them for the pages. Memory is flat. `on_progress` is
        called with (bytes done, bytes in all).

        Raises `InvalidInput` if the name is taken, `StoreFull`, `FileUnavailable`, `StoreUnavailable`, and `StoreCorrupt` for
        any damage of the store. Then, and when it is interrupted, nothing is left. After `kill -9` a draft (NAME.00-….tmp)
        may stay behind; a backup to that name removes it when it is ten minutes old, but never one at which somebody works. On
        PostgreSQL it is `InvalidInput`: `pg_dump` does that there.
        """
        Server.refuse(self._db.target, "backup")
        return backups.backup(self._db, path, on_progress=on_progress)
