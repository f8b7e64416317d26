"""Writes what `verify` knows the schema by: run `python -m tests.postgres.write_shape` after a change to it."""

import json
from pathlib import Path

from sqlalchemy import create_engine

from aegis_store import postgres
from aegis_store.verify import server_structure
from tests.postgres.server import postgres_server

FILE = Path(postgres.__file__).with_name("shape.json")


def text_of(url: str) -> str:
    """The shape of the store at that URL, as it stands in the file."""
    engine = create_engine(url)
    with engine.connect() as conn:
        found = server_structure.shape(conn)
    engine.dispose()
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    with postgres_server() as server:
        FILE.write_text(text_of(server.emptied()), encoding="ascii")
