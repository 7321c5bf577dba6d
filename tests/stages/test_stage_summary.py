"""What a user is told at the end of a run."""

from nanoray.stages.stage_summary import median


def test_the_first_tenth_of_a_run_does_not_count() -> None:
    assert median([900.0, *[float(n) for n in range(1, 20)]]) == 10.5
    assert median([7.0]) == 7.0
