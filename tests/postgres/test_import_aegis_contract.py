"""The contract of imports of the orchestrator's state files, on PostgreSQL."""

from tests import test_import_aegis
from tests.postgres.test_contract import contract
from tests.test_import_aegis import write as write

# What is asked of files alone, and never comes to the store.
_OF_FILES = ("reject", "cut_off", "bytes_is", "state_file", "not_utf_8", "progress", "cannot_be", "it_needs", "such_events")

_found = contract(test_import_aegis, files=True)
globals().update({name: test for name, test in _found.items() if not any(word in name for word in _OF_FILES)})


def test_most_of_the_contract_is_here() -> None:
    assert len([name for name in globals() if name.startswith("test_")]) > 30
