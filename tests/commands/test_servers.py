"""Runs whose models are on servers, from the command line: what works, and what is refused before anything runs."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from cli_runner import Done, invoke
from engines.tiny_models import make_tokenizer
from mock_server import Message, MockServer, says, serving

from speclrm.runtime.engines.http import secrets
from speclrm.runtime.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from speclrm.runtime.tokens.tokenizer import HFTokenizer

STEPS = "We add.\n\nThen we look.\n\nSo it is \\boxed{4}."
KEY = "sk-planted-4c7d1e"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(found, size=320)
    return found


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HFTokenizer:
    return load_tokenizer(folder)


@pytest.fixture(autouse=True)
def headers() -> Iterator[None]:
    yield
    secrets.forget_headers()


def server(tokenizer: HFTokenizer, **options: Any) -> MockServer:
    given: dict[str, Any] = {"write": says(STEPS), "max_model_len": 8192, **options}
    return MockServer(tokenizer, **given)


def run(cwd: Path, folder: Path, *more: str, strategy: str = "baseline", **environment: str) -> Done:
    (cwd / "p.jsonl").write_text('{"id": "a", "problem": "2+2?", "answer": "4"}\n')
    tokenizers = ("--target-tokenizer", str(folder), "--draft-tokenizer", str(folder))
    return invoke(
        *("run", strategy, "--dataset", "p.jsonl", "--token-budget", "256", "--output-dir", "out", *tokenizers, *more),
        cwd=cwd,
        SPECLRM_CACHE_DIR=str(cwd / "cache"),
        HF_HUB_OFFLINE="1",
        COLUMNS="200",
        engines=None,
        **{"OPENAI_API_KEY": "", **environment},
    )


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llama.cpp", "ollama", "openai"])
def test_a_run_whose_models_are_both_on_servers_needs_nothing_else(
    tmp_path: Path, folder: Path, tokenizer: HFTokenizer, kind: str
) -> None:
    target, draft = server(tokenizer, kind=kind), server(tokenizer, kind=kind)
    with serving(target, draft):
        done = run(
            tmp_path,
            folder,
            *("--target", f"http/m@{target.url}", "--draft", "m", "--draft-url", draft.url),
            *("--tracks", "2", "--speculate", "always"),
            strategy="speculative",
        )
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert (row["answer"], row["outcome"]) == ("4", "correct")
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert config["target"] == "http/m"
    assert config["servers"]["target"][0]["server"] == kind
    assert config["servers"]["target"][0]["url"] == target.url
    assert f"is {kind}" in done.stderr
    for command in (("trace", "check", "out"), ("replay", "out")):
        again = invoke(*command, cwd=tmp_path, SPECLRM_CACHE_DIR=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
        assert again.returncode == 0, again.stderr + again.stdout


def test_a_run_on_servers_does_not_import_vllm_or_torch(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('vllm', 'torch', 'transformers'): sys.modules[name] = None\n"
        "from speclrm.cli import main\nmain()\n"
    )
    (tmp_path / "p.jsonl").write_text('{"id": "a", "problem": "2+2?", "answer": "4"}\n')
    target = server(tokenizer)
    with serving(target):
        done = subprocess.run(
            [
                *(sys.executable, "-c", code, "run", "baseline", "--dataset", "p.jsonl", "--token-budget", "256"),
                *("--target", f"http/m@{target.url}", "--target-tokenizer", str(folder), "--output-dir", "out"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "results.jsonl").read_text())["outcome"] == "correct"


def both(target: MockServer, draft: MockServer) -> tuple[str, ...]:
    return ("--target", f"http/m@{target.url}", "--draft", f"http/m@{draft.url}")


# ------------------------------------------------------------------------------------------------------------ bad input


def other_ids(text: str) -> list[int]:
    return [1, 2, 3]


def after_one(number: int) -> int:
    return 1


def no_route(number: int, body: Message) -> web.Response:
    return web.Response(status=404, text="no route")


def refused(done: Done, tmp_path: Path, *told: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    last = [line for line in done.stderr.splitlines() if line.startswith("error")][-1:]
    message = " ".join(done.stderr.split())
    assert last or message
    for one in told:
        assert one in message


def test_an_unreachable_server(tmp_path: Path, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    done = run(tmp_path, folder, "--target", f"http/m@{url}")
    refused(done, tmp_path, url, "cannot be used", "--target-url")


def test_a_host_that_is_none(tmp_path: Path, folder: Path) -> None:
    done = run(tmp_path, folder, "--target", "http/m@http://no-such-host.invalid/v1")
    refused(done, tmp_path, "no-such-host.invalid", "cannot be used")


def test_a_wrong_path(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target = server(tokenizer)
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}/wrong")
    refused(done, tmp_path, "has nothing there", "404", "ends in /v1")


def test_a_bad_key(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target = server(tokenizer, key="another")
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}", OPENAI_API_KEY=KEY)
    refused(done, tmp_path, "does not take the key", "OPENAI_API_KEY")
    assert KEY not in done.stderr + done.stdout


def test_another_model_than_named(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target = server(tokenizer, model="qwq")
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}")
    refused(done, tmp_path, "no model 'm'", f"http/qwq@{target.url}")


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_a_model_with_another_tokenizer(tmp_path: Path, folder: Path, tokenizer: HFTokenizer, kind: str) -> None:
    target = server(tokenizer, kind=kind, tokenize=other_ids)
    if kind == "openai":  # all that it tells is the length of a prompt
        messages = target.messages

        def counted(body: Message) -> list[Message]:
            return [
                {**one, "usage": {**one["usage"], "prompt_tokens": 99}} if "usage" in one else one
                for one in messages(body)
            ]

        target.messages = counted  # type: ignore[method-assign]
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}")
    refused(done, tmp_path, "another model", "--target-tokenizer")


def test_a_smaller_context(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target = server(tokenizer, max_model_len=600)
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}", "--token-budget", "2000")
    refused(done, tmp_path, "takes 600", "--token-budget 262")


def test_no_logprobs_where_a_score_is_an_average(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target, draft = server(tokenizer, kind="openai", lacks=("logprobs",)), server(tokenizer)
    with serving(target, draft):
        done = run(tmp_path, folder, *both(target, draft), "--score-method", "average", strategy="speculative")
        refused(done, tmp_path, "log-probabilities of the digits", "--score-method greedy")
        done = run(tmp_path, folder, *both(target, draft), "--score-method", "greedy", strategy="speculative")
    assert done.returncode == 0, done.stderr


def test_no_likelihood_where_steps_are_scored_by_it(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target, draft = server(tokenizer, kind="llama.cpp"), server(tokenizer)
    with serving(target, draft):
        done = run(tmp_path, folder, *both(target, draft), "--scorer", "likelihood", strategy="speculative")
    refused(done, tmp_path, "the likelihood of a prompt", "--scorer judge")


def test_no_token_probabilities_where_a_gate_needs_them(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target, draft = server(tokenizer), server(tokenizer, kind="ollama")
    with serving(target, draft):
        done = run(tmp_path, folder, *both(target, draft), "--gate-sure=-0.1", strategy="speculative")
    refused(done, tmp_path, "no --gate-sure")


def test_a_server_that_answers_with_a_web_page(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    page = web.Response(text="<html><body><h1>Welcome</h1> to nginx!</body></html>", content_type="text/html")
    target = server(tokenizer, models=page)
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}")
    refused(done, tmp_path, "a web page", "Welcome to nginx!", "no server of completions")


def test_a_server_that_closes_after_each_piece(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target = server(tokenizer, piece=1, drop_after=after_one)
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}")
    refused(done, tmp_path, "not as servers of completions do", "fails there each time")


def test_a_server_for_chats_alone(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target = server(tokenizer, kind="openai", before=no_route)
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}")
    refused(done, tmp_path, "404")


def test_an_address_without_a_model_or_a_model_without_an_address(tmp_path: Path, folder: Path) -> None:
    refused(run(tmp_path, folder, "--target-url", "http://h:1"), tmp_path, "Give --target MODEL")
    refused(run(tmp_path, folder, "--target", "http/m"), tmp_path, "--target-url http://HOST:PORT/v1")
    refused(run(tmp_path, folder, "--target", "m", "--target-url", "h:1"), tmp_path, "is not the address")


def test_a_tokenizer_that_is_nowhere(tmp_path: Path, folder: Path) -> None:
    done = run(tmp_path, folder, "--target", "http/m@http://h:1", "--target-tokenizer", "nowhere")
    refused(done, tmp_path, "no tokenizer for 'nowhere'", "--target-tokenizer NAME")


# -------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)  # the log file, in this process
def test_keys_and_headers_go_to_the_server_and_nowhere_else(
    tmp_path: Path, folder: Path, tokenizer: HFTokenizer
) -> None:
    target = server(tokenizer, key=KEY)
    (tmp_path / "c.toml").write_text('[http]\nheaders = { X-Team = "team-planted" }\n')
    more = ("--config", "c.toml", "--log-file", "log.jsonl")
    with serving(target):
        done = run(tmp_path, folder, "--target", f"http/m@{target.url}", *more, OPENAI_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        assert {one.get("X-Team") for one in target.headers} == {"team-planted"}
        target.key = "another"
        failed = run(
            tmp_path, folder, "--target", f"http/m@{target.url}", *more, "--output-dir", "out2", OPENAI_API_KEY=KEY
        )
    told = done.stdout + done.stderr + failed.stdout + failed.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "c.toml"]
    assert any(path.name == "trace.jsonl" for path in written)
    for text in (told, *(path.read_text(errors="replace") for path in written)):
        assert "planted" not in text


def test_headers_of_one_role_go_to_that_role_alone(tmp_path: Path, folder: Path, tokenizer: HFTokenizer) -> None:
    target, draft = server(tokenizer, key="for-the-target"), server(tokenizer)
    (tmp_path / "c.toml").write_text('[http]\ntarget-headers = { Authorization = "Bearer for-the-target" }\n')
    with serving(target, draft):
        done = run(tmp_path, folder, *both(target, draft), "--config", "c.toml", strategy="speculative")
    assert done.returncode == 0, done.stderr
    assert all("Authorization" not in one for one in draft.headers)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('key = "x"', "no setting 'key'"),
        ('headers = "x"', "no table of texts"),
        ('headers = { "a b" = "planted" }', "cannot be sent"),
        ('headers = { X = "a\\nplanted" }', "cannot be sent"),
    ],
)
def test_headers_that_are_none_are_refused(tmp_path: Path, folder: Path, table: str, told: str) -> None:
    (tmp_path / "c.toml").write_text(f"[http]\n{table}\n")
    done = run(tmp_path, folder, "--target", "http/m@http://h:1", "--config", "c.toml")
    refused(done, tmp_path, told)
    assert "planted" not in done.stderr


# -------------------------------------------------------------------------------------------------------------- failures


def test_a_run_on_servers_of_which_one_fails_is_whole_and_its_replay_exact(
    tmp_path: Path, folder: Path, tokenizer: HFTokenizer
) -> None:
    target, failing, other = server(tokenizer), server(tokenizer, wait_s=0.02), server(tokenizer, wait_s=0.02)
    begun, checks = iter(range(10_000)), iter(range(10_000))

    def fail(number: int, body: dict[str, object]) -> None:
        if "probe" not in str(body["request_id"]) and next(begun) == 4:
            failing.healthy, failing.drop_after = False, lambda number: 1

    def mend() -> None:
        if not failing.healthy and next(checks) == 3:
            failing.healthy, failing.drop_after = True, lambda number: None

    failing.before, failing.checked = fail, mend
    more = ("--tracks", "6", "--speculate", "always", "--display", "plain", "--score-method", "greedy")
    with serving(target, failing, other):
        done = run(
            tmp_path,
            folder,
            *("--target", f"http/m@{target.url}", "--draft", f"http/m@{failing.url},{other.url}", *more),
            strategy="speculative",
        )
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert row["outcome"] == "correct"
    assert all(track["reason"] == "answer" for track in row["tracks"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "trace.jsonl").read_text().splitlines()]
    (failed,) = [line for line in lines if line["kind"] == "engine_failed"]
    assert (failed["role"], failed["reason"]) == ("draft", "died")
    assert failing.url.partition("//")[2].partition("/")[0] in failed["engine"]
    assert "failed (died)" in done.stderr
    assert "failures    draft: 1" in done.stdout + done.stderr
    for command in (("trace", "check", "out"), ("replay", "out")):
        again = invoke(*command, cwd=tmp_path, SPECLRM_CACHE_DIR=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
        assert again.returncode == 0, again.stderr + again.stdout
