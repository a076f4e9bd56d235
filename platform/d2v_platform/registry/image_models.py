"""What the registry needs to know about image models: signature, and the inputs of the reload check."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .serving import EMBEDDING, POOLED, SCORES, VECTOR, Served, Use, class_columns, signature_of

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def image_signature(config: Mapping[str, Any]) -> ModelSignature:
    """Columns of images, params with the defaults of the model's kind, and output columns."""
    inputs = {"file?": "bytes", "image?": [[["whole"]]]}
    if config["kind"] == "image_classifier":
        return signature_of(inputs, class_columns(config), "scores")
    return signature_of(inputs, VECTOR, "embedding")


def check_images() -> list[str]:
    """Two small pictures as base64 of PNG files, the same on every machine: waves, and a checked square."""

    y, x = np.mgrid[0:48, 0:64]
    waves = np.stack([128 + 100 * np.sin(x / 5 + k) * np.cos(y / (4 + k)) for k in range(3)], axis=-1)
    checks = np.where(((x // 8 + y // 8) % 2)[..., None] > 0, [220, 40, 90], [15, 160, 200])
    encoded = []
    for picture in (waves, checks):
        buffer = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(buffer, format="PNG")
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return encoded


def image_check_outputs(model: Any) -> tuple[str, list[list[float]]]:
    """What the reload check compares: class scores of a classifier, embeddings of another model."""
    images = [base64.b64decode(text) for text in check_images()]
    if model.config["kind"] == "image_classifier":
        return "scores", model.classify(images)[1].tolist()
    rows = model.embed(images, pooling="mean", layer=-1)
    return "embedding", [row.astype(float).tolist() for row in rows]


def image_check(model: Any) -> dict[str, Any]:
    """Two pictures and what the model gives for them."""
    output, expected = image_check_outputs(model)
    return {"output": output, "files": check_images(), "expected": expected}


def image_use(kind: str, has_labels: bool) -> Use:
    """Embeddings, or scores of classes."""
    table = 'pd.DataFrame({"file": [open("picture.jpg", "rb").read()]})'
    inputs = "`file` (the content of an image file) or `image` (height x width x 3 values, 0 to 255)"
    if kind == "pretrained":
        return Use(
            table=table, inputs=inputs, outputs=EMBEDDING, call='embed(["picture.jpg"])', params=POOLED
        )
    more = f"`params={POOLED}` gives embeddings instead."
    return Use(table=table, inputs=inputs, outputs=SCORES, call='classify(["picture.jpg"])', more=more)


SERVED = {
    "IMAGE": Served(
        entry=Path(__file__).with_name("pyfunc_image_entry.py"),
        signature=image_signature,
        check=image_check,
        use=image_use,
        noun=lambda config: "image classifier" if config["kind"] == "image_classifier" else "",
        verbs={
            "embed": "d2v_platform.inference.image_rows:embed_images",
            "infer": "d2v_platform.inference.images:infer_images",
            "probe": "d2v_platform.inference.image_probes:probe_images",
        },
    )
}
