"""Payloads to JSON text and back, such that what comes back equals what went in, type for type, or is refused.

`json.dumps` alone does not keep that: it writes tuples as lists, the key 1 as "1" and NaN as NaN. So a quick look first
makes sure that the payload consists of plain JSON types and is not endless. Only where that look has a doubt, a thorough
one finds out what is the matter, and where.
"""

import json
import re
from typing import Final

from aegis_store.errors import EventTooLarge, InvalidEvent, InvalidSession
from aegis_store.events import Json
from aegis_store.settings import MAX_DEPTH, MAX_EVENT_BYTES_LIMIT, MAX_INT_DIGITS, MAX_METADATA_BYTES

# Plain characters rather than \u escapes: half the size for Chinese, and readable in the sqlite3 shell. No look-out for
# cycles, since by then there are none.
_to_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode
_to_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode
_to_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode

_PLAIN_SCALARS: Final = frozenset({str, bool, float, type(None)})
_SAFE_INT_BITS: Final = int(MAX_INT_DIGITS * 3.3219)  # so many bits never make more digits than allowed
_TOO_LARGE_INT: Final = 10**MAX_INT_DIGITS
_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class _Doubt(Exception):
    """The quick look cannot vouch for the payload."""


def encode(payload: Json) -> tuple[str, int]:
    """The payload as JSON text, and its size in bytes of UTF-8.

    Raises `InvalidEvent` with the path to what cannot be stored, `EventTooLarge` beyond the hard limit.
    """
    try:
        _look(payload, MAX_DEPTH)
        text = _to_text(payload)
        return text, len(text) if text.isascii() else len(text.encode())
    except (_Doubt, ValueError, TypeError, RecursionError, RuntimeError):
        # RuntimeError: another thread changed a dict under our hands.
        return _encode_thoroughly(payload)


def decode(text: str) -> Json:
    """What `encode` was given. `ValueError` if the text is not strict JSON."""
    return _decoder.decode(text)


def same_text(a: str, b: str) -> bool:
    """Whether two encoded payloads are equal, type for type (true is not 1, 1 is not 1.0), whatever the order of keys."""
    return a == b or _to_canonical(decode(a)) == _to_canonical(decode(b))


def encode_metadata(metadata: object) -> str:
    """A session's metadata as JSON text: a dict that obeys the rules of payloads. Raises `InvalidSession`."""
    if not isinstance(metadata, dict):
        raise InvalidSession(f"metadata must be a dict, not {type(metadata).__name__}")
    try:
        text, size = encode(metadata)
    except InvalidEvent as error:
        raise InvalidSession(f"metadata cannot be stored: {error}".replace("payload", "metadata")) from None
    if size > MAX_METADATA_BYTES:
        raise InvalidSession(
            f"metadata of {size:,} bytes is over the limit of {MAX_METADATA_BYTES:,}: it is written with every append"
        )
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _look(value: Json, depth: int) -> int:  # noqa: C901 - in one piece, since it runs on every append
    """A lower bound of the size of `value` as JSON, or `_Doubt`.

    Each container adds at least 2, and the bound is checked after each child, so the look ends after about as many steps
    as the hard limit has bytes, even where lists are shared over and over.
    """
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise _Doubt
        size = sum(map(len, value))
        items = value.values()
    elif kind is list:
        size = 2
        items = value
    elif kind is int:
        return _looked_int(value)
    elif kind in _PLAIN_SCALARS:
        return 1
    else:
        raise _Doubt
    if depth == 0:
        raise _Doubt
    size += 2 + len(value)
    for item in items:
        kind = type(item)
        if kind is str:
            size += len(item)
        elif kind is dict or kind is list:
            size += _look(item, depth - 1)
        elif kind is int:
            size += _looked_int(item)
        elif kind not in _PLAIN_SCALARS:
            raise _Doubt
        if size > MAX_EVENT_BYTES_LIMIT:
            raise _Doubt
    return size


def _looked_int(value: int) -> int:
    if value.bit_length() > _SAFE_INT_BITS:
        raise _Doubt
    return 1


def _encode_thoroughly(payload: Json) -> tuple[str, int]:
    room = _Room()
    try:
        plain = _plain(payload, "payload", MAX_DEPTH, room)
        # Escapes throughout: it is the one form in which a lone surrogate can be stored.
        text = _to_ascii(plain) if room.holds_surrogates else _to_text(plain)
    except RuntimeError as error:
        raise InvalidEvent.at("payload", f"changed while it was being stored ({error}): pass a copy") from None
    except ValueError as error:
        if isinstance(error, InvalidEvent):
            raise
        # Only a process that lowered sys.set_int_max_str_digits comes here: it could not read the number back.
        raise InvalidEvent.at("payload", f"cannot be written as JSON here: {error}") from None
    return text, len(text.encode())


class _Room:
    """How much of the hard limit the thorough look has left, and what it met."""

    def __init__(self) -> None:
        self.left_bytes = MAX_EVENT_BYTES_LIMIT
        self.holds_surrogates = False

    def take(self, count: int) -> None:
        self.left_bytes -= count
        if self.left_bytes < 0:
            raise EventTooLarge(payload_bytes=MAX_EVENT_BYTES_LIMIT, max_event_bytes=MAX_EVENT_BYTES_LIMIT)


def _plain(value: Json, path: str, depth: int, room: _Room) -> Json:
    """`value` in plain JSON types, or `InvalidEvent` that names the path and the reason."""
    room.take(1)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain_text(value, path, room)
    if isinstance(value, int):
        return _plain_int(value, path)
    if isinstance(value, float):
        number = float.__float__(value)
        if number != number or number in (float("inf"), float("-inf")):
            raise InvalidEvent.at(path, f"is {number}, which JSON does not have: store None or a string")
        return number
    if not isinstance(value, dict | list):
        raise InvalidEvent.at(path, f"is a {type(value).__name__}, which would not come back as one: {_advice(value)}")
    if depth == 0:
        raise InvalidEvent.at(path, f"is nested deeper than {MAX_DEPTH} levels, or contains itself")
    if isinstance(value, list):
        return [_plain(item, f"{path}[{index}]", depth - 1, room) for index, item in enumerate(list.__iter__(value))]
    return _plain_dict(value, path, depth, room)


def _plain_dict(value: dict[object, Json], path: str, depth: int, room: _Room) -> dict[str, Json]:
    plain: dict[str, Json] = {}
    for key, item in dict.items(value):
        if not isinstance(key, str):
            raise InvalidEvent.at(path, f"has the key {key!r:.60} of type {type(key).__name__}: keys must be text")
        name = str.__str__(key)
        below = f"{path}.{name}" if _NAME.match(name) else f"{path}[{name!r:.60}]"
        _plain_text(name, below, room)
        if name in plain:
            raise InvalidEvent.at(below, "stands twice under keys that are equal as text")
        plain[name] = _plain(item, below, depth - 1, room)
    return plain


def _plain_text(value: str, path: str, room: _Room) -> str:
    text = str.__str__(value)
    room.take(len(text))
    try:
        text.encode()
    except UnicodeEncodeError:
        room.holds_surrogates = True
        if _SURROGATE_PAIR.search(text):
            raise InvalidEvent.at(
                path,
                "holds a surrogate pair as two code points, which would come back as one: decode it first, "
                "for instance with .encode('utf-16', 'surrogatepass').decode('utf-16')",
            ) from None
    return text


def _plain_int(value: int, path: str) -> int:
    number = int.__int__(value)
    if not -_TOO_LARGE_INT < number < _TOO_LARGE_INT:
        raise InvalidEvent.at(path, f"is a whole number of over {MAX_INT_DIGITS:,} digits: store it as text")
    return number


def _advice(value: object) -> str:
    if isinstance(value, tuple):
        return "store list(…)"
    if isinstance(value, set | frozenset):
        return "store sorted(…) or list(…)"
    if isinstance(value, bytes | bytearray | memoryview):
        return "store text, base64 for instance"
    return "store its fields, or text"
