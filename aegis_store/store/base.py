"""What every part of `EventStore` stands on."""

from aegis_store.database import Database
from aegis_store.retention.maintenance import Maintenance
from aegis_store.scope import Scope


class OpenStore:
    """An open store: its connections, and its maintenance if it has one."""

    _scope: Scope | None = None

    def __init__(self, db: Database) -> None:
        """Not for callers: `EventStore.open` looks at the file before anything touches it."""
        self._db = db
        self._maintenance: Maintenance | None = None
