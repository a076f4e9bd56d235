"""What counts as a secret, and what must stay readable."""

from __future__ import annotations

import pytest

from d2v_platform.tracking.redaction import looks_secret, redact, redact_text


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
    ],
)
def test_uris(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_environment_values_vanish_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh1234")
    monkeypatch.setenv("OTHER_PASSWORD", "short")  # too short to be told from ordinary words
    given = {"a": ["x abcdefgh1234 y", {"b": "abcdefgh1234"}], "n": 3, "t": (True, None), "s": "a short text"}
    assert redact(given) == {"a": ["x *** y", {"b": "***"}], "n": 3, "t": [True, None], "s": "a short text"}
