"""Product pictures drawn by code, for the synthetic shop.

A picture shows what a shop photo would: the product type as an outline, its colour, its pattern and the brand's mark,
on a pale background, with a little chance in size, angle and place. Shapes are tables of parts in a 100 x 100 square
(x to the right, y down); drawing happens at three times the wanted size and is then scaled down.
"""

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Points = tuple[tuple[float, float], ...]
Paint = Literal["fabric", "shade", "deep", "white", "ink", "metal", "glass"]

OVERSAMPLING = 3
SMOOTH_STEPS = 10

COLOURS: dict[str, RGB] = {
    "black": (52, 54, 62),
    "blue": (52, 112, 214),
    "brown": (139, 92, 58),
    "green": (62, 150, 86),
    "orange": (240, 138, 44),
    "pink": (240, 138, 178),
    "purple": (128, 84, 186),
    "red": (214, 56, 60),
    "white": (244, 243, 238),
    "yellow": (246, 204, 62),
}
PATTERNS = ("checked", "dotted", "plain", "striped", "zigzag")

BACKGROUNDS: tuple[RGB, ...] = (
    (238, 241, 246),
    (246, 241, 233),
    (234, 243, 238),
    (245, 237, 241),
    (240, 238, 247),
    (242, 242, 240),
)
FIXED_PAINTS: dict[Paint, RGB] = {
    "white": (250, 249, 246),
    "ink": (58, 60, 70),
    "metal": (176, 182, 192),
    "glass": (226, 236, 244),
}


@dataclass(frozen=True)
class Part:
    """One filled or stroked piece of a product.

    Attributes:
        kind: `polygon` (sharp corners), `smooth` (closed curve through the points), `ellipse` and `round` (two corners
            of a box), `line` (an open curve through the points).
        points: Positions in the 100 x 100 square.
        paint: What it is painted with.
        width: Stroke width of a `line`, corner radius of a `round`.
    """

    kind: Literal["polygon", "smooth", "ellipse", "round", "line"]
    points: Points
    paint: Paint = "fabric"
    width: float = 3.0


@dataclass(frozen=True)
class Shape:
    """A product type: its parts from back to front, and where the brand's mark sits (x, y, radius)."""

    parts: tuple[Part, ...]
    mark: tuple[float, float, float]


SHAPES: dict[str, Shape] = {
    "backpack": Shape(
        (
            Part("line", ((40, 18), (42, 7), (58, 7), (60, 18)), "deep", 4.5),
            Part("round", ((15, 48), (27, 82)), "shade", 5),
            Part("round", ((73, 48), (85, 82)), "shade", 5),
            Part("smooth", ((24, 36), (32, 18), (50, 12), (68, 18), (76, 36), (78, 70), (74, 90), (26, 90), (22, 70))),
            Part("line", ((26, 40), (50, 45), (74, 40)), "deep", 2.4),
            Part("round", ((31, 58), (69, 86)), "shade", 6),
            Part("line", ((34, 64), (66, 64)), "deep", 2.0),
        ),
        (50, 30, 8.5),
    ),
    "handbag": Shape(
        (
            Part("line", ((32, 46), (34, 18), (50, 9), (66, 18), (68, 46)), "deep", 4.5),
            Part("polygon", ((22, 40), (78, 40), (90, 86), (10, 86))),
            Part("polygon", ((22, 40), (78, 40), (81, 51), (19, 51)), "shade"),
            Part("ellipse", ((46, 46), (54, 54)), "metal"),
        ),
        (50, 69, 9),
    ),
    "tote bag": Shape(
        (
            Part("line", ((36, 42), (36, 14), (50, 6), (64, 14), (64, 42)), "shade", 4.0),
            Part("polygon", ((22, 34), (78, 34), (82, 94), (18, 94))),
            Part("line", ((22, 39), (78, 39)), "shade", 2.5),
        ),
        (50, 66, 11),
    ),
    "t-shirt": Shape(
        (
            Part(
                "polygon",
                (
                    (36, 15),
                    (64, 15),
                    (80, 20),
                    (97, 43),
                    (82, 54),
                    (74, 45),
                    (74, 90),
                    (26, 90),
                    (26, 45),
                    (18, 54),
                    (3, 43),
                    (20, 20),
                ),
            ),
            Part("ellipse", ((37, 6), (63, 25)), "shade"),
            Part("ellipse", ((40, 5), (60, 21)), "deep"),
            Part("line", ((74, 46), (72, 34)), "deep", 1.6),
            Part("line", ((26, 46), (28, 34)), "deep", 1.6),
        ),
        (50, 46, 10),
    ),
    "hoodie": Shape(
        (
            Part(
                "polygon",
                (
                    (34, 24),
                    (66, 24),
                    (82, 31),
                    (95, 80),
                    (83, 84),
                    (75, 56),
                    (75, 93),
                    (25, 93),
                    (25, 56),
                    (17, 84),
                    (5, 80),
                    (18, 31),
                ),
            ),
            Part("smooth", ((30, 27), (36, 9), (50, 4), (64, 9), (70, 27), (50, 37)), "shade"),
            Part("smooth", ((38, 24), (42, 13), (50, 10), (58, 13), (62, 24), (50, 31)), "deep"),
            Part("line", ((45, 31), (44, 45)), "white", 2.0),
            Part("line", ((55, 31), (56, 45)), "white", 2.0),
            Part("polygon", ((37, 68), (63, 68), (69, 84), (31, 84)), "shade"),
            Part("line", ((25, 91), (75, 91)), "deep", 3.0),
        ),
        (50, 54, 8.5),
    ),
    "dress": Shape(
        (
            Part("line", ((39, 22), (41, 6)), "shade", 4.0),
            Part("line", ((61, 22), (59, 6)), "shade", 4.0),
            Part(
                "polygon",
                (
                    (35, 16),
                    (44, 22),
                    (50, 23),
                    (56, 22),
                    (65, 16),
                    (66, 32),
                    (61, 45),
                    (73, 68),
                    (86, 92),
                    (14, 92),
                    (27, 68),
                    (39, 45),
                    (34, 32),
                ),
            ),
            Part("polygon", ((39, 42), (61, 42), (62, 48), (38, 48)), "deep"),
            Part("line", ((42, 56), (34, 90)), "shade", 1.6),
            Part("line", ((58, 56), (66, 90)), "shade", 1.6),
        ),
        (50, 69, 9),
    ),
    "trousers": Shape(
        (
            Part("polygon", ((28, 8), (72, 8), (80, 94), (57, 94), (50, 38), (43, 94), (20, 94))),
            Part("polygon", ((28, 8), (72, 8), (73, 16), (27, 16)), "deep"),
            Part("line", ((50, 16), (50, 38)), "deep", 1.8),
            Part("line", ((30, 28), (38, 24), (41, 17)), "deep", 1.8),
            Part("line", ((70, 28), (62, 24), (59, 17)), "deep", 1.8),
        ),
        (34, 48, 8),
    ),
    "sneakers": Shape(
        (
            Part(
                "smooth",
                (
                    (8, 66), (9, 40), (14, 30), (26, 34), (37, 33), (46, 36),
                    (60, 50), (82, 57), (94, 68), (92, 76), (10, 76),
                ),
            ),
            Part("smooth", ((76, 56), (88, 60), (95, 70), (92, 76), (74, 76)), "shade"),
            Part("round", ((5, 73), (96, 86)), "white", 6),
            Part("line", ((6, 82), (95, 82)), "metal", 2.2),
            Part("line", ((48, 37), (41, 45)), "white", 2.6),
            Part("line", ((55, 44), (48, 51)), "white", 2.6),
            Part("line", ((62, 49), (56, 57)), "white", 2.6),
        ),
        (26, 54, 8.5),
    ),
    "boots": Shape(
        (
            Part(
                "polygon",
                ((22, 8), (56, 8), (57, 46), (64, 56), (82, 61), (92, 70), (93, 82), (20, 82), (22, 46)),
            ),
            Part("polygon", ((20, 7), (58, 7), (58, 17), (20, 17)), "shade"),
            Part("polygon", ((19, 80), (94, 80), (94, 89), (56, 89), (48, 86), (46, 93), (19, 93)), "ink"),
            Part("line", ((46, 30), (57, 27)), "white", 2.2),
            Part("line", ((46, 39), (57, 36)), "white", 2.2),
            Part("line", ((48, 48), (59, 45)), "white", 2.2),
        ),
        (34, 56, 8.5),
    ),
    "cap": Shape(
        (
            Part("smooth", ((54, 60), (78, 60), (97, 70), (92, 76), (74, 73), (50, 72)), "deep"),
            Part("smooth", ((11, 66), (13, 46), (24, 30), (43, 24), (62, 31), (72, 46), (75, 66), (44, 72))),
            Part("line", ((43, 25), (30, 44), (27, 68)), "shade", 1.8),
            Part("line", ((43, 25), (62, 42), (68, 66)), "shade", 1.8),
            Part("ellipse", ((39, 20), (47, 28)), "deep"),
        ),
        (46, 52, 9),
    ),
    "beanie": Shape(
        (
            Part("ellipse", ((38, 4), (62, 28)), "white"),
            Part("smooth", ((19, 70), (20, 48), (32, 28), (50, 21), (68, 28), (80, 48), (81, 70), (50, 74))),
            Part("round", ((14, 63), (86, 88)), "shade", 7),
            Part("line", ((26, 67), (26, 84)), "deep", 1.6),
            Part("line", ((38, 67), (38, 84)), "deep", 1.6),
            Part("line", ((62, 67), (62, 84)), "deep", 1.6),
            Part("line", ((74, 67), (74, 84)), "deep", 1.6),
        ),
        (50, 75, 8.5),
    ),
    "scarf": Shape(
        (
            Part("polygon", ((53, 36), (74, 32), (82, 82), (60, 86))),
            Part("line", ((62, 86), (63, 94)), "shade", 2.4),
            Part("line", ((69, 85), (70, 93)), "shade", 2.4),
            Part("line", ((77, 83), (78, 91)), "shade", 2.4),
            Part("polygon", ((26, 32), (48, 36), (44, 90), (20, 87))),
            Part("line", ((23, 88), (22, 96)), "shade", 2.4),
            Part("line", ((31, 89), (30, 97)), "shade", 2.4),
            Part("line", ((40, 90), (39, 97)), "shade", 2.4),
            Part("smooth", ((20, 24), (34, 10), (50, 8), (66, 10), (80, 24), (74, 40), (50, 47), (26, 40))),
            Part("smooth", ((33, 20), (50, 14), (67, 20), (50, 27)), "deep"),
        ),
        (34, 66, 8.5),
    ),
    "umbrella": Shape(
        (
            Part("line", ((50, 10), (50, 84)), "ink", 3.4),
            Part("line", ((50, 82), (51, 91), (58, 94), (65, 90), (65, 84)), "ink", 4.0),
            Part(
                "polygon",
                (
                    (5, 54),
                    (9, 38),
                    (20, 23),
                    (34, 15),
                    (50, 12),
                    (66, 15),
                    (80, 23),
                    (91, 38),
                    (95, 54),
                    (87, 49),
                    (80, 48),
                    (72, 50),
                    (65, 55),
                    (57, 50),
                    (50, 48),
                    (43, 50),
                    (35, 55),
                    (28, 50),
                    (20, 48),
                    (13, 49),
                ),
            ),
            Part("line", ((50, 12), (39, 28), (35, 54)), "shade", 1.8),
            Part("line", ((50, 12), (61, 28), (65, 54)), "shade", 1.8),
            Part("line", ((50, 5), (50, 12)), "ink", 3.0),
        ),
        (50, 34, 8.5),
    ),
    "watch": Shape(
        (
            Part("polygon", ((36, 3), (64, 3), (67, 34), (33, 34))),
            Part("polygon", ((33, 66), (67, 66), (64, 97), (36, 97))),
            Part("round", ((74, 45), (82, 55)), "metal", 2),
            Part("ellipse", ((22, 22), (78, 78)), "metal"),
            Part("ellipse", ((27, 27), (73, 73)), "glass"),
            Part("line", ((50, 50), (50, 33)), "ink", 3.0),
            Part("line", ((50, 50), (62, 54)), "ink", 3.0),
            Part("line", ((50, 29), (50, 31)), "ink", 2.0),
            Part("line", ((69, 50), (71, 50)), "ink", 2.0),
            Part("line", ((29, 50), (31, 50)), "ink", 2.0),
        ),
        (42, 63, 7),
    ),
    "mug": Shape(
        (
            Part("line", ((70, 36), (86, 36), (92, 52), (86, 68), (68, 70)), "shade", 7.0),
            Part("round", ((16, 22), (74, 88)), "fabric", 9),
            Part("ellipse", ((16, 15), (74, 31)), "shade"),
            Part("ellipse", ((20, 17), (70, 29)), "deep"),
        ),
        (45, 57, 11),
    ),
    "cushion": Shape(
        (
            Part(
                "smooth",
                (
                    (8, 12), (30, 16), (50, 17), (70, 16), (92, 12), (87, 34), (86, 50), (87, 66),
                    (92, 90), (70, 86), (50, 85), (30, 86), (8, 90), (13, 66), (14, 50), (13, 34),
                ),
            ),
            Part("line", ((14, 17), (25, 28)), "shade", 2.0),
            Part("line", ((86, 17), (75, 28)), "shade", 2.0),
            Part("line", ((14, 85), (25, 74)), "shade", 2.0),
            Part("line", ((86, 85), (75, 74)), "shade", 2.0),
        ),
        (50, 51, 12),
    ),
}  # fmt: skip


def _star(corners: int, inner: float, turn: float = -math.pi / 2) -> Points:
    angles = [turn + math.pi * i / corners for i in range(2 * corners)]
    return tuple(
        ((inner if i % 2 else 1.0) * math.cos(a), (inner if i % 2 else 1.0) * math.sin(a)) for i, a in enumerate(angles)
    )


def _ngon(corners: int, turn: float = -math.pi / 2) -> Points:
    return tuple(
        (math.cos(turn + 2 * math.pi * i / corners), math.sin(turn + 2 * math.pi * i / corners)) for i in range(corners)
    )


MARKS: tuple[tuple[Points, RGB], ...] = (
    (_star(5, 0.42), (206, 44, 60)),
    (_ngon(3), (24, 92, 190)),
    (_ngon(24), (226, 120, 20)),
    (_ngon(4), (20, 128, 96)),
    (_star(4, 0.32), (122, 62, 176)),
    (_ngon(4, -math.pi / 4), (32, 34, 44)),
    (((-0.9, -0.5), (0, 0.1), (0.9, -0.5), (0.9, 0.2), (0, 0.8), (-0.9, 0.2)), (214, 70, 138)),
    (_ngon(6), (150, 104, 30)),
    (((-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1)), (16, 140, 168)),
    (_star(8, 0.62), (96, 132, 24)),
)
"""Brand marks: an outline in the unit circle and the brand's own colour, drawn on a white patch."""


def draw_product(
    product_type: str, colour: str, pattern: str, mark: int, *, size: int, rng: np.random.Generator
) -> bytes:
    """Draws one product picture.

    Args:
        product_type: One of `SHAPES`.
        colour: One of `COLOURS`.
        pattern: One of `PATTERNS`.
        mark: Row of `MARKS`.
        size: Width and height of the picture in pixels.
        rng: The chance in size (88% to 100%), angle (up to 9 degrees), place, shade and background.

    Returns:
        A JPEG file's bytes, the same for the same arguments and generator state.
    """
    base = _vary(COLOURS[colour], rng, spread=9)
    background = _vary(BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))], rng, spread=4)
    scale = size * OVERSAMPLING / 100
    product = _product_layer(product_type, base, pattern, mark, scale)
    placed = _place(product, rng, scale)
    picture = Image.alpha_composite(_backdrop(background, placed.size), _shadow(placed, scale))
    picture = Image.alpha_composite(picture, _lit(placed))
    buffer = io.BytesIO()
    small = picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def _product_layer(product_type: str, base: RGB, pattern: str, mark: int, scale: float) -> Image.Image:
    """The product on a transparent square; each part has a thin dark rim, so that parts of one colour stay apart."""
    side = round(100 * scale)
    layer = Image.new("RGBA", (side, side))
    fabric = _fabric(base, pattern, scale)
    rim_paint = (*_mix(base, (30, 30, 42), 0.66), 255)
    shape = SHAPES[product_type]
    for part, (mask, rim) in zip(shape.parts, _masks(product_type, scale), strict=True):
        layer.paste(rim_paint, mask=rim)
        layer.paste(fabric if part.paint == "fabric" else (*_paint(part.paint, base), 255), mask=mask)
    _draw_mark(layer, shape.mark, mark, scale)
    return layer


@functools.lru_cache(maxsize=32)
def _masks(product_type: str, scale: float) -> tuple[tuple[Image.Image, Image.Image], ...]:
    """Where each part of a product is, and the same with its rim."""
    side = round(100 * scale)
    rim = ImageFilter.MaxFilter(2 * max(1, round(0.5 * scale)) + 1)
    masks = [_part_mask(part, side, scale) for part in SHAPES[product_type].parts]
    return tuple((mask, mask.filter(rim)) for mask in masks)


def _part_mask(part: Part, side: int, scale: float) -> Image.Image:
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    points = [(x * scale, y * scale) for x, y in part.points]
    if part.kind == "ellipse":
        draw.ellipse([*points[0], *points[1]], fill=255)
    elif part.kind == "round":
        draw.rounded_rectangle([*points[0], *points[1]], radius=part.width * scale, fill=255)
    elif part.kind == "line":
        _draw_line(draw, _curve(points, closed=False), part.width * scale)
    else:
        draw.polygon(_curve(points, closed=True) if part.kind == "smooth" else points, fill=255)
    return mask


def _draw_line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], width: float) -> None:
    draw.line(points, fill=255, width=max(1, round(width)), joint="curve")
    for x, y in (points[0], points[-1]):
        draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=255)


def _curve(points: list[tuple[float, float]], *, closed: bool) -> list[tuple[float, float]]:
    """A Catmull-Rom curve through the points."""
    count = len(points)
    ring = points if closed else [points[0], *points, points[-1]]
    starts = range(count) if closed else range(1, count)
    steps = np.linspace(0, 1, SMOOTH_STEPS, endpoint=False)
    curve: list[tuple[float, float]] = []
    for i in starts:
        a, b, c, d = (np.array(ring[(i + k) % len(ring)]) for k in (-1, 0, 1, 2))
        for t in steps:
            p = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
            curve.append((float(p[0]), float(p[1])))
    return curve if closed else [*curve, points[-1]]


def _fabric(base: RGB, pattern: str, scale: float) -> Image.Image:
    """A square of cloth in the base colour with the pattern in a contrasting one."""
    side = round(100 * scale)
    second = _mix(base, (44, 52, 84), 0.72) if _brightness(base) > 190 else _mix(base, (255, 252, 244), 0.78)
    cloth = Image.new("RGBA", (side, side), (*base, 255))
    draw = ImageDraw.Draw(cloth)
    if pattern == "striped":
        for y in np.arange(4, 100, 14):
            draw.rectangle([0, y * scale, side, (y + 5) * scale], fill=second)
    elif pattern == "dotted":
        for row, y in enumerate(np.arange(3, 100, 10)):
            for x in np.arange(3 + 6.5 * (row % 2), 104, 13):
                draw.ellipse([(x - 3) * scale, (y - 3) * scale, (x + 3) * scale, (y + 3) * scale], fill=second)
    elif pattern == "checked":
        _draw_checks(cloth, second, scale)
    elif pattern == "zigzag":
        for y in np.arange(-4, 108, 15):
            xs = np.arange(-8, 116, 8)
            zig = [(x * scale, (y + 4 * (-1) ** i) * scale) for i, x in enumerate(xs)]
            draw.line(zig, fill=second, width=round(4.4 * scale), joint="curve")
    return cloth


def _draw_checks(cloth: Image.Image, second: RGB, scale: float) -> None:
    """Gingham: half-transparent bands both ways, so that crossings are stronger."""
    for horizontal in (True, False):
        bands = Image.new("RGBA", cloth.size)
        draw = ImageDraw.Draw(bands)
        for start in np.arange(0, 100, 18) * scale:
            box = (
                [0, start, cloth.width, start + 9 * scale]
                if horizontal
                else [start, 0, start + 9 * scale, cloth.height]
            )
            draw.rectangle(box, fill=(*second, 140))
        cloth.alpha_composite(bands)


def _draw_mark(layer: Image.Image, place: tuple[float, float, float], mark: int, scale: float) -> None:
    outline, colour = MARKS[mark]
    x, y, radius = place
    draw = ImageDraw.Draw(layer)
    box = [(x - radius) * scale, (y - radius) * scale, (x + radius) * scale, (y + radius) * scale]
    draw.ellipse(box, fill=(255, 255, 255, 255), outline=(*colour, 255), width=max(1, round(0.9 * scale)))
    draw.polygon([((x + 0.7 * radius * u) * scale, (y + 0.7 * radius * v) * scale) for u, v in outline], fill=colour)


def _place(product: Image.Image, rng: np.random.Generator, scale: float) -> Image.Image:
    """The product scaled, turned and shifted a little on a square of the same size."""
    side = product.width
    inner = round(side * float(rng.uniform(0.76, 0.88)))
    turned = product.resize((inner, inner), Image.Resampling.LANCZOS).rotate(
        float(rng.uniform(-9, 9)), Image.Resampling.BILINEAR, expand=True
    )
    shift = rng.uniform(-2.5, 2.5, size=2) * scale
    placed = Image.new("RGBA", product.size)
    corner = (round((side - turned.width) / 2 + shift[0]), round((side - turned.height) / 2 + shift[1] - 1.5 * scale))
    placed.paste(turned, corner)
    return placed


def _lit(product: Image.Image) -> Image.Image:
    """Light from the upper left: 1.06 to 0.86 of the colour along the diagonal."""
    ramp = np.linspace(0, 1, product.width, dtype=np.float32)
    light = 1.06 - 0.20 * (0.35 * ramp[None, :] + 0.65 * ramp[:, None])
    pixels = np.array(product)
    pixels[..., :3] = np.clip(pixels[..., :3] * light[..., None] + 0.5, 0, 255)
    return Image.fromarray(pixels)


def _shadow(product: Image.Image, scale: float) -> Image.Image:
    alpha = ImageChops.offset(product.getchannel("A"), round(1.5 * scale), round(3 * scale))
    blurred = alpha.filter(ImageFilter.GaussianBlur(2.2 * scale)).point([round(v * 0.32) for v in range(256)])
    shadow = Image.new("RGBA", product.size, (40, 44, 66, 0))
    shadow.putalpha(blurred)
    return shadow


def _backdrop(colour: RGB, size: tuple[int, int]) -> Image.Image:
    """The background: a soft light behind the product, falling off to the corners."""
    lookups = [round(min(255.0, channel * 1.02 * level / 255)) for channel in colour for level in range(256)]
    return Image.merge("RGB", [_falloff(size)] * 3).point(lookups).convert("RGBA")


@functools.lru_cache(maxsize=4)
def _falloff(size: tuple[int, int]) -> Image.Image:
    ys, xs = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    fall = 1 - 0.07 * (xs**2 + (ys + 0.2) ** 2)
    return Image.fromarray((255 * fall).round().astype(np.uint8))


def _paint(paint: Paint, base: RGB) -> RGB:
    if paint == "shade":
        return _mix(base, (24, 26, 44), 0.2)
    if paint == "deep":
        return _mix(base, (24, 26, 44), 0.44)
    return FIXED_PAINTS[paint]


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    """`a` with a share of `b`, 0 to 1."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _brightness(colour: RGB) -> float:
    """Luma of ITU-R BT.601, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _vary(colour: RGB, rng: np.random.Generator, *, spread: int) -> RGB:
    red, green, blue = (
        int(np.clip(c + s, 0, 255)) for c, s in zip(colour, rng.integers(-spread, spread + 1, 3), strict=True)
    )
    return red, green, blue
