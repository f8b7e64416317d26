"""The redact hook on a server: the contract, by a store that is opened with it."""

import pytest

from tests import test_redact
from tests.postgres.test_contract import contract
from tests.test_redact import store as store

globals().update(contract(test_redact, urls=True))


@pytest.fixture
def path(postgres_url: str) -> str:
    return postgres_url
