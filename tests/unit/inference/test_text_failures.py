"""A text that a real tokenizer raises or panics on fails alone; what is no failure goes on up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit

from services.inference.backend import TensorSpec
from services.inference.items import Encoded, Item, TextItem, TextPairItem
from services.inference.manifest import Input
from services.inference.preprocessing import TextPreprocessor
from services.runtime.errors import InvalidRequest

IDS = TensorSpec("input_ids", "INT64", (-1, -1))
PANICS = "a" * 40 + "b"


def raises(folder: Path) -> Path:
    """A tokenizer that has no token for a word that it does not know, and says so."""
    tokenizer = Tokenizer(WordLevel({"good": 0, "bad": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return saved(tokenizer, folder)


def panics(folder: Path) -> Path:
    """A tokenizer whose pattern gives up on a long run: its library panics, in Rust."""
    tokenizer = Tokenizer(WordLevel({"good": 0, "bad": 1}, unk_token="bad"))
    tokenizer.pre_tokenizer = Split(Regex(r"(a|a?)+$"), "removed")
    return saved(tokenizer, folder)


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    """The tokenizer as a file."""
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def texts(path: Path, kind: str = "text") -> TextPreprocessor:
    """A preprocessor around it."""
    return TextPreprocessor(Input.model_validate({"kind": kind, "max_tokens": 8}), path, [IDS])


def test_the_libraries_fail_as_these_tests_mean(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Missing"):
        Tokenizer.from_file(str(raises(tmp_path))).encode("nix")
    with pytest.raises(BaseException, match="retry-limit") as raised:
        Tokenizer.from_file(str(panics(tmp_path))).encode(PANICS)
    assert not isinstance(raised.value, Exception)


@pytest.mark.parametrize(
    ("make", "text", "why"),
    [(raises, "nix", "Missing [UNK] token"), (panics, PANICS, "retry-limit")],
)
def test_a_text_fails_alone(
    tmp_path: Path, make: Callable[[Path], Path], text: str, why: str
) -> None:
    items = [TextItem("good"), TextItem(text), TextItem("good"), TextItem(text)]
    outcomes = texts(make(tmp_path)).encode(items)
    for outcome in outcomes[::2]:
        assert isinstance(outcome, Encoded), outcome
        assert outcome.inputs["input_ids"].tolist() == [0]
    for outcome in outcomes[1::2]:
        assert isinstance(outcome, InvalidRequest)
        (violation,) = outcome.violations
        assert violation.field == "text"
        assert "the tokenizer does not take it" in violation.description
        assert why in violation.description


def test_a_pair_fails_alone(tmp_path: Path) -> None:
    items: list[Item] = [TextPairItem("good", PANICS), TextPairItem("good", "good")]
    first, second = texts(panics(tmp_path), "text_pair").encode(items)
    assert isinstance(first, InvalidRequest)
    assert isinstance(second, Encoded)


class Stopped:
    """A tokenizer that a signal arrives in."""

    def encode_batch(self, texts: Any) -> Any:
        raise KeyboardInterrupt


def test_a_signal_is_no_failure_of_a_text(tmp_path: Path) -> None:
    preprocessor = texts(raises(tmp_path))
    preprocessor._tokenizer = Stopped()
    with pytest.raises(KeyboardInterrupt):
        preprocessor.encode([TextItem("good")])
