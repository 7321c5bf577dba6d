"""Pass@k of a policy: repeatable, by its own draws, and one number over all ranks."""

import math
import statistics

import torch

from nanoray.rl.pass_rate import PassRate
from nanoray.rl.source import LocalRollouts
from nanoray.rl.trajectory import pass_at_k
from nanoray.train.world import LocalWorld
from tests.rl.test_steps import SayE, source, state_of_seed


def measure_of(num_questions: int) -> PassRate:
    collector = LocalRollouts(source(), torch.device("cpu"))
    return PassRate(collector, LocalWorld(), num_questions=num_questions, num_samples=8)


def test_measuring_is_the_same_each_time() -> None:
    state, measure = state_of_seed(), measure_of(5)

    first, second = measure.measure(state.model), measure.measure(state.model)

    assert first == second
    assert set(first) == {f"validation/pass_at_{k}" for k in (1, 2, 4, 8)} | {PassRate.error_key}


def test_the_rates_are_those_of_the_graded_answers() -> None:
    state, measure = state_of_seed(), measure_of(6)

    rates = measure.measure(state.model)

    groups = measure.collector.finish(
        measure.collector.start(range(6), step=0, version=-1, is_held_out=True)
    )
    correct = [sum(SayE().grade(0, t.text).is_correct for t in group) for group in groups]
    for k in (1, 2, 4, 8):
        expected = sum(pass_at_k(8, c, k) for c in correct) / 6
        assert abs(rates[f"validation/pass_at_{k}"] - expected) < 1e-12
    error = statistics.stdev(c / 8 for c in correct) / math.sqrt(6)
    assert abs(rates[PassRate.error_key] - error) < 1e-12
