"""``d2v prepare audio-labels --transcripts``: a user's own table of paths and texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from d2v_platform.preparation.audio_labels import prepare_labels
from d2v_platform.preparation.commands import app
from d2v_platform.preparation.transcript_tables import TranscriptTable
from data2vec.data.manifest import manifest_text
from data2vec.errors import DataError

WORDS = ["GOOD DAY", "A, B", "SAY YES"]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "train.tsv"
    entries = [("clips/a.wav", 100), ("clips/b.wav", 200), ("clips/c.d.wav", 300)]
    path.write_text(manifest_text("/corpus/en", entries))
    return path


def labels(manifest: Path, text: str, name: str = "table.csv", **columns: str) -> list[str]:
    (manifest.parent / name).write_text(text, encoding="utf-8")
    table = TranscriptTable(file=manifest.parent / name, **columns)
    out = manifest.parent / f"out{len(list(manifest.parent.glob('out*')))}"
    prepare_labels(manifest, out, "train", table=table, build_dict=True)
    return (out / "train.wrd").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "text",
    [
        'path,sentence\nclips/c.d.wav,SAY  YES\nclips/a.wav,GOOD DAY\nclips/b.wav,"A, B"\n',
        "client\tpath\tsentence\n1\ta.mp3\tGOOD DAY\n2\tb.mp3\tA, B\n3\tc.d.mp3\tSAY YES\n9\tz.mp3\t\n",
        "a|x|y\n",
        "\ufeffFile;Words;n\r\n/corpus/en/clips/a.wav;GOOD DAY;1\r\n"
        "./clips/b.wav;A, B;2\r\nc.d;SAY\u2028YES;3\r\n",
        "a\tGOOD DAY\nb\tA, B\nc.d\tSAY YES\n",
        'file_name,text\nen/clips/a.flac,GOOD DAY\nen/clips/b.flac,"A,\nB"\nen/clips/c.d.flac,SAY YES\n',
        'clips\\a.wav\tGOOD DAY\nclips\\b.wav\t"A, B"\nclips\\c.d.wav\tSAY YES\n\n',
    ],
    ids=[
        "csv",
        "common voice",
        "ljspeech",
        "semicolons, BOM, absolute",
        "no header",
        "lines in quotes",
        "windows",
    ],
)
def test_tables_that_are_understood(manifest: Path, text: str) -> None:
    if text.startswith("a|"):
        text = "a|Good day, sir|GOOD DAY\nb|a, b|A, B\nc.d|say yes|SAY YES\n"
        assert labels(manifest, text, path_column="1", text_column="3") == WORDS
    else:
        assert labels(manifest, text) == WORDS


def test_quotes_between_tabs_are_text(manifest: Path) -> None:
    text = 'path\ttext\na\tSAY "YES\nb\t"A ""B"""\nc.d\tTHE "END"\n'
    assert labels(manifest, text) == ['SAY "YES', 'A "B"', 'THE "END"']


def test_columns_by_name(manifest: Path) -> None:
    text = 'text,name,Lyrics\nx,a,GOOD DAY\ny,b,"A, B"\nz,c.d,SAY YES\n'
    assert labels(manifest, text, path_column="name", text_column="Lyrics") == WORDS
    assert labels(manifest, text, path_column="name") == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("song,lyrics,n\na,b,1\n", {}, ["path, file", "--path-column", "--text-column", "\n  2  lyrics"]),
        ("path,lyrics\na,b\n", {}, ["no column is called text", "give --text-column", "\n  1  path"]),
        ("path,lyrics\na,b\n", {"text_column": "lyric"}, ["'lyric' is not there; did you mean 'lyrics'"]),
        ("path,lyrics\na,b\n", {"text_column": "3"}, ["'3' is not there"]),
        ("path,lyrics\na,b\n", {"text_column": "0"}, ["'0' is not there"]),
        ("path,text\na,b\n", {"text_column": "path"}, ["cannot be one column"]),
        ("\n\n", {}, ["has no rows"]),
    ],
)
def test_columns_that_are_not_understood(
    manifest: Path, text: str, columns: dict[str, str], said: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        labels(manifest, text, **columns)
    for words in said:
        assert words in str(caught.value)


def test_all_problems_at_once_with_their_lines(manifest: Path) -> None:
    text = "path,text\na,GOOD DAY\na,BAD DAY\nb\nb,  \n\nx/y,1,2\n"
    with pytest.raises(DataError) as caught:
        labels(manifest, text)
    table = manifest.parent / "table.csv"
    assert str(caught.value).splitlines() == [
        f"transcripts of {manifest}:",
        f"  {table}, line 4: 1 columns, the first line has 2",
        f"  {table}, line 7: 3 columns, the first line has 2",
        f"  {table}, lines 2 and 3: two texts of {manifest}, line 2: clips/a.wav",
        f"  {table}, line 5: no text",
        f"  {manifest}, line 4: clips/c.d.wav is not in {table}",
    ]
    assert not list(manifest.parent.glob("out*"))


def test_a_name_without_folders_that_two_files_have(tmp_path: Path) -> None:
    manifest = tmp_path / "train.tsv"
    manifest.write_text(manifest_text("/r", [("x/a.wav", 1), ("y/a.wav", 1)]))
    with pytest.raises(DataError, match=r"line 2 would be .*y/a\.wav and x/a\.wav; give its folders too"):
        labels(manifest, "path,text\na.wav,ONE\n")
    assert labels(manifest, "path,text\nx/a.wav,ONE\ny/a.wav,TWO\n") == ["ONE", "TWO"]


def test_a_quote_that_does_not_end(manifest: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv, line 3: "):
        labels(manifest, 'path,text\na,ONE\nb,"TWO\nc.d,THREE\n')


@pytest.mark.parametrize(
    ("content", "said"), [(b"path,text\na,\xff\n", "byte 12 is not UTF-8"), (None, "no such")]
)
def test_a_file_that_cannot_be_read(manifest: Path, content: bytes | None, said: str) -> None:
    file = manifest.parent / "t.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=said):
        prepare_labels(manifest, manifest.parent / "out", "train", table=TranscriptTable(file=file))


def test_the_command(manifest: Path) -> None:
    (manifest.parent / "t.csv").write_text("name,text\na,GOOD DAY\nb,ON\nc.d,SAY YES\n")
    words = ["audio-labels", str(manifest), "--output-dir", str(manifest.parent), "--output-name", "train"]
    done = CliRunner().invoke(
        app, [*words, "--transcripts", str(manifest.parent / "t.csv"), "--path-column", "name"]
    )
    assert done.exit_code == 0 and "3 utterances, 5 words" in done.output, done.output
    assert (manifest.parent / "train.ltr").read_text().startswith("G O O D | D A Y |\n")
    wrong = CliRunner().invoke(app, [*words, "--text-column", "text"])
    assert isinstance(wrong.exception, DataError) and "give --transcripts" in str(wrong.exception)
