"""Our weights under the names of `transformers`' NanoChat class, to compare with it."""

import re
from typing import Any

from torch import Tensor

from nanoray.config import InputError
from nanoray.model.gpt import GPTConfig

NAMES = {
    r"embedding\.weight": "model.embed_tokens.weight",
    r"unembedding\.weight": "lm_head.weight",
    r"blocks\.(\d+)\.attention\.query\.weight": r"model.layers.\1.self_attn.q_proj.weight",
    r"blocks\.(\d+)\.attention\.key\.weight": r"model.layers.\1.self_attn.k_proj.weight",
    r"blocks\.(\d+)\.attention\.value\.weight": r"model.layers.\1.self_attn.v_proj.weight",
    r"blocks\.(\d+)\.attention\.output\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    r"blocks\.(\d+)\.mlp\.up\.weight": r"model.layers.\1.mlp.fc1.weight",
    r"blocks\.(\d+)\.mlp\.down\.weight": r"model.layers.\1.mlp.fc2.weight",
}


def transformers_config(config: GPTConfig) -> dict[str, Any]:  # Any: JSON
    """Give the fields of `NanoChatConfig` for a model.

    Its class computes rotary angles in fp32, whatever `rope_dtype` says: logits agree up to that.

    Raises:
        InputError: the model has something that the class does not have.
    """
    for name, only in (("rope_sign", -1), ("qk_scale", 1.0), ("window_pattern", "L")):
        if getattr(config, name) != only:
            raise InputError(
                f"{name} is {getattr(config, name)!r}; transformers' NanoChat has only {only!r}."
            )
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_ratio * config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "final_logit_softcapping": config.softcap,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": False,
    }


def transformers_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give all weights under their names there."""
    return {transformers_name(name): weight for name, weight in weights.items()}


def transformers_name(name: str) -> str:
    """Give the name of one of our parameters there."""
    for pattern, replacement in NAMES.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise AssertionError(f"{name} has no name there")
