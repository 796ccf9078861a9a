"""What others say is kept without the secrets in it, and with everything else."""

from __future__ import annotations

import pytest

from ablate.runs.redaction import redacted

SECRET = "0f1e2d3c4b5a6978"


@pytest.mark.parametrize(
    "text",
    [
        f"cannot reach postgresql://me:{SECRET}@db/x",
        f"Authorization: Bearer {SECRET}",
        f"headers {{'authorization': 'Bearer {SECRET}'}}",
        f"WANDB_API_KEY={SECRET}",
        f"HF_TOKEN: {SECRET}",
        f"https://host/v1?api_key={SECRET}&n=1",
        f"password = '{SECRET}'",
        f"Basic {SECRET}",
    ],
)
def test_a_secret_is_hidden(text: str) -> None:
    assert SECRET not in redacted(text)
    assert "***" in redacted(text)


def test_the_value_of_a_variable_is_hidden_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ACCESS_TOKEN", SECRET)
    monkeypatch.setenv("SHORT_KEY", "on")
    assert redacted(f"no answer for {SECRET}, it is on") == "no answer for ***, it is on"


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'blocks.0.attention.wq.weight'",
        "n_tokens=4096, key: (2, 16)",
        "token ids: [1, 2, 3]; https://host:8080/v1",
        'File "ablate/x.py", line 3, in keys\n    token = tokens[0]',
        "basic blocks are compiled",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
