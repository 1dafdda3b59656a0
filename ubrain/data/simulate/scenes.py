"""Rendered scenes, the stimuli of the simulated crowd: any number, free, known in content."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FIELD_OF_VIEW = 8.4  # degrees of visual angle across an image, as in NSD
SIZE = 112  # pixels
DEGREES = FIELD_OF_VIEW / SIZE  # of a pixel
CATEGORIES = ("face", "body", "food", "word", "animal", "vehicle")
PLACES = ("none", "indoor", "outdoor")
WORDS: tuple[str, ...] = ("mind", "wave", "bread", "river", "stone", "light", "house", "seven")
WORDS += ("music", "paper", "dream", "north", "apple")
Colour = tuple[int, int, int]
Draw = ImageDraw.ImageDraw


@dataclass(frozen=True)
class Thing:
    """An object of a scene: category, centre and size in degrees of visual angle (y upwards)."""

    category: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """What is on an image: its place ("none", "indoor", "outdoor") and its objects."""

    place: str
    things: tuple[Thing, ...]

    def describe(self) -> dict[str, Any]:
        """The scene as plain values for JSON."""
        things = [{"category": t.category, "x": t.x, "y": t.y, "size": t.size} for t in self.things]
        return {"place": self.place, "objects": things}

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> "Scene":
        """The scene of such values."""
        return cls(description["place"], tuple(Thing(**t) for t in description["objects"]))


def render(
    seed: int,
    index: int,
    instead: Mapping[int, str] | None = None,
    without_place: bool = False,
) -> tuple[NDArray[np.uint8], Scene]:
    """Draw scene number `index` of a world: (112, 112, 3) uint8 RGB, and what is on it.

    Depends on nothing but the arguments.

    Parameters
    ----------
    instead : number of an object -> the category that is drawn in its place, as large as it, or ""
        for none. Every pixel that neither of the two objects covers stays as it was.
    without_place : leave out indoor or outdoor; the coloured noise behind it and the objects stay.
    """
    instead = instead or {}
    rng = np.random.default_rng([seed, index, 0x5CE2E])
    place = PLACES[rng.choice(3, p=(0.5, 0.25, 0.25))]
    image = plain = Image.fromarray(_noise_background(rng))
    if place != "none":
        image = Image.blend(image, Image.new("RGB", image.size, _colour(rng, 60, 200)), 0.5)
    draw = ImageDraw.Draw(image)
    {"none": lambda *_: None, "indoor": _indoor, "outdoor": _outdoor}[place](draw, rng)
    if without_place:
        place, image, draw = "none", plain, ImageDraw.Draw(plain)
    things = []
    for number in range(rng.choice(4, p=(0.15, 0.35, 0.3, 0.2))):
        if number not in instead:
            things.append(_place_thing(draw, rng))
            continue
        thing = _place_thing(ImageDraw.Draw(image.copy()), rng)  # the same draws, out of sight
        if category := instead[number]:
            things.append(replace(thing, category=category))
            x, y = SIZE / 2 + thing.x / DEGREES, SIZE / 2 - thing.y / DEGREES
            own = np.random.default_rng([seed, index, number, 0x1157])
            DRAW[category](draw, own, x, y, thing.size / DEGREES)
    pixels = np.asarray(image) * rng.uniform(0.75, 1.1) + rng.normal(0, 3, (SIZE, SIZE, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), Scene(place, tuple(things))


def _noise_background(rng: Generator) -> NDArray[np.uint8]:
    """Coloured noise with a 1/f amplitude spectrum, like the average natural image."""
    f = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    f[0, 0] = 1
    noise = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(3, SIZE, SIZE))) / f ** rng.uniform(0.9, 1.4), s=(SIZE, SIZE)
    )
    mix = np.eye(3) * 0.5 + 0.5  # channels of natural images go together
    noise = np.tensordot(mix, noise, 1)
    noise = noise / noise.std() * rng.uniform(15, 40) + rng.uniform(70, 180, (3, 1, 1))
    return np.clip(noise.transpose(1, 2, 0), 0, 255).astype(np.uint8)


def _colour(rng: Generator, low: int = 0, high: int = 255) -> Colour:
    r, g, b = (int(v) for v in rng.integers(low, high + 1, 3))
    return r, g, b


def _darker(colour: Colour, by: float) -> Colour:
    r, g, b = (int(c * by) for c in colour)
    return r, g, b


def _outdoor(draw: Draw, rng: Generator) -> None:
    horizon = int(SIZE * rng.uniform(0.35, 0.65))
    sky = int(rng.integers(90, 160)), int(rng.integers(150, 200)), 235
    ground = _colour(rng, 50, 130)
    for y in range(horizon):
        draw.line((0, y, SIZE, y), fill=_darker(sky, 0.75 + 0.25 * y / horizon))
    draw.rectangle((0, horizon, SIZE, SIZE), fill=(ground[0], max(ground), ground[2] // 2))
    for _ in range(int(rng.integers(1, 5))):
        width, height, left = (
            int(rng.integers(*r)) for r in ((12, 35), (12, horizon), (-10, SIZE - 8))
        )
        wall = _colour(rng, 80, 210)
        box = left, horizon - height, left + width, horizon + 3
        draw.rectangle(box, fill=wall, outline=_darker(wall, 0.6))
        for wx in range(left + 3, left + width - 3, 6):
            for wy in range(horizon - height + 3, horizon - 2, 8):
                draw.rectangle((wx, wy, wx + 2, wy + 3), fill=_darker(wall, 0.4))
    if rng.random() < 0.6:
        x, top = (int(v) for v in rng.integers(20, SIZE - 20, 2))
        road = [(x - 25, SIZE), (x + 25, SIZE), (top + 3, horizon), (top - 3, horizon)]
        draw.polygon(road, fill=(90, 90, 95))


def _indoor(draw: Draw, rng: Generator) -> None:
    x0, x1 = SIZE * rng.uniform(0.15, 0.35), SIZE * rng.uniform(0.65, 0.85)
    y0, y1 = SIZE * rng.uniform(0.12, 0.3), SIZE * rng.uniform(0.6, 0.78)
    wall, floor = _colour(rng, 110, 230), _colour(rng, 60, 160)
    ceiling = _darker(wall, 1.1) if max(wall) < 230 else wall
    draw.polygon([(0, 0), (SIZE, 0), (x1, y0), (x0, y0)], fill=ceiling)
    draw.polygon([(0, SIZE), (SIZE, SIZE), (x1, y1), (x0, y1)], fill=floor)
    draw.polygon([(0, 0), (x0, y0), (x0, y1), (0, SIZE)], fill=_darker(wall, 0.8))
    draw.polygon([(SIZE, 0), (x1, y0), (x1, y1), (SIZE, SIZE)], fill=_darker(wall, 0.7))
    draw.rectangle((x0, y0, x1, y1), fill=wall, outline=_darker(wall, 0.5))
    for i in range(1, 5):
        board = x0 + (x1 - x0) * i / 5, y1, SIZE * (i / 5 * 1.6 - 0.3), SIZE
        draw.line(board, fill=_darker(floor, 0.6))
    wx, wy = rng.uniform(x0 + 4, x1 - 18), rng.uniform(y0 + 3, y0 + 10)
    draw.rectangle((wx, wy, wx + 14, wy + 16), fill=(190, 220, 250), outline=(70, 60, 50), width=2)
    tx, ty, top = rng.uniform(10, 60), rng.uniform(75, 90), _colour(rng, 60, 140)
    draw.polygon([(tx, ty), (tx + 40, ty), (tx + 46, ty + 8), (tx - 6, ty + 8)], fill=top)
    for leg in (tx - 3, tx + 42):
        draw.rectangle((leg, ty + 8, leg + 2, ty + 26), fill=_darker(top, 0.6))


def _place_thing(draw: Draw, rng: Generator) -> Thing:
    category = CATEGORIES[rng.integers(len(CATEGORIES))]
    size = SIZE * float(rng.uniform(0.2, 0.5))
    x, y = (float(v) for v in rng.uniform(0.18 * SIZE, 0.82 * SIZE, 2))
    DRAW[category](draw, rng, x, y, size)
    return Thing(category, (x - SIZE / 2) * DEGREES, (SIZE / 2 - y) * DEGREES, size * DEGREES)


def _oval(draw: Draw, x: float, y: float, rx: float, ry: float, **style: Any) -> None:
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), **style)


def _skin(rng: Generator) -> Colour:
    tone = rng.uniform(0.4, 1.0)
    return int(245 * tone), int(200 * tone), int(165 * tone)


def _face(draw: Draw, rng: Generator, x: float, y: float, s: float) -> None:
    skin, hair = _skin(rng), _colour(rng, 10, 120)
    _oval(draw, x, y - 0.12 * s, 0.42 * s, 0.45 * s, fill=hair)
    _oval(draw, x, y, 0.35 * s, 0.46 * s, fill=skin, outline=_darker(skin, 0.7))
    gaze = rng.uniform(-0.03, 0.03) * s
    for side in (-1, 1):
        eye, up = x + side * 0.15 * s, y - 0.08 * s
        _oval(draw, eye, up, 0.075 * s, 0.045 * s, fill=(250, 250, 250))
        _oval(draw, eye + gaze, up, 0.035 * s, 0.04 * s, fill=_colour(rng, 10, 90))
        brow = x + side * 0.08 * s, y - 0.17 * s, x + side * 0.23 * s, y - 0.18 * s
        draw.line(brow, fill=hair, width=2)
    nose = x, y - 0.03 * s, x - 0.03 * s, y + 0.12 * s, x + 0.03 * s, y + 0.13 * s
    draw.line(nose, fill=_darker(skin, 0.6))
    corner = y + 0.25 * s - rng.uniform(-0.05, 0.12) * s
    mouth = x - 0.14 * s, corner, x, y + 0.27 * s, x + 0.14 * s, corner
    draw.line(mouth, fill=(170, 40, 50), width=max(2, int(0.05 * s)))


def _body(draw: Draw, rng: Generator, x: float, y: float, s: float) -> None:
    """A figure seen from behind: limbs and clothes, no face."""
    skin, shirt, trousers = _skin(rng), _colour(rng), _colour(rng, 20, 150)
    limb = max(2, int(0.1 * s))
    for side in (-1, 1):
        spread = rng.uniform(0.08, 0.28) * s
        leg = x + side * 0.08 * s, y + 0.1 * s, x + side * spread, y + 0.55 * s
        draw.line(leg, fill=trousers, width=limb)
        hand = x + side * rng.uniform(0.2, 0.4) * s, y + rng.uniform(-0.35, 0.2) * s
        arm = x + side * 0.15 * s, y - 0.25 * s, *hand
        draw.line(arm, fill=skin, width=max(2, int(0.07 * s)))
    top, bottom = y - 0.3 * s, y + 0.15 * s
    trunk = (x - 0.18 * s, top), (x + 0.18 * s, top), (x + 0.13 * s, bottom), (x - 0.13 * s, bottom)
    draw.polygon(trunk, fill=shirt)
    _oval(draw, x, y - 0.42 * s, 0.1 * s, 0.12 * s, fill=_colour(rng, 10, 110))


def _food(draw: Draw, rng: Generator, x: float, y: float, s: float) -> None:
    """A plate from above with round, warm-coloured pieces."""
    _oval(draw, x, y, 0.5 * s, 0.42 * s, fill=(235, 235, 230), outline=(180, 180, 175))
    filling = int(rng.integers(190, 240)), int(rng.integers(130, 180)), 60
    _oval(draw, x, y, 0.38 * s, 0.31 * s, fill=filling)
    for _ in range(int(rng.integers(5, 10))):
        angle, radius = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.26) * s
        colour = [(200, 50, 40), (240, 200, 70), (90, 150, 50), (150, 80, 40)][rng.integers(4)]
        px, py = x + radius * math.cos(angle), y + 0.8 * radius * math.sin(angle)
        _oval(draw, px, py, 0.08 * s, 0.07 * s, fill=colour, outline=_darker(colour, 0.7))


def _word(draw: Draw, rng: Generator, x: float, y: float, s: float) -> None:
    text = WORDS[rng.integers(len(WORDS))]
    text = text.upper() if rng.random() < 0.5 else text
    font = ImageFont.load_default(size=max(9.0, 1.9 * s / len(text)))
    left, top, right, bottom = draw.textbbox((x, y), text, font=font, anchor="mm")
    ink, paper = (20, 20, 30), (240, 240, 235)
    if rng.random() >= 0.6:
        ink, paper = (250, 250, 240), _colour(rng, 0, 110)
    draw.rectangle((left - 3, top - 3, right + 3, bottom + 3), fill=paper)
    draw.text((x, y), text, font=font, fill=ink, anchor="mm")


def _animal(draw: Draw, rng: Generator, x: float, y: float, s: float) -> None:
    base = int(rng.integers(70, 200))
    fur = (base, int(base * 0.8), int(base * 0.55))
    side = 1 if rng.random() < 0.5 else -1
    for leg in (-0.26, -0.16, 0.14, 0.24):
        line = x + leg * s, y + 0.1 * s, x + leg * s, y + 0.42 * s
        draw.line(line, fill=_darker(fur, 0.8), width=max(2, int(0.07 * s)))
    tail = x - side * 0.3 * s, y, x - side * 0.48 * s, y - 0.2 * s
    draw.line(tail, fill=fur, width=max(2, int(0.05 * s)))
    _oval(draw, x, y, 0.34 * s, 0.19 * s, fill=fur)
    for _ in range(int(rng.integers(0, 8))):
        spot = (x + rng.uniform(-0.25, 0.25) * s, y + rng.uniform(-0.1, 0.1) * s)
        _oval(draw, *spot, 0.045 * s, 0.035 * s, fill=_darker(fur, 0.55))
    hx, hy = x + side * 0.38 * s, y - 0.18 * s
    _oval(draw, hx, hy, 0.15 * s, 0.13 * s, fill=fur)
    _oval(draw, hx + side * 0.12 * s, hy + 0.04 * s, 0.08 * s, 0.055 * s, fill=_darker(fur, 0.85))
    for ear in (-0.07, 0.06):
        left, right, low = hx + (ear - 0.04) * s, hx + (ear + 0.04) * s, hy - 0.08 * s
        tip = hx + ear * s, hy - 0.23 * s
        draw.polygon([(left, low), (right, low), tip], fill=_darker(fur, 0.75))
    _oval(draw, hx + side * 0.04 * s, hy - 0.03 * s, 0.02 * s, 0.02 * s, fill=(10, 10, 10))


def _vehicle(draw: Draw, rng: Generator, x: float, y: float, s: float) -> None:
    paint = _colour(rng, 30, 250)
    height = rng.uniform(0.2, 0.3) * s
    roof = y - height
    cabin = (x - 0.26 * s, y), (x - 0.16 * s, roof), (x + 0.14 * s, roof), (x + 0.28 * s, y)
    draw.polygon(cabin, fill=_darker(paint, 0.85))
    car = x - 0.5 * s, y - 0.02 * s, x + 0.5 * s, y + 0.2 * s
    draw.rectangle(car, fill=paint, outline=_darker(paint, 0.5))
    for left, right in ((-0.18, -0.02), (0.02, 0.16)):
        window = x + left * s, y - 0.8 * height, x + right * s, y - 0.03 * s
        draw.rectangle(window, fill=(170, 210, 235))
    for wheel in (-0.28, 0.28):
        _oval(draw, x + wheel * s, y + 0.2 * s, 0.11 * s, 0.11 * s, fill=(25, 25, 25))
        _oval(draw, x + wheel * s, y + 0.2 * s, 0.05 * s, 0.05 * s, fill=(170, 170, 170))
    _oval(draw, x + 0.47 * s, y + 0.06 * s, 0.03 * s, 0.03 * s, fill=(255, 240, 150))


DRAW = dict(zip(CATEGORIES, (_face, _body, _food, _word, _animal, _vehicle), strict=True))
