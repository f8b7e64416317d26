"""What tests/test_budget.py says, in partitions."""

from tests import test_budget
from tests.postgres.retention.conftest import open_store as open_store
from tests.postgres.test_contract import contract
from tests.test_budget import store as store
from tests.test_budget import unhurried as unhurried

globals().update(contract(test_budget, files=True))
