"""data2vec and data2vec 2.0: models, objectives, data and heads in PyTorch, usable without the platform.

A model is a model folder of ours, a fairseq ``.pt`` file, or a Hugging Face folder.

Text::

    import data2vec
    model = data2vec.load("text-model")
    features = model.embed(["Where the river bends", "an old mill still turns."])
    print(len(features), features[0].shape)

Speech::

    import data2vec
    model = data2vec.load("speech-model")
    for recording, found in zip(["clip.wav"], model.transcribe(["clip.wav"])):
        print(recording, found.text, found.words)

Images::

    import data2vec
    model = data2vec.load("image-model")
    classes, scores = model.classify(["picture.png"])
    print(classes[scores[0].argmax()], scores[0].max())
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audio_model import AudioModel
    from .image_model import ImageModel
    from .lm.loaded import LanguageModel
    from .loading import load
    from .text_model import TextModel

    __version__: str

__all__ = ["AudioModel", "ImageModel", "LanguageModel", "TextModel", "__version__", "load"]

_PLACES = {
    "AudioModel": "audio_model",
    "ImageModel": "image_model",
    "LanguageModel": "lm.loaded",
    "SpeechModel": "audio_model",  # the earlier name of AudioModel
    "TextModel": "text_model",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    # torch is imported only when a model is asked for: tools such as `d2v prepare` do not need it.
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    if name == "__version__":
        try:
            return metadata.version("data2vec-platform")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
