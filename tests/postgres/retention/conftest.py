"""Stores on PostgreSQL as these tests open them: with the maintenance that a store has by default."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aegis_store import EventStore


@pytest.fixture
def open_store(postgres_url: str) -> Iterator[Callable[..., EventStore]]:
    """Opens this test's store, as often as wanted."""
    opened = []

    def open_one(target: str = postgres_url, **options: Any) -> EventStore:
        store = EventStore.open(target, **{"durability": "process", **options})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()
