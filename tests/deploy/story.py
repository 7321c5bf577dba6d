"""What a reader of the documents does, at a size that this machine can do in minutes.

Each step is a documented command with flags behind it, which count instead of its own.
"""

import shlex
from dataclasses import dataclass

WORKERS = "--eager --threads-per-worker 1 --cpus-per-worker 1"
BATCH = f"--total-batch-tokens 1024 --device-batch-size 1 --validation-tokens 2048 {WORKERS}"
MODEL = f"--head-dim 32 --vocab-size 400 --max-seq-len 512 --data {{data}} {BATCH}"
LESSONS = "--mixture identity=100,simplespelling=100 --words embedded --num-steps 8"
ROLLOUTS = (
    "--num-steps 2 --examples-per-step 2 --num-samples 2 --max-new-tokens 8 --device-batch-size 4 "
    f"--validation-questions 2 --validation-samples 2 {WORKERS}"
)
QUESTIONS = "--eval-bundle {bundle} --hub-dir {hub} --words embedded --max-per-task 4"
BENCH = "--depth 1 --vocab-size 400 --seconds 2 --skip-seconds 0 --eager --data {data}"


@dataclass(frozen=True)
class Step:
    """A documented command, and what counts instead of its own flags."""

    command: str
    instead: str = ""
    tells: str = ""
    """What is among the words that it prints."""

    def words(self, names: dict[str, str]) -> list[str]:
        """Give the command as it is run."""
        own = [names.get(word, word) for word in shlex.split(self.command)]
        return own + shlex.split(self.instead.format(**names))


def prefixed(stage: str, flags: str) -> str:
    """Give flags of a stage as the pipeline takes them."""
    return flags.replace("--", f"--{stage}.")


PIPELINE = " ".join(
    (
        "--run p --depth 1 --eval-tasks core,identity --eval-max-per-task 4",
        "--eval-bundle {bundle} --words embedded",
        prefixed("pretrain", f"{MODEL} --tokens-per-param 0.083"),
        prefixed("midtrain", f"{BATCH} --mixture identity=100,simplespelling=100 --num-steps 8"),
        prefixed("sft", f"{BATCH} --mixture identity=100,simplespelling=100 --num-steps 8"),
        prefixed("rl", f"--tasks simplespelling {ROLLOUTS}"),
    )
)

LOOPBACK_HEAD = (
    "tests/cluster/test_loopback.py::"
    "test_a_head_that_is_started_as_the_documents_say_listens_on_the_loopback_only"
)
KILL_MATRIX = (
    "tests/faults/test_chaos.py::test_each_fault_at_five_moments_leaves_the_undisturbed_run"
)

STORY = (
    Step("python jobs/plan.py --depth 34 --tokens-per-param 40", tells="2,217,082,880"),
    Step(
        "python jobs/plan.py --depth 34 --tokens-per-param 40 --nodes 8", tells="8 with 8 GPUs each"
    ),
    Step("python jobs/tokenizer.py --data FOLDER --vocab-size 65536", "--vocab-size 400"),
    Step(
        "python jobs/pretrain.py --run d34 --depth 34 --data fineweb-edu --tokens-per-param 40",
        f"--depth 1 --tokens-per-param 0.5 --save-every 20 {MODEL}",
        tells="report: ",
    ),
    Step(
        "python jobs/doctor.py --run d34 --depth 34 --data fineweb-edu --tokens-per-param 40",
        f"--depth 1 --tokens-per-param 0.5 {MODEL}",
        tells="tokenizer",
    ),
    Step(
        "python jobs/doctor.py --run d34 --depth 34 --data fineweb-edu --tokens-per-param 40 "
        "--quick",
        f"--depth 1 --tokens-per-param 0.5 {MODEL}",
        tells="tokenizer",
    ),
    Step("python jobs/report.py d34", tells="d34"),
    Step(
        "python jobs/pretrain.py --run d34 --depth 34 --data fineweb-edu --tokens-per-param 40 "
        "--core-every 5000",
        f"--run core --depth 1 --tokens-per-param 0.41 --core-every 20 --core-max-per-task 4 "
        f"{MODEL} --eval-bundle {{bundle}}",
        tells="step 40: CORE",
    ),
    Step("python jobs/midtrain.py --run d34", f"{BATCH} {LESSONS}"),
    Step("python jobs/sft.py --run d34", f"{BATCH} {LESSONS}"),
    Step(
        "python jobs/sft.py --run mine --from d34/midtrain --data own.jsonl "
        "--mixture 'data*2,identity'",
        f"{BATCH} --num-steps 8",
    ),
    Step("python jobs/rl.py --run d34 --tasks gsm8k", f"{ROLLOUTS} --hub-dir {{hub}}"),
    Step(
        "python jobs/pipeline.py --depth 34 --pretrain.data fineweb-edu "
        "--pretrain.tokens-per-param 40",
        PIPELINE,
    ),
    Step("python jobs/evaluate.py --run d34 --tasks core,chat", QUESTIONS, tells="ChatCORE"),
    Step(
        "python jobs/evaluate.py --run d34 --tasks hellaswag,gsm8k --max-per-task 500",
        f"{QUESTIONS} --tasks colors,gsm8k",
        tells="GSM8K",
    ),
    Step(
        "python jobs/evaluate.py --compare d34/sft d34/rl --tasks chat",
        QUESTIONS,
        tells="ChatCORE",
    ),
    Step(
        "python jobs/evaluate.py --hugging-face FOLDER",
        "--hugging-face {model} --eval-bundle {bundle} --max-per-task 4",
        tells="CORE",
    ),
    Step("python jobs/report.py d34 --card", tells="SFT"),
    Step(
        "python jobs/contamination.py --data climbmix --tasks core,chat",
        "--data {data} --eval-bundle {bundle} --hub-dir {hub} --words embedded",
        tells="GSM8K",
    ),
    Step(
        "python jobs/sweep.py --run small --data fineweb-edu --depths 10,12,14,16 "
        "--ratios 5,10,20,40 --branch",
        f"--depths 1,2,3 --ratios 0.1,0.2,0.4 {MODEL}",
        tells="forecast: python jobs/forecast.py small",
    ),
    Step(
        "python jobs/sweep.py --run idea --data fineweb-edu --depths 10,12,14 --ratios 10,20 "
        "--matrix-lr 0.03",
        f"--depths 1,2 --ratios 0.1,0.2 {MODEL} --core --core-max-per-task 4 "
        "--eval-bundle {bundle}",
        tells="CORE",
    ),
    Step("python jobs/sweep.py --compare small idea", tells="times the compute of"),
    Step("python jobs/forecast.py small --depth 34 --ratio 40 --gpu h100", tells="cost"),
    Step("python jobs/bench.py train --depth 12", BENCH, tells="tokens"),
    Step(
        "python jobs/bench.py train --data ../shared/data/text --dtype bfloat16 "
        "--skip-seconds 15 --seconds 40",
        BENCH,
        tells="tokens",
    ),
    Step(
        "python jobs/bench.py train --data ../shared/data/text --dtype float32 "
        "--skip-seconds 15 --seconds 40",
        BENCH,
        tells="tokens",
    ),
    Step(
        "python jobs/bench.py stream --data ../shared/data/text --repeats 1 "
        "--skip-seconds 40 --seconds 60",
        "--data {data} --depth 1 --seconds 3 --skip-seconds 1",
    ),
)
"""What ends by itself, on a cluster that runs, in an order in which each finds what it needs."""

SUBMITTED = (
    Step(
        "ray job submit --working-dir . -- python jobs/pretrain.py --run try --depth 4 "
        "--num-steps 100",
        f"--depth 1 --num-steps 20 {MODEL}",
        tells="report: ",
    ),
    Step(
        "ray job submit -- python jobs/pretrain.py --run try --depth 4 --num-steps 100",
        f"--run again --depth 1 --num-steps 20 {MODEL}",
        tells="report: ",
    ),
)
"""What goes through the job server."""

SERVERS = (
    Step("python jobs/serve.py --run demo", "--run d34 --port {port} --dtype float32"),
    Step("serve run serve_app:app run=demo", "run=d34 port={port} dtype=float32"),
    Step(
        "NANORAY_API_KEYS=first-key,second-key python jobs/serve.py --run demo --host 0.0.0.0",
        "--run d34 --port {port} --dtype float32",
    ),
)
"""What goes on until it is ended."""

CLIENTS = (
    Step("python jobs/chat.py", "--url {url} --prompt hello --max-tokens 8"),
    Step(
        "python jobs/bench.py serve --concurrency 16",
        "--url {url} --concurrency 2 --num-requests 4 --warm-up 1",
        tells="tokens",
    ),
    Step(
        "python jobs/bench.py serve --concurrency 32 --num-requests 300",
        "--url {url} --concurrency 3 --num-requests 6 --warm-up 1",
        tells="tokens",
    ),
    Step(
        "python jobs/bench.py serve --rate 90.9 --num-requests 10909",
        "--url {url} --rate 4 --num-requests 6 --warm-up 1",
        tells="tokens",
    ),
)
"""What talks to each of them."""

RUN_BY: dict[str, tuple[str, ...]] = {
    "make pretrain": (
        "tests/deploy/test_make.py::test_make_pretrain_leaves_a_model_and_its_report",
    ),
    "make demo": ("tests/deploy/test_make.py::test_make_demo_ends_with_a_page_to_chat_on",),
    "ray start --head": (
        "tests/deploy/test_story.py::test_every_documented_command_does_what_its_reader_expects",
        "tests/heads.py",
    ),
    "export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0": (LOOPBACK_HEAD,),
    "ray start --head --dashboard-host=127.0.0.1": (LOOPBACK_HEAD, "tests/heads.py"),
    "RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000 "
    "RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3 "
    "ray start --head": (
        "tests/faults/test_autoscaling.py::"
        "test_nodes_come_for_a_job_one_is_lost_another_comes_and_all_leave",
        "nanoray/ops/local_cluster.py",
        "tests/heads.py",
    ),
    "ray get-auth-token --generate '>' /dev/null": (
        "tests/deploy/test_scripts.py::"
        "test_a_slurm_job_starts_ray_runs_the_command_and_leaves_nothing",
        "deploy/slurm.sh",
    ),
    "chmod 600 '~/.ray/auth_token'": (
        "tests/deploy/test_scripts.py::"
        "test_a_slurm_job_starts_ray_runs_the_command_and_leaves_nothing",
        "deploy/slurm.sh",
    ),
    "python jobs/data.py --data fineweb-edu --depth 34 --tokens-per-param 40": (
        "tests/ops/test_fetch.py::test_the_plan_of_d34_is_that_of_nanochat",
        "tests/ops/test_fetch.py::test_the_job_fetches_without_ray",
    ),
    "ray job submit --working-dir . -- python jobs/pretrain.py --run d34 --depth 34 "
    "--data fineweb-edu --tokens-per-param 40 --storage s3://bucket/runs": (
        "tests/stages/test_object_store.py::"
        "test_a_run_on_s3_leaves_there_what_one_on_a_disk_leaves",
    ),
    "python jobs/chaos.py --faults worker node --seeds 5": (KILL_MATRIX,),
    "python jobs/chaos.py --faults worker freeze driver node --seeds 5": (KILL_MATRIX,),
    "python jobs/chaos.py --faults worker driver node --per-run 10 "
    "'--pretrain=--depth 4 --num-steps 2000 --save-every 50'": (
        "tests/faults/test_chaos.py::test_a_run_of_flags_of_its_own_outlives_several_faults",
    ),
    "python jobs/forecast.py --grade d34": (
        "tests/ops/test_forecast_grade.py::test_the_job_grades_a_run_by_its_name",
    ),
}
"""Documented commands that the story leaves to tests of their own, and what these use.

Of a job they must have every flag that no step of the story gives it.
"""

NOT_RUN = {
    "git clone '<this' 'repository>' nanoray": "the checkout that this is",
    "cd nanoray": "the checkout that this is",
    "source .venv/bin/activate": "the environment that this is",
    "make test": "what runs this",
    "make test-slow": "what runs this",
    "make test-proofs": "what runs this",
    "make check": "what runs this",
    "bash scripts/gpu_check.sh": "needs a GPU",
    "export RAY_AUTH_MODE=token": "set for all steps",
    "ray stop": "would end the Ray of everybody on this machine",
    "sudo install -D -o '$USER' -m 400 /dev/stdin /etc/prometheus/nanoray_api_key '<<<' '$KEY'": (
        "needs a Prometheus"
    ),
    "prometheus --config.file=deploy/prometheus.yml": "needs a Prometheus",
}
"""Documented commands that no test runs, and why."""
