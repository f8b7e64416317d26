"""What tests/test_budget.py says, in partitions: with `-m torture`, since none of it asks where an event lies."""

import pytest

from tests import test_budget
from tests.postgres.retention.conftest import open_store as open_store
from tests.postgres.test_contract import contract
from tests.test_budget import store as store
from tests.test_budget import unhurried as unhurried

pytestmark = pytest.mark.torture

globals().update(contract(test_budget, files=True))
