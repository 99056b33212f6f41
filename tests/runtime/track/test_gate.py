"""Drafts that are kept or left by their own confidence, steps of a least length, and likelihoods as scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support import Played, make_strategy, operation, play

from speclrm.evaluators.metrics import summarize
from speclrm.runtime.engines.scripted import Reply, by_step
from speclrm.runtime.events import StepCommitted, StepDrafted, StepGated, StepScored, StepWritten

if TYPE_CHECKING:
    from speclrm.runtime.engine import Request

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]
LONG = "We think about this for a very long time, with many words.\n\n"
REWRITES = ["One.\n\n", "Two.\n\n", "\\boxed{4}."]


def drafts(*replies: Reply) -> object:
    def draft(request: Request, prompt: str) -> Reply:
        return replies[operation(request)[2]]

    return draft


def gated(*replies: Reply, scores: tuple[float, ...] = (9, 9, 9), **options: Any) -> Played:
    chosen = make_strategy("speculative", tracks=1, **options)
    return play(chosen, draft=drafts(*replies), target=by_step(REWRITES, scores=scores))  # type: ignore[arg-type]


def texts(played: Played) -> list[str]:
    return [step.text for track in played.sample.tracks.values() for step in track.steps]


def whole(played: Played) -> None:
    """Every generated token has one fate."""
    assert played.draft is not None
    summary = summarize(played.collector.events)
    for counts in summary.tokens.values():
        assert (
            counts.generated
            == counts.kept + counts.rejected + counts.dropped + counts.useless + counts.judge + counts.choice
        )
    assert summary.tokens["draft"].generated == played.draft.stats().output_tokens


def test_a_draft_that_is_sure_of_itself_is_kept_without_a_score() -> None:
    played = gated(Reply(STEPS[0], logprobs=[-0.1]), Reply(STEPS[1], logprobs=[-0.9]), Reply(STEPS[2]), gate_sure=-0.5)
    assert texts(played) == STEPS
    assert [event.step for event in played.collector.of(StepScored)] == [1]
    assert [(event.step, event.verdict) for event in played.collector.of(StepGated)] == [(0, "sure"), (2, "sure")]
    assert [event.score for event in played.collector.of(StepCommitted)] == [None, 9.0, None]
    assert summarize(played.collector.events).sure == 2
    whole(played)


def test_a_doubtful_draft_is_left_to_the_target_without_a_score() -> None:
    played = gated(Reply(STEPS[0], logprobs=[-3.0]), Reply(STEPS[1]), Reply(STEPS[2]), gate_doubt=-2)
    assert texts(played) == [REWRITES[0], *STEPS[1:]]
    assert [event.step for event in played.collector.of(StepScored)] == [1, 2]
    (event,) = played.collector.of(StepGated)
    assert (event.verdict, event.mean_logprob, event.tokens) == ("doubtful", -3.0, len(STEPS[0]) - 1)
    assert [event.score for event in played.collector.of(StepCommitted)] == [9.0, 9.0, 9.0]
    assert summarize(played.collector.events).doubtful == 1
    whole(played)


def test_a_draft_whose_first_token_is_unsure_is_left_behind_it() -> None:
    played = gated(Reply(LONG, entropy=2.5), Reply(STEPS[1], entropy=0.5), Reply(STEPS[2]), gate_entropy=2.0)
    assert played.draft is not None
    assert [name.rsplit("/", 2)[1:] for name in played.draft.aborted] == [["0", "draft"]]
    first, second, _ = played.collector.of(StepDrafted)
    assert (first.left, first.first_entropy, len(first.ids)) == (True, 2.5, 1)
    assert (second.left, second.first_entropy) == (False, 0.5)
    assert texts(played)[0] == REWRITES[0]
    assert summarize(played.collector.events).tokens["draft"].rejected == 8
    whole(played)


def test_a_draft_that_proves_doubtful_while_it_is_written_is_left_after_the_tokens_that_tell() -> None:
    bad = Reply(LONG, logprobs=[-0.1] * 4 + [-9.0])
    played = gated(bad, Reply(STEPS[1]), Reply(STEPS[2]), gate_doubt=-2, gate_tokens=12)
    (first, *_) = played.collector.of(StepDrafted)
    assert (first.left, len(first.ids)) == (True, 12)  # of two deltas of eight
    assert [event.step for event in played.collector.of(StepScored)] == [1, 2]
    whole(played)
    patient = gated(bad, Reply(STEPS[1]), Reply(STEPS[2]), gate_doubt=-2)
    assert [event.left for event in patient.collector.of(StepDrafted)] == [False] * 3
    assert len(patient.collector.of(StepDrafted)[0].ids) == len(LONG) - 1


def test_a_short_draft_ends_before_the_tokens_that_would_tell_and_is_judged_as_a_whole() -> None:
    played = gated(
        *(Reply(text, logprobs=[-9.0]) for text in ("a\n\n", "b\n\n", "\\boxed{4}")), gate_doubt=-2, gate_tokens=50
    )
    assert [event.left for event in played.collector.of(StepDrafted)] == [False] * 3
    assert {event.verdict for event in played.collector.of(StepGated)} == {"doubtful"}


@pytest.mark.parametrize("options", [{}, {"gate_sure": -0.5}, {"gate_entropy": 1.0}])
def test_drafts_are_asked_for_what_the_gate_needs_and_no_more(options: dict[str, Any]) -> None:
    played = gated(*map(Reply, STEPS), **options)
    assert played.draft is not None
    assert played.target is not None
    assert {request.sampled_logprobs for request in played.draft.requests} == {bool(options)}
    assert {request.first_entropy for request in played.draft.requests} == {"gate_entropy" in options}
    assert not any(request.sampled_logprobs or request.first_entropy for request in played.target.requests)
    assert (played.collector.of(StepDrafted)[0].mean_logprob is None) is not bool(options)


def test_a_draft_that_says_nothing_is_scored_since_it_has_no_confidence() -> None:
    played = gated(Reply(""), scores=(9,), gate_sure=-1, gate_doubt=-2)
    assert not played.collector.of(StepGated)
    assert len(played.collector.of(StepScored)) == 1


# ------------------------------------------------------------------------------------------------------- least lengths


def test_a_step_shorter_than_the_least_goes_on_in_the_same_operation() -> None:
    pieces = iter(["One.\n\n", "Two.\n\n", "Three and more.\n\n", "\\boxed{4}"])

    def draft(request: Request, prompt: str) -> Reply:
        return Reply(next(pieces))

    played = play(
        make_strategy("speculative", tracks=1, min_step_tokens=12),
        draft=draft,
        target=by_step([], scores=[9, 9]),
    )
    assert texts(played) == ["One.\n\nTwo.\n\nThree and more.\n\n", "\\boxed{4}"]
    assert played.draft is not None
    names = [request.id.rsplit("/", 1)[1] for request in played.draft.requests]
    assert names == ["draft", "draft.1", "draft.2", "draft"]
    first, second, third, _ = played.draft.requests
    assert list(second.prompt_ids) == [*first.prompt_ids, *played.draft.tokenizer.encode("One.\n\n")]
    assert list(third.prompt_ids)[: len(second.prompt_ids)] == list(second.prompt_ids)
    whole(played)


def test_a_blank_line_of_two_tokens_inside_a_step_that_is_too_short_does_not_end_its_request() -> None:
    played = gated(Reply("a\n \nb\n\n"), Reply("\\boxed{4}"), min_step_tokens=4)
    assert len(played.collector.of(StepDrafted)[0].operations) == 1


def test_the_targets_own_steps_have_the_same_least_length() -> None:
    steps = ["a\n\n", "b\n\n", "c and d and e\n\n", "f\n\n", "\\boxed{4}"]
    played = play(make_strategy("baseline", min_step_tokens=6), target=by_step(steps))
    assert texts(played) == ["a\n\nb\n\nc and d and e\n\n", "f\n\n\\boxed{4}"]
    assert played.target is not None
    assert len(played.target.requests) == 1


def test_a_text_that_ends_is_a_step_however_short() -> None:
    played = gated(Reply("\\boxed{4}<|end|>"), min_step_tokens=100)
    assert texts(played) == ["\\boxed{4}"]


def test_a_step_that_goes_on_is_gated_by_all_of_its_tokens() -> None:
    pieces = iter([Reply("ab\n\n", logprobs=[-1.0], entropy=0.5), Reply("cd\n\n", logprobs=[-3.0], entropy=3.0)])

    def draft(request: Request, prompt: str) -> Reply:
        return next(pieces, Reply("\\boxed{4}"))

    played = play(
        make_strategy("speculative", tracks=1, min_step_tokens=6, gate_doubt=-1.5, gate_entropy=2.0),
        draft=draft,
        target=by_step(REWRITES, scores=[9] * 3),
    )
    (first, *_) = played.collector.of(StepDrafted)
    assert (first.mean_logprob, first.first_entropy, first.left) == (-2.0, 0.5, False)
    assert played.collector.of(StepGated)[0].tokens == 6


# --------------------------------------------------------------------------------------------------------- likelihoods


def test_a_likelihood_is_read_from_context_and_step_alone() -> None:
    played = gated(*map(Reply, STEPS), scores=(-0.5, -1.5, -0.2), scorer="likelihood")
    assert texts(played) == [STEPS[0], REWRITES[1], STEPS[2]]
    assert [event.score for event in played.collector.of(StepCommitted)] == pytest.approx([-0.5, 0.0, -0.2])
    assert played.target is not None
    assert played.draft is not None
    scores = [request for request in played.target.requests if operation(request)[3] == "score"]
    for request, draft, asked in zip(scores, played.collector.of(StepDrafted), played.draft.requests, strict=True):
        assert list(request.prompt_ids) == [*asked.prompt_ids, *draft.ids]
        assert request.likelihood_from == len(asked.prompt_ids)
        assert (request.max_tokens, request.temperature, request.logprob_ids) == (1, 0.0, ())
    events = played.collector.of(StepScored)
    assert {(event.scorer, event.digits, event.mass) for event in events} == {("likelihood", (), 1.0)}
    summary = summarize(played.collector.events)
    assert summary.likelihood == pytest.approx(-2.2 / 3)
    assert (sum(summary.scores), summary.digit_mass) == (0, None)
    whole(played)


def test_a_draft_that_ends_its_text_without_a_word_is_as_likely_as_the_targets_own_end() -> None:
    played = gated(Reply(""), scores=(9,), scorer="likelihood")
    assert played.target is not None
    (request,) = [one for one in played.target.requests if operation(one)[3] == "score"]
    assert request.likelihood_from is None
    assert request.logprob_ids == tuple(played.target.tokenizer.vocabulary.end_ids)
    assert played.collector.of(StepScored)[0].value < -15  # the script puts all mass on another place


def test_a_rewritten_step_is_the_best_of_its_scale_in_the_vote_and_scales_are_never_mixed() -> None:
    for scorer, best in (("judge", 9.0), ("likelihood", 0.0)):
        threshold = {"score_threshold": -0.1} if scorer == "likelihood" else {}
        played = gated(*map(Reply, STEPS), scores=(-0.5,) * 3 if threshold else (1,) * 3, scorer=scorer, **threshold)
        assert {event.score for event in played.collector.of(StepCommitted)} == {best}
        assert len(played.collector.of(StepWritten)) == 3
