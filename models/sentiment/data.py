"""The human-rated sentences and how they are split; knows no encoder and no head."""

from __future__ import annotations

import hashlib
import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.packages import PackageSource, open_member
from models.recipe import Ingredient
from models.sources import SourceFile

RATINGS = Ingredient(
    SourceFile(
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
        2338514,
    ),
    PackageSource(
        "vaderSentiment==3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        2466783,
    ),
)

COLLECTIONS = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
CLEAR_RATING = 1.0

Part = Literal["train", "validation", "held_out"]
PARTS: tuple[Part, ...] = ("train", "validation", "held_out")


@dataclass(frozen=True)
class Sentence:
    """A sentence, the mean of its ratings (-4 to 4), its document and its part of the split."""

    text: str
    rating: float
    document: str
    part: Part

    @property
    def label(self) -> int:
        return int(self.rating > 0)

    @property
    def is_clear(self) -> bool:
        return abs(self.rating) >= CLEAR_RATING


def read_sentences(archive: Path) -> list[Sentence]:
    """Every sentence but those whose wording also occurs in a part further from training."""
    sentences = [s for name in COLLECTIONS for s in _read_collection(archive, name)]
    furthest: dict[str, int] = {}
    for sentence in sentences:
        key = wording(sentence.text)
        furthest[key] = max(furthest.get(key, 0), PARTS.index(sentence.part))
    return [s for s in sentences if PARTS.index(s.part) == furthest[wording(s.text)]]


def part_of(document: str) -> Part:
    """20 % of documents are held out and 16 % validate, by hash: the same everywhere, always."""
    bucket = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) % 100
    if bucket < 20:
        return "held_out"
    return "validation" if bucket < 36 else "train"


def wording(text: str) -> str:
    """The letters alone, so that case, digits, links and punctuation do not hide a duplicate."""
    return re.sub(r"[^a-z]", "", text.lower())


def _read_collection(archive: Path, name: str) -> list[Sentence]:
    with open_member(archive, f"hutto_ICWSM_2014/{name}_GroundTruth.txt") as stream:
        lines = stream.read().decode("utf-8-sig").split("\n")
    return [_sentence(name, line) for line in lines if line.strip()]


def _sentence(collection: str, line: str) -> Sentence:
    number, rating, raw = line.rstrip("\r").split("\t", 2)
    # The collections were scraped from pages: `&amp;amp;` is what a reader saw as `&`.
    text = html.unescape(html.unescape(raw))
    article, in_article, _ = number.partition("_")
    document = f"{collection}/{article}" if in_article else f"text/{wording(text)}"
    return Sentence(text, float(rating), document, part_of(document))
