import platform
import shutil
from pathlib import Path

import ray
import torch

import nanoray
from nanoray.ops.doctor_node import Node, code_hash, describe_node, own_versions, space_of

HERE = Node("ab12", "here", "here", 2.0, 0, 2**30, "/tmp/ray")


def test_a_node_tells_its_versions_and_its_room():
    facts = describe_node(HERE)

    assert facts.versions["Ray"] == ray.__version__
    assert facts.versions["torch"] == torch.__version__
    assert facts.versions["Python"] == platform.python_version()
    assert "NCCL" not in facts.versions
    assert facts.temp.total == shutil.disk_usage("/tmp").total
    assert facts.memory_bytes > 0
    assert facts.gpus.gpus == ()


def test_a_changed_source_has_another_hash(monkeypatch, tmp_path: Path):
    def hash_of(text: str) -> str:
        (tmp_path / "step.py").write_text(text)
        monkeypatch.setattr(nanoray, "__file__", str(tmp_path / "__init__.py"))
        code_hash.cache_clear()
        return code_hash()

    first, again, other = hash_of("a = 1"), hash_of("a = 1"), hash_of("a = 2")
    code_hash.cache_clear()

    assert first == again
    assert first != other


def test_the_room_of_a_folder_that_is_not_there_is_that_above_it(tmp_path: Path):
    assert space_of(f"{tmp_path}/a/b").total == shutil.disk_usage(tmp_path).total


def test_nodes_with_gpus_tell_the_version_of_nccl():
    versions = own_versions(with_nccl=True)

    assert versions["NCCL"] == "none" or versions["NCCL"][0].isdigit()


def test_a_head_without_cpus_trains_nothing():
    head = Node("ab12", "head", "head", 0.0, 0, 2**30, "/tmp/ray")

    assert not head.trains
    assert HERE.trains
