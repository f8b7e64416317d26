"""What tests/test_delete.py says, on PostgreSQL."""

from tests import test_delete
from tests.postgres.test_contract import contract
from tests.test_delete import delete_to as delete_to
from tests.test_delete import make as make
from tests.test_delete import small_slices as small_slices

globals().update(contract(test_delete, files=True))
