"""An image file before it is decoded: what it costs, how it is turned, and what of it to keep.

Decoders parse whatever a file brings: millions of empty chunks or comments, profiles that inflate,
EXIF whose tags share their bytes, scans without end. All of that is left out or refused here, by
what the header says and with a bound on every loop. Knows no pixel and no decoder.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

MAX_PIXELS = 2**26
# Pillow gathers a row of pixels from small pieces, in time that grows with its square.
MAX_SIDE = 2**16 - 1
MAX_PARTS = 2**16
# What decoding may go over, in pixels: each scan of a JPEG goes over all of them.
MAX_WORK = 2**30
# Pillow unpacks run lengths of BMP in Python, which is as slow as so many scans.
BMP_RUN_LENGTH_WORK = 1024

_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Not: fill bytes, an escaped 0xff, restarts within a scan.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# A search lets no other thread run; so it goes by pieces.
_JPEG_PIECE = 2**16
_JPEG_ALONE = {0x01, 0xD8}
_JPEG_SCAN, _JPEG_END, _JPEG_EXIF = 0xDA, 0xD9, 0xE1
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Frames and tables, and what says how colours are coded: JFIF and Adobe.
_JPEG_KEPT = {*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD, 0xE0, 0xEE}
_GIF_IMAGE, _GIF_EXTENSION, _GIF_CONTROL = 0x2C, 0x21, 0xF9
_ORIENTATION, _SHORT = 274, 3


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What a file is, and the part of it that makes up its first picture."""

    kind: str
    """PNG, JPEG, WEBP, GIF or BMP."""
    width: int
    height: int
    data: bytes
    orientation: int = 1
    """As in EXIF: 1 is upright, from 5 on the sides are swapped."""
    passes: int = 1
    """How often decoding goes over every pixel."""

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.width * self.height


def read(data: bytes) -> ImageFile:
    """What the file is; ValueError, in words that stand after its name, where it is not taken."""
    try:
        found = _reader(data)(data)
    except (IndexError, struct.error) as error:
        raise ValueError("is cut short") from error
    if found.width < 1 or found.height < 1:
        raise ValueError("has no pixels")
    size = f"{found.width} x {found.height}"
    if max(found.width, found.height) > MAX_SIDE:
        raise ValueError(f"has {size} pixels, more than {MAX_SIDE} at a side")
    if found.pixels > MAX_PIXELS:
        raise ValueError(f"has {size} pixels, more than {MAX_PIXELS}")
    if found.pixels * found.passes > MAX_WORK:
        raise ValueError(f"has {size} pixels packed in a way that takes too long to decode")
    return found


def _reader(data: bytes) -> Callable[[bytes], ImageFile]:
    for magic, reader in _READERS:
        if data.startswith(magic):
            return reader
    raise ValueError("is none of PNG, JPEG, WebP, GIF and BMP")


def _png(data: bytes) -> ImageFile:
    kind, width, height = struct.unpack_from(">4sII", data, 12)
    if kind != b"IHDR":
        raise ValueError("is a damaged PNG")
    view, at, orientation = memoryview(data), 8, 1
    kept = [view[:8]]
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + length + 12
        if kind in _PNG_KEPT:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(view[at + 4 : end - 4]) != checksum:
                raise ValueError("is a damaged PNG")
            kept.append(view[at:end])
        elif kind == b"eXIf":
            orientation = _orientation(data[at + 8 : end - 4])
        if kind == b"IEND":
            return ImageFile("PNG", width, height, b"".join(kept), orientation)
        at = end
    raise ValueError("has too many parts")


def _jpeg(data: bytes) -> ImageFile:
    at, scans, orientation = 2, 0, 1
    size: tuple[int, int] | None = None
    kept = [data[:2]]
    for _ in range(MAX_PARTS):
        start, at = _next_marker(data, at)
        kind = data[at - 1]
        if kind == _JPEG_END:
            height, width = size or (0, 0)
            whole = b"".join([*kept, data[start:at]])
            return ImageFile("JPEG", width, height, whole, orientation, max(1, scans))
        if kind in _JPEG_ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2:
            raise ValueError("is a damaged JPEG")
        body, at = at + 2, at + length
        if kind == _JPEG_EXIF and data.startswith(b"Exif\0\0", body):
            orientation = _orientation(data[body:at])
        elif kind in _JPEG_FRAMES:
            if size:
                raise ValueError("is a damaged JPEG")
            size = struct.unpack_from(">HH", data, body + 1)
        elif kind == _JPEG_SCAN:
            scans += 1
            at, _ = _next_marker(data, at)
        if kind in _JPEG_KEPT or kind == _JPEG_SCAN:
            kept.append(data[start:at])
    raise ValueError("has too many parts")


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    for start in range(at, len(data), _JPEG_PIECE):
        # With one byte of the next piece, where a marker may end.
        if found := _JPEG_MARKER.search(data, start, start + _JPEG_PIECE + 1):
            return found.span()
    raise ValueError("is cut short")


def _gif(data: bytes) -> ImageFile:
    """The first frame, which may be larger than the screen says, and how it is transparent."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _color_table(flags)
    head, control, start, inside = data[:at], b"", at, False
    for _ in range(MAX_PARTS):
        if inside:
            size = data[at]
            at += 1 + size
            inside = size > 0
            if not inside and data[start + 1] == _GIF_CONTROL:
                control = data[start:at]
        elif data[at] == _GIF_EXTENSION:
            start, inside = at, True
            at += 2
        elif data[at] == _GIF_IMAGE:
            left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
            width, height = max(width, left + wide), max(height, top + high)
            return ImageFile("GIF", width, height, head + control + data[at:])
        else:
            raise ValueError("is a damaged GIF")
    raise ValueError("has too many parts")


def _color_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp(data: bytes) -> ImageFile:
    """Its decoder checks it whole, and copies what it does not need without parsing it."""
    if len(data) < 30:
        raise ValueError("is cut short")
    kind, orientation = data[8:16], 1
    if kind == b"WEBPVP8X":
        width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
        orientation = _webp_orientation(data) if data[20] & 8 else 1
    elif kind == b"WEBPVP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"WEBPVP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise ValueError("is a damaged WebP")
    return ImageFile("WEBP", width, height, data, orientation)


def _webp_orientation(data: bytes) -> int:
    at = 12
    for _ in range(MAX_PARTS):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return _orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    raise ValueError("has too many parts")


def _bmp(data: bytes) -> ImageFile:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return ImageFile("BMP", width, height, data)
    width, height, packing = struct.unpack_from("<ii4xI", data, 18)
    passes = BMP_RUN_LENGTH_WORK if packing in (1, 2) else 1
    return ImageFile("BMP", width, abs(height), data, passes=passes)


_READERS: tuple[tuple[bytes, Callable[[bytes], ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"RIFF", _webp),
    (b"BM", _bmp),
)


def _orientation(exif: bytes) -> int:
    """That of the first directory; upright where there is none, or none that makes sense."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(entries):
            tag, kind, value = struct.unpack_from(f"{order}HH4xH", tiff, at + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
