"""`EventStore`: the public surface. Each method says what is promised, and calls the room that does it.

    sessions    create_session ensure_session get_session list_sessions set_status update_session delete_session
    events      append append_many read read_all follow
    retention   retention_policy set_retention_policy plan_policy plan_prune prune prune_history reclaim
    transfer    export import_lines import_aegis backup
    overview    overview session_overview stats health verify
    here        open scoped upgrade compact restore copy doctor close

Each line is a file beside this one; `base` is what they stand on, `scoped` what they are to one tenant and owner.
"""

import logging
import os
from datetime import timedelta
from types import TracebackType
from typing import Any, ClassVar, Self, cast

from aegis_store import backup as backups
from aegis_store import creation, driver, file_system, gate, migrate, redaction
from aegis_store.backup import BackupReport
from aegis_store.backup import OnProgress as OnBackedUp
from aegis_store.connections import Durability
from aegis_store.copying.run import CopyReport, copy
from aegis_store.copying.run import OnProgress as OnCopied
from aegis_store.database import Database
from aegis_store.doctor import DoctorReport, doctor
from aegis_store.errors import InvalidInput, StoreBusy, StoreFull, StoreUnavailable, shown
from aegis_store.events import checked_count
from aegis_store.log import log
from aegis_store.redaction import Redact
from aegis_store.retention.compact import CompactReport, compact
from aegis_store.retention.compact import OnProgress as OnCompacted
from aegis_store.retention.jobs import run_job
from aegis_store.retention.maintenance import Maintenance
from aegis_store.schema import HEAD
from aegis_store.scope import Scope
from aegis_store.server import Server
from aegis_store.server_doctor import doctor as doctor_of_server
from aegis_store.settings import DEFAULT_BUSY_TIMEOUT_MS, DEFAULT_MAINTAIN_EVERY
from aegis_store.store.scoped import Parts, ScopedStore
from aegis_store.target import Target


class EventStore(Parts):
    """The sessions and events of agent platforms in one SQLite file, bounded by a retention policy.

    Safe for threads: writers of one process take turns, readers never wait for writers. Safe for processes: open the same
    path in each, but never carry an open store through a fork. A context manager.

    Every method raises `StoreClosed` after `close()`, `StoreCorrupt` when it meets damage and `StoreUnavailable` when the
    file cannot be read or written. Every method that writes raises `StoreBusy` when other writers held the store for longer
    than the busy timeout, `StoreFull` when the disk is full and `ReadOnlyStore` when the store was opened read-only; it
    has then changed nothing, but for what its own text says of slices.
    """

    sqlite_version: ClassVar[str] = driver.VERSION
    """The SQLite that this process works with: the newer of the standard library's and the wheel `pysqlite3`'s."""

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str],
        *,
        durability: Durability = "power",
        create: bool = True,
        read_only: bool = False,
        prune_on_open: bool = True,
        maintain_every: timedelta | None = DEFAULT_MAINTAIN_EVERY,
        busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
        allow_network_file_system: bool = False,
        redact: Redact | None = None,
    ) -> Self:
        """Open the store at `target`, a path or a SQLAlchemy URL such as `sqlite:///aegis.db`.

        A store that does not exist is created, whole or not at all, with mode 0600, and missing directories with 0700;
        not with `create=False` or `read_only=True`.

        `durability`: what an acknowledged append survives. "power": a power cut, for one fsync each; "process": the death
        of the process, while the last commits before a power cut may be lost. `read_only` changes no content; where the
        directory cannot be written either, a cleanly closed store opens and one in use is refused. `prune_on_open` removes
        what the retention policy asks for (the events of sessions that ended, say) before returning, and logs one line if
        anything went; when the store is busy or the disk full, it is put off with a warning in the log. `maintain_every`: a
        thread of this store prunes that often, until `close()`; of several processes one does it at a time. For sessions that
        ended less than that ago it takes neither `terminal_grace` nor `forget_sessions_after` to be over. A process that dies
        at it is waited for a minute. None: never, and never when read-only. `busy_timeout_ms`: how long a write
        waits for other writers. `allow_network_file_system`: a store on NFS, SMB, 9p and the like is refused before SQLite
        touches it, unless this is True or $AEGIS_STORE_ALLOW_NETWORK_FILE_SYSTEM is 1. One machine alone may open it then.

        `redact` is called with (session_id, type, payload) for each event to be stored, by `append`, `append_many`,
        `import_lines` and `import_aegis`, before anything else looks at the payload; what it returns is checked and stored in
        its place. Metadata of sessions does not pass through it. It must not change what it is given, must give the same for
        the same, and its own results back as they are, since retries and imports bring payloads to it again. It runs in the
        thread of the caller, or in the event loop for an awaited append, and several at once. When it raises, `RedactionFailed`
        says where, and nothing is stored.

        Raises `StoreUnavailable` (no such store, no permission, a network file system), `NotAnAegisStore` (a
        directory, a text file, another program's database), `StoreCorrupt` (damaged or empty), `SchemaMismatch`
        (older or newer than this library: run the command that it names). The file is then as it was.
        """
        if durability not in ("power", "process"):
            raise InvalidInput(f"durability must be 'power' or 'process', not {shown(durability)}")
        checked_count("busy_timeout_ms", busy_timeout_ms, 0, 2**31 - 1)
        if maintain_every is not None and (not isinstance(maintain_every, timedelta) or maintain_every <= timedelta(0)):
            raise InvalidInput(f"maintain_every must be a timedelta over 0, or None, not {shown(maintain_every)}")
        server = Server.of(target)
        if server is not None:
            options = {"durability": durability, "busy_timeout_ms": busy_timeout_ms, "redact": redaction.checked(redact)}
            db = _on_server(server, create=create, read_only=read_only, **options)
            return cls(db)._begun(prune_on_open, maintain_every)
        place = Target.of(target)
        file_system.refuse_network(place, allow=allow_network_file_system)
        if create and not read_only:
            creation.ensure(place)
        gate.check(place)
        db = Database(
            place,
            durability=durability,
            read_only=read_only,
            immutable=read_only and _must_be_immutable(place),
            busy_timeout_ms=busy_timeout_ms,
            redact=redaction.checked(redact),
        )
        return cls(db)._begun(prune_on_open, maintain_every)

    @staticmethod
    def upgrade(target: str | os.PathLike[str], *, on_progress: migrate.OnMigrated | None = None) -> tuple[str | None, str]:
        """Move the store at `target` to the schema of this library, in one transaction; create it if there is none.

        Writers wait meanwhile, readers see it as it was. Where another process moves it, this one waits, for up to ten
        minutes, and finds it done. `on_progress` is called with (events looked at, events to look at), an estimate.

        Returns the revisions before (None: there was no store) and after. For deploys, not for processes: those refuse a
        store of another schema when they open it. Raises what `open` raises, and `SchemaMismatch` only for a newer store.
        """
        server = Server.of(target)
        if server is not None:
            server.check_driver()
            from aegis_store.postgres import deploy  # noqa: PLC0415 - psycopg is not everybody's

            return deploy.upgrade(server)
        place = Target.of(target)
        file_system.refuse_network(place)
        if not gate.exists(place) and creation.create(place):
            return None, HEAD
        before = gate.revision(place)
        if before != HEAD:
            migrate.upgrade(place, on_progress)
        return before, gate.revision(place)

    @staticmethod
    def compact(target: str | os.PathLike[str], *, on_progress: OnCompacted | None = None) -> CompactReport:
        """Pack the store at `target`, which nobody may have open: its events then take the room that a fresh store takes.

        The store is verified, and refused if it is damaged. A verified copy is made beside it and written back in one
        transaction, so that whatever happens the store is whole, as it was or packed. Takes room for two copies,
        which is checked before. `on_progress` is called with (bytes done, bytes in all). Raises `StoreBusy` if
        somebody has it open, `StoreFull`, `InvalidInput` for a store on PostgreSQL (`VACUUM (FULL)` does that there), and what
        `open` raises; it is then as it was.
        """
        Server.refuse(target, "compact")
        place = Target.of(target)
        file_system.refuse_network(place)
        return compact(place, on_progress=on_progress)

    @staticmethod
    def doctor(target: str | os.PathLike[str]) -> DoctorReport:
        """Look over the store at `target` and what it stands on: also where it does not open. Changes nothing.

        SQLite, file system, room, permissions and owners, schema, pragmas, log, the oldest reader, free pages, budget, clock,
        files left behind. What is wrong is in the report, not raised. Reads no event but the newest: see `verify` for that.
        Who reads is not looked at where this process has the store open. Raises `StoreUnavailable` for what is no path.

        Of a store on PostgreSQL: connection, TLS, server, durability, permissions, schema, triggers, size, long transactions,
        replication slots, dead rows, room for connections, budget, clocks.
        """
        server = Server.of(target)
        return doctor(Target.of(target)) if server is None else doctor_of_server(server)

    @staticmethod
    def restore(
        backup: str | os.PathLike[str], target: str | os.PathLike[str], *, on_progress: OnBackedUp | None = None
    ) -> BackupReport:
        """Make a store at `target`, where nothing may stand, of a backup; the backup stays as it is.

        The copy is verified before it gets its name, mode 0600. One of an older schema is moved to that of this library first.
        A reader whose cursor is beyond what the backup holds gets `CursorAhead`, until as many events have come again:
        positions and seqs of events that came after the backup are given anew. `on_progress` as for `backup`.
        Raises `InvalidInput` if something stands at `target`, `StoreUnavailable` if the log of a store that is gone lies
        there, `StoreFull`, `FileUnavailable`, `StoreCorrupt` for any damage of the backup, and what `open` raises of it.
        Then, and when it is interrupted, nothing is left.
        """
        Server.refuse(target, "restore")
        place = Target.of(target)
        file_system.refuse_network(place)
        return backups.restore(Target.of(backup), place, on_progress=on_progress)

    @staticmethod
    def copy(
        source: str | os.PathLike[str], target: str | os.PathLike[str], *, on_progress: OnCopied | None = None
    ) -> CopyReport:
        """Copy the store at `source` into the one at `target`, each on SQLite or PostgreSQL; a target that is missing is made.

        All comes along as it stands: sessions with their records, ranges, caps, holds and what was removed of them, events with
        seq, position, times and ids, tombstones, prune history, the policy. Cursors stay good. From PostgreSQL to SQLite,
        positions that no event ever had (of appends that were refused) are taken for removed: cursors of the whole store below
        them get `EventsTruncated`, with the reason "before_copy".

        The source is read in one snapshot, in flat memory; its writers go on, and what they write meanwhile is not in the
        copy. Nobody is to use the target before it is done. Events come in some hundred at a time, each batch in one
        transaction, in the order of their positions. Interrupted, call it again: it goes on after what is there. So it does
        when the source has gone on, as long as it holds what follows what was copied. At the end both are read side by side,
        and each record and event is compared. No hook redacts, and nothing is pruned.

        `on_progress` is called with (events done, events to do): each is written, then compared. Raises `InvalidInput` if
        source and target are one store, or the target holds what is no part of the source; it is then as it was.
        `StoreUnavailable` if the target is not equal in the end, or somebody else writes to it, `StoreBusy`, `StoreFull`,
        `StoreCorrupt` for damage, and what `open` raises of both: what was copied stays.
        """
        with (
            EventStore.open(source, read_only=True) as read,
            EventStore.open(target, prune_on_open=False, maintain_every=None) as written,
        ):
            return copy(read._db, written._db, on_progress)

    def scoped(self, *, tenant: str, owner: str) -> ScopedStore:
        """The same surface for the sessions of one tenant and one owner alone: those of others do not exist there.

        Costs nothing and needs no closing: it ends with this store. What each method does in a scope, `ScopedStore` says.
        Raises `InvalidSession` for what can be no tenant or owner.
        """
        return ScopedStore(self, Scope.of(tenant, owner))

    def close(self) -> None:
        """Close the store; every acknowledged append is on disk already. Calling it again does nothing.

        Waits for a write under way; a maintenance that is at work ends after its slice.
        """
        if self._maintenance is not None:
            self._maintenance.stop()
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventStore {shown(str(self._db.target))}>"

    def _begun(self, prune_on_open: bool, maintain_every: timedelta | None) -> Self:
        """This store, with the startup job done and its maintenance started; closed if that fails."""
        try:
            if prune_on_open and not self._db.read_only:
                self._prune_at_start()
            if maintain_every is not None and not self._db.read_only:
                self._maintenance = Maintenance(self._db, maintain_every)
        except BaseException:
            self.close()
            raise
        return self

    def _prune_at_start(self) -> None:
        try:
            run_job(self._db, self.plan_prune(), trigger="startup")
        except (StoreBusy, StoreFull) as error:
            told = "startup job put off, the store is open all the same: %s"
            log(logging.WARNING, "startup_put_off", self._db.target, told, error, error=type(error).__name__)


def _on_server(server: Server, **options: Any) -> Database:
    """The connections to a store on PostgreSQL: what is asked of both kinds is asked of it by the name of the other."""
    server.check_driver()
    from aegis_store.postgres.opening import open_database  # noqa: PLC0415 - psycopg is not everybody's

    return cast(Database, open_database(server, **options))


def _must_be_immutable(target: Target) -> bool:
    """Whether SQLite cannot make the side files that reading a WAL database takes, and may do without them."""
    if os.access(target.path.parent, os.W_OK):
        return False
    if gate.wal_is_live(target):
        raise StoreUnavailable(
            store=str(target),
            detail="it is in use or was not closed cleanly, and its directory cannot be written: open it where it can be",
        )
    return True
