"""A model in Hugging Face's layout, with weights of ours and a tokenizer of a few words."""

from pathlib import Path

import pytest

from nanoray.model.interop import transformers_config, transformers_weights
from tests.support import tiny_gpt


def write_model_folder(place: Path) -> Path:
    """Write it, and give its folder; skips where transformers is not installed."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    model = tiny_gpt(rope_dtype="float32")
    theirs = transformers.NanoChatForCausalLM(
        transformers.NanoChatConfig(**transformers_config(model.config))
    )
    theirs.load_state_dict(transformers_weights(model.state_dict()))
    theirs.save_pretrained(place)
    words = {"<s>": 0, "Hello": 1, "you": 2, "?": 3, "is": 4, "red": 5, "green": 6, "blue": 7}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    wrapped.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    wrapped.save_pretrained(place)
    return place
