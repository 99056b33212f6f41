"""The HTTP engine against a server that speaks each dialect, and against one that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from mock_server import Message, MockServer, says, swapped, twice, without

from speclrm.runtime.engine import LOGPROB_MIN, Delta, Request
from speclrm.runtime.engines.http import client as http_client
from speclrm.runtime.engines.http.client import Client, Trouble
from speclrm.runtime.engines.http.probing import Server, probe
from speclrm.runtime.engines.http.secrets import Secrets
from speclrm.runtime.engines.scripted import ByteTokenizer
from speclrm.runtime.errors import CapacityError, EngineDeadError, EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from speclrm.runtime.engines.http.engine import HttpEngine

TOKENIZER = ByteTokenizer()
KINDS = ["vllm", "sglang", "llama.cpp", "ollama", "openai"]
WITH_IDS = ["vllm", "sglang", "llama.cpp"]
BLANK = min(TOKENIZER.vocabulary.blank_line_ids)
DIGITS = tuple(TOKENIZER.encode(str(digit))[0] for digit in range(10))
TEXT = "Two and two is four.\n\nSo it is 4."


@asynccontextmanager
async def probed(server: MockServer, secrets: Secrets | None = None, **options: Any) -> AsyncGenerator[HttpEngine]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server.started())
        client = Client(server.url, secrets, **options)
        stack.push_async_callback(client.aclose)
        yield await probe(Server(f"http/{server.model}", "target", TOKENIZER), client)


def request(**changes: Any) -> Request:
    return replace(Request("p/0/t/0/draft", TOKENIZER.encode("What is two and two?"), 200, 0.6, 0.95, 7), **changes)


async def collect(engine: HttpEngine, asked: Request) -> list[Delta]:
    return [delta async for delta in engine.stream(asked)]


def text(deltas: list[Delta]) -> str:
    return TOKENIZER.decode([token for delta in deltas for token in delta.ids])


# ----------------------------------------------------------------------------------------------------------- the dialects


@pytest.mark.parametrize("kind", KINDS)
async def test_a_whole_text_comes_as_ids_and_the_last_delta_alone_says_why(kind: str) -> None:
    async with probed(MockServer(TOKENIZER, kind)) as engine:
        assert engine.capabilities.server == kind
        deltas = await collect(engine, request())
    assert text(deltas) == TEXT
    assert [delta.finish for delta in deltas if delta.finish] == ["end"]
    assert deltas[-1].finish == "end"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_id_ends_the_output_and_belongs_to_it(kind: str) -> None:
    async with probed(MockServer(TOKENIZER, kind)) as engine:
        deltas = await collect(engine, request(stop_ids=(BLANK,)))
    assert text(deltas) == "Two and two is four.\n\n"
    assert deltas[-1].finish == "stop"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_limit_is_told_from_an_end(kind: str) -> None:
    async with probed(MockServer(TOKENIZER, kind)) as engine:
        deltas = await collect(engine, request(max_tokens=7))
    assert text(deltas) == TEXT[:7]
    assert deltas[-1].finish == "length"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_score_has_the_digits_probabilities(kind: str) -> None:
    async with probed(MockServer(TOKENIZER, kind)) as engine:
        (delta,) = await collect(engine, request(max_tokens=1, allowed_ids=DIGITS, logprob_ids=DIGITS))
        scores = engine.capabilities.scores
    assert delta.logprobs is not None
    assert tuple(delta.logprobs) == DIGITS
    assert max(DIGITS, key=delta.logprobs.__getitem__) == DIGITS[7]
    assert delta.logprobs[DIGITS[7]] == pytest.approx(math.log(0.45))
    assert scores == ("exact" if kind in ("vllm", "sglang") else "top")


async def test_a_server_without_logprobs_gives_the_plain_digit() -> None:
    async with probed(MockServer(TOKENIZER, "openai", lacks=("logprobs",))) as engine:
        assert engine.capabilities.scores == "digit"
        (delta,) = await collect(engine, request(max_tokens=1, allowed_ids=DIGITS, logprob_ids=DIGITS))
    assert delta.logprobs == {token: 0.0 if token == DIGITS[7] else LOGPROB_MIN for token in DIGITS}


@pytest.mark.parametrize("kind", WITH_IDS)
async def test_each_token_comes_with_its_probability(kind: str) -> None:
    async with probed(MockServer(TOKENIZER, kind)) as engine:
        assert engine.capabilities.sampled_logprobs
        deltas = await collect(engine, request(max_tokens=9, sampled_logprobs=True))
    assert all(len(delta.ids) == len(delta.sampled_logprobs) for delta in deltas)
    assert sum(len(delta.ids) for delta in deltas) == 9


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_the_likelihood_of_a_prompts_own_ids(kind: str) -> None:
    asked = request(max_tokens=1, likelihood_from=5)
    async with probed(MockServer(TOKENIZER, kind)) as engine:
        (delta,) = await collect(engine, asked)
    assert delta.prompt_logprobs == (-0.5,) * (len(asked.prompt_ids) - 5)


@pytest.mark.parametrize("kind", ["llama.cpp", "ollama", "openai"])
async def test_a_server_that_knows_no_likelihood_is_known_for_it(kind: str) -> None:
    async with probed(MockServer(TOKENIZER, kind)) as engine:
        assert not engine.capabilities.likelihood


async def test_an_older_server_is_asked_for_less() -> None:
    server = MockServer(TOKENIZER, lacks=("priority", "logprob_token_ids", "prompt_logprobs"), logprobs_max=5)
    async with probed(server) as engine:
        able = engine.capabilities
        await collect(engine, request(priority=9))
        assert (able.ids, able.scores, able.priority, able.likelihood) == (True, "top", False, False)
        assert "priority" not in server.bodies[-1]


async def test_a_server_without_ids_is_spoken_to_in_text() -> None:
    server = MockServer(TOKENIZER, lacks=("return_token_ids",))
    async with probed(server) as engine:
        deltas = await collect(engine, request(stop_ids=(BLANK,)))
        assert isinstance(server.bodies[-1]["prompt"], str)
        assert not engine.capabilities.ids
    assert text(deltas) == "Two and two is four.\n\n"


async def test_what_the_model_would_be_sampled_with_by_default_is_never_left_to_the_server() -> None:
    server = MockServer(TOKENIZER)
    async with probed(server) as engine:
        await collect(engine, request(stop_ids=(BLANK,), priority=3))
    body = server.bodies[-1]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["presence_penalty"]) == (0, 0.0, 1.0, 0.0)
    assert (body["temperature"], body["top_p"], body["seed"], body["priority"]) == (0.6, 0.95, 7, 3)
    assert set(body["stop_token_ids"]) == {BLANK, *TOKENIZER.vocabulary.end_ids}


async def test_a_character_that_llama_cpp_held_back_is_read_from_its_text() -> None:
    def hold_back(messages: list[Message]) -> list[Message]:
        if len(messages) == 1:
            return messages
        # The two bytes of é come as one message, which names the second alone.
        found = [one for one in messages if one["tokens"] != TOKENIZER.encode("é")[:1]]
        return [{**one, "content": "é"} if one["tokens"] == TOKENIZER.encode("é")[1:] else one for one in found]

    server = MockServer(TOKENIZER, "llama.cpp", write=says("Le thé est là."), piece=1)
    async with probed(server) as engine:
        server.mangle = hold_back
        server.write = says("thé!")
        assert text(await collect(engine, request())) == "thé!"


async def test_thinking_marks_in_text_become_the_models_ids() -> None:
    thinks = ByteTokenizer(thinking=True)
    async with MockServer(thinks, "openai", write=says("I see.</think>\n\nIt is 4."), piece=3).started() as server:
        client = Client(server.url)
        engine = await probe(Server("http/m", "target", thinks), client)
        ids = [token for delta in await collect(engine, request()) for token in delta.ids]
        await client.aclose()
    assert thinks.vocabulary.think_close in ids
    assert thinks.decode(ids) == "I see.</think>\n\nIt is 4."


async def test_leaving_a_stream_aborts_it_in_the_server() -> None:
    server = MockServer(TOKENIZER, wait_s=0.05, piece=1)
    async with probed(server) as engine:
        stream = engine.stream(request())
        await anext(stream)
        assert engine.stats().running == 1
        await stream.aclose()
        async with asyncio.timeout(5):
            while server.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert server.aborted == 1
        assert engine.stats().running == 0


async def test_many_requests_are_in_flight_at_once() -> None:
    server = MockServer(TOKENIZER)
    async with probed(server) as engine:
        server.wait_s = 5.0
        asked = asyncio.gather(*(collect(engine, request(id=f"p/0/{n}/0/draft")) for n in range(150)))
        async with asyncio.timeout(40):
            while server.running < 150:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        server.wait_s = 0.0
        found = await asked
    assert {text(deltas) for deltas in found} == {TEXT}


async def test_a_server_that_takes_no_connection_is_told_from_one_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_client, "CONNECT_LIMIT_S", 0.5)
    with socket.socket() as listening, contextlib.ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):  # that wait to be accepted: there is no room for another one
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
        with pytest.raises(Trouble, match=r"took no connection within") as found:
            await client.get("/models")
        await client.aclose()
    assert found.value.kind == "unreachable"


async def test_a_request_that_is_too_long_is_not_sent() -> None:
    server = MockServer(TOKENIZER, max_model_len=64)
    async with probed(server) as engine:
        sent = len(server.bodies)
        with pytest.raises(CapacityError, match="takes 64"):
            await collect(engine, request())
        assert len(server.bodies) == sent


# ------------------------------------------------------------------------------------------------------------ misbehaviour


@pytest.mark.parametrize("mangle", [without, twice, swapped])
@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
async def test_pieces_that_are_lost_repeated_or_swapped_are_noticed(kind: str, mangle: Any) -> None:
    server = MockServer(TOKENIZER, kind)
    async with probed(server) as engine:
        server.mangle = lambda messages: mangle(messages, 1) if len(messages) > 3 else messages
        with pytest.raises(EngineDeadError, match="missing, repeated or out of order") as caught:
            await collect(engine, request())
    assert caught.value.reason == "garbage"


async def test_one_bad_answer_costs_a_retry_and_not_the_request() -> None:
    server = MockServer(TOKENIZER)
    async with probed(server) as engine:
        bad = iter([True])
        server.mangle = lambda messages: without(messages, 1) if next(bad, False) else messages
        assert text(await collect(engine, request())) == TEXT


def lies(change: Any) -> Any:
    def mangle(messages: list[Message]) -> list[Message]:
        for message in messages:
            for choice in message["choices"]:
                change(message, choice)
        return messages

    return mangle


def above_one(message: Message, choice: Message) -> None:
    if choice["logprobs"]:
        choice["logprobs"]["top_logprobs"] = [dict.fromkeys(top, 0.7) for top in choice["logprobs"]["top_logprobs"]]


def no_number(message: Message, choice: Message) -> None:
    if choice["logprobs"]:
        choice["logprobs"]["token_logprobs"] = [None for _ in choice["logprobs"]["token_logprobs"]]


def left_out(message: Message, choice: Message) -> None:
    if choice["logprobs"]:
        choice["logprobs"]["top_logprobs"] = [dict(list(top.items())[:4]) for top in choice["logprobs"]["top_logprobs"]]


def none(message: Message, choice: Message) -> None:
    choice["logprobs"] = None


def unknown_ids(message: Message, choice: Message) -> None:
    choice["token_ids"] = [99_999 for _ in choice["token_ids"]]


def not_allowed(message: Message, choice: Message) -> None:
    choice["token_ids"] = TOKENIZER.encode("x")


def other_model(message: Message, choice: Message) -> None:
    message["model"] = "another"


def no_ids(message: Message, choice: Message) -> None:
    del choice["token_ids"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (above_one, "probability above one"),
        (no_number, "no number"),
        (left_out, "leaves out"),
        (none, "no log-probabilities"),
        (unknown_ids, "another model"),
        (not_allowed, "asked to leave out"),
        (other_model, "another model"),
        (no_ids, "another form"),
    ],
)
async def test_a_score_that_cannot_be_true_is_no_score(change: Any, told: str) -> None:
    server = MockServer(TOKENIZER)
    async with probed(server) as engine:
        server.mangle = lies(change)
        with pytest.raises(EngineDeadError, match=told):
            await collect(engine, request(max_tokens=1, allowed_ids=DIGITS, logprob_ids=DIGITS))


async def test_more_tokens_than_asked_for_are_noticed() -> None:
    server = MockServer(TOKENIZER)
    async with probed(server) as engine:
        server.mangle = lambda messages: server.messages({**server.bodies[-1], "max_tokens": 20})
        with pytest.raises(EngineDeadError, match=r"where \d+ were asked for"):
            await collect(engine, request(max_tokens=6))


async def test_an_answer_that_broke_off_goes_on_where_it_stopped() -> None:
    server = MockServer(TOKENIZER)
    async with probed(server) as engine:
        first = len(server.bodies)
        server.drop_after = lambda number: 2 if number == first else None
        deltas = await collect(engine, request())
        again = server.bodies[-1]
    assert text(deltas) == TEXT
    assert deltas[-1].finish == "end"
    assert TOKENIZER.decode(again["prompt"]) == "What is two and two?" + TEXT[:8]
    assert (again["max_tokens"], again["seed"]) == (192, 7)


async def test_a_server_that_closes_after_each_piece_ends_the_request_in_the_end() -> None:
    server = MockServer(TOKENIZER, piece=1)
    async with probed(server) as engine:
        server.drop_after = lambda number: 1
        with pytest.raises(RequestError, match="fails there each time"):
            await collect(engine, request())


async def test_a_busy_server_is_asked_again_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    server = MockServer(TOKENIZER)
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    async with probed(server) as engine:
        first = len(server.bodies)
        busy = web.Response(status=429, headers={"Retry-After": "7"}, text="slow down")
        server.before = lambda number, body: busy if number == first else None
        monkeypatch.setattr("speclrm.runtime.engines.http.engine.asyncio.sleep", note)
        assert text(await collect(engine, request())) == TEXT
    assert 7.0 <= waits[0] < 8.0


async def test_a_server_that_stays_busy_is_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    server = MockServer(TOKENIZER)
    monkeypatch.setattr("speclrm.runtime.engines.http.retries.FIRST_WAIT_S", 0.001)
    async with probed(server) as engine:
        server.before = lambda number, body: web.Response(status=503)
        with pytest.raises(EngineDeadError) as caught:
            await collect(engine, request())
    assert caught.value.reason == "overloaded"


async def test_retries_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    server = MockServer(TOKENIZER)
    monkeypatch.setattr("speclrm.runtime.engines.http.retries.FIRST_WAIT_S", 0.001)
    async with probed(server) as engine:
        sent = len(server.bodies)
        server.before = lambda number, body: web.Response(status=500, text="boom")
        results = await asyncio.gather(
            *(collect(engine, request(id=f"p/0/{n}/0/draft")) for n in range(40)), return_exceptions=True
        )
    assert all(isinstance(result, EngineError) for result in results)
    assert len(server.bodies) - sent <= 40 + 21


async def test_a_refused_request_is_its_own_affair() -> None:
    server = MockServer(TOKENIZER)
    async with probed(server) as engine:
        said = {"object": "error", "message": "too long", "code": 400}
        server.before = lambda number, body: web.json_response(said, status=400)
        with pytest.raises(RequestError, match="too long"):
            await collect(engine, request())
        assert engine.stats().alive


async def test_a_silent_server_is_left_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    server = MockServer(TOKENIZER)
    async with probed(server, idle_limit_s=0.2) as engine:
        server.wait_s, server.healthy = 30.0, False
        with pytest.raises(EngineDeadError):
            await collect(engine, request())


async def test_a_server_that_is_gone_is_dead_and_may_come_back() -> None:
    server = MockServer(TOKENIZER)
    async with AsyncExitStack() as stack:
        async with server.started():
            client = Client(server.url)
            stack.push_async_callback(client.aclose)
            engine = await probe(Server("http/m", "target", TOKENIZER), client)
        with pytest.raises(EngineDeadError, match="--target-url") as caught:
            await collect(engine, request())
        assert caught.value.reason == "died"
        assert not engine.stats().alive
        with pytest.raises(EngineDeadError):
            await engine.check()
        async with server.started(server.port):
            await engine.check()
            assert engine.stats().alive
            assert text(await collect(engine, request())) == TEXT


async def test_a_restarted_server_with_another_model_does_not_count_as_back() -> None:
    server = MockServer(TOKENIZER)
    async with probed(server) as engine:
        server.model = "another"
        with pytest.raises(EngineDeadError, match="another") as caught:
            await engine.check()
    assert caught.value.reason == "refused"


# ----------------------------------------------------------------------------------------------------------------- secrets


KEY = "sk-planted-8c1f0e"


async def test_a_key_is_sent_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    server = MockServer(TOKENIZER, key=KEY)
    secrets = Secrets({"Authorization": f"Bearer {KEY}"})
    async with probed(server, secrets) as engine:
        assert {headers.get("Authorization") for headers in server.headers} == {f"Bearer {KEY}"}
        server.key = "another"
        with pytest.raises(EngineDeadError) as caught:
            await collect(engine, request())
        told = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r} {secrets!r} {caplog.text}"
        assert "Incorrect API key" in told
        assert KEY not in told
        assert KEY not in json.dumps(engine.capabilities.record())


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    other = MockServer(TOKENIZER)
    server = MockServer(TOKENIZER)
    async with other.started(), probed(server, Secrets({"Authorization": f"Bearer {KEY}"})) as engine:
        away = {"Location": f"{other.url}/completions"}
        server.before = lambda number, body: web.Response(status=307, headers=away)
        with pytest.raises(EngineDeadError, match="307"):
            await collect(engine, request())
        assert other.headers == []
