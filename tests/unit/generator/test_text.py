"""Tokens to text: whatever the cut, deltas join to the text and no stop string shows."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.generator.text import Detokenizer, PieceReader, StopFilter, joined

# A loaded machine makes any example slow.
unhurried = settings(deadline=None)

# Emoji with joiners and skin tones, combining marks, CJK, right to left, astral, NUL and a BOM.
PIECES = [
    "a",
    " ",
    "é",
    "e\u0301",
    "中",
    "文",
    "한",
    "ש",
    "😀",
    "👩🏽\u200d🚀",
    "🇫🇷",
    "𝔘",
    "\0",
    "\ufeff",
]
EMOJI = regex.compile(r"[\p{Extended_Pictographic}\p{Regional_Indicator}]")
PLAIN = st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")
TEXTS = st.lists(st.sampled_from(PIECES) | PLAIN, max_size=12).map("".join)


class Bytewise:
    """Tokens that are stretches of UTF-8, as a byte-level tokenizer makes them; ids index them."""

    def __init__(self, tokens: Sequence[bytes], errors: str) -> None:
        self._tokens, self._errors = tokens, errors

    def __call__(self, ids: Sequence[int]) -> str:
        return self.bytes(ids).decode(errors=self._errors)

    def bytes(self, ids: Sequence[int]) -> bytes:
        """What the tokens stand for."""
        return b"".join(self._tokens[token] for token in ids)


def cut(draw: st.DrawFn, data: Sequence[int] | bytes, most: int) -> list[slice]:
    """Stretches that cover the data, the empty one among them."""
    marks = draw(st.lists(st.integers(0, len(data)), max_size=most).map(sorted))
    edges = [0, *marks, len(data)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


@st.composite
def tokenisations(
    draw: st.DrawFn, texts: st.SearchStrategy[bytes]
) -> tuple[list[bytes], list[Sequence[int]]]:
    """Tokens of some bytes, and the pushes in which they come."""
    data = draw(texts)
    tokens = [data[piece] for piece in cut(draw, data, 24)]
    ids = range(len(tokens))
    return tokens, [ids[piece] for piece in cut(draw, ids, 24)]


VALID = tokenisations(TEXTS.map(str.encode))
# As OpenVINO leaves missing bytes out, and as Hugging Face writes U+FFFD for them.
DECODERS = pytest.mark.parametrize("errors", ["ignore", "replace"])


def deltas_of(decode: Bytewise, pushes: Sequence[Sequence[int]]) -> Iterator[tuple[str, bytes]]:
    """Each delta, with the bytes pushed so far; then what flush gives."""
    text = Detokenizer(decode)
    for ids in pushes:
        delta = text.push(ids)
        yield delta, decode.bytes(text.ids)
    yield text.flush(), decode.bytes(text.ids)


class TestDetokenizer:
    @DECODERS
    @unhurried
    @given(VALID)
    @example(([b"\xf0", b"\x9f", b"\x98", b"\x80"], [[0], [1], [2], [3]]))
    @example(([b"a\xe4", b"\xb8\xad", b"b"], [[0], [1], [2]]))
    def test_deltas_join_to_the_text(
        self, errors: str, given: tuple[list[bytes], list[Sequence[int]]]
    ) -> None:
        tokens, pushes = given
        joined = "".join(delta for delta, _ in deltas_of(Bytewise(tokens, errors), pushes))
        assert joined == b"".join(tokens).decode()

    @DECODERS
    @unhurried
    @given(VALID)
    def test_no_delta_has_a_part_of_a_character(
        self, errors: str, given: tuple[list[bytes], list[Sequence[int]]]
    ) -> None:
        tokens, pushes = given
        joined = ""
        for delta, so_far in deltas_of(Bytewise(tokens, errors), pushes):
            assert "\ufffd" not in delta
            joined += delta
            assert so_far.decode(errors="ignore").startswith(joined)

    @DECODERS
    @unhurried
    @given(VALID)
    def test_nothing_but_an_emoji_is_held_back_at_the_end_of_a_character(
        self, errors: str, given: tuple[list[bytes], list[Sequence[int]]]
    ) -> None:
        tokens, pushes = given
        joined = ""
        for delta, so_far in deltas_of(Bytewise(tokens, errors), pushes):
            joined += delta
            try:
                whole = so_far.decode()
            except UnicodeDecodeError:
                continue
            held = whole[len(joined) :]
            assert whole.startswith(joined)
            assert not held or (len(regex.findall(r"\X", held)) == 1 and EMOJI.search(held))

    @DECODERS
    @unhurried
    @given(VALID)
    def test_no_emoji_is_split(
        self, errors: str, given: tuple[list[bytes], list[Sequence[int]]]
    ) -> None:
        tokens, pushes = given
        text = Detokenizer(Bytewise(tokens, errors))
        deltas = [text.push(push) for push in pushes] + [text.flush()]
        edges = set(itertools.accumulate(len(delta) for delta in deltas))
        whole = "".join(deltas)
        for cluster in regex.finditer(r"\X", whole):
            if EMOJI.match(cluster.group()) and len(cluster.group()) < 64:
                assert not edges & set(range(cluster.start() + 1, cluster.end()))

    @DECODERS
    @unhurried
    @given(tokenisations(st.binary(max_size=24) | st.just("x\ufffdy\ufffd".encode())))
    @example(([b"\xe4\xb8"], [[0]]))
    @example(([b"\xe4", b"A", b"\xb8"], [[0], [1], [2]]))
    def test_bytes_that_are_no_text_come_as_the_tokenizer_decodes_them(
        self, errors: str, given: tuple[list[bytes], list[Sequence[int]]]
    ) -> None:
        tokens, pushes = given
        joined = "".join(delta for delta, _ in deltas_of(Bytewise(tokens, errors), pushes))
        assert joined == b"".join(tokens).decode(errors=errors)

    def test_text_that_depends_on_what_stands_before_joins_too(self) -> None:
        """SentencePiece drops the space at the beginning of whatever it decodes."""
        words = ["▁Hello", "▁world", "!", "▁", "▁you"]

        def decode(ids: Sequence[int]) -> str:
            return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

        text = Detokenizer(decode)
        deltas = [text.push([i]) for i in range(len(words))]
        assert "".join([*deltas, text.flush()]) == decode(range(len(words))) == "Hello world!  you"

    def test_decodes_a_window_that_does_not_grow(self) -> None:
        longest = 0

        def decode(ids: Sequence[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return "x" * len(ids)

        text = Detokenizer(decode)
        for i in range(1000):
            assert text.push([i]) == "x"
        assert longest == 2

    def test_flush_gives_what_is_incomplete_once(self) -> None:
        decode = Bytewise([b"a", b"\xf0\x9f"], "replace")
        text = Detokenizer(decode)
        assert (text.push([0]), text.push([1])) == ("a", "")
        assert (text.flush(), text.flush()) == ("\ufffd", "")

    def test_flush_of_nothing_is_empty(self) -> None:
        assert Detokenizer(Bytewise([], "ignore")).flush() == ""


# Two letters make stop strings overlap themselves and each other as often as can be.
LETTERS = st.text(alphabet="ab😀", max_size=24)
STOPS = st.lists(st.text(alphabet="ab😀", min_size=1, max_size=6), max_size=4).map(tuple)


def naive(text: str, stops: Sequence[str]) -> tuple[str, str]:
    """What a reader of one character at a time says: the text before the first stop complete."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, ""


@st.composite
def chunks(draw: st.DrawFn, texts: st.SearchStrategy[str] = LETTERS) -> list[str]:
    """A text in pieces, empty ones among them."""
    text = draw(texts)
    return [text[piece] for piece in cut(draw, range(len(text)), 12)]


def pushed(filter_: StopFilter, pieces: Sequence[str], note: Callable[[str], None]) -> str:
    """The output, each state of it told to `note`; flushed unless a stop ended it."""
    out = ""
    for piece in pieces:
        out += filter_.push(piece)
        note(out)
    return out if filter_.matched else out + filter_.flush()


class TestPieceReader:
    @unhurried
    @given(tokenisations(st.binary(max_size=40)))
    def test_deltas_join_to_what_the_bytes_are(
        self, given: tuple[list[bytes], list[Sequence[int]]]
    ) -> None:
        tokens, pushes = given
        reader = PieceReader(tokens)
        deltas = [reader.push(push) for push in pushes]
        whole = joined(tokens, [one for push in pushes for one in push])
        assert "".join([*deltas, reader.flush()]) == whole

    @unhurried
    @given(VALID)
    def test_no_character_and_no_emoji_is_split(
        self, given: tuple[list[bytes], list[Sequence[int]]]
    ) -> None:
        tokens, pushes = given
        reader = PieceReader(tokens)
        deltas = [*(reader.push(push) for push in pushes), reader.flush()]
        assert not any("\ufffd" in delta for delta in deltas)
        edges = set(itertools.accumulate(len(delta) for delta in deltas))
        for cluster in regex.finditer(r"\X", "".join(deltas)):
            if EMOJI.match(cluster.group()) and len(cluster.group()) < 64:
                assert not edges & set(range(cluster.start() + 1, cluster.end()))


class TestStopFilter:
    @unhurried
    @given(chunks(), STOPS)
    @example(["abab", "b"], ("abb",))
    @example(["abcd", "e"], ("abcde", "bcd"))
    @example(["abcde"], ("abcde", "bcd"))
    @example(["ab", "cd"], ("abcd", "ab"))
    def test_gives_the_naive_answer_however_the_text_is_cut(
        self, pieces: list[str], stops: tuple[str, ...]
    ) -> None:
        before, match = naive("".join(pieces), stops)
        filter_ = StopFilter(stops)
        assert pushed(filter_, pieces, lambda out: None) == before
        assert filter_.matched == match

    @unhurried
    @given(chunks(), STOPS)
    def test_never_lets_out_what_a_stop_may_take_back(
        self, pieces: list[str], stops: tuple[str, ...]
    ) -> None:
        before, _ = naive("".join(pieces), stops)

        def note(out: str) -> None:
            assert before.startswith(out)
            assert not any(stop in out for stop in stops)

        pushed(StopFilter(stops), pieces, note)

    @unhurried
    @given(chunks(), STOPS)
    def test_holds_back_no_more_than_a_stop_may_take_back(
        self, pieces: list[str], stops: tuple[str, ...]
    ) -> None:
        filter_, out, text = StopFilter(stops), "", ""
        for piece in pieces:
            out, text = out + filter_.push(piece), text + piece
            if filter_.matched:
                return
            held = text.removeprefix(out)
            assert not held or any(stop.startswith(held) for stop in stops)

    @unhurried
    @given(chunks(), STOPS, st.text(max_size=5))
    def test_after_a_match_nothing_comes(
        self, pieces: list[str], stops: tuple[str, ...], more: str
    ) -> None:
        filter_ = StopFilter(stops)
        pushed(filter_, pieces, lambda out: None)
        if match := filter_.matched:
            assert (filter_.push(more), filter_.flush(), filter_.matched) == ("", "", match)

    def test_without_stops_everything_passes_at_once(self) -> None:
        filter_ = StopFilter(())
        assert (filter_.push("ab"), filter_.push(""), filter_.flush()) == ("ab", "", "")

    def test_flush_gives_the_beginning_of_a_stop_that_never_came_once(self) -> None:
        filter_ = StopFilter(("END",))
        assert filter_.push("the EN") == "the "
        assert (filter_.flush(), filter_.flush()) == ("EN", "")

    @unhurried
    @given(TEXTS, st.data())
    def test_stops_may_hold_any_character(self, text: str, data: st.DataObject) -> None:
        if not text:
            return
        start = data.draw(st.integers(0, len(text) - 1))
        stop = text[start : data.draw(st.integers(start + 1, len(text)))]
        before, _ = naive(text, (stop,))
        assert pushed(StopFilter((stop,)), list(text), lambda out: None) == before
