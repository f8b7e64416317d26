"""Whose sessions are seen: those of one tenant and one owner. None in its place: all of the store's."""

from typing import NamedTuple, Self

from aegis_store.errors import InvalidSession
from aegis_store.events import checked_text


class Scope(NamedTuple):
    """A session is made in its scope and stays there, and so does its id once it is deleted."""

    tenant: str
    owner: str

    @classmethod
    def of(cls, tenant: str, owner: str) -> Self:
        """Raises `InvalidSession` for what can be neither."""
        return cls(checked_text("tenant", tenant, InvalidSession), checked_text("owner", owner, InvalidSession))
