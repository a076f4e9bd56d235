"""Train a recipe, here or through ``ray job submit --working-dir . -- python experiments/train.py ...``.

python experiments/train.py --config-dir configs/v2 --config-name base_text_only_task task.data=/path/to/data
"""

import sys
from pathlib import Path

# A submitted job has only the uploaded folder's root on its path; the packages lie one level down.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "models")]

from d2v_platform.cli import run, train_command  # noqa: E402

if __name__ == "__main__":
    run(lambda: train_command(sys.argv[1:], "python experiments/train.py"))
