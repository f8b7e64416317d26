"""The fixtures of the contract, here with stores on PostgreSQL."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore


@pytest.fixture
def open_store(postgres_url: str) -> Iterator[Callable[..., EventStore]]:
    """Opens this test's store, as often as wanted."""
    opened = []

    def open_one(target: str | Path = postgres_url, **options: Any) -> EventStore:
        store = EventStore.open(target, **{"durability": "process", "maintain_every": None, **options})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., EventStore]) -> EventStore:
    """An open, empty store."""
    return open_store()
