"""The contract of exports, imports of JSON lines and archives on PostgreSQL; `target` stays a store on SQLite."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis_store import EventStore
from tests import test_archive, test_export_import
from tests.postgres.test_contract import contract
from tests.test_archive import small_files as small_files
from tests.test_export_import import write as write


@pytest.fixture
def target(tmp_path: Path, template: Path) -> Iterator[EventStore]:
    """A second, empty store, of the other kind."""
    path = tmp_path / "target.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process") as store:
        yield store


# What is asked of files alone, and never comes to the store.
_OF_FILES = (
    *(
        "reject",
        "cut_off",
        "damaged_anywhere",
        "disk",
        "directory",
        "suffix",
        "no_ids",
        "no_path",
        "temporary",
        "place",
        "draft",
    ),
    *("payload_comes_back", "cannot_be", "is_none", "lead_out", "owner_alone", "read_twice", "half_written", "renamed"),
    *("progress", "largest_payload"),
)

for _module in (test_export_import, test_archive):
    found = contract(_module, files=True)
    globals().update({name: test for name, test in found.items() if not any(word in name for word in _OF_FILES)})


def test_most_of_the_contract_is_here() -> None:
    assert len([name for name in globals() if name.startswith("test_")]) > 50
