"""Where a store is: its file, by whatever name, and which files this process has open as stores."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from aegis_store.errors import InvalidInput, StoreUnavailable, shown


@dataclass(frozen=True, slots=True)
class Target:
    """Where a store is: a file."""

    path: Path

    @classmethod
    def of(cls, target: str | os.PathLike[str]) -> "Target":
        """From a path or a SQLAlchemy URL. Symbolic links are followed, so that side files lie beside the real file."""
        if not isinstance(target, str | os.PathLike):
            raise InvalidInput(f"a store is opened by a path or a URL, not {shown(target)}")
        name = os.fspath(target)
        if not isinstance(name, str) or not name or "\0" in name:
            raise StoreUnavailable(store=masked(str(name)), detail="a store needs a path or a URL such as sqlite:///aegis.db")
        if "://" in name:
            name = _path_in_url(name)
        if name == ":memory:" or name.startswith("file:"):
            raise StoreUnavailable(
                store=name,
                detail="a store is a file that several connections share: give its path (no memory, no file: URI)",
            )
        try:
            return cls(Path(os.path.realpath(name)))
        except ValueError:
            raise StoreUnavailable(store=name, detail="no file can have such a name") from None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """How it is called, for people."""
        return self.path.name

    @property
    def identity(self) -> str:
        """What no other store has."""
        return str(self.path)

    def side_file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def uri(self, query: str) -> str:
        """The file as SQLite takes it: a URI, because only `mode=rw` keeps SQLite from making an empty file."""
        path = quote(os.fsencode(self.path.as_posix()))
        return f"file:{path if path.startswith('/') else f'/{path}'}?{query}"


def masked(url: str) -> str:
    """A URL as it may be shown, also one that nobody can parse: without its password, wherever it stands. A path as it is."""
    if "://" not in url:
        return url
    # From the first colon behind the user to the last @: more than the password rather than less.
    last = url.rfind("@")
    user = _USER.search(url, 0, max(last, 0))
    return _PASSWORD_IN_QUERY.sub(r"\1***", url if user is None else f"{url[: user.end()]}***{url[last:]}")


# Neither looks at any character more than a few times, whatever the URL.
_USER: Final = re.compile(r"://[^:@/]*:")
_PASSWORD_IN_QUERY: Final = re.compile(
    r"([?&;](?=[^=&;?]*(?:pass|pwd|secret|token|key))[^=&;?]*=)[^&;]*", re.IGNORECASE | re.DOTALL
)


def _path_in_url(text: str) -> str:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StoreUnavailable(
            store=masked(text), detail="this is neither a path nor a URL such as sqlite:///aegis.db"
        ) from None
    if url.get_backend_name() != "sqlite":
        raise StoreUnavailable(
            store=masked(text),
            detail="a store is a SQLite file (sqlite:///relative.db, sqlite:////absolute.db) or on postgresql+psycopg://…",
        )
    if url.query or url.host:
        raise StoreUnavailable(store=masked(text), detail="a SQLite URL is sqlite:///PATH, without a host and without options")
    return url.database or ":memory:"


open_here: Final = Counter[Path]()
"""How many stores this process has open at a path."""


def is_open_here(file: str | os.PathLike[str]) -> bool:
    """Whether `file` belongs to a store that this process has open, under whatever name.

    Such a file must not be opened as a plain file: closing it again would drop the locks that SQLite holds on it.
    """
    stores = [path for path, count in open_here.items() if count > 0]
    names = [path.with_name(path.name + suffix) for path in stores for suffix in ("", "-wal", "-shm")]
    return any(os.path.exists(name) and os.path.samefile(file, name) for name in names) if os.path.exists(file) else False
