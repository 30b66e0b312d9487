"""Files that mean harm or are damaged: refused by what they say, before anything is decoded."""

import re
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from services.inference.items import Encoded, ImageItem
from services.inference.preprocessing import image_decoding, image_files
from services.runtime.errors import InvalidRequest
from tests.harness import SOON_S
from tests.unit.inference.pictures import (
    PNG,
    as_it_is,
    chunk,
    coloured,
    file,
    images,
    outcome,
    png,
    refused,
    turned,
)

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAGIC = (PNG, b"\xff\xd8\xff\xe0", b"RIFF\x40\0\0\0WEBPVP8X", b"GIF89a", b"BM")
SMALL = {kind: file(coloured(9, 7), kind) for kind in KINDS}
COMMENT = b"\xff\xfe\0\x02"
# Where the colours of the screen end.
SCREEN = 13 + (3 << (SMALL["GIF"][10] & 7) + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_beginning_of_a_file_is_refused(kind: str) -> None:
    whole = SMALL[kind]
    needed = len(whole) - (2 if kind == "GIF" else 1)
    for cut in range(needed):
        assert isinstance(outcome(whole[:cut]), InvalidRequest), cut
    assert isinstance(outcome(whole), Encoded)


def test_what_follows_a_file_is_not_looked_at() -> None:
    for whole in SMALL.values():
        assert isinstance(outcome(whole + b"\xff\xd8\xff\0more"), Encoded)


@pytest.mark.parametrize("level", [0, 9])
def test_a_flipped_bit_of_a_png_is_seen(level: int) -> None:
    whole = file(coloured(9, 7), compress_level=level)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        assert isinstance(outcome(bytes(damaged)), InvalidRequest), at


@settings(deadline=None, max_examples=400)
@given(magic=st.sampled_from(MAGIC), rest=st.binary(max_size=200))
def test_random_bytes_behind_a_magic_are_the_items_own_error(magic: bytes, rest: bytes) -> None:
    assert isinstance(outcome(magic + rest), InvalidRequest)


@settings(deadline=None, max_examples=400)
@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damage_anywhere_breaks_nothing_else(kind: str, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(SMALL[kind])
    for at, value in changes:
        damaged[at % len(damaged)] = value
    found = outcome(bytes(damaged))
    assert isinstance(found, Encoded | InvalidRequest)
    if isinstance(found, Encoded):
        assert found.inputs["x"].shape == (4, 4, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        file(coloured(9, 7), "TIFF"),
        file(coloured(9, 7), "ICO"),
        file(coloured(9, 7), "PPM"),
        file(coloured(9, 7), "JPEG2000"),
        b"8BPS\0\x01" + bytes(6) + b"\0\x03\0\0\0\x07\0\0\0\x09\0\x08\0\x03" + bytes(400),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_other_formats_are_refused_by_name(data: bytes) -> None:
    assert refused(data) == "is none of PNG, JPEG, WebP, GIF and BMP"


def bombs() -> dict[str, bytes]:
    """65,535 x 65,535 pixels in a few bytes, or as many as the format can say."""
    jpeg, webp, gif, bmp = (bytearray(SMALL[kind]) for kind in ("JPEG", "WEBP", "GIF", "BMP"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff" * 4
    webp[26:30] = b"\xff\x3f\xff\x3f"
    gif[6:10] = b"\xff" * 4
    bmp[18:26] = struct.pack("<ii", 65535, 65535)
    lossless = bytearray(file(coloured(9, 7), "WEBP", lossless=True))
    lossless[21:25] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    wide = bytearray(file(coloured(9, 7, 4), "WEBP"))
    wide[24:30] = b"\xfe\xff\0" * 2
    return {
        "PNG": png(65535, 65535),
        "PNG that unpacks": png(2**13 + 1, 2**13, rows=bytes(2**26)),
        "JPEG": bytes(jpeg),
        "WebP": bytes(webp),
        "WebP, lossless": bytes(lossless),
        "WebP, extended": bytes(wide),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "BMP, upside down": bytes(bmp[:22] + struct.pack("<i", -65535) + bmp[26:]),
    }


@pytest.mark.parametrize("data", bombs().values(), ids=bombs().keys())
def test_more_pixels_than_are_taken(data: bytes) -> None:
    assert re.fullmatch(r"has \d+ x \d+ pixels, more than 67108864", refused(data))


@pytest.mark.parametrize("size", [(65536, 1), (1, 65536)])
def test_more_pixels_at_a_side_than_are_taken(size: tuple[int, int]) -> None:
    """A row of 8 million pixels of a WebP took 28 s."""
    said = f"has {size[0]} x {size[1]} pixels, more than 65535 at a side"
    assert refused(png(*size, rows=bytes(2 * 65536))) == said
    longest = [min(side, 65535) for side in size]
    assert isinstance(outcome(png(*longest, rows=bytes(2 * 65536))), Encoded)


@pytest.mark.parametrize("before", [-1, 0, 1])
def test_a_marker_is_found_wherever_it_lies(before: int) -> None:
    """The search goes by pieces of 64 KiB."""
    jpeg = SMALL["JPEG"]
    second = 4 + int.from_bytes(jpeg[4:6], "big")
    apart = jpeg[:second] + bytes(2**16 - before) + jpeg[second:]
    assert np.array_equal(as_it_is(apart, 9, 7), as_it_is(jpeg, 9, 7))


def test_a_gif_whose_frame_is_larger_than_its_screen() -> None:
    """Pillow makes the screen as large as the frame."""
    gif = bytearray(SMALL["GIF"])
    frame = gif.index(b",", SCREEN)
    gif[frame + 5 : frame + 9] = b"\xff" * 4
    assert refused(bytes(gif)).startswith("has 65535 x 65535 pixels")
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 90, 70)
    assert refused(bytes(gif)) == "is no GIF that can be decoded"


def test_a_file_without_pixels() -> None:
    for data in (png(0, 4), png(4, 0)):
        assert refused(data) == "has no pixels"


def many_parts() -> dict[str, bytes]:
    """Files that a parser would read part for part for seconds."""
    jpeg, gif = SMALL["JPEG"], SMALL["GIF"]
    animated = bytearray(file(coloured(9, 7, 4), "WEBP", exif=turned(1)))
    name = animated.index(b"EXIF")
    animated[name : name + 4] = b"ABCD"
    return {
        "chunks": png(9, 7, chunk(b"abCd") * 70_000),
        "comments": jpeg[:2] + COMMENT * 70_000 + jpeg[2:],
        "markers": jpeg[:2] + b"\xff\x01" * 70_000 + jpeg[2:],
        "extensions": gif[:SCREEN] + b"!\xfe\0" * 70_000 + gif[SCREEN:],
        "blocks": gif[:SCREEN] + b"!\xfe" + b"\1a" * 70_000 + b"\0" + gif[SCREEN:],
        "WebP chunks": bytes(animated) + b"ABCD\0\0\0\0" * 70_000,
    }


@pytest.mark.parametrize("data", many_parts().values(), ids=many_parts().keys())
def test_more_parts_than_are_read(data: bytes) -> None:
    assert refused(data) == "has too many parts"


def test_what_takes_too_long_to_decode_for_its_size() -> None:
    gray = np.zeros((4096, 4096), np.uint8)
    jpeg = file(gray, "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    scans = jpeg[:-2] + jpeg[last:-2] * 70 + jpeg[-2:]
    assert refused(scans).endswith("packed in a way that takes too long to decode")
    assert image_files.read(jpeg).passes < 20
    header = struct.pack("<IiiHHIIiiII", 40, 2048, 2048, 1, 8, 1, 4, 0, 0, 256, 0)
    packed = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header
    lines = b"\1\5\0\0" * 2048 + b"\0\1"
    data = packed + bytes(1024) + lines
    assert refused(data).endswith("packed in a way that takes too long to decode")


def test_run_lengths_of_a_small_bmp_are_unpacked() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 8, 1, 4, 0, 0, 256, 0)
    colours = b"".join(bytes((level, level, level, 0)) for level in range(256))
    lines = b"".join(bytes((4, 10 * line, 0, 0)) for line in range(4)) + b"\0\1"
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header + colours + lines
    assert as_it_is(data, 4, 4)[:, 0, 0].tolist() == [30, 20, 10, 0]


def overlapping_exif() -> bytes:
    """20,000 tags of a mebibyte each, which is the same one."""
    tags = b"".join(struct.pack("<HHII", 1000 + n, 7, 2**20, 8) for n in range(20_000))
    return b"II*\0" + struct.pack("<IH", 8, 20_000) + tags + bytes(4 + 2**20)


def test_only_what_makes_up_the_picture_reaches_the_decoder() -> None:
    inflating = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**20)))
    frames = chunk(b"acTL", struct.pack(">II", 2**31, 0))
    rows = b"".join(b"\0" + bytes((line,) * 4) for line in range(4))
    data = png(4, 4, inflating * 50, frames, chunk(b"eXIf", overlapping_exif()), rows=rows)
    kept = image_files.read(data).data
    assert len(kept) < 200
    assert as_it_is(data, 4, 4)[:, 0, 0].tolist() == [0, 1, 2, 3]
    jpeg = SMALL["JPEG"]
    private = b"\xff\xe1" + struct.pack(">H", 60_002) + bytes(60_000)
    mixed = jpeg[:2] + private * 20 + COMMENT * 20 + jpeg[2:] + private
    assert len(image_files.read(mixed).data) <= len(jpeg)
    assert np.array_equal(as_it_is(mixed, 9, 7), as_it_is(jpeg, 9, 7))
    gif = SMALL["GIF"]
    remark = b"!\xfe" + (b"\xff" + bytes(255)) * 100 + b"\0"
    assert image_files.read(gif[:SCREEN] + remark + gif[SCREEN:]).data == gif


def test_a_second_header_does_not_replace_the_first() -> None:
    again = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    assert refused(png(4, 4, again, rows=bytes(72))) == "is no PNG that can be decoded"
    jpeg = SMALL["JPEG"]
    frame = jpeg.index(b"\xff\xc0")
    end = frame + 2 + int.from_bytes(jpeg[frame + 2 : frame + 4], "big")
    assert refused(jpeg[:end] + jpeg[frame:end] + jpeg[end:]) == "is a damaged JPEG"
    assert refused(jpeg[:2] + b"\xff\xfe\0\x01" + jpeg[2:]) == "is a damaged JPEG"


def test_a_bad_file_fails_alone() -> None:
    good, bad = ImageItem(SMALL["PNG"]), ImageItem(SMALL["PNG"][:-20])
    outcomes = images(4, 4).encode([good, bad, good])
    assert [type(one) for one in outcomes] == [Encoded, InvalidRequest, Encoded]


@pytest.mark.parametrize("side", [9, 13])
def test_interlaced_and_thumbnailed_files_are_files(side: int) -> None:
    """What cameras put in a file: a smaller picture in EXIF, and a second one behind the first."""
    inner = SMALL["JPEG"]
    exif = b"Exif\0\0" + turned(6).removeprefix(b"Exif\0\0") + inner
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    outer = file(coloured(side, 7), "JPEG")
    found = image_files.read(outer[:2] + segment + outer[2:] + inner)
    assert (found.width, found.height, found.orientation) == (side, 7, 6)


def waiting(room: image_decoding._Room, pixels: int, done: threading.Event) -> threading.Thread:
    """A thread that needs room for so many."""

    def take() -> None:
        with room.taken(pixels):
            done.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return thread


def test_large_images_wait_for_each_other() -> None:
    room = image_decoding._Room(10)
    small, large = threading.Event(), threading.Event()
    with room.taken(6):
        second = waiting(room, 5, large)
        first = waiting(room, 4, small)
        assert small.wait(SOON_S)
        first.join(SOON_S)
        assert not large.is_set()
    assert large.wait(SOON_S)
    second.join(SOON_S)


def test_room_is_given_back_by_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    room = image_decoding._Room(64)
    monkeypatch.setattr(image_decoding, "_ROOM", room)
    damaged = png(8, 8, rows=bytes(8))
    for _ in range(3):
        assert refused(damaged) == "is no PNG that can be decoded"
    assert room._left == 64
    assert isinstance(outcome(png(8, 8, rows=bytes(72))), Encoded)


def test_an_image_whose_header_lies_is_not_decoded() -> None:
    """The canvas of an animation, which is not that of its frame."""
    data = bytearray(file(Pillow.new("RGBA", (40, 30), (1, 2, 3, 128)), "WEBP"))
    data[24:27] = (9).to_bytes(3, "little")
    assert refused(bytes(data)) == "is no WEBP that can be decoded"
