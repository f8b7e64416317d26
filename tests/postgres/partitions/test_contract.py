"""The core of the contract in partitions: appends, reads, the budget, deletions, and events that are committed late."""

from tests import test_append, test_read
from tests.postgres.test_contract import contract
from tests.postgres.test_store import shell as shell
from tests.postgres.test_store import (
    test_a_lower_cap_removes_first_and_a_deleted_session_goes_on_counting as test_a_lower_cap_and_a_deletion,
)
from tests.postgres.test_store import test_a_prune_removes_what_the_policy_asks_for as test_a_prune
from tests.postgres.test_store import test_read_all_does_not_pass_an_event_whose_transaction_commits_late as test_a_late_commit
from tests.postgres.test_store import (
    test_read_all_goes_on_when_the_late_transaction_was_rolled_back as test_a_late_roll_back,
)
from tests.test_read import mixed as mixed
from tests.test_read import woven as woven

__all__ = ["shell", "test_a_late_commit", "test_a_late_roll_back", "test_a_lower_cap_and_a_deletion", "test_a_prune"]

for _module in (test_append, test_read):
    globals().update(contract(_module))
