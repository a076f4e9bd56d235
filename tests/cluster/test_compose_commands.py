"""The containers' own commands as plain processes: a training through Ray, MLflow, PostgreSQL and S3.

No container engine is needed. The real Compose binary resolves ``docker/compose.yaml``; each service's
command, environment and health check is then run as it stands in a network namespace of its own, in which
the services' names lead to one address. Only paths of mounted files and folders are replaced. In the place
of PostgreSQL's image runs the machine's own server, set up with the image's variables.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(2400)]

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SECRETS = ("S3_ADMIN_SECRET", "S3_MLFLOW_SECRET", "S3_JOBS_SECRET", "POSTGRES_PASSWORD", "RAY_AUTH_TOKEN",
           "MLFLOW_ADMIN_PASSWORD", "MLFLOW_JOBS_PASSWORD", "MLFLOW_SECRET_KEY")  # fmt: skip
NAMES = "db s3 mlflow ray-head"


def postgres_bin() -> Path | None:
    """The newest PostgreSQL server of the machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[4]))
    return found[-1].parent if found else None


def needs() -> str | None:
    """What is missing to run the stack here."""
    tools = {name: (BIN / name).is_file() for name in ("docker-compose", "weed", "ray", "mlflow")}
    tools |= {name: shutil.which(name) is not None for name in ("ip", "wget", "setpriv")}
    missing = [name for name, there in tools.items() if not there]
    if os.geteuid() != 0:
        missing.append("root (network namespaces)")
    if postgres_bin() is None:
        missing.append("a PostgreSQL server (apt-get install postgresql)")
    return ", ".join(missing) or None


class Stack:
    """The services of ``compose.yaml``, started in the order of their dependencies."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.namespace = folder, f"d2v-{secrets.token_hex(3)}"
        self.secrets = {name: secrets.token_hex(16) for name in SECRETS}
        config = subprocess.run(
            [BIN / "docker-compose", "-f", REPO / "docker" / "compose.yaml", "config", "--format", "json"],
            env={"PATH": os.environ["PATH"], "WORKERS": "1", "WORKER_CPUS": "2", **self.secrets},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        resolved = json.loads(config.stdout)
        self.services: dict[str, Any] = resolved["services"]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.paths = {"/var/lib/d2v": str(folder / "home")}
        for service in self.services.values():
            for mounted in service.get("configs") or ():
                place = folder / mounted["target"].strip("/").replace("/", "-")
                place.write_text(resolved["configs"][mounted["source"]]["content"])
                self.paths[mounted["target"]] = str(place)
        (folder / "home").mkdir()
        hosts = Path("/etc/netns") / self.namespace
        hosts.mkdir(parents=True)
        (hosts / "hosts").write_text(f"127.0.0.1 localhost {NAMES}\n")
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        self.run(["ip", "link", "set", "lo", "up"])

    def start(self) -> None:
        """All services; each one's dependencies first, until their own health checks pass."""
        begun: set[str] = set()
        while len(begun) < len(self.services):
            ready = [
                name
                for name, service in self.services.items()
                if name not in begun and begun.issuperset(service.get("depends_on") or {})
            ]
            for name in ready:
                service = self.services[name]
                if name == "db":
                    self._start_database()
                elif service.get("restart") == "no":
                    self.run(self._words(service["command"], name), self._environment(name), seconds=120)
                else:
                    self._spawn(name, self._words(service["command"], name), self._environment(name))
                begun.add(name)
            for name in ready:
                if name in self.processes:
                    self.wait_healthy(name)

    def wait_healthy(self, name: str) -> None:
        """Compose's own health check of a service, until it passes."""
        check = self._words(self.services[name]["healthcheck"]["test"][1:], name)
        deadline = time.monotonic() + 300
        while True:
            done = self.run(check, self._environment(name), check=False, seconds=120)
            if done.returncode == 0:
                return
            assert self.processes[name].poll() is None, f"{name} ended\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{name}: {done.stdout}{done.stderr}\n{self.log(name)}"
            time.sleep(0.5)

    def run(
        self,
        words: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        check: bool = True,
        seconds: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """A command beside the services."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *words], env=environment or self._base(), cwd=self.folder,
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def client(self, **more: str) -> dict[str, str]:
        """The environment of the Ray nodes, which a user inside has too."""
        return self._environment("ray-head") | more

    def log(self, name: str) -> str:
        """The end of what a service said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """End every process in the namespace, which are ours alone, and remove it."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        )
        for pid in listed.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)
        shutil.rmtree(Path("/etc/netns") / self.namespace, ignore_errors=True)

    # ---- parts --------------------------------------------------------------------------------------------

    def _start_database(self) -> None:
        """What PostgreSQL's image does with its variables, with the machine's own server."""
        given = self.services["db"]["environment"]
        data, password = self.folder / "pg" / "data", self.folder / "pg" / "password"
        data.parent.mkdir()
        password.write_text(given["POSTGRES_PASSWORD"])
        shutil.chown(data.parent, "postgres")
        shutil.chown(password, "postgres")
        server = postgres_bin()
        assert server is not None
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        user, database = given["POSTGRES_USER"], given["POSTGRES_DB"]
        self.run([*as_postgres, server / "initdb", "-D", data, "-U", user, f"--pwfile={password}",
                  "--auth=scram-sha-256"], seconds=120)  # fmt: skip
        command = [*as_postgres, server / "postgres", "-D", data, "-h", "*", "-k", data.parent]
        self._spawn("db", [str(word) for word in command], self._base())
        access = self._base() | {"PGPASSWORD": given["POSTGRES_PASSWORD"]}
        deadline = time.monotonic() + 60
        while self.run(["createdb", "-h", "db", "-U", user, database], access, check=False).returncode:
            assert time.monotonic() < deadline, self.log("db")
            time.sleep(0.3)

    def _spawn(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *words], env=environment, cwd=self.folder,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _words(self, command: Sequence[str], name: str) -> list[str]:
        words = ["weed", *command] if name == "s3" and command[0].startswith("-") else list(command)
        return [self._moved(word.replace("-dir=/data", f"-dir={self._data()}")) for word in words]

    def _data(self) -> Path:
        data = self.folder / "objects"
        data.mkdir(exist_ok=True)
        return data

    def _environment(self, name: str) -> dict[str, str]:
        given = self.services[name].get("environment") or {}
        # Nodes of containers have a /tmp each.
        place = self.folder / ("w" if name == "ray-worker" else "h")
        place.mkdir(exist_ok=True)
        return (
            self._base()
            | {key: self._moved(value) for key, value in given.items()}
            | {"RAY_TMPDIR": str(place)}
        )

    def _moved(self, text: str) -> str:
        for inside, here in self.paths.items():
            text = text.replace(inside, here)
        return text

    def _base(self) -> dict[str, str]:
        """What the image sets, and this machine's libraries; nothing else of the test's environment."""
        kept = {key: os.environ[key] for key in ("PYTHONPATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
                if key in os.environ}  # fmt: skip
        return {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.folder), "PYTHONUNBUFFERED": "1",
                "MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_memory_monitor_refresh_ms": "0", "RAY_agent_register_timeout_ms": "300000",
                "RAY_raylet_start_wait_time_s": "300", "OMP_NUM_THREADS": "1", **kept}  # fmt: skip


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    missing = needs()
    if missing:
        pytest.skip(f"the containers' commands cannot be run here without {missing}")
    folder = Path(tempfile.mkdtemp(prefix="dc", dir="/tmp"))  # short: Ray's sockets allow 107 bytes of path
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    running = Stack(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


# Inside the stack, with a client's environment: what MLflow and S3 hold of the run.
LOOK = """
import json, boto3
from d2v_platform.tracking.mlflow_access import configure_environment
configure_environment()
import mlflow
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("data2vec-text")
run, = client.search_runs([experiment.experiment_id])
version = client.get_model_version_by_alias("tiny-text", "champion")
points = client.get_metric_history(run.info.run_id, "train/loss")
s3 = boto3.client("s3")
keys = {name: [item["Key"] for item in s3.list_objects_v2(Bucket=name).get("Contents", ())]
        for name in ("d2v", "mlflow")}
vectors = mlflow.pyfunc.load_model("models:/tiny-text@champion")
print(json.dumps({"status": run.info.status, "run": run.info.run_id,
                  "artifacts": experiment.artifact_location,
                  "steps": [p.step for p in points], "version_run": version.run_id, "keys": keys}))
"""


def test_a_training_goes_through_the_whole_stack(stack: Stack, tiny_text: Path) -> None:
    train = [
        "d2v", "train", "tiny/text_pretraining", f"task.data={tiny_text}", "platform.run_name=contained",
        "platform.storage=s3://d2v/runs", "platform.num_workers=2", "platform.register_as=tiny-text",
        "platform.alias=champion", "model.depth=1", "model.embed_dim=32", "model.num_heads=2",
        "model.average_top_k_layers=1", "model.modalities.text.decoder.decoder_dim=16",
        "task.tokens_per_sample=32", "common.log_interval=2", "optimization.max_update=8",
        "optimizer.groups.default.lr_scheduler.warmup_updates=2", "checkpoint.save_interval_updates=4",
    ]  # fmt: skip
    submit = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", *train]
    refused = stack.run(submit, stack.client(RAY_AUTH_TOKEN="0" * 32), check=False, seconds=120)
    assert refused.returncode != 0 and "uthenticat" in refused.stdout + refused.stderr
    done = stack.run(submit, stack.client(), check=False, seconds=900)
    told = f"{done.stdout}\n{done.stderr}\n{stack.log('ray-head')}\n{stack.log('ray-worker')}"
    assert done.returncode == 0, told
    assert "registered as models:/tiny-text/1 (tiny-text@champion)" in done.stdout, told

    seen = json.loads(
        stack.run(
            [sys.executable, "-c", LOOK],
            # The bucket of MLflow is not for jobs.
            stack.client(AWS_ACCESS_KEY_ID="admin", AWS_SECRET_ACCESS_KEY=stack.secrets["S3_ADMIN_SECRET"]),
            seconds=600,
        ).stdout.splitlines()[-1]
    )
    assert seen["status"] == "FINISHED" and seen["version_run"] == seen["run"]
    assert seen["steps"] == [2, 4, 6, 8]
    assert seen["artifacts"].startswith("mlflow-artifacts:/")
    runs = [key for key in seen["keys"]["d2v"] if key.startswith(f"runs/{seen['run']}/")]
    assert any(key.endswith("update_00000008/manifest.json") or "update_8/" in key for key in runs), runs
    assert any(key.endswith("model.safetensors") for key in seen["keys"]["mlflow"])
    # Clients outside cannot reach the object store: no signed links to it, everything through the server.
    assert "/presigned/" not in (stack.folder / "mlflow.log").read_text()
    # All processes trained on the worker's node: the head offers no CPUs.
    assert "2 Ray Train workers" in done.stdout, told


def test_logins_and_host_names_are_checked(stack: Stack) -> None:
    ask = """
import sys, urllib.error, urllib.request
request = urllib.request.Request("http://mlflow:5000/api/2.0/mlflow/" + sys.argv[1],
                                 headers=dict(word.split("=", 1) for word in sys.argv[2:]))
try:
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""

    def status(*headers: str, path: str = "experiments/search?max_results=1") -> str:
        return stack.run([sys.executable, "-c", ask, path, *headers], seconds=60).stdout.strip()

    import base64

    login = base64.b64encode(f"admin:{stack.secrets['MLFLOW_ADMIN_PASSWORD']}".encode()).decode()
    jobs = base64.b64encode(f"jobs:{stack.secrets['MLFLOW_JOBS_PASSWORD']}".encode()).decode()
    wrong = base64.b64encode(b"admin:wrong").decode()
    assert status() == "401"
    assert status(f"Authorization=Basic {wrong}") == "401"
    assert status(f"Authorization=Basic {login}") == "200"
    assert status(f"Authorization=Basic {jobs}") == "200"
    for name, answer in ((login, "200"), (jobs, "403")):
        assert status(f"Authorization=Basic {name}", path="users/get?username=admin") == answer
    assert status(f"Authorization=Basic {login}", "Host=evil.example:5000") == "403"


def test_runs_and_logins_are_in_postgresql_and_a_report_reads_them(stack: Stack) -> None:
    access = stack.client(PGPASSWORD=stack.secrets["POSTGRES_PASSWORD"])

    def query(text: str) -> str:
        psql = ["psql", "-h", "db", "-U", "mlflow", "-d", "mlflow", "-tAc", text]
        return stack.run(psql, access).stdout.strip()

    assert query("select status from runs where name = 'contained'") == "FINISHED"
    assert query("select username from users where is_admin") == "admin"
    assert stack.run(
        ["psql", "-h", "db", "-U", "mlflow", "-d", "mlflow", "-tAc", "select 1"],
        stack.client(PGPASSWORD="wrong"), check=False,
    ).returncode != 0  # fmt: skip
    out = stack.folder / "report"
    stack.run(["d2v", "report", "contained", "--out", str(out)], stack.client(), seconds=600)
    assert "EMA decay of the teacher" in (out / "report.html").read_text()
