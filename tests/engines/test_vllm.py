"""The vLLM engine with tiny random models: real requests, real processes. Each fact the adapter rests on has a test."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from engines.asking import PROMPT, collect, multiprocessing_executable, request
from support import Collector, make_strategy, parts

from speclrm.evaluators.metrics import Summary
from speclrm.runtime.engine import Delta, Request
from speclrm.runtime.engines.confidence import entropy_of
from speclrm.runtime.engines.cost_probe import glance
from speclrm.runtime.engines.vllm_start import start_engines
from speclrm.runtime.engines.warm_up import of_each_kind
from speclrm.runtime.errors import CapacityError, EngineError, RequestError, SettingsError
from speclrm.runtime.events import EVENT, EngineFacts, MethodsChosen, StepDrafted, StepScored
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.state import SampleState, apply
from speclrm.runtime.tokens.prompts import judge_suffix
from speclrm.runtime.tokens.tokenizer import load_tokenizer
from speclrm.strategies.prompts import STEP_PROMPTS

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.runtime.engines.vllm import VllmEngine
    from speclrm.runtime.settings import EngineSettings

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture
def target(engine_pair: dict[Role, VllmEngine]) -> VllmEngine:
    return engine_pair[Role.TARGET]


async def test_ids_go_in_and_come_out_and_the_last_delta_alone_says_why(target: VllmEngine) -> None:
    deltas = await collect(target, request(target))
    assert deltas[-1].finish is not None
    assert {delta.finish for delta in deltas[:-1]} <= {None}
    ids = [token for delta in deltas for token in delta.ids]
    assert 0 < len(ids) <= 24
    assert not set(ids) & target.tokenizer.vocabulary.end_ids


async def test_a_glance_at_both_engines_measures_them_and_leaves_nothing_in_them(
    engine_pair: dict[Role, VllmEngine],
) -> None:
    engines = [engine_pair[role] for role in Role]
    found = await glance(engines, together=True)
    assert all(0 < one.w < 1 and one.p >= 0 and one.k >= 0 and one.slowdown >= 0 for one in found)
    assert [(engine.stats().running, engine.stats().waiting) for engine in engines] == [(0, 0), (0, 0)]


async def test_a_limit_is_told_from_a_stop(target: VllmEngine) -> None:
    everything = tuple(range(target.tokenizer.vocabulary.size))
    stopped = await collect(target, request(target, stop_ids=everything))
    first = (await collect(target, request(target, max_tokens=1)))[0]
    assert [(len(d.ids), d.finish) for d in stopped] in ([(1, "stop")], [(0, "end")])
    assert first.finish in ("length", "end")


async def test_a_stop_id_ends_the_output_inside_the_engine_and_belongs_to_it(target: VllmEngine) -> None:
    free = [t for d in await collect(target, request(target, max_tokens=20)) for t in d.ids]
    stop = free[5]
    cut = await collect(target, request(target, max_tokens=20, stop_ids=(stop,)))
    ids = [t for d in cut for t in d.ids]
    assert cut[-1].finish == "stop"
    assert ids[-1] == stop
    assert stop not in ids[:-1]


async def test_the_models_own_end_is_an_end_and_no_text(target: VllmEngine) -> None:
    end = min(target.tokenizer.vocabulary.end_ids)
    deltas = await collect(target, request(target, allowed_ids=(end,)))
    assert [(d.ids, d.finish) for d in deltas] == [((), "end")]


async def test_iterations_keep_the_distance_that_the_engine_is_told_and_lose_it_at_once(target: VllmEngine) -> None:
    began = time.monotonic()
    target.pace(0.2)
    try:
        await collect(target, request(target, max_tokens=6, allowed_ids=(5,)))
        assert time.monotonic() - began >= 5 * 0.2  # a machine under load only makes it longer
        waits = asyncio.ensure_future(collect(target, request(target, max_tokens=6, allowed_ids=(5,))))
        target.pace(3600.0)
        await asyncio.sleep(0.5)
        assert not waits.done()
        target.pace(0.0)
        assert (await waits)[-1].finish == "length"
    finally:
        target.pace(0.0)


async def test_all_ten_digits_come_with_their_probability_and_nothing_else_is_sampled(target: VllmEngine) -> None:
    suffix = judge_suffix(target.tokenizer, STEP_PROMPTS)
    (delta,) = await collect(
        target,
        request(target, max_tokens=1, temperature=0.0, allowed_ids=suffix.digit_ids, logprob_ids=suffix.digit_ids),
    )
    assert delta.logprobs is not None
    assert set(delta.logprobs) == set(suffix.digit_ids)
    mass = sum(math.exp(value) for value in delta.logprobs.values())
    assert 0 < mass < 0.5  # taken before the restriction: a random model spreads its mass over everything
    assert delta.ids[0] == max(delta.logprobs, key=lambda token: delta.logprobs[token])  # type: ignore[index]


async def test_a_prompt_seen_before_is_not_computed_again(target: VllmEngine) -> None:
    words = target.tokenizer.encode("The quality of blank lines. " * 12)
    first = await collect(target, Request("one", words, 1))
    again = await collect(target, Request("two", [*words, *target.tokenizer.encode("Solve")], 1))
    assert first[0].cached_tokens == 0
    assert (again[0].cached_tokens or 0) >= len(words) - 32


async def test_many_seeded_requests_of_any_length_side_by_side(engine_pair: dict[Role, VllmEngine]) -> None:
    """On a CPU a seeded request whose prompt is computed in parts would kill the engine."""
    calls = [
        collect(engine, Request(f"{role}{n}", engine.tokenizer.encode("We add. " * (8 * n + 1)), 12, 1.0, 1.0, n))
        for role, engine in engine_pair.items()
        for n in range(12)
    ]
    results = await asyncio.gather(*calls)
    assert all(deltas[-1].finish for deltas in results)


async def test_leaving_a_stream_frees_the_engine_and_the_next_request_answers(target: VllmEngine) -> None:
    ends = tuple(target.tokenizer.vocabulary.end_ids)
    allowed = tuple(t for t in range(target.tokenizer.vocabulary.size) if t not in ends)
    for moment_s in (0.0, 0.001, 0.05):
        call = asyncio.create_task(collect(target, request(target, max_tokens=250, allowed_ids=allowed)))
        await asyncio.sleep(moment_s)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    stream = target.stream(request(target, max_tokens=250, allowed_ids=allowed))
    await anext(stream)
    await stream.aclose()
    answer = await asyncio.wait_for(collect(target, request(target, max_tokens=4)), 20)
    assert answer[-1].finish
    assert target.engine.get_num_unfinished_requests() == 0
    assert target.stats().running == 0


async def test_the_same_name_twice_is_no_trouble(target: VllmEngine) -> None:
    one, two = await asyncio.gather(collect(target, request(target, "same")), collect(target, request(target, "same")))
    assert one[-1].finish
    assert two[-1].finish


async def test_what_does_not_fit_is_refused_before_it_is_sent(target: VllmEngine) -> None:
    with pytest.raises(CapacityError, match="takes"):
        await collect(target, request(target, max_tokens=10_000))
    assert target.stats().alive


async def test_progress_is_counted(target: VllmEngine) -> None:
    before = target.stats()
    await collect(target, request(target))
    after = target.stats()
    assert after.progress > before.progress
    assert after.output_tokens > before.output_tokens


async def test_nothing_of_the_start_is_left_in_the_environment(target: VllmEngine) -> None:
    assert target.stats().alive
    assert "VLLM_LOGGING_CONFIG_PATH" not in os.environ
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ
    assert "iomp5" not in os.environ.get("LD_PRELOAD", "")
    assert multiprocessing_executable() == sys.executable


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("baseline", {}),
        ("parallel", {"plan": "roles", "prompt_style": "raw"}),
        ("speculative", {"fast": 2}),
        ("speculative", {"scorer": "likelihood", "score_threshold": -6.0, "min_step_tokens": 12}),
        ("speculative", {"gate_sure": -5.0, "gate_doubt": -5.5, "gate_entropy": 2.95, "gate_tokens": 4}),
        ("speculative-methods", {}),
        ("speculative-methods", {"fidelity": "original", "score_method": "greedy"}),
    ],
)
async def test_a_whole_run_on_real_engines_is_recorded_as_it_was(
    engine_pair: dict[Role, VllmEngine], name: str, options: dict[str, object], tmp_path: Path
) -> None:
    given = {"token_budget": 96, "max_step_tokens": 32, "score_method": "average", "score_threshold": 4.5, **options}
    chosen = make_strategy(name, tracks=3, **given)
    async with Runtime(parts(engine_pair)) as runtime:
        result = await runtime.run(
            [Problem("one", "Add 1 and 2.", "3"), Problem("two", "Add 2 and 2.", "4")],
            chosen,
            directory=tmp_path / "run",
        )
    events = [EVENT.validate_json(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    fold = Summary()
    for event in events:
        fold.add(event)
    summary = fold.summary()
    for counts in summary.tokens.values():
        assert (
            counts.generated
            == counts.kept + counts.rejected + counts.dropped + counts.useless + counts.judge + counts.choice
        )
    assert summary.status == "finished"
    assert all(track.reason != "error" for row in summary.samples for track in row.tracks)
    use, stats = summary.engines["target"], engine_pair[Role.TARGET].stats()
    assert use.facts == EngineFacts(
        name="tiny-target", parameters=stats.parameters, kv_tokens=stats.kv_tokens, max_num_seqs=16
    )
    assert stats.parameters is not None
    assert stats.kv_tokens is not None
    assert use.idle is not None
    assert use.idle_ready is not None
    assert use.batch is not None
    assert 0 <= use.idle_ready <= use.idle < 1
    assert 0 < use.batch <= 16
    assert summary.decode_flops is not None
    assert summary.all_flops is not None
    assert 2 * stats.parameters * summary.tokens["target"].generated <= summary.decode_flops < summary.all_flops
    for sample in result.samples:
        state = SampleState(sample.problem, sample.repeat)
        for event in events:
            if getattr(event, "problem", None) == sample.problem:
                state = apply(state, event)
        assert state == sample
        assert all(track.tokens <= 96 + 48 + 32 for track in state.tracks.values())
    if name != "baseline" and name != "parallel":
        assert summary.drafted > 0
        assert summary.tokens["target"].judge == summary.phases["score"].requests
    if name == "speculative-methods":
        assert {event.error for event in events if isinstance(event, MethodsChosen)} == {None}


async def test_contexts_are_cached_from_step_to_step(engine_pair: dict[Role, VllmEngine]) -> None:
    fold = Summary()

    class Sink:
        def emit(self, event: object) -> None:
            fold.add(event)  # type: ignore[arg-type]

        async def room(self) -> None: ...

        async def aclose(self) -> None: ...

    chosen = make_strategy("speculative", tracks=2, token_budget=128, max_step_tokens=16, score_threshold=0)
    async with Runtime(parts(engine_pair)) as runtime:
        await runtime.solve(Problem("cached", "Add 1 and 2 and 3. " * 8, "6"), chosen, sinks=[Sink()])
    counts = fold.summary().tokens["target"]
    assert counts.cached > counts.prompt / 2


@pytest.mark.parametrize("scorer", ["judge", "likelihood"])
async def test_a_score_computes_no_more_than_the_step_the_question_and_a_block(
    engine_pair: dict[Role, VllmEngine], scorer: str
) -> None:
    collector = Collector()
    least = -100 if scorer == "likelihood" else 0
    chosen = make_strategy(
        "speculative", tracks=3, token_budget=160, max_step_tokens=20, scorer=scorer, score_threshold=least
    )
    async with Runtime(parts(engine_pair)) as runtime:
        problem = Problem(f"computed by {scorer}", f"Add 1 and 2 and 3, and see the {scorer}. " * 8, "6")
        await runtime.solve(problem, chosen, sinks=[collector])
    target = engine_pair[Role.TARGET]
    suffix = judge_suffix(target.tokenizer, chosen.prompts).ids if scorer == "judge" else ()
    drafts = {(event.track, event.step): event for event in collector.of(StepDrafted)}
    scored = [event for event in collector.of(StepScored) if event.step > 0]
    assert len(scored) > 10
    found, known = 0, 0
    for event in scored:
        (operation,) = event.operations
        step = len(drafts[event.track, event.step].ids)
        assert operation.prompt_tokens - operation.cached_tokens <= step + len(suffix) + 32
        found += operation.cached_tokens // 32
        known += (operation.prompt_tokens - step - len(suffix) - (scorer == "likelihood")) // 32
    assert found >= 0.97 * known


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"quantisation": "fp8"}, "vLLM has no engine argument 'quantisation'. Close to it: quantization"),
        ({"scheduling_policy": "fcfs"}, "'scheduling_policy' is set by SpecLRM"),
    ],
)
async def test_an_engine_argument_that_vllm_does_not_know_is_refused_before_anything_starts(
    tiny_settings: dict[Role, EngineSettings], tmp_path: Path, extra: dict[str, JsonValue], message: str
) -> None:
    settings = tiny_settings[Role.TARGET].model_copy(update={"extra": extra})
    with pytest.raises(SettingsError) as caught:
        await start_engines(
            {Role.TARGET: settings}, {Role.TARGET: load_tokenizer(settings.path)}, log_path=tmp_path / "log"
        )
    assert message in str(caught.value)


async def test_an_engine_on_another_loop_is_refused(target: VllmEngine) -> None:
    def elsewhere() -> None:
        asyncio.run(collect(target, request(target)))

    with pytest.raises(EngineError, match="another event loop"):
        await asyncio.to_thread(elsewhere)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 3.0),
        ("prompt_ids", [10**6]),
        ("prompt_ids", []),
        ("max_tokens", 0),
        ("allowed_ids", (10**6,)),
        ("seed", 2**70),
    ],
)
async def test_a_request_that_vllm_refuses_is_our_error_and_harms_no_other(
    target: VllmEngine, field: str, value: object
) -> None:
    with pytest.raises(RequestError, match=r"refused request r: \w"):
        await collect(target, replace(request(target), **{field: value}))  # type: ignore[arg-type]
    assert (await collect(target, request(target, max_tokens=2)))[-1].finish


async def test_probabilities_come_with_the_first_delta_only(target: VllmEngine) -> None:
    ends = target.tokenizer.vocabulary.end_ids
    allowed = tuple(t for t in range(target.tokenizer.vocabulary.size) if t not in ends)
    asked = request(target, max_tokens=200, allowed_ids=allowed, logprob_ids=(5, 6))
    deltas: list[Delta] = []
    for _ in range(10):  # a busy loop gets all tokens as one delta
        deltas = deltas if len(deltas) > 1 else await collect(target, asked)
    assert [delta.logprobs is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert len(deltas) > 1


async def test_each_generated_token_comes_with_its_probability_where_that_is_asked(target: VllmEngine) -> None:
    deltas = await collect(target, request(target, max_tokens=20, sampled_logprobs=True))
    assert [len(delta.sampled_logprobs) for delta in deltas] == [len(delta.ids) for delta in deltas]
    told = [value for delta in deltas for value in delta.sampled_logprobs]
    written = [token for delta in deltas for token in delta.ids]
    assert all(value < 0 for value in told)
    # Before temperature, and so what the engine thinks of the same ids as a prompt.
    start = len(target.tokenizer.encode(PROMPT))
    whole = [*target.tokenizer.encode(PROMPT), *written]
    (read,) = await collect(target, Request("read", whole, 1, likelihood_from=start))
    assert read.prompt_logprobs == pytest.approx(told, abs=2e-3)
    plain = await collect(target, request(target, max_tokens=20))
    assert {delta.sampled_logprobs for delta in plain} == {()}


async def test_the_first_token_comes_with_its_entropy_and_only_the_first(target: VllmEngine) -> None:
    deltas = await collect(target, request(target, max_tokens=20, first_entropy=True, sampled_logprobs=True))
    entropy = deltas[0].first_entropy
    assert entropy is not None
    assert 2.5 < entropy < math.log(20)  # a random model is as unsure as can be, but for its few likely tokens
    assert {delta.first_entropy for delta in deltas[1:]} <= {None}
    assert all(len(delta.sampled_logprobs) == len(delta.ids) for delta in deltas)
    ids = target.tokenizer.encode(PROMPT)
    every = tuple(range(target.tokenizer.vocabulary.size))
    (first,) = await collect(target, Request("all", ids, 1, logprob_ids=every[:128]))
    (second,) = await collect(target, Request("more", ids, 1, logprob_ids=every[128:256]))
    (third,) = await collect(target, Request("rest", ids, 1, logprob_ids=every[256:]))
    known = {**(first.logprobs or {}), **(second.logprobs or {}), **(third.logprobs or {})}
    assert entropy == pytest.approx(entropy_of(sorted(known.values())[-20:]), abs=2e-2)


def test_an_entropy_is_that_of_the_twenty_most_probable_tokens_made_to_sum_to_one() -> None:
    assert entropy_of([-5.0] * 20) == pytest.approx(math.log(20))
    assert entropy_of([0.0, *[-1000.0] * 19]) == pytest.approx(0.0)
    assert entropy_of([-0.1, *[-math.inf] * 30]) is None


@pytest.mark.parametrize("border", [31, 32, 33, 63, 64, 65])
async def test_a_likelihood_is_right_whatever_was_cached_before(target: VllmEngine, border: int) -> None:
    """Blocks have 32 tokens here. What vLLM takes from its cache has no logits, and the memory for it holds garbage."""
    words = target.tokenizer.encode(f"We add the numbers {border} times and get 12 of them. " * 10)
    context, step = words[:border], words[border : border + 45]
    asked = Request(f"step {border}", [*context, *step], 1, likelihood_from=border)
    (alone,) = await collect(target, replace(asked, prompt_ids=[*context, *step]))
    again = await collect(target, asked)  # another track, with the same step: now it is cached itself
    after = await collect(target, replace(asked, prompt_ids=[*context, *step, *words[:40]]))
    for delta in (*again, *after):
        assert delta.prompt_logprobs is not None
        assert delta.prompt_logprobs[: len(step)] == pytest.approx(alone.prompt_logprobs, abs=2e-3)
        # What had to be computed again counts as not cached.
        assert (delta.cached_tokens or 0) < border
    assert len(alone.prompt_logprobs or ()) == len(step)
    # Token by token, from the other side: what the engine says before each of them.
    for place in (0, 1, 30, 44):
        (single,) = await collect(target, Request("single", [*context, *step[:place]], 1, logprob_ids=(step[place],)))
        assert single.logprobs is not None
        assert (alone.prompt_logprobs or ())[place] == pytest.approx(single.logprobs[step[place]], abs=2e-3)


async def test_only_the_block_before_a_step_is_computed_again_for_its_likelihood(target: VllmEngine) -> None:
    words = target.tokenizer.encode("The quality of the step by step numbers is so so. " * 20)
    await collect(target, Request("before", words[:200], 1))
    (delta,) = await collect(target, Request("step", words[:230], 1, likelihood_from=200))
    assert delta.cached_tokens == 192
    (delta,) = await collect(target, Request("at a border", words[:222], 1, likelihood_from=192))
    assert delta.cached_tokens == 160


async def test_a_long_context_is_read_before_its_step_so_that_no_logits_are_made_for_it(target: VllmEngine) -> None:
    words = target.tokenizer.encode("A long context of many numbers and steps comes first. " * 80)[:1130]
    before = target.stats()
    (long,) = await collect(target, Request("long", words, 1, likelihood_from=1100))
    assert long.cached_tokens == 0  # what was read ahead was computed for this answer, too
    after = target.stats()
    assert after.output_tokens - before.output_tokens == 2  # two requests, of a token each
    assert 1130 <= after.prompt_tokens - before.prompt_tokens < 1130 + 32  # the second found what the first had read
    (again,) = await collect(target, Request("again", words, 1, likelihood_from=1100))
    assert again.prompt_logprobs == pytest.approx(long.prompt_logprobs, abs=2e-3)
    (single,) = await collect(target, Request("single", words[:1100], 1, logprob_ids=(words[1100],)))
    assert next(iter(long.prompt_logprobs or [])) == pytest.approx((single.logprobs or {})[words[1100]], abs=2e-3)


async def test_likelihoods_digits_and_tokens_are_asked_side_by_side_and_do_not_disturb_each_other(
    target: VllmEngine,
) -> None:
    """One batch has them all, and vLLM gives a batch with chosen ids no others: an entropy is then not known."""
    digits = judge_suffix(target.tokenizer, STEP_PROMPTS).digit_ids
    ids = target.tokenizer.encode("Side by side we solve the problem. " * 6)
    kinds = {
        "digit": Request("digit", ids, 1, allowed_ids=digits, logprob_ids=digits),
        "read": Request("read", ids, 1, likelihood_from=len(ids) - 20),
        "draft": Request("draft", ids, 8, 1.0, seed=1, sampled_logprobs=True),
        "gated": Request("gated", ids, 8, 1.0, seed=1, sampled_logprobs=True, first_entropy=True),
    }
    alone = {name: await collect(target, one) for name, one in kinds.items()}
    mixed = await asyncio.gather(*(collect(target, one) for _ in range(6) for one in kinds.values()))
    for deltas, name in zip(mixed, [*kinds] * 6, strict=True):
        before, now = alone[name][0], deltas[0]
        assert list((now.logprobs or {}).values()) == pytest.approx(list((before.logprobs or {}).values()), abs=2e-3)
        assert list(now.prompt_logprobs or ()) == pytest.approx(list(before.prompt_logprobs or ()), abs=2e-3)
        assert now.sampled_logprobs[:1] == pytest.approx(before.sampled_logprobs[:1], abs=2e-3)
        assert now.first_entropy is None or now.first_entropy == pytest.approx(before.first_entropy, abs=2e-3)


@pytest.mark.parametrize("start", [0, -1, 10_000])
async def test_a_likelihood_of_nothing_is_refused(target: VllmEngine, start: int) -> None:
    with pytest.raises(RequestError, match="no likelihood"):
        await collect(target, request(target, max_tokens=1, likelihood_from=start))
    assert target.stats().alive


async def test_the_programs_own_metrics_are_left_alone(target: VllmEngine) -> None:
    from prometheus_client import REGISTRY

    assert target.stats().alive
    assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("vllm")]


@pytest.mark.parametrize("options", [{}, {"gate_entropy": 1.5}, {"scorer": "likelihood", "score_threshold": -0.5}])
async def test_each_kind_of_request_can_be_warmed_up(
    engine_pair: dict[Role, VllmEngine], options: dict[str, Any]
) -> None:
    chosen = make_strategy("speculative", **options)
    for role, engine in engine_pair.items():
        before = engine.stats().output_tokens
        requests = of_each_kind(role, chosen.limits, chosen.prompts, drafts=True, seeded=True)
        await engine.warm_up(requests)
        assert engine.stats().output_tokens >= before + len(requests)


def test_each_engine_gets_its_own_cores_and_is_changed_as_expected(
    engine_pair: dict[Role, VllmEngine], pair_settings: dict[Role, EngineSettings], pair_log: Path
) -> None:
    told = pair_log.read_text()
    for chosen in pair_settings.values():
        assert f"VLLM_CPU_OMP_THREADS_BIND='{chosen.cores[0]}'" in told
    # Each engine is one process; all of them were changed, and none of them is unlike what is expected.
    for role, engine in engine_pair.items():
        (process,) = map(psutil.Process, engine.processes)
        places = {place for thread in process.threads() for place in os.sched_getaffinity(thread.id)}
        assert places == set(pair_settings[role].cores)
        assert not [child for child in process.children(recursive=True) if "Worker" in child.name()]
    assert told.count("speclrm: readers spin for 2 ms") >= len(engine_pair)
    assert told.count("speclrm: nuclei are selected") >= len(engine_pair)
    assert "left as it is" not in told
