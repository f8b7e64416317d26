"""What the library logs: a line for people to each act, and what it says once more as fields, for a host's JSON or metrics.

All goes to the logger `aegis_store`. A field is an attribute of the record, as the handlers of hosts expect it of `extra`; each
name begins with `aegis_`, so that none meets one of the record's own or of another library. `aegis_act` says what happened and
`aegis_store` to which store; the README has the table. Never a payload.
"""

import logging
from typing import Final

_LOGGER: Final = logging.getLogger("aegis_store")


def log(level: int, act: str, store: object, message: str, *args: object, **fields: object) -> None:
    """Log `message % args` with the fields `act`, `store` and those given, each under its name with `aegis_` before it."""
    told = {"aegis_act": act, "aegis_store": str(store), **{f"aegis_{name}": value for name, value in fields.items()}}
    _LOGGER.log(level, message, *args, extra=told, stacklevel=2)
