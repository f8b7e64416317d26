"""The part of `EventStore` that tells how the store is."""

from aegis_store import overview, stats
from aegis_store.events import Health, StoreStats, checked_count
from aegis_store.overview import SessionOverview, StoreOverview
from aegis_store.retention.health import health
from aegis_store.settings import MAX_PAGE_EVENTS
from aegis_store.store.base import OpenStore
from aegis_store.verify.report import VerifyReport
from aegis_store.verify.run import OnVerified, verify


class Overview(OpenStore):
    """The store at a glance."""

    def stats(self) -> StoreStats:
        """The store at a glance, and what this `EventStore` has done since it was opened.

        `stats().as_metrics()` is a plain mapping, for the metrics of a host. Looks at the
        session records, and at an event of each session that has lost some of its events and holds others.
        """
        with self._db.read() as conn:
            return stats.stats(conn, self._db)

    def overview(self) -> StoreOverview:
        """The store at a glance: what it holds, how full it is, what has been going on, what was removed. One snapshot.

        However many events there are, it looks at the newest 2,000 and, to say when how many came, at some hundred others;
        of these it reads no payload and verifies no checksum. Beside that it costs 0.4 µs a session: with 1,000,000
        events of 2,000 sessions some 15 ms here, of 20,000 sessions 35.
        """
        with self._db.read() as conn:
            return overview.of_store(conn, self._db, self._maintenance.state if self._maintenance else None)

    def session_overview(self, session_id: str, *, last: int = 10) -> SessionOverview:
        """A session at a glance: its record, its life, and what its newest 1,000 events are. One snapshot.

        Of those it reads no payload and verifies no checksum, but for the `last` (0 to 1,000) events, which come as by `read`.
        Raises `SessionNotFound`, `InvalidInput`.
        """
        checked_count("last", last, 0, MAX_PAGE_EVENTS)
        with self._db.read() as conn:
            return overview.of_session(conn, session_id, last)

    def health(self) -> Health:
        """Whether the store is well, and what to look at if not. Looks at no session: it costs the same in every store."""
        with self._db.read() as conn:
            return health(conn, self._db, self._maintenance.state if self._maintenance else None)

    def verify(self, *, on_progress: OnVerified | None = None) -> VerifyReport:
        """Read the whole store, and tell what in it is not what was written. Changes nothing; works beside writers.

        Looks at SQLite's structure (`PRAGMA integrity_check`, references), at tables, triggers and views, whether they are this
        library's, and at all records and events: ranges without a gap, order, counters, caps, JSON, checksums. Damage does not
        end it but is in the report; `StoreCorrupt` is raised only where the file cannot be opened at all.

        A million events of 1 KB took 14 s here. SQLite's structure is looked at in one snapshot, for 1.2 s of those, in which
        the write-ahead log cannot be begun anew; sessions in short ones. Memory is flat. `on_progress` is called with (events
        looked at, events in the store). Interrupted at any point, nothing was changed.

        On PostgreSQL all of it is one snapshot, which holds back VACUUM as long as it takes. Structure is what the extension
        amcheck finds, where this user may call it; else `VerifyReport.not_looked_at` says so. Functions and triggers that are
        switched off are found too. Records are not kept twice there, so that a changed word in one does not show.
        """
        with self._db.to_verify() as readable:
            return verify(readable, on_progress)
