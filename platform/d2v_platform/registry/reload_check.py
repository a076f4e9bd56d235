"""Does a registered version, loaded in a clean process, give the outputs that were recorded at its making?

``check.json`` in a model folder holds a few inputs and the outputs of the model that was saved. The gate of
the registry runs this file as a script in an isolated interpreter (``python -I``): no project on the path,
no pickle; only what the version itself carries and installed libraries.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECK_FILE = "check.json"
FORMAT = 1
_ANSWER = "reload-check: "
# Between machines and versions of torch the order of float sums differs; a wrong weight differs far more.
RTOL, ATOL = 1e-3, 1e-4


def reload_problem(package: Path, check: Path, timeout_s: float = 300.0) -> str | None:
    """Load an MLflow model folder in a clean process and compare; ``None`` if it reproduces its outputs.

    Args:
        package: the folder with ``MLmodel``.
        check: its ``check.json``.
        timeout_s: a load that takes longer counts as failed.
    """
    if not check.is_file():
        return f"it holds no {CHECK_FILE}, so its outputs cannot be compared; register it again"
    keep = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ
    }
    environment = keep | {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-I", str(Path(__file__).resolve()), str(package), str(check)]
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                command,
                cwd=empty,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"a clean process did not load it within {timeout_s:.0f} s"
    for line in done.stdout.splitlines():
        if line.startswith(_ANSWER):
            return json.loads(line.removeprefix(_ANSWER))
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"a clean process cannot load it: {last}"


def _compare(package: str, check_path: str) -> str | None:
    import mlflow
    import numpy as np
    import pandas as pd

    check = json.loads(Path(check_path).read_text(encoding="utf-8"))
    model = mlflow.pyfunc.load_model(package)
    name = "audio" if "audio" in check else "text"
    if "columns" in check:
        inputs = pd.DataFrame(check["columns"])
    elif "files" in check:
        inputs = pd.DataFrame({"file": [base64.b64decode(text) for text in check["files"]]})
    else:
        inputs = pd.DataFrame({name: check["audio" if "audio" in check else "texts"]})
    table = model.predict(inputs, params={"output": check["output"]})
    if check["output"] == "emissions":
        got = np.array([np.array(rows).ravel().tolist() for rows in table["emissions"]])
    elif check["output"] == "log_prob":
        got = table[["log_prob"]].to_numpy()
    elif check["output"] == "embedding":
        got = np.array(table["embedding"].tolist())
    else:
        columns = [name for name in table.columns if name.startswith("score_")] or ["score"]
        got = table[columns].to_numpy()
    expected = np.array(check["expected"])
    if got.shape != expected.shape:
        return f"its outputs have shape {got.shape}, recorded were {expected.shape}"
    if not np.allclose(got, expected, rtol=check["rtol"], atol=check["atol"]):
        return (
            f"loaded in a clean process it gives other outputs than recorded "
            f"(largest difference {np.abs(got - expected).max():.3g})"
        )
    return None


if __name__ == "__main__":
    print(_ANSWER + json.dumps(_compare(sys.argv[1], sys.argv[2])))
