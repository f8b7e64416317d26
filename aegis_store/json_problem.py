"""What is wrong with a text that is no JSON, and where, in words for whoever wrote it. What stands there is not shown."""

import json
from typing import Final

from aegis_store.settings import MAX_INT_DIGITS

_SAID: Final = (
    ("Expecting value", "a value is missing: text in double quotes, a number, true, false, null, [ or {"),
    ("Expecting property name", "a name in double quotes is missing"),
    ("Expecting ':'", "a colon is missing"),
    ("Expecting ','", "a comma or the closing bracket is missing"),
    ("Illegal trailing comma", "there is a comma after the last one, which JSON does not have"),
    ("Extra data", "the document has ended, and more follows"),
    ("Unterminated string", "a text begins that has no closing quote"),
    ("Invalid control character", "a line break or control character stands in a text: write it as an escape, such as \\n"),
    ("Invalid \\u", "the escape \\u needs four hexadecimal digits"),
    ("Invalid \\", "there is no such escape: write a backslash twice"),
)
"""By how Python's message begins, the same from 3.11 on. Another is passed on as it is."""


def said_of(error: ValueError) -> str:
    """What a decoder of JSON raised: what is wrong, and where."""
    if isinstance(error, json.JSONDecodeError):
        problem = next((words for begin, words in _SAID if error.msg.startswith(begin)), error.msg)
        return f"{_place(error)}: {problem}"
    if "integer string conversion" in str(error):
        return f"a whole number has over {MAX_INT_DIGITS:,} digits"
    return str(error)


def _place(error: json.JSONDecodeError) -> str:
    if not error.doc[error.pos :].strip():
        return "at its end"
    line = f"line {error.lineno}, " if "\n" in error.doc.strip() else ""
    return f"{line}column {error.colno}"
