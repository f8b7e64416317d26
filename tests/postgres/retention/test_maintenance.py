"""What tests/test_maintenance.py says, on PostgreSQL."""

from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest

from aegis_store import EventStore
from tests import test_maintenance
from tests.postgres.server import Postgres
from tests.postgres.test_contract import contract
from tests.test_maintenance import maintained_by_several
from tests.test_maintenance import pending as pending
from tests.test_maintenance import small_slices as small_slices
from tests.test_maintenance import turns as turns

globals().update(contract(test_maintenance) | contract(test_maintenance, files=True))


@pytest.fixture(scope="module")
def maintained(
    context: ForkServerContext, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[str]]]:
    """A store that several processes have maintained, and who did the slices in turn."""
    with postgres.database() as url:
        EventStore.upgrade(url)
        yield url, maintained_by_several(context, url, tmp_path_factory.mktemp("maintained") / "notes")
