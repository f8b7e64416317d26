"""A store on a server, opened: its schema is looked at before anything else, and made if there is none."""

from aegis_store.connections import Durability
from aegis_store.postgres import deploy
from aegis_store.postgres.database import PostgresDatabase
from aegis_store.redaction import Redact
from aegis_store.server import Server
from aegis_store.settings import DEFAULT_BUSY_TIMEOUT_MS


def open_database(
    server: Server,
    *,
    create: bool = True,
    read_only: bool = False,
    durability: Durability = "power",
    busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
    redact: Redact | None = None,
) -> PostgresDatabase:
    """Its connections. Raises what `EventStore.open` raises."""
    database = PostgresDatabase(
        server, durability=durability, read_only=read_only, busy_timeout_ms=busy_timeout_ms, redact=redact
    )
    try:
        found = database.revision()
        if found == "base" and create and not read_only:
            _, found = deploy.upgrade(server)
        deploy.check(server, found)
    except BaseException:
        database.close()
        raise
    return database
