"""A teacher behind an OpenAI-compatible endpoint. Its key is read from a named variable and goes nowhere else."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import httpx2
import openai
from pydantic_core import from_json

from ablate.teachers.teacher import Completion, Prompt

MAX_ANSWER_BYTES = 8 * 1024**2
MAX_TOKENS = 10**7  # of a request; a larger count is none
MAX_MESSAGE_CHARACTERS = 200
MIN_SECRET_CHARACTERS = 12  # a shorter key is a placeholder, such as local servers want, and may be a word of a text
ADDRESS = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?(/[\w.~:-]*)*", re.ASCII | re.IGNORECASE)
LOCAL = ("localhost", "127.0.0.1", "[::1]")
INSTRUCTION = "Continue the following text in its own style. Answer with the continuation alone.\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointTeacher:
    """`base_url` ends where /completions or /chat/completions follows, as in https://host/v1.

    `key_variable` names the environment variable with the key; empty for none. `n_parameters` activated parameters
    give the FLOPs, two a parameter; None if they are not known. A text has `timeout_s` seconds, within which the
    client repeats a request that fails in passing up to `n_retries` times.
    ValueError, which never shows what may be a secret, for an address or a variable that cannot be used.
    """

    base_url: str
    model: str
    key_variable: str = field(default="", repr=False)
    style: Literal["completions", "chat"] = "completions"
    n_parameters: float | None = None
    timeout_s: float = 600.0
    n_retries: int = 4
    n_parallel: int = 4

    def __post_init__(self) -> None:
        address, key = ADDRESS.fullmatch(self.base_url), self._key()
        if address is None:
            raise ValueError(
                "the endpoint's address, not shown since it may hold a secret, is not a bare one such as "
                "https://host/v1; leave out user, password, key and query, and name the variable that holds the key "
                "with --key-variable"
            )
        if key and address[1].lower() == "http" and address[2].lower() not in LOCAL:
            raise ValueError(f"the key would be sent to {address[2]} unencrypted; give an https:// address")

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

    @property
    def answers(self) -> bool:
        return self.style == "chat"

    def complete(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """ValueError, without the key, if a prompt stays without a text; then no further one is asked."""
        options = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        return asyncio.run(self._complete_all(prompts, options))

    async def _complete_all(self, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> list[Completion]:
        free = asyncio.Semaphore(self.n_parallel)
        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._complete(client, free, prompt, options)) for prompt in prompts]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _client(self) -> openai.AsyncOpenAI:
        try:
            http = openai.DefaultAsyncHttpxClient(
                follow_redirects=False,  # one would carry the key to another host
                event_hooks={"request": [self._keep_to_the_request], "response": [_keep_to_the_limits]},
            )
        except (ImportError, ValueError, httpx2.InvalidURL):
            raise ValueError(
                "the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY) cannot be used; "
                "give the address of an http:// or https:// proxy, or unset the variable"
            ) from None
        return openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key() or "none",
            timeout=self.timeout_s,
            max_retries=self.n_retries,
            http_client=http,
        )

    async def _keep_to_the_request(self, request: httpx2.Request) -> None:
        """No other headers: the client adds facts of the machine and whatever OPENAI_* variables say."""
        headers = {
            "host": request.url.netloc.decode(),
            "content-type": "application/json",
            "content-length": request.headers["content-length"],
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "dsv3-ablate",
        }
        key = self._key()
        request.headers = httpx2.Headers(headers | ({"authorization": f"Bearer {key}"} if key else {}))

    async def _complete(
        self, client: openai.AsyncOpenAI, free: asyncio.Semaphore, prompt: Prompt, options: Mapping[str, Any]
    ) -> Completion:
        body: dict[str, Any] = {**options, "prompt": prompt.text}
        path = "/completions"
        if self.style == "chat":
            asked = prompt.text if prompt.asks else INSTRUCTION + prompt.text
            body = {**options, "messages": [{"role": "user", "content": asked}]}
            path = "/chat/completions"
        async with free:
            try:
                async with asyncio.timeout(self.timeout_s):
                    response = await client.post(path, body=body, cast_to=httpx2.Response)
                return self._completion(response.content)
            except TimeoutError:
                fault = f"its answer took more than {self.timeout_s:g} seconds"
            except openai.APIStatusError as error:
                fault = f"it answered {error.status_code} {_message(error.response.content)}".rstrip()
            except (openai.OpenAIError, httpx2.HTTPError, ValueError) as error:
                fault = str(error.__cause__ or error)
        raise ValueError(
            f"the endpoint {self.base_url} gave no text ({self._excerpt(fault)}); "
            "check its address, the model's name and the key's variable"
        )

    def _completion(self, content: bytes) -> Completion:
        """ValueError for anything but a completion."""
        try:
            answer = from_json(content)
        except ValueError as error:
            raise ValueError(f"its answer is not JSON, or is nested more than 200 deep: {error}") from None
        text = _text(answer, self.style)
        if text is None:
            raise ValueError("its answer is not that of a completion: it holds no text")
        usage = answer.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        # An endpoint that does not count is counted by the usual four characters a token.
        n_tokens = total if type(total) is int and 0 < total <= MAX_TOKENS else math.ceil(len(text) / 4)
        if len(self._key()) >= MIN_SECRET_CHARACTERS:
            text = self._clean(text)
        return Completion(text=text, n_forward_tokens=n_tokens)

    def _key(self) -> str:
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "")
        if not key.strip() or not key.isascii() or not key.isprintable():
            raise ValueError(
                "--key-variable names no environment variable that holds a key (what was given is not shown, since it "
                "may be the key itself); put the key in a variable, such as TEACHER_KEY, and give that name"
            )
        return key

    def _clean(self, text: str) -> str:
        """The text without the key, which a server or a library may repeat."""
        key = self._key()
        return text.replace(key, "[key]").replace(quote(key, safe=""), "[key]") if key else text

    def _excerpt(self, text: str) -> str:
        """The beginning of a message on one line of printable characters; cleaned before it is cut."""
        line = " ".join(self._clean(text).split())
        return self._clean("".join(c for c in line if c.isprintable()))[:MAX_MESSAGE_CHARACTERS]


class _Limited(httpx2.AsyncByteStream):
    """An answer's body, which ends with an error where it grows too long."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        n_bytes = 0
        async for part in self.stream:
            n_bytes += len(part)
            if n_bytes > MAX_ANSWER_BYTES:
                raise openai.OpenAIError(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
            yield part

    async def aclose(self) -> None:
        await self.stream.aclose()


async def _keep_to_the_limits(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise openai.OpenAIError("its answer is compressed, which was not asked for and hides its length")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Limited(response.stream)


def _message(content: bytes) -> str:
    """What the body of an error says: JSON of a usual shape, or text without escapes, which could hide a key."""
    try:
        found = from_json(content)
    except ValueError:
        text = content.decode(errors="replace")
        return "" if re.search(r"[<&%\\]", text) else text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict):
            found = found.get(name, found)
    return found if isinstance(found, str) else ""


def _text(answer: Any, style: str) -> str | None:
    """The text of an answer, or None where it has none."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if style == "chat" else choice["text"]
    except (KeyError, IndexError, TypeError):
        return None
    return text.replace("\0", "") if isinstance(text, str) else None
