"""Models that take exams: ours against transformers' class with the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from evals.candidates import HuggingFaceModel, TrainedModel, first_id
from nanoray.config import InputError
from nanoray.model.generate import generate
from nanoray.text.tokenizer import Tokenizer
from tests.evals.model_folder import write_model_folder
from tests.inference.test_scoring import some_questions
from tests.support import tiny_gpt

CPU = torch.device("cpu")
MESSAGES = [{"role": "user", "content": "Hello you"}, {"role": "assistant", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("hf") / "model")


def test_a_folder_scores_as_our_own_class_does(folder: Path) -> None:
    theirs = HuggingFaceModel(str(folder), torch.float32, CPU)
    ours = TrainedModel(tiny_gpt(rope_dtype="float32"), Tokenizer([]))
    questions = [q for q in some_questions(30, seed=2) if q.longest <= theirs.longest]

    for one, other in zip(ours.score(questions), theirs.score(questions), strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)  # fp32 sums
            assert a.is_greedy == b.is_greedy


def test_a_folder_brings_its_own_tokens_and_template(folder: Path) -> None:
    model = HuggingFaceModel(str(folder), torch.float32, CPU)

    assert model.encode("you Hello") == [2, 1]
    assert model.document("you") == [0, 2]
    assert model.chat_prompt(MESSAGES) == [1, 2]
    assert model.longest == 64
    written = model.write([[1, 2], [1] * 64], max_tokens=3)
    assert isinstance(written[0], str)
    assert written[1] is None


def test_without_a_template_nothing_can_be_asked(folder: Path) -> None:
    model = HuggingFaceModel(str(folder), torch.float32, CPU)
    model.tokenizer.chat_template = None

    with pytest.raises(InputError, match="has no chat template"):
        model.chat_prompt(MESSAGES)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="holds no model that transformers can load"):
        HuggingFaceModel(str(tmp_path), torch.float32, CPU)


def test_weights_that_are_pickled_are_never_read(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")

    with pytest.raises(InputError, match="holds no model that transformers can load"):
        HuggingFaceModel(str(folder), torch.float32, CPU)


def test_a_folder_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    key = "model.layers.1.mlp.fc1.weight"
    for changed, said in (
        ({key: torch.zeros(3, 3)}, f"has in another shape weights .*: {key}\\. Fetch"),
        ({}, f"lacks weights .*: {key}\\. Fetch"),
    ):
        others = {name: value for name, value in weights.items() if name != key}
        safetensors.torch.save_file(
            {**others, **changed}, folder / "model.safetensors", {"format": "pt"}
        )

        with pytest.raises(InputError, match=said):
            HuggingFaceModel(str(folder), torch.float32, CPU)


def test_weights_that_the_library_ties_may_be_left_out(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_model_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    saved = safetensors.torch.load_file(folder / "model.safetensors")

    model = HuggingFaceModel(str(folder), torch.float32, CPU)

    assert "lm_head.weight" not in saved
    assert torch.equal(model.model.lm_head.weight, saved["model.embed_tokens.weight"])


def test_a_folder_writes_greedily_whatever_it_asks_for(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path)
    before = HuggingFaceModel(str(folder), torch.float32, CPU)
    greedy = [1, 2]
    for _ in range(12):
        greedy.append(int(before.model(torch.tensor([greedy])).logits[0, -1].argmax()))
    place = folder / "generation_config.json"
    wishes = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "num_beams": 3}
    asked = {**wishes, "suppress_tokens": greedy[2:5], "do_sample": True, "top_k": 5}
    asked["eos_token_id"] = [255, greedy[10]]
    place.write_text(json.dumps({**json.loads(place.read_text()), **asked}))

    after = HuggingFaceModel(str(folder), torch.float32, CPU)

    end = greedy.index(greedy[10], 2) + 1  # the folder's own ends stay
    assert after._continue([1, 2], 12) == greedy[2:end]


@pytest.mark.parametrize(
    ("words", "named", "first"),
    [
        (("<s>", "<|bos|>", "<e>"), {"bos_token": "<s>", "eos_token": "<e>"}, "<s>"),
        (("<|endoftext|>", "<|bos|>", "<e>"), {"eos_token": "<e>"}, "<|bos|>"),
        (("<|endoftext|>", "<|im_end|>"), {"eos_token": "<|im_end|>"}, "<|endoftext|>"),
        (("x", "<e>"), {"eos_token": "<e>"}, "<e>"),
    ],
)
def test_the_token_that_begins_a_text_is_found(
    words: tuple[str, ...], named: dict[str, str], first: str
) -> None:
    tokenizer = word_tokenizer(words, **named)

    assert first_id("m", tokenizer) == words.index(first)


def test_a_tokenizer_without_a_beginning_is_refused() -> None:
    with pytest.raises(InputError, match="of m has no token that begins a text: neither"):
        first_id("m", word_tokenizer(("x",)))


def word_tokenizer(words: tuple[str, ...], **named: str) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: number for number, word in enumerate(words)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=words[0]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **named)


PIECES = ("<unk>", "\u2581A", "A", "\u2581B", "B", "\u2581", "\n", ":", ":A", "h", "i", "\u2581hi")


def test_a_letter_is_scored_as_it_stands_behind_the_template(folder: Path) -> None:
    model = HuggingFaceModel(str(folder), torch.float32, CPU)
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [(piece, -1.0) for piece in PIECES]
    raw = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    model.tokenizer = pytest.importorskip("transformers").PreTrainedTokenizerFast(
        tokenizer_object=raw
    )
    asked = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "A"}]
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}:{{ '\\n' }}"

    ids = [model.answer_ids(asked, letter) for letter in "AB"]

    assert [PIECES[i] for i in model.encode("A")] == ["\u2581A"]
    assert [[PIECES[i] for i in one] for one in ids] == [["A"], ["B"]]
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}:"
    with pytest.raises(InputError, match="ends in 'hi:', the tokenizer joins the answer 'A'"):
        model.answer_ids(asked, "A")


def test_answers_do_not_depend_on_how_many_are_written_at_once() -> None:
    tokenizer = Tokenizer([])
    prompts = [tokenizer.encode(text) for text in ("a", "some more", "x" * 30, "y" * 100)]
    written = []
    for batch_size in (1, 3):
        model = tiny_gpt(vocab_size=tokenizer.vocab_size, rope_reach=1)
        written.append(TrainedModel(model, tokenizer, batch_size=batch_size).write(prompts, 9))

    assert written[0] == written[1]
    assert [text is None for text in written[0]] == [False, False, False, True]


def test_answers_go_on_as_far_as_rotary_angles_reach() -> None:
    tokenizer = Tokenizer([])
    model = tiny_gpt(vocab_size=tokenizer.vocab_size, rope_reach=3)
    T, reach = model.config.max_seq_len, 3 * model.config.max_seq_len
    with torch.no_grad():
        model.unembedding.weight[tokenizer.bos_id :] *= 0  # no special token is the likeliest
    prompts = [tokenizer.encode("xyz" * 70)[:n] for n in (T - 9, T + 7, reach - 5, reach)]
    expected = [
        tokenizer.decode(generate(model, prompt, min(40, reach - len(prompt)), temperature=0))
        for prompt in prompts[:3]
    ]
    candidate = TrainedModel(model, tokenizer, batch_size=2)

    alone = [candidate.write([prompt], 40)[0] for prompt in prompts]
    together = candidate.write(prompts, 40)

    assert alone == together == [*expected, None]


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    tokenizer = Tokenizer([])
    model = tiny_gpt(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        direction = model.unembedding.weight[0].clone()
        model.unembedding.weight.zero_()
        model.unembedding.weight[0xFF] = direction
        model.unembedding.weight[0xFE] = -direction  # of the two, one is the likeliest

    [text] = TrainedModel(model, tokenizer).write([[65]], 4)

    assert text
    assert set(text) == {"\ufffd"}
