"""The split is the same everywhere and lets no document or wording stand on both sides."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from models.sentiment.data import COLLECTIONS, PARTS, part_of, read_sentences, wording


def archive(folder: Path, **texts: str) -> Path:
    path = folder / "ratings.tar.gz"
    with tarfile.open(path, "w:gz") as opened:
        for name in COLLECTIONS:
            content = texts.get(name, "").encode()
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def test_lines_become_sentences(tmp_path: Path) -> None:
    first, second, third = read_sentences(
        archive(
            tmp_path,
            tweets="1\t2.5\tNice &amp;amp; warm\r\n2\t-0.5\tCold\r\n",
            nytEditorialSnippets="\ufeff7_1\t-1\tRain.\n",
        )
    )
    assert (first.text, first.rating, first.label, first.is_clear) == ("Nice & warm", 2.5, 1, True)
    assert (second.label, second.is_clear) == (0, False)
    assert third.document == "nytEditorialSnippets/7"


def test_sentences_of_one_document_stay_together(tmp_path: Path) -> None:
    lines = "".join(
        f"{n // 10}_{n}\t1\tword {'abcdefghij'[n % 10] * (n + 1)}\n" for n in range(200)
    )
    sentences = read_sentences(archive(tmp_path, amazonReviewSnippets=lines))
    parts = {
        document: {s.part for s in sentences if s.document == document}
        for document in {s.document for s in sentences}
    }
    assert len(parts) == 20
    assert all(len(found) == 1 for found in parts.values())


def test_a_wording_that_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    held_out = next(n for n in range(999) if part_of(f"amazonReviewSnippets/{n}") == "held_out")
    train = next(n for n in range(999) if part_of(f"amazonReviewSnippets/{n}") == "train")
    lines = f"{train}_1\t1\tSo good, 10/10!\n{held_out}_1\t2\tSO GOOD...\n"
    (kept,) = read_sentences(archive(tmp_path, amazonReviewSnippets=lines))
    assert kept.part == "held_out"


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ("tweets/1", "train"),
        ("amazonReviewSnippets/4", "validation"),
        ("nytEditorialSnippets/3", "held_out"),
    ],
)
def test_the_split_never_moves(document: str, part: str) -> None:
    assert part_of(document) == part


def test_the_parts_have_their_shares() -> None:
    found = [part_of(f"document/{n}") for n in range(5000)]
    shares = [found.count(part) / len(found) for part in PARTS]
    assert shares == pytest.approx([0.64, 0.16, 0.20], abs=0.02)


def test_wording_is_letters_alone() -> None:
    assert wording("@You: SO, good 4 me!") == "yousogoodme"
