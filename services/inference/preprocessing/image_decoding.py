"""An image file to pixels of the size that a model takes; knows no model and no tensor.

Only here is Pillow. It lets go of the interpreter while it decodes and resizes.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import WebPImagePlugin

from services.inference.manifest import Image
from services.inference.preprocessing import image_files
from services.inference.preprocessing.image_files import ImageFile

# Its import registers WebP: otherwise the first one makes Pillow import every format that it has.
if not WebPImagePlugin.SUPPORTED:
    raise ImportError("this build of Pillow lacks WebP")

# A JPEG is decoded to a half, a quarter or an eighth of its size where that leaves at least so many
# pixels for one of the result: in 35 % of the time for 12 megapixels. On photographs that changed
# no channel of a result by more than 3 of 255, and by 0.2 on average; on noise, stripes and letters
# by 6 and 1.2; on a zone plate by 11 and 0.3. With 1 in place of 4, photographs changed by 28.
DRAFT = 4
_FILTERS = {
    "nearest": Pillow.Resampling.NEAREST,
    "bilinear": Pillow.Resampling.BILINEAR,
    "bicubic": Pillow.Resampling.BICUBIC,
    "lanczos": Pillow.Resampling.LANCZOS,
}
# By EXIF orientation.
_TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


class _Room:
    """Bounds the pixels that all threads decode at once, and so their memory."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait for room for so many; others leave it as soon as they are decoded."""
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._left)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


_ROOM = _Room(image_files.MAX_PIXELS)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Which part of an image, in its own pixels, is resized to what."""

    own: tuple[int, int]
    left: float
    top: float
    width: float
    height: float
    size: tuple[int, int]

    def division(self) -> int:
        """By what a JPEG may be divided while it is decoded: 1, 2, 4 or 8."""
        ratio = min(self.width / self.size[0], self.height / self.size[1])
        # Of a last pixel that is only partly there, the edge would be another.
        fitting = [n for n in (2, 4, 8) if not (self.own[0] % n or self.own[1] % n)]
        return max([1, *(n for n in fitting if ratio >= n * DRAFT)])

    def box(self, divided: int) -> tuple[float, float, float, float]:
        """The part in an image that was divided."""
        right, bottom = self.left + self.width, self.top + self.height
        return self.left / divided, self.top / divided, right / divided, bottom / divided


def pixels(data: bytes, how: Image) -> NDArray[np.uint8]:
    """Height x width x channels of an image file, as `how` says but for scale and order.

    ValueError says, in words that stand after the file's name, why it is not taken.
    """
    file = image_files.read(data)
    with _ROOM.taken(file.pixels):
        try:
            small = _small(file, how)
        except Exception as error:
            # Whatever its parsers run into: the file is at fault, not this process.
            raise ValueError(f"is no {file.kind} that can be decoded") from error
    found = np.asarray(small)
    found = found.reshape(small.height, small.width, -1)[..., : how.depth]
    return _padded(found, how) if how.resize == "pad" else found


def _small(file: ImageFile, how: Image) -> Pillow.Image:
    """The image in its new size, upright; transparency may be one more band."""
    swapped = file.orientation >= 5
    size = (how.height, how.width) if swapped else (how.width, how.height)
    fit = _fit((file.width, file.height), size, how)
    with Pillow.open(io.BytesIO(file.data), formats=(file.kind,)) as image:
        if image.size != (file.width, file.height):
            raise ValueError("is not of the size that its header says")
        divided = 1 if how.interpolation == "nearest" else fit.division()
        if file.kind == "JPEG" and divided > 1:
            image.draft(None, (file.width // divided, file.height // divided))
        else:
            divided = 1
        image.load()
    plain = _plain(image, gray=how.channels == "grayscale")
    small = plain.resize(fit.size, _FILTERS[how.interpolation], fit.box(divided))
    turn = _TURNS.get(file.orientation)
    return small if turn is None else small.transpose(turn)


def _fit(own: tuple[int, int], size: tuple[int, int], how: Image) -> _Fit:
    ratios = size[0] / own[0], size[1] / own[1]
    if how.resize == "crop":
        ratio = max(ratios) / how.crop_share
        width, height = min(own[0], size[0] / ratio), min(own[1], size[1] / ratio)
        return _Fit(own, (own[0] - width) / 2, (own[1] - height) / 2, width, height, size)
    if how.resize == "pad":
        ratio = min(ratios)
        width, height = (max(1, min(s, round(o * ratio))) for o, s in zip(own, size, strict=True))
        size = (width, height)
    return _Fit(own, 0, 0, *own, size)


def _plain(image: Pillow.Image, *, gray: bool) -> Pillow.Image:
    """In mode RGB or L; RGBa or La, of colours as over black, where anything is transparent."""
    if image.mode == "I;16":
        image = _high_bytes(image)
    if not image.has_transparency_data:
        return _as("L" if gray else "RGB", image)
    image = _as("RGBA", image)
    return image.convert("LA").convert("La") if gray else image.convert("RGBa")


def _as(mode: str, image: Pillow.Image) -> Pillow.Image:
    # Pillow would copy what is of this mode already.
    return image if image.mode == mode else image.convert(mode)


def _high_bytes(image: Pillow.Image) -> Pillow.Image:
    """Gray of 16 bits in 8, which Pillow would cut off at 255; what is transparent is black."""
    wide = np.asarray(image)
    high = (wide >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        high[wide == transparent] = 0
    return Pillow.fromarray(high)


def _padded(found: NDArray[np.uint8], how: Image) -> NDArray[np.uint8]:
    height, width, _ = found.shape
    whole = np.zeros((how.height, how.width, how.depth), np.uint8)
    top, left = (how.height - height) // 2, (how.width - width) // 2
    whole[top : top + height, left : left + width] = found
    return whole
