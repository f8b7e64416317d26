"""One entry point in this process, until libFuzzer ends it: see `fuzz`, which calls this."""

import os
import sys
from pathlib import Path

import atheris

from tests.hostile.fuzz import DATABASES, keeping_on

with atheris.instrument_imports(include=["aegis_store"]):
    from tests.hostile.entries import ENTRIES
    from tests.hostile.world import Both


if __name__ == "__main__":
    _, name, found, *options = sys.argv
    run = ENTRIES[name]
    if DATABASES in os.environ:
        run = Both(*os.environ[DATABASES].split()).compared(run)
    atheris.Setup([sys.argv[0], *options], keeping_on(run, Path(found)))
    atheris.Fuzz()
