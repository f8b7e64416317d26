"""A JSON document of any length, member by member and item by item, in the memory of its largest item.

Each item is decoded by Python's own json module, so that it is read as `json.loads` would read it. The streaming parsers
were not to be had for this: ijson's C backend reads a lone surrogate as "?" without a word and refuses whole numbers over
64 bits, its Python backend keeps what it has read until a chunk happens to end between two tokens (80 MB for a file of 22).
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Final

from aegis_store.events import Json

_CHUNK_BYTES: Final = 64 * 1024
_MAX_ITEM_CHARACTERS: Final = 20 * 1024 * 1024  # the largest payload of a store, and some
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_LONGEST_TOKEN_END: Final = 64  # an error so close to the end of what was read may come from its being cut there


class JsonText:
    """The text of a file, from the place on that was reached. `ValueError` where it is not strict JSON."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._to_text = codecs.getincrementaldecoder("utf-8")()
        self._decode = json.JSONDecoder(parse_constant=_refuse).raw_decode
        self._text = ""
        self._at = 0
        self._copy: Callable[[bytes], object] | None = None
        self._copied_to = 0

    def members(self) -> Iterator[str]:
        """The names of the object that the document is. Take each one's value before the next."""
        self._take("{", "an object")
        more = self.peek() != "}"
        while more:
            name = self.value()
            if not isinstance(name, str):
                raise ValueError("a name is not text")
            self._take(":", "a colon")
            yield name
            more = self.peek() == ","
            if more:
                self._take(",", "a comma")
        self._take("}", "a comma or a closing brace")
        if self.peek():
            raise ValueError("something follows after its end")

    def items(self) -> Iterator[Json]:
        """The items of the list that comes next."""
        self._take("[", "a list")
        more = self.peek() != "]"
        while more:
            yield self.value()
            more = self.peek() == ","
            if more:
                self._take(",", "a comma")
        self._take("]", "a comma or a closing bracket")

    def value(self) -> Json:
        """The value that comes next."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_TOKEN_END
                if cut and self._read_on():
                    continue
                raise ValueError("it ends too early" if cut else error.msg) from None
            if end > len(self._text) - _LONGEST_TOKEN_END and self._read_on():
                continue  # a number may go on in what was not yet read
            self._at = end
            return value

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing as well
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    @contextmanager
    def copied(self, copy: Callable[[bytes], object]) -> Iterator[None]:
        """Inside, what is read goes to `copy` too, byte for byte, from the next character on that is not white space."""
        self.peek()
        self._copy, self._copied_to = copy, self._at
        try:
            yield
            self._copy_on()
        finally:
            self._copy = None

    def _copy_on(self) -> None:
        if self._copy is not None and self._at > self._copied_to:
            self._copy(self._text[self._copied_to : self._at].encode())
            self._copied_to = self._at

    def _take(self, character: str, name: str) -> None:
        found = self.peek()
        if found != character:
            raise ValueError(f"{name} is expected, not {found!r}" if found else "it ends too early")
        self._at += 1

    def _read_on(self) -> bool:
        """Read more; False at the end. As much again as is there, so that a long item is not decoded over and over."""
        rest = self._text[self._at :]
        if len(rest) > _MAX_ITEM_CHARACTERS:
            raise ValueError(f"an item is longer than {_MAX_ITEM_CHARACTERS:,} characters")
        chunk = self._stream.read(max(_CHUNK_BYTES, len(rest)))
        more = self._to_text.decode(chunk, final=not chunk)
        if not chunk:
            return False
        self._copy_on()
        self._text, self._at, self._copied_to = rest + more, 0, 0
        return True


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
