"""The verbs of a track, on scripted engines under virtual time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support import Played, make_strategy, operation, play

from speclrm.runtime.engine import LOGPROB_MIN, Request
from speclrm.runtime.engines.scripted import ByteTokenizer, Reply, ScriptedEngine, by_step
from speclrm.runtime.events import OperationDropped, StepCommitted, StepDrafted, StepScored, StepWritten, TrackFinished
from speclrm.runtime.protocols import Role
from speclrm.runtime.tokens.prompts import judge_suffix
from speclrm.runtime.tokens.steps import line_ids, step_end, step_length, stop_ids, whole_characters
from speclrm.strategies.acceptance import REWRITTEN_SCORES
from speclrm.strategies.prompts import STEP_PROMPTS

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]
BYTES = ByteTokenizer()


def speculate(scores: list[float], draft: list[str] = STEPS, target: list[str] = STEPS, **options: object) -> Played:
    chosen = make_strategy("speculative", **{"tracks": 1, **options})
    return play(chosen, draft=by_step(draft), target=by_step(target, scores=scores))


def texts(played: Played) -> list[str]:
    return [step.text for track in played.sample.tracks.values() for step in track.steps]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a\n\nb", 3),
        ("a\nb", None),
        ("\n\n", None),
        ("\n\na", None),
        ("\n\na\n\n\nb", 6),
        ("a\n\n", 3),
        ("", None),
    ],
)
def test_a_step_ends_behind_the_first_blank_line_that_follows_something_visible(text: str, end: int | None) -> None:
    assert step_end(text) == end


def test_a_blank_line_of_two_tokens_is_cut_by_ids() -> None:
    ids = [*b"one\n\ntwo"]  # each newline a token of its own
    assert step_length(BYTES, ids, BYTES.decode(ids), line_ids(BYTES.vocabulary)) == 5


def test_a_text_is_cut_between_characters() -> None:
    ids = [*"aé".encode()]
    assert whole_characters(BYTES, ids) == 3
    assert whole_characters(BYTES, ids[:2]) == 1


def test_a_step_cut_inside_a_character_leaves_the_rest_to_the_next() -> None:
    played = speculate([9] * 9, draft=["é" * 40], max_step_tokens=5, token_budget=9, closing=False)
    assert set("".join(texts(played))) == {"é"}


def test_an_accepted_draft_is_kept_and_a_rejected_one_is_rewritten_by_the_target() -> None:
    drafts = ["Draft one.\n\n", "Draft two.\n\n", "So it is \\boxed{5}."]
    played = speculate([7.0, 6.0, 8.0], draft=drafts)
    assert texts(played) == [drafts[0], STEPS[1], drafts[2]]
    assert [e.origin for e in played.collector.of(StepCommitted)] == ["draft", "rewrite", "draft"]
    assert [e.score for e in played.collector.of(StepCommitted)] == [7.0, 9.0, 8.0]


def test_the_judge_reads_the_context_the_step_and_the_question_and_nothing_else() -> None:
    played = speculate([9, 9, 9])
    assert played.target is not None
    requests = [request for request in played.target.requests if operation(request)[3] == "score"]
    drafts = played.collector.of(StepDrafted)
    suffix = judge_suffix(BYTES, STEP_PROMPTS)
    assert played.draft is not None
    for request, draft, asked in zip(requests, drafts, played.draft.requests, strict=True):
        assert list(request.prompt_ids) == [*asked.prompt_ids, *draft.ids, *suffix.ids]
        assert request.allowed_ids == suffix.digit_ids == tuple(range(48, 58))
        assert (request.max_tokens, request.temperature) == (1, 0.0)


def test_a_step_is_never_tokenised_again_where_both_models_share_a_vocabulary() -> None:
    """Ids at the border of a step differ from what a tokenizer would make of the text: two newline bytes."""
    two_newlines = ByteTokenizer()

    def draft(request: Request, prompt: str) -> Reply:
        return Reply("x\n\ny") if operation(request)[2] == 0 else Reply("\\boxed{4}")

    class Split(ScriptedEngine):
        def _output(self, request: Request, reply: Reply) -> tuple[list[int], object]:  # type: ignore[override]
            ids = [*reply.text.encode()]
            return ids, "end" if len(ids) > 4 else "stop"

    engines = {
        Role.DRAFT: Split(draft, name="d", tokenizer=two_newlines),
        Role.TARGET: ScriptedEngine(by_step(STEPS, scores=[9, 9])),
    }
    played = play(make_strategy("speculative", tracks=1), target=by_step([]), engines=engines)
    second = next(request for request in played.draft.requests if operation(request)[2] == 1)  # type: ignore[union-attr]
    assert list(second.prompt_ids)[-3:] == [*b"x\n\n"]


def test_with_another_tokenizer_the_text_is_carried_over() -> None:
    engines = {
        Role.DRAFT: ScriptedEngine(by_step(STEPS), name="d", tokenizer=ByteTokenizer(fingerprint="other")),
        Role.TARGET: ScriptedEngine(by_step(STEPS, scores=[9, 2, 9]), name="t"),
    }
    played = play(make_strategy("speculative", tracks=1), target=by_step([]), engines=engines)
    assert texts(played) == STEPS
    last = engines[Role.TARGET].requests[-1]
    assert "".join(STEPS) in BYTES.decode(last.prompt_ids)


def test_a_piece_with_nothing_visible_goes_on_instead_of_making_a_step() -> None:
    def draft(request: Request, prompt: str) -> Reply:
        return Reply("\n\n") if prompt.endswith("<|assistant|>") else Reply("\\boxed{4}")

    played = play(make_strategy("speculative", tracks=1), draft=draft, target=by_step([], scores=[9]))
    assert texts(played) == ["\n\n\\boxed{4}"]
    assert [len(event.operations) for event in played.collector.of(StepDrafted)] == [2]


def test_a_model_that_writes_only_newlines_does_not_hold_its_track_for_ever() -> None:
    played = speculate([9] * 9, draft=["\n\n"] * 9)
    assert next(iter(played.sample.tracks.values())).reason == "repeated"


def test_the_budget_is_exact_and_one_closing_write_asks_for_the_answer() -> None:
    played = speculate([9] * 50, draft=["0123456789\n\n", "abcdefghij\n\n"] * 20, token_budget=25)
    track = next(iter(played.sample.tracks.values()))
    assert track.reason == "budget"
    assert [step.origin for step in track.steps] == ["draft", "draft", "draft", "closing"]
    assert sum(step.tokens for step in track.steps[:3]) == 25
    assert track.answer == "0"
    assert [event.write_kind for event in played.collector.of(StepWritten)] == ["closing"]


def test_the_closing_write_can_be_switched_off() -> None:
    played = speculate([9] * 50, draft=["0123456789\n\n", "abcdefghij\n\n"] * 20, token_budget=25, closing=False)
    assert played.sample.outcome == "truncated"
    assert not played.collector.of(StepWritten)


def test_another_turns_mark_ends_the_text_and_is_not_part_of_it() -> None:
    played = speculate([9], draft=["It is so.<|user|>What next?"])
    track = next(iter(played.sample.tracks.values()))
    assert (texts(played), track.reason) == (["It is so."], "end_of_text")


def test_a_thinking_model_starts_inside_its_mark_and_is_closed_before_it_is_asked() -> None:
    engines = {
        Role.TARGET: ScriptedEngine(
            by_step(["Hm.\n\n", "Well.\n\n"] * 9), name="t", tokenizer=ByteTokenizer(thinking=True)
        )
    }
    played = play(make_strategy("baseline", token_budget=8), target=by_step([]), engines=engines)
    first, last = engines[Role.TARGET].requests[0], engines[Role.TARGET].requests[-1]
    assert BYTES.decode(first.prompt_ids).endswith("<|assistant|><think>\n")
    assert "</think>" in BYTES.decode(last.prompt_ids)
    assert played.sample.answer == "0"


def test_the_target_alone_writes_a_track_in_one_request_and_commits_it_step_by_step() -> None:
    played = play(make_strategy("baseline"), target=by_step(STEPS))
    assert played.target is not None
    assert len(played.target.requests) == 1
    assert texts(played) == STEPS
    times = [event.t for event in played.collector.of(StepCommitted)]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_a_write_that_is_stopped_by_its_answer_aborts_the_request_and_counts_what_came_after() -> None:
    played = play(make_strategy("baseline"), target=by_step([*STEPS[:2], "\\boxed{4}\n\n", "More of it. " * 50]))
    assert played.target is not None
    assert list(played.target.aborted) == ["p/0/M1/0/write"]
    dropped = played.collector.of(OperationDropped)
    written = sum(op.output_tokens for event in played.collector.of(StepWritten) for op in event.operations)
    assert written + sum(event.operation.output_tokens for event in dropped) == played.target.stats().output_tokens


def test_seeds_belong_to_operations() -> None:
    def seeds(played: Played) -> dict[str, int | None]:
        assert played.draft is not None
        assert played.target is not None
        return {request.id: request.seed for engine in (played.draft, played.target) for request in engine.requests}

    one, two = seeds(speculate([9, 3, 9])), seeds(speculate([9, 3, 9]))
    assert one == two
    assert len(set(one.values())) == len(one)
    unseeded = play(
        make_strategy("speculative", tracks=1), draft=by_step(STEPS), target=by_step(STEPS, scores=[9] * 3), seed=None
    )
    assert set(seeds(unseeded).values()) == {None}


def test_scores_record_all_ten_digits_and_their_mass() -> None:
    def target(request: Request, prompt: str) -> Reply:
        return Reply(score=7.25, mass=0.5)

    played = play(
        make_strategy("speculative", tracks=1, score_method="average"), draft=by_step(["\\boxed{4}"]), target=target
    )
    (event,) = played.collector.of(StepScored)
    assert len(event.digits) == 10
    assert event.value == pytest.approx(7.25)
    assert event.mass == pytest.approx(0.5)


class Impossible(ScriptedEngine):
    """Says minus infinity for every digit but those in ``possible``."""

    possible: tuple[int, ...] = ()

    def _logprobs(self, request: Request, reply: Reply) -> Any:
        share = math.log(0.8 / len(self.possible)) if self.possible else 0.0
        return {
            token: share if digit in self.possible else -math.inf for digit, token in enumerate(request.logprob_ids)
        }


@pytest.mark.parametrize(("possible", "value", "mass"), [((8, 9), 8.5, 0.8), ((0, 9), 4.5, 0.8), ((), 0.0, 0.0)])
def test_a_digit_of_no_probability_at_all_leaves_the_score_to_the_others(
    possible: tuple[int, ...], value: float, mass: float
) -> None:
    target = Impossible(by_step(STEPS, scores=[0, 0, 0]), name="target")
    target.possible = possible
    engines = {Role.TARGET: target, Role.DRAFT: ScriptedEngine(by_step(STEPS), name="draft")}
    chosen = make_strategy("speculative", tracks=1, score_method="average")
    played = play(chosen, target=by_step(STEPS), engines=engines)
    scored = played.collector.of(StepScored)
    assert {(round(event.value, 6), round(event.mass, 6)) for event in scored} == {(value, mass)}
    assert all(event.digits[1] == LOGPROB_MIN for event in scored)
    assert [event.reason for event in played.collector.of(TrackFinished)] == ["answer"]
    assert {event.origin for event in played.collector.of(StepCommitted)} == {"draft" if value > 7 else "rewrite"}


def test_ids_of_no_probability_at_all_make_the_least_likely_step_and_no_error() -> None:
    def say(request: Request, prompt: str) -> Reply:
        return Reply(STEPS[operation(request)[2]], likelihood=-math.inf, logprobs=(-math.inf,))

    played = play(make_strategy("speculative", tracks=1, scorer="likelihood", gate_sure=-0.1), draft=say, target=say)
    assert {event.value for event in played.collector.of(StepScored)} == {LOGPROB_MIN}
    assert {event.origin for event in played.collector.of(StepCommitted)} == {"rewrite"}
    assert [event.reason for event in played.collector.of(TrackFinished)] == ["answer"]


def test_a_draft_ahead_in_several_pieces_is_made_behind_the_same_context_as_it_began() -> None:
    """Its step is committed between the pieces, so that the context has grown by then."""

    def draft(request: Request, prompt: str) -> Reply:
        _, _, step, _ = operation(request)
        if step == 3:
            return Reply("So it is \\boxed{4}.")
        part = request.id.rpartition(".")[2] if "." in request.id else "0"
        return Reply(f"s{step}p{part}\n\n", token_s=0.1)

    played = play(
        make_strategy("speculative", tracks=1, min_step_tokens=12, draft_ahead="always"),
        draft=draft,
        target=by_step([], scores=[9] * 9),
    )
    assert texts(played)[:2] == [f"s{step}p0\n\ns{step}p1\n\ns{step}p2\n\n" for step in range(2)]
    assert played.draft is not None
    for request in played.draft.requests:
        _, _, step, _ = operation(request)
        part = int(request.id.rpartition(".")[2]) if "." in request.id else 0
        seen = BYTES.decode(request.prompt_ids).partition("<|assistant|>")[2]
        whole = "".join(text for text in texts(played)[:step])
        assert seen == whole + "".join(f"s{step}p{before}\n\n" for before in range(part))


def test_all_tracks_of_a_model_share_the_ids_that_end_steps() -> None:
    """Real vocabularies have some 600 of them; a copy a track would be most of what a track holds."""
    one, other = ByteTokenizer().vocabulary, ByteTokenizer().vocabulary
    assert stop_ids(one) is stop_ids(other)
    assert line_ids(one) is line_ids(other)
    assert line_ids(one) == one.blank_line_ids | one.newline_ids
    assert stop_ids(ByteTokenizer(thinking=True).vocabulary) != stop_ids(one)


@pytest.mark.parametrize("scorer", ["judge", "likelihood"])
def test_a_step_that_is_left_to_the_target_counts_in_the_vote_as_a_rewritten_one_does(scorer: str) -> None:
    alone = speculate([0, 0, 0], scorer=scorer, speculate="never")
    rewritten = speculate([-3, -3, -3], scorer=scorer)
    assert {event.origin for event in alone.collector.of(StepCommitted)} == {"write"}
    assert {event.origin for event in rewritten.collector.of(StepCommitted)} == {"rewrite"}
    best = REWRITTEN_SCORES["judge" if scorer == "judge" else "likelihood"]
    for played in (alone, rewritten):
        assert {event.score for event in played.collector.of(StepCommitted)} == {best}
