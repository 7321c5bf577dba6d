import itertools
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanoray.config import InputError
from nanoray.model.gpt import DTYPES, GPT, GPTConfig
from nanoray.model.scaling import gpt_config
from nanoray.text.chat import IGNORE_INDEX
from nanoray.train.device import can_compile
from nanoray.train.optimizer import MuonAdamW, OptimizerConfig
from nanoray.train.world import LocalWorld
from tests.support import tiny_config, tiny_gpt


def reference_logits(model: GPT, ids: Tensor) -> Tensor:
    """Compute the logits in float64, written from nanochat.md 1.2 to 1.5 alone."""
    c = model.config
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    frequency = c.rope_base ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
    angle = torch.outer(torch.arange(ids.size(1)).float(), frequency)  # (T, E/2)
    cos, sin = (f(angle).to(DTYPES[c.rope_dtype]).double() for f in (torch.cos, torch.sin))
    back = -torch.arange(ids.size(1))[None, :] + torch.arange(ids.size(1))[:, None]

    def rms(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 2.0**-23).sqrt()

    def rotated(x: Tensor) -> Tensor:  # (B, T, H, E), by minus the angle
        x1, x2 = x[..., : c.head_dim // 2], x[..., c.head_dim // 2 :]
        cos_t, sin_t = cos[:, None], -c.rope_sign * sin[:, None]
        return torch.cat([x1 * cos_t + x2 * sin_t, -x1 * sin_t + x2 * cos_t], dim=-1)

    def attend(x: Tensor, name: str, window: int | None) -> Tensor:
        q, k, v = (
            (x @ weights[f"{name}.{part}.weight"].T).unflatten(-1, (-1, c.head_dim))
            for part in ("query", "key", "value")
        )
        q, k = c.qk_scale * rms(rotated(q)), c.qk_scale * rms(rotated(k))
        group = c.num_heads // c.num_kv_heads
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        scores = torch.einsum("bthe,bshe->bhts", q, k) / math.sqrt(c.head_dim)
        hidden = (back < 0) | (back > (ids.size(1) if window is None else window))
        shares = scores.masked_fill(hidden, -math.inf).softmax(-1)
        mixed = torch.einsum("bhts,bshe->bthe", shares, v).flatten(2)
        return mixed @ weights[f"{name}.output.weight"].T

    x = rms(weights["embedding.weight"][ids])
    for layer in range(c.num_layers):
        x = x + attend(rms(x), f"blocks.{layer}.attention", c.window(layer))
        up = rms(x) @ weights[f"blocks.{layer}.mlp.up.weight"].T
        x = x + up.clamp(min=0).square() @ weights[f"blocks.{layer}.mlp.down.weight"].T
    return c.softcap * torch.tanh(rms(x) @ weights["unembedding.weight"].T / c.softcap)


def random_ids(T: int, seed: int = 0) -> Tensor:
    return torch.randint(512, (2, T), generator=torch.Generator().manual_seed(seed))


def test_first_loss_is_the_log_of_the_vocabulary() -> None:
    model = GPT(tiny_config())
    model.init_weights(seed=7)
    inputs, targets = random_ids(64), random_ids(64, seed=1)

    losses = model.token_losses(inputs, targets)

    # All logits are 0, so only fp32's sum and log round.
    torch.testing.assert_close(losses, torch.full((2, 64), math.log(512)), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(
    ("fields", "T"),
    [
        ({}, 64),
        ({}, 640),
        ({"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}, 64),
        ({"num_heads": 4, "num_kv_heads": 1, "head_dim": 32}, 150),
        ({"window_pattern": "SL"}, 200),
        ({"window_pattern": "S", "num_layers": 3}, 200),
        ({"qk_scale": 1.2, "softcap": 30.0, "mlp_ratio": 2}, 64),
        ({"rope_base": 500.0, "rope_sign": 1, "rope_dtype": "float32"}, 64),
    ],
)
def test_logits_are_those_of_the_formulas(fields: dict[str, Any], T: int) -> None:
    model = tiny_gpt(**fields)
    ids = random_ids(T)

    logits = model(ids).detach()

    # fp32 through a few layers, with logits of size 1 to 5: a few 1e-6.
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), reference_logits(model, ids), atol=1e-4, rtol=0.0)


def test_losses_and_their_sum_are_cross_entropies_of_the_logits() -> None:
    model = tiny_gpt()
    inputs, targets = random_ids(50), random_ids(50, seed=1)
    targets[0, 10:30] = IGNORE_INDEX

    losses = model.token_losses(inputs, targets)
    loss = model.loss_sum(inputs, targets).detach()

    logits = reference_logits(model, inputs).transpose(1, 2)
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    torch.testing.assert_close(losses.double(), expected, atol=1e-4, rtol=0.0)
    assert loss.item() == pytest.approx(expected.sum().item(), rel=1e-5)


def test_gradients_are_those_of_cross_entropy_on_the_logits() -> None:
    model = tiny_gpt()
    inputs, targets = random_ids(50), random_ids(50, seed=1)
    parameters = dict(model.named_parameters())

    grads = torch.autograd.grad(model.loss_sum(inputs, targets), [*parameters.values()])

    plain = F.cross_entropy(model(inputs).transpose(1, 2), targets, reduction="sum")
    expected = torch.autograd.grad(plain, [*parameters.values()])
    for name, grad, wanted in zip(parameters, grads, expected, strict=True):
        # fp32 sums in another order; the largest entry is the scale, small ones are differences.
        assert (grad - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name


def test_a_token_sees_none_that_follow() -> None:
    model = tiny_gpt()
    ids = random_ids(64)
    changed = torch.cat([ids[:, :40], random_ids(24, seed=1)], dim=1)

    logits, changed_logits = model(ids), model(changed)

    assert torch.equal(logits[:, :40], changed_logits[:, :40])
    assert not torch.equal(logits[:, 40:], changed_logits[:, 40:])


def test_a_sequence_beyond_the_rotary_angles_is_refused() -> None:
    model = tiny_gpt()

    with pytest.raises(AssertionError, match="641 tokens, and rotary angles reach 640"):
        model(random_ids(641))


def test_parameters_have_the_names_and_shapes_of_checkpoints() -> None:
    model = GPT(tiny_config(num_heads=4, num_kv_heads=2, head_dim=32))

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    block = {
        "attention.query.weight": (128, 128),
        "attention.key.weight": (64, 128),
        "attention.value.weight": (64, 128),
        "attention.output.weight": (128, 128),
        "mlp.up.weight": (512, 128),
        "mlp.down.weight": (128, 512),
    }
    blocks = {f"blocks.{layer}.{n}": block[n] for layer, n in itertools.product((0, 1), block)}
    assert list(shapes) == ["embedding.weight", *blocks, "unembedding.weight"]
    assert shapes == {
        "embedding.weight": (512, 128),
        **blocks,
        "unembedding.weight": (512, 128),
    }


def test_d34_has_206_tensors_and_as_many_weights_as_the_published_model() -> None:
    config = gpt_config(34, 65_536, head_dim=128, max_seq_len=2048)

    with torch.device("meta"):
        model = GPT(config)

    assert len(model.state_dict()) == 206
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_217_082_880
    assert model.cos.shape == (20_480, 1, 64)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    models = [GPT(tiny_config()) for _ in range(3)]

    for model, seed, disturbance in zip(models, (1, 1, 2), (10, 20, 30), strict=True):
        torch.manual_seed(disturbance)
        model.init_weights(seed)

    first, same, other = (model.embedding.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_initial_matrices_have_the_spread_of_their_shape() -> None:
    model = GPT(tiny_config())

    model.init_weights(seed=0)

    up, key, output, down = (
        model.get_parameter(f"blocks.0.{name}.weight")
        for name in ("mlp.up", "attention.key", "attention.output", "mlp.down")
    )
    # Standard deviations of 16,384 to 65,536 draws are exact to 1/sqrt(2 * 16,384) = 0.6 %.
    assert up.std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert key.std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.03)
    assert not any(zeros.any() for zeros in (output, down, model.unembedding.weight))


def test_fewer_kv_heads_begin_with_a_smaller_spread() -> None:
    model = GPT(tiny_config(num_heads=4, num_kv_heads=1, head_dim=32))

    model.init_weights(seed=0)

    # (32, 128): 1/sqrt(128) * sqrt(32/128); 4096 draws are exact to 1 %.
    key = model.get_parameter("blocks.0.attention.key.weight")
    assert key.std().item() == pytest.approx(128**-0.5 / 2, rel=0.04)


def test_computing_in_bf16_gives_nearly_the_same() -> None:
    exact, rounded = tiny_gpt(), tiny_gpt(torch.bfloat16)
    inputs, targets = random_ids(64), random_ids(64, seed=1)

    logits, rounded_logits = exact(inputs), rounded(inputs)
    losses, rounded_losses = (m.loss_sum(inputs, targets).item() for m in (exact, rounded))

    # Each of about twenty products rounds to 2^-9 of its size: 1 % of logits of size 3.
    assert rounded.hidden(inputs).dtype == torch.bfloat16
    assert rounded_logits.dtype == torch.float32
    torch.testing.assert_close(rounded_logits, logits, atol=0.1, rtol=0.0)
    assert rounded_losses == pytest.approx(losses, rel=2e-3)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_in_bf16_is_the_rounded_one_and_learns(compute_dtype: torch.dtype) -> None:
    model = tiny_gpt(compute_dtype, embedding_dtype="bfloat16")
    inputs, targets = random_ids(64), random_ids(64, seed=1)
    before = model.embedding.weight.detach().clone()

    optimizer = MuonAdamW(model, OptimizerConfig(0.02, 0.2, 0.004), LocalWorld())
    first = model.loss_sum(inputs, targets)
    first.backward()
    num_targets = torch.tensor(128.0)
    norm = optimizer.reduce(num_targets)
    optimizer.update(0, norm=norm, num_targets=num_targets, lr_multiplier=1.0, momentum=0.85)
    after = model.loss_sum(inputs, targets)

    weight = model.embedding.weight
    assert weight.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert torch.equal(before, tiny_gpt().embedding.weight.bfloat16())
    assert not torch.equal(weight, before)
    assert after.item() < first.item()
    others = {p.dtype for name, p in model.named_parameters() if name != "embedding.weight"}
    assert others == {torch.float32}


def test_a_config_comes_back_from_json() -> None:
    config = tiny_config(window_pattern="SSL", qk_scale=1.2, rope_base=5e5, softcap_rounded=True)

    rebuilt = GPTConfig(**json.loads(json.dumps(config.to_json())))

    assert rebuilt == config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_heads": 4, "num_kv_heads": 3}, "4 heads cannot be shared out to 3 KV heads"),
        ({"head_dim": 33}, "head_dim 33 is odd"),
        ({"window_pattern": "SXL"}, "may hold only L and S"),
        ({"window_pattern": ""}, "may hold only L and S"),
    ],
)
def test_a_config_that_is_no_model_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny_config(**fields)


def test_short_windows_are_a_quarter_in_steps_of_128_and_the_last_layer_sees_all() -> None:
    config = tiny_config(window_pattern="SSL", num_layers=5, max_seq_len=2048)
    odd = tiny_config(window_pattern="S", num_layers=2, max_seq_len=600)

    windows = [config.window(layer) for layer in range(5)]

    assert windows == [512, 512, None, 512, None]
    assert [odd.window(0), odd.window(1)] == [256, None]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own use of it
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_gives_the_same_losses_and_gradients(compute_dtype: torch.dtype) -> None:
    inputs, targets = random_ids(64), random_ids(64, seed=1)
    eager, compiled = tiny_gpt(compute_dtype), tiny_gpt(compute_dtype)
    compiled.compile()

    losses = [m.loss_sum(inputs, targets) for m in (eager, compiled)]
    grads = [
        torch.autograd.grad(loss, [*model.parameters()])
        for loss, model in zip(losses, (eager, compiled), strict=True)
    ]
    token_losses = [m.token_losses(inputs, targets) for m in (eager, compiled)]

    # Fused kernels round in another order: 1e-6 in fp32, 2^-8 in bf16.
    tolerance = 1e-5 if compute_dtype == torch.float32 else 2e-2
    torch.testing.assert_close(token_losses[1], token_losses[0], atol=5 * tolerance, rtol=0.0)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=tolerance)
    for grad, expected in zip(grads[1], grads[0], strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(grad, expected, atol=5 * tolerance * scale, rtol=0.0)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_compiled_gradients_are_the_same_each_time_on_several_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    # Often the same few tokens, whose gradients several threads add up.
    ids = torch.arange(8 * 129).view(8, 129) % 7
    model = tiny_gpt(torch.bfloat16, max_seq_len=128)
    model.compile()

    results = []
    for _ in range(20):
        model.zero_grad()
        model.loss_sum(ids[:, :-1], ids[:, 1:]).backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])

    torch.set_num_threads(threads)
    assert all(
        torch.equal(grad, first)
        for result in results[1:]
        for grad, first in zip(result, results[0], strict=True)
    )


def test_texts_of_a_row_have_the_losses_that_each_has_alone() -> None:
    model = tiny_gpt().double()
    model.compute_dtype = torch.float64
    ids = torch.randint(512, (1, 41), generator=torch.Generator().manual_seed(3))
    texts = torch.tensor([[0] * 13 + [1] * 27])

    together = model.token_losses(ids[:, :-1], ids[:, 1:], texts=texts)

    second = model.token_losses(ids[:, 13:-1], ids[:, 14:])
    torch.testing.assert_close(together[:, 13:], second, atol=1e-12, rtol=0.0)
