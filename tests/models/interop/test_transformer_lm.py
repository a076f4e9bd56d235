"""fairseq's transformer language models: its names and shapes, written out here, in and out again."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.artifact import read_artifact
from data2vec.data.dictionary import Dictionary
from data2vec.errors import CheckpointError
from data2vec.interop.export import export_fairseq
from data2vec.interop.model_folder import import_file, save_imported
from data2vec.loading import load

VOCAB, DIM, HIDDEN, LAYERS = 30, 8, 16, 2
COMMON: dict[str, Any] = {
    "_name": "transformer_lm", "activation_fn": "relu", "dropout": 0.1, "decoder_embed_dim": DIM,
    "decoder_output_dim": DIM, "decoder_input_dim": DIM, "decoder_ffn_embed_dim": HIDDEN,
    "decoder_layers": LAYERS, "decoder_attention_heads": 2, "decoder_normalize_before": True,
    "character_embeddings": False, "character_embedding_dim": 4, "quant_noise_pq": 0.0,
    "add_bos_token": False, "tokens_per_sample": 512, "max_target_positions": None,
}  # fmt: skip
BANDS: dict[str, Any] = {  # as Baevski and Auli's models: all in bands, everything tied
    "adaptive_input": True, "adaptive_input_cutoff": "10,20", "adaptive_softmax_cutoff": "10,20",
    "adaptive_input_factor": 2, "adaptive_softmax_factor": 2, "tie_adaptive_weights": True,
    "tie_adaptive_proj": True, "no_decoder_final_norm": True,
}  # fmt: skip


def layers() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for index in range(LAYERS):
        place = f"decoder.layers.{index}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found |= {f"{place}self_attn.{name}.weight": (DIM, DIM), f"{place}self_attn.{name}.bias": (DIM,)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            found |= {f"{place}{name}.weight": (DIM,), f"{place}{name}.bias": (DIM,)}
        found |= {f"{place}fc1.weight": (HIDDEN, DIM), f"{place}fc1.bias": (HIDDEN,)}
        found |= {f"{place}fc2.weight": (DIM, HIDDEN), f"{place}fc2.bias": (DIM,)}
    return found


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def plain_state() -> dict[str, torch.Tensor]:
    state = tensors(
        {"decoder.embed_tokens.weight": (VOCAB, DIM), "decoder.layer_norm.weight": (DIM,),
         "decoder.layer_norm.bias": (DIM,), "decoder.output_projection.weight": (VOCAB, DIM)} | layers()
    )  # fmt: skip
    return state | {
        "decoder.version": torch.tensor([3.0]),
        "decoder.embed_positions._float_tensor": torch.zeros(1),
    }


def banded_state() -> dict[str, torch.Tensor]:
    words, softmax = "decoder.embed_tokens.embeddings.", "decoder.adaptive_softmax."
    state = tensors(
        {f"{words}0.0.weight": (10, 8), f"{words}0.1.weight": (DIM, 8), f"{words}1.0.weight": (10, 4),
         f"{words}1.1.weight": (DIM, 4), f"{words}2.0.weight": (10, 2), f"{words}2.1.weight": (DIM, 2),
         f"{softmax}head.class_proj.weight": (2, DIM)} | layers()
    )  # fmt: skip
    state |= {
        f"{softmax}head.word_proj.weight": state[f"{words}0.0.weight"],
        f"{softmax}tail.0.0.weight": state[f"{words}1.1.weight"],
        f"{softmax}tail.0.2.weight": state[f"{words}1.0.weight"],
        f"{softmax}tail.1.0.weight": state[f"{words}2.1.weight"],
        f"{softmax}tail.1.2.weight": state[f"{words}2.0.weight"],
        f"{softmax}head._float_tensor": torch.zeros(1), f"{softmax}version": torch.tensor([1]),
        "decoder.embed_tokens._float_tensor": torch.zeros(1), "decoder.version": torch.tensor([3.0]),
        "decoder.embed_positions._float_tensor": torch.zeros(1),
    }  # fmt: skip
    return state


def written(folder: Path, state: dict[str, torch.Tensor], **model: Any) -> Path:
    folder.mkdir(exist_ok=True)
    cfg = {"model": {**COMMON, **model}, "task": {"_name": "language_modeling", "tokens_per_sample": 512}}
    torch.save({"cfg": cfg, "args": None, "model": state}, folder / "lm.pt")
    symbols = [f"W{i}" for i in range(VOCAB - 4)]
    Dictionary(symbols, [1] * len(symbols)).save(folder / "dict.txt")
    return folder / "lm.pt"


CASES = {
    "plain": (plain_state, {}),
    "in bands, tied": (banded_state, BANDS),
}


@pytest.mark.parametrize(("make", "options"), CASES.values(), ids=CASES)
def test_a_file_goes_in_and_out_with_the_same_tensors(
    tmp_path: Path, make: Any, options: dict[str, Any]
) -> None:
    state = make()
    path = written(tmp_path / "in", state, **options)
    loaded = load(path)  # finds the dictionary beside it
    text = "W3 W25 W11 W0"
    wanted = loaded.score([text])
    folder = save_imported(import_file(path, path.parent / "dict.txt"), tmp_path / "folder")
    assert load(folder).score([text]) == pytest.approx(wanted)
    remarks = export_fairseq(read_artifact(folder), tmp_path / "out" / "lm.pt")
    assert any("dict.txt" in remark for remark in remarks)
    again = torch.load(tmp_path / "out" / "lm.pt", weights_only=True)["model"]
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        if not name.endswith(("_float_tensor", "version")):
            torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)
    assert load(tmp_path / "out" / "lm.pt").score([text]) == pytest.approx(wanted)


def test_the_softmax_in_bands_is_the_reference_s_formula(tmp_path: Path) -> None:
    """log p(w) = head log p(band) + log p(w in band), written out for one position."""
    state = banded_state()
    model = load(written(tmp_path, state, **BANDS))
    hidden = torch.randn(1, DIM, generator=torch.Generator().manual_seed(1))
    words = "decoder.embed_tokens.embeddings."
    classes = state["decoder.adaptive_softmax.head.class_proj.weight"]
    head = torch.log_softmax(torch.cat([state[f"{words}0.0.weight"] @ hidden[0], classes @ hidden[0]]), 0)
    inner = state[f"{words}2.0.weight"] @ (state[f"{words}2.1.weight"].t() @ hidden[0])
    wanted = head[10 + 1] + torch.log_softmax(inner, 0)[27 - 20]
    torch.testing.assert_close(model.network.log_probs(hidden)[0, 27], wanted)


def test_files_of_older_fairseq_are_read(tmp_path: Path) -> None:
    """Arguments instead of cfg, a named size, joint projections, ``embed_out``."""
    state = plain_state()
    wanted = load(written(tmp_path / "new", state)).score(["W1 W2"])
    for index in range(LAYERS):
        place = f"decoder.layers.{index}.self_attn."
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{place}{name}_proj.{kind}") for name in "qkv"]
            state[f"{place}in_proj_{kind}"] = torch.cat(parts)
    state["decoder.embed_out"] = state.pop("decoder.output_projection.weight")
    path = written(tmp_path / "old", state)
    plain = {k: v for k, v in COMMON.items() if k != "_name"}
    content = {
        "args": Namespace(arch="transformer_lm_gbw", task="language_modeling", **plain),
        "model": state,
    }
    torch.save(content, path)
    assert load(path).score(["W1 W2"]) == pytest.approx(wanted)


@pytest.mark.parametrize("tied", [True, False])
def test_bands_of_older_fairseq_say_what_is_not_tied(tmp_path: Path, tied: bool) -> None:
    state = banded_state()
    if not tied:
        for tail in range(2):
            name = f"decoder.adaptive_softmax.tail.{tail}.0.weight"
            state[name] = state[name].t() + 0.5  # a matrix of its own lies the other way round
    today = {**BANDS, "tie_adaptive_proj": tied}
    older = {
        name: value
        for name, value in BANDS.items()
        if name not in ("tie_adaptive_proj", "no_decoder_final_norm")
    }
    wanted = load(written(tmp_path / "new", state, **today)).score(["W1 W25"])
    found = load(written(tmp_path / "old", state, **older, no_tie_adaptive_proj=not tied))
    assert found.score(["W1 W25"]) == pytest.approx(wanted)


def test_learned_positions_are_counted_without_the_two_of_padding(tmp_path: Path) -> None:
    state = plain_state() | tensors({"decoder.embed_positions.weight": (14, DIM)})
    del state["decoder.embed_positions._float_tensor"]
    config = import_file(written(tmp_path, state, decoder_learned_pos=True)).model_config
    assert getattr(config, "max_target_positions", None) == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"character_embeddings": True}, r"not built here: model.character_embeddings = True"),
        ({"quant_noise_pq": 0.1}, "quant_noise_pq"),
        ({"activation_fn": "swish"}, "activation_fn"),
        ({"decoder_layers": 3}, "2 layers are there, but its configuration says 3"),
        ({"share_decoder_input_output_embed": True}, "differ, but its configuration says that they are tied"),
        ({"adaptive_softmax_cutoff": "10,20"}, "adaptive_softmax"),
        ({"decoder_attention_heads": 3}, "decoder_attention_heads"),
        ({"decoder_ffn_embed_dim": 12}, r"fc1.weight is \(16, 8\), but its configuration says \(12, 8\)"),
    ],
)
def test_what_is_not_built_or_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        import_file(written(tmp_path, plain_state(), **change))


def test_a_wrong_dictionary_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, plain_state())
    (tmp_path / "dict.txt").write_text("A 1\nB 1\n")
    with pytest.raises(CheckpointError, match="vocabulary of 30 symbols, but the dictionary has 6"):
        load(path)
    (tmp_path / "dict.txt").unlink()
    with pytest.raises(CheckpointError, match=r"no dictionary: put its dict.txt beside"):
        load(path)
