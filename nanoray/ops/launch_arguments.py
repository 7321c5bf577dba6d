"""Settings as `serve run serve_app:app run=d34` gives them: strings, by name or by variable."""

import dataclasses
import os
import typing
from collections.abc import Mapping
from typing import Any

import ray
from pydantic import TypeAdapter, ValidationError
from ray import serve

from nanoray.cluster import connection
from nanoray.config import InputError
from nanoray.ops.launch import SERVER, addresses, listen, prepare
from nanoray.serve.serve_config import ServeConfig

PREFIX = "NANORAY_"


def application(arguments: dict[str, str]) -> serve.Application:
    """Build the application: what `serve run` calls, before it connects.

    Raises:
        InputError: a setting that cannot be read, no such checkpoint, or nobody at RAY_ADDRESS.
    """
    config = config_from(arguments, os.environ)
    if ray.is_initialized():  # as where a RayService builds it, whose ports are its own
        return prepare(config)
    connects_itself = connection.known_address() is not None
    connection.connect(settings=SERVER)
    try:
        application = prepare(config)
        listen(config)
        told = "\n".join(addresses(config))
        print(told, flush=True)  # noqa: T201 (`serve run` shows no log lines of ours)
        return application
    finally:
        if connects_itself:  # with the --address and --runtime-env that it was given
            ray.shutdown()


def config_from(arguments: Mapping[str, str], environment: Mapping[str, str]) -> ServeConfig:
    """Read the settings; an argument counts before the variable of its name.

    Raises:
        InputError: an unknown name, or a value that cannot be read.
    """
    kinds = typing.get_type_hints(ServeConfig)
    unknown = sorted(set(arguments) - set(kinds))
    if unknown:
        raise InputError(f"{unknown[0]} is no setting. There are: {', '.join(kinds)}.")
    given: dict[str, Any] = {}  # Any: values of all kinds
    for field in dataclasses.fields(ServeConfig):
        text = arguments.get(field.name, environment.get(f"{PREFIX}{field.name.upper()}"))
        if text is not None:
            given[field.name] = parse(field.name, str(text), kinds[field.name])
    if "run" not in given:
        raise InputError(f"What is to be served? Give run=RUN, or {PREFIX}RUN=RUN.")
    return ServeConfig(**given)


def parse(name: str, text: str, kind: Any) -> object:  # Any: a type, or a union with None
    """Read one value as its field has it; several are separated by commas."""
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError as error:
        raise InputError(f"{name}={text}: {error.errors()[0]['msg']}.") from error
