"""Any JSON value comes back equal, type for type, or is refused."""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aegis_store import EventStore, InvalidEvent, NewEvent
from aegis_store.events import Json

SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

surrogates = st.characters(categories=["Cs"])
texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("\0\x1f\x7f\u2028\ufeff\U0001f600"), surrogates))
long_integers = st.builds(
    lambda digits, offset, sign: sign * (10**digits - 1 - offset),
    st.integers(20, 4300),
    st.integers(0, 10**18),
    st.sampled_from([1, -1]),
)
floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 0.0, 1e308, -1e308, 5e-324, -5e-324, 2.2250738585072014e-308, 1e16, 0.1]),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), long_integers, floats, texts)
json_values: st.SearchStrategy[Json] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(texts, inner, max_size=5)),
    max_leaves=20,
)


def same(a: Json, b: Json) -> bool:
    """Equal type for type: True is not 1, 1 is not 1.0, -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b and math.copysign(1.0, a) == math.copysign(1.0, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(item, b[key]) for key, item in a.items())
    return bool(a == b)


def holds_a_pair(value: Json) -> bool:
    if isinstance(value, str):
        return SURROGATE_PAIR.search(value) is not None
    if isinstance(value, list):
        return any(map(holds_a_pair, value))
    if isinstance(value, dict):
        return any(map(holds_a_pair, value)) or any(map(holds_a_pair, value.values()))
    return False


@pytest.fixture(scope="module")
def shared_store(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    """One store for all examples of a test: each takes its place behind the last."""
    path = tmp_path_factory.mktemp("roundtrip") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process") as store:
        store.create_session("s")
        yield store


def stored(store: EventStore, value: Json) -> Json:
    event = store.append("s", "t", value)
    [read_back] = store.read("s", after_seq=event.seq - 1, limit=1).events
    return read_back.payload


@given(json_values)
@example({"": {"": [""]}, "\0": "\0"})
@example(["\ud83d", "\ude00", "\ude00\ud83d", "\ud83d\U0001f600\ude00"])
@example({"\ud800": [-0.0, 0.0, True, 1, 1.0, False, 0]})
@example([10**4300 - 1, 1 - 10**4300])
@settings(deadline=None, max_examples=400)
def test_any_json_value_comes_back_equal_type_for_type_or_is_refused(shared_store: EventStore, value: Json) -> None:
    if holds_a_pair(value):
        with pytest.raises(InvalidEvent, match="surrogate pair"):
            shared_store.append("s", "t", value)
    else:
        assert same(stored(shared_store, value), value)


@given(
    before=texts,
    high=st.characters(min_codepoint=0xD800, max_codepoint=0xDBFF),
    low=st.characters(min_codepoint=0xDC00, max_codepoint=0xDFFF),
    after=texts,
    as_key=st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_a_surrogate_pair_as_two_code_points_is_always_refused(
    shared_store: EventStore, before: str, high: str, low: str, after: str, as_key: bool
) -> None:
    text = before + high + low + after
    with pytest.raises(InvalidEvent, match="surrogate pair"):
        shared_store.append("s", "t", {text: 1} if as_key else [text])


@given(st.dictionaries(texts, json_values, max_size=5))
@settings(deadline=None, max_examples=100)
def test_any_json_object_comes_back_equal_as_the_metadata_of_a_session(
    shared_store: EventStore, value: dict[str, Json]
) -> None:
    if not holds_a_pair(value):
        shared_store.update_session("s", metadata=value)
        assert same(shared_store.get_session("s").metadata, value)


@given(st.lists(json_values, min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_many_values_appended_at_once_come_back_equal_in_order(shared_store: EventStore, values: list[Json]) -> None:
    kept = [value for value in values if not holds_a_pair(value)]
    before = shared_store.get_session("s").last_seq
    shared_store.append_many("s", [NewEvent(type="t", payload=value) for value in kept])
    read_back = [event.payload for event in shared_store.read("s", after_seq=before).events]
    assert same(read_back, kept)
