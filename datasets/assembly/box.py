"""Box: a tray with four compartments, each of which holds a fixed number of parts of one kind."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from datasets.assembly.scene import (
    Defect,
    Kind,
    Part,
    Rect,
    Rule,
    Scene,
    area,
    draw_ground,
    draw_view,
    regrained,
    scatter,
)

TRAY = Rect(22, 30, 234, 226)
COMPARTMENTS = {  # by the kind of part that it holds
    "coin": Rect(30, 38, 126, 132),
    "medal": Rect(30, 140, 126, 218),
    "block": Rect(134, 38, 226, 118),
    "peg": Rect(134, 126, 226, 218),
}
COUNTS = {"coin": 4, "medal": 1, "block": 2, "peg": 3}
SIZES = {"coin": (25, 25), "medal": (36, 36), "block": (34, 19), "peg": (54, 9)}
Choice = TypeVar("Choice")
Contents = dict[str, list[str]]


def contents(scene: Scene) -> Contents:
    """The kinds of the parts in every compartment, by the kind that it should hold."""
    return {
        place: [part.kind for part in scene.parts if floor.contains(part.centre)]
        for place, floor in COMPARTMENTS.items()
    }


def normal(rng: np.random.Generator) -> Scene:
    """Every compartment holds its number of its kind."""
    return _scene(_full(), rng)


def missing(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """A part less in one compartment."""
    kind = _choose(list(COUNTS), rng)
    held = _full()
    held[kind].pop()
    return _scene(held, rng), [_free(kind)]


def extra(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """A part more in one compartment: any of them may be the one too many."""
    kind = _choose(list(COUNTS), rng)
    held = _full()
    held[kind].append(kind)
    scene = _scene(held, rng)
    return scene, [Defect(f"extra_{kind}", _of_kind(scene, kind))]


def swapped(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """A part of one compartment and one of another have changed places."""
    one, other = _choose([("coin", "medal"), ("coin", "block"), ("block", "peg")], rng)
    held = _full()
    held[one][-1], held[other][-1] = other, one
    scene = _scene(held, rng)
    return scene, [Defect("swapped", (i,)) for i in _strangers(scene)]


def misplaced(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """A part lies in another compartment and is missing in its own."""
    kind, place = _choose([("coin", "medal"), ("coin", "peg"), ("block", "medal"), ("peg", "coin")], rng)
    held = _full()
    held[kind].pop()
    held[place].append(kind)
    scene = _scene(held, rng)
    return scene, [Defect("misplaced", _strangers(scene)), _free(kind)]


def _full() -> Contents:
    return {kind: [kind] * count for kind, count in COUNTS.items()}


def _scene(held: Contents, rng: np.random.Generator) -> Scene:
    parts: list[Part] = []
    for place, kinds in held.items():
        new = [Part(kind, (0, 0), SIZES[kind]) for kind in kinds]
        parts += scatter(new, COMPARTMENTS[place].grown(-2), turn=25, rng=rng)
    fixtures = [Part("tray", TRAY.centre, TRAY.size)]
    fixtures += [Part("floor", floor.centre, floor.size) for floor in COMPARTMENTS.values()]
    return Scene(draw_ground("stone", rng), regrained(fixtures, rng), tuple(parts), draw_view(rng))


def _free(kind: str) -> Defect:
    return Defect(f"missing_{kind}", floors=(COMPARTMENTS[kind],))


def _of_kind(scene: Scene, kind: str) -> tuple[int, ...]:
    return tuple(i for i, part in enumerate(scene.parts) if part.kind == kind)


def _strangers(scene: Scene) -> tuple[int, ...]:
    """The parts that lie in the compartment of another kind."""
    return tuple(i for i, part in enumerate(scene.parts) if not COMPARTMENTS[part.kind].contains(part.centre))


def _choose(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    return choices[rng.integers(len(choices))]


BOX = Kind(
    normal,
    {"missing": missing, "extra": extra, "swapped": swapped, "misplaced": misplaced},
    (
        *(Rule(f"missing_{kind}", area(SIZES[kind]), False) for kind in COUNTS),
        *(Rule(f"extra_{kind}", area(SIZES[kind]), False) for kind in COUNTS),
        Rule("swapped", 1, True),
        Rule("misplaced", 1, True),
    ),
)
