"""What a picture shows, described: parts, where they lie, the camera's pose, the light, and what is wrong."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

SIZE = 256  # side of an image
Point = tuple[float, float]  # x, y in pixels of an image that is taken from straight above


@dataclass(frozen=True)
class Rect:
    """An upright rectangle: its left, top, right and bottom."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def size(self) -> tuple[float, float]:
        return self.right - self.left, self.bottom - self.top

    @property
    def centre(self) -> Point:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def grown(self, by: float) -> "Rect":
        """The rectangle with every side further out."""
        return Rect(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def contains(self, point: Point) -> bool:
        return self.left <= point[0] <= self.right and self.top <= point[1] <= self.bottom


@dataclass(frozen=True)
class Part:
    """One thing in a picture.

    Attributes:
        kind: what it is, a key of render.MATERIALS.
        centre: of its rectangle.
        size: width and height before it is turned.
        angle: in degrees, clockwise.
        grain: seeds the cut of its texture.
        colour: a key of render.COLOURS; empty: the material's own.
        path: of a cable, the points that it runs through; its width is size[1].
        bite: where a piece is broken off: x, y and radius; None: nowhere.
    """

    kind: str
    centre: Point
    size: tuple[float, float]
    angle: float = 0.0
    grain: int = 0
    colour: str = ""
    path: tuple[Point, ...] = ()
    bite: tuple[float, float, float] | None = None

    @property
    def is_round(self) -> bool:
        return self.size[0] == self.size[1]


@dataclass(frozen=True)
class View:
    """How a scene is photographed.

    Attributes:
        shift: of the picture, in pixels.
        angle: that it is turned by, in degrees.
        scale: that it is enlarged by.
        gain: of each colour channel.
        slope: by how much the light grows from one border to the other, along x and y.
        noise: standard deviation of the sensor's noise in grey levels, and its seed.
    """

    shift: Point
    angle: float
    scale: float
    gain: tuple[float, float, float]
    slope: Point
    noise: tuple[float, int]


@dataclass(frozen=True)
class Scene:
    """A picture's content, and how it is seen.

    Attributes:
        ground: fills the picture.
        fixtures: what nothing is wrong with, drawn first and in this order.
        parts: what is counted, moved and broken, drawn in this order.
        view: camera and light.
    """

    ground: Part
    fixtures: tuple[Part, ...]
    parts: tuple[Part, ...]
    view: View


@dataclass(frozen=True)
class Defect:
    """Where something is wrong.

    Attributes:
        name: a name of Kind.defects.
        parts: indices of the scene's parts that are wrong.
        floors: places where a part is missing: these rectangles, but for the parts that lie there.
    """

    name: str
    parts: tuple[int, ...] = ()
    floors: tuple[Rect, ...] = ()


@dataclass(frozen=True)
class Rule:
    """When a defect of one name counts as found: MVTec LOCO's saturation, in pixels or as a share of its area."""

    name: str
    threshold: float
    relative: bool


Anomaly = Callable[[np.random.Generator], tuple[Scene, list[Defect]]]


@dataclass(frozen=True)
class Kind:
    """One class of the dataset.

    Attributes:
        normal: a scene that keeps all constraints.
        anomalies: by name, scenes that break one of them, with what is wrong.
        rules: of the logical defects.
    """

    normal: Callable[[np.random.Generator], Scene]
    anomalies: dict[str, Anomaly]
    rules: tuple[Rule, ...]


def draw_view(rng: np.random.Generator) -> View:
    """A camera that is nearly where it should be, and daylight that changes."""
    gain = rng.uniform(0.88, 1.12) * rng.uniform(0.975, 1.025, 3)
    return View(
        shift=(float(rng.uniform(-4, 4)), float(rng.uniform(-4, 4))),
        angle=float(rng.uniform(-2.5, 2.5)),
        scale=float(rng.uniform(0.975, 1.025)),
        gain=(float(gain[0]), float(gain[1]), float(gain[2])),
        slope=(float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.2, 0.2))),
        noise=(float(rng.uniform(1.5, 3.5)), draw_grain(rng)),
    )


def draw_grain(rng: np.random.Generator) -> int:
    """A seed of a texture's cut."""
    return int(rng.integers(2**31))


def draw_ground(kind: str, rng: np.random.Generator) -> Part:
    """Of what everything stands on; its place and size do not matter."""
    return Part(kind, (SIZE / 2, SIZE / 2), (SIZE, SIZE), grain=draw_grain(rng))


def regrained(parts: Sequence[Part], rng: np.random.Generator) -> tuple[Part, ...]:
    """The parts with other cuts of their textures."""
    return tuple(replace(part, grain=draw_grain(rng)) for part in parts)


def scatter(
    parts: Sequence[Part], floor: Rect, turn: float, rng: np.random.Generator, gap: float = 3
) -> tuple[Part, ...]:
    """Lay parts on a floor at random so that none touches another or the border.

    Args:
        parts: of which centre, angle and grain are drawn; `angle` is added to the turn.
        floor: where they lie.
        turn: the largest angle they are turned by, in degrees; round ones lie at any angle.
        rng: draws.
        gap: the least distance between two, in pixels.
    """
    while True:
        laid: list[Part] = []
        for part in parts:
            tries = (_dropped(part, floor, turn, rng) for _ in range(50))
            fitting = (new for new in tries if _fits(new, laid, floor, gap))
            if (new := next(fitting, None)) is None:
                break  # those that lie there leave no room
            laid.append(new)
        else:
            return tuple(laid)


def area(size: tuple[float, float]) -> float:
    """Of a part of this width and height, which is round where they are equal; in whole pixels."""
    return round(size[0] * size[1] * (np.pi / 4 if size[0] == size[1] else 1))


def _dropped(part: Part, floor: Rect, turn: float, rng: np.random.Generator) -> Part:
    centre = (float(rng.uniform(floor.left, floor.right)), float(rng.uniform(floor.top, floor.bottom)))
    angle = 360 if part.is_round else turn
    return replace(part, centre=centre, angle=part.angle + float(rng.uniform(-angle, angle)), grain=draw_grain(rng))


def _fits(part: Part, laid: Sequence[Part], floor: Rect, gap: float) -> bool:
    corners = cv2.boxPoints(_box(part, gap))
    return all(floor.contains((x, y)) for x, y in corners) and not any(_touch(part, other, gap) for other in laid)


def _touch(one: Part, other: Part, gap: float) -> bool:
    """Whether two parts are closer than a gap; a round one counts as a square beside one that is not."""
    if one.is_round and other.is_round:
        return math.dist(one.centre, other.centre) < (one.size[0] + other.size[0]) / 2 + gap
    return cv2.rotatedRectangleIntersection(_box(one, gap), _box(other, gap))[0] != cv2.INTERSECT_NONE


def _box(part: Part, gap: float) -> tuple[Point, tuple[float, float], float]:
    return part.centre, (part.size[0] + gap, part.size[1] + gap), 0.0 if part.is_round else part.angle
