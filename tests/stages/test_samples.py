"""What a model says when a stage ends."""

import torch

from nanoray.model.generate import generate
from nanoray.stages.samples import answer_questions, continue_texts
from nanoray.text.chat import render_for_completion
from tests.support import tiny_gpt, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_texts_follow_from_the_weights_alone() -> None:
    model = tiny_gpt(vocab_size=TOKENIZER.vocab_size)

    first, second = (continue_texts(model, TOKENIZER, ["One", "Two"], 5) for _ in range(2))

    assert first == second
    assert [prompt for prompt, _ in first] == ["One", "Two"]


def test_a_text_ends_where_the_context_does() -> None:
    model = tiny_gpt(vocab_size=TOKENIZER.vocab_size, max_seq_len=4)
    reach = model.cos.size(0)
    long, longer = "x " * (reach // 2 - 4), "x " * reach

    [(prompt, _)] = continue_texts(model, TOKENIZER, [long, longer], 64)

    ids = [TOKENIZER.bos_id, *TOKENIZER.encode(long)]
    assert prompt == long
    assert len(ids) + 64 - 1 > reach, "else it says nothing"
    assert len(generate(model, ids, reach - len(ids) + 1)) == reach - len(ids) + 1


def test_an_answer_is_the_likeliest_and_ends_with_its_turn() -> None:
    model = tiny_gpt(vocab_size=TOKENIZER.vocab_size)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    [(_, one), _] = answer_questions(model, TOKENIZER, ["Hello", "Why?"], 12)

    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}]
    ids = render_for_completion(turns, TOKENIZER)
    naive = generate(model, ids, 12, temperature=0)
    ends = [TOKENIZER.special_ids["<|assistant_end|>"], TOKENIZER.bos_id]
    until = next((i for i, token in enumerate(naive) if token in ends), 12)
    assert one == TOKENIZER.decode(naive[:until])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_prompt_that_fills_the_context_has_a_short_answer() -> None:
    model = tiny_gpt(vocab_size=TOKENIZER.vocab_size, max_seq_len=32)

    [(_, said)] = answer_questions(model, TOKENIZER, ["Hi"], 500)

    assert len(said) < 500


def test_a_prompt_that_leaves_no_room_is_left_out() -> None:
    model = tiny_gpt(vocab_size=TOKENIZER.vocab_size, max_seq_len=32)

    samples = answer_questions(model, TOKENIZER, ["Why? " * 20, "Hi"], 4)

    assert [prompt for prompt, _ in samples] == ["Hi"]
    assert answer_questions(model, TOKENIZER, ["Why? " * 20], 4) == []


def test_a_text_goes_on_beyond_the_context() -> None:
    model = tiny_gpt(vocab_size=TOKENIZER.vocab_size, max_seq_len=8)

    [(_, said)] = continue_texts(model, TOKENIZER, ["Once upon a time, there was"], 3)

    assert said
