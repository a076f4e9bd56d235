"""The demo's report: one HTML file with the pretraining's curves, the table, masks and predictions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from markupsafe import Markup, escape

from d2v_platform.home import default_tracking_uri
from d2v_platform.reports.page import Section, drawings, render
from d2v_platform.reports.panels import run_panels
from d2v_platform.reports.run_history import find_run, load_run
from d2v_platform.reports.sweep_history import load_sweep_history
from d2v_platform.reports.sweep_panels import sweep_panels
from d2v_platform.tracking.mlflow_access import open_client
from data2vec.data.tokenizer import TextTokenizer
from data2vec.masking import random_masks

from .screen import HEADER, Screen, notes, row

_CURVES = ("loss", "variance", "rank")  # of pretraining


def write_page(path: Path, screen: Screen, *, run: str, sweeps: Mapping[str, str], masks: Section) -> None:
    """Write it.

    Args:
        path: the file.
        screen: the last screen.
        run: MLflow's id of the pretraining run.
        sweeps: what the weights were -> name of the sweep, whose metric is drawn over the rate.
        masks: of :func:`masks_of`.
    """
    client = open_client(default_tracking_uri())
    panels = [p for p in run_panels([load_run(client, find_run(client, run))]) if p.name in _CURVES]
    over_rates = [
        dataclasses.replace(
            panel, name=f"{panel.name}-{weights}".replace(" ", "-"), title=f"{panel.title}, {weights} weights"
        )
        for weights, sweep in sweeps.items()
        for panel in sweep_panels(load_sweep_history(client, find_run(client, sweep)))
        if panel.name.endswith("-lr")
    ]
    found = screen.predictions
    answers = [(p.sentence, p.label, p.truth, f"{p.score:.2f}") for p in (*found.shown, *found.held_out)]
    text = render(
        title="The demo",
        subtitle=f"{screen.title} · {time.strftime('%Y-%m-%d %H:%M')}",
        notes=notes(screen),
        drawings=drawings([*panels, *over_rates]),
        drawings_title="Curves of pretraining; the metric of each sweep over the learning rate",
        sections=[
            Section("Fine-tuned", [row(screen.task)], HEADER),
            masks,
            Section(f"Predictions of {found.model}", [(line,) for line in found.summary()]),
            Section("Sentence by sentence", answers, ("sentence", "answer", "truth", "confidence")),
        ],
        footer="Written by make demo.",
    )
    path.write_text(text, encoding="utf-8")


def masks_of(sentence: str, tokenizer: TextTokenizer, mask_prob: float, clones: int) -> Section:
    """What the student sees of a sentence in each of its clones, by the rule that pretraining masks with."""
    ids = tokenizer.encode(sentence)
    words = [tokenizer.decode([index]) for index in ids[:-1]]
    masks = random_masks(torch.arange(clones), len(words), mask_prob, "demo").mask_RT.tolist()
    shown = [
        (f"clone {number}", Markup("").join(Markup("▒") * len(w) if hidden else escape(w)
                                            for w, hidden in zip(words, mask, strict=True)))
        for number, mask in enumerate(masks, start=1)
    ]  # fmt: skip
    return Section(f"Masks: {100 * mask_prob:.0f} % is hidden, and predicted from the rest", shown)
