"""``d2v env``: what other programs need to know to find the runs and models of this installation."""

from __future__ import annotations

import shlex

import typer

from .home import d2v_home, default_tracking_uri
from .redaction import redact_text


def env_command() -> None:
    """Shell lines that let other programs find your runs and models; never a secret.

    With them mlflow.pyfunc.load_model("models:/NAME@ALIAS") works from any folder.
    """
    found = {"D2V_HOME": str(d2v_home()), "MLFLOW_TRACKING_URI": default_tracking_uri()}
    for name, value in found.items():
        if redact_text(value) != value:
            typer.echo(f"# {name} holds a secret and is not printed: set it by hand")
        else:
            typer.echo(f"export {name}={shlex.quote(value)}")
