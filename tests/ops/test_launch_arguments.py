"""Settings as `serve run` gives them."""

from typing import Any

import pytest

from nanoray.config import InputError
from nanoray.ops.launch_arguments import config_from


def test_arguments_count_before_variables() -> None:
    config = config_from(
        {"run": "a", "port": "9000", "page": "false", "others": "b, c@5"},
        {"NANORAY_RUN": "z", "NANORAY_MAX_SEQUENCES": "8", "NANORAY_CACHE_GB": "1.5"},
    )

    assert (config.run, config.port, config.page) == ("a", 9000, False)
    assert (config.others, config.max_sequences, config.cache_gb) == (("b", "c@5"), 8, 1.5)


def test_variables_alone_are_enough() -> None:
    assert config_from({}, {"NANORAY_RUN": "z"}).run == "z"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "What is to be served"),
        ({"run": "a", "prot": "1"}, "prot is no setting. There are: .*port"),
        ({"run": "a", "port": "x"}, "port=x: Input should be a valid integer"),
        ({"run": "a", "page": "maybe"}, "page=maybe: Input should be a valid boolean"),
    ],
)
def test_what_cannot_be_read_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config_from(arguments, {})
