"""Work ahead of scores: what it saves, and that it is taken up or given up, and accounted for either way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support import PROBLEM, Collector, Played, make_strategy, parts, play

from speclrm.evaluators.metrics import summarize
from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine, by_step
from speclrm.runtime.errors import RequestError
from speclrm.runtime.events import OperationDropped, StepCommitted, StepDrafted, StepWritten, TrackFinished
from speclrm.runtime.protocols import Role
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from speclrm.runtime.engine import Delta, Request

STEPS = ["First we add.\n\n", "Then we look.\n\n", "Then we wait.\n\n", "So it is \\boxed{4}."]
WRITTEN = ["One.\n\n", "Two.\n\n", "Three.\n\n", "\\boxed{4}."]


def slow_scores(scores: tuple[float, ...]) -> Any:
    """A target whose scores take a second, so that there is time to work ahead."""
    answer = by_step(WRITTEN, scores=scores)

    def script(request: Request, prompt: str) -> Reply:
        reply = answer(request, prompt)
        if reply.score is None:
            return reply
        return Reply(score=reply.score, wait_s=1.0)

    return script


def ahead(scores: tuple[float, ...], **options: Any) -> Played:
    chosen = make_strategy("speculative", tracks=1, plan="plain", **options)
    return play(chosen, draft=by_step(STEPS), target=slow_scores(scores))


def seconds(played: Played) -> float:
    return played.sample.seconds


def texts(played: Played) -> list[str]:
    return [step.text for track in played.sample.tracks.values() for step in track.steps]


def test_a_draft_ahead_is_taken_up_when_the_step_is_kept_and_saves_its_time() -> None:
    plain, early = ahead((9, 9, 9, 9)), ahead((9, 9, 9, 9), draft_ahead="always")
    assert texts(plain) == texts(early) == STEPS
    assert seconds(early) < seconds(plain)
    assert not early.collector.of(OperationDropped)
    assert early.draft is not None
    kinds = [request.id.rsplit("/", 1)[1] for request in early.draft.requests]
    assert kinds == ["draft", "draft-ahead", "draft-ahead", "draft-ahead"]


def test_a_draft_ahead_is_useless_when_the_step_is_rejected_and_another_is_made() -> None:
    played = ahead((9, 2, 9, 9), draft_ahead="always")
    assert texts(played) == [STEPS[0], WRITTEN[1], STEPS[2], STEPS[3]]
    dropped = played.collector.of(OperationDropped)
    assert [(event.reason, event.purpose, event.step) for event in dropped] == [("useless", "draft", 2)]
    assert dropped[0].operation.id == "p/0/M1/2/draft-ahead"


def test_a_rewrite_ahead_is_taken_up_when_the_step_is_rejected_and_useless_when_it_is_kept() -> None:
    plain, early = ahead((9, 2, 9, 9)), ahead((9, 2, 9, 9), rewrite_ahead="always")
    assert texts(plain) == texts(early)
    assert seconds(early) < seconds(plain)
    reasons = {(event.reason, event.purpose, event.step) for event in early.collector.of(OperationDropped)}
    assert reasons == {("useless", "rewrite", 0), ("useless", "rewrite", 2)}
    assert [event.operations[0].id for event in early.collector.of(StepWritten)] == ["p/0/M1/1/rewrite-ahead"]


def test_nothing_is_made_ahead_of_a_step_that_ends_the_track() -> None:
    played = ahead((9, 9, 9, 9), draft_ahead="always", rewrite_ahead="always")
    assert all(event.step < 3 for event in played.collector.of(OperationDropped))
    assert played.draft is not None
    assert len(played.draft.requests) == len(STEPS)


@pytest.mark.parametrize(
    "options", [{}, {"draft_ahead": "always"}, {"draft_ahead": "always", "rewrite_ahead": "always"}]
)
def test_every_token_that_was_generated_has_one_fate(options: dict[str, str]) -> None:
    played = ahead((9, 2, 2, 9), **options)
    summary = summarize(played.collector.events)
    assert played.draft is not None
    assert played.target is not None
    assert summary.tokens["draft"].generated == played.draft.stats().output_tokens
    assert summary.tokens["target"].generated == played.target.stats().output_tokens


def test_a_draft_ahead_that_is_refused_costs_its_step_the_draft_and_only_if_it_is_wanted() -> None:
    def broken(request: Request, prompt: str) -> Reply:
        if request.id.endswith("/2/draft-ahead"):
            return Reply(error=RequestError("no"))
        return by_step(STEPS)(request, prompt)

    for scores, origins in (
        ((9, 9, 9, 9), ["draft", "draft", "write", "draft"]),
        ((9, 2, 9, 9), ["draft", "rewrite", "draft", "draft"]),
    ):
        chosen = make_strategy("speculative", tracks=1, draft_ahead="always")
        played = play(chosen, draft=broken, target=slow_scores(scores))
        assert [event.reason for event in played.collector.of(TrackFinished)] == ["answer"]
        assert [event.origin for event in played.collector.of(StepCommitted)] == origins
        refused = [event for event in played.collector.of(OperationDropped) if event.purpose == "draft"]
        assert [event.operation.id.partition("1/")[2] for event in refused] == ["2/draft-ahead"]


@pytest.mark.parametrize("moment_s", [step / 10 for step in range(1, 70, 3)])
def test_cancelling_at_any_moment_leaves_nothing_in_the_engines(moment_s: float) -> None:
    async def main() -> tuple[int, int, list[str], Collector]:
        engines = {
            Role.TARGET: ScriptedEngine(slow_scores((9, 2, 9, 9)), name="target"),
            Role.DRAFT: ScriptedEngine(by_step(STEPS), name="draft"),
        }
        collector = Collector()
        async with Runtime(parts(engines)) as runtime:
            chosen = make_strategy("speculative", tracks=2, draft_ahead="always", rewrite_ahead="always")
            call = asyncio.create_task(runtime.run([PROBLEM], chosen, sinks=[collector]))
            started = now_s()
            await asyncio.sleep(moment_s)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert now_s() - started < moment_s + 0.05
            running = sum(engine.stats().running for engine in engines.values())
            flying = sum(one.in_flight for lane in runtime.scheduler.stats().values() for one in lane)
            reservations = runtime.scheduler.admission.admitted
            reasons = [event.reason for event in collector.of(TrackFinished)]
            return running, flying + reservations, reasons, collector

    running, held, reasons, collector = run_virtual(main())
    assert (running, held, len(reasons)) == (0, 0, 2)
    drafted = {(event.track, event.step) for event in collector.of(StepDrafted)}
    assert {(event.track, event.step) for event in collector.of(StepCommitted) if event.origin == "draft"} <= drafted


class SlowToAbort(ScriptedEngine):
    """Takes three seconds to abort a request."""

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        deltas = super().stream(request)
        try:
            async for delta in deltas:
                yield delta
        except asyncio.CancelledError:
            await asyncio.sleep(3)
            raise


@pytest.mark.parametrize("stopped", [False, True], ids=["cancelled", "stopped by a vote"])
def test_nothing_more_is_made_ahead_while_the_request_of_a_cancelled_track_is_being_aborted(stopped: bool) -> None:
    """The first track is cancelled, or stopped by the answer of the second, in the midst of a score and of a step ahead."""
    asked: dict[str, float] = {}

    def drafts(request: Request, prompt: str) -> Reply:
        _, _, track, step = request.id.split("/", 3)
        asked[f"{track} {step}"] = now_s()
        if "ahead" in step:
            return Reply("\n\n", wait_s=1.0)  # a piece with nothing visible: another one follows
        return Reply(STEPS[0] if track.endswith("1") else STEPS[3])

    def scores(request: Request, prompt: str) -> Reply:
        return Reply(score=9, wait_s=10.0 if request.id.split("/")[2].endswith("1") else 1.5)

    async def main() -> float:
        engines = {Role.TARGET: SlowToAbort(scores, name="target"), Role.DRAFT: ScriptedEngine(drafts, name="draft")}
        async with Runtime(parts(engines)) as runtime:
            chosen = make_strategy("speculative", tracks=1 + stopped, plan="plain", draft_ahead="always", fast=1)
            call = asyncio.create_task(runtime.run([PROBLEM], chosen))
            await asyncio.sleep(1.5)
            if not stopped:
                call.cancel()
            await asyncio.wait({call})
            assert call.cancelled() is not stopped
            return now_s()

    ended = run_virtual(main())
    assert [name for name in asked if not name.startswith("M2")] == [
        "M1 0/draft",
        "M1 1/draft-ahead",
        "M1 1/draft-ahead.1",
    ]
    assert 4.5 <= ended < 4.8
