"""Cable: it joins terminals of the same number on two housings, and has the colour of the label above it."""

from dataclasses import replace

import numpy as np

from datasets.assembly.scene import (
    SIZE,
    Defect,
    Kind,
    Part,
    Point,
    Rect,
    Rule,
    Scene,
    draw_ground,
    draw_view,
    regrained,
)

COLOURS = ("red", "yellow", "blue", "green")
TERMINALS = (-42, 0, 42)  # below the middle of a housing
MIDDLE, LEFT, RIGHT = 148, 46, 210  # of the housings
HOUSING = (46, 134)
BETWEEN = Rect(LEFT + HOUSING[0] / 2 + 2, MIDDLE - 56, RIGHT - HOUSING[0] / 2 - 2, MIDDLE + 56)
PRINT = (40, 16)
WIDTH = 11


def colours(scene: Scene) -> tuple[list[str], str]:
    """The colours of the cables, and that of the label."""
    (label,) = (part.colour for part in scene.parts if part.kind == "print")
    return [cable.colour for cable in cables(scene)], label


def cables(scene: Scene) -> list[Part]:
    """The cables."""
    return [part for part in scene.parts if part.kind == "cable"]


def terminals(cable: Part) -> tuple[int, int]:
    """The terminals that the ends of a cable are in, left and right."""
    left, right = (int(np.argmin([abs(y - MIDDLE - t) for t in TERMINALS])) for _, y in (cable.path[0], cable.path[-1]))
    return left, right


def normal(rng: np.random.Generator) -> Scene:
    """A cable of the label's colour, between terminals of the same number."""
    colour, terminal = _colour(rng), _terminal(rng)
    return _scene([_cable(terminal, terminal, colour, rng)], colour, rng)


def missing(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """No cable."""
    return _scene([], _colour(rng), rng), [Defect("missing_cable", floors=(BETWEEN,))]


def extra(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """Two cables of the label's colour."""
    colour = _colour(rng)
    one, other = rng.choice(len(TERMINALS), 2, replace=False)
    both = [_cable(int(terminal), int(terminal), colour, rng) for terminal in (one, other)]
    return _scene(both, colour, rng), [Defect("extra_cable", (0, 1))]


def misplaced(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """A cable between terminals of different numbers."""
    colour = _colour(rng)
    left, right = rng.choice(len(TERMINALS), 2, replace=False)
    return _scene([_cable(int(left), int(right), colour, rng)], colour, rng), [Defect("misplaced_cable", (0,))]


def mismatched(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """A cable of another colour than the label's; either may be the wrong one."""
    scene = normal(rng)
    cable = scene.parts[0]
    label = rng.choice([colour for colour in COLOURS if colour != cable.colour])
    parts = tuple(replace(part, colour=str(label)) if part.kind == "print" else part for part in scene.parts)
    return replace(scene, parts=parts), [Defect("mismatched_colours", (0, len(parts) - 1))]


def _colour(rng: np.random.Generator) -> str:
    return COLOURS[rng.integers(len(COLOURS))]


def _terminal(rng: np.random.Generator) -> int:
    return int(rng.integers(len(TERMINALS)))


def _cable(left: int, right: int, colour: str, rng: np.random.Generator) -> Part:
    """A cable that hangs about a little on its way from one terminal to another."""
    start = (LEFT + 12.0, float(MIDDLE + TERMINALS[left]))
    end = (RIGHT - 12.0, float(MIDDLE + TERMINALS[right]))
    bend = rng.uniform(-22, 22, 2)
    through = [start, (start[0] + 65, start[1] + bend[0]), (end[0] - 65, end[1] + bend[1]), end]
    path = _bezier(np.array(through))
    return Part("cable", (SIZE / 2, MIDDLE), (end[0] - start[0], WIDTH), colour=colour, path=path)


def _bezier(points: np.ndarray) -> tuple[Point, ...]:
    """40 points of the cubic curve with these four control points."""
    t = np.linspace(0, 1, 40)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return tuple((float(x), float(y)) for x, y in weights @ points)


def _scene(laid: list[Part], label: str, rng: np.random.Generator) -> Scene:
    """The cables with housings over their ends, and a card with the label on it."""
    parts = list(laid)
    for x, side in ((LEFT, -1), (RIGHT, 1)):
        parts.append(Part("housing", (x, MIDDLE), HOUSING))
        for terminal in TERMINALS:
            turn = float(rng.uniform(0, 360))
            parts.append(Part("screw", (x + side * 4.0, float(MIDDLE + terminal)), (17, 17), turn))
    place = (SIZE / 2 + float(rng.uniform(-14, 14)), 40 + float(rng.uniform(-5, 5)))
    turn = float(rng.uniform(-5, 5))
    parts += [Part("card", place, (64, 32), turn), Part("print", place, PRINT, turn, colour=label)]
    return Scene(draw_ground("mat", rng), (), regrained(parts, rng), draw_view(rng))


CABLE = Kind(
    normal,
    {"missing": missing, "extra": extra, "misplaced": misplaced, "mismatched": mismatched},
    (
        Rule("missing_cable", (BETWEEN.right - BETWEEN.left) * WIDTH, False),
        Rule("extra_cable", 0.5, True),
        Rule("misplaced_cable", 0.5, True),
        Rule("mismatched_colours", PRINT[0] * PRINT[1], False),
    ),
)
