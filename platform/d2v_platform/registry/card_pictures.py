"""Pictures on a model card: where they go, and the curves of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..tracking.tracker import Tracker

logger = logging.getLogger(__name__)

PICTURE_FOLDER = "card"  # beside the card, in the version
TITLES = {
    "curves": "What the run logged",
    "masks": "Masks of the first update on training images; grey is what the student does not see",
    "verdicts": "The model on images of the validation subset, drawn evenly",
}
_CURVES = ("loss", "variance", "lr")  # panels of the report that belong on a card, besides the scores
_SCORES = ("accuracy", "knn", "linear_probe", "mcc", "wer", "pearson_and_spearman", "acc_and_f1")


def draw_curves(tracker: Tracker, run_id: str, folder: Path) -> Path | None:
    """Loss, variance, learning rate and scores of a run as one picture; ``None`` if it logged none.

    Never fails: a card without them is a card.
    """
    try:
        return _draw_curves(tracker, run_id, folder)
    except Exception as error:
        logger.warning("no curves on the model card: %s: %s", type(error).__name__, error)
        return None


def _draw_curves(tracker: Tracker, run_id: str, folder: Path) -> Path | None:
    from ..reports.drawing import png
    from ..reports.panels import run_panels
    from ..reports.run_history import load_run

    tracker.flush(run_id)
    run = tracker.client.get_run(run_id)
    scores = tuple(f"-{score}" for score in _SCORES)
    panels = [
        panel
        for panel in run_panels([load_run(tracker.client, run)])
        if panel.name in _CURVES or panel.name.endswith(scores)
    ]
    if not panels:
        return None
    path = folder / "curves.png"
    png(panels, run.info.run_name or run_id, path, columns=1)  # MLflow's pages cut off what is wider
    return path


def with_pictures(card: str, pictures: Mapping[str, str]) -> str:
    """A card with a section of pictures before its first section.

    Args:
        card: Markdown.
        pictures: name (see :data:`TITLES`) -> address.
    """
    if not pictures:
        return card
    lines = [f"{TITLES[name]}:\n\n![{name}]({address})" for name, address in pictures.items()]
    section = "\n\n## Pictures\n\n" + "\n\n".join(lines)
    head, mark, rest = card.partition("\n\n## ")
    return head.rstrip() + section + (mark + rest if mark else "\n")
