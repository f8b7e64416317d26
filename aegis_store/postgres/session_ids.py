"""Ids of sessions by how they begin, for a shell that waits for Tab. Of the 1,000 sessions that changed last."""

from typing import Final

from sqlalchemy.pool import NullPool

from aegis_store.postgres.errors import errors_of
from aegis_store.server import Server

_PATIENCE_S: Final = 2  # libpq takes no less
_NEWEST: Final = """
SELECT session_id FROM (
  SELECT session_id, updated_at FROM session WHERE session_id IS NOT NULL ORDER BY updated_at DESC, id DESC LIMIT 1000
) AS newest WHERE starts_with(session_id, %(prefix)s) ORDER BY updated_at DESC, session_id LIMIT %(most)s
"""


def newest(server: Server, prefix: str, most: int) -> list[str]:
    """Those that begin with `prefix`, the ones that changed last first, `most` at the most. Raises `StoreUnavailable`."""
    settings = {"default_transaction_read_only": "on", "statement_timeout": f"{_PATIENCE_S}s"}
    engine = server.engine(settings=settings, poolclass=NullPool, connect_args={"connect_timeout": _PATIENCE_S})
    with errors_of(server), engine.connect() as connection:
        return list(connection.exec_driver_sql(_NEWEST, {"prefix": prefix, "most": most}).scalars())
