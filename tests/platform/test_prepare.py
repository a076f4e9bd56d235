"""``d2v prepare``: parallel equals serial, a killed run continues, cards, conflicts, messages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from d2v_platform.preparation.commands import app
from d2v_platform.preparation.glue import choose_tasks, prepare_glue
from d2v_platform.preparation.text import TextOptions, TextReport, prepare_text
from data2vec.data.bpe import shared_bpe
from data2vec.data.dictionary import Dictionary
from data2vec.data.indexed import open_tokens
from data2vec.data.masked_lm import TextBlocksDataset
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import DataError

LINES = ["Hello world.", "", "  spaces around  ", "naïve café 日本語 🙂", "tab\there", "", "end"]


def text_file(path: Path, lines: list[str] = LINES, newline: str = "\n") -> Path:
    path.write_bytes(newline.join([*lines, ""]).encode())
    return path


def prose(path: Path, megabytes: float) -> Path:
    rng = np.random.default_rng(0)
    words = np.asarray(
        ["the", "of", "whale", "sea,", "ship", "and", "Ahab", "voyage.", "unfathomable", "white"]
    )
    lines = [" ".join(rng.choice(words, 60)) for _ in range(int(megabytes * 1e6 / 300))]
    return text_file(path, lines)


def run(dest: Path, **options: object) -> TextReport:
    sources = {k: v for k, v in options.items() if isinstance(v, Path) and k not in ("dictionary",)}
    rest = {k: v for k, v in options.items() if k not in sources}
    return prepare_text(sources, dest, TextOptions(**({"workers": 1} | rest)))  # pyright: ignore[reportArgumentType]


def files(dest: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in dest.iterdir() if p.suffix in (".bin", ".idx", ".txt")}


def test_lines_become_the_tokenizers_ids(tmp_path: Path) -> None:
    report = run(
        tmp_path / "data", train=text_file(tmp_path / "a.txt"), valid=text_file(tmp_path / "b.txt", LINES[:2])
    )
    tokens, tokenizer = open_tokens(tmp_path / "data", "train"), TextTokenizer(shared_bpe())
    assert [tokens[i].tolist() for i in range(len(tokens))] == [
        tokenizer.encode(line).tolist() for line in LINES
    ]
    assert [tokenizer.decode(tokens[i]) for i in range(len(tokens))] == [line.strip() for line in LINES]
    split = report.splits["train"]
    assert (split.lines, split.empty_lines, split.unknown_tokens) == (7, 2, 0)
    assert split.tokens == tokens.num_tokens == report.encoded_tokens - report.splits["valid"].tokens
    assert report.vocabulary == 50265
    card = json.loads((tmp_path / "data" / "card.json").read_text(encoding="utf-8"))
    assert card["dictionary"] == tokenizer.dictionary.digest()
    assert card["tokenizer"] == tokenizer.digest()
    assert card["splits"]["train"]["tokens"] == split.tokens
    assert card["splits"]["train"]["source_bytes"] == (tmp_path / "a.txt").stat().st_size
    data = TextBlocksDataset(
        tmp_path / "data", "train", tokens_per_sample=8, sample_break_mode="complete_doc"
    )
    assert card["splits"]["train"]["fingerprint"] == data.fingerprint()
    assert len(data) >= 3


def test_empty_lines_can_be_left_out(tmp_path: Path) -> None:
    report = run(tmp_path / "data", train=text_file(tmp_path / "a.txt"), keep_empty=False)
    assert (report.splits["train"].lines, report.splits["train"].empty_lines) == (5, 0)


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_foreign_line_ends_and_byte_order_marks(tmp_path: Path, newline: str) -> None:
    plain = text_file(tmp_path / "a.txt")
    other = text_file(tmp_path / "b.txt", newline=newline)
    other.write_bytes(b"\xef\xbb\xbf" + other.read_bytes())
    run(tmp_path / "1", train=plain)
    run(tmp_path / "2", train=other)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_chunks_and_processes_do_not_change_the_result(tmp_path: Path) -> None:
    source = prose(tmp_path / "a.txt", 0.2)
    whole = run(tmp_path / "1", train=source)
    small = run(tmp_path / "2", train=source, chunk_bytes=5000)
    parallel = run(tmp_path / "3", train=source, chunk_bytes=30_000, workers=2)
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")
    assert whole.splits == small.splits == parallel.splits
    assert not (tmp_path / "3" / ".prepare").exists()


def test_lines_longer_than_a_chunk_and_no_last_line_feed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short\n" + "long " * 500 + "\n\nlast", encoding="utf-8")
    run(tmp_path / "1", train=tmp_path / "a.txt", chunk_bytes=7)
    run(tmp_path / "2", train=tmp_path / "a.txt")
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert len(open_tokens(tmp_path / "1", "train")) == 4


def test_finished_splits_are_skipped_and_changed_ones_are_made_again(tmp_path: Path) -> None:
    train, valid, dest = text_file(tmp_path / "a.txt"), text_file(tmp_path / "b.txt"), tmp_path / "data"
    first = run(dest, train=train, valid=valid)
    assert not any(split.skipped for split in first.splits.values())
    second = run(dest, train=train, valid=valid)
    assert all(split.skipped for split in second.splits.values())
    assert second.encoded_tokens == 0
    text_file(valid, ["changed"])
    third = run(dest, train=train, valid=valid)
    assert (third.splits["train"].skipped, third.splits["valid"].skipped) == (True, False)
    assert len(open_tokens(dest, "valid")) == 1
    fourth = run(dest, train=train, valid=valid, keep_empty=False)
    assert not any(split.skipped for split in fourth.splits.values())
    (dest / "valid.bin").write_bytes(b"")
    assert not run(dest, valid=valid, keep_empty=False).splits["valid"].skipped
    assert set(json.loads((dest / "card.json").read_text(encoding="utf-8"))["splits"]) == {"train", "valid"}


RUN = """
import sys
from pathlib import Path
from d2v_platform.preparation.text import TextOptions, prepare_text
prepare_text({"train": Path(sys.argv[1])}, Path(sys.argv[2]), TextOptions(workers=2, chunk_bytes=20000))
"""


def test_a_killed_run_continues_from_its_chunks(tmp_path: Path) -> None:
    source, dest = prose(tmp_path / "a.txt", 3.0), tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(source), str(dest)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(dest.glob(".prepare/train/*.npz"))) < 5:
        assert process.poll() is None
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=30)[1] == []  # they leave by themselves
    assert not (dest / "train.idx").exists()
    chunks = sorted(dest.glob(".prepare/train/*.npz"))
    chunks[1].write_bytes(b"damaged")
    report = run(dest, train=source, chunk_bytes=20_000)
    assert report.reused_tokens > 0
    assert report.encoded_tokens > 0
    assert report.reused_tokens + report.encoded_tokens == report.splits["train"].tokens
    run(tmp_path / "straight", train=source)
    assert files(dest) == files(tmp_path / "straight")


def test_chunks_of_other_text_or_options_are_not_used(tmp_path: Path) -> None:
    source, dest = prose(tmp_path / "a.txt", 0.1), tmp_path / "data"
    bad = source.read_bytes()
    source.write_bytes(bad + b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        run(dest, train=source, chunk_bytes=20_000)
    assert list(dest.glob(".prepare/train/*.npz"))
    source.write_bytes(bad.replace(b"whale", b"shark"))
    report = run(dest, train=source, chunk_bytes=20_000)
    assert report.reused_tokens == 0
    run(tmp_path / "straight", train=source)
    assert files(dest) == files(tmp_path / "straight")


def test_a_dictionary_is_built_from_the_training_text(tmp_path: Path) -> None:
    train = text_file(tmp_path / "a.txt", ["b b b a", "a c"])
    valid = text_file(tmp_path / "b.txt", ["b z"])
    report = run(tmp_path / "data", train=train, valid=valid, build_dict=True, threshold=2)
    words, bpe = Dictionary.load(tmp_path / "data" / "dict.txt"), shared_bpe()
    kept = [s for s in words.symbols[4:] if not s.startswith("madeup")]
    assert [bpe.decode([int(s)]) for s in kept] == [" b"]  # the others occur once
    assert words.counts[4] == 2
    assert len(words) % 8 == 0
    assert report.splits["valid"].unknown_tokens == 2
    again = run(tmp_path / "data", train=train, valid=valid, build_dict=True, threshold=2)
    assert all(split.skipped for split in again.splits.values())
    assert again.dictionary == report.dictionary
    text_file(valid, ["b b b"])
    partly = run(tmp_path / "data", train=train, valid=valid, build_dict=True, threshold=2)
    assert (partly.splits["train"].skipped, partly.splits["valid"].skipped) == (True, False)
    assert partly.dictionary == report.dictionary
    run(tmp_path / "small", train=train, build_dict=True, max_size=5)
    (kept,) = Dictionary.load(tmp_path / "small" / "dict.txt").symbols[4:5]
    assert bpe.decode([int(kept)]) == " b", "the most frequent one"
    with pytest.raises(DataError, match=r"--max-size.*5"):
        run(tmp_path / "smaller", train=train, build_dict=True, max_size=4)


def test_a_dictionary_is_counted_over_all_training_files(tmp_path: Path) -> None:
    sources = {
        "train": text_file(tmp_path / "a.txt", ["b b b"]),
        "train1": text_file(tmp_path / "b.txt", ["a", "c"]),
        "valid": text_file(tmp_path / "c.txt", ["b"]),
    }
    first = run(tmp_path / "data", **sources, build_dict=True)
    text_file(sources["train1"], ["c", "a"])
    second = run(tmp_path / "data", **sources, build_dict=True)
    assert second.dictionary == first.dictionary, "the unchanged file counts too"
    assert sum(Dictionary.load(tmp_path / "data" / "dict.txt").counts[4:]) == 5


def test_a_given_dictionary_is_used(tmp_path: Path) -> None:
    words = Dictionary.from_counts({"15496": 9, "995": 3})
    words.save(tmp_path / "dict.txt")
    train = text_file(tmp_path / "a.txt", ["Hello world", "Hello there"])
    report = run(tmp_path / "data", train=train, dictionary=tmp_path / "dict.txt")
    assert open_tokens(tmp_path / "data", "train").stream(0, 9).tolist() == [4, 5, 2, 4, 3, 2]
    assert report.dictionary == words.digest()
    assert report.splits["train"].unknown_tokens == 1


def test_another_dictionary_in_the_folder_is_refused(tmp_path: Path) -> None:
    train, valid, dest = text_file(tmp_path / "a.txt"), text_file(tmp_path / "b.txt"), tmp_path / "data"
    run(dest, train=train)
    with pytest.raises(DataError, match=r"dict\.txt exists with other content"):
        run(dest, train=train, build_dict=True)
    Dictionary.from_counts({"15496": 9}).save(tmp_path / "dict.txt")
    with pytest.raises(DataError, match="also holds train, made with another dictionary"):
        run(dest, valid=valid, dictionary=tmp_path / "dict.txt")
    run(dest, train=train, valid=valid, dictionary=tmp_path / "dict.txt")  # everything anew: fine
    assert (dest / "dict.txt").read_bytes() == (tmp_path / "dict.txt").read_bytes()
    with pytest.raises(DataError, match=r"dict\.txt exists with other content"):
        run(dest, train=train)


def test_bytes_that_are_not_utf8_are_located_across_chunks(tmp_path: Path) -> None:
    good = "".join(f"line {i}\n" for i in range(1, 101)).encode()
    (tmp_path / "a.txt").write_bytes(good + b"caf\xe9\nmore\n")
    for workers in (1, 2):
        with pytest.raises(DataError, match=rf"a\.txt, line 101: byte {len(good) + 3} of the file \(0xe9\)"):
            run(tmp_path / "data", train=tmp_path / "a.txt", chunk_bytes=100, workers=workers)
    assert not (tmp_path / "data" / "train.idx").exists()


def test_all_problems_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError) as error:
        run(
            tmp_path / "data",
            valid=tmp_path / "empty.txt",
            valid1=tmp_path / "no.txt",
            valid2=tmp_path,
            build_dict=True,
            dictionary=tmp_path / "dict.txt",
            threshold=-1,
            workers=0,
        )
    text = str(error.value)
    for part in (
        "empty.txt (valid) is empty",
        "no.txt (valid1) does not exist",
        "(valid2) is not a file",
        "exclude each other",
        "counts the training text",
        "--threshold must be",
        "--workers 0",
    ):
        assert part in text
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError, match="no text was given"):
        run(tmp_path / "data")
    with pytest.raises(DataError, match="need --build-dict"):
        run(tmp_path / "data", train=text_file(tmp_path / "a.txt"), threshold=3)


def test_only_empty_lines_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no text, only empty lines"):
        run(tmp_path / "data", train=text_file(tmp_path / "a.txt", ["", " ", ""]))
    assert not (tmp_path / "data" / "train.idx").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / ".prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another d2v prepare is writing"):
            run(tmp_path / "data", train=text_file(tmp_path / "a.txt"))


def test_the_command_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, d2v_platform.preparation.commands;"
        "print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_text_command(tmp_path: Path) -> None:
    train, valid = text_file(tmp_path / "a.txt"), text_file(tmp_path / "b.txt")
    arguments = [
        "text",
        "--train",
        str(train),
        "--valid",
        str(valid),
        "--valid",
        str(train),
        "--dest",
        str(tmp_path / "data"),
        "--workers",
        "1",
        "--no-keep-empty",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "vocabulary 50265" in result.output
    assert "M tokens/s" in result.output
    assert {"train.bin", "valid.bin", "valid1.bin"} <= set(files(tmp_path / "data"))
    assert len(open_tokens(tmp_path / "data", "train")) == 5  # without the two empty lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "http://127.0.0.1:9/a.txt"], "add --download"),
        (["--train", "a.txt", "--sha256", "a.txt"], "must be NAME=HEX"),
        (["--train", "a.txt", "--sha256", f"a.txt={'0' * 64}"], "nothing of this name is downloaded"),
    ],
)
def test_text_command_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CliRunner().invoke(app, ["text", "--dest", str(tmp_path / "d"), *arguments], catch_exceptions=False)


def cola(folder: Path, train: str = "x\t1\t\tgood\nx\t0\t\tbad\nx\t1\t\tok\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text(train, encoding="utf-8")
    (folder / "dev.tsv").write_text("x\t1\t\tgood\n", encoding="utf-8")
    return folder.parent


def test_the_glue_command(tmp_path: Path) -> None:
    root = cola(tmp_path / "glue" / "CoLA")
    Dictionary.from_counts({"11274": 3}).save(tmp_path / "dict.txt")
    arguments = [
        "glue",
        str(root),
        "--dest",
        str(tmp_path / "out"),
        "--tasks",
        "CoLA",
        "--dict",
        str(tmp_path / "dict.txt"),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "0=1, 1=0" in result.output
    words = (tmp_path / "out" / "CoLA-bin" / "input0" / "dict.txt").read_text(encoding="utf-8")
    assert words == (tmp_path / "dict.txt").read_text(encoding="utf-8")


def test_good_tasks_are_prepared_and_bad_ones_all_reported(tmp_path: Path) -> None:
    root = cola(tmp_path / "glue" / "CoLA")
    with pytest.raises(DataError) as error:
        prepare_glue(root, tmp_path / "out", ["cola,rte", "sst-2"])
    assert "RTE does not exist" in str(error.value)
    assert "SST-2 does not exist" in str(error.value)
    assert "prepared: cola" in str(error.value)
    assert (tmp_path / "out" / "CoLA-bin" / "card.json").is_file()


def test_task_names() -> None:
    assert [t.name for t in choose_tasks(["STS-B,cola", "SST-2"])] == ["sts_b", "cola", "sst_2"]
    assert len(choose_tasks(["all"])) == 8
    with pytest.raises(DataError, match=r"unknown GLUE task 'colla'.*did you mean 'cola'"):
        choose_tasks(["colla"])


def test_checksums_must_belong_to_a_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs --download"):
        prepare_glue(tmp_path, tmp_path / "out", ["cola"], sha256={"cola": "0" * 64})
    with pytest.raises(DataError, match="rte is not among the chosen tasks"):
        prepare_glue(tmp_path, tmp_path / "out", ["cola"], fetch=True, sha256={"rte": "0" * 64})
    with pytest.raises(DataError, match="mrpc comes in 3 files"):
        prepare_glue(tmp_path, tmp_path / "out", ["mrpc"], fetch=True, sha256={"MRPC": "0" * 64})
