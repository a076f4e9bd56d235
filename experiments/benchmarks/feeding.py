"""How many GPUs one host keeps busy: what a core reads in a second against what a GPU takes in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import audio_input, image_input, text_input
from .measure import Case, Timing

CORES = 16  # of a host


@dataclass(frozen=True)
class Eaten:
    """An update on one H100, compiled or not: ``experiments/README.md`` has the figures."""

    what: str
    units: float  # tokens, images or seconds of audio
    milliseconds: float

    @property
    def per_second(self) -> float:
        """Units a second."""
        return 1e3 * self.units / self.milliseconds


TEXT = Eaten("v2 text base, 16 x 512", 16 * 512, 136)
IMAGES = Eaten("v2 ViT-B, 64 images", 64, 255)
AUDIO = Eaten("v2 audio base, 12 x 5 s", 60, 116)


@dataclass(frozen=True)
class Fed:
    """An input beside its update.

    Attributes:
        name: of the input.
        unit: of the rates.
        read: units a CPU-second.
        eaten: the update.
    """

    name: str
    unit: str
    read: float
    eaten: Eaten

    def cores(self, faster: float = 1.0) -> float:
        """Cores that read for one GPU whose update is so many times as fast."""
        return faster * self.eaten.per_second / self.read

    def gpus(self, faster: float = 1.0) -> float:
        """GPUs of a host; each also has one core for the process that trains on it."""
        return CORES / (1 + self.cores(faster))


def cases() -> list[tuple[Case, Eaten]]:
    """Inputs with the recipes' settings, each beside the update that takes it."""
    images = "v2/base_images_only_task"
    return [
        (text_input.case("v2/base_text_only_task", 16, 512), TEXT),
        (image_input.case(images, 64), IMAGES),
        (image_input.case(images, 64, late=True), IMAGES),
        (audio_input.case("v2/base_audio_only_task"), AUDIO),
    ]


def fed(timing: Timing, eaten: Eaten) -> Fed:
    """What was measured, by CPU-seconds."""
    units = timing.units_per_second * timing.seconds
    name = timing.name.removeprefix("input pipeline, ")
    return Fed(name, timing.unit, units / timing.cpu_seconds, eaten)


def as_markdown(rows: Sequence[Fed]) -> str:
    """The table."""
    out = [
        f"| input | a CPU-second | a GPU takes a second | cores that read for it | GPUs of {CORES} cores | "
        "at twice the speed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    out += [
        f"| {row.name} | {row.read:.3g} {row.unit} | {row.eaten.per_second:.3g} | {row.cores():.2g} | "
        f"{row.gpus():.1f} | {row.gpus(2.0):.1f} |"
        for row in rows
    ]
    return "\n".join(out)
