"""Hugging Face's installed ``Data2Vec*`` classes compute what ours do, layer by layer, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.artifact import Artifact, read_artifact, save_artifact
from data2vec.config import Data2VecMultiConfig, ImageHeadConfig, SentenceHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.audio_files import normalized
from data2vec.data.dictionary import Dictionary
from data2vec.errors import CheckpointError
from data2vec.heads import SentenceClassifier, make_text_trunk
from data2vec.image_heads import ImageClassifier
from data2vec.image_model import ImageModel
from data2vec.interop.huggingface import export_folder, import_folder
from data2vec.loading import load
from data2vec.v1.audio import Data2VecAudio
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import Data2VecVision
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text import Data2VecText
from data2vec.v1.text_config import Data2VecTextConfig

transformers = pytest.importorskip("transformers")

VOCAB, LIMIT = 30, 1e-5
AUDIO = Data2VecAudioConfig(
    extractor_mode="layer_norm",
    encoder_layers=3,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=48,
    encoder_attention_heads=4,
    conv_feature_layers="[(16, 10, 5)] + [(16, 3, 2)] * 2",
    conv_pos=15,
    conv_pos_groups=4,
    pos_conv_depth=3,
    average_top_k_layers=2,
    padding_leaks=True,
)
TEXT = Data2VecTextConfig.from_dict(
    {
        "head_layers": 2,
        "average_top_k_layers": 2,
        "transformer": {
            "activation_fn": "gelu",
            "max_source_positions": 20,
            "layernorm_embedding": True,
            "no_scale_embedding": True,
            "encoder": {
                "embed_dim": 32,
                "ffn_embed_dim": 48,
                "layers": 3,
                "attention_heads": 4,
                "learned_pos": True,
            },
        },
    }
)
TEXT_2 = Data2VecMultiConfig.from_dict(
    {
        "embed_dim": 32,
        "num_heads": 4,
        "depth": 3,
        "norm_eps": 1e-5,
        "average_top_k_layers": 2,
        "supported_modality": "TEXT",
        "modalities": {"text": {"prenet_depth": 0, "mask_length": 1, "max_source_positions": 20}},
    }
)


def vision(**fields: Any) -> Data2VecVisionConfig:
    return Data2VecVisionConfig(
        image_size=32,
        patch_size=8,
        depth=3,
        embed_dim=32,
        num_heads=4,
        norm_eps=1e-6,
        num_mask_patches=6,
        min_mask_patches_per_block=2,
        average_top_k_layers=2,
        **fields,
    )


@torch.no_grad()
def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Informative random values, so that swapped or unused tensors show."""
    draw = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return module.eval()


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[..., Artifact]:
    def make(module: torch.nn.Module, config: Any, kind: Any = "pretrained", **fields: Any) -> Artifact:
        folder = tmp_path / "ours"
        save_artifact(folder, kind=kind, model_config=config, state=module.state_dict(), **fields)
        return read_artifact(folder)

    return make


def exported(artifact: Artifact, tmp_path: Path, name: str, **options: Any) -> Any:
    """Exported, and loaded by transformers with every tensor in its place."""
    export_folder(artifact, tmp_path / "theirs")
    cls = getattr(transformers, name)
    model, info = cls.from_pretrained(tmp_path / "theirs", output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    scale = float(mine.abs().max())
    assert float((mine - theirs).abs().max()) <= LIMIT * max(scale, 1.0)


def same_state(tmp_path: Path, module: torch.nn.Module, left_out: tuple[str, ...] = ()) -> Any:
    """What comes back from the folder is bit-equal."""
    back = import_folder(tmp_path / "theirs")
    expected = {n: t for n, t in module.state_dict().items() if not n.startswith(left_out)}
    assert back.state.keys() == expected.keys()
    assert all(torch.equal(back.state[name], tensor) for name, tensor in expected.items())
    return back


def padded_audio() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randn(3, 1201, generator=torch.Generator().manual_seed(2))
    padding = torch.arange(1201)[None] >= torch.tensor([1201, 900, 613])[:, None]
    return source.masked_fill(padding, 0.0), padding


def test_audio_layers_agree_with_and_without_padding(artifact: Any, tmp_path: Path) -> None:
    mine = shaken(Data2VecAudio(AUDIO))
    theirs = exported(artifact(mine, AUDIO), tmp_path, "Data2VecAudioModel")
    source, padding = padded_audio()
    for mask in (None, padding):
        with torch.no_grad():
            ours = mine(source, mask, all_layers=True)
            attention = None if mask is None else (~mask).long()
            output = theirs(source, attention_mask=attention, output_hidden_states=True)
        frames = mine.token_padding(mask, ours.x_BTD.shape[1])
        real = slice(None) if frames is None else ~frames
        for a, b in zip(ours.layers, output.hidden_states[1:], strict=True):
            close(a[real], b[real])
        close(ours.x_BTD[real], output.last_hidden_state[real])
    back = same_state(tmp_path, mine, ("final_proj.",))
    assert back.normalize and back.model_config.encoder_layers == 3


def test_ctc_logits_and_letters_agree(artifact: Any, tmp_path: Path) -> None:
    letters = Dictionary(["|", "E", "T"], [3, 2, 1])
    options = CTCConfig(apply_mask=True, mask_prob=0.65)
    mine = shaken(CTCModel(AUDIO, options, num_symbols=len(letters)))
    made = artifact(
        mine,
        AUDIO,
        "ctc",
        head_config=options,
        letters=letters,
        task={"num_symbols": len(letters), "normalize": True},
    )
    theirs = exported(made, tmp_path, "Data2VecAudioForCTC")
    source, padding = padded_audio()
    with torch.no_grad():
        ours = mine(source, padding)
        output = theirs(source, attention_mask=(~padding).long())
    real = slice(None) if ours.padding_mask_BT is None else ~ours.padding_mask_BT
    close(ours.logits_BTV[real], output.logits[real])
    vocabulary = json.loads((tmp_path / "theirs" / "vocab.json").read_text())
    assert vocabulary == {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6}
    assert theirs.config.pad_token_id == 0  # their blank
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "theirs")
    given = processor(source[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    close(normalized(source[0]), given["input_values"][0])
    spoken = [0, 6, 6, 0, 5, 0, 5, 4, 6, 0]  # T E E | T, with blanks and repeats
    assert processor.batch_decode([spoken]) == ["TEE T"]
    with pytest.raises(Exception, match="sampling"):
        processor(source[0].numpy(), sampling_rate=8_000)
    back = same_state(tmp_path, mine)
    assert back.kind == "ctc" and back.dictionary.symbols == letters.symbols


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randint(4, VOCAB, (3, 18), generator=torch.Generator().manual_seed(4))
    padding = torch.arange(18)[None] >= torch.tensor([18, 11, 5])[:, None]
    return source.masked_fill(padding, 1), padding


@pytest.mark.parametrize("config", [TEXT, TEXT_2], ids=["v1", "v2"])
def test_text_layers_agree_at_real_tokens(config: Any, artifact: Any, tmp_path: Path) -> None:
    v1 = isinstance(config, Data2VecTextConfig)
    mine = Data2VecText(config, vocab_size=VOCAB) if v1 else make_text_trunk(config, vocab_size=VOCAB)
    mine = shaken(mine)
    theirs = exported(artifact(mine, config), tmp_path, "Data2VecTextModel", add_pooling_layer=False)
    source, padding = tokens()
    with torch.no_grad():
        ours = mine(source, padding, all_layers=True)
        output = theirs(source, attention_mask=(~padding).long(), output_hidden_states=True)
    for a, b in zip(ours.layers, output.hidden_states[1:], strict=True):
        close(a[~padding], b[~padding])
    if v1:
        same_state(tmp_path, mine, ("encoder.regression_head.",))


@pytest.mark.parametrize("config", [TEXT, TEXT_2], ids=["v1", "v2"])
def test_sentence_logits_agree(config: Any, artifact: Any, tmp_path: Path) -> None:
    head = SentenceHeadConfig(num_classes=3)
    mine = shaken(SentenceClassifier(config, head, vocab_size=VOCAB))
    made = artifact(mine, config, "sentence_classifier", head_config=head, task={"labels": ["a", "b", "c"]})
    theirs = exported(made, tmp_path, "Data2VecTextForSequenceClassification")
    source, padding = tokens()
    with torch.no_grad():
        close(mine(source, padding), theirs(source, attention_mask=(~padding).long()).logits)
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    if isinstance(config, Data2VecTextConfig):
        assert same_state(tmp_path, mine).kind == "sentence_classifier"


@pytest.mark.parametrize("shared", [True, False], ids=["shared positions", "positions a block"])
def test_image_layers_agree_also_with_masked_patches(shared: bool, artifact: Any, tmp_path: Path) -> None:
    config = vision(shared_rel_pos_bias=shared)
    mine = shaken(Data2VecVision(config))
    theirs = exported(artifact(mine, config), tmp_path, "Data2VecVisionModel", add_pooling_layer=False)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(7)) < 0.4
    with torch.no_grad():
        ours = mine(images, all_layers=True)
        output = theirs(images, output_hidden_states=True)
        for a, b in zip(ours.layers, output.hidden_states[1:], strict=True):
            close(a, b)
        hidden = torch.where(mask[..., None], mine.mask_emb, mine.local_features(images))
        close(
            mine.encoder(mine.with_class_token(hidden)),
            theirs(images, bool_masked_pos=mask).last_hidden_state,
        )
    same_state(tmp_path, mine, ("final_proj.",))


def test_a_folder_of_theirs_loads_as_ours_does(artifact: Any, tmp_path: Path) -> None:
    config = vision()
    made = artifact(Data2VecVision(config), config)
    export_folder(made, tmp_path / "theirs")
    for folder in (made.folder, tmp_path / "theirs"):
        assert isinstance(load(folder), ImageModel)


@pytest.mark.parametrize("shared", [True, False], ids=["shared positions", "positions a block"])
def test_image_logits_agree(shared: bool, artifact: Any, tmp_path: Path) -> None:
    config, head = vision(shared_rel_pos_bias=shared), ImageHeadConfig(num_classes=5, fc_norm_eps=1e-6)
    mine = shaken(ImageClassifier(config, head))
    made = artifact(mine, config, "image_classifier", head_config=head, task={"labels": list("abcde")})
    theirs = exported(made, tmp_path, "Data2VecVisionForImageClassification")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        close(mine(images), theirs(images).logits)
    assert same_state(tmp_path, mine).kind == "image_classifier"


@pytest.mark.parametrize("kind", ["Audio", "Text", "Vision"])
def test_their_own_saved_models_come_in(kind: str, tmp_path: Path) -> None:
    """Their random weights, saved by them, computed by us."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    if kind == "Audio":
        config = transformers.Data2VecAudioConfig(
            **sizes,
            conv_dim=(16, 16),
            conv_kernel=(10, 3),
            conv_stride=(5, 2),
            num_feat_extract_layers=2,
            conv_pos_kernel_size=5,
            num_conv_pos_embedding_groups=4,
            num_conv_pos_embeddings=3,
        )
        theirs = shaken(transformers.Data2VecAudioModel(config))
        inputs: Any = torch.randn(2, 700)
    elif kind == "Text":
        config = transformers.Data2VecTextConfig(
            **sizes, vocab_size=VOCAB, max_position_embeddings=22, layer_norm_eps=1e-5, type_vocab_size=1
        )
        theirs = shaken(transformers.Data2VecTextModel(config, add_pooling_layer=False))
        inputs = tokens()[0][:1]
    else:
        config = transformers.Data2VecVisionConfig(
            **{**sizes, "intermediate_size": 128},
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,
            use_mask_token=True,
            use_shared_relative_position_bias=True,
            layer_scale_init_value=0.1,
            use_mean_pooling=False,
        )
        theirs = shaken(transformers.Data2VecVisionModel(config, add_pooling_layer=False))
        inputs = torch.randn(2, 3, 32, 32)
    theirs.save_pretrained(tmp_path / "hub")
    imported = import_folder(tmp_path / "hub")
    own: Any = imported.model_config
    if kind == "Text":
        mine: Any = Data2VecText(own, vocab_size=VOCAB, with_head=False)
    elif kind == "Audio":
        mine = Data2VecAudio(own, with_head=False)
    else:
        mine = Data2VecVision(own)
    mine.load_state_dict(imported.state, strict=kind != "Vision")
    mine.eval()
    with torch.no_grad():
        ours, output = mine(inputs, all_layers=True), theirs(inputs, output_hidden_states=True)
    for a, b in zip(ours.layers, output.hidden_states[1:], strict=True):
        close(a, b)


def test_what_they_cannot_compute_is_refused_with_the_reason(artifact: Any, tmp_path: Path) -> None:
    head = ImageHeadConfig(num_classes=5, fc_norm_eps=1e-6, drop_first_patch=True)
    made = artifact(ImageClassifier(vision(), head), vision(), "image_classifier", head_config=head)
    with pytest.raises(CheckpointError, match="drop_first_patch"):
        export_folder(made, tmp_path / "no")
    image = {"prenet_depth": 0, "input_size": 8, "patch_size": 4, "embed_dim": 16, "num_extra_tokens": 1}
    config = Data2VecMultiConfig.from_dict(
        {
            "embed_dim": 16,
            "num_heads": 2,
            "depth": 1,
            "average_top_k_layers": 1,
            "supported_modality": "IMAGE",
            "ema_encoder_only": False,
            "modalities": {"text": None, "image": image},
        }
    )
    from data2vec.student import Data2VecMulti

    with pytest.raises(CheckpointError, match=r"no class for data2vec 2\.0 image"):
        export_folder(artifact(Data2VecMulti(config), config), tmp_path / "no")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bert"}, "type 'bert'"),
        ({"hidden_size": "wide"}, "hidden_size|embed_dim"),
        ({"num_hidden_layers": 7}, "missing: encoder.sentence_encoder.layers.3"),
        ({"hidden_size": 64}, "configuration says"),
        ({"layer_norm_eps": 1e-12}, "1e-05|1e-12"),
        ({"num_attention_heads": 5}, "must divide"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(
    change: dict[str, Any], words: str, artifact: Any, tmp_path: Path
) -> None:
    export_folder(artifact(Data2VecText(TEXT, vocab_size=VOCAB), TEXT), tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        import_folder(tmp_path / "theirs")
