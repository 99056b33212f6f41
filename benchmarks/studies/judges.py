"""Measures how well a target tells good steps from bad ones, by each way of scoring, and what each way costs.

    python benchmarks/studies/judges.py record steps.json [--dataset ...] [--problems 24] [--steps 8]
    python benchmarks/studies/judges.py score steps.json scores.json
    python benchmarks/studies/judges.py table scores.json [more.json ...]
    python benchmarks/studies/judges.py all steps.json scores.json      (all but the last on one pair of engines)
    python benchmarks/studies/judges.py cache
    python benchmarks/studies/judges.py logprobs
    python benchmarks/studies/judges.py tokenizers

``record``: at each place of a track the draft and the target write a step each, from the same context, and a coin says
which of them is committed. ``score``: each of these steps by each scorer. ``table``: how often a good step scores above
a bad one (AUROC; 0.5 is chance), with a bootstrap interval over problems. Good means: written by the target; or, where the
step holds sums that can be checked, that all of them are right. ``cache``: uncached tokens a score, and the share of full
blocks computed before that were found. ``logprobs``: what log-probabilities cost a draft. ``tokenizers``: what another
tokenizer costs, without an engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import time
from collections import defaultdict
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from speclrm import api
from speclrm.benchmarks.studies.sums import sums_hold
from speclrm.evaluators.answers import find_answer, finished_answer
from speclrm.evaluators.datasets import load
from speclrm.runtime.engine import Request
from speclrm.runtime.engines.restarting import inner
from speclrm.runtime.models import store
from speclrm.runtime.protocols import Role, StepPrompts
from speclrm.runtime.tokens.context import Context, translate
from speclrm.runtime.tokens.prompts import judge_suffix
from speclrm.runtime.tokens.tokenizer import load_tokenizer
from speclrm.strategies.family import Family
from speclrm.strategies.prompts import INLINE_PROMPTS, STEP_PROMPTS
from speclrm.strategies.recipe import ENTROPY_MAX, Recipe
from speclrm.strategies.scoring import read_score

TARGET, DRAFT = "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"
DATASET = "reasoning-gym:chain_sum?min_terms=3&max_terms=4&max_digits=2"
NOTES = {
    "inline": (INLINE_PROMPTS.judge, INLINE_PROMPTS.judge_reply),
    "inline, strict": ("[Strict reviewer: last step graded 0-9. Grade", ": "),
    "inline, reviewer": ("[Reviewer's grade for this step, 0 to 9", ": "),
    "inline, student": ("[Grade of this student's last step, 0-9", ": "),
}
"""Notes that were tried; the first is the one that is shipped."""
RESAMPLES = 2000

# -------------------------------------------------------------------------------------------------------------- record


class Both(Family):
    """Writes each step twice from one context: by the draft and by the target; a coin commits one of them."""

    name = "both"
    roles = frozenset({Role.DRAFT, Role.TARGET})

    def __init__(self, recipe: Recipe, seed: int, seconds: float) -> None:
        super().__init__(recipe, find_answer, finished_answer=finished_answer)
        self.pairs: list[dict[str, Any]] = []
        self._seed = seed
        self._seconds = seconds
        self._started = math.inf

    async def run_track(self, track: Any) -> Any:
        # What was written last is what the track's state would take for the step; so the end is told from the step.
        for place in range(self.recipe.step_limit or 0):
            contexts = {role.value: context.ids() for role, context in track.contexts.items()}
            draft = await track.draft()
            target = await track.rewrite(draft)
            self.pairs.append(
                {
                    "problem": track.problem.id,
                    "contexts": contexts,
                    "steps": {one.role.value: {"ids": list(one.ids), "text": one.text} for one in (draft, target)},
                    "mean_logprob": draft.confidence and draft.confidence.mean_logprob,
                    "first_entropy": draft.confidence and draft.confidence.first_entropy,
                }
            )
            key = f"{self._seed}/{track.problem.id}/{track.state.track}/{place}"
            chosen = draft if random.Random(key).random() < 0.5 else target
            await track.commit(chosen)
            self._started = min(self._started, time.perf_counter())
            if time.perf_counter() > self._started + self._seconds:
                break
            if (
                chosen.ended
                or finished_answer(chosen.text) is not None
                or track.state.tokens >= self.recipe.token_budget
            ):
                break
        return "step_limit"


async def record(opened: Any, options: argparse.Namespace) -> None:
    recipe = Recipe(
        tracks=options.tracks,
        token_budget=options.budget,
        max_step_tokens=64,
        step_limit=options.steps,
        closing=False,
        gate_doubt=-100.0,
        gate_entropy=ENTROPY_MAX,
    )
    strategy = Both(recipe, options.seed, options.seconds)
    problems = load(options.dataset, limit=options.problems, seed=options.seed)
    await opened.run(problems, strategy, seed=options.seed)
    options.file.write_text(json.dumps({"dataset": options.dataset, "pairs": strategy.pairs}))
    print(f"{len(strategy.pairs)} places, {2 * len(strategy.pairs)} steps, in {options.file}")


def runtime(options: argparse.Namespace) -> Any:
    return api.Runtime(
        target=options.target,
        draft=options.draft,
        tracks=16,
        prompt_tokens=320,
        token_budget=options.budget,
        max_step_tokens=64,
    )


# --------------------------------------------------------------------------------------------------------------- score


async def ask(engine: Any, request: Request) -> Any:
    async with aclosing(engine.stream(request)) as deltas:
        first = await anext(deltas)
        async for _ in deltas:
            pass
        return first


async def score(opened: Any, options: argparse.Namespace) -> None:
    recorded = json.loads(options.file.read_text())
    rows: list[dict[str, Any]] = []
    if options.scores.is_file():
        rows = json.loads(options.scores.read_text())["rows"]
    done = {(row["pair"], row["role"]) for row in rows}
    left = [
        (number, pair, role)
        for number, pair in enumerate(recorded["pairs"])
        for role in Role
        if (number, role.value) not in done
    ]
    engines = {role: inner(opened.scheduler.lanes[role].engine) for role in Role}
    target = engines[Role.TARGET]
    layouts: dict[str, StepPrompts] = {"turn": STEP_PROMPTS}
    for name, (judge, reply) in list(NOTES.items())[: None if options.all_notes else 1]:
        layouts[name] = replace(INLINE_PROMPTS, judge=judge, judge_reply=reply)
    suffixes = {name: judge_suffix(target.tokenizer, prompts) for name, prompts in layouts.items()}

    async def one(number: int, pair: dict[str, Any], role: Role) -> dict[str, Any]:
        step = pair["steps"][role.value]
        ids = {
            reader: list(translate(step["ids"], step["text"], engines[role].tokenizer, engines[reader].tokenizer))
            for reader in Role
        }
        row: dict[str, Any] = {
            "pair": number,
            "problem": pair["problem"],
            "role": role.value,
            "text": step["text"],
        }
        if role is Role.DRAFT:
            row |= {"draft mean log-probability": pair["mean_logprob"]}
        if pair["first_entropy"] is not None:
            row["first-token entropy"] = -pair["first_entropy"]  # less is better
        context = pair["contexts"]["target"]
        if ids[Role.TARGET]:
            prompt = [*context, *ids[Role.TARGET]]
            delta = await ask(target, Request("read", prompt, 1, likelihood_from=len(context)))
            row["likelihood"] = statistics.fmean(delta.prompt_logprobs)
        for name, suffix in suffixes.items():
            prompt = [*context, *ids[Role.TARGET], *suffix.ids]
            digit_ids = suffix.digit_ids
            delta = await ask(target, Request("score", prompt, 1, allowed_ids=digit_ids, logprob_ids=digit_ids))
            digits = [delta.logprobs[token] for token in digit_ids]
            for method in ("greedy", "average"):
                row[f"{name}, {method}"] = read_score(digits, method).value
            row[f"mass of {name}"] = read_score(digits, "greedy").mass
        return row

    places = asyncio.Semaphore(12)
    started = time.perf_counter()

    async def bounded(number: int, pair: dict[str, Any], role: Role) -> None:
        async with places:
            if time.perf_counter() < started + options.seconds:
                rows.append(await one(number, pair, role))

    await asyncio.gather(*(bounded(*item) for item in left))
    print(f"{len(rows)} of {2 * len(recorded['pairs'])} steps scored, in {time.perf_counter() - started:.0f} s")
    options.scores.write_text(json.dumps({"dataset": recorded["dataset"], "rows": rows}))


# --------------------------------------------------------------------------------------------------------------- table


def auroc(good: Any, bad: Any) -> float:
    """Returns the chance that a good one scores above a bad one; equal scores count half (Mann-Whitney)."""
    above = (good[:, None] > bad[None, :]).mean()
    return float(above + (good[:, None] == bad[None, :]).mean() / 2)


def with_interval(rows: list[dict[str, Any]], scorer: str, label: Any) -> str:
    known = [row for row in rows if row.get(scorer) is not None and label(row) is not None]
    by_problem: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for row in known:
        by_problem[row["problem"]].append((row[scorer], label(row)))

    def value(groups: list[list[tuple[float, bool]]]) -> float | None:
        pairs = [pair for group in groups for pair in group]
        good = np.array([score for score, right in pairs if right])
        bad = np.array([score for score, right in pairs if not right])
        return auroc(good, bad) if len(good) and len(bad) else None

    groups = list(by_problem.values())
    middle = value(groups)
    if middle is None:
        return "-"
    generator = random.Random(0)
    drawn = (value(generator.choices(groups, k=len(groups))) for _ in range(RESAMPLES))
    low, high = np.percentile([one for one in drawn if one is not None], [2.5, 97.5])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def by_origin(row: dict[str, Any]) -> bool | None:
    return row["role"] == "target"


def by_sums(row: dict[str, Any]) -> bool | None:
    return sums_hold(row["text"])


def by_sums_of_drafts(row: dict[str, Any]) -> bool | None:
    return by_sums(row) if row["role"] == "draft" else None


def table(options: argparse.Namespace) -> None:
    rows = [row for file in options.files for row in json.loads(file.read_text())["rows"]]
    labels: dict[str, Any] = {
        "origin": by_origin,
        "sums right": by_sums,
        "sums right, drafts": by_sums_of_drafts,
    }
    for name, label in labels.items():
        found = [label(row) for row in rows if label(row) is not None]
        print(f"{name}: {sum(found)} good and {len(found) - sum(found)} bad steps")
    print(f"\n| scorer | {' | '.join(labels)} | range |")
    print(f"|---|{'---|' * (len(labels) + 1)}")
    keys = sorted({name for row in rows for name in row} - {"pair", "problem", "role", "holds", "text"})
    for name in (key for key in keys if not key.startswith("mass")):
        values = [row[name] for row in rows if row.get(name) is not None]
        low, high = np.percentile(values, [5, 95])
        cells = [with_interval(rows, name, label) for label in labels.values()]
        if name in ("first-token entropy", "draft mean log-probability"):
            cells[0] = "-"  # they are of the place, or of drafts alone
        print(f"| {name} | {' | '.join(cells)} | {low:.2f} to {high:.2f} |")
    for name in (key for key in keys if key.startswith("mass")):
        print(f"{name}: {statistics.fmean(row[name] for row in rows if name in row):.3f}")


# --------------------------------------------------------------------------------------------------------------- cache


class Watch:
    """Counts, for each request to an engine, how much of its prompt had been computed before it came, and how much was found."""

    def __init__(self, engine: Any, block: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._known: set[tuple[int, int]] = set()
        self._block = block
        self._stream = engine.stream
        engine.stream = self.stream

    def _chain(self, ids: Any) -> list[tuple[int, int]]:
        keys: list[tuple[int, int]] = []
        before = 0
        for start in range(0, len(ids) - self._block + 1, self._block):
            before = hash((before, tuple(ids[start : start + self._block])))
            keys.append((start, before))
        return keys

    async def stream(self, request: Request) -> Any:
        chain = self._chain(request.prompt_ids[:-1])  # the last token is always computed
        known = next((place for place, key in enumerate(chain) if key not in self._known), len(chain))
        written: list[int] = []
        try:
            async with aclosing(self._stream(request)) as deltas:
                async for delta in deltas:
                    written.extend(delta.ids)
                    if delta.cached_tokens is not None:
                        found = delta.cached_tokens // self._block
                        row = {"kind": request.id.rsplit("/", 1)[-1].partition(".")[0], "known": known, "found": found}
                        self.rows.append({**row, "uncached": len(request.prompt_ids) - delta.cached_tokens})
                    yield delta
        finally:
            self._known.update(self._chain([*request.prompt_ids, *written][:-1]))


@dataclass
class _Keep:
    events: list[Any]

    def emit(self, event: Any) -> None:
        self.events.append(event)

    async def room(self) -> None: ...

    async def aclose(self) -> None: ...


async def cache(opened: Any, options: argparse.Namespace) -> None:
    problems = load(options.dataset, limit=options.problems, seed=options.seed)
    ways: dict[str, dict[str, Any]] = {
        "turn": {"judge": "turn", "score_threshold": 7.5},
        "inline": {"judge": "inline", "score_threshold": 7.0},
        "likelihood": {"scorer": "likelihood", "score_threshold": -1.0},
    }
    engine: Any = inner(opened.scheduler.lanes[Role.TARGET].engine)
    block = engine.engine.vllm_config.cache_config.block_size
    watch = Watch(engine, block)
    print(f"blocks of {block} tokens; budget {options.budget}, {options.tracks} tracks of {len(problems)} problems")
    for number, (name, ways_options) in enumerate(ways.items()):
        watch.rows.clear()
        keep = _Keep([])
        strategy = api.strategy(
            "speculative",
            speculate="always",
            tracks=options.tracks,
            token_budget=options.budget,
            max_step_tokens=64,
            score_method="average",
            closing=False,
            **ways_options,
        )
        # Other tracks each time: what an earlier way had computed would be found by the next one.
        fresh = [replace(problem, text=f"({number + 1}) {problem.text}") for problem in problems]
        await opened.run(fresh, strategy, seed=options.seed, required=[keep])
        scored = [event for event in keep.events if event.kind == "step_scored"]
        steps = [len(event.ids) for event in keep.events if event.kind == "step_drafted"]
        seconds = [event.operations[0].engine_s for event in scored]
        scores = [row for row in watch.rows if row["kind"] == "score"]
        found = sum(min(row["found"], row["known"]) for row in watch.rows)
        known = sum(row["known"] for row in watch.rows)
        suffix = 0
        if name != "likelihood":
            suffix = len(judge_suffix(engine.tokenizer, strategy.prompts).ids)
        print(
            f"{name}: {len(scores)} scores; uncached tokens a score {statistics.fmean(r['uncached'] for r in scores):.1f} "
            f"(median {statistics.median(r['uncached'] for r in scores):.0f}, most {max(r['uncached'] for r in scores)}); "
            f"suffix {suffix}, drafted step {statistics.fmean(steps):.1f} of the draft's tokens; "
            f"full blocks known and found {found}/{known} = {found / max(1, known):.1%}; "
            f"{statistics.fmean(seconds) * 1000:.0f} ms a score",
            flush=True,
        )


# ------------------------------------------------------------------------------------------- log-probabilities, tokenizers


async def logprobs(opened: Any, options: argparse.Namespace) -> None:
    engine: Any = inner(opened.scheduler.lanes[Role.DRAFT].engine)
    prompt = engine.tokenizer.encode("Solve the problem step by step. " * 12)
    ends = engine.tokenizer.vocabulary.end_ids
    ways: dict[str, dict[str, Any]] = {
        "none": {},
        "of the sampled tokens": {"sampled_logprobs": True},
        "and the first entropy": {"sampled_logprobs": True, "first_entropy": True},
    }
    rates: dict[str, list[float]] = defaultdict(list)

    async def drain(number: int, given: dict[str, Any]) -> int:
        request = Request(f"r{number}", [*prompt, *ends], 64, 0.6, 0.95, number, **given)
        async with aclosing(engine.stream(request)) as deltas:
            return sum([len(delta.ids) async for delta in deltas])

    for turn in range(options.rounds + 1):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            started = time.perf_counter()
            counts = await asyncio.gather(*(drain(number, ways[name]) for number in range(12)))
            rates[name].append(sum(counts) / (time.perf_counter() - started))
    base = statistics.median(rates["none"][1:])
    for name, values in rates.items():
        middle = statistics.median(values[1:])
        each = ", ".join(f"{value:.0f}" for value in values[1:])
        print(f"log-probabilities {name}: {middle:.1f} tokens/s ({each}), {middle / base:.3f} of none")


def tokenizers(options: argparse.Namespace) -> None:
    found = [(name, store.find_local(name)) for name in (options.draft, options.target)]
    missing = [name for name, path in found if path is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} not here: speclrm models pull")
    draft, target = (load_tokenizer(path) for _, path in found if path is not None)
    text = "We add 47 and 38 first, which gives 85, and then we take 19 from it: 85 - 19 = 66.\n\n"
    ids = draft.encode(text)
    again = translate(ids, text, draft, target)
    print(f"a step of {len(ids)} ids is {len(again)} ids of {options.target}")
    for length in (200, 8000):
        context = Context(target, (target.encode(text * (length // len(again) + 1)))[:length])

        def encode() -> None:
            translate(ids, text, draft, target)

        def carry() -> None:
            translate(ids, text, target, target)

        def build(context: Context = context) -> None:
            context.ids(again)

        for name, call in (("re-encoded", encode), ("carried", carry), ("request's ids", build)):
            times: list[float] = []
            for _ in range(200):
                started = time.perf_counter()
                call()
                times.append((time.perf_counter() - started) * 1e6)
            print(f"context {length}: {name} {statistics.median(times):.1f} us a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--draft", default=DRAFT)
    parser.add_argument("--dataset", default=DATASET)
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--tracks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=600, help="of work at the most; score goes on where it stopped"
    )
    parser.add_argument("--all-notes", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("file", type=Path)
    scoring = commands.add_parser("score")
    scoring.add_argument("file", type=Path)
    scoring.add_argument("scores", type=Path)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    every = commands.add_parser("all")
    every.add_argument("file", type=Path)
    every.add_argument("scores", type=Path)
    every.add_argument("--parts", default="record,score,logprobs,cache")
    for name in ("cache", "logprobs", "tokenizers"):
        commands.add_parser(name)
    options = parser.parse_args()
    if options.command in ("table", "tokenizers"):
        {"table": table, "tokenizers": tokenizers}[options.command](options)
        return
    asyncio.run(on_engines(options))


async def on_engines(options: argparse.Namespace) -> None:
    parts = {"record": record, "score": score, "cache": cache, "logprobs": logprobs}
    names = options.parts.split(",") if options.command == "all" else [options.command]
    async with runtime(options) as opened:
        for name in names:
            await parts[name](opened, options)


if __name__ == "__main__":
    main()
