"""What counts as a secret, and what must stay readable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.describe import recipe_as_yaml
from d2v_platform.redaction import MASK, looks_secret, redact, redact_file, redact_text
from d2v_platform.tracking.tracker import NewRun, Tracker
from d2v_platform.training.continuation import resume_command
from data2vec.errors import ConfigError, Data2VecError


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "RAY_AUTH_TOKEN",
        "HF_TOKEN",
        "platform.api_key",
        "db.passwd",
        "token",
        "client-secret",
        "OPENAI_API_KEY",
    ],
)
def test_secret_names(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "task.tokens_per_sample",
        "task.separator_token",
        "dataset.max_tokens",
        "tokenizer",
        "TOKENIZERS_PARALLELISM",
        "model.mask_token",
        "key",
        "primary_keys",
        "passwordless_mode_count",
    ],
)
def test_ordinary_names(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql+psycopg2://me:pw@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        ("s3://bucket/folder@2/file", "s3://bucket/folder@2/file"),
        ("models:/name@champion", "models:/name@champion"),
        ("mail me@example.org", "mail me@example.org"),
        ("https://h/p?access_token=abc&x=1", "https://h/p?access_token=***&x=1"),
        ("s3://b/p?access_key=A&secret_key=B", "s3://b/p?access_key=***&secret_key=***"),
        ("https://a.blob/x?sv=2020&sig=aB%2Fc&se=1", "https://a.blob/x?sv=2020&sig=***&se=1"),
        ("sig=aBc", "sig=***"),
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("log in as me:hunter2@db.local", "log in as me:***@db.local"),
        ("image name:tag@sha256:00ff and 12:30@noon", "image name:tag@sha256:00ff and 12:30@noon"),
        ("models:/a/b:c@champion", "models:/a/b:c@champion"),
        (
            "DefaultEndpointsProtocol=https;AccountName=n;AccountKey=a+b/c==;EndpointSuffix=x",
            "DefaultEndpointsProtocol=https;AccountName=n;AccountKey=***;EndpointSuffix=x",
        ),
        ("Server=s;User Id=u;Password=p;", "Server=s;User Id=u;Password=***;"),
    ],
)
def test_uris(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_environment_values_vanish_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh1234")
    monkeypatch.setenv("OTHER_PASSWORD", "short")  # too short to be told from ordinary words
    given = {"a": ["x abcdefgh1234 y", {"b": "abcdefgh1234"}], "n": 3, "t": (True, None), "s": "a short text"}
    assert redact(given) == {"a": ["x *** y", {"b": "***"}], "n": 3, "t": [True, None], "s": "a short text"}


@pytest.mark.parametrize(
    "name",
    ["PGPASSWORD", "DB_PASS", "MYSQL_PWD", "GITHUB_PAT", "AZURE_STORAGE_KEY",
     "AZURE_STORAGE_CONNECTION_STRING", "DATABASE_URL", "SENTRY_DSN", "NPM_TOKEN", "STORAGE_SAS",
     "GOOGLE_CREDENTIALS_JSON"],
)  # fmt: skip
def test_secret_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "qwertz-123")
    assert redact_text("a qwertz-123 b") == "a *** b"


@pytest.mark.parametrize(
    "name",
    ["MLFLOW_TRACKING_TOKEN_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "RAY_AUTH_TOKEN_PATH", "PGPASSFILE", "PWD",
     "OLDPWD", "TOKENIZERS_PARALLELISM", "PATH", "KEYBOARD", "COMPASS_HOME"],
)  # fmt: skip
def test_ordinary_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most hold paths, which messages must be able to name."""
    monkeypatch.setenv(name, "/secrets/of/mine")
    assert redact_text("see /secrets/of/mine") == "see /secrets/of/mine"


def test_the_password_of_any_address_in_the_environment_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:p%2Fw%20very-long@db/x")
    for text in ("p/w very-long", "p%2Fw%20very-long", "p%2Fw+very-long"):
        assert redact_text(f"<{text}>") == "<***>"
    assert redact_text("me db x postgresql") == "me db x postgresql"


def test_a_secret_is_found_url_encoded_and_inside_json(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = 'a"b\\c/d e+f\ng'
    monkeypatch.setenv("MY_SECRET", secret)
    for text in (secret, quote(secret, safe=""), quote(secret), quote_plus(secret), json.dumps(secret)):
        shown = redact_text(f"<{text}>")
        assert MASK in shown and "b" not in shown


def test_files_of_text_lose_their_secrets_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh1234")
    names = [
        f"file.{end}"
        for end in ["yaml", "yml", "json", "md", "txt", "csv", "tsv", "toml", "log", "html", "YAML"]
    ]
    for name in [*names, "weights.bin"]:
        (tmp_path / name).write_text("key: abcdefgh1234")
        redact_file(tmp_path / name)
    assert {(tmp_path / name).read_text() for name in names} == {"key: ***"}
    assert (tmp_path / "weights.bin").read_text() == "key: abcdefgh1234"


def test_a_name_that_holds_a_secret_is_refused_before_the_run_is_made(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh1234")
    fields = ("run_name", "register_as", "alias", "experiment")
    asked = [f"platform.{field}=x-abcdefgh1234" for field in fields]
    with pytest.raises(ConfigError) as caught:
        compose("tiny/text_pretraining", ["task.data=/nowhere", *asked])
    text = str(caught.value)
    assert "abcdefgh1234" not in text
    assert all(re.search(rf"platform\.{field} = 'x-\*\*\*' +holds a secret", text) for field in fields)
    with Tracker(f"sqlite:///{home}/mlflow.db") as tracker, pytest.raises(Data2VecError) as refused:
        tracker.open_run(NewRun(name="abcdefgh1234", experiment="tests", params={}))
    assert "platform.run_name = '***' holds a secret" in str(refused.value)


def test_a_resolved_recipe_and_the_line_that_resumes_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh1234")
    asked = ["task.data=/data/abcdefgh1234", "+platform.extra_tags.note=abcdefgh1234"]
    composed = compose("tiny/text_pretraining", asked, check=False)
    shown = recipe_as_yaml(composed.recipe).plain
    assert "abcdefgh1234" not in shown and "/data/***" in shown
    line = resume_command(composed, "mine")
    assert "abcdefgh1234" not in line and "platform.run_name=mine" in line
