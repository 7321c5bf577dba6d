"""Ray Data as it is used everywhere."""

import pytest
from ray.exceptions import RayTaskError

from nanoray.config import DataError
from nanoray.data.ray_data import data_context, innermost, plain_errors


def wrapped(error: Exception) -> Exception:
    """Wrap an error as Ray does when it goes through two tasks."""
    inner = RayTaskError("read", "Traceback ...", error).as_instanceof_cause()
    return RayTaskError("next", "Traceback ...", inner).as_instanceof_cause()


def test_wrong_input_in_a_task_is_raised_as_it_was_there() -> None:
    error = DataError("/data/a.parquet cannot be read. Fetch it again.")

    with pytest.raises(DataError) as caught, plain_errors():
        raise wrapped(error)

    assert caught.value is error
    assert innermost(wrapped(error)) is error


def test_other_errors_keep_what_ray_tells_of_them() -> None:
    with pytest.raises(RayTaskError), plain_errors():
        raise wrapped(ZeroDivisionError("by zero"))


def test_datasets_show_no_bars_and_hide_no_errors() -> None:
    context = data_context()

    assert not context.enable_progress_bars
    assert context.raise_original_map_exception
