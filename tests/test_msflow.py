"""MSFlow: position code, flows, fusion, loss, maps, scores and training by the golden arrays."""

from functools import partial

import numpy as np
import pytest
import torch
from golden_flows import Shapes, arrays, flow_jacobian, step_state

from errors import UsageError
from methods.fusion import Fusion
from methods.msflow import MSFlow, position_code, rate_factor

GOLDEN, META = arrays("msflow")
LAYERS = range(3)
NAMES = {
    "order": "perm",
    "scale": "scale",
    "offset": "offset",
    "hidden.conv.weight": "conv1.weight",
    "hidden.conv.bias": "conv1.bias",
    "hidden.norm.weight": "ln.weight",
    "hidden.norm.bias": "ln.bias",
    "out.weight": "conv2.weight",
    "out.bias": "conv2.bias",
}
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def of_shapes(*shapes, **options):
    layers = [f"layer{i}" for i, _ in enumerate(shapes)]
    return MSFlow(Shapes(list(shapes)), layers, tuple(META["input_size"]), **options)


def cross_state(number):
    """Of N1 or N2: s and t are of one convolution."""
    parts = {"narrow": "conv1", "norm": "norm", "wide": "conv2"}
    for part in ("weight", "bias"):
        for own, theirs in parts.items():
            yield f"{own}.{part}", GOLDEN(f"fusion_subnet_{number}.cross_convs.{theirs}.{part}")
        for layer in LAYERS:
            both = [GOLDEN(f"fusion_subnet_{number}.conv_{name}.{layer}.{part}") for name in "st"]
            yield f"to_s_and_t.{layer}.{part}", torch.cat(both)


@pytest.fixture
def maps():
    return [GOLDEN(f"y_{layer}") for layer in LAYERS]


@pytest.fixture
def golden(maps):
    """The detector that the arrays are of, whose layers have 1, 2 and 2 steps."""
    shapes = [(own.shape[1], 2 * own.shape[2], 2 * own.shape[3] - 1) for own in maps]
    options = {"steps": 1, "more_steps": 1, "position_dim": META["cond_channels"], "epochs": 2}
    detector = of_shapes(*shapes, **options)
    for flow, count in zip(detector.flows, META["parallel_blocks"], strict=True):
        flow.steps = flow.steps[:count]
    state = {f"fusion.order_{layer}": GOLDEN(f"fusion_perm_{layer}") for layer in LAYERS}
    for name, number in (("first", 1), ("second", 2)):
        state |= {f"fusion.{name}.{own}": tensor for own, tensor in cross_state(number)}
    for layer, flow in enumerate(detector.flows):
        for step, _ in enumerate(flow.steps):
            own = step_state(GOLDEN, f"parallel_{layer}_{step}_", NAMES)
            state |= {f"flows.{layer}.steps.{step}.{name}": tensor for name, tensor in own.items()}
    detector.load_state_dict(state)
    return detector


def test_the_position_code():
    for layer in LAYERS:
        code = GOLDEN(f"cond_{layer}")
        close(position_code(len(code), tuple(code.shape[1:])), code)


def test_flows_and_fusion(golden, maps):
    flown = []
    for layer, (flow, own) in enumerate(zip(golden.flows, maps, strict=True)):
        z, logdet = flow(own)
        close(z, GOLDEN(f"parallel_z_{layer}"))
        close(logdet, GOLDEN(f"parallel_logdet_{layer}"))
        flown.append(z)
    halves = [own.index_select(1, GOLDEN(f"fusion_perm_{i}")).chunk(2, dim=1)[1] for i, own in enumerate(flown)]
    second = golden.fusion.second
    for layer, (crossed, s_and_t) in enumerate(zip(second.crossed(halves), second(halves), strict=True)):
        close(crossed, GOLDEN(f"fusion_cross_of_x2_{layer}"))
        close(s_and_t, GOLDEN(f"fusion_st_of_x2_{layer}"))
    z, logdet = golden.fusion(flown)
    for layer, own in enumerate(z):
        close(own, GOLDEN(f"fused_z_{layer}"))
    close(logdet, GOLDEN("fusion_logdet"))


def test_loss_maps_and_scores(golden, maps):
    close(golden.loss(maps), GOLDEN("loss"))
    densities = [GOLDEN(f"logp_{layer}") for layer in LAYERS]
    close(golden.product_map(densities), GOLDEN("map_mul"))
    scores, drawn = golden.score(tuple(maps))
    close(drawn, GOLDEN("map_add"))
    close(scores, GOLDEN("score"))


def test_training(golden, maps, monkeypatch):
    """Losses before four clipped steps, and the gradients' length before it is shortened."""
    lengths, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: lengths.append(clip(*given)))
    losses = [stats.loss.item() for stats in golden.trainer().steps([maps] * 4)]
    np.testing.assert_allclose(losses, GOLDEN("adam_losses"), rtol=1e-6)
    np.testing.assert_allclose(torch.stack(lengths), GOLDEN("adam_grad_norms"), rtol=1e-5)


def test_the_schedule():
    rates = [1e-4 * rate_factor(i, 100) for i in range(100)]
    np.testing.assert_allclose(rates, GOLDEN("lr_by_sub_epoch"), rtol=1e-12)
    assert [rate_factor(i, 2) for i in range(2)] == [1.0, 0.33]


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    made = Fusion([2, 4], [(2, 3), (1, 2)])
    for own in made.parameters():
        torch.nn.init.normal_(own, std=0.3)
    return made


def test_the_fusions_inverse_gives_the_input_back(fusion):
    maps = [torch.randn(3, 2, 2, 3), torch.randn(3, 4, 1, 2)]
    z, logdet = fusion(maps)
    back, of_back = fusion.inverse(z)
    for one, other in zip(back, maps, strict=True):
        close(one, other)
    close(of_back, -logdet)
    assert not any(torch.allclose(one, other, atol=0.1) for one, other in zip(z, maps, strict=True))


def test_the_fusions_log_determinant_is_the_jacobians(fusion):
    def flat(x):
        first, last = x.flatten(1).split([12, 8], dim=1)
        return fusion([first.view(1, 2, 2, 3), last.view(1, 4, 1, 2)])

    x = torch.randn(20, 1, 1)
    expected = flow_jacobian(lambda one: torch.cat([z.flatten() for z in flat(one)[0]]), x)
    assert abs(expected) > 0.1
    close(flat(x.unsqueeze(0))[1][0].double(), expected)


def test_the_place_is_a_part_of_the_input(golden, maps):
    """The first convolution in two parts is that of cells and code side by side."""
    hidden, x = golden.flows[0].steps[0].hidden, maps[0][:, :4]
    code = hidden.code.expand(len(x), -1, -1, -1)
    whole = hidden.conv(torch.cat([x, code], dim=1)).movedim(1, -1)
    close(hidden(x), hidden.norm(whole).clamp(min=0).movedim(-1, 1))


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        ([(4, 4, 4), (7, 2, 2)], {}, "layer layer1 has 7 channels, and a flow needs a multiple of 2"),
        ([(4, 4, 4)], {"position_dim": 6}, "--position_dim 6 must be a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, options, words):
    with pytest.raises(UsageError, match=words):
        of_shapes(*shapes, **options)
