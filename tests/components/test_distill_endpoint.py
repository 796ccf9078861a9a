"""Endpoints as teachers: what is asked, what an answer may be, when waiting ends, and that no secret is told."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ablate.sweep.distill import Request, distill
from ablate.teachers.endpoint import MAX_ANSWER_BYTES, EndpointTeacher
from ablate.teachers.saved import SavedTeacher
from ablate.teachers.teacher import Completion, Prompt

KEY = "sk-secret+4711"
SOON = {"Retry-After-Ms": "1"}


class Server:
    """An endpoint on this machine. `answers` are (status, body, headers), or what is to be done with a request's
    handler; the last one is repeated."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append((self.path, body, {k.lower(): v for k, v in self.headers.items()}))
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                with contextlib.suppress(OSError):
                    answer(self) if callable(answer) else respond(self, *answer)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def respond(handler: BaseHTTPRequestHandler, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
    raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(raw))} | (headers or {})).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(raw)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A body that never ends and never pauses long."""
    respond(handler, 200, b"", {"Content-Length": "1000000"})
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


def go_on(handler: BaseHTTPRequestHandler) -> None:
    """Headers that never end."""
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.02)


def pour(handler: BaseHTTPRequestHandler) -> None:
    """A body without an announced length that never ends."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 2**20)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.http.shutdown()
    thread.join()
    found.http.server_close()


def completion(text: Any, **usage: Any) -> tuple[int, Any]:
    return 200, {"choices": [{"text": text}], "usage": usage or {"total_tokens": 12}}


def teacher(server: Server, **options: Any) -> EndpointTeacher:
    fixed = {"base_url": server.url, "model": "some/model", "key_variable": "TEACHER_KEY", "n_retries": 1}
    return EndpointTeacher(**{**fixed, "n_parallel": 1, **options})


def ask(server: Server, *texts: str, **options: Any) -> list[Completion]:
    return teacher(server, **options).complete(
        [Prompt(text=t) for t in texts or ("once",)], max_tokens=9, temperature=0.8, seed=1
    )


def fault(server: Server, **options: Any) -> str:
    """What is said of an endpoint that gives no text; nothing in the error or what led to it holds the key."""
    with pytest.raises(ValueError, match=r"gave no text \(.*check its address") as caught:
        ask(server, **options)
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return str(caught.value)


class TestAsking:
    def test_completions(self, server: Server) -> None:
        server.answers = [completion("and one"), completion("")]
        found = ask(server, "first", "second", n_parameters=3.0)
        assert found == [Completion(text="and one", n_forward_tokens=12), Completion(text="", n_forward_tokens=12)]
        path, body, _ = server.requests[0]
        assert path == "/v1/completions"
        assert body == {"model": "some/model", "prompt": "first", "max_tokens": 9, "temperature": 0.8, "seed": 1}
        assert teacher(server, n_parameters=3.0).flops_per_token == 6.0
        assert teacher(server).flops_per_token is None

    def test_chat(self, server: Server) -> None:
        server.answers = [(200, {"choices": [{"message": {"content": "x\0y"}}]})]
        assert ask(server, style="chat")[0].text == "xy"
        path, body, _ = server.requests[0]
        assert path == "/v1/chat/completions"
        assert body["messages"][0]["content"].endswith("\n\nonce")

    @pytest.mark.parametrize("key_variable", ["TEACHER_KEY", ""])
    def test_nothing_of_the_machine_or_the_environment_is_sent(
        self, server: Server, key_variable: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
            monkeypatch.setenv(name, "of-the-environment")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Own: own\nAuthorization: Bearer own\nHost: own\nCookie: own")
        server.answers = [completion("text")]
        ask(server, key_variable=key_variable)
        needed = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
        needed |= {"authorization": f"Bearer {KEY}"} if key_variable else {}
        sent = server.requests[0][2]
        assert sent.pop("content-length").isdecimal()
        assert sent == needed | {"host": server.url.removesuffix("/v1")[7:], "user-agent": "dsv3-ablate"}

    def test_passing_faults_are_repeated(self, server: Server) -> None:
        server.answers = [(503, {}, SOON), (429, {}, SOON), completion("at last")]
        assert ask(server, n_retries=2)[0].text == "at last"

    def test_lasting_faults_end_with_a_sentence(self, server: Server) -> None:
        server.answers = [(500, {"error": {"message": f"bad key {KEY}"}}, SOON)]
        assert "it answered 500 bad key [key]" in fault(server)
        assert len(server.requests) == 2

    def test_no_further_prompt_is_asked_after_a_fault(self, server: Server) -> None:
        server.answers = [(400, {})]
        with pytest.raises(ValueError, match="it answered 400"):
            ask(server, *["prompt"] * 20)
        assert len(server.requests) == 1

    def test_nobody_there(self, server: Server) -> None:
        assert "attempts failed" in fault(server, base_url="http://127.0.0.1:9", n_retries=0)

    def test_a_proxy_that_cannot_be_used(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", f"nonsense://user:{KEY}@host")
        with pytest.raises(ValueError, match="the proxy that the environment names") as caught:
            ask(server)
        assert KEY not in str(caught.value)


class TestAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            b"<html>not JSON",
            b"",
            {"choices": []},
            {"choices": [{"text": 7}]},
            {"choices": {"a": 1}},
            {"choices": "text"},
            ["choices"],
            b'{"choices": [{"text": "\\ud800"}]}',
            b'{"choices": [{"text": "\xff"}]}',
            b"[" * 200_000,
            b'{"choices": [{"text": "x"}], "a": ' + b"[" * 300 + b"]" * 300 + b"}",
        ],
    )
    def test_what_is_no_completion_is_told_and_not_asked_for_again(self, server: Server, answer: Any) -> None:
        server.answers = [(200, answer)]
        assert "its answer is not" in fault(server)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [200, 400])
    def test_its_size_is_limited(self, server: Server, status: int) -> None:
        server.answers = [pour, (status, b" " * (MAX_ANSWER_BYTES + 1))]
        for _ in range(2):
            assert f"longer than {MAX_ANSWER_BYTES} bytes" in fault(server)
        assert len(server.requests) == 2

    def test_compression_would_hide_its_size(self, server: Server) -> None:
        server.answers = [(200, gzip.compress(b" " * 10**6), {"Content-Encoding": "gzip"})]
        assert "compressed" in fault(server)

    @pytest.mark.parametrize("total", [-1, 0, "9", 10**100, True, None])
    def test_a_count_that_is_none_is_replaced_by_the_usual_one(self, server: Server, total: Any) -> None:
        server.answers = [completion("x" * 41, total_tokens=total)]
        assert ask(server)[0].n_forward_tokens == 11

    def test_a_redirect_is_not_followed(self, server: Server) -> None:
        for place in (server.url + "/elsewhere", "file:///etc/passwd", f"http://user:{KEY}@[host", "\u2028"):
            server.answers = [(302, {}, {"Location": quote(place, safe=":/@[")})]
            fault(server)
        assert {path for path, *_ in server.requests} == {"/v1/completions"}


class TestWaiting:
    @pytest.mark.parametrize("endless", [drip, go_on, lambda handler: time.sleep(2)])
    def test_an_answer_has_a_deadline_however_it_trickles(self, server: Server, endless: Callable[[Any], None]) -> None:
        server.answers = [endless]
        before = time.monotonic()
        assert "its answer took more than 0.3 seconds" in fault(server, timeout_s=0.3)
        assert time.monotonic() - before < 1.5

    def test_the_deadline_holds_for_all_attempts_and_waits_together(self, server: Server) -> None:
        server.answers = [(429, {}, {"Retry-After": "60"})]
        assert "more than 0.3 seconds" in fault(server, timeout_s=0.3)

    def test_an_interrupt_ends_it_at_once(self, server: Server) -> None:
        server.answers = [drip]
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        before = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            ask(server, "one", "two", n_parallel=2)
        assert time.monotonic() - before < 2


class TestSecrets:
    @pytest.mark.parametrize(
        ("body", "told"),
        [
            (f"invalid key {KEY}\x1b[31m".encode(), "it answered 401 invalid key [key][31m)"),
            (f"{KEY[:5]}\x1b{KEY[5:]}".encode(), "it answered 401 [key])"),
            ({"error": {"message": f"key {KEY}", "type": KEY}}, "it answered 401 key [key])"),
            ({"detail": f"key {quote(KEY)}"}, "it answered 401 key [key])"),
            (json.dumps({"error": f"key {KEY}"}).replace("k-", "k\\u002d").encode(), "it answered 401 key [key])"),
            (f"<p>key {KEY.replace('-', '&#45;')}".encode(), "it answered 401)"),
            ({"errors": [KEY]}, "it answered 401)"),
        ],
    )
    def test_a_refusal_is_not_repeated_and_never_shows_the_key(self, server: Server, body: Any, told: str) -> None:
        server.answers = [(401, body)]
        assert told in fault(server)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("before", ["x" * 172, "x" * 176, "x" * 183, "x" * 192, " " * 4088, "x" + " " * 4090])
    def test_a_message_cut_within_the_key_shows_no_part_of_it(self, server: Server, before: str) -> None:
        server.answers = [(401, f"{before}{KEY} and more".encode())]
        assert KEY[:2] not in fault(server)

    def test_a_text_that_repeats_the_key_is_stored_without_it(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.answers = [completion(f"my key is {KEY}"), completion("none the wiser")]
        assert ask(server)[0].text == "my key is [key]"
        monkeypatch.setenv("TEACHER_KEY", "none")
        assert ask(server)[0].text == "none the wiser", "a placeholder is no secret, and a word of any text"

    def test_the_key_is_stored_nowhere(self, server: Server, tmp_path: Path) -> None:
        server.answers = [completion(f"Authorization: Bearer {KEY}")]
        found = teacher(server)
        saved = SavedTeacher(found, tmp_path)
        saved.complete([Prompt(text="once")], max_tokens=9, temperature=0.8, seed=1)
        (part,) = tmp_path.iterdir()
        assert saved.describe()["model"] == "some/model"
        assert KEY not in f"{found!r} {saved.describe()} {part.name} {part.read_text()}"

    @pytest.mark.parametrize(
        "address",
        [
            f"https://user:{KEY}@host/v1",
            f"https://{KEY}@host",
            f"https://host/v1?key={KEY}",
            f"https://host/v1#{KEY}",
            f"https://host:{KEY}/v1",
            f"https://user:{KEY}[@host/v1",
            f"HTTPS://user:{KEY}@host/v1",
            f"ftp://user:{KEY}@host",
            f"user:{KEY}@host/v1",
            f"hf:user:{KEY}@host/v1",
        ],
    )
    @pytest.mark.parametrize("model", ["m", ""])
    def test_an_address_with_a_secret_is_refused_unseen(
        self, address: str, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(ValueError, match=r"--model does not say|not shown since it may hold a") as caught:
            distill(Request(preset="nano", out=tmp_path / "text", teacher=address, model=model), print)
        assert KEY not in str(caught.value) + "".join(capfd.readouterr())

    @pytest.mark.parametrize("given", [KEY, "SK_SECRET_4711", "EMPTY_VARIABLE", "a=b", "\0"])
    def test_a_key_in_place_of_its_variable_is_refused_unseen(
        self, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("EMPTY_VARIABLE", " ")
        request = Request(
            preset="nano", out=tmp_path / "text", teacher="https://host/v1", model="m", key_variable=given
        )
        with pytest.raises(ValueError, match="--key-variable names no environment variable that holds a key") as caught:
            distill(request, print)
        assert given not in str(caught.value) + "".join(capfd.readouterr())
        assert list(tmp_path.iterdir()) == []

    def test_a_key_goes_to_no_other_machine_unencrypted(self, server: Server) -> None:
        with pytest.raises(ValueError, match=r"sent to example\.com unencrypted"):
            teacher(server, base_url="http://example.com/v1")
        teacher(server, base_url="http://example.com/v1", key_variable="")


def test_a_missing_client_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ablate.teachers.endpoint")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install 'dsv3-ablate\[endpoint\]'"):
        distill(Request(preset="nano", out=tmp_path / "text", teacher="https://host/v1", model="m"), print)
