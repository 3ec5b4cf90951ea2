"""Rods: a wooden and a stone rod lie end to end in a slot, of any lengths that add up; rivets lie in a groove."""

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

SLOT = Rect(20, 74, 236, 112)
GROOVE = Rect(50, 158, 206, 202)
LENGTH = 152  # of both rods together
ERROR = 28  # by how much it is wrong
SHORTEST, LONGEST = 52, 100
WIDTH = 25
RIVETS = 3
RIVET = (25, 25)


def rods(scene: Scene) -> list[Part]:
    """Both rods, from left to right."""
    return sorted((part for part in scene.parts if part.kind in ("rod", "bar")), key=lambda part: part.centre[0])


def rivets(scene: Scene) -> list[Part]:
    """The rivets in the groove."""
    return [part for part in scene.parts if part.kind == "rivet"]


def normal(rng: np.random.Generator) -> Scene:
    """Wood left of stone, together of the right length, and the right number of rivets."""
    return _scene(LENGTH, RIVETS, rng)


def missing(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """A rivet less."""
    return _scene(LENGTH, RIVETS - 1, rng), [Defect("missing_rivet", floors=(GROOVE,))]


def extra(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """A rivet more: any of them may be the one too many."""
    scene = _scene(LENGTH, RIVETS + 1, rng)
    return scene, [Defect("extra_rivet", tuple(range(2, 2 + RIVETS + 1)))]


def swapped(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """Stone left of wood."""
    scene = _scene(LENGTH, RIVETS, rng, kinds=("bar", "rod"))
    return scene, [Defect("swapped_rods", (0,)), Defect("swapped_rods", (1,))]


def mismatched(rng: np.random.Generator) -> tuple[Scene, list[Defect]]:
    """Rods that are together too long or too short; either may be the wrong one."""
    error = ERROR if rng.random() < 0.5 else -ERROR
    scene = _scene(LENGTH + error, RIVETS, rng)
    return scene, [Defect("mismatched_lengths", (0, 1), floors=(SLOT,) if error < 0 else ())]


def _scene(length: int, count: int, rng: np.random.Generator, kinds: tuple[str, str] = ("rod", "bar")) -> Scene:
    """Rods and rivets; each rod and each gap beside the rods is of a size that normal scenes have too."""
    first = float(rng.uniform(max(SHORTEST, length - LONGEST), min(LONGEST, length - SHORTEST)))
    free, widest = SLOT.size[0] - length, SLOT.size[0] - LENGTH - 5
    start = SLOT.left + float(rng.uniform(max(4, free - widest), min(free - 4, widest)))
    middle = SLOT.centre[1]
    pair = []
    for kind, left, size in ((kinds[0], start, first), (kinds[1], start + first, length - first)):
        shift, turn = float(rng.uniform(-2, 2)), float(rng.uniform(-0.6, 0.6))
        pair.append(Part(kind, (left + size / 2, middle + shift), (size - 1, WIDTH), turn))
    loose = scatter([Part("rivet", (0, 0), RIVET)] * count, GROOVE.grown(-2), turn=180, rng=rng)
    fixtures = []
    for hollow in (SLOT, GROOVE):
        fixtures += [
            Part("tray", hollow.centre, hollow.grown(8).size),
            Part("floor", hollow.centre, hollow.size),
        ]
    return Scene(draw_ground("mat", rng), regrained(fixtures, rng), regrained(pair, rng) + loose, draw_view(rng))


RODS = Kind(
    normal,
    {"missing": missing, "extra": extra, "swapped": swapped, "mismatched": mismatched},
    (
        Rule("missing_rivet", area(RIVET), False),
        Rule("extra_rivet", area(RIVET), False),
        Rule("swapped_rods", 1, True),
        Rule("mismatched_lengths", ERROR * WIDTH, False),
    ),
)
