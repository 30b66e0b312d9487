"""A tokenizer small enough to read: each word of a list is its own token."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

PAD, UNKNOWN, START, END = 0, 1, 2, 3
WORDS = ("good", "bad", "film", "a", "the")


def write_tokenizer(
    folder: Path, words: Sequence[str] = WORDS, *, special: bool = True, pad: str = "[PAD]"
) -> Path:
    """A `tokenizer.json` where the first of `words` is token 4; `special` adds start and end."""
    names = (pad, "[UNK]", "[CLS]", "[SEP]", *words)
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", START), ("[SEP]", END)],
        )
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
