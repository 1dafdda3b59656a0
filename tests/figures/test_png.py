"""Compressed figures look the same and take less space."""

import io

import numpy as np
from PIL import Image

from ubrain.report.figures.png import compressed


def png_of(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def test_a_figure_becomes_smaller_and_keeps_its_size_and_looks():
    x = np.linspace(0, 255, 400)
    shades = np.random.default_rng(0).integers(0, 30, (300, 400))
    pixels = (
        np.stack([np.tile(x, (300, 1)) * 0.8 + shades, shades * 4, shades + 90], 2)
        .clip(0, 255)
        .astype(np.uint8)
    )
    before = png_of(pixels)
    after = compressed(before)
    seen = np.asarray(Image.open(io.BytesIO(after)).convert("RGB")).astype(int)
    assert len(after) < 0.8 * len(before)
    assert seen.shape == pixels.shape
    assert np.abs(seen - pixels).mean() < 8


def test_the_same_bytes_come_out_every_time_and_nothing_grows():
    tiny = png_of(np.zeros((2, 2, 3), np.uint8))
    assert compressed(tiny) == compressed(tiny)
    assert len(compressed(tiny)) <= len(tiny)
    once = compressed(png_of(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    assert len(compressed(once)) <= len(once)
