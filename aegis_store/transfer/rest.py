"""What an event log does not take of a state file, in a file of its own.

It is a JSON object that has each such part under its name, the text of its value byte for byte as it stands in the state
file, white space and all: `{}` where there is none.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from aegis_store.draft import Draft, path_of
from aegis_store.transfer.json_text import JsonText


class Rest:
    """The file while it is being written; without a draft, none is."""

    def __init__(self, draft: Draft | None) -> None:
        self._draft = draft
        self._is_empty = True

    @contextmanager
    def part(self, name: str, text: JsonText) -> Iterator[None]:
        """Inside, the value of that part is read from `text`, and written as it is read."""
        if self._draft is None:
            yield
            return
        self._draft.write(f"{'{' if self._is_empty else ','}\n{json.dumps(name)}: ".encode())
        self._is_empty = False
        with text.copied(self._draft.write):
            yield

    def end(self) -> None:
        if self._draft is not None:
            self._draft.write(b"{}\n" if self._is_empty else b"\n}\n")
            self._draft.publish()


@contextmanager
def rest_file(file: str | os.PathLike[str] | None) -> Iterator[Rest]:
    """The new file; None for none. It stands under its name, synced, once the block has ended well, and else not at all.

    Raises what `Draft` raises.
    """
    draft = None if file is None else Draft(path_of(file))
    try:
        rest = Rest(draft)
        yield rest
        rest.end()
    finally:
        if draft is not None:
            draft.discard()
