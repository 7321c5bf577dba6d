"""Files that are fetched once: from a server on this machine that also fails."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoray.config import DataError
from nanoray.data.cached_file import PLAIN_TEXT, ZIP, cache_folder, fetch_once
from nanoray.data.download import Patience
from tests.hub import Fault, Hub, running_hub

QUICK = Patience(stall_seconds=2, num_attempts=3, first_wait_seconds=0.01)


def zip_file() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.txt", "something " * 50_000)
    return sink.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with running_hub() as hub:
        hub.names_checksums = False
        hub.shards |= {"bundle.zip": zip_file(), "words.txt": b"alpha\nbeta\n"}
        yield hub


def test_a_file_is_fetched_once_and_a_broken_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.faults["bundle.zip"] = Fault(ends_after=100)

    first = fetch_once(f"{hub.url}/bundle.zip", ZIP, "", QUICK)
    asked = hub.ranges("bundle.zip")
    again = fetch_once(f"{hub.url}/bundle.zip", ZIP, "", QUICK)

    assert Path(first).read_bytes() == hub.shards["bundle.zip"]
    assert again == first
    assert asked == [None, "bytes=100-"]
    assert hub.ranges("bundle.zip") == asked
    assert [p.name for p in Path(cache_folder()).iterdir()] == [Path(first).name]
    assert cache_folder() == str(tmp_path / "cache" / "nanoray")


def test_a_file_that_is_not_what_it_should_be_is_not_kept(hub: Hub) -> None:
    with pytest.raises(DataError, match=r"came out wrong twice \(it is no zip file\).* Ask Bob\."):
        fetch_once(f"{hub.url}/words.txt", ZIP, "Ask Bob.", QUICK)
    hub.shards["login.txt"] = b"<!doctype html><p>Who are you?"
    with pytest.raises(DataError, match="it is no plain text"):
        fetch_once(f"{hub.url}/login.txt", PLAIN_TEXT, "", QUICK)

    assert [p for p in Path(cache_folder()).iterdir() if p.suffix != ".part"] == []


def test_a_server_that_refuses_is_told_of_with_the_other_way(hub: Hub) -> None:
    hub.faults["words.txt"] = Fault(times=9, status=404)

    with pytest.raises(DataError, match=r"answered 404.* Give --words\."):
        fetch_once(f"{hub.url}/words.txt", PLAIN_TEXT, "Give --words.", QUICK)


def test_one_who_was_waited_for_leaves_nothing_behind(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have put the file there while this one waited for the lock."""
    url = f"{hub.url}/words.txt"
    target = fetch_once(url, PLAIN_TEXT, "", QUICK)
    looks = iter([False, True])
    monkeypatch.setattr("nanoray.data.cached_file.os.path.exists", lambda path: next(looks, True))

    assert fetch_once(url, PLAIN_TEXT, "", QUICK) == target
    assert [p.name for p in Path(cache_folder()).iterdir()] == [Path(target).name]
