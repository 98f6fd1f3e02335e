"""A miniature of weakly supervised segmentation, made from scratch: photos of creatures in VOC 2012 layout.

Each creature has a small head, patterned after its class, and a larger articulated body (limbs, tail, neck,
antennae) in colours that classes share; its coat repeats the head's pattern faintly, as fur and feathers do. A
classifier therefore finds the heads, and the rest of the object has to be won from colour and position, as on
natural photos. In earlier versions, without that trace and with larger creatures, class activation maps stayed on the
heads, bodies were labelled background, and one-step training got no further than the maps. Nothing is
made easy for one method: the ground
has several textured regions, some of them in body colours; there is clutter, and there are creatures of no
class (with another head, or a plain one); creatures hide one another and are hidden by stems; every photo has
uneven light, blur, noise and JPEG artefacts.

Files (the layout of PASCAL VOC 2012): ``JPEGImages/*.jpg``, ``Annotations/*.xml``,
``SegmentationClass/*.png`` (palette PNG, 255 = a void line of one pixel around objects),
``ImageSets/Segmentation/{train,val,test}.txt``; and ``manifest.json``, written last, with the parameters, the
counts and the SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from rrm.datasets.voc import voc_palette
from rrm.errors import RRMError
from rrm.labels import IGNORE
from rrm.store import atomic_path

FORMAT = 1
STRAY_COLOURS = 0.3  # share of creatures whose body has any colour
COAT_CONTRAST = 16.0  # grey levels; shading is as strong
SPLITS = ("train", "val", "test")
JPEG_QUALITY = 92
SUPERSAMPLING = 3

Array = NDArray[np.float32]
Stroke = tuple[Array, Array]  # points (n, 2) as x, y and radii (n,), both in pixels


@dataclass(frozen=True)
class Species:
    """One class: its name, its head pattern and the ranges of its build (fractions of the body length).

    Builds overlap between classes, and so do colours: a class has four usual body colours, each shared with another,
    and a share of its creatures (`STRAY_COLOURS`) has any. Only the head's tone and the pattern are peculiar to it.
    """

    name: str
    pattern: str
    leg_pairs: tuple[int, int]
    width: tuple[float, float]
    tail: tuple[float, float]
    neck: tuple[float, float]
    antennae: float  # probability
    tones: int  # row of HEAD_TONES
    colours: tuple[int, ...]  # rows of BODY_COLOURS


SPECIES = (
    Species("beetle", "stripes", (2, 3), (0.50, 0.70), (0.0, 0.2), (0.00, 0.06), 0.9, 0, (0, 1, 2, 3)),
    Species("gecko", "rings", (2, 2), (0.40, 0.58), (0.4, 0.7), (0.00, 0.12), 0.1, 1, (2, 3, 4, 5)),
    Species("heron", "checks", (1, 2), (0.42, 0.62), (0.0, 0.3), (0.10, 0.25), 0.3, 2, (4, 5, 6, 7)),
    Species("crayfish", "sectors", (2, 3), (0.42, 0.60), (0.3, 0.5), (0.00, 0.08), 0.9, 3, (6, 7, 8, 9)),
    Species("marten", "spots", (1, 2), (0.42, 0.60), (0.3, 0.7), (0.00, 0.15), 0.2, 4, (8, 9, 0, 1)),
)
DEMO_CLASSES: tuple[str, ...] = tuple(species.name for species in SPECIES)

BODY_COLOURS = np.array(
    [
        [196, 92, 60], [214, 160, 70], [120, 150, 62], [66, 140, 110], [70, 120, 176],
        [128, 92, 168], [190, 100, 140], [150, 108, 74], [208, 196, 168], [84, 88, 104],
    ],
    dtype=np.float32,
)  # fmt: skip
GROUND_COLOURS = np.array(
    [
        [116, 124, 84], [142, 128, 100], [98, 104, 100], [156, 150, 132], [92, 112, 76],
        [120, 104, 84], [132, 140, 148], [104, 92, 88], [150, 142, 104], [84, 100, 112],
    ],
    dtype=np.float32,
)  # fmt: skip
HEAD_TONES = np.array(
    [
        [24, 24, 28], [252, 212, 40], [24, 36, 132], [200, 16, 60], [184, 252, 104],
    ],
    dtype=np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class Creature:
    """Geometry and colours of one creature; all lengths in pixels."""

    body: tuple[Stroke, ...]
    limbs: tuple[Stroke, ...]
    head: tuple[float, float, float, float]  # x, y, radius, direction in radians
    pattern: str
    colour: Array  # (3,)
    tones: Array  # (2, 3)


@dataclass
class Photo:
    """A photo under construction.

    Attributes:
        rgb: (H, W, 3) float32 in 0..255.
        owner: (H, W) uint8, 0 = ground, k = object k (1-based, in the order of `classes`).
        heads: (H, W) uint8, k on the head of object k.
        classes: class index (0-based) of each object.
    """

    rgb: Array
    owner: NDArray[np.uint8]
    heads: NDArray[np.uint8]
    classes: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.owner.shape[0], self.owner.shape[1]

    def paint(self, cover: Array, colour: Array) -> None:
        """Lay `colour` ((3,) or (H, W, 3)) over the photo with opacity `cover` ((H, W) in 0..1)."""
        self.rgb += cover[..., None] * (colour - self.rgb)


# ---------------------------------------------------------------------------------------------- drawing


def _cover(shape: tuple[int, int], strokes: Sequence[Stroke]) -> Array:
    """Opacity (H, W) in 0..1 of a union of strokes (chains of discs), anti-aliased."""
    s = SUPERSAMPLING
    canvas = Image.new("L", (shape[1] * s, shape[0] * s))
    draw = ImageDraw.Draw(canvas)
    for points, radii in strokes:
        xy, r = points * s, radii * s
        for (x, y), q in zip(xy, r, strict=True):
            draw.ellipse((x - q, y - q, x + q, y + q), fill=255)
        for a, b, q in zip(xy[:-1], xy[1:], np.minimum(r[:-1], r[1:]), strict=True):
            draw.line((*a, *b), fill=255, width=max(1, round(2 * float(q))))
    return _float32(np.asarray(canvas.reduce(s)) / np.float32(255))


def _float32(values: NDArray[Any]) -> Array:
    return values.astype(np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Array:
    """Smooth noise (H, W), about standard normal; `cell` is the size of its features in pixels."""
    rows, columns = int(shape[0] / cell) + 3, int(shape[1] / cell) + 3
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    x, y = rng.random(2)
    box = (x, y, x + shape[1] / cell, y + shape[0] / cell)
    field = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
    return _float32(np.asarray(field) * 1.3)


def _grid(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Pixel centres: x (1, W) and y (H, 1)."""
    x = np.arange(shape[1], dtype=np.float32)[None] + 0.5
    y = np.arange(shape[0], dtype=np.float32)[:, None] + 0.5
    return x, y


def _directions(angles: NDArray[Any]) -> Array:
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def _pattern(name: str, u: Array, v: Array) -> Array:
    """Signed pattern of a head; (u, v) are coordinates in head radii, positive values take the light tone."""
    rho = np.hypot(u, v)
    if name == "stripes":
        return _float32(np.sin(2 * np.pi * 1.15 * u))
    if name == "rings":
        return _float32(np.cos(2 * np.pi * 1.1 * rho))
    if name == "checks":
        return _float32(1.6 * np.sin(np.pi * 1.5 * u) * np.sin(np.pi * 1.5 * v))
    if name == "sectors":
        return _float32(np.sin(3 * np.arctan2(v, u)))
    if name == "spots":
        angles = np.arange(3) * 2 * np.pi / 3
        near = [np.hypot(u - 0.52 * np.cos(a), v - 0.52 * np.sin(a)) for a in angles]
        return _float32((np.minimum.reduce(near) - 0.33) * 4)
    if name == "half":
        return u * 3
    return np.full_like(rho, 0.2)  # "plain": between the two tones


# ---------------------------------------------------------------------------------------------- creatures


def _tapered(start: Array, angle: float, bend: float, length: float, radii: tuple[float, float], n: int) -> Stroke:
    """A curved stroke from `start`: `n` segments, turning by `bend` radians, radii from first to second."""
    steps = _directions(angle + bend * np.linspace(0, 1, n)) * (length / n)
    points = np.concatenate([start[None], start + np.cumsum(steps, axis=0)]).astype(np.float32)
    return points, np.linspace(*radii, n + 1, dtype=np.float32)


def _spine(rng: np.random.Generator, length: float, width: float, centre: Array, angle: float) -> tuple[Stroke, Array]:
    """Body stroke around `centre` and the heading (n,) along it, tail end first."""
    t = np.linspace(0, 1, 9)
    heading = angle + rng.uniform(-0.8, 0.8) * (t - 0.5) * 2
    points = np.cumsum(_directions(heading) * (length / len(t)), axis=0)
    fullest = rng.uniform(0.4, 0.65)
    radii = 0.5 * width * length * (1 - 0.6 * np.abs((t - fullest) / 0.65) ** 1.7)
    return (_float32(points - points.mean(0) + centre), _float32(radii)), _float32(heading)


def _legs(rng: np.random.Generator, spine: Stroke, heading: NDArray[Any], pairs: int, length: float) -> list[Stroke]:
    """Two-part legs on both sides of the body; each is posed by itself."""
    legs: list[Stroke] = []
    radius = max(1.6, 0.075 * length * rng.uniform(0.8, 1.2))
    reach = length * rng.uniform(0.16, 0.28)
    for t in np.linspace(0.2, 0.8, pairs) if pairs > 1 else [rng.uniform(0.4, 0.6)]:
        k = round(float(t) * (len(heading) - 1))
        for side in (-1, 1):
            out = float(heading[k]) + side * (np.pi / 2 + rng.uniform(-0.45, 0.45))
            hip = spine[0][k] + _directions(np.array(out)) * spine[1][k] * 0.8
            knee = hip + _directions(np.array(out)) * reach
            foot = knee + _directions(np.array(out + rng.uniform(-1.1, 1.1))) * reach * rng.uniform(0.8, 1.2)
            points = np.stack([hip, knee, foot]).astype(np.float32)
            legs.append((points, np.array([1.25, 1.0, 0.85], np.float32) * radius))
    return legs


def _limbs(
    rng: np.random.Generator, species: Species, spine: Stroke, heading: NDArray[Any], length: float
) -> list[Stroke]:
    """Legs and tail."""
    pairs = int(rng.integers(species.leg_pairs[0], species.leg_pairs[1] + 1))
    limbs = _legs(rng, spine, heading, pairs, length)
    tail = rng.uniform(*species.tail) * length
    if tail > 0.1 * length:
        radii = (max(1.4, 0.55 * float(spine[1][0])), 1.0)
        limbs.append(_tapered(spine[0][0], float(heading[0]) + np.pi, rng.uniform(-1.6, 1.6), tail, radii, 7))
    return limbs


def _creature(
    rng: np.random.Generator, species: Species, pattern: str, length: float, centre: Array, angle: float
) -> Creature:
    """A creature of random pose and colours; `length` of the body in pixels, heading `angle`."""
    spine, heading = _spine(rng, 0.8 * length, 1.25 * rng.uniform(*species.width), centre, angle)
    end = float(heading[-1]) + rng.uniform(-0.3, 0.3)
    neck_length = length * rng.uniform(*species.neck)
    radii = (float(spine[1][-1]) * 0.7, 0.05 * length)
    neck = _tapered(spine[0][-1], end, rng.uniform(-0.5, 0.5), neck_length + 1, radii, 4)
    radius = length * rng.uniform(0.23, 0.28)
    head = neck[0][-1] + _directions(np.array(end)) * radius * 0.8
    limbs = _limbs(rng, species, spine, heading, length)
    if rng.random() < species.antennae:
        for side in (-1, 1):
            root = head + _directions(np.array(end + side * 0.6)) * radius * 0.8
            bend = side * rng.uniform(-0.2, 1.4)
            limbs.append(_tapered(root, end + side * 0.35, bend, length * rng.uniform(0.2, 0.4), (1.1, 0.8), 5))
    stray, _ = rng.random(2) < STRAY_COLOURS  # the second draw keeps all later ones, and so the photos, as they are
    row = rng.integers(len(BODY_COLOURS)) if stray else rng.choice(species.colours)
    colour = BODY_COLOURS[row] + rng.normal(0, 9, 3)
    tones = np.stack([HEAD_TONES[species.tones] + rng.normal(0, 10, 3), colour])
    turn = end + rng.uniform(-0.5, 0.5)
    place = (float(head[0]), float(head[1]), float(radius), float(turn))
    return Creature((spine, neck), tuple(limbs), place, pattern, _float32(colour), _float32(tones))


def _head_cover(shape: tuple[int, int], creature: Creature) -> Array:
    x, y, radius, _ = creature.head
    return _cover(shape, [(np.array([[x, y]], np.float32), np.array([radius], np.float32))])


def _head_colours(shape: tuple[int, int], creature: Creature) -> Array:
    """Colours (H, W, 3) of the head's pattern, over the whole photo."""
    cx, cy, radius, angle = creature.head
    x, y = _grid(shape)
    x, y = (x - cx) / radius, (y - cy) / radius
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    light = np.clip(0.5 + 1.2 * _pattern(creature.pattern, u, v), 0, 1).astype(np.float32)[..., None]
    return _float32(creature.tones[0] + light * (creature.tones[1] - creature.tones[0]))


def _body_colours(rng: np.random.Generator, shape: tuple[int, int], creature: Creature) -> Array:
    """Colours (H, W, 3) of the body: one colour, shaded across the body, with faint texture."""
    x, y = _grid(shape)
    cx, cy = creature.body[0][0].mean(0)
    across = _directions(np.array(rng.uniform(0, 2 * np.pi)))
    extent = 0.5 * float(np.ptp(creature.body[0][0], axis=0).max()) + 1
    shade = np.clip(((x - cx) * across[0] + (y - cy) * across[1]) / extent, -1.2, 1.2) * rng.uniform(6, 18)
    texture = _noise(rng, shape, shape[0] / 32) * rng.uniform(2, 6)
    coat = _coat(shape, creature) * COAT_CONTRAST
    return _float32(creature.colour + (shade + texture + coat)[..., None])


def _coat(shape: tuple[int, int], creature: Creature) -> Array:
    """The head's pattern once more, small and repeated all over the photo, -1..1: a faint trace of the class."""
    cx, cy, radius, angle = creature.head
    x, y = _grid(shape)
    x, y = (x - cx) / (0.6 * radius), (y - cy) / (0.6 * radius)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _float32(np.clip(2 * _pattern(creature.pattern, (u + 1) % 2 - 1, (v + 1) % 2 - 1), -1, 1))


def _paint_creature(rng: np.random.Generator, photo: Photo, creature: Creature) -> tuple[Array, Array]:
    """Paint a creature; returns the opacity (H, W) of the whole and of the head."""
    head = _head_cover(photo.shape, creature)
    limbs, body = _cover(photo.shape, creature.limbs), _cover(photo.shape, creature.body)
    colours = _body_colours(rng, photo.shape, creature)
    photo.paint(limbs, colours * rng.uniform(0.86, 1.0))
    photo.paint(body, colours)
    photo.paint(head, _head_colours(photo.shape, creature))
    return np.maximum(np.maximum(limbs, body), head), head


# ---------------------------------------------------------------------------------------------- photos


def _ground(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Textured ground (H, W, 3): two to four regions of muted colours, now and then of a body colour."""
    scale = max(shape)
    colours = GROUND_COLOURS[rng.permutation(len(GROUND_COLOURS))[: rng.integers(1, 4)]].copy()
    if rng.random() < 0.2:
        colours[-1] = 0.75 * BODY_COLOURS[rng.integers(len(BODY_COLOURS))] + 0.25 * colours[-1]
    rgb = np.broadcast_to(colours[0], (*shape, 3)).astype(np.float32)
    for colour in colours[1:]:
        edge = rng.uniform(1.5, 8)
        region = 1 / (1 + np.exp(np.clip(-edge * (_noise(rng, shape, scale / 3.5) - 0.3), -30, 30)))
        rgb = rgb + region[..., None] * (colour - rgb)
    for cell, amplitude in ((scale / 12, 6.0), (scale / 32, 5.0), (scale / 90, 4.0)):
        rgb = rgb + _noise(rng, shape, cell)[..., None] * amplitude * rng.uniform(0.4, 1.3)
    return rgb.astype(np.float32)


def _clutter(rng: np.random.Generator, photo: Photo, count: int, *, stems: bool) -> Array:
    """Paint pebbles, leaves and twigs (or, with `stems`, long thin stems); returns their opacity (H, W)."""
    height, width = photo.shape
    scale = max(photo.shape)
    total = np.zeros(photo.shape, np.float32)
    for _ in range(count):
        start = rng.random(2).astype(np.float32) * np.array([width, height], np.float32)
        length = scale * (rng.uniform(0.3, 0.6) if stems else rng.uniform(0.01, 0.16))
        thick = scale * (rng.uniform(0.006, 0.011) if stems else rng.uniform(0.006, 0.03))
        radii = (thick, thick * rng.uniform(0.4, 1.0))
        stroke = _tapered(start, rng.uniform(0, 2 * np.pi), rng.uniform(-0.8, 0.8), length, radii, 4)
        palette = BODY_COLOURS if rng.random() < 0.15 else GROUND_COLOURS
        colour = palette[rng.integers(len(palette))] * rng.uniform(0.75, 1.2) + rng.normal(0, 8, 3)
        cover = _cover(photo.shape, [stroke])
        photo.paint(cover, colour.astype(np.float32))
        np.maximum(total, cover, out=total)
    return total


def _pose(rng: np.random.Generator, shape: tuple[int, int], length: tuple[float, float]) -> tuple[float, Array, float]:
    """Body length (log-uniform within fractions of the photo's long side), centre and heading."""
    low, high = np.log(length)
    centre = rng.uniform(0.18, 0.82, 2) * np.array([shape[1], shape[0]])
    return (
        float(np.exp(rng.uniform(low, high))) * max(shape),
        centre.astype(np.float32),
        rng.uniform(0, 2 * np.pi),
    )


def _distractor(rng: np.random.Generator, photo: Photo) -> None:
    """Paint a creature of no class: its head is half and half, plain, or lacking."""
    species = SPECIES[rng.integers(len(SPECIES))]
    creature = _creature(rng, species, rng.choice(["half", "plain"]), *_pose(rng, photo.shape, (0.15, 0.35)))
    tones = BODY_COLOURS[rng.integers(len(BODY_COLOURS), size=2)] * np.array([[0.5], [1.15]], np.float32)
    if rng.random() < 0.4:
        tones = np.stack([creature.colour] * 2)
    _paint_creature(rng, photo, replace(creature, tones=tones))


def _fits(photo: Photo, whole: NDArray[np.bool_], head: NDArray[np.bool_], creature: Creature) -> bool:
    """Whether the new head is inside the frame and what it would hide of the others is little."""
    if head.sum() < 0.9 * np.pi * creature.head[2] ** 2 or whole[1:-1, 1:-1].sum() < 0.9 * whole.sum():
        return False
    for k in range(1, len(photo.classes) + 1):
        mine, its_head = photo.owner == k, photo.heads == k
        if (whole & mine).sum() > 0.15 * mine.sum() or (whole & its_head).sum() > 0.1 * its_head.sum():
            return False
    return True


def _add_object(rng: np.random.Generator, photo: Photo, index: int, length: tuple[float, float], tries: int) -> bool:
    """Paint an object of class `index` (0-based) where there is room; shrinks at each failed try."""
    species = SPECIES[index]
    for shrink in 0.95 ** np.arange(tries):
        size, centre, angle = _pose(rng, photo.shape, length)
        creature = _creature(rng, species, species.pattern, size * shrink, centre, angle)
        head = _head_cover(photo.shape, creature) > 0.5
        whole = (_cover(photo.shape, creature.body + creature.limbs) > 0.5) | head
        if _fits(photo, whole, head, creature):
            _paint_creature(rng, photo, creature)
            photo.classes.append(index)
            k = len(photo.classes)
            photo.owner[whole], photo.heads[whole], photo.heads[head] = k, 0, k
            return True
    return False


def _camera(rng: np.random.Generator, rgb: Array) -> NDArray[np.uint8]:
    """Uneven light, white balance, blur and sensor noise; returns uint8 (H, W, 3)."""
    x, y = _grid((rgb.shape[0], rgb.shape[1]))
    towards = _directions(np.array(rng.uniform(0, 2 * np.pi))) * rng.uniform(0, 0.16)
    light = 1 + towards[0] * (2 * x / rgb.shape[1] - 1) + towards[1] * (2 * y / rgb.shape[0] - 1)
    lit = rgb * light[..., None] * rng.uniform(0.88, 1.12) * rng.uniform(0.95, 1.05, 3)
    sharp = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    soft = np.asarray(sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6))), dtype=np.float32)
    noisy = soft + rng.normal(0, rng.uniform(2, 5), soft.shape)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


def _labels(photo: Photo) -> NDArray[np.uint8]:
    """Class labels (H, W): 0 = ground, class index + 1, 255 on a line of one pixel outside each object."""
    padded = np.pad(photo.owner, 1, mode="edge")
    around = np.maximum.reduce([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    table = np.array([0, *(index + 1 for index in photo.classes)], np.uint8)
    labels = table[photo.owner]
    labels[around > photo.owner] = IGNORE
    return labels


def _photo(rng: np.random.Generator, shape: tuple[int, int], classes: Sequence[int]) -> Photo:
    """One photo with objects of the given class indices (a later one that finds no room is left out)."""
    photo = Photo(_ground(rng, shape), np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), [])
    _clutter(rng, photo, int(rng.integers(5, 15)), stems=False)
    for _ in range(int(rng.choice(3, p=[0.75, 0.2, 0.05]))):
        _distractor(rng, photo)
    length = ((0.34, 0.50), (0.30, 0.42), (0.26, 0.36))[len(classes) - 1]
    while not photo.classes:
        _add_object(rng, photo, classes[0], length, tries=40)
    for index in classes[1:]:
        _add_object(rng, photo, index, length, tries=12)
    stems = _clutter(rng, photo, int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])), stems=True) > 0.5
    photo.owner[stems], photo.heads[stems] = 0, 0
    return photo


# ---------------------------------------------------------------------------------------------- files


def _annotation(name: str, photo: Photo) -> bytes:
    """VOC annotation: the objects' names and boxes (1-based, inclusive) of their visible pixels."""
    height, width = photo.shape
    root = ET.Element("annotation")
    for tag, text in (("folder", "demo"), ("filename", f"{name}.jpg"), ("segmented", "1")):
        ET.SubElement(root, tag).text = text
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for k, index in enumerate(photo.classes, start=1):
        rows, columns = np.nonzero(photo.owner == k)
        entry = ET.SubElement(root, "object")
        ET.SubElement(entry, "name").text = DEMO_CLASSES[index]
        ET.SubElement(entry, "difficult").text = "0"
        box = ET.SubElement(entry, "bndbox")
        corners = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ET.SubElement(box, tag).text = str(int(value))
    ET.indent(root)
    return bytes(ET.tostring(root))


def _encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _photo_files(rng: np.random.Generator, name: str, photo: Photo) -> dict[str, bytes]:
    """The three files of one photo, by path below the root."""
    mask = Image.fromarray(_labels(photo))
    mask.putpalette(voc_palette().ravel().tolist())
    rgb = Image.fromarray(_camera(rng, photo.rgb))
    return {
        f"JPEGImages/{name}.jpg": _encode(rgb, format="JPEG", quality=JPEG_QUALITY, subsampling=0),
        f"Annotations/{name}.xml": _annotation(name, photo),
        f"SegmentationClass/{name}.png": _encode(mask, format="PNG"),
    }


def _plan(rng: np.random.Generator, count: int, size: int) -> list[tuple[tuple[int, int], list[int]]]:
    """Shape (H, W) and wanted class indices of each photo; first objects take the classes in turn."""
    short = size * 3 // 4
    shapes = ((size, size), (short, size), (size, short))
    plan = []
    for i in range(count):
        if i % len(SPECIES) == 0:
            deck = rng.permutation(len(SPECIES))
        others = rng.integers(len(SPECIES), size=rng.choice(3, p=[0.62, 0.30, 0.08]))
        shape = shapes[rng.choice(3, p=[0.4, 0.4, 0.2])]
        plan.append((shape, [int(deck[i % len(SPECIES)]), *map(int, others)]))
    return plan


def _check(size: int, counts: Mapping[str, int]) -> None:
    if not 64 <= size <= 1024:
        raise RRMError(f"size: expected 64 to 1024 pixels, got {size}: choose another size of the demo photos")
    for split, count in counts.items():
        if count < len(SPECIES):
            raise RRMError(
                f"{split}: expected at least {len(SPECIES)} photos (one a class), got {count}: choose a larger number"
            )


def _write(root: Path, path: str, content: bytes) -> str:
    """Write one file; returns its SHA-256."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _write_split(root: Path, split: str, seed: int, size: int, count: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Write the photos and the list of one split; returns hashes by path and counts."""
    hashes: dict[str, str] = {}
    objects: Counter[str] = Counter()
    names = [f"{split}_{i + 1:05d}" for i in range(count)]
    order = SPLITS.index(split)
    for i, (shape, classes) in enumerate(_plan(np.random.default_rng([seed, order]), count, size)):
        rng = np.random.default_rng([seed, order, i])
        photo = _photo(rng, shape, classes)
        objects.update(DEMO_CLASSES[index] for index in photo.classes)
        for path, content in _photo_files(rng, names[i], photo).items():
            hashes[path] = _write(root, path, content)
    listing = f"ImageSets/Segmentation/{split}.txt"
    hashes[listing] = _write(root, listing, ("\n".join(names) + "\n").encode())
    return hashes, {"photos": count, "objects": {name: objects[name] for name in DEMO_CLASSES}}


def generate_demo(
    root: str | Path, *, seed: int = 0, size: int = 96, train: int = 480, val: int = 120, test: int = 120
) -> None:
    """Write the synthetic demo data set in VOC 2012 layout; `manifest.json` comes last.

    The same arguments give the same bytes (for the same NumPy and Pillow); a photo does not depend on how
    many others there are. Classes are `DEMO_CLASSES`; a photo holds one to three objects and every class
    occurs in every split.

    Args:
        root: folder to write to; made if missing. Files of the same name are replaced.
        seed: seed of all random choices, >= 0.
        size: long side of the photos in pixels, 64..1024; the short side is the same or three quarters of it.
        train: number of photos in the split of this name, at least one a class.
        val: the same.
        test: the same.

    Raises:
        RRMError: for a size or a number of photos out of range.

    Example:
        >>> import json, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> generate_demo(folder, size=64, train=5, val=5, test=5)
        >>> manifest = json.loads((Path(folder) / "manifest.json").read_text())
        >>> manifest["counts"]["train"]["photos"], len(manifest["files"])
        (5, 48)
    """
    root, counts = Path(root), {"train": train, "val": val, "test": test}
    _check(size, counts)
    (root / "manifest.json").unlink(missing_ok=True)
    files: dict[str, str] = {}
    contents: dict[str, Any] = {}
    for split, count in counts.items():
        hashes, contents[split] = _write_split(root, split, seed, size, count)
        files.update(hashes)
    manifest = {
        "format": FORMAT,
        "parameters": {"seed": seed, "size": size, **counts},
        "classes": list(DEMO_CLASSES),
        "counts": contents,
        "files": dict(sorted(files.items())),
    }
    with atomic_path(root / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
