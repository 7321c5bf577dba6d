"""How Ray Data is used everywhere: without progress bars, and with errors as they were raised."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext
from ray.exceptions import RayTaskError

from nanoray.config import InputError


def data_context() -> DataContext:
    """Give the settings of this process, for datasets that are made after it."""
    context: DataContext = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    return context


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise an InputError of a task as if it had been raised here."""
    try:
        yield
    except RayTaskError as error:
        cause = innermost(error)
        if isinstance(cause, InputError):
            raise cause from None
        raise


def innermost(error: BaseException) -> BaseException:
    """Give what was raised at first, of an error that went through tasks of Ray."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error
