import pytest

from nanoray.train.schedule import Schedule

D34 = Schedule(num_steps=169_150)


@pytest.mark.parametrize(
    ("step", "multiplier"),
    [(0, 1.0), (135_320, 1.0), (135_321, 0.99997044), (152_235, 0.5), (169_149, 2.9559563e-05)],
)
def test_the_learning_rate_is_d34s(step, multiplier):
    # nanochat.md 12.4, which prints eight digits.
    assert D34.lr_multiplier(step) == pytest.approx(multiplier, rel=1e-7)


@pytest.mark.parametrize(
    ("step", "momentum"), [(0, 0.85), (150, 0.90), (299, 0.85 + 0.1 * 299 / 300), (300, 0.95)]
)
def test_the_momentum_is_d34s(step, momentum):
    assert D34.momentum(step) == pytest.approx(momentum, rel=1e-12)
    assert D34.momentum(169_149) == 0.95


def test_warmup_begins_above_zero_and_reaches_one():
    schedule = Schedule(num_steps=100, warmup_ratio=0.1)

    multipliers = [schedule.lr_multiplier(step) for step in range(12)]

    assert multipliers == pytest.approx([0.1 * (i + 1) for i in range(10)] + [1.0, 1.0])


def test_warmdown_is_linear_down_to_the_final_fraction():
    schedule = Schedule(num_steps=100, warmdown_ratio=0.5, final_lr_fraction=0.2)

    multipliers = [schedule.lr_multiplier(step) for step in range(50, 101)]

    assert multipliers == pytest.approx([1 - 0.8 * i / 50 for i in range(51)])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10])
def test_even_the_shortest_run_moves_in_every_step(num_steps):
    schedule = Schedule(num_steps=num_steps)

    multipliers = [schedule.lr_multiplier(step) for step in range(num_steps)]

    assert all(0 < multiplier <= 1 for multiplier in multipliers)
    assert multipliers == sorted(multipliers, reverse=True)
