"""What a plain SQL shell writes into records on a server is damage as well."""

import pytest

from aegis_store import EventStore, StoreCorrupt
from tests.postgres.server import connect
from tests.test_records import BY_A_SHELL


@pytest.mark.parametrize("what", BY_A_SHELL)
def test_a_record_that_cannot_be_read_is_damage(store: EventStore, postgres_url: str, what: str) -> None:
    statement, ask = BY_A_SHELL[what]
    store.create_session("s")
    with connect(postgres_url) as shell:
        shell.execute(statement.encode())
    with pytest.raises(StoreCorrupt, match="restore a backup of the server"):
        ask(store)
