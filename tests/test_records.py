"""What a plain SQL shell writes into records, whose triggers let it, is damage where it cannot be read, and told so."""

import sqlite3
from collections.abc import Callable

import pytest

from aegis_store import EventStore, StoreCorrupt

NO_TIME = 2**63 - 1  # in microseconds since 1970: no calendar has it

BY_A_SHELL: dict[str, tuple[str, Callable[[EventStore], object]]] = {
    "a session's time": (f"UPDATE session SET created_at = {NO_TIME}", lambda store: store.list_sessions()),
    "a limit of the policy": (f"UPDATE store SET terminal_grace_us = {NO_TIME}", lambda store: store.retention_policy()),
    "the time of a maintenance": (f"UPDATE store SET maintained_at = {NO_TIME}", lambda store: store.health()),
    "the reasons of a prune": (
        "INSERT INTO prune_run (started_at, now, trigger, reasons) VALUES (0, 0, 'api', 'x')",
        lambda store: store.prune_history(),
    ),
    "the number of a reason": (
        "INSERT INTO prune_run (started_at, now, trigger, reasons) VALUES (0, 0, 'api', '{\"max_events\": \"x\"}')",
        lambda store: store.overview(),
    ),
}


@pytest.mark.parametrize("what", BY_A_SHELL)
def test_a_record_that_cannot_be_read_is_damage(store: EventStore, shell: sqlite3.Connection, what: str) -> None:
    statement, ask = BY_A_SHELL[what]
    store.create_session("s")
    shell.execute(statement)
    with pytest.raises(StoreCorrupt, match="then restore a backup"):
        ask(store)
