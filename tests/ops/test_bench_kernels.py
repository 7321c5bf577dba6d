import json

import pytest

from nanoray.ops.bench_kernels import BLOCK_QUERIES, CHUNK_TOKENS, KernelBench, bench_kernels


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_each_way_to_cut_attention_and_loss_and_to_multiply_is_timed() -> None:
    config = KernelBench(rows=1, max_seq_len=64, num_heads=2, vocab_size=300, repeats=1)

    result = json.loads(bench_kernels(config))

    times = result["milliseconds"]
    assert all(f"loss, chunks of {tokens} tokens" in times for tokens in CHUNK_TOKENS)
    assert all(f"attention, blocks of {block} queries" in times for block in BLOCK_QUERIES)
    assert {name for name in times if "Newton" in name} == {
        "Newton-Schulz, torch's products",
        "Newton-Schulz, products in fp32",
    }
    assert all(time > 0 for time in times.values())
