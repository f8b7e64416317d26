"""The part of `EventStore` that concerns sessions."""

from collections.abc import Collection, Mapping
from datetime import datetime

from aegis_store import sessions
from aegis_store.events import UNCHANGED, Json, Session, SessionPage, Status, Unchanged, Unlimited
from aegis_store.retention import limits
from aegis_store.retention.delete import delete_session
from aegis_store.settings import DEFAULT_PAGE_EVENTS
from aegis_store.store.base import OpenStore


class Sessions(OpenStore):
    """Sessions: create, look up, list, change, delete."""

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

    def delete_session(self, session_id: str) -> None:
        """Delete a session and all of its events. Its seq is not reused: an id that is created again continues the count.

        The session is gone for everyone at once, in one small transaction; then its events go in slices, each committed by
        itself, and the next prune finishes what was interrupted. What is left is a tombstone of id, tenant, owner and seq;
        to other tenants and owners the id stays taken. Raises `SessionNotFound`, `InvalidSession` for a session on hold.
        """
        delete_session(self._db, session_id)
