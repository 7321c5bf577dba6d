import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from nanoray.model.gpt import GPT
from nanoray.train import optimizer as optimizer_module
from nanoray.train.optimizer import (
    NEWTON_SCHULZ,
    MuonAdamW,
    OptimizerConfig,
    multiply_in_fp32,
    newton_schulz,
)
from nanoray.train.world import LocalWorld, World
from tests.train.ranks import GroupWorld
from tests.train.tiny_run import (
    OPTIMIZER,
    contents,
    same_contents,
    scramble,
    tiny_model,
    tiny_state,
)

UNCLIPPED = replace(OPTIMIZER, grad_clip=None)
NUM_TARGETS = 7
LR_MULTIPLIERS = (1.0, 0.5, 0.25, 0.1)
MOMENTA = (0.85, 0.9, 0.95, 0.95)


def gradient(shape: torch.Size, *seed: int) -> Tensor:
    """Draw whole numbers, so that sums over ranks are exact in any order."""
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.integers(-9, 10, tuple(shape)).astype(np.float32))


def set_gradients(model: GPT, step: int, ranks: list[int]) -> None:
    """Give each parameter the sum of what some ranks have in a step."""
    for index, parameter in enumerate(model.parameters()):
        assert parameter.grad is not None
        parts = [gradient(parameter.shape, index, step, rank) for rank in ranks]
        parameter.grad.copy_(torch.stack(parts).sum(0))


def make_steps(model: GPT, config: OptimizerConfig, world: World, ranks: list[int]) -> list[float]:
    """Make four updates from the gradients of some ranks; gives the norms."""
    optimizer = MuonAdamW(model, config, world)
    norms = []
    for step, (lr_multiplier, momentum) in enumerate(zip(LR_MULTIPLIERS, MOMENTA, strict=True)):
        set_gradients(model, step, ranks)
        norms.append(take_step(optimizer, step, lr_multiplier, momentum).item())
    return norms


def take_step(
    optimizer: MuonAdamW, step: int = 0, lr_multiplier: float = 1.0, momentum: float = 0.9
) -> Tensor:
    num_targets = torch.tensor(float(NUM_TARGETS))
    norm = optimizer.reduce(num_targets)
    optimizer.update(
        step,
        norm=norm,
        num_targets=num_targets,
        lr_multiplier=lr_multiplier,
        momentum=momentum,
    )
    return norm


def mean_gradients(model: GPT, name: str) -> list[Tensor]:
    """Give a parameter's mean gradient in each step of one rank, in float64."""
    index = [n for n, _ in model.named_parameters()].index(name)
    shape = dict(model.named_parameters())[name].shape
    return [gradient(shape, index, step, 0).double() / NUM_TARGETS for step in range(4)]


def polar_polynomial(matrix: Tensor) -> Tensor:
    """Apply the quintic to the singular values themselves, in float64."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    a, b, c = NEWTON_SCHULZ
    s = s / (s.norm() + 1e-7)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u * s @ vh


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("name", "lr"), [("embedding.weight", 0.2), ("unembedding.weight", 0.004)])
def test_adamw_is_its_formula(name, lr, weight_decay):
    model = tiny_model()
    expected = dict(model.named_parameters())[name].detach().double()
    config = replace(UNCLIPPED, weight_decay=weight_decay)

    make_steps(model, config, LocalWorld(), [0])

    m = v = torch.zeros_like(expected)
    for step, g in enumerate(mean_gradients(model, name)):
        rate = lr * LR_MULTIPLIERS[step]
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        size = rate * math.sqrt(1 - 0.95 ** (step + 1)) / (1 - 0.8 ** (step + 1))
        expected = expected * (1 - rate * weight_decay) - size * m / (v.sqrt() + 1e-10)
    result = dict(model.named_parameters())[name].detach().double()
    # Four updates of about the rate, each rounded to fp32 (6e-8) a handful of times.
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6 * lr)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_that_of_torch(weight_decay):
    model = tiny_model()
    weight = torch.nn.Parameter(model.embedding.weight.detach().clone())
    theirs = torch.optim.AdamW([weight], betas=(0.8, 0.95), eps=1e-10, weight_decay=weight_decay)

    make_steps(model, replace(UNCLIPPED, weight_decay=weight_decay), LocalWorld(), [0])

    for g, lr_multiplier in zip(
        mean_gradients(model, "embedding.weight"), LR_MULTIPLIERS, strict=True
    ):
        theirs.param_groups[0]["lr"] = 0.2 * lr_multiplier
        weight.grad = g.float()
        theirs.step()
    # Where eps stands differs by 1e-10 beside roots of 0.1; the rest is fp32 rounding.
    torch.testing.assert_close(model.embedding.weight, weight, rtol=1e-6, atol=2e-7)


def test_a_token_that_was_never_seen_keeps_its_embedding():
    state = tiny_state()
    before = state.model.embedding.weight.detach().clone()
    assert state.model.embedding.weight.grad is not None
    state.model.embedding.weight.grad[1:] = 1.0

    take_step(state.optimizer)

    assert torch.equal(state.model.embedding.weight[0], before[0])
    assert (state.model.embedding.weight[1:] != before[1:]).all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # The weights are fp32 all the same: 1e-8 of rounding against updates of about 5e-3.
        ("float64", 1e-5),
        # The iteration multiplies what is small by up to 3.4 each time, and its rounding with it.
        ("float32", 1e-4),
        # bf16 keeps 8 bits, and the singular values land anywhere near 1 in any case.
        ("bfloat16", 5e-2),
    ],
)
@pytest.mark.parametrize("name", ["attention.query", "mlp.up", "mlp.down"])
def test_muon_is_its_formula(name, dtype, tolerance):
    model = tiny_model()
    name = f"blocks.1.{name}.weight"
    expected = dict(model.named_parameters())[name].detach().double()
    first = expected
    config = replace(UNCLIPPED, newton_schulz_dtype=dtype)

    make_steps(model, config, LocalWorld(), [0])

    average = torch.zeros_like(expected)
    for step, g in enumerate(mean_gradients(model, name)):
        average = MOMENTA[step] * average + (1 - MOMENTA[step]) * g
        update = (1 - MOMENTA[step]) * g + MOMENTA[step] * average
        rate = 0.02 * LR_MULTIPLIERS[step] * math.sqrt(max(1.0, g.size(0) / g.size(1)))
        expected = expected - rate * polar_polynomial(update)
    result = dict(model.named_parameters())[name].detach().double()
    error = (result - expected).norm() / (expected - first).norm()
    assert error < tolerance


@pytest.mark.parametrize("multiply", [torch.matmul, multiply_in_fp32])
def test_newton_schulz_in_bf16_is_d34s(multiply):
    matrix = torch.eye(3, 4) + torch.arange(12).reshape(3, 4) / 10

    result = newton_schulz(matrix.bfloat16(), multiply).float()

    # nanochat.md 2.3, printed to four digits.
    golden = [
        [0.75, -0.2119, -0.0625, 0.0742],
        [-0.1016, 0.9609, -0.2207, 0.1562],
        [0.1699, -0.1133, 0.7188, 0.25],
    ]
    assert [[round(value, 4) for value in row] for row in result.tolist()] == golden
    singular = torch.linalg.svdvals(result).tolist()
    assert singular == pytest.approx([1.1192, 0.7082, 0.7002], abs=5e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 17), (3, 17, 6), (2, 1, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_newton_schulz_moves_the_singular_values_alone(shape, dtype, tolerance):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)

    result = newton_schulz(matrices)

    expected = torch.stack([polar_polynomial(matrix) for matrix in matrices])
    # Rounding is multiplied by up to 3.4 in each of five iterations.
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 96, 384), (1, 384, 96)])
def test_without_hardware_for_bf16_the_updates_are_as_near_to_those_of_float64(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = torch.stack([polar_polynomial(matrix) for matrix in matrices])

    def error(multiply):
        return (newton_schulz(matrices, multiply).double() - exact).norm() / exact.norm()

    assert newton_schulz(matrices, multiply_in_fp32).dtype == torch.bfloat16
    assert error(multiply_in_fp32) < 1.1 * error(torch.matmul)


@pytest.mark.parametrize("has_bf16", [False, True])
def test_the_hardware_decides_how_bf16_is_multiplied(has_bf16, monkeypatch):
    used = []

    def noted(a, b):
        used.append(a.dtype)
        return multiply_in_fp32(a, b)

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_bf16)
    monkeypatch.setattr("nanoray.train.optimizer.multiply_in_fp32", noted)

    make_steps(tiny_model(), replace(UNCLIPPED, newton_schulz_dtype="bfloat16"), LocalWorld(), [0])

    assert set(used) == (set() if has_bf16 else {torch.bfloat16})


def test_newton_schulz_of_nothing_is_nothing():
    assert not newton_schulz(torch.zeros(2, 4, 4)).any()


def test_matrices_may_be_taken_in_turns(monkeypatch):
    together, in_turns = tiny_model(), tiny_model()

    make_steps(together, OPTIMIZER, LocalWorld(), [0])
    monkeypatch.setattr(optimizer_module, "MATRICES_AT_ONCE_ELEMENTS", 1)
    make_steps(in_turns, OPTIMIZER, LocalWorld(), [0])

    for one, other in zip(together.parameters(), in_turns.parameters(), strict=True):
        # Products of a batch and of a single matrix add up in another order: fp32 rounding, times
        # what Newton-Schulz makes of it.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 1.0, 1000.0])
def test_the_gradient_of_all_parameters_is_clipped_as_one(clip):
    state = tiny_state()
    state.optimizer.config = replace(OPTIMIZER, grad_clip=clip)
    set_gradients(state.model, 0, [0])
    squares = [
        p.grad.double().square().sum() for p in state.model.parameters() if p.grad is not None
    ]
    norm = math.sqrt(sum(squares)) / NUM_TARGETS

    told = take_step(state.optimizer, momentum=0.9)

    # After one step the averages are the gradient times one minus their factor.
    kept = {"momentum": 0.1, "exp_avg": 0.2}
    averages = [
        piece.tensor.double() / kept[piece.name.split("/")[0]]
        for piece in state.optimizer.slices()
        if piece.name.split("/")[0] in kept
    ]
    used = math.sqrt(sum(average.square().sum() for average in averages))
    assert norm > 100, "the gradient is too small to tell"
    assert told.item() == pytest.approx(norm, rel=1e-6)
    assert used == pytest.approx(min(norm, clip or math.inf), rel=1e-5)


def weights_after_steps(
    world: World, config: OptimizerConfig
) -> dict[str, npt.NDArray[np.float32]]:
    """Train a model of odd counts, each rank with its own gradients."""
    model = tiny_model(num_layers=5)
    norms = make_steps(model, config, world, [world.rank])
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return {"norms": np.array(norms, np.float32), **weights}


@pytest.mark.parametrize("config", [OPTIMIZER, UNCLIPPED], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_do_what_one_does_with_the_sum_of_their_gradients(ranks, world_size, config):
    alone = tiny_model(num_layers=5)
    # Rows and matrices that no number of ranks divides: the last rank has fewer, or none.
    counts = {alone.config.vocab_size, 5 * 4, 5}
    assert all(any(count % size for count in counts) for size in (2, 3))

    norms = make_steps(alone, config, LocalWorld(), list(range(world_size)))
    results = ranks.run(weights_after_steps, world_size, config)

    expected = {name: p.detach().numpy() for name, p in alone.named_parameters()}
    for result in results:
        # The sums of whole numbers are exact. What differs by rounding is the norm, and products
        # over another number of matrices, times what Newton-Schulz makes of it.
        np.testing.assert_allclose(result.pop("norms"), norms, rtol=1e-6)
        for name, values in result.items():
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5, err_msg=name)
            assert np.array_equal(values, results[0].get(name, values)), "ranks differ"


def test_state_moves_between_any_numbers_of_ranks_unchanged():
    state = tiny_state()
    scramble(state, seed=1)
    whole = {piece.name: piece.tensor.clone() for piece in state.optimizer.slices()}

    for world_size in (2, 3, 5, 1):
        parts: dict[str, list[Tensor]] = {}
        for rank in range(world_size):
            optimizer = MuonAdamW(tiny_model(), OPTIMIZER, GroupWorld(rank, world_size))
            optimizer.load(lambda name, start, end, saved=whole: saved[name][start:end])  # type: ignore[misc]
            for piece in optimizer.slices():
                assert piece.start == sum(map(len, parts.get(piece.name, [])))
                parts.setdefault(piece.name, []).append(piece.tensor.clone())
        saved, whole = whole, {name: torch.cat(pieces) for name, pieces in parts.items()}

        assert whole.keys() == saved.keys()
        assert all(torch.equal(whole[name], saved[name]) for name in saved)


def test_every_parameter_has_its_state_under_its_name():
    state = tiny_state()

    names = [piece.name for piece in state.optimizer.slices()]

    matrices = [name for name, _ in state.model.blocks.named_parameters(prefix="blocks")]
    tables = ["embedding.weight", "unembedding.weight"]
    expected = [f"momentum/{name}" for name in matrices]
    expected += [f"{kind}/{name}" for kind in ("exp_avg", "exp_avg_sq") for name in tables]
    assert sorted(names) == sorted(expected)


def test_gradients_stay_views_and_add_up_until_they_are_set_to_zero():
    state = tiny_state()
    ids = torch.arange(24)[None]
    places = [p.grad.data_ptr() for p in state.model.parameters() if p.grad is not None]

    state.model.loss_sum(ids, ids).backward()
    once = [stack.grads.clone() for stack in state.optimizer.stacks]
    state.model.loss_sum(ids, ids).backward()
    twice = [stack.grads.clone() for stack in state.optimizer.stacks]
    state.optimizer.zero_grad()

    for stack, one, two in zip(state.optimizer.stacks, once, twice, strict=True):
        assert one.any()
        torch.testing.assert_close(two, 2 * one)
        assert not stack.grads.any()
    assert places == [p.grad.data_ptr() for p in state.model.parameters() if p.grad is not None]
    assert len(places) == len(list(state.model.parameters()))


def test_building_an_optimizer_moves_the_weights_and_changes_none():
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = model(torch.arange(24)[None])

    MuonAdamW(model, OPTIMIZER, LocalWorld())

    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(model(torch.arange(24)[None]), logits)


def test_the_same_gradients_give_the_same_bits():
    first, second = tiny_state(), tiny_state()

    for state in (first, second):
        set_gradients(state.model, 0, [0])
        take_step(state.optimizer)

    assert same_contents(first, second)
    assert contents(first).keys() == contents(second).keys()
