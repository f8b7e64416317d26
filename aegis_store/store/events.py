"""The part of `EventStore` that concerns events."""

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import Any, Literal, overload

from aegis_store import append, follow, read
from aegis_store.events import Event, EventsMissed, Json, NewEvent, Page, StorePage
from aegis_store.follow import Following
from aegis_store.metrics import now_ns
from aegis_store.read import OnGap
from aegis_store.settings import DEFAULT_PAGE_EVENTS
from aegis_store.store.base import OpenStore


class Events(OpenStore):
    """Events: append, read and follow."""

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
        `EventIdConflict`, `RedactionFailed`. Then nothing was appended. Interrupted (KeyboardInterrupt), it happened or did
        not.
        """
        began_ns = now_ns()
        db = self._db
        given = (session_id, type, payload, event_id, expected_seq, occurred_at, run_id, payload_ref)
        event = append.append(db, append.prepare(*given, redact=db.redact))
        db.metrics.appended(began_ns)
        return event

    def append_many(self, session_id: str, events: Iterable[NewEvent], *, expected_seq: int | None = None) -> list[Event]:
        """Append events in one transaction, all or none, in order; the list of them as stored.

        `expected_seq` is the `last_seq` before the first. Events whose `event_id` is known come back as they stand; if all
        are, `expected_seq` is not looked at, so that repeating the call is harmless (unless the batch is larger than the
        session's cap, and part of it has gone again). No event of others goes in between. `events` is read to its end before
        the transaction begins. Raises what `append` raises; then nothing was appended.
        """
        began_ns = now_ns()
        prepared = append.prepare_all(session_id, events, self._db.redact)
        appended = append.append_many(self._db, session_id, prepared, expected_seq)
        self._db.metrics.appended(began_ns)
        return appended

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

        With `types` a page looks at 1,000 events at the most: it may come back short, even empty, with `has_more`; go on
        from `next_after_seq`. A page is one snapshot. Raises `SessionNotFound`, `InvalidInput`.
        """
        with self._db.read() as conn:
            page = read.page(conn, session_id, after_seq=after_seq, limit=limit, types=types, on_gap=on_gap)
        if page.missed:
            self._db.metrics.read_truncated()
        return page

    def read_all(
        self, *, after_position: int | None = None, limit: int = DEFAULT_PAGE_EVENTS, on_gap: OnGap = "raise"
    ) -> StorePage:
        """Up to `limit` (1 to 1,000) events of all sessions after `after_position`, by rising position: a list of them, which
        has the cursor for the next page as `next_after_position`.

        None starts at the oldest retained event. A number is the last position that the reader has seen: if an event after
        it was removed, `EventsTruncated` is raised, or with `on_gap="skip"` what is retained is returned. A cursor beyond the
        last position ever given raises `CursorAhead`. Raises `InvalidInput`.
        """
        settled = self._db.settled_position()
        with self._db.read() as conn:
            page = read.page_of_all(conn, after_position=after_position, limit=limit, on_gap=on_gap, settled=settled)
        if page.is_truncated:
            self._db.metrics.read_truncated()
        return page.events

    @overload
    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: Literal["raise"] = "raise",
    ) -> Iterator[Event]: ...

    @overload
    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: Literal["skip"],
    ) -> Iterator[Event | EventsMissed]: ...

    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: OnGap = "raise",
    ) -> Iterator[Event | EventsMissed]:
        """The events of a session by rising seq, or of the whole store by rising position: what is stored, then what comes.

        Each event comes once, whichever process appended it: at once from this one, within some 50 ms from others. `after` is
        a cursor, a seq or a position, and is honoured as by `read` and `read_all`; None starts at the oldest retained event.
        `last=n` starts with the last n retained events instead (0: with what comes). `types` lets only those of a session
        through. It ends when no event has come for `timeout` seconds of waiting for one (0: with what is stored; None:
        never), and when another thread closes the store.

        Between two events it holds no snapshot, so a follower may take any time; what retention removes meanwhile, unread, is
        told. `on_gap="raise"` raises `EventsTruncated`; with "skip" an `EventsMissed` stands in its place in the stream. Of the
        whole store without a cursor, what was removed before the call does not count.

        On a server a connection that is lost is made anew, and nothing is skipped. When the server does not answer,
        `StoreUnavailable` ends the iterator: follow again with `after`, the last event that you have seen. Of the whole store,
        an event waits for those of lower positions whose transactions are under way.

        At the call it raises `InvalidInput`, `SessionNotFound`, `CursorAhead`, `EventsTruncated`; later `SessionNotFound`
        when the session is deleted, and the other two when they come to be true. Use each iterator in one thread at a time.
        """
        timeout_s = follow.checked_timeout_s(timeout)
        follower = self._following(session_id, after=after, last=last, types=types, on_gap=on_gap)
        return follow.stream(self._db, follower, timeout_s)

    def _following(self, session_id: str | None, **how: Any) -> Following:
        return follow.following(self._db, session_id, **how)
