"""``d2v ui``: MLflow's pages over the runs and registered models of this installation."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from data2vec.errors import Data2VecError

from ..home import default_tracking_uri, sqlite_path
from ..redaction import redact_text
from .mlflow_access import configure_environment, is_server


def ui_command(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """MLflow's pages over your runs and registered models.

    Where MLFLOW_TRACKING_URI names a server, its address is printed: it has the pages.
    """
    uri = default_tracking_uri()
    if is_server(uri):
        typer.echo(f"ui: your MLflow server is {redact_text(uri)}")
        return
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        raise Data2VecError(f"there is no {database} yet; run a training or 'make demo' first")
    typer.echo(f"ui: http://127.0.0.1:{port}/#/models (Ctrl-C ends it)")
    sys.stdout.flush()
    configure_environment()
    words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not as an argument: a database's password would show in ps
    os.execv(sys.executable, [sys.executable, *words])
