"""Launches of one run that kill themselves with SIGKILL at given moments, then launches to the end.

Run as a script with a JSON file: ``folder`` and ``name`` of the recipe, ``overrides``, ``log``, ``kills``: a
list of ``{"at": MOMENT, "update": N}`` or a full disk (:func:`filled`). Everything is imported once; each
launch is a fork of this process, so that a dozen of them cost little more than one. Prints the exit status of
each launch; the last one, unless ``"finish": false``, is not killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2v_platform.launch import launch
from d2v_platform.recipe.compose import compose
from d2v_platform.storage import s3
from d2v_platform.tracking import mlflow_access
from d2v_platform.training import checkpoint, sharding
from d2v_platform.training.checkpoint import CheckpointStore
from d2v_platform.training.train_loop import TrainingLoop


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_update(update: int) -> None:
    """Between two updates."""
    honest = TrainingLoop._update

    def updated(self: TrainingLoop, *arguments: Any) -> None:
        if self.state.update >= update:
            die()
        honest(self, *arguments)

    TrainingLoop._update = updated


def in_backward(update: int) -> None:
    """Inside an update, after the forward pass."""
    honest = sharding.Replicated.reduce

    def reduced(*arguments: Any) -> None:
        if current[0].state.update >= update:
            die()
        honest(*arguments)

    current: list[TrainingLoop] = []
    honest_init = TrainingLoop.__init__

    def made(self: TrainingLoop, *arguments: Any) -> None:
        honest_init(self, *arguments)
        current.append(self)

    TrainingLoop.__init__ = made
    sharding.Replicated.reduce = reduced


def in_write(update: int) -> None:
    """While a checkpoint is written: its tensors are on disk, its manifest is not."""
    honest = checkpoint.manifest_entry

    def described(path: Path) -> dict[str, Any]:
        if path.parent.name.startswith(f".update_{update:08d}"):
            die()
        return honest(path)

    checkpoint.manifest_entry = described


def before_publish(update: int) -> None:
    """The manifest is written, the folder not yet renamed."""
    honest = CheckpointStore.publish

    def published(self: CheckpointStore, beside: Path, number: int) -> Path:
        if number == update:
            die()
        return honest(self, beside, number)

    CheckpointStore.publish = published


def in_prune(update: int) -> None:
    """While an older checkpoint, from this update on, is deleted: its manifest is gone, its files are not."""
    honest = shutil.rmtree

    def removed(path: Any, *arguments: Any, **options: Any) -> None:
        number = checkpoint.update_of(Path(path).name)
        if number is not None and number >= update:
            die()
        honest(path, *arguments, **options)

    checkpoint.shutil.rmtree = removed  # pyright: ignore[reportAttributeAccessIssue]


def in_upload(update: int) -> None:
    """While a checkpoint is uploaded: one file of it is there."""
    honest = s3.S3FileSystem.put_file
    sent: list[str] = []

    def put(self: Any, lpath: Any, rpath: str, *arguments: Any, **options: Any) -> None:
        if f"update_{update:08d}/" in rpath:
            if sent:
                die()
            sent.append(rpath)
        honest(self, lpath, rpath, *arguments, **options)

    s3.S3FileSystem.put_file = put


def _signalled(number: int) -> Callable[[int], None]:
    """Between two updates, a signal that the launch handles."""

    def moment(update: int) -> None:
        honest = TrainingLoop._update

        def updated(self: TrainingLoop, *arguments: Any) -> None:
            if self.state.update == update:
                os.kill(os.getpid(), number)
            honest(self, *arguments)

        TrainingLoop._update = updated

    return moment


def at_end(update: int) -> None:
    """When training is over and the model is being exported."""

    def finished(self: TrainingLoop, *arguments: Any) -> Any:
        if self.state.update >= update:
            die()

    TrainingLoop.finish = finished


MOMENTS: dict[str, Callable[[int], None]] = {
    f.__name__: f for f in (before_update, in_backward, in_write, before_publish, in_prune, in_upload, at_end)
} | {"sigint": _signalled(signal.SIGINT), "sigterm": _signalled(signal.SIGTERM)}


@contextlib.contextmanager
def filled(kill: dict[str, Any] | None) -> Iterator[None]:
    """``{"fill": FOLDER, "leave": BYTES}``: the disk of a folder has only so much room during the launch."""
    if kill is None or "fill" not in kill:
        yield
        return
    ballast = Path(kill["fill"]) / "ballast"
    free = shutil.disk_usage(kill["fill"]).free
    ballast.write_bytes(b"x" * max(0, free - kill["leave"]))
    yield
    ballast.unlink()


def fork_launch(order: dict[str, Any], kill: dict[str, Any] | None) -> int:
    """One launch; returns the status as ``os.waitstatus_to_exitcode`` gives it."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from d2v_platform.cli import run

        if kill is not None and "at" in kill:
            MOMENTS[kill["at"]](kill["update"])
        run(lambda: launch(compose(order["name"], order["overrides"], order["folder"])))
        # A compiler that nobody asked for would cost every worker's start four CPU-seconds.
        assert "torch._dynamo" not in sys.modules
        os._exit(0)
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(int(str(end.code)))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    """Obey the file; one JSON list of statuses on standard output."""
    order = json.loads(Path(sys.argv[1]).read_text())
    mlflow_access.configure_environment()
    import mlflow  # noqa: F401 - once, before the forks

    kills = [*order["kills"], *([None] if order.get("finish", True) else [])]
    statuses: list[int] = []
    for kill in kills:
        with filled(kill):
            statuses.append(fork_launch(order, kill))
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
