"""What tests/test_limits.py says, on PostgreSQL."""

from tests import test_limits
from tests.postgres.test_contract import contract
from tests.test_limits import clock as clock
from tests.test_limits import import_events as import_events
from tests.test_limits import store as store

globals().update(contract(test_limits, files=True))
