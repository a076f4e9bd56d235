"""Decode subsets with a speech model, here or through ``ray job submit --working-dir .``.

python experiments/infer.py task.data=/manifests common_eval.path=models:/NAME@ALIAS dataset.gen_subset=dev
"""

import sys
from pathlib import Path

# A submitted job has only the uploaded folder's root on its path; the packages lie one level down.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "models")]

from d2v_platform.cli import infer_command, run  # noqa: E402

if __name__ == "__main__":
    run(lambda: infer_command(sys.argv[1:], "python experiments/infer.py"))
