"""Where a store on PostgreSQL is, and connections to it."""

import os
import re
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy import event as sa_event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from aegis_store.errors import InvalidInput, StoreUnavailable
from aegis_store.target import masked

DRIVER = "postgresql+psycopg"

# A host that does not answer at all would be waited for for two minutes.
_CONNECT_TIMEOUT_S: Final = 10

# What is done to a file, and what does it on a server.
_INSTEAD: Final = {
    "backup": "take `pg_dump`, which copies beside writers too, or `aegis-store copy URL FILE`",
    "restore": "take `pg_restore`, or restore it to a file and `aegis-store copy FILE URL`",
    "reclaim": "there autovacuum makes the room of what was removed free for new events; `VACUUM (FULL)` gives it back to the "
    "disk, and all wait meanwhile",
    "compact": "there `VACUUM (FULL)` packs tables, and all wait meanwhile",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A database on a server, by its URL. Printed, it has no password, wherever that stood."""

    url: URL = field(repr=False)

    @classmethod
    def of(cls, target: object) -> "Server | None":
        """From a URL such as `postgresql+psycopg://user@host/database`; None for what is none of PostgreSQL."""
        if not isinstance(target, str) or not target.startswith(("postgresql:", "postgresql+", "postgres:")):
            return None
        try:
            url = make_url(target)
            printed = str(cls(url))
        except (ArgumentError, ValueError):
            detail = "this is no URL such as postgresql+psycopg://user@host/database"
            raise StoreUnavailable(store=target.partition(":")[0] + "://…", detail=detail) from None
        if "@" in (url.host or "") + (url.database or ""):  # what stands before it may be the end of a password
            raise StoreUnavailable(store=masked(target), detail="an @ that is part of a password is written %40 in a URL")
        if url.drivername != DRIVER:
            raise StoreUnavailable(store=printed, detail=f"a URL of PostgreSQL begins with {DRIVER}://")
        return cls(url)

    @classmethod
    def refuse(cls, target: object, what: str) -> None:
        """Raise `InvalidInput` if the target is a store on PostgreSQL: what is done to a file is done otherwise there."""
        server = target if isinstance(target, cls) else cls.of(target)
        if server is not None:
            raise InvalidInput(f"{what} is for a store in a file, not for {server}: {_INSTEAD[what]}")

    def __str__(self) -> str:
        shown = {name: "***" if _is_secret(name) else value for name, value in self.url.query.items()}
        return self.url.set(query=shown).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")

    def __repr__(self) -> str:
        return f"Server({str(self)!r})"

    @property
    def name(self) -> str:
        """How its database is called, for people, as a file may be called."""
        return re.sub(r"[^\w.-]", "_", self.url.database or "postgresql")

    @property
    def identity(self) -> str:
        """The URL without any password, so that a new one makes no other store of it."""
        url = self.url
        query = {name: value for name, value in url.query.items() if not _is_secret(name)}
        return URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query).render_as_string()

    @property
    def secrets(self) -> list[str]:
        """What must never show: its passwords, as they are."""
        found = [value for name, values in self.url.normalized_query.items() if _is_secret(name) for value in values]
        return [secret for secret in (str(self.url.password or ""), *found) if secret]

    def engine(self, *, settings: dict[str, str], **options: Any) -> Engine:
        """SQLAlchemy's engine; each connection has those `settings` of PostgreSQL."""
        self.check_driver()
        options["connect_args"] = {"client_encoding": "utf8", **self._timeout(), **options.get("connect_args", {})}
        options["execution_options"] = {"store": str(self)}
        # The tables have no hstore: no connection has to ask for it first.
        engine = create_engine(self.url, hide_parameters=True, use_native_hstore=False, **options)

        # Not by the option of the connection, which poolers refuse. Outside of any transaction: it would be rolled back.
        def prepare(connection: Any, _record: object) -> None:
            was = connection.autocommit
            connection.autocommit = True
            names = ", ".join(["set_config(%s, %s, false)"] * len(settings))
            connection.execute(f"SELECT {names}", [part for item in settings.items() for part in item])
            connection.autocommit = was

        sa_event.listen(engine, "connect", prepare)
        return engine

    def check_driver(self) -> None:
        """Raise `StoreUnavailable` if there is no psycopg, or none that can be loaded (its libpq may be missing)."""
        try:
            import psycopg  # noqa: F401, PLC0415 - not everybody's
        except ImportError as error:
            is_missing = isinstance(error, ModuleNotFoundError)
            problem = "is not installed" if is_missing else f"cannot be loaded ({' '.join(str(error).split()):.80})"
            detail = f"psycopg {problem}: pip install 'aegis-store[postgres]'"
            raise StoreUnavailable(store=str(self), detail=detail) from None

    def _timeout(self) -> dict[str, int]:
        named = "connect_timeout" in self.url.query or "PGCONNECT_TIMEOUT" in os.environ
        return {} if named else {"connect_timeout": _CONNECT_TIMEOUT_S}


def _is_secret(option: str) -> bool:
    """Whether the value of that option of a URL must not show."""
    return any(word in option.lower() for word in ("pass", "pwd", "secret", "token", "key"))  # mistyped ones too
