"""Serving models of users' families that embed arrays: ``embed(array)`` gives one vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .serving import EMBEDDING, VECTOR, Served, Use, register_served, signature_of

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def serve_arrays(modality: str, code: str) -> None:
    """Serve models of a modality by a column ``input`` of arrays.

    Args:
        modality: in capitals; its front end's configuration has a ``sample_shape``.
        code: file that registers the family in the library; a copy goes into each version, so it imports
            ``data2vec`` and what its requirements have, nothing of the platform.
    """

    def check(model: Any) -> dict[str, Any]:
        shape = model.model_config.modality.sample_shape
        waves = [np.sin(np.arange(np.prod(shape)) * step).reshape(shape) for step in (0.7, 1.9)]
        expected = [model.embed(wave).astype(float).tolist() for wave in waves]
        return {
            "output": "embedding",
            "columns": {"input": [w.tolist() for w in waves]},
            "expected": expected,
        }

    def signature(config: Mapping[str, Any]) -> ModelSignature:
        from mlflow.types.schema import AnyType

        return signature_of({"input": AnyType()}, VECTOR, "embedding", pooled=False)

    use = Use(
        table='pd.DataFrame({"input": [ARRAY.tolist()]})',
        inputs="`input` (an array as nested lists)",
        outputs=EMBEDDING,
        call="embed(ARRAY)",
    )
    entry = Path(__file__).with_name("pyfunc_array_entry.py")
    served = Served(entry=entry, signature=signature, check=check, use=lambda *_: use, code=(Path(code),))
    register_served(modality, served)
