"""Fine-tune on splits of labelled speech, here or through ``ray job submit --working-dir .``.

python experiments/split_sweep.py model.w2v_path=models:/data2vec2-speech-large@champion task.data=/manifests
"""

import sys
from pathlib import Path

# A submitted job has only the uploaded folder's root on its path; the packages lie one level down.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "models")]

from d2v_platform.cli import run, sweep_command  # noqa: E402

if __name__ == "__main__":
    run(lambda: sweep_command(sys.argv[1:], "python experiments/split_sweep.py", default="splits"))
