"""The files that the authors of data2vec published, and which of them (and which recipe) a file looks like.

Addresses and terms are those of the readmes; sizes and checksums are not published, so a checksum is the
user's own. v1 and v2 both call a file ``nlp_base.pt``: here every name starts with its generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import ModalityKind
from ..families import generation_of, modality_of, shape_of
from .imported import ImportedModel

_HOST = "https://dl.fbaipublicfiles.com/fairseq"
LETTERS_URL = f"{_HOST}/wav2vec/dict.ltr.txt"
BEIT_REPOSITORY = "https://github.com/facebookresearch/data2vec_vision/tree/main/beit"
_GPT2 = f"{_HOST}/gpt2_bpe"


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One published checkpoint."""

    name: str  # generation and file name, such as data2vec2/base_libri.pt
    modality: ModalityKind
    size: str  # base, large, huge
    finetuning: str | None  # the labelled data, None if pretrained only
    dataset: str  # what it was pretrained on
    licence: str
    url: str | None  # None: only the repository's page is known
    recipe: str | None  # ours, under the reference's relative name; None if the reference has no file for it
    depth: int  # blocks; v2: shared ones
    prenet: int = 0  # v2: blocks before the shared ones
    width: int = 768
    patch: int | None = None  # images
    dictionary_url: str | None = None  # what the file does not hold itself

    @property
    def generation(self) -> int:
        """1 or 2."""
        return 2 if self.name.startswith("data2vec2/") else 1

    @property
    def kind(self) -> str:
        """Kind of the model folder that it becomes."""
        if self.finetuning is None:
            return "pretrained"
        return {"IMAGE": "image_classifier", "AUDIO": "ctc", "TEXT": "sentence_classifier"}[self.modality]


_NC, _MIT = "CC-BY-NC 4.0 (vision models)", "MIT"
_LIBRI, _LIGHT, _BOOKS, _INET = "LibriSpeech 960 h", "Libri-light 60k h", "Books + Wikipedia", "ImageNet-1K"


def _vision_2(size: str, depth: int, width: int, prenet: int, patch: int, recipe: str) -> list[PublishedFile]:
    def file(ending: str, finetuning: str | None, recipe: str) -> PublishedFile:
        return PublishedFile(
            name=f"data2vec2/{size}_imagenet{ending}.pt", modality="IMAGE", size=size, finetuning=finetuning,
            dataset=_INET, licence=_NC, url=f"{_HOST}/data2vec2/{size}_imagenet{ending}.pt", recipe=recipe,
            depth=depth, prenet=prenet, width=width, patch=patch,
        )  # fmt: skip

    tuned = {"base": "mae_imagenet_clean"}.get(size, f"mae_imagenet_{size}_clean")
    return [file("", None, f"v2/{recipe}"), file("_ft", _INET, f"vision/finetuning/{tuned}")]


def _speech(
    name: str, size: str, finetuning: str | None, recipe: str | None, depth: int, prenet: int = 0
) -> PublishedFile:
    folder, _, file = name.partition("/")
    return PublishedFile(
        name=name, modality="AUDIO", size=size, finetuning=finetuning,
        dataset=_LIBRI if size == "base" else _LIGHT, licence=_MIT, url=f"{_HOST}/{folder}/{file}",
        recipe=recipe, depth=depth, prenet=prenet, width=768 if size == "base" else 1024,
        dictionary_url=LETTERS_URL if finetuning else None,
    )  # fmt: skip


def _text(generation: str, recipe: str) -> PublishedFile:
    return PublishedFile(
        name=f"{generation}/nlp_base.pt", modality="TEXT", size="base", finetuning=None, dataset=_BOOKS,
        licence=_MIT, url=f"{_HOST}/{generation}/nlp_base.pt", recipe=recipe, depth=12,
        dictionary_url=f"{_GPT2}/dict.txt",
    )  # fmt: skip


PUBLISHED: tuple[PublishedFile, ...] = (
    *_vision_2("base", 10, 768, 2, 16, "base_images_only_task"),
    *_vision_2("large", 24, 1024, 0, 16, "large_images_only_task"),
    *_vision_2("huge", 32, 1280, 0, 14, "huge_images14_only_task"),
    _speech("data2vec2/base_libri.pt", "base", None, "v2/base_audio_only_task", 12),
    _speech("data2vec2/base_libri_960h.pt", "base", "960 h", None, 12),
    _speech("data2vec2/large_vox.pt", "large", None, "v2/large_audio_only_task", 16, 8),
    _speech("data2vec2/large_vox_960h.pt", "large", "960 h", None, 16, 8),
    _text("data2vec2", "v2/base_text_only_task"),
    _speech("data2vec/audio_base_ls.pt", "base", None, "audio/pretraining/base_librispeech", 12),
    _speech("data2vec/audio_base_ls_10m.pt", "base", "10 min", "wav2vec/finetuning/base_10m", 12),
    _speech("data2vec/audio_base_ls_100h.pt", "base", "100 h", "wav2vec/finetuning/base_100h", 12),
    _speech("data2vec/audio_base_ls_960h.pt", "base", "960 h", "wav2vec/finetuning/base_960h", 12),
    _speech("data2vec/vox_pretrained.pt", "large", None, "audio/pretraining/large_librilight", 24),
    _speech("data2vec/vox_10m.pt", "large", "10 min", "wav2vec/finetuning/vox_10m", 24),
    _speech("data2vec/vox_100h.pt", "large", "100 h", "wav2vec/finetuning/vox_100h", 24),
    _speech("data2vec/vox_960h.pt", "large", "960 h", "wav2vec/finetuning/vox_960h", 24),
    _text("data2vec", "text/pretraining/base"),
)
"""The twenty files that the two readmes link to."""

BEIT_FILES: tuple[PublishedFile, ...] = tuple(
    PublishedFile(
        name=f"data2vec_vision/{name}", modality="IMAGE", size=size, finetuning=finetuning, dataset=_INET,
        licence=_NC, url=None, recipe=recipe, depth=depth, width=width, patch=16,
    )
    for name, size, finetuning, depth, width, recipe in (
        ("base_800", "base", None, 12, 768, "vision/pretraining/base_imagenet_d2v1"),
        ("large_800", "large", None, 24, 1024, None),
        ("large_1600", "large", None, 24, 1024, None),
        ("finetuned_base", "base", _INET, 12, 768, None),
        ("finetuned_large", "large", _INET, 24, 1024, None),
    )
)  # fmt: skip
"""The files of the data2vec_vision repository, which the v1 readme links to; their addresses stand there."""

# What tells the CTC recipes apart in the configuration inside a file: updates, mask_prob, mask_length,
# mask_channel_prob, freeze_finetune_updates.
_CTC_RECIPES: dict[str, tuple[int, float, int, float, int]] = {
    "base_10m": (13000, 0.65, 10, 0.25, 10000), "base_10h": (20000, 0.65, 10, 0.5, 10000),
    "base_100h": (80000, 0.65, 10, 0.5, 0), "base_960h": (320000, 0.5, 10, 0.1, 0),
    "vox_10m": (13000, 0.65, 10, 0.25, 10000), "vox_1h": (13000, 0.75, 10, 0.25, 10000),
    "vox_10h": (20000, 0.75, 10, 0.25, 10000), "vox_100h": (80000, 0.5, 10, 0.5, 10000),
    "vox_960h": (320000, 0.5, 10, 0.25, 10000), "vox_10m_2": (10000, 0.4, 3, 0.25, 100),
    "vox_1h_2": (60000, 0.65, 5, 0.25, 100), "vox_10h_2": (60000, 0.5, 5, 0.1, 100),
    "vox_100h_2": (100000, 0.4, 5, 0.1, 100), "vox_960h_2": (200000, 0.4, 5, 0.1, 100),
    "vox_960h_2_aws": (200000, 0.3, 5, 0.1, 100),
}  # fmt: skip


def candidates(imported: ImportedModel) -> list[PublishedFile]:
    """The published files of the same generation, kind and architecture."""
    config = imported.model_config
    found, kind = shape_of(config), (generation_of(config), modality_of(config), imported.kind)
    return [
        file
        for file in (*PUBLISHED, *BEIT_FILES)
        if (file.generation, file.modality, file.kind) == kind
        and (file.depth, file.prenet, file.width, file.patch) == found
    ]


def recipe_of(imported: ImportedModel, cfg: Mapping[str, Any]) -> str | None:
    """The recipe that a file was trained with, as far as its architecture and configuration tell.

    Args:
        imported: the model.
        cfg: the run's configuration inside the file.
    """
    if imported.kind == "ctc":
        return _ctc_recipe(imported, cfg)
    if imported.kind == "sentence_classifier":
        base = "v2/text_finetuning" if generation_of(imported.model_config) == 2 else "roberta/finetuning"
        return f"{base}/*"  # the eight differ in length alone, and a file does not name its task
    recipes = dict.fromkeys(file.recipe for file in candidates(imported) if file.recipe is not None)
    return next(iter(recipes), None)


def _ctc_recipe(imported: ImportedModel, cfg: Mapping[str, Any]) -> str | None:
    optimization, model = cfg.get("optimization"), cfg.get("model")
    if not isinstance(optimization, Mapping) or not isinstance(model, Mapping):
        return None
    size = "base" if imported.model_config.embed_dim == 768 else "vox"
    fields = ("mask_prob", "mask_length", "mask_channel_prob", "freeze_finetune_updates")
    given = (optimization.get("max_update"), *(model.get(name) for name in fields))
    for name, values in _CTC_RECIPES.items():
        known = zip(values, given, strict=True)
        if all(mine == theirs for mine, theirs in known) and (name.startswith(size) or name[-1] in "2s"):
            return f"wav2vec/finetuning/{name}"
    return None


def find(name: str) -> PublishedFile | None:
    """A published file by its name, or by its file name where only one generation has it."""
    files = [*PUBLISHED, *BEIT_FILES]
    exact = [file for file in files if file.name == name]
    last = [file for file in files if file.name.rpartition("/")[2] == name]
    found = exact or last
    return found[0] if len(found) == 1 else None
