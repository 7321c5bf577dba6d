"""Our model against `transformers`' own implementation of it, with the same weights."""

import os
from typing import Any

import pytest
import torch

from nanoray.config import InputError
from nanoray.model.interop import transformers_config, transformers_weights
from tests.support import tiny_config, tiny_gpt

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def test_transformers_gives_the_same_logits() -> None:
    transformers = pytest.importorskip("transformers")
    ours = tiny_gpt(rope_dtype="float32", num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32)
    config = transformers.NanoChatConfig(**transformers_config(ours.config))
    theirs = transformers.NanoChatForCausalLM(config)
    missing = theirs.load_state_dict(transformers_weights(ours.state_dict()), strict=True)
    ids = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        expected = theirs(ids).logits
        given = ours(ids)

    assert not missing.missing_keys
    # fp32: the same formulas, in another order of additions.
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", [{"rope_sign": 1}, {"qk_scale": 1.2}, {"window_pattern": "SL"}])
def test_what_transformers_does_not_have_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(fields))} is"):
        transformers_config(tiny_config(**fields))
