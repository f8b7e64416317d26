"""What tests/test_prune_plan.py says, on PostgreSQL."""

from tests import test_prune_plan
from tests.postgres.test_contract import contract
from tests.test_prune_plan import slices_of_10 as slices_of_10
from tests.test_prune_plan import store as store
from tests.test_prune_plan import warned as warned

globals().update(contract(test_prune_plan, files=True))
