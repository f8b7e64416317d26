"""What tests/test_retention.py says, on PostgreSQL."""

from tests import test_retention
from tests.postgres.test_contract import contract
from tests.test_retention import slices_of_10 as slices_of_10

globals().update(contract(test_retention, files=True))
