"""Image files to tensors: decoded, turned and normalised as NumPy says it should be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from services.inference.backend import TensorSpec
from services.inference.items import Encoded, ImageItem, TensorsItem, TextItem
from services.inference.loading import load
from services.inference.manifest import Input, Manifest
from services.inference.preprocessing import ImagePreprocessor
from services.inference.scoring import probabilities
from services.runtime.errors import InvalidRequest, UnsupportedField
from tests.unit.inference.pictures import (
    Pixels,
    as_it_is,
    by_channel,
    coloured,
    encoded,
    file,
    images,
    turned,
)

UPRIGHT: dict[int, Any] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, -1),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: np.rot90(seen),
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PNG", {"optimize": True})],
)
def test_every_pixel_of_a_lossless_file_arrives(kind: str, options: dict[str, Any]) -> None:
    pixels = coloured(7, 5)
    assert np.array_equal(as_it_is(file(pixels, kind, **options), 7, 5), pixels)


def test_the_first_frame_of_a_gif_counts() -> None:
    first, second = coloured(6, 4, 1), coloured(6, 4, 1, seed=1)
    data = file(first, "GIF", save_all=True, append_images=[Pillow.fromarray(second)])
    assert np.array_equal(as_it_is(data, 6, 4)[..., 0], first)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_near_what_was_saved(options: dict[str, Any]) -> None:
    y, x = np.mgrid[0:40, 0:60]
    smooth = np.stack([4 * x, 6 * y, 2 * x + 2 * y], axis=-1).astype(np.uint8)
    found = as_it_is(file(smooth, "JPEG", quality=95, **options), 60, 40).astype(int)
    assert np.abs(found - smooth).mean() < 2


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_image_is_turned_as_its_exif_says(kind: str, orientation: int) -> None:
    pixels = coloured(6, 4)
    expected = UPRIGHT[orientation](pixels)
    height, width = expected.shape[:2]
    data = file(pixels, kind, lossless=True, exif=turned(orientation))
    assert np.array_equal(as_it_is(data, width, height), expected)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_it_is_fitted_upright(orientation: int, resize: str) -> None:
    pixels = np.repeat(np.repeat(coloured(6, 4), 16, axis=0), 16, axis=1)
    jpeg = file(pixels, "JPEG", quality=95, subsampling=0, exif=turned(orientation))
    upright = file(np.ascontiguousarray(UPRIGHT[orientation](pixels)))
    preprocessor = images(32, 24, resize=resize)
    found = encoded(preprocessor, jpeg).astype(int)
    assert np.abs(found - encoded(preprocessor, upright)).mean() < 3


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"II*\0\xff\xff\xff\xff",
        turned(1)[:20],
        turned(9),
        turned(6)[:14] + b"\xff",
    ],
)
def test_exif_that_makes_no_sense_turns_nothing(exif: bytes) -> None:
    pixels = coloured(6, 4)
    assert np.array_equal(as_it_is(file(pixels, exif=exif), 6, 4), pixels)


def over_black(pixels: Pixels) -> Pixels:
    """What is transparent, as it looks on a black table."""
    colours, alpha = pixels[..., :-1].astype(int), pixels[..., -1:].astype(int)
    return np.asarray((colours * alpha + 127) // 255, dtype=np.uint8)


def test_what_is_transparent_looks_as_over_black() -> None:
    pixels = coloured(9, 8, 4)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        found = as_it_is(file(pixels, kind, **options), 9, 8)
        assert np.abs(found.astype(int) - over_black(pixels)).max() <= 1
    gray = coloured(9, 8, 2)
    found = as_it_is(file(Pillow.fromarray(gray, "LA")), 9, 8, channels="grayscale")
    assert np.abs(found.astype(int) - over_black(gray)).max() <= 1


def test_a_hidden_colour_does_not_bleed() -> None:
    """Resized before it is hidden, the red would show at the edge."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 0)
    pixels[:, 4:] = (0, 0, 255, 255)
    found = encoded(images(3, 3), file(pixels))
    assert found[..., 0].max() == 0
    assert found[..., 2].max() == 255


def test_palettes_and_single_colours_that_are_transparent() -> None:
    colours = coloured(16, 16, 1) % 4
    palette = Pillow.fromarray(colours, "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    table = np.array(palette.getpalette()[:12]).reshape(4, 3)
    assert np.array_equal(as_it_is(file(palette), 16, 16), table[colours])
    for kind in ("PNG", "GIF"):
        found = as_it_is(file(palette, kind, transparency=2), 16, 16)
        assert np.array_equal(found, np.where(colours[..., None] == 2, 0, table[colours]))
    single = np.full((4, 4, 3), (9, 8, 7), np.uint8)
    single[0, 0] = (1, 2, 3)
    found = as_it_is(file(single, transparency=(9, 8, 7)), 4, 4)
    assert found[0, 0].tolist() == [1, 2, 3]
    assert found[1:].max() == 0


def test_gray_of_16_bits_keeps_its_high_half() -> None:
    wide = np.random.default_rng(0).integers(0, 2**16, size=(6, 6)).astype(np.uint16)
    found = as_it_is(file(wide), 6, 6, channels="grayscale")
    assert np.array_equal(found[..., 0], wide >> 8)
    wide[2, 3] = 40_000
    found = as_it_is(file(wide, transparency=40_000), 6, 6)
    assert found[2, 3].tolist() == [0, 0, 0]
    assert np.array_equal(found[4, 4], [wide[4, 4] >> 8] * 3)


def test_ink_and_two_levels() -> None:
    ink = Pillow.fromarray(np.full((4, 4, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    found = as_it_is(file(ink, "JPEG", quality=100, subsampling=0), 4, 4)
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3
    two = np.eye(5, dtype=np.bool_)
    found = as_it_is(file(Pillow.fromarray(two)), 5, 5)
    assert np.array_equal(found[..., 1], two * 255)


def test_a_jpeg_of_red_green_and_blue_says_so_in_a_marker() -> None:
    """Adobe's, with no transform: without it, the same components mean brightness and hues."""
    pixels = np.repeat(np.repeat(coloured(3, 3), 8, axis=0), 8, axis=1)
    components = Pillow.merge("YCbCr", Pillow.fromarray(pixels).split())
    jpeg = file(components, "JPEG", quality=100, subsampling=0)
    jfif = 2 + 2 + int.from_bytes(jpeg[4:6], "big")
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
    found = as_it_is(jpeg[:2] + adobe + jpeg[jfif:], 24, 24).astype(int)
    assert np.abs(found - pixels).max() <= 4


def test_gray_is_how_bright_colours_look() -> None:
    pixels = coloured(8, 8)
    found = as_it_is(file(pixels), 8, 8, channels="grayscale")
    assert found.shape == (8, 8, 1)
    assert np.abs(found[..., 0] - pixels @ (0.299, 0.587, 0.114)).max() <= 1
    gray = coloured(8, 8, 1)
    assert np.array_equal(as_it_is(file(gray), 8, 8), np.stack([gray] * 3, axis=-1))


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", np.float32), ("FP16", np.float16)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_channels_are_normalised_and_laid_out(
    channels: str, layout: str, datatype: str, dtype: Any
) -> None:
    pixels = coloured(6, 5)
    how = {"channels": channels, "layout": layout, "mean": MEAN, "std": STD}
    found = as_it_is(file(pixels), 6, 5, datatype=datatype, **how)
    ordered = pixels[..., ::-1] if channels == "bgr" else pixels
    expected = (ordered / 255 - MEAN) / STD
    expected = expected.transpose(2, 0, 1) if layout == "NCHW" else expected
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    assert np.array_equal(found, expected.astype(dtype))


def test_the_least_manifest_scales_to_one() -> None:
    pixels = coloured(4, 4)
    found = as_it_is(file(pixels), 4, 4, datatype="FP32")
    assert np.allclose(found, pixels / 255, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("shape", "datatype", "how", "field"),
    [
        ((-1, 3, 4, 5), "FP32", {"width": 6}, "image.width"),
        ((-1, 3, 4, 5), "FP32", {"height": 6}, "image.height"),
        ((-1, 3, 4, 5), "FP32", {"channels": "grayscale"}, "image.channels"),
        ((-1, 1, 4, 5), "FP32", {}, "image.channels"),
        ((-1, 4, 5, 3), "FP32", {}, "image.layout"),
        ((-1, 3, 4, 5), "FP32", {"layout": "NHWC"}, "image.layout"),
        ((-1, 3, 20), "FP32", {}, "kind"),
        ((-1, 3, 4, 5), "UINT8", {"mean": MEAN}, "image.mean"),
        ((-1, 3, 4, 5), "UINT8", {"std": STD}, "image.std"),
        ((-1, 3, 4, 5), "UINT8", {"scale": 0.5}, "image.scale"),
        ((-1, 3, 4, 5), "FP16", {"scale": 1000}, "image.scale"),
    ],
)
def test_what_does_not_fit_the_model_is_named(
    shape: tuple[int, ...], datatype: str, how: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        size = {"width": 5, "height": 4, "layout": "NCHW"}
        images(datatype=datatype, shape=shape, **{**size, **how})
    assert raised.value.violations[0].field == f"model.yaml: input.{field}"


def test_a_model_takes_one_tensor_of_numbers() -> None:
    with pytest.raises(InvalidRequest, match="INT64"):
        images(4, 4, datatype="INT64")
    declared = Input.model_validate({"kind": "image", "image": {"width": 4, "height": 4}})
    with pytest.raises(InvalidRequest, match="exactly one"):
        ImagePreprocessor(declared, [TensorSpec(name, "FP32", (-1, 3, 4, 4)) for name in "xy"])


def test_tensors_of_the_models_own_input_pass() -> None:
    preprocessor = images(5, 4, datatype="FP32")
    ready = np.full((4, 5, 3), np.nan, np.float32)
    (found,) = preprocessor.encode([TensorsItem({"x": ready})])
    assert isinstance(found, Encoded)
    assert found.inputs["x"] is ready
    assert found.group is None
    wrong = TensorsItem({"x": np.zeros((4, 6, 3), np.float32)})
    outcomes = preprocessor.encode([wrong, TextItem("x"), ImageItem(file(coloured(5, 4)))])
    assert isinstance(outcomes[0], InvalidRequest)
    assert isinstance(outcomes[1], UnsupportedField)
    assert "image or tensors" in outcomes[1].message
    assert isinstance(outcomes[2], Encoded)


def test_only_what_must_be_decoded_is_dear() -> None:
    preprocessor = images(4, 4)
    assert preprocessor.is_cheap([])
    assert preprocessor.is_cheap([TensorsItem({})])
    assert not preprocessor.is_cheap([TensorsItem({}), ImageItem(b"")])


@pytest.mark.parametrize("fixed", [True, False])
def test_a_real_model_sees_the_colour(tmp_path: Path, *, fixed: bool) -> None:
    manifest = Manifest.read(by_channel(tmp_path, fixed=fixed))
    loaded = load(manifest, tmp_path)
    try:
        for index, label in enumerate(manifest.output.labels):
            pixels = coloured(70, 50) // 4
            pixels[..., index] += 150
            for kind in ("PNG", "JPEG", "WEBP", "BMP"):
                (one,) = loaded.preprocessor.encode([ImageItem(file(pixels, kind))])
                assert isinstance(one, Encoded)
                batch = {name: array[None] for name, array in one.inputs.items()}
                outputs = loaded.instances[0].run(batch)
                scores = probabilities({n: v[0] for n, v in outputs.items()}, multi_label=False)
                assert manifest.output.labels[scores.argmax()] == label
                assert scores.max() > 0.9
    finally:
        loaded.backend.close()
