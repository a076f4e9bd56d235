"""Load a registered model in a clean process and let it predict, as any program with MLflow could.

Run as a script in an isolated interpreter (``python -I``): nothing of this project is on the path, the code
comes with the model version.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ANSWER = "prediction: "


@dataclass(frozen=True)
class Labelled:
    """What a model said about one text."""

    text: str  # the raw sentence
    label: str  # the likeliest label
    score: float  # its probability


def predict(model: str, texts: Sequence[str], timeout_s: float = 300.0) -> list[Labelled]:
    """Class labels from ``mlflow.pyfunc.load_model(model)`` in a new process.

    Args:
        model: ``models:/NAME@ALIAS`` or any other model URI of MLflow.
        texts: raw sentences.
        timeout_s: how long it may take.

    Raises:
        Data2VecError: the process failed; the message is its last line.
    """
    import os

    from d2v_platform.home import default_tracking_uri
    from d2v_platform.tracking.mlflow_access import configure_environment
    from data2vec.errors import Data2VecError

    configure_environment()
    environment = dict(os.environ) | {"MLFLOW_TRACKING_URI": default_tracking_uri()}
    command = [sys.executable, "-I", str(Path(__file__).resolve()), model, json.dumps(list(texts))]
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                command, cwd=empty, env=environment, capture_output=True, text=True, timeout=timeout_s,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Data2VecError(f"{model} was not loaded within {timeout_s:.0f} s") from None
    for line in done.stdout.splitlines():
        if line.startswith(_ANSWER):
            return [Labelled(*row) for row in json.loads(line.removeprefix(_ANSWER))]
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise Data2VecError(f"{model} cannot be loaded in a clean process: {last}")


def _main(model: str, texts: list[str]) -> None:
    import mlflow
    import pandas as pd

    table = mlflow.pyfunc.load_model(model).predict(pd.DataFrame({"text": texts}))
    rows = [
        [text, str(label), float(score)]
        for text, label, score in zip(texts, table["label"], table["score"], strict=True)
    ]
    print(_ANSWER + json.dumps(rows))


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
