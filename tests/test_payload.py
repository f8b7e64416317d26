"""What is read equals what was written, or `append` raised and named the place."""

import enum
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from unittest.mock import Mock

import pytest

from aegis_store import EventStore, EventTooLarge, InvalidEvent, NewEvent, RetentionPolicy
from aegis_store.events import Json

NAN = float("nan")
INFINITY = float("inf")
SECRET = "hunter2-the-payload"


@pytest.fixture(autouse=True)
def session(store: EventStore) -> None:
    store.create_session("s")


def stored(store: EventStore, payload: Json) -> Json:
    event = store.append("s", "t", payload)
    return store.read("s", after_seq=event.seq - 1).events[0].payload


def refused(store: EventStore, payload: Json) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        store.append("s", "t", payload)
    assert store.get_session("s").last_seq == 0
    return caught.value


def nested_lists(depth: int) -> list[Json]:
    outer: list[Json] = []
    for _ in range(depth - 1):
        outer = [outer]
    return outer


def nested_dicts(depth: int) -> dict[str, Json]:
    outer: dict[str, Json] = {}
    for _ in range(depth - 1):
        outer = {"k": outer}
    return outer


@pytest.mark.parametrize(
    ("payload", "place", "problem"),
    [
        (NAN, "payload", "nan"),
        ([0, INFINITY], "payload[1]", "inf"),
        ({"a": {"b": [-INFINITY]}}, "payload.a.b[0]", "-inf"),
        ({"a": (1, 2)}, "payload.a", "tuple"),
        ((), "payload", "tuple"),
        ([{1, 2}], "payload[0]", "set"),
        ([frozenset()], "payload[0]", "frozenset"),
        ({"data": b"x"}, "payload.data", "bytes"),
        ({"data": bytearray(b"x")}, "payload.data", "bytearray"),
        ({"when": datetime(2026, 1, 1, tzinfo=UTC)}, "payload.when", "datetime"),
        ({"price": Decimal("1.5")}, "payload.price", "Decimal"),
        ([object()], "payload[0]", "object"),
        ({1: "a"}, "payload", "int"),
        ({"a": {None: 1}}, "payload.a", "NoneType"),
        ([{True: 1}], "payload[0]", "bool"),
        ({1.5: 1}, "payload", "float"),
        ({b"k": 1}, "payload", "bytes"),
        ({("a", "b"): 1}, "payload", "tuple"),
        ({"odd key": NAN}, "payload['odd key']", "nan"),
        ({"": [NAN]}, "payload[''][0]", "nan"),
        ({"a\n": NAN}, "payload['a\\n']", "nan"),
        ({"n": 10**4300}, "payload.n", "4,300"),
        ([-(10**4300)], "payload[0]", "4,300"),
        ([10**100_000], "payload[0]", "4,300"),
        ({"text": "cut \ud83d\ude00"}, "payload.text", "surrogate pair"),
        ({"\ud83d\ude00": 1}, "payload['\\ud83d\\ude00']", "surrogate pair"),
    ],
)
def test_what_would_not_come_back_is_refused_with_the_path_to_it(
    store: EventStore, payload: Json, place: str, problem: str
) -> None:
    error = refused(store, payload)
    assert error.path == place
    assert str(error).startswith(place)
    assert problem in str(error)


@pytest.mark.parametrize("claimed", [dict, list, str, int, float])
def test_an_object_that_only_claims_to_be_of_a_json_type_is_refused(store: EventStore, claimed: type) -> None:
    assert refused(store, {"a": [Mock(spec=claimed)]}).path == "payload.a[0]"


@pytest.mark.parametrize("depth", [199, 200])
@pytest.mark.parametrize("nested", [nested_lists, nested_dicts])
def test_a_payload_of_up_to_200_levels_comes_back(store: EventStore, nested: Any, depth: int) -> None:
    payload = nested(depth)
    assert stored(store, payload) == payload


@pytest.mark.parametrize("nested", [nested_lists, nested_dicts])
def test_a_payload_of_201_levels_is_refused(store: EventStore, nested: Any) -> None:
    assert "deeper than 200 levels" in str(refused(store, nested(201)))


def test_a_payload_of_100000_levels_is_refused(store: EventStore) -> None:
    assert "deeper than 200 levels" in str(refused(store, nested_lists(100_000)))


def test_a_list_that_contains_itself_is_refused(store: EventStore) -> None:
    cycle: list[Json] = [1]
    cycle.append(cycle)
    assert "contains itself" in str(refused(store, cycle))


def test_a_dict_that_contains_itself_is_refused(store: EventStore) -> None:
    cycle: dict[str, Json] = {"n": 1}
    cycle["self"] = [cycle]
    assert "contains itself" in str(refused(store, cycle))


# The limit is no measurement: without a bound on the steps these would take longer than the universe is old.
@pytest.mark.timeout(90)
@pytest.mark.parametrize("fill", [1, NAN], ids=["storable", "not storable"])
def test_lists_shared_over_100_levels_are_refused_after_bounded_work(store: EventStore, fill: Json) -> None:
    payload: list[Json] = [fill]
    for _ in range(100):
        payload = [payload, payload]
    assert refused(store, payload).path.startswith("payload")


@pytest.mark.timeout(90)
def test_dicts_shared_over_100_levels_are_refused_after_bounded_work(store: EventStore) -> None:
    payload: dict[str, Json] = {}
    for _ in range(100):
        payload = {"a": payload, "b": payload}
    assert isinstance(refused(store, payload), EventTooLarge)


def test_a_list_that_stands_twice_without_a_cycle_comes_back_twice(store: EventStore) -> None:
    shared = [1]
    assert stored(store, [shared, shared, {"again": shared}]) == [[1], [1], {"again": [1]}]


@pytest.mark.parametrize(
    "number",
    [10**4300 - 1, 1 - 10**4300, 2**63, -(2**63) - 1, 2**64, 0],
    ids=["4300 digits", "minus 4300 digits", "2**63", "-2**63-1", "2**64", "0"],
)
def test_whole_numbers_of_up_to_4300_digits_come_back(store: EventStore, number: int) -> None:
    assert stored(store, [number]) == [number]


@pytest.mark.parametrize("number", [1e308, -1e308, 5e-324, 0.1, 1e16, 1e-7, 123456789.123456789])
def test_floats_come_back_to_the_last_bit(store: EventStore, number: float) -> None:
    assert stored(store, number).hex() == number.hex()


def test_minus_zero_keeps_its_sign(store: EventStore) -> None:
    assert [math.copysign(1, zero) for zero in stored(store, [-0.0, 0.0])] == [-1.0, 1.0]


def test_true_one_and_one_point_zero_stay_three_things(store: EventStore) -> None:
    payload = [True, 1, 1.0, False, 0, 0.0, None]
    assert [type(item) for item in stored(store, payload)] == [bool, int, float, bool, int, float, type(None)]


@pytest.mark.parametrize("text", ["", "\0", "a\0b", "\x1f\x7f", "\u2028", "\ufeff", "\U0001f600", "\ufffe", '"\\/'])
def test_any_text_comes_back_as_value_and_as_key(store: EventStore, text: str) -> None:
    assert stored(store, {text: text}) == {text: text}


LONE_SURROGATES = {
    "high": "\ud83d",
    "low": "\ude00",
    "low, high": "\ude00\ud83d",
    "around": "\ud83d\U0001f600\ude00",
    "after é": "é\ud83d",
}


@pytest.mark.parametrize("name", LONE_SURROGATES)
def test_a_lone_surrogate_comes_back_as_it_was(store: EventStore, name: str) -> None:
    text = LONE_SURROGATES[name]
    assert stored(store, {text: [text, "\U0001f600"]}) == {text: [text, "\U0001f600"]}


def test_10000_keys_come_back_in_their_order(store: EventStore) -> None:
    payload = {f"key {number * 7919 % 10_000}": number for number in range(10_000)}
    assert list(stored(store, payload).items()) == list(payload.items())


@pytest.mark.parametrize("payload", [None, True, 0, 1.5, "", [], {}])
def test_a_payload_may_be_any_json_value(store: EventStore, payload: Json) -> None:
    read_back = stored(store, payload)
    assert (type(read_back), read_back) == (type(payload), payload)


class LyingDict(dict[str, Json]):
    def __iter__(self) -> Iterator[str]:
        return iter(["lie"])

    def __len__(self) -> int:
        return 99

    def __getitem__(self, key: str) -> Json:
        return "lie"

    def keys(self) -> Any:
        return ["lie"]

    def values(self) -> Any:
        return ["lie"]

    def items(self) -> Any:
        return [("lie", "lie")]


class LyingList(list[Json]):
    def __iter__(self) -> Iterator[Json]:
        return iter(["lie"])

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: Any) -> Json:
        return "lie"


class LyingStr(str):
    def __str__(self) -> str:
        return "lie"

    def __len__(self) -> int:
        return 0

    def encode(self, *_: Any) -> bytes:
        return b"lie"


class LyingInt(int):
    def __int__(self) -> int:
        return 13

    def __index__(self) -> int:
        return 13

    def __repr__(self) -> str:
        return "13"

    def __lt__(self, other: object) -> bool:
        return True


class LyingFloat(float):
    def __float__(self) -> float:
        return 13.0

    def __repr__(self) -> str:
        return "13.0"


class Colour(enum.IntEnum):
    RED = 3


class Mood(enum.StrEnum):
    CALM = "calm"


@pytest.mark.parametrize(
    ("payload", "plain"),
    [
        (LyingDict(truth=1), {"truth": 1}),
        (LyingList([1, 2]), [1, 2]),
        (LyingStr("truth"), "truth"),
        (LyingInt(7), 7),
        (LyingFloat(7.5), 7.5),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(list, {"a": [1]}), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (Colour.RED, 3),
        (Mood.CALM, "calm"),
        ({LyingStr("key"): LyingList([LyingInt(1)])}, {"key": [1]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclasses_come_back_as_the_plain_equal_value(store: EventStore, payload: Json, plain: Json) -> None:
    read_back = stored(store, [payload])[0]
    assert type(read_back) is type(plain)
    assert read_back == plain


def test_a_subclass_of_float_cannot_hide_a_nan(store: EventStore) -> None:
    assert refused(store, [LyingFloat("nan")]).path == "payload[0]"


def test_a_subclass_of_int_cannot_hide_its_size(store: EventStore) -> None:
    assert refused(store, [LyingInt(10**4300)]).path == "payload[0]"


def test_keys_that_differ_as_objects_but_not_as_text_are_refused(store: EventStore) -> None:
    class Apart(str):
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            return self is other

    error = refused(store, {Apart("k"): 1, Apart("k"): 2})
    assert error.path == "payload.k"
    assert "twice" in str(error)


def test_a_payload_of_exactly_max_event_bytes_is_stored(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=100))
    assert len(stored(store, "x" * 98)) == 98


def test_a_payload_one_byte_over_max_event_bytes_is_refused_with_both_numbers(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=100))
    error = refused(store, "x" * 99)
    assert isinstance(error, EventTooLarge)
    assert (error.payload_bytes, error.max_event_bytes, error.path) == (101, 100, "payload")
    assert "payload_ref" in str(error)


def test_the_size_of_a_payload_is_counted_in_bytes_of_utf_8(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=100))
    assert stored(store, "é" * 49) == "é" * 49
    with pytest.raises(EventTooLarge) as caught:
        store.append("s", "t", "é" * 50)
    assert caught.value.payload_bytes == 102


def test_no_policy_lets_a_payload_over_16_mib_in(store: EventStore) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=16 * 1024 * 1024))
    assert isinstance(refused(store, "x" * (16 * 1024 * 1024)), EventTooLarge)


def test_changing_the_payload_after_the_append_changes_nothing_stored(store: EventStore) -> None:
    payload = {"n": [1]}
    store.append("s", "t", payload)
    payload["n"].append(2)
    assert store.read("s").events[0].payload == {"n": [1]}


@pytest.mark.parametrize(
    "payload",
    [
        {"k": [SECRET, NAN]},
        {"k": SECRET.encode()},
        {"k": (SECRET,)},
        {"k": {SECRET}},
        {"k": SECRET + "\ud83d\ude00"},
        {"k": [SECRET, nested_lists(201)]},
        {"k": SECRET, 1: 1},
        {"k": int.from_bytes(SECRET.encode() * 200)},
        {"k": SECRET * 1000},
    ],
    ids=lambda payload: type(payload["k"]).__name__,
)
def test_no_refusal_repeats_the_content_of_the_payload(store: EventStore, payload: Json) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=10_000))
    error = refused(store, payload)
    assert SECRET not in str(error)
    assert SECRET not in repr(error)


def test_a_refusal_can_be_printed_whatever_the_payload_holds(store: EventStore) -> None:
    message = str(refused(store, {"\x1b[31m\ud83d": NAN}))
    assert message.isprintable()
    assert message.encode().decode() == message


def test_a_refusal_in_a_batch_names_the_event_and_the_path(store: EventStore) -> None:
    events = [NewEvent(type="t", payload=1), NewEvent(type="t", payload={"a": NAN})]
    with pytest.raises(InvalidEvent) as caught:
        store.append_many("s", events)
    assert "events[1]" in str(caught.value)
    assert "payload.a" in str(caught.value)
    assert store.get_session("s").last_seq == 0
