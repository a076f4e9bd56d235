"""Pictures on a model card that need the data: masks on real images, a classifier's verdicts on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import data2vec
from data2vec.config import Data2VecMultiConfig
from data2vec.data.image_files import UnreadableImageError, read_image
from data2vec.data.image_sources import ImageSource, open_images
from data2vec.image_masking import image_masks
from data2vec.image_model import ImageModel
from data2vec.mae_config import MaeConfig
from data2vec.masking import clone_ids
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.image_masking import rectangle_masks

from ..recipe.image_components import ImagePretraining
from ..recipe.local_data import with_local_data
from ..recipe.schema import Recipe

_IMAGES, _CLONES, _VERDICTS = 4, 4, 8
_GREY = 110
_NO_FORMULAS: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False}  # a class may be ``$1_$5``


def _source(recipe: Recipe, subset: str, labelled: bool) -> ImageSource:
    return open_images(with_local_data(recipe).task.data, subset, labelled=labelled)


def _readable(source: ImageSource, wanted: int) -> list[tuple[int, Image.Image]]:
    """Images spread evenly over a source, with their ids; unreadable ones give way to the next."""
    found: dict[int, Image.Image] = {}
    for start in np.linspace(0, len(source), wanted, endpoint=False).astype(int).tolist():
        for index in range(start, min(start + 20, len(source))):
            try:
                found[index] = read_image(source.read(index))[0]
            except UnreadableImageError:
                continue
            break
    return list(found.items())


def masks_of(
    config: Data2VecMultiConfig | Data2VecVisionConfig | MaeConfig, ids: list[int], seed: int
) -> np.ndarray:
    """The masks that training draws for these samples in its first update.

    Returns:
        (images, clones, grid, grid) bool, true where masked.
    """
    ids_B = torch.tensor(ids)
    if isinstance(config, Data2VecVisionConfig):
        mask = rectangle_masks(
            ids_B,
            config.grid,
            num_patches=config.num_mask_patches,
            min_per_block=config.min_mask_patches_per_block,
            max_per_block=config.max_mask_patches_per_block,
            key=(seed, 0),
        )
        return mask.view(len(ids), 1, config.grid, config.grid).numpy()
    config = config.encoder() if isinstance(config, MaeConfig) else config
    image = config.modalities.image
    assert image is not None
    grid, clones = image.input_size // image.patch_size, min(config.clone_batch, _CLONES)
    mask = image_masks(clone_ids(ids_B, clones), grid**2, image, seed, 0).mask_RT
    return mask.view(len(ids), clones, grid, grid).numpy()


def draw_masks(recipe: Recipe, path: Path) -> Path:
    """Masks of the first update on training images."""
    config: Any = recipe.model
    assert isinstance(recipe.task, ImagePretraining)
    images = _readable(_source(recipe, recipe.dataset.train_subset, labelled=False), _IMAGES)
    size = recipe.task.input_size
    masks = masks_of(config, [index for index, _ in images], recipe.common.seed)
    figure, grid = _grid(len(images), 1 + masks.shape[1])
    for row, (_, image) in enumerate(images):
        pixels = np.asarray(_square(image, size))
        grid[row][0].imshow(pixels)
        for clone, mask in enumerate(masks[row]):
            side = size // len(mask)
            hidden = np.kron(mask, np.ones((side, side), dtype=bool))
            shown = pixels[: len(hidden), : len(hidden)].copy()
            shown[hidden] = _GREY
            axes = grid[row][1 + clone]
            axes.imshow(shown)
            if row == 0:
                axes.set_title(f"clone {clone}" if masks.shape[1] > 1 else "masked", fontsize=8)
    return _save(figure, path)


@matplotlib.rc_context(_NO_FORMULAS)
def draw_verdicts(recipe: Recipe, model_folder: Path, path: Path) -> Path:
    """What a classifier says of validation images."""

    model = data2vec.load(model_folder)
    assert isinstance(model, ImageModel)
    subset = (recipe.valid_subsets() or [recipe.dataset.train_subset])[0]
    source = _source(recipe, subset, labelled=True)
    images = _readable(source, _VERDICTS)
    classes, scores = model.classify([image for _, image in images])
    figure, grid = _grid(2, _VERDICTS // 2)
    flat = [axes for row in grid for axes in row]
    for axes, (index, image), row in zip(flat, images, scores, strict=False):
        axes.imshow(np.asarray(_square(image, model.input_size)))
        said, true = classes[int(row.argmax())], source.classes[int(source.labels[index])]
        right = said == true
        axes.set_title(
            f"{said} {row.max():.2f}" + ("" if right else f"\n(is {true})"),
            fontsize=8,
            color="#006644" if right else "#B03000",
        )
    return _save(figure, path)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized, the centre cut out: what evaluation shows the model."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def _grid(rows: int, columns: int) -> tuple[Any, list[list[Any]]]:
    figure = Figure(figsize=(1.7 * columns, 1.85 * rows), layout="constrained", dpi=90)
    found = figure.subplots(rows, columns, squeeze=False)
    for axes in found.ravel():
        axes.set_axis_off()
    return figure, [list(row) for row in found]


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})
    return path
