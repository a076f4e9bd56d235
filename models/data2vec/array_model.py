"""A model of arrays in use: one vector for each array, whatever a user's family means by them.

B arrays, T positions, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .artifact import Artifact, load_strictly
from .config import Data2VecMultiConfig
from .errors import DataError
from .in_use import ModelInUse
from .student import Data2VecMulti


class ArrayModel(ModelInUse):
    """data2vec 2.0 with a registered front end, in evaluation mode."""

    def __init__(self, artifact: Artifact) -> None:
        assert isinstance(artifact.model_config, Data2VecMultiConfig)
        self.config, self.model_config = artifact.config, artifact.model_config
        self.front_end = artifact.model_config.modality
        self.network = Data2VecMulti(artifact.model_config, with_decoder=False)
        load_strictly(self.network, artifact.trunk_state, artifact.folder)
        self._module = self.network.eval()

    @torch.inference_mode()
    def embed(self, array: Any) -> np.ndarray:
        """Mean of the last block's positions, (D,), of one array."""
        source, wanted = np.asarray(array, dtype=np.float32), self.front_end.sample_shape
        if wanted is not None and source.shape != wanted:
            raise DataError(f"an array of the shape {source.shape}; the model takes {wanted}")
        x_BTD = self.network(torch.from_numpy(source)[None].to(self.device)).x_BTD
        return x_BTD.mean(dim=1)[0].float().cpu().numpy()
