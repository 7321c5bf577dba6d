import time

from nanoray.ops.chaos_job import WatchedJob
from nanoray.storage import RunFolder


def job_of(storage: object, *arguments: str) -> WatchedJob:
    return WatchedJob(
        RunFolder(str(storage), "r").stage("pretrain"), list(arguments), "127.0.0.1:1"
    )


def test_a_job_is_watched_to_its_end(tmp_path):
    job = job_of(tmp_path, "--depth", "0")
    began = time.time()
    assert job.code is None

    job.start()
    job.wait()
    job.reader.join()

    assert job.code == 2
    assert "--depth 0" in job.last_lines()
    told = job.first_line_after(began, "no such sign", "--depth 0")
    assert told is not None
    assert began < told <= time.time()
    assert job.first_line_after(told, "--depth 0") is None


def test_a_job_can_be_killed_and_started_again(tmp_path):
    job = job_of(tmp_path, "--help")
    job.start()

    job.kill()
    first = job.pid
    job.start()
    job.wait()

    assert job.code == 0
    assert job.pid != first


def test_a_run_that_has_not_begun_is_at_step_0(tmp_path):
    job = job_of(tmp_path)

    assert (job.newest_step(), job.events()) == (0, [])
