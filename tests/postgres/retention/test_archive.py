"""What tests/test_archive.py says, on PostgreSQL."""

from tests import test_archive
from tests.postgres.test_contract import contract
from tests.test_archive import small_files as small_files

globals().update(contract(test_archive, files=True))
