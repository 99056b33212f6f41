"""``compare``: sets runs side by side, pair by pair."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speclrm.commands.errors import guard, say
from speclrm.runtime.errors import SpecLRMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speclrm.app.compare import Against, Compared, Side
    from speclrm.evaluators.paired import Accuracy, CostRatio, Differing
    from speclrm.evaluators.speedup import Split

ANSWER_WIDTH = 24
DIFFERING_MAX = 20
SETTLED_MAX = 1_000_000
_POINTS = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:pts?|pp|points?)\s*", re.IGNORECASE)
COSTS = {
    "tokens": "tokens a sample",
    "target_tokens": "  of the target",
    "decode_flops": "decode FLOPs",
    "all_flops": "all FLOPs",
    "seconds": "seconds a sample",
}


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="A B...", help="Folders of runs; each is compared with the first.")
    ],
    common: Annotated[
        bool, typer.Option("--common", help="If problems or repeats differ, compare those that both runs have.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="NAMES",
            help="Compare in spite of these differences, separated by commas: token-budget, target, models, machine, or "
            "another that a refusal names.",
        ),
    ] = None,
    fail_if_worse: Annotated[
        str | None,
        typer.Option(
            "--fail-if-worse",
            metavar="POINTS",
            help="Exit with 1 if a run's accuracy is more than this below the first one's, such as 1pt.",
        ),
    ] = None,
    sure: Annotated[
        bool,
        typer.Option("--sure", help="With --fail-if-worse: only if the whole 95 % interval is more than that below."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare runs on the same problems and repeats: accuracy, tokens, FLOPs, time, with 95 % intervals.

    Says which problems differ, how many problems would settle it, and what a speed-up is made of.
    Runs that are not comparable are refused with their differences.
    """

    def start() -> None:
        from speclrm.app import compare as app
        from speclrm.commands.display import print_json

        if sure and fail_if_worse is None:
            raise UsageError("--sure belongs to --fail-if-worse: give both, or neither.")
        margin = None if fail_if_worse is None else _points(fail_if_worse)
        notices: list[str] = []

        def notice(text: str) -> None:
            notices.append(text)
            say(f"note: {text}", err=True)

        found = app.compare(runs, common=common, allow=allow or (), notice=notice)
        worse = [] if margin is None else [one for one in found.others if _is_worse(one, margin, sure=sure)]
        if json:
            names = [str(one.run.directory) for one in worse]
            print_json({"notices": notices, **found.model_dump(mode="json"), "worse": names})
        else:
            for line in lines(found):
                say(line)
        if worse:
            raise Worse(
                f"{', '.join(str(one.run.directory) for one in worse)}: "
                f"{'surely ' if sure else ''}worse than {found.base.directory} by more than {fail_if_worse}."
            )

    guard(start)


class Worse(SpecLRMError):
    """A run is worse than --fail-if-worse allows."""

    exit_code = 1


def _points(text: str) -> float:
    """A margin of accuracy, 0 to 1. Raises UsageError."""
    found = _POINTS.fullmatch(text)
    if found is None or not 0 <= float(found[1]) <= 100:
        raise UsageError(
            f"--fail-if-worse {text!r} is no number of points. Give points of accuracy, such as 1pt or 0.5pt."
        )
    return float(found[1]) / 100


def _is_worse(one: Against, margin: float, *, sure: bool) -> bool:
    accuracy = one.paired.accuracy
    if accuracy is None:
        raise UsageError(
            f"--fail-if-worse: no sample of {one.run.directory} is graded on both sides, so there is no accuracy to compare."
        )
    # A difference of just the margin is not more than it, whatever its last bit is.
    return (accuracy.difference.high if sure else accuracy.difference.value) < -margin - 1e-9


# -------------------------------------------------------------------------------------------------------------- printing


def lines(found: Compared) -> Iterator[str]:
    """What is printed, in 100 columns as long as names are short."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for number, one in enumerate(found.others):
        letter = letters[number + 1] if number + 1 < len(letters) else f"run {number + 2}"
        if number:
            yield ""
        yield from _block(found.base, one, letter)


def _block(base: Side, one: Against, letter: str) -> Iterator[str]:
    yield _title("A", base)
    yield _title(letter, one.run)
    pairs = one.paired
    each = pairs.pairs / pairs.problems
    yield f"{pairs.problems} problems, {pairs.pairs} pairs of samples" + (f" ({each:g} a problem)" if each != 1 else "")
    for text in one.notices:
        yield f"note: {text}"
    yield ""
    yield from _table(one, letter)
    if pairs.accuracy is not None:
        yield ""
        yield from _said(pairs.accuracy, letter)
    yield ""
    yield from _speed(one, letter)
    if pairs.differing:
        yield ""
        yield from _differing(pairs.differing, letter)


def _title(letter: str, side: Side) -> str:
    from speclrm.commands.display import harmless

    models = side.target if side.draft is None else f"{side.target} + {side.draft}"
    ended = "" if side.status == "finished" else f" ({side.status})"
    return harmless(f"{letter}  {side.directory}: {side.strategy} on {side.dataset} by {models}{ended}", 400)


def _table(one: Against, letter: str) -> Iterator[str]:
    yield _row("", "A", letter, "change", "95 % interval", "problems to settle")
    accuracy = one.paired.accuracy
    if accuracy is not None:
        change = accuracy.difference
        yield _row(
            "accuracy",
            f"{accuracy.base:.1%}",
            f"{accuracy.other:.1%}",
            f"{100 * change.value:+.1f} points",
            f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
            _settle(accuracy.settle, settled=not change.low <= 0 <= change.high),
        )
    for cost in one.paired.costs:
        yield _row(*_cost_cells(cost, virtual=one.virtual))


def _cost_cells(cost: CostRatio, *, virtual: bool) -> tuple[str, str, str, str, str, str]:
    name = COSTS[cost.cost] + (" (virtual)" if virtual and cost.cost == "seconds" else "")
    base, other = _amount(cost.base), _amount(cost.other)
    ratio = cost.ratio
    if ratio is None:
        plain = f"{cost.other / cost.base:.2f}x" if cost.base else "-"
        return name, base, other, plain, "needs 6 problems", "-"
    settled = not ratio.low <= 1 <= ratio.high
    interval = f"{ratio.low:.2f}x to {ratio.high:.2f}x"
    return name, base, other, f"{ratio.value:.2f}x", interval, _settle(cost.settle, settled=settled)


def _row(name: str, base: str, other: str, change: str, interval: str, settle: str) -> str:
    return f"{name:<26}{base:>11}{other:>11}{change:>15}{interval:>18}{settle:>19}".rstrip()


def _settle(problems: int | None, *, settled: bool) -> str:
    if settled:
        return "settled"
    if problems is None:
        return "no difference"
    return f"about {problems:,}" if problems <= SETTLED_MAX else f"over {SETTLED_MAX:,}"


def _amount(value: float) -> str:
    if value >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _said(accuracy: Accuracy, letter: str) -> Iterator[str]:
    yield (
        f"right        {accuracy.both} pairs in both, {accuracy.only_base} only in A, {accuracy.only_other} only in {letter}, "
        f"{accuracy.neither} in neither"
    )
    repeats = accuracy.problems < accuracy.pairs
    tests = f"p = {accuracy.mcnemar:.3g} (exact McNemar)"
    if repeats:
        alone = f"{accuracy.mcnemar:.3g} if repeats were problems (exact McNemar)"
        tests = f"p = {accuracy.p:.3g} by problem (signs flipped); {alone}"
    yield f"chance       {tests}"
    change = accuracy.difference
    if change.low > 0 or change.high < 0:
        yield f"so           {letter if change.value > 0 else 'A'} is right more often."
    elif accuracy.settle is None:
        yield "so           both are right equally often here; the interval says how far apart they may be."
    else:
        better = letter if change.value > 0 else "A"
        yield (
            f"so           {better} was right more often here, and this may be chance; about {accuracy.settle:,} problems would "
            "tell."
        )


def _speed(one: Against, letter: str) -> Iterator[str]:
    split = one.split
    if split is None:
        yield f"speed-up     not split: {one.no_split}"
        return
    virtual = ", virtual time" if one.virtual else ""
    yield (
        f"speed-up     {letter} took {split.other.seconds:,.1f} s and A {split.base.seconds:,.1f} s{virtual}: "
        f"{split.total:.2f}x as fast ="
    )
    yield from _causes(split)
    if split.decode_flops is not None and split.all_flops is not None:
        yield (
            f"             FLOPs of A / {letter}: {split.decode_flops:.2f}x to decode, {split.all_flops:.2f}x with what was "
            "read of prompts"
        )


def _causes(split: Split) -> Iterator[str]:
    base, other = split.base, split.other
    work, rate = f"{base.work:.2f} -> {other.work:.2f}", f"{base.rate:,.1f} -> {other.rate:,.1f}"
    at_once = f"{base.side_by_side:.1f} -> {other.side_by_side:.1f}"
    yield f"             {split.chains:5.2f}x  shorter chains: {base.chain:,.0f} -> {other.chain:,.0f} kept tokens a track"
    if base.tracks != other.tracks:
        yield f"           x {split.tracks:5.2f}x  fewer tracks: {base.tracks} -> {other.tracks}"
    yield f"           x {split.speculation:5.2f}x  speculation: {work} target tokens' work for a kept one"
    yield f"           x {split.schedule:5.2f}x  schedule: {rate} target tokens' work a second, {at_once} at once"


def _differing(found: tuple[Differing, ...], letter: str) -> Iterator[str]:
    from speclrm.commands.display import harmless

    yield f"{len(found)} problems differ"
    width = max(len(harmless(one.problem, ANSWER_WIDTH)) for one in found[:DIFFERING_MAX])
    for one in found[:DIFFERING_MAX]:
        answers = [_answers(side) for side in (one.base_answers, one.other_answers)]
        yield (
            f"  {harmless(one.problem, ANSWER_WIDTH):<{width}}  right: A {one.base_right}/{one.pairs}, {letter} "
            f"{one.other_right}/{one.pairs}  answers: {answers[0]} | {answers[1]}"
        )
    if len(found) > DIFFERING_MAX:
        yield f"  and {len(found) - DIFFERING_MAX} more; --json has all"


def _answers(answers: tuple[str | None, ...]) -> str:
    from speclrm.commands.display import harmless

    return harmless(", ".join("-" if answer is None else answer for answer in answers), ANSWER_WIDTH)
