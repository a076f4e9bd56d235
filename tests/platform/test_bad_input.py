"""What a user sees who gives us something wrong: a message that names it and the fix, exit code 2, no trace.

``python tests/platform/test_bad_input.py`` prints the table of tests/README.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from d2v_platform.cli import app, run
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.data.bpe import GPT2BPE
from data2vec.data.dictionary import Dictionary
from data2vec.data.indexed import IndexedTokensWriter
from data2vec.data.tokenizer import TextTokenizer
from data2vec.student import Data2VecMulti

WORDS = [" river", " mill", " committee", " turned", " agreed", " old", " slowly", " not"]


class Ground:
    """Good data and a good model in a folder, of which each case spoils a copy."""

    def __init__(self, root: Path) -> None:
        self.root, bpe = root, GPT2BPE()
        pieces = [str(piece) for word in WORDS for piece in bpe.encode(word)]
        self.tokenizer = TextTokenizer(bpe, Dictionary.from_counts(dict.fromkeys(pieces, 5)))
        self.text, self.model, self.glue = root / "text", root / "model", root / "glue"
        self.write_tokens(self.text, self.tokenizer.dictionary)
        config = Data2VecMultiConfig.from_dict({
            "depth": 1, "embed_dim": 32, "num_heads": 2, "average_top_k_layers": 1,
            "supported_modality": "TEXT",
            "modalities": {"text": {"prenet_depth": 0, "mask_length": 1, "max_source_positions": 64}},
        })  # fmt: skip
        size = len(self.tokenizer.dictionary.with_mask())
        state = Data2VecMulti(config, vocab_size=size, with_decoder=False).state_dict()
        save_artifact(
            self.model, kind="pretrained", model_config=config, state=state, tokenizer=self.tokenizer
        )
        self.tokenizer.dictionary.save(root / "dict.txt")
        self.raw = root / "raw"
        self.write_cola(self.raw)
        words = ["prepare", "glue", str(self.raw), "--dest", str(self.glue), "--tasks", "cola"]
        code, said = call([*words, "--dict", str(root / "dict.txt")])
        assert code == 0, said

    @staticmethod
    def write_tokens(folder: Path, dictionary: Dictionary, tokens: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        dictionary.save(folder / "dict.txt")
        random = np.random.default_rng(0)
        for split in ("train", "valid"):
            writer = IndexedTokensWriter(folder / split, len(dictionary.with_mask()))
            for _ in range(40):
                writer.add_line(random.integers(4, tokens or len(dictionary), size=20))
            writer.close()

    @staticmethod
    def write_cola(raw: Path, row: str = "x\t{label}\t\t{text}") -> None:
        (raw / "CoLA").mkdir(parents=True, exist_ok=True)
        for split in ("train", "dev", "test"):
            lines = [row.format(label=n % 2, text=f"The old mill turned {n}.") for n in range(12)]
            if split == "test":
                lines = ["index\tsentence", *(f"{n}\tThe old mill." for n in range(4))]
            (raw / "CoLA" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def copy(self, folder: Path) -> Path:
        """A fresh copy of a good folder, to be spoilt."""
        place = self.root / "spoilt" / folder.name
        shutil.rmtree(place, ignore_errors=True)
        return Path(shutil.copytree(folder, place))

    def pretrain(self, *words: str, data: Path | None = None) -> list[str]:
        """A pretraining command on our data."""
        return ["train", "tiny/text_pretraining", f"task.data={data or self.text}", "platform.num_workers=0",
                "task.tokens_per_sample=32", *words]  # fmt: skip

    def finetune(self, *words: str, data: Path | None = None, model: Path | str | None = None) -> list[str]:
        """A fine-tuning command on our data and model."""
        return ["train", "v2/text_finetuning/cola", f"task.data={data or self.glue / 'CoLA-bin'}",
                f"model.model_path={model or self.model}", "platform.num_workers=0",
                "task.max_positions=62", *words]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One kind of mistake.

    Attributes:
        kind: in words, for the table.
        make: spoils something and gives the command.
        says: parts of what the user must read.
    """

    kind: str
    make: Callable[[Ground], list[str]]
    says: tuple[str, ...]


CASES: list[Case] = []


def case(kind: str, *says: str) -> Callable[[Callable[[Ground], list[str]]], Callable[[Ground], list[str]]]:
    """Adds a mistake to the battery."""

    def add(make: Callable[[Ground], list[str]]) -> Callable[[Ground], list[str]]:
        CASES.append(Case(kind, make, says))
        return make

    return add


# ---- recipes and command lines ----------------------------------------------------------------------------

case("misspelt field", "did you mean 'optimization.max_update'")(
    lambda g: g.pretrain("optimization.max_updat=3")
)
case("impossible values, several at once", "has 2 problems", "optimization.lr", "common.seed = -1")(
    lambda g: g.pretrain("optimization.lr=[-1]", "common.seed=-1")
)
case("unknown recipe", "there is no recipe", "did you mean 'v2/base_text_only_task'")(
    lambda g: ["train", "v2/base_text_only"]
)
case("required value not given", "task.data", "is required; give task.data=/path/to/data")(
    lambda g: ["train", "tiny/text_pretraining"]
)
case("override that cannot be parsed", "model.depth = '[1'", "cannot be read")(
    lambda g: g.pretrain("model.depth=[1")
)
case("unknown option", "unknown option '--plann'; did you mean '--plan'")(lambda g: g.pretrain("--plann"))
case("more workers than micro-batches", "platform.num_workers", "use at most 2")(
    lambda g: g.pretrain("platform.num_workers=5")
)
case("does not fit the device", "v100 has 32 GB", "it fits with platform.clone_chunk=")(
    lambda g: ["train", "v2/large_text_only_task", "task.data=/none", "dataset.batch_size=64",
               "platform.num_workers=0", "platform.plan_accelerator=v100", "--plan"]
)  # fmt: skip
case("unknown sweep", "there is no sweep", "did you mean 'glue'")(lambda g: ["sweep", "gleu"])
case("registry: not RUN@UPDATE", "must be RUN@UPDATE", "for example")(
    lambda g: ["registry", "add", "my-run", "--name", "x"]
)


@case("recipe file that is no YAML", "broken.yaml")
def _(g: Ground) -> list[str]:
    (g.root / "broken.yaml").write_text("model:\n  depth: [1\n", encoding="utf-8")
    return ["train", "--config-dir", str(g.root), "--config-name", "broken"]


@case("recipe file with dotted keys", "task.data", "write them nested")
def _(g: Ground) -> list[str]:
    (g.root / "flat.yaml").write_text("task.data: /x\n", encoding="utf-8")
    return ["train", "--config-dir", str(g.root), "--config-name", "flat"]


@case("recipe file that is not UTF-8", "latin.yaml", "UTF-8")
def _(g: Ground) -> list[str]:
    (g.root / "latin.yaml").write_bytes("task:\n  data: caf\xe9\n".encode("latin-1"))
    return ["train", "--config-dir", str(g.root), "--config-name", "latin"]


# ---- pretraining data -------------------------------------------------------------------------------------

case("data folder missing", "task.data", "does not exist", "d2v prepare text")(
    lambda g: g.pretrain(data=g.root / "nowhere")
)
case("a file where a folder is wanted", "is a file; give the folder")(
    lambda g: g.pretrain(data=g.root / "dict.txt")
)


def spoilt_text(g: Ground, how: Callable[[Path], object]) -> list[str]:
    data = g.copy(g.text)
    how(data)
    return g.pretrain(data=data)


case("split missing", "no split 'train'")(lambda g: spoilt_text(g, lambda d: (d / "train.idx").unlink()))
case("dictionary missing", "dict.txt does not exist")(
    lambda g: spoilt_text(g, lambda d: (d / "dict.txt").unlink())
)
case("dictionary empty", "dict.txt is empty")(
    lambda g: spoilt_text(g, lambda d: (d / "dict.txt").write_text(""))
)
case("dictionary not UTF-8", "dict.txt", "is not UTF-8")(
    lambda g: spoilt_text(g, lambda d: (d / "dict.txt").write_bytes(b"\xff\xfe 3\n"))
)
case("dictionary line malformed", "is malformed", "line 1")(
    lambda g: spoilt_text(g, lambda d: (d / "dict.txt").write_text("a b c\nword\n"))
)
case("truncated .bin", "train.bin is truncated: 1591 bytes")(
    lambda g: spoilt_text(g, lambda d: (d / "train.bin").write_bytes((d / "train.bin").read_bytes()[:-9]))
)
case("foreign .idx", "train.idx is not a memory-mapped index")(
    lambda g: spoilt_text(g, lambda d: (d / "train.idx").write_bytes(b"PK\x03\x04" + bytes(60)))
)
case("empty .bin and .idx", "train.idx is")(
    lambda g: spoilt_text(g, lambda d: [(d / f"train.{e}").write_bytes(b"") for e in ("bin", "idx")])
)


@case("dictionary of other data (ids outside it)", "do not belong together")
def _(g: Ground) -> list[str]:
    data = g.copy(g.text)
    small = Dictionary.from_counts({"1": 1, "2": 1})
    Ground.write_tokens(data, g.tokenizer.dictionary)
    small.save(data / "dict.txt")
    return g.pretrain(data=data)


case("blocks longer than the model's positions", "task.tokens_per_sample", "max_source_positions")(
    lambda g: g.pretrain("task.tokens_per_sample=4096")
)


@case("raw text that is not UTF-8", "latin.txt", "UTF-8")
def _(g: Ground) -> list[str]:
    (g.root / "latin.txt").write_bytes("A caf\xe9.\n".encode("latin-1"))
    return ["prepare", "text", "--train", str(g.root / "latin.txt"), "--dest", str(g.root / "out")]


@case("raw text that is empty", "empty.txt (train) is empty")
def _(g: Ground) -> list[str]:
    (g.root / "empty.txt").write_bytes(b"")
    return ["prepare", "text", "--train", str(g.root / "empty.txt"), "--dest", str(g.root / "out2")]


case("raw text missing", "none.txt (train) does not exist")(
    lambda g: ["prepare", "text", "--train", str(g.root / "none.txt"), "--dest", str(g.root / "out")]
)


# ---- GLUE -------------------------------------------------------------------------------------------------


def spoilt_cola(g: Ground, row: str) -> list[str]:
    raw = g.root / "spoilt_raw"
    Ground.write_cola(raw, row)
    return ["prepare", "glue", str(raw), "--dest", str(g.root / "glue2"), "--tasks", "cola"]


case("GLUE file without a column", "train.tsv, line 1: column 4 is missing")(
    lambda g: spoilt_cola(g, "{label}\t{text}")
)
case("GLUE label that does not exist", "train.tsv", "label 'maybe' is not one of 0, 1")(
    lambda g: spoilt_cola(g, "x\tmaybe\t\t{text}")
)
case("GLUE task folder missing", "CoLA does not exist; it should hold train.tsv")(
    lambda g: ["prepare", "glue", str(g.root), "--dest", str(g.root / "glue2"), "--tasks", "cola"]
)
case("unknown GLUE task", "choose cola, ", "did you mean 'cola'")(
    lambda g: ["prepare", "glue", str(g.raw), "--dest", str(g.root / "glue2"), "--tasks", "kola"]
)


@case("GLUE file that is not UTF-8", "dev.tsv", "UTF-8")
def _(g: Ground) -> list[str]:
    raw = g.copy(g.raw)
    (raw / "CoLA" / "dev.tsv").write_bytes("x\t1\t\tA caf\xe9.\n".encode("latin-1"))
    return ["prepare", "glue", str(raw), "--dest", str(g.root / "glue2"), "--tasks", "cola"]


# ---- audio ------------------------------------------------------------------------------------------------


def manifest(g: Ground, name: str, content: bytes | None, *words: str) -> list[str]:
    folder = g.root / "audio" / name
    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (folder / "one.wav").write_bytes(content)
    return ["prepare", "audio-manifest", str(folder), "--dest", str(folder), "--ext", "wav", *words]


def wave(samples: int, rate: int) -> bytes:
    """A 16-bit mono WAV file."""
    made = io.BytesIO()
    soundfile.write(made, np.sin(np.arange(samples) / 9.0), rate, format="WAV")
    return made.getvalue()


case("folder without audio", "wav")(lambda g: manifest(g, "none", None))
case("audio that is broken", "one.wav", "not readable as audio")(
    lambda g: manifest(g, "broken", b"RIFF" + bytes(50), "--strict")
)
case("audio of another rate", "one.wav", "8000")(lambda g: manifest(g, "slow", wave(4000, 8000), "--strict"))


# ---- fine-tuning and checkpoints --------------------------------------------------------------------------

case("every sentence over-long", "longer than 4 tokens", "raise the limit (task.max_positions")(
    lambda g: g.finetune("task.max_positions=4")
)


@case("over-long sentences in validation", "split valid", "task.shorten_method=truncate, or leave them out")
def _(g: Ground) -> list[str]:
    raw, dest = g.copy(g.raw), g.root / "glue_long"
    (raw / "CoLA" / "dev.tsv").write_text(f"x\t1\t\t{'The old mill turned. ' * 40}\nx\t0\t\tA mill.\n")
    words = ["prepare", "glue", str(raw), "--dest", str(dest), "--tasks", "cola"]
    code, said = call([*words, "--dict", str(g.root / "dict.txt")])
    assert code == 0, said
    return g.finetune(data=dest / "CoLA-bin")


case("classes where numbers are wanted", "holds classes, not numbers; set criterion.regression_target=false")(
    lambda g: g.finetune("task.num_classes=1", "criterion.regression_target=true",
                         "criterion.report_mcc=false", "checkpoint.best_checkpoint_metric=loss",
                         "checkpoint.maximize_best_checkpoint_metric=false")
)  # fmt: skip


@case("data prepared with another dictionary than the model's", "was prepared with another dictionary")
def _(g: Ground) -> list[str]:
    other, dest = g.root / "other_dict.txt", g.root / "glue_other"
    Dictionary.from_counts({"262": 9, "318": 4}).save(other)
    words = ["prepare", "glue", str(g.raw), "--dest", str(dest), "--tasks", "cola", "--dict", str(other)]
    code, said = call(words)
    assert code == 0, said
    return g.finetune(data=dest / "CoLA-bin")


def spoilt_model(g: Ground, how: Callable[[Path], object]) -> list[str]:
    model = g.copy(g.model)
    how(model)
    return g.finetune(model=model)


case("truncated weights", "model.safetensors is damaged or truncated")(
    lambda g: spoilt_model(
        g, lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:2000])
    )
)
case("model folder with a broken config.json", "config.json is not readable JSON")(
    lambda g: spoilt_model(g, lambda m: (m / "config.json").write_text("{"))
)
case("model folder without weights", "model.safetensors missing")(
    lambda g: spoilt_model(g, lambda m: (m / "model.safetensors").unlink())
)


@case("checkpoint missing", "none.pt': no such file or folder")
def _(g: Ground) -> list[str]:
    return g.finetune(model=g.root / "none.pt")


@case("a .pt that is no checkpoint", "noise.pt is no PyTorch checkpoint")
def _(g: Ground) -> list[str]:
    (g.root / "noise.pt").write_bytes(bytes(range(256)) * 20)
    return g.finetune(model=g.root / "noise.pt")


@case("foreign checkpoint", "is no fairseq checkpoint: it holds the entries epoch, weights")
def _(g: Ground) -> list[str]:
    torch.save({"epoch": 3, "weights": {"layer.weight": torch.ones(3)}}, g.root / "foreign.pt")
    return g.finetune(model=g.root / "foreign.pt")


class Exploit:
    """Would run a command if anything unpickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(tempfile.gettempdir()) / "d2v_unpickled",))


@case("checkpoint with code in it (never run)", "evil.pt is refused", "could run code when loaded")
def _(g: Ground) -> list[str]:
    torch.save({"model": Exploit()}, g.root / "evil.pt")
    return g.finetune(model=g.root / "evil.pt")


@case("old-style pickle with code in it (never run)", "old.pt")
def _(g: Ground) -> list[str]:
    (g.root / "old.pt").write_bytes(pickle.dumps({"model": Exploit()}))
    return g.finetune(model=g.root / "old.pt")


@case("Hugging Face folder of another model", "config.json", "those that can be read")
def _(g: Ground) -> list[str]:
    folder = g.root / "bert"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    return g.finetune(model=folder)


# ---- running them -----------------------------------------------------------------------------------------


def call(words: list[str]) -> tuple[int, str]:
    """Exit code and what a command wrote to standard error."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
        try:
            run(lambda: app(words, prog_name="d2v", standalone_mode=False))
        except SystemExit as ended:
            return int(ended.code or 0), shown.getvalue()
    return 0, shown.getvalue()


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    root = tmp_path_factory.mktemp("bad_input")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2V_HOME", str(root / "home"))
        patch.setenv("COLUMNS", "200")
        yield Ground(root)


@pytest.mark.parametrize("mistake", CASES, ids=[c.kind for c in CASES])
def test_a_mistake_is_named_with_exit_code_2_and_no_trace(ground: Ground, mistake: Case) -> None:
    code, said = call(mistake.make(ground))
    assert code == 2, said
    assert "Traceback" not in said
    assert said.startswith("error: ") or "\nerror: " in said
    for words in mistake.says:
        assert words in said
    assert not (Path(tempfile.gettempdir()) / "d2v_unpickled").exists()


def test_the_good_ground_itself_is_accepted(ground: Ground) -> None:
    for words in (ground.pretrain(), ground.finetune()):
        code, said = call([*words, "--plan"])
        assert code == 0, said
    assert len({c.kind for c in CASES}) == len(CASES) >= 20


def table(ground: Ground) -> str:
    """The battery in Markdown: each mistake and the first lines of what the user sees."""
    rows = ["| mistake | what you see (exit code 2) |", "|---|---|"]
    for mistake in CASES:
        _, said = call(mistake.make(ground))
        text = said[said.index("error: ") + 7 :].strip().replace(str(ground.root), "/data")
        text = " ".join(line.strip() for line in text.splitlines())
        text = text if len(text) <= 240 else text[:237] + "..."
        rows.append(f"| {mistake.kind} | `{text.replace('|', chr(92) + '|').replace('`', chr(39))}` |")
    return "\n".join(rows)


if __name__ == "__main__":
    import os

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"D2V_HOME": f"{folder}/home", "COLUMNS": "200", "D2V_LOG_LEVEL": "ERROR"}
        sys.stdout.write(table(Ground(Path(folder))) + "\n")
