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

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact import load

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch is imported only when a model is asked for: tools such as `d2v prepare` do not need it.
    if name == "load":
        from .artifact import load

        return load
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("data2vec-platform")
        except PackageNotFoundError:  # a checkout that is not installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
