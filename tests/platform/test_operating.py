"""Commands that open a cluster, as documents and scripts give them; stand-ins note the calls."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

REPO = Path(__file__).resolve().parents[2]

# A stand-in of any program: notes its name, its words and the environment that decides who may enter.
STAND_IN = """#!{python}
import json, os, sys, time
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ADDRESS")
words = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
with open({log!r}, "a") as log:
    seen = {{name: os.environ[name] for name in names if name in os.environ}}
    print(json.dumps([words, seen]), file=log)
stopped = {log!r} + ".stopped"
if words.startswith("ray get-auth-token"):
    os.makedirs(os.path.expanduser("~/.ray"), exist_ok=True)
    open(os.path.expanduser("~/.ray/auth_token"), "w").write("t" * 64)
elif words.startswith("scontrol show hostnames"):
    print(os.environ["NODES"])
elif words.endswith("hostname -I"):
    print("10.0.0.1 172.17.0.1")
elif words.startswith("ray job stop"):
    open(stopped, "w").close()
elif words.startswith("ray job submit") and "lasting" in words:
    until = time.monotonic() + 30
    while not os.path.exists(stopped) and time.monotonic() < until:
        time.sleep(0.05)
    sys.exit(1)
elif words.endswith("failing"):
    sys.exit(3)
elif words.startswith("python -c import ray") and len(os.environ["NODES"].split()) > 1:
    until = time.monotonic() + 20  # it waits for the other nodes
    while "ray start --address" not in open({log!r}).read() and time.monotonic() < until:
        time.sleep(0.05)
elif words.startswith("ray health-check") and "dead" in os.environ["NODES"]:
    sys.exit(1)
"""


def stand_ins(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which the programs are stand-ins; what is called goes to ``folder/calls``."""
    (folder / "bin").mkdir()
    for name in names:
        program = folder / "bin" / name
        program.write_text(STAND_IN.format(python=sys.executable, log=str(folder / "calls")))
        program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder)}


def calls(folder: Path) -> list[Any]:
    """What was called, in order: the words of each and what its environment holds."""
    log = folder / "calls"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_the_readmes_head_asks_for_a_token_and_keeps_to_this_machine(tmp_path: Path) -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "ray start" in block]
    subprocess.run(["bash", "-euc", block], env=stand_ins(tmp_path, "ray"), cwd=tmp_path, check=True)
    made, start, *jobs = calls(tmp_path)
    assert made[0] == "ray get-auth-token --generate" and start[0] == "ray start --head"
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    assert start[1] == {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    assert jobs
    for words, environment in jobs:
        assert words.startswith("ray job submit") and environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_ADDRESS"] == "http://127.0.0.1:8265"


# ---- Slurm ------------------------------------------------------------------------------------------------


def slurm(folder: Path, nodes: str, *training: str) -> subprocess.Popen[str]:
    """The batch script as Slurm starts it, on the first of the nodes."""
    allocation = {
        "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "compressed", "SLURM_CPUS_ON_NODE": "64",
        "SLURM_GPUS_ON_NODE": "8", "NODES": nodes,
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", str(REPO / "docker" / "slurm" / "train.sbatch"), *training],
        env=stand_ins(folder, "srun", "scontrol", "ray", "python") | allocation,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_the_batch_script_starts_a_cluster_with_a_token_and_submits(tmp_path: Path) -> None:
    running = slurm(tmp_path, "n1\nn2\nn3", "d2v", "train", "v2/base", "task.data=/a b")
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 0, said
    seen = calls(tmp_path)
    step = "srun --overlap --cpu-bind=none --cpus-per-task=64"
    assert [words for words, _ in seen[:2]] == [
        "scontrol show hostnames compressed",
        f"{step} --nodes=1 --ntasks=1 --nodelist=n1 hostname -I",
    ]
    rest = {words for words, _ in seen[2:]}
    has = "--num-cpus=64 --num-gpus=8 --disable-usage-stats --block"
    head = (
        f"{step} --nodes=1 --ntasks=1 --nodelist=n1 ray start --head --node-ip-address=10.0.0.1 "
        f"--port=6379 --dashboard-host=127.0.0.1 --dashboard-port=8265 {has}"
    )
    workers = f"{step} --nodes=2 --ntasks=2 --exclude=n1 ray start --address=10.0.0.1:6379 {has}"
    assert {head, workers} <= rest
    order = [next(i for i, (words, _) in enumerate(seen) if words.startswith(start)) for start in
             ("ray health-check --address 10.0.0.1:6379", "python -c import ray; ray.init('10.0.0.1:6379')",
              "ray job submit", f"{step} --ntasks-per-node=1 rm -rf /tmp/d2v-77")]  # fmt: skip
    assert order == sorted(order)
    assert "!= 3)" in seen[order[1]][0]
    assert seen[order[2]][0] == (
        "ray job submit --submission-id d2v-77-0 -- d2v train v2/base task.data=/a b"
    )
    assert seen[order[2]][1]["RAY_ADDRESS"] == "http://127.0.0.1:8265"
    # One secret for all, which `ps` and Slurm's records do not show.
    (token,) = {environment.get("RAY_AUTH_TOKEN") for words, environment in seen}
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert all(environment["RAY_AUTH_MODE"] == "token" for _, environment in seen)
    assert token not in said + "".join(words for words, _ in seen)
    assert not any("requeue" in words for words, _ in seen)


def test_the_batch_script_on_one_node_says_how_the_training_ended(tmp_path: Path) -> None:
    running = slurm(tmp_path, "n1", "d2v", "train", "failing")
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 3, said
    assert not any("--address=10.0.0.1:6379 --num" in words for words, _ in calls(tmp_path))
    assert calls(tmp_path)[-1][0].endswith("rm -rf /tmp/d2v-77")


def test_the_batch_script_waits_for_no_head_that_ended(tmp_path: Path) -> None:
    running = slurm(tmp_path, "dead", "d2v", "train")
    said = running.communicate(timeout=60)[0]  # it would wait for five minutes
    assert running.returncode == 1 and "a step of Ray ended" in said
    assert not any(words.startswith("ray job") for words, _ in calls(tmp_path))


def test_before_the_time_limit_the_job_is_stopped_and_requeued(tmp_path: Path) -> None:
    running = slurm(tmp_path, "n1\nn2", "d2v", "train", "lasting")
    deadline = time.monotonic() + 60
    while not any(words.startswith("ray job submit") for words, _ in calls(tmp_path)):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    said = running.communicate(timeout=60)[0]
    ends = [words for words, _ in calls(tmp_path)][-3:]
    assert ends[:2] == ["ray job stop d2v-77-0", "scontrol requeue 77"], said
    assert ends[2].endswith("rm -rf /tmp/d2v-77")


# ---- KubeRay ----------------------------------------------------------------------------------------------

KUBERAY = REPO / "docker" / "kuberay"


def manifest(name: str) -> Any:
    return yaml.safe_load((KUBERAY / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def schema() -> Any:
    """What `make lint` holds the files against."""
    return yaml.safe_load((REPO / ".ci" / "kuberay-schema.yaml").read_text(encoding="utf-8"))


def test_the_schema_takes_the_files_and_leaves_nothing_open(schema: Any) -> None:
    validator = Draft202012Validator(schema)
    for file in sorted(KUBERAY.glob("*.yaml")):
        assert [error.message for error in validator.iter_errors(manifest(file.stem))] == [], file.name

    def closed(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and node is not schema:
                assert node.get("additionalProperties", True) is not True, node
            assert "properties" not in node or node.get("additionalProperties") is False, node
            for value in node.values():
                closed(value)
        elif isinstance(node, list):
            for value in node:
                closed(value)

    closed(schema)


@pytest.mark.parametrize(
    ("path", "wrong", "value"),
    [
        (["spec"], "entrypointt", "d2v"),
        (["spec"], "backofLimit", 3),
        (["spec"], "backoffLimit", "three"),
        (["spec", "rayClusterSpec"], "enableInTreeAutoscalling", True),
        (["spec", "rayClusterSpec", "authOptions"], "mode", "tokens"),
        (["spec", "rayClusterSpec", "authOptions"], "secret", "d2v-ray-token"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0], "maxReplica", 4),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec"], "toleration", []),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0], "volumeMount", []),
        (
            ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 0, "secret"],
            "name2",
            "x",
        ),
    ],
)
def test_a_misspelt_field_is_found(schema: Any, path: list[Any], wrong: str, value: Any) -> None:
    document = manifest("rayjob")
    node = document
    for step in path:
        node = node[step]
    node[wrong] = value
    assert not Draft202012Validator(schema).is_valid(document)


def test_a_job_gets_the_cluster_that_stays(tmp_path: Path) -> None:
    assert manifest("rayjob")["spec"]["rayClusterSpec"] == manifest("raycluster")["spec"]


def test_pods_have_a_token_no_powers_and_secrets_as_files() -> None:
    cluster = manifest("raycluster")["spec"]
    assert cluster["authOptions"]["mode"] == "token" and cluster["authOptions"]["secretName"]
    assert cluster["rayVersion"] == metadata.version("ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    group = cluster["workerGroupSpecs"][0]
    assert cluster["enableInTreeAutoscaling"] and group["minReplicas"] < group["maxReplicas"]
    server = next(item for item in manifest("mlflow")["items"] if item["kind"] == "Deployment")
    for template in (cluster["headGroupSpec"]["template"], group["template"], server["spec"]["template"]):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
        secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        assert secrets and all(secret["defaultMode"] == 0o440 for secret in secrets)
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]


def test_every_secret_of_the_guide_is_one_that_the_pods_mount() -> None:
    guide = (REPO / "docker" / "README.md").read_text(encoding="utf-8")
    made = {name: set(re.findall(r"--from-(?:file|literal)=([\w-]+)", rest)) for name, rest in re.findall(
        r"kubectl create secret generic (\S+)((?:.|\\\n)*?)\n(?!\s)", guide)}  # fmt: skip
    cluster = manifest("raycluster")["spec"]
    items = {item["key"] for volume in cluster["headGroupSpec"]["template"]["spec"]["volumes"]
             for item in volume.get("secret", {}).get("items", ())}  # fmt: skip
    server = yaml.safe_dump(manifest("mlflow"))
    assert made.keys() == {cluster["authOptions"]["secretName"], "d2v-jobs", "d2v-mlflow"}
    assert made["d2v-ray-token"] == {"auth_token"} and made["d2v-jobs"] == items
    assert made["d2v-mlflow"] == set(re.findall(r"/etc/d2v/([\w-]+)", server))
