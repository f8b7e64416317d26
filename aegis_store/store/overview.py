"""The part of `EventStore` that tells how the store is."""

from aegis_store import stats
from aegis_store.events import Health, StoreStats
from aegis_store.retention.health import health
from aegis_store.store.base import OpenStore


class Overview(OpenStore):
    """The store at a glance."""

    def stats(self) -> StoreStats:
        """The store at a glance. Looks at the session records, not at the events."""
        with self._db.read() as conn:
            return stats.stats(conn, self._db.target)

    def health(self) -> Health:
        """Whether the store is well, and what to look at if not. Looks at no session: it costs the same in every store."""
        with self._db.read() as conn:
            return health(conn, self._db.target, self._maintenance.state if self._maintenance else None)
