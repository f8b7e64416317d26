"""Payloads to JSON text and back, such that what comes back equals what went in, type for type, or is refused.

No encoder alone keeps that: they write tuples as lists, the key 1 as "1", NaN as NaN or as null. So a quick look first makes
sure that the payload consists of plain JSON types and is not endless; what it has vouched for, orjson encodes, ten times as
fast as `json.dumps` where text is not ASCII (2.5 KB: 1.7 µs, 17 µs here). Only where one of them has a doubt, a thorough look
finds out what is the matter, and where. Whole numbers over 64 bits and lone surrogates, which orjson does not take, are then
left to `json`; and so is all reading, since orjson would make floats of such numbers.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, cast

import orjson

from aegis_store.errors import EventTooLarge, InvalidEvent, InvalidSession
from aegis_store.events import Json
from aegis_store.settings import MAX_DEPTH, MAX_EVENT_BYTES_LIMIT, MAX_INT_DIGITS, MAX_METADATA_BYTES

# Plain characters rather than \u escapes: half the size for Chinese, and readable in the sqlite3 shell. No look-out for
# cycles, since by then there are none.
_to_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode
_to_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode
_to_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode

_CONSTANTS: Final = frozenset({bool, type(None)})
_SAFE_INT_BITS: Final = int(MAX_INT_DIGITS * 3.3219)  # so many bits never make more digits than allowed
_TOO_LARGE_INT: Final = 10**MAX_INT_DIGITS
_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class _Doubt(Exception):
    """The quick look cannot vouch for the payload."""


def encode(payload: Json) -> tuple[str, bytes]:
    """The payload as JSON text, and the same in UTF-8.

    Raises `InvalidEvent` with the path to what cannot be stored, `EventTooLarge` beyond the hard limit.
    """
    try:
        _look(payload, MAX_DEPTH)
        encoded = orjson.dumps(payload)
        return encoded.decode(), encoded
    except InvalidEvent:
        raise
    except (_Doubt, TypeError, RuntimeError):
        # RuntimeError: another thread changed a dict under our hands.
        return _encode_thoroughly(payload)


def decode(text: str) -> Json:
    """What `encode` was given. `ValueError` if the text is not strict JSON."""
    try:
        # A fifth faster than `decode`, which looks for white space around it: there is none, unless a shell wrote it.
        try:
            value, end = _decoder.raw_decode(text)
        except ValueError:
            end = None
        return value if end == len(text) else _decoder.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def same_text(a: str, b: str) -> bool:
    """Whether two encoded payloads are equal, type for type (true is not 1, 1 is not 1.0), whatever the order of keys."""
    return a == b or _to_canonical(decode(a)) == _to_canonical(decode(b))


def encode_metadata(metadata: object) -> str:
    """A session's metadata as JSON text: a mapping that obeys the rules of payloads. Raises `InvalidSession`."""
    if not isinstance(metadata, Mapping):
        raise InvalidSession(f"metadata must be a dict, not {type(metadata).__name__}")
    try:
        text, encoded = encode(dict(metadata))
    except InvalidEvent as error:
        raise InvalidSession(f"metadata cannot be stored: {error}".replace("payload", "metadata", 1)) from None
    if len(encoded) > MAX_METADATA_BYTES:
        raise InvalidSession(
            f"metadata of {len(encoded):,} bytes is over the limit of {MAX_METADATA_BYTES:,}: it is written with every append"
        )
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _look(value: Json, depth: int) -> int:  # noqa: C901 - in one piece, since it runs on every append
    """A lower bound of the size of `value` as JSON, or `_Doubt`. `EventTooLarge` as soon as it is over the hard limit.

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
    elif kind is str:
        return len(value)
    else:
        return _looked_scalar(value, kind)
    if depth == 0:
        raise _Doubt
    size += 2 + len(value)
    for item in items:
        kind = type(item)
        if kind is str:
            size += len(item)
        elif kind is dict or kind is list:
            size += _look(item, depth - 1)
        else:
            size += _looked_scalar(item, kind)
        if size > MAX_EVENT_BYTES_LIMIT:
            raise EventTooLarge(payload_bytes=size, max_event_bytes=MAX_EVENT_BYTES_LIMIT)
    return size


def _looked_scalar(value: Any, kind: type) -> int:
    if kind is int:
        if value.bit_length() > _SAFE_INT_BITS and not -_TOO_LARGE_INT < value < _TOO_LARGE_INT:
            raise _Doubt
    elif kind is float:
        if value - value != 0:  # infinite, or not a number
            raise _Doubt
    elif kind not in _CONSTANTS:
        raise _Doubt
    return 1


def _encode_thoroughly(payload: Json) -> tuple[str, bytes]:
    try:
        copy = _PlainCopy()
        plain = copy.of(payload, ("payload", None), 0)
        _look(plain, MAX_DEPTH)
        # Escapes throughout: it is the one form in which a lone surrogate can be stored.
        text = _to_ascii(plain) if copy.holds_surrogates else _to_text(plain)
    except InvalidEvent:
        raise
    except RuntimeError as error:
        raise InvalidEvent.at("payload", f"changed while it was being stored ({error}): pass a copy") from None
    except ValueError as error:
        # Only a process that lowered sys.set_int_max_str_digits comes here: it could not read the number back.
        raise InvalidEvent.at("payload", f"cannot be written as JSON here: {error}") from None
    return text, text.encode()


_Path = tuple[str, Any]
"""A step, and the path that leads to it (None: there is none). Put together only when an error names it."""


def _refused(path: _Path, problem: str) -> InvalidEvent:
    steps = []
    step: _Path | None = path
    while step is not None:
        steps.append(step[0])
        step = step[1]
    return InvalidEvent.at("".join(reversed(steps)), problem)


class _PlainCopy:
    """A copy of a payload in plain JSON types, made with care; `InvalidEvent` names the path and the reason.

    A container that stands in several places is copied once, so that the work is in proportion to what is in memory.
    """

    def __init__(self) -> None:
        self.holds_surrogates = False
        self._open: set[int] = set()
        self._done: dict[int, tuple[Json, int]] = {}
        self._deepest = 0

    def of(self, value: Json, path: _Path, depth: int) -> Json:
        # The type alone counts: `isinstance` believes what an object says of itself.
        kind = type(value)
        if value is None or kind is bool:
            return value
        if issubclass(kind, str):
            return self._text(value, path)
        if issubclass(kind, int):
            return _plain_int(value, path)
        if issubclass(kind, float):
            return _plain_float(value, path)
        if issubclass(kind, dict | list):
            return self._container(value, path, depth + 1)
        raise _refused(path, f"is a {kind.__name__}, which would not come back as one: {_advice(kind)}")

    def _container(self, value: Json, path: _Path, depth: int) -> Json:
        if id(value) in self._open:
            raise _refused(path, "contains itself")
        copy, height = self._done.get(id(value), (None, 1))
        if depth + height - 1 > MAX_DEPTH:
            raise _refused(path, f"is nested deeper than {MAX_DEPTH} levels")
        if copy is not None:
            self._deepest = max(self._deepest, depth + height - 1)
            return copy
        self._open.add(id(value))
        deepest, self._deepest = self._deepest, depth
        copy = self._dict(value, path, depth) if issubclass(type(value), dict) else self._list(value, path, depth)
        self._done[id(value)] = copy, self._deepest - depth + 1
        self._deepest = max(deepest, self._deepest)
        self._open.remove(id(value))
        return copy

    def _list(self, value: list[Json], path: _Path, depth: int) -> list[Json]:
        return [self.of(item, (f"[{index}]", path), depth) for index, item in enumerate(list.__iter__(value))]

    def _dict(self, value: dict[object, Json], path: _Path, depth: int) -> dict[str, Json]:
        plain: dict[str, Json] = {}
        for key, item in dict.items(value):
            if not issubclass(type(key), str):
                raise _refused(path, f"has a key of type {type(key).__name__}: keys must be text")
            name = str.__str__(cast(str, key))
            below = (f".{name}" if _NAME.match(name) else f"[{name!r:.60}]", path)
            self._text(name, below)
            if name in plain:
                raise _refused(below, "stands twice under keys that are equal as text")
            plain[name] = self.of(item, below, depth)
        return plain

    def _text(self, value: str, path: _Path) -> str:
        text = str.__str__(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.holds_surrogates = True
            if _SURROGATE_PAIR.search(text):
                raise _refused(
                    path,
                    "holds a surrogate pair as two code points, which would come back as one: decode it first, "
                    "for instance with .encode('utf-16', 'surrogatepass').decode('utf-16')",
                ) from None
        return text


def _plain_int(value: int, path: _Path) -> int:
    number = int.__int__(value)
    if not -_TOO_LARGE_INT < number < _TOO_LARGE_INT:
        raise _refused(path, f"is a whole number of over {MAX_INT_DIGITS:,} digits: store it as text")
    return number


def _plain_float(value: float, path: _Path) -> float:
    number = float.__float__(value)
    if not math.isfinite(number):
        raise _refused(path, f"is {number}, which JSON does not have: store None or a string")
    return number


def _advice(kind: type) -> str:
    if issubclass(kind, tuple):
        return "store list(…)"
    if issubclass(kind, set | frozenset):
        return "store sorted(…) or list(…)"
    if issubclass(kind, bytes | bytearray | memoryview):
        return "store text, base64 for instance"
    return "store its fields, or text"
