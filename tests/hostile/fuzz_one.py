"""One entry point in this process, until libFuzzer ends it: see `fuzz`, which calls this."""

import sys
from pathlib import Path

import atheris

from tests.hostile.fuzz import keeping_on

with atheris.instrument_imports(include=["aegis_store"]):
    from tests.hostile.entries import ENTRIES

if __name__ == "__main__":
    _, entry, found, *options = sys.argv
    atheris.Setup([sys.argv[0], *options], keeping_on(ENTRIES[entry], Path(found)))
    atheris.Fuzz()
