"""`EventStore`: the public surface, a table of contents. Each method says what is promised, and calls the room that does it."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import ClassVar, Final, Self

from aegis_store import append, creation, driver, gate, migrate, read, sessions, stats
from aegis_store.database import Database, Durability, Target
from aegis_store.errors import InvalidInput, StoreBusy, StoreFull, StoreUnavailable, shown
from aegis_store.events import (
    UNCHANGED,
    Event,
    Json,
    NewEvent,
    Page,
    Session,
    SessionPage,
    Status,
    StoreStats,
    Unchanged,
    Unlimited,
    checked_count,
)
from aegis_store.read import OnGap
from aegis_store.retention import limits
from aegis_store.retention import plan as planning
from aegis_store.retention import prune as pruning
from aegis_store.retention.limits import PolicyLoss
from aegis_store.retention.plan import PrunePlan
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.retention.prune import OnProgress, PruneReport
from aegis_store.schema import HEAD
from aegis_store.settings import DEFAULT_BUSY_TIMEOUT_MS, DEFAULT_PAGE_EVENTS
from aegis_store.transfer.aegis_file import OnBytes, staged
from aegis_store.transfer.aegis_import import ImportReport, OnSessions, bring_in

log: Final = logging.getLogger("aegis_store")


class EventStore:
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

    def __init__(self, db: Database) -> None:
        """Not for callers: `open` looks at the file before anything touches it."""
        self._db = db

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str],
        *,
        durability: Durability = "power",
        create: bool = True,
        read_only: bool = False,
        prune_on_open: bool = True,
        busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
    ) -> Self:
        """Open the store at `target`, a path or a SQLAlchemy URL such as `sqlite:///aegis.db`.

        A store that does not exist is created, whole or not at all, with mode 0600, and missing directories with 0700;
        not with `create=False` or `read_only=True`.

        `durability`: what an acknowledged append survives. "power": a power cut, for one fsync each; "process": the death
        of the process, while the last commits before a power cut may be lost. `read_only` changes no content; where the
        directory cannot be written either, a cleanly closed store opens and one in use is refused. `prune_on_open` removes
        what the retention policy asks for (the events of sessions that ended) before returning, and logs one line if
        anything went; when the store is busy or the disk full, it is put off with a warning in the log.
        `busy_timeout_ms`: how long a write waits for other writers.

        Raises `StoreUnavailable` (no such store, no permission), `NotAnAegisStore` (a directory, a text file, another
        program's database), `StoreCorrupt` (damaged or empty), `SchemaMismatch` (older or newer than this library: run the
        command that it names). The file is then as it was.
        """
        if durability not in ("power", "process"):
            raise InvalidInput(f"durability must be 'power' or 'process', not {shown(durability)}")
        checked_count("busy_timeout_ms", busy_timeout_ms, 0, 2**31 - 1)
        place = Target.of(target)
        if create and not read_only:
            creation.ensure(place)
        gate.check(place)
        db = Database(
            place,
            durability=durability,
            read_only=read_only,
            immutable=read_only and _must_be_immutable(place),
            busy_timeout_ms=busy_timeout_ms,
        )
        store = cls(db)
        if prune_on_open and not read_only:
            try:
                store._prune_at_start()
            except (StoreBusy, StoreFull) as error:
                log.warning("startup job put off, the store is open all the same: %s", error)
            except BaseException:
                store.close()
                raise
        return store

    @staticmethod
    def upgrade(target: str | os.PathLike[str]) -> tuple[str | None, str]:
        """Move the store at `target` to the schema of this library, in one transaction; create it if there is none.

        Returns the revisions before (None: there was no store) and after. For deploys, not for processes: those refuse a
        store of another schema when they open it. Raises what `open` raises, and `SchemaMismatch` only for a newer store.
        """
        place = Target.of(target)
        if not gate.exists(place) and creation.create(place):
            return None, HEAD
        before = gate.revision(place)
        if before != HEAD:
            migrate.upgrade(place)
        return before, gate.revision(place)

    def close(self) -> None:
        """Close the store; every acknowledged append is on disk already. Calling it again does nothing."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventStore {shown(str(self._db.target))}>"

    # Sessions

    def create_session(
        self,
        session_id: str | None = None,
        *,
        tenant: str = "default",
        owner: str = "default",
        status: str = "running",
        metadata: Mapping[str, Json] | None = None,
        max_events: int | Unlimited | None = None,
    ) -> Session:
        """Create a session. Without an id it gets a fresh UUID that sorts by time.

        Ids, tenant and owner are 1 to 512 bytes of UTF-8 without control characters. `metadata` is a JSON object of up to
        64 KiB; it is written again with every append, so keep it small. `max_events` is the session's own cap: None
        inherits the policy's.

        Raises `SessionExists` if the id is taken, `InvalidSession` or `InvalidPolicy` for values that cannot be.
        """
        record = sessions.new_record(
            session_id, tenant=tenant, owner=owner, status=status, metadata=metadata, max_events=max_events
        )
        with self._db.write() as conn:
            return sessions.create(conn, record)

    def ensure_session(
        self,
        session_id: str,
        *,
        tenant: str = "default",
        owner: str = "default",
        status: str = "running",
        metadata: Mapping[str, Json] | None = None,
        max_events: int | Unlimited | None = None,
    ) -> Session:
        """The session of that id: as it stands, or created as by `create_session`. Safe to call from many processes at once.

        A standing session keeps its status, metadata and cap. Raises `SessionExists` if it belongs to another tenant or
        owner, and what `create_session` raises.
        """
        if session_id is None:
            raise sessions.missing_id()
        record = sessions.new_record(
            session_id, tenant=tenant, owner=owner, status=status, metadata=metadata, max_events=max_events
        )
        return sessions.ensure(self._db, record)

    def get_session(self, session_id: str) -> Session:
        """The session as it stands now. Raises `SessionNotFound`."""
        with self._db.read() as conn:
            return sessions.get(conn, session_id)

    def list_sessions(
        self,
        *,
        statuses: Collection[str] | None = None,
        updated_after: datetime | None = None,
        limit: int = DEFAULT_PAGE_EVENTS,
        cursor: str | None = None,
    ) -> SessionPage:
        """Sessions by `updated_at`, newest first, `limit` (1 to 1,000) at a time; `cursor` is that of the page before.

        `updated_at` moves with a session's own record, not with its events. A session that is updated while you page moves
        to the front: it may come again or not at all, others are not affected. Raises `InvalidInput`, `InvalidSession`.
        """
        with self._db.read() as conn:
            return sessions.page(conn, statuses=statuses, updated_after=updated_after, limit=limit, cursor=cursor)

    def set_status(self, session_id: str, status: str) -> Session:
        """Set a session's status; any may follow any. Setting the one that it has changes nothing.

        `ended_at` is the moment when it became `closed`, `completed` or `failed`, and is None again once it is not. Events
        of such a session are removed by the first open or prune from `terminal_grace` later on.

        Raises `SessionNotFound`, `InvalidSession`.
        """
        state = Status.of(status)
        with self._db.write() as conn:
            return sessions.set_status(conn, session_id, state)

    def update_session(
        self,
        session_id: str,
        *,
        metadata: Mapping[str, Json] | Unchanged = UNCHANGED,
        max_events: int | Unlimited | Unchanged | None = UNCHANGED,
        hold: bool | Unchanged = UNCHANGED,
    ) -> Session:
        """Replace the fields that are given. A session on `hold` is not pruned; its cap still holds.

        A lower `max_events` removes the oldest events in slices first, each committed by itself, and is set with the last
        one: interrupted, some have gone and the old cap stands. Raises `SessionNotFound`, `InvalidSession`, `InvalidPolicy`.
        """
        changes = sessions.changes_of(metadata=metadata, max_events=max_events, hold=hold)
        return limits.change_session(self._db, session_id, changes)

    # Events

    def append(
        self,
        session_id: str,
        type: str,
        payload: Json,
        *,
        event_id: str | None = None,
        expected_seq: int | None = None,
        occurred_at: datetime | None = None,
        run_id: str | None = None,
        payload_ref: str | None = None,
    ) -> Event:
        """Append an event to a session, and return it as stored. It is durable when this returns.

        `payload` is any JSON value; what is read later equals it, type for type. The returned event holds the object that
        was passed, not a copy. `type`, `event_id` and `run_id` are 1 to 512 bytes of UTF-8, `payload_ref` up to 4,096.
        `occurred_at` is an aware datetime, by default the moment of the call.

        `expected_seq=n` appends only if the session's `last_seq` is n (0: no event yet). An `event_id` makes a retry
        harmless: if the session retains an event of that id with the same type, payload, run_id and payload_ref, that event
        is returned and nothing is appended, whatever `expected_seq` says. Ids are remembered as long as their events are
        retained. A terminal session takes events too, and stays terminal.

        At the session's cap the oldest event goes in the same transaction.

        Raises `SessionNotFound`, `InvalidEvent` with the path inside the payload, `EventTooLarge`, `SequenceConflict`,
        `EventIdConflict`. Then nothing was appended. Interrupted (KeyboardInterrupt), it happened or did not.
        """
        prepared = append.prepare(session_id, type, payload, event_id, expected_seq, occurred_at, run_id, payload_ref)
        return append.append(self._db, prepared)

    def append_many(self, session_id: str, events: Iterable[NewEvent], *, expected_seq: int | None = None) -> list[Event]:
        """Append events in one transaction, all or none, in order; the list of them as stored.

        `expected_seq` is the `last_seq` before the first. Events whose `event_id` is known come back as they stand; if all
        are, `expected_seq` is not looked at, so that repeating the call is harmless (unless the batch is larger than the
        session's cap, and part of it has gone again). No event of others goes in between. `events` is read to its end before
        the transaction begins. Raises what `append` raises; then nothing was appended.
        """
        return append.append_many(self._db, session_id, append.prepare_all(session_id, events), expected_seq)

    def read(
        self,
        session_id: str,
        *,
        after_seq: int | None = None,
        limit: int = DEFAULT_PAGE_EVENTS,
        types: Collection[str] | None = None,
        on_gap: OnGap = "raise",
    ) -> Page:
        """Up to `limit` (1 to 1,000) events of a session after `after_seq`, by rising seq.

        None starts at the oldest retained event. A number is the last seq that the reader has seen, and is honoured: if
        events after it were removed, `EventsTruncated` is raised, or with `on_gap="skip"` the page starts at `first_seq` and
        `missed` counts them. A cursor beyond the last event raises `CursorAhead`.

        With `types` a page looks at 10,000 events at the most: it may come back short, even empty, with `has_more`; go on
        from `next_after_seq`. A page is one snapshot. Raises `SessionNotFound`, `InvalidInput`.
        """
        with self._db.read() as conn:
            return read.page(conn, session_id, after_seq=after_seq, limit=limit, types=types, on_gap=on_gap)

    def read_all(
        self, *, after_position: int | None = None, limit: int = DEFAULT_PAGE_EVENTS, on_gap: OnGap = "raise"
    ) -> list[Event]:
        """Up to `limit` (1 to 1,000) events of all sessions after `after_position`, by rising position.

        None starts at the oldest retained event. A number is the last position that the reader has seen: if an event after
        it was removed, `EventsTruncated` is raised, or with `on_gap="skip"` what is retained is returned. A cursor beyond the
        last position ever given raises `CursorAhead`. Raises `InvalidInput`.
        """
        with self._db.read() as conn:
            return read.page_of_all(conn, after_position=after_position, limit=limit, on_gap=on_gap)

    # Retention

    def retention_policy(self) -> RetentionPolicy:
        """The policy in force."""
        with self._db.read() as conn:
            return limits.policy_in_force(conn)

    def set_retention_policy(self, policy: RetentionPolicy) -> None:
        """Put a policy in force, for all processes at once.

        A lower `max_events` removes the oldest events of the sessions that it affects in slices first, each committed by
        itself, and is set with the last one: interrupted, some have gone and the old policy stands. Raises `InvalidPolicy`.
        """
        limits.set_policy(self._db, policy)

    def plan_policy(self, policy: RetentionPolicy) -> PolicyLoss:
        """What putting `policy` in force would remove at once, because its cap is lower. Removes nothing."""
        with self._db.read() as conn:
            return limits.loss(conn, policy)

    def plan_prune(self, *, now: datetime | None = None) -> PrunePlan:
        """What `prune` would remove at `now` (an aware datetime, by default the present). Removes nothing."""
        with self._db.read() as conn:
            return planning.plan(conn, now)

    def prune(self, plan: PrunePlan | None = None, *, on_progress: OnProgress | None = None) -> PruneReport:
        """Carry out `plan`, by default a fresh one.

        Works in small transactions that let writers through, and looks at each session again before it removes anything: one
        that was reopened or put on hold since keeps its events, and so do events that came after the plan. `on_progress` is
        called with (events removed, events planned) after each transaction. Interrupted, what went is accounted for and the
        next prune does the rest; a second one with the same plan removes nothing.
        """
        self._db.check_writable()
        if plan is not None and not isinstance(plan, PrunePlan):
            raise InvalidInput(f"plan must be a PrunePlan, as plan_prune gives it, not {type(plan).__name__}")
        return pruning.carry_out(self._db, self.plan_prune() if plan is None else plan, on_progress)

    def _prune_at_start(self) -> None:
        plan = self.plan_prune()
        if plan.truncations:
            report = self.prune(plan)
            log.info(
                "startup job removed %d events (%d bytes) of %d terminal sessions in %.2f s (terminal_grace %s) from %s",
                report.events_removed,
                report.bytes_removed,
                report.sessions_pruned,
                report.duration_s,
                plan.policy.terminal_grace,
                shown(str(self._db.target)),
            )

    # Transfer

    def import_aegis(
        self,
        file: str | os.PathLike[str],
        *,
        on_bytes: OnBytes | None = None,
        on_sessions: OnSessions | None = None,
    ) -> ImportReport:
        """Import a state file of the orchestrator that this store replaces: JSON of `version: 1`, plain or gzip.

        The file is first read to its end, in flat memory; then each session comes in with its events, in one transaction,
        whole or not at all. Seq, times, ids, tenant and owner are kept, other fields of a session go to its metadata. Over the
        cap the newest events stay. What the store has already must be equal and is not written again; newer events are
        added; what was pruned does not return. A session with a gap, a duplicate or a value that cannot be is named in the
        report and left out.

        `on_bytes` is called while reading with (bytes read, bytes in all), `on_sessions` while writing with (sessions done,
        sessions in all). Raises `ImportRejected` for a malformed file: nothing was imported. Interrupted, the sessions done so
        far are in, and importing again does the rest.
        """
        self._db.check_writable()
        with staged(file, on_bytes) as state:
            return bring_in(self._db, state, on_sessions)

    # Health

    def stats(self) -> StoreStats:
        """The store at a glance. Looks at the session records, not at the events."""
        with self._db.read() as conn:
            return stats.stats(conn, self._db.target)


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
