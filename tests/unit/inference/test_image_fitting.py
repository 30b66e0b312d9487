"""Images in another size: stretched, cropped and padded as NumPy says it should be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from tests.unit.inference.pictures import as_it_is, away, coloured, encoded, file, images

sides = st.integers(1, 24)


@settings(deadline=None, max_examples=150)
@given(
    own=st.tuples(sides, sides),
    size=st.tuples(sides, sides),
    kernel=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    share=st.sampled_from([1.0, 0.875, 0.5]),
)
def test_stretched_and_cropped(
    own: tuple[int, int], size: tuple[int, int], kernel: str, share: float
) -> None:
    pixels = coloured(*own)
    found = encoded(images(*size, interpolation=kernel), file(pixels))
    # A colour between the directions that is rounded otherwise weighs more than 1 in a cubic.
    assert away(found, pixels, size, kernel).max() <= 2
    how = {"resize": "crop", "crop_share": share, "interpolation": kernel}
    found = encoded(images(*size, **how), file(pixels))
    ratio = max(size[0] / own[0], size[1] / own[1]) / share
    wide, high = size[0] / ratio, size[1] / ratio
    box = ((own[0] - wide) / 2, (own[1] - high) / 2, wide, high)
    assert away(found, pixels, size, kernel, box).max() <= 2


def test_the_nearest_pixel_stays_what_it_is() -> None:
    pixels = coloured(15, 9)
    smaller = encoded(images(5, 3, interpolation="nearest"), file(pixels))
    assert np.array_equal(smaller, pixels[1::3, 1::3])
    larger = encoded(images(30, 18, interpolation="nearest"), file(pixels))
    assert np.array_equal(larger, pixels.repeat(2, axis=0).repeat(2, axis=1))


@settings(deadline=None, max_examples=60)
@given(own=st.tuples(sides, sides), size=st.tuples(sides, sides))
def test_padded(own: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = np.maximum(coloured(*own), 1)
    found = encoded(images(*size, resize="pad"), file(pixels))
    ratio = min(size[0] / own[0], size[1] / own[1])
    wide, high = max(1, round(own[0] * ratio)), max(1, round(own[1] * ratio))
    left, top = (size[0] - wide) // 2, (size[1] - high) // 2
    inside = found[top : top + high, left : left + wide]
    assert away(inside, pixels, (wide, high), "bilinear").max() <= 1
    assert found.sum() == inside.sum()


def photograph(width: int, height: int) -> bytes:
    """A JPEG of soft colours with grain on it."""
    blots = Pillow.fromarray(coloured(30, 20)).resize((width, height), Pillow.Resampling.BICUBIC)
    grain = np.random.default_rng(1).normal(scale=12, size=(height, width, 3))
    pixels = np.clip(np.asarray(blots) + grain, 0, 255).astype(np.uint8)
    return file(pixels, "JPEG", quality=90)


@pytest.mark.parametrize(
    ("resize", "box"), [("stretch", None), ("crop", (250, 0, 1000, 1000))], ids=str
)
@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_a_large_jpeg_is_decoded_to_a_part_of_its_size(
    interpolation: str, resize: str, box: tuple[float, ...] | None
) -> None:
    """Which changes it within what is stated at DRAFT."""
    data = photograph(1500, 1000)
    whole = as_it_is(data, 1500, 1000)
    found = encoded(images(100, 100, resize=resize, interpolation=interpolation), data)
    off = away(found, whole, (100, 100), interpolation, box)
    # More than rounding would.
    assert 1 < off.max() <= 3
    assert off.mean() <= 0.25


def test_a_jpeg_that_cannot_be_divided_is_decoded_whole() -> None:
    """Because of its edges, or because one of its pixels is chosen."""
    data = photograph(1501, 1000)
    found = encoded(images(100, 100), data)
    assert away(found, as_it_is(data, 1501, 1000), (100, 100), "bilinear").max() <= 1
    data = photograph(1500, 1000)
    found = encoded(images(100, 100, interpolation="nearest"), data)
    assert away(found, as_it_is(data, 1500, 1000), (100, 100), "nearest").max() == 0
