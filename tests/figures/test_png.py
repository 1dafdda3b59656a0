"""Compressed figures have the same pixels and take less space."""

import io

import numpy as np
from PIL import Image

from ubrain.report.figures.png import compressed


def png_of(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def test_a_figure_becomes_smaller_and_keeps_every_pixel():
    x = np.linspace(0, 255, 400)
    pixels = np.stack([np.tile(x, (300, 1)), np.tile(x, (300, 1)) // 2, np.full((300, 400), 90)], 2)
    pixels = pixels.astype(np.uint8)  # more than 256 colours
    pixels[10:20, 10:20] = 0xAA, 0x33, 0x77
    opaque = np.full((300, 400, 1), 255, np.uint8)
    before = png_of(np.concatenate([pixels, opaque], 2))
    after = compressed(before)
    assert len(after) < 0.8 * len(before)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(after))), pixels)


def test_the_same_bytes_come_out_every_time_and_nothing_grows():
    tiny = png_of(np.zeros((2, 2, 3), np.uint8))
    assert compressed(tiny) == compressed(tiny)
    assert len(compressed(tiny)) <= len(tiny)
    once = compressed(png_of(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    assert compressed(once) == once
