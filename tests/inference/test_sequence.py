"""What a sequence knows of itself."""

from nanoray.inference.sampling import SamplingParams
from nanoray.inference.sequence import FinishReason, Sequence
from nanoray.inference.text_stream import TextStream


def test_tokens_are_counted_by_what_is_to_be_done_with_them() -> None:
    sequence = Sequence(0, 0, [1, 2, 3], 3, SamplingParams(max_tokens=2), TextStream())
    sequence.num_computed = 3

    sequence.tokens.append(4)
    first = (sequence.num_generated, sequence.num_pending, sequence.is_complete)
    sequence.tokens.append(5)
    second = (sequence.num_generated, sequence.num_pending, sequence.is_complete)

    assert (first, second) == ((1, 1, False), (2, 2, True))


def test_a_prompt_is_computed_when_its_last_token_is_or_when_nobody_wants_it() -> None:
    sequence = Sequence(0, 0, [1, 2, 3], 3, SamplingParams(max_tokens=2), TextStream())

    seen = []
    for num_computed in (0, 2, 3, 4):
        sequence.num_computed = num_computed
        seen.append(sequence.is_prompt_computed)
    sequence.num_computed, sequence.finish_reason = 0, FinishReason.ABORT

    assert seen == [False, False, True, True]
    assert sequence.is_prompt_computed
