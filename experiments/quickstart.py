"""The main job, small, on nothing but what is installed: ``make demo``.

python experiments/quickstart.py [--data GLUE_FOLDER] [--kill] [--updates N] [--fast]
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "models", ".")]

from d2v_platform.cli import run  # noqa: E402
from experiments.demo.demo import main  # noqa: E402

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
