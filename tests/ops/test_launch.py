"""What the server tells of itself, and how it is ended; that it starts: test_deployment.py."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve.schema import ApplicationStatus

from nanoray.logs import FORMAT_VARIABLE
from nanoray.ops import launch
from nanoray.ops.launch import log_format, tell_addresses
from nanoray.serve import deployment
from nanoray.serve.api import Api
from nanoray.serve.deployment import APPLICATION, Door
from nanoray.serve.serve_config import ServeConfig
from nanoray.serve.settings import ApiSettings


@pytest.mark.parametrize("page", [True, False])
def test_the_addresses_are_told(page: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tell_addresses(ServeConfig(run="r", port=8123, page=page))

    assert "http://127.0.0.1:8123/v1" in caplog.text
    assert ("http://127.0.0.1:8123/chat" in caplog.text) == page


@pytest.mark.parametrize(("given", "encoding"), [("text", "TEXT"), ("json", "JSON")])
def test_serve_logs_in_the_format_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, given: str, encoding: str
) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, given)

    assert log_format().encoding == encoding


class HandleOfADoor:
    """A door in a loop of this process, asked as through a handle of Serve."""

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self.door, self._loop = door, loop

    def __getattr__(self, name: str) -> SimpleNamespace:
        def remote(*arguments: object) -> SimpleNamespace:
            answer = self.do(lambda: getattr(self.door, name)(*arguments))
            return SimpleNamespace(result=lambda timeout_s: answer.result(timeout_s))

        return SimpleNamespace(remote=remote)

    def do(self, method: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(method(), self._loop)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Iterator[HandleOfADoor]:
    """Serve's own part is one application, which is gone as soon as it is deleted."""
    applications = {APPLICATION: SimpleNamespace(status=ApplicationStatus.RUNNING)}
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=applications))
    monkeypatch.setattr(serve, "delete", lambda name, _blocking: applications.pop(name))
    monkeypatch.setattr(deployment, "listen_as_its_node", lambda: None)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield HandleOfADoor(new_door(), loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def new_door() -> Door:
    door = Door(ApiSettings(), {}, "")
    door.api = Api({}, ApiSettings())
    return door


def admission_of(handle: HandleOfADoor) -> Any:
    assert handle.door.api is not None
    return handle.door.api.admission


def wait_until_draining(handle: HandleOfADoor) -> None:
    while not admission_of(handle).is_draining:
        time.sleep(0.01)


def test_an_end_waits_for_the_last_answer(handle: HandleOfADoor) -> None:
    answer = admission_of(handle).enter(1)

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(launch.end, handle, None)  # type: ignore[arg-type]
        wait_until_draining(handle)
        time.sleep(0.7)
        waited = not ending.done()
        answer.leave()
        ending.result(timeout=10)

    assert waited
    assert APPLICATION not in serve.status().applications


@pytest.mark.parametrize("is_redeployed", [False, True])
def test_a_server_that_is_started_anew_is_not_ended_by_the_job_that_ended_the_old_one(
    handle: HandleOfADoor, is_redeployed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answer = admission_of(handle).enter(1)

    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.INFO):
        ending = pool.submit(launch.end, handle, 10.0)  # type: ignore[arg-type]
        wait_until_draining(handle)
        handle.do(lambda: handle.door.resume("another")).result()
        handle.door = new_door() if is_redeployed else handle.door
        ending.result(timeout=20)
    answer.leave()
    time.sleep(0.5)

    assert "started anew" in caplog.text
    assert not admission_of(handle).is_draining
    assert APPLICATION in serve.status().applications


def test_a_job_does_not_end_a_server_that_another_has_started_since(
    handle: HandleOfADoor, caplog: pytest.LogCaptureFixture
) -> None:
    handle.do(lambda: handle.door.resume(launch.LAUNCHER)).result()
    handle.do(lambda: handle.door.resume("another")).result()

    with caplog.at_level(logging.INFO):
        launch.end(handle, None)  # type: ignore[arg-type]

    assert "another job has started the server since" in caplog.text
    assert not admission_of(handle).is_draining
    assert APPLICATION in serve.status().applications


def test_a_job_does_not_end_a_server_that_another_is_just_starting(
    handle: HandleOfADoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "DOOR_SECONDS", 0.2)
    handle.do(lambda: handle.door.resume("another")).result()
    serve.status().applications[APPLICATION].status = ApplicationStatus.DEPLOYING
    handle._loop.call_soon_threadsafe(time.sleep, 1.0)

    launch.end(handle, None)  # type: ignore[arg-type]
    handle.do(handle.door.left).result()

    assert APPLICATION in serve.status().applications


def test_a_launch_that_fails_gives_the_server_back(
    handle: HandleOfADoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "get_deployment_handle", lambda name, application: handle)
    handle.do(lambda: handle.door.resume("first")).result()

    _, before = launch.keep_open()
    launch.keep_open(before)

    assert before == handle.door.launcher == "first"


def test_a_job_ends_its_own_server(handle: HandleOfADoor) -> None:
    handle.do(lambda: handle.door.resume(launch.LAUNCHER)).result()

    launch.end(handle, None)  # type: ignore[arg-type]

    assert APPLICATION not in serve.status().applications


def test_a_door_that_does_not_say_how_many_answers_it_has_is_asked_again(
    handle: HandleOfADoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = admission_of(handle).enter(1)
    monkeypatch.setattr(launch, "DOOR_SECONDS", 0.2)

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(launch.end, handle, None)  # type: ignore[arg-type]
        wait_until_draining(handle)
        handle._loop.call_soon_threadsafe(time.sleep, 1.0)
        time.sleep(1.2)
        is_there = APPLICATION in serve.status().applications
        answer.leave()
        ending.result(timeout=10)

    assert is_there
