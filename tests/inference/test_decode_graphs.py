"""Padding of decode steps; the graphs themselves need a GPU."""

import pytest
import torch

from nanoray.inference.decode_graphs import pad, power_of_two
from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.sampling import SamplingParams
from nanoray.model.gpt import GPT
from nanoray.model.kv_cache import CacheLayout, KVCache
from tests.support import tiny_gpt, tiny_tokenizer

BLOCK = 4


def full_cache(model: GPT, num_blocks: int) -> KVCache:
    """A cache in which every slot holds something."""
    config = model.config
    shape = (config.num_layers, config.num_kv_heads, config.head_dim)
    cache = KVCache(shape, num_blocks, BLOCK, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    cache.pool.copy_(torch.randn(cache.pool.shape, generator=generator))
    return cache


@torch.no_grad()
def test_padding_changes_nothing_of_the_step_and_writes_nowhere_else() -> None:
    model = tiny_gpt()
    ids = torch.tensor([5, 6, 7])
    tables = torch.tensor([[1, 0, 0], [2, 3, 0], [4, 5, 6]])
    layout = CacheLayout(torch.tensor([2, 5, 9]), torch.tensor([6, 13, 25]), tables)
    plain, padded = full_cache(model, 9), full_cache(model, 9)

    expected = model.hidden_cached(ids, plain, layout)
    given = model.hidden_cached(*_after_cache(pad(ids, layout, 8 * BLOCK), padded))

    torch.testing.assert_close(given[:3], expected, rtol=1e-5, atol=1e-5)
    assert given.size(0) == 4
    # What is written differs in the last bit, because four rows are added up otherwise than three.
    torch.testing.assert_close(padded.pool[:, :, :8], plain.pool[:, :, :8], rtol=1e-5, atol=1e-5)


def _after_cache(
    step: tuple[torch.Tensor, CacheLayout], cache: KVCache
) -> tuple[torch.Tensor, KVCache, CacheLayout]:
    return step[0], cache, step[1]


@pytest.mark.parametrize(("number", "power"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (33, 64)])
def test_powers_of_two(number: int, power: int) -> None:
    assert power_of_two(number) == power


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_graphs_give_the_tokens_of_eager_steps() -> None:
    prompts = [[(7 * i + j) % 500 for j in range(1 + 5 * i)] for i in range(9)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    given = []
    for with_graphs in (False, True):
        model = tiny_gpt().cuda()
        engine = Engine(model, tiny_tokenizer(247), EngineConfig(block_size=BLOCK))
        if not with_graphs:
            engine.runner.graphs = None
        tokens: dict[int, list[int]] = {}
        for prompt in prompts:
            tokens[engine.add(prompt, params)] = []
        while engine.has_work:
            for output in engine.step():
                tokens[output.request].append(output.token)
        given.append(list(tokens.values()))

    assert given[0] == given[1]
