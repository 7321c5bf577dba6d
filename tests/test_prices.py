import pytest

from nanoray.prices import OTHERS, dollars_per_hour


@pytest.mark.parametrize(
    ("given", "device", "price"),
    [
        (None, "H100", 3.0),
        (None, "NVIDIA H200 NVL", 4.0),
        (None, "nvidia a100-80gb", 1.5),
        (None, "GB200", 5.6),
        (None, "cpu", OTHERS),
        (None, "something new", OTHERS),
        (0.0, "H100", 0.0),
        (2.2, "H100", 2.2),
    ],
)
def test_a_price_is_given_or_that_of_the_kind(given, device, price):
    assert dollars_per_hour(given, device) == price
