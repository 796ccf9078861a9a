"""A teacher behind an OpenAI-compatible endpoint. Its key is read from a named variable and goes nowhere else."""

from __future__ import annotations

import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal

from ablate.teachers.teacher import Completion

MAX_ANSWER_BYTES = 8 * 1024**2
MAX_ERROR_BYTES = 4096
MAX_PAUSE_S = 30.0
LOCAL = ("localhost", "127.0.0.1", "::1")
INSTRUCTION = "Continue the following text in its own style. Answer with the continuation alone.\n\n"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host; the answer 3xx then is an error like any other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointTeacher:
    """`base_url` ends where /completions or /chat/completions follows, as in https://host/v1.

    `key_variable` names the environment variable with the key; empty for none. `n_parameters` activated parameters
    give the FLOPs, two a parameter; None if they are not known. A request that fails is repeated `n_retries` times.
    """

    base_url: str
    model: str
    key_variable: str = ""
    style: Literal["completions", "chat"] = "completions"
    n_parameters: float | None = None
    timeout_s: float = 120.0
    n_retries: int = 4
    n_parallel: int = 4
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        url = urllib.parse.urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("the endpoint's address must begin with https:// (or http:// on this machine) and a host")
        if url.username or url.password or url.query or url.fragment:
            # Not repeated here, since such a part may be the key itself.
            raise ValueError(
                "the endpoint's address holds a user, password or query; give the bare address, "
                "and the key in an environment variable that key_variable names"
            )
        if url.scheme == "http" and url.hostname not in LOCAL and self.key_variable:
            raise ValueError(f"the key would be sent to {url.hostname} unencrypted; give an https:// address")
        self._key()

    @property
    def flops_per_token(self) -> float | None:
        return None if self.n_parameters is None else 2.0 * self.n_parameters

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "endpoint",
            "base_url": self.base_url,
            "model": self.model,
            "style": self.style,
            "n_parameters": self.n_parameters,
        }

    def complete(self, prompts: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> list[Completion]:
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        pool = ThreadPoolExecutor(self.n_parallel)
        try:
            return list(pool.map(lambda prompt: self._complete(prompt, options), prompts))
        finally:
            # After an error, or Ctrl-C, what was not asked yet is not asked any more.
            pool.shutdown(cancel_futures=True)

    def _complete(self, prompt: str, options: Mapping[str, Any]) -> Completion:
        body: dict[str, Any] = {"model": self.model, **options}
        if self.style == "chat":
            path, body["messages"] = "/chat/completions", [{"role": "user", "content": INSTRUCTION + prompt}]
        else:
            path, body["prompt"] = "/completions", prompt
        return self._completion(self._ask(path, body))

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """The endpoint's answer; ValueError, without the key, when the last attempt failed too."""
        for attempt in range(self.n_retries + 1):
            try:
                return self._ask_once(path, body)
            except urllib.error.HTTPError as error:
                with error:
                    fault = f"it answered {error.code} {self._excerpt(error)}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    break
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, HTTPException, ValueError) as error:
                fault, wait = self._clean(str(error) or type(error).__name__), None
            if attempt < self.n_retries:
                self.pause(min(MAX_PAUSE_S, 2.0**attempt if wait is None else wait))
        raise ValueError(
            f"the endpoint {self.base_url} gave no text after {attempt + 1} attempts ({fault}); "
            "check its address, the model's name and the key's variable"
        ) from None

    def _ask_once(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "dsv3-ablate"}
        if self.key_variable:
            headers["Authorization"] = f"Bearer {self._key()}"
        request = urllib.request.Request(
            self.base_url.rstrip("/") + path, json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout_s) as response:
            raw = response.read(MAX_ANSWER_BYTES + 1)
        if len(raw) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        answer = json.loads(raw)
        if _text(answer, self.style) is None:
            raise ValueError("the answer is not that of a completion: it holds no text")
        return answer

    def _completion(self, answer: Any) -> Completion:
        text = _text(answer, self.style) or ""
        usage = answer.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        # An endpoint that does not count is counted by the usual four characters a token.
        n_tokens = total if isinstance(total, int) and total > 0 else math.ceil(len(text) / 4)
        return Completion(text=text, n_forward_tokens=n_tokens)

    def _key(self) -> str:
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "")
        if not key.strip() or not key.isascii() or not key.isprintable():
            raise ValueError(f"the variable {self.key_variable} holds no key; set it to the endpoint's key")
        return key

    def _clean(self, text: str) -> str:
        """A message without the key, which a server or a library may repeat."""
        key = self._key()
        return text.replace(key, "[key]") if key else text

    def _excerpt(self, error: urllib.error.HTTPError) -> str:
        """The beginning of an error's body on one line of printable characters; cleaned before it is cut.

        A cut through a repeated key would leave a part of it that no search for the whole key finds.
        """
        try:
            raw = error.read(MAX_ERROR_BYTES)
        except (OSError, HTTPException):
            return ""
        line = " ".join(self._clean(raw.decode(errors="replace")).split())
        text = self._clean("".join(c for c in line if c.isprintable()))
        if len(raw) == MAX_ERROR_BYTES:
            text = text[: max(0, len(text) - len(self._key()))]
        return text[:200]


def _text(answer: Any, style: str) -> str | None:
    """The text of an answer, or None where it has none that UTF-8 can hold."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if style == "chat" else choice["text"]
        text.encode()
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeEncodeError):
        return None
    return text.replace("\0", "") if isinstance(text, str) else None


def _seconds(value: str | None) -> float | None:
    """Retry-After in seconds; None for a date or nonsense."""
    return float(value) if value and value.isdecimal() else None
