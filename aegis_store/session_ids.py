"""Ids of sessions by how they begin, for a shell that waits for Tab: on the bare driver, which is there in a tenth of the time.

Looks at 2,000 records at the most, whatever the store holds, and makes no file: not even those that SQLite lays beside a store
to read it.
"""

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from aegis_store import driver

_LOOKED_AT: Final = 1000
_PATIENCE_S: Final = 0.2

# Some ms are enough for what is a store. In somebody else's file `session` may be a query that never ends.
_LONGEST_S: Final = 1.0
_STEPS_BETWEEN_LOOKS: Final = 100_000

# Up to 1,000 of that beginning, by the index of ids; if there are more, those among the 1,000 sessions that changed last, too.
_NEWEST: Final = """
WITH beginning (session_id, updated_at) AS (
    SELECT * FROM (
        SELECT session_id, updated_at FROM session
        WHERE session_id >= :prefix AND session_id < :beyond ORDER BY session_id DESC LIMIT :looked_at
    )
    UNION
    SELECT * FROM (
        SELECT session_id, updated_at FROM session
        WHERE session_id IS NOT NULL ORDER BY updated_at DESC, id DESC LIMIT :looked_at
    ) WHERE session_id >= :prefix AND session_id < :beyond
)
SELECT session_id FROM beginning ORDER BY updated_at DESC, session_id LIMIT :most
"""


def newest(store: Path, prefix: str, most: int) -> list[str]:
    """Ids that begin with `prefix`, those of the sessions that changed last before the others; `most` at the most.

    None if the store cannot be read as it stands: it is missing, somebody died at it, a pipe stands for its log. Raises the
    driver's errors.
    """
    store = Path(os.path.realpath(store))
    log, index = (store.with_name(f"{store.name}{suffix}") for suffix in ("-wal", "-shm"))
    if not store.is_file() or (os.path.lexists(log) and not (log.is_file() and index.is_file())):
        return []
    uri = f"{store.as_uri()}?{'mode=ro' if log.exists() else 'mode=ro&immutable=1'}"
    with closing(driver.dbapi.connect(uri, uri=True, timeout=_PATIENCE_S)) as connection:
        until_s = time.monotonic() + _LONGEST_S
        connection.set_progress_handler(lambda: time.monotonic() > until_s, _STEPS_BETWEEN_LOOKS)
        given = {"prefix": prefix, "beyond": f"{prefix}\U0010ffff", "looked_at": _LOOKED_AT, "most": most}
        return [session_id for (session_id,) in connection.execute(_NEWEST, given)]
