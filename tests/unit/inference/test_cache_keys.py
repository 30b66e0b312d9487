"""Keys: equal exactly where the questions are, whatever is put where in an item."""

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.inference.cache import keys as module
from services.inference.cache.keys import Keys, weight
from services.inference.items import (
    FeaturesItem,
    ImageItem,
    Item,
    TensorsItem,
    TextItem,
    TextPairItem,
)
from services.runtime.errors import GristmillError, InvalidRequest

SECRET = b"a secret of this test"
KEYS = Keys(SECRET)
DIGEST = "0" * 64


def key(item: Item, identity: str = "me", digest: str = DIGEST, **options: bool) -> bytes | None:
    (found,) = KEYS.of(identity, digest, [item], **options)
    return found


def told(item: Item) -> object:
    """What an item says, in a form that equals where it says the same."""
    match item:
        case TextItem(text):
            return "text", text
        case TextPairItem(first, second):
            return "pair", first, second
        case FeaturesItem():
            return "features", [struct.pack("<d", value) for value in item.values]
        case ImageItem(data):
            return "image", data
    assert isinstance(item, TensorsItem)
    return "tensors", {
        name: (
            array.dtype.str,
            array.shape,
            array.tolist() if array.dtype == object else bytes(array),
        )
        for name, array in item.tensors.items()
    }


# What is likely to be mistaken for something else: the letters and lengths of the encoding itself.
PIECE = st.sampled_from(
    ["", "a", "b", "ab", "t", "p", "\0", "\1", "\0" * 7, "\1" + "\0" * 7, "\ud83d"]
)
TEXT = st.lists(PIECE, max_size=4).map("".join)
BYTES = TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
NUMBER = st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), -float("inf"), 2.0**-149])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    kind = draw(st.sampled_from(["<f4", ">f4", "<f8", "<i4", "|u1", "|b1", "|O", "|S2", "<U1"]))
    shape = draw(st.sampled_from([(), (0,), (1,), (2,), (1, 2), (2, 1), (0, 2)]))
    if kind == "|O":
        found = np.empty(shape, dtype=object)
        for at in np.ndindex(shape):
            found[at] = draw(st.one_of(TEXT, BYTES))
        return found
    filling = draw(st.sampled_from([0, 1]))
    return np.full(shape, filling, dtype=kind)


ITEM: st.SearchStrategy[Item] = st.one_of(
    st.builds(TextItem, TEXT),
    st.builds(TextPairItem, TEXT, TEXT),
    st.builds(FeaturesItem, st.lists(NUMBER, max_size=3)),
    st.builds(ImageItem, BYTES),
    st.builds(TensorsItem, st.dictionaries(TEXT, arrays(), max_size=2)),
)


@given(ITEM, ITEM)
@example(TextPairItem("ab", ""), TextPairItem("a", "b"))
@example(TextPairItem("", "a"), TextPairItem("a", ""))
@example(TextItem("ab"), ImageItem(b"ab"))
@example(FeaturesItem([0.0]), FeaturesItem([-0.0]))
@example(FeaturesItem([0.0]), ImageItem(bytes(8)))
@example(FeaturesItem([1.0, 0.0]), FeaturesItem([1.0]))
@example(TextItem("\ud83d"), TextItem("?"))
@example(TextItem("\ud83d\ude00"), TextItem("\N{GRINNING FACE}"))
@example(
    TensorsItem({"a": np.zeros(2, np.float32)}), TensorsItem({"a": np.zeros((2, 1), np.float32)})
)
@example(TensorsItem({"a": np.zeros(1, np.int32)}), TensorsItem({"a": np.zeros(1, np.float32)}))
@example(TensorsItem({"a": np.zeros(1)}), TensorsItem({"b": np.zeros(1)}))
@example(
    TensorsItem({"a": np.array([b"b", b""], object)}),
    TensorsItem({"a": np.array([b"", b"b"], object)}),
)
@example(TensorsItem({"a": np.array(["x"], object)}), TensorsItem({"a": np.array([b"x"], object)}))
def test_keys_are_equal_exactly_where_items_are(one: Item, other: Item) -> None:
    assert (key(one) == key(other)) == (told(one) == told(other))


@given(st.lists(ITEM, max_size=4))
def test_a_message_has_the_keys_of_its_items_in_order(items: list[Item]) -> None:
    found = KEYS.of("me", DIGEST, items)
    assert found == [key(item) for item in items]
    assert all(one is not None and len(one) == 32 for one in found)


SCOPE = st.tuples(TEXT, TEXT, st.booleans())


@given(SCOPE, SCOPE)
@example(("a", "bc", False), ("ab", "c", False))
@example(("a", "b", False), ("a", "b", True))
def test_who_asks_what_of_which_model_and_how_is_all_in_the_key(
    one: tuple[str, str, bool], other: tuple[str, str, bool]
) -> None:
    def of(scope: tuple[str, str, bool]) -> bytes | None:
        identity, digest, refuse_longer = scope
        return key(TextItem("x"), identity, digest, refuse_longer=refuse_longer)

    assert (of(one) == of(other)) == (one == other)


def test_replicas_agree_where_they_share_the_secret_and_nowhere_else() -> None:
    item = TextItem("x")
    assert Keys(SECRET).of("me", DIGEST, [item]) == [key(item)]
    assert Keys(SECRET + b".").of("me", DIGEST, [item]) != [key(item)]


def test_a_secret_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Keys(b"fifteen letters")


def test_a_vector_is_the_same_in_a_list_and_in_an_array_of_any_layout() -> None:
    numbers = [0.5, -0.0, float(np.float32(0.1)), float("nan")]
    expected = key(FeaturesItem(numbers))
    wide = np.array([numbers, numbers], np.float32).T
    for values in (np.array(numbers, np.float32), wide[:, 0], tuple(numbers)):
        assert key(FeaturesItem(values)) == expected


def test_tensors_are_the_same_in_any_order_and_layout() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(2)
    expected = key(TensorsItem({"a": a, "b": b}))
    assert key(TensorsItem({"b": b, "a": np.asfortranarray(a)})) == expected
    assert key(TensorsItem({"a": a, "b": np.repeat(b, 2)[::2]})) == expected


def test_every_bit_of_a_number_counts() -> None:
    """Not-a-numbers too: a model may look at what they carry."""
    words = [0x7FC00000, 0x7FC00001, 0xFFC00000, 0x00000000, 0x80000000, 0x7F800000]
    vectors = [np.array([word], np.uint32).view(np.float32) for word in words]
    assert len({key(FeaturesItem(vector)) for vector in vectors}) == len(words)
    assert len({key(TensorsItem({"x": vector})) for vector in vectors}) == len(words)


def test_numbers_that_only_64_bits_tell_apart_differ() -> None:
    assert key(FeaturesItem([0.1])) != key(FeaturesItem([float(np.float32(0.1))]))


@pytest.mark.parametrize(
    "item",
    [
        InvalidRequest.field("content", "is required"),
        FeaturesItem(["a"]),  # type: ignore[list-item]
        FeaturesItem([10**400]),
        FeaturesItem(np.zeros((2, 2), np.float32)),
        TensorsItem({"a": np.array([1, None], object)}),
        TensorsItem({"a": np.zeros(2, dtype=[("x", "<i4")])}),
        TensorsItem({"a": np.zeros(2, dtype="<M8[s]")}),
    ],
    ids=repr,
)
def test_what_cannot_be_told_whole_has_no_key_and_harms_no_other(item: Item) -> None:
    good = TextItem("x")
    assert KEYS.of("me", DIGEST, [good, item, good]) == [key(good), None, key(good)]


def test_identities_without_end_take_no_memory_without_end() -> None:
    keys = Keys(SECRET)
    item = TextItem("x")
    before = keys.of("me", DIGEST, [item])
    for number in range(module.MOST_SCOPES + 10):
        keys.of(f"somebody-{number}", DIGEST, [item])
        assert len(keys._scopes) <= module.MOST_SCOPES
    assert keys.of("me", DIGEST, [item]) == before


def test_threads_make_the_same_keys() -> None:
    items = [TextItem(str(number)) for number in range(50)]
    keys = Keys(SECRET)
    with ThreadPoolExecutor(4) as threads:
        many = [threads.submit(keys.of, f"id-{n % 7}", DIGEST, items) for n in range(50)]
        for n, one in enumerate(many):
            assert one.result() == KEYS.of(f"id-{n % 7}", DIGEST, items)


def test_the_weight_is_about_the_bytes() -> None:
    items: list[Item | GristmillError] = [
        TextItem("abc"),
        TextPairItem("a", "bc"),
        FeaturesItem([1.0, 2.0]),
        ImageItem(b"12345"),
        TensorsItem({"a": np.zeros(3, np.float32)}),
        InvalidRequest("no item"),
    ]
    assert [weight([item]) for item in items] == [3, 3, 16, 5, 12, 0]
    assert weight(items) == 39
