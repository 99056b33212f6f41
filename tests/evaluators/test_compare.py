from __future__ import annotations

import asyncio
from typing import Any

from speclrm.evaluators.compare import Comparison, compared
from speclrm.evaluators.evaluation import Evaluation, RunResults, evaluate
from speclrm.evaluators.metrics import RunSummary, SampleRow


def evaluation(
    strategy: str, *, samples: int = 2, finished: bool = True, target: str = "t", **figures: Any
) -> Evaluation:
    rows = tuple(
        SampleRow(
            problem=f"p{number}",
            repeat=0,
            answer="4",
            gold="4",
            outcome="correct",
            winner="A",
            votes=(),
            tracks=(),
            tokens=9,
            seconds=1.0,
        )
        for number in range(samples)
    )
    summary = RunSummary(samples=rows, **figures)
    config: dict[str, Any] = {"strategy": strategy, "dataset": "d", "target": target}

    async def same(one: str, other: str) -> bool:
        return one == other

    name = f"runs/{strategy}-{target}"
    return asyncio.run(evaluate([RunResults(name, config, summary, finished, ())], same))


PLAIN: dict[str, Any] = {"chains": 4, "chain_length": 100.0, "decode_flops": 1000, "all_flops": 2000}
SHORTER: dict[str, Any] = {**PLAIN, "chain_length": 50.0}
DRAFTED: dict[str, Any] = {"chains": 6, "chain_length": 150.0, "decode_flops": 600, "all_flops": 3000}


def test_the_first_baseline_of_dataset_and_target_is_what_others_are_compared_with() -> None:
    found = compared(
        [
            evaluation("speculative", samples=3, **DRAFTED),
            evaluation("parallel", **PLAIN),
            evaluation("baseline", **SHORTER),
            evaluation("speculative", target="other", **DRAFTED),
        ]
    )
    # Operations are compared a sample: 600 / 3 to 1000 / 2.
    assert found[0].compared == Comparison(to="runs/parallel-t", chain_length=1.5, decode_flops=0.4, all_flops=1.0)
    assert found[1].compared is None
    assert found[2].compared == Comparison(to="runs/parallel-t", chain_length=0.5, decode_flops=1.0, all_flops=1.0)
    assert found[3].compared is None


def test_what_one_side_does_not_tell_has_no_ratio() -> None:
    unknown = compared([evaluation("baseline", **PLAIN), evaluation("speculative", chains=1, chain_length=10.0)])
    assert unknown[1].compared == Comparison(to="runs/baseline-t", chain_length=0.1, decode_flops=None, all_flops=None)
    broken = compared([evaluation("baseline", **PLAIN), evaluation("speculative", finished=False, **DRAFTED)])
    assert broken[1].compared == Comparison(to="runs/baseline-t", chain_length=1.5, decode_flops=None, all_flops=None)
    assert (broken[1].decode_flops, broken[1].all_flops) == (600, 3000)


def test_runs_of_one_configuration_have_one_mean_length_and_one_sum() -> None:
    async def same(one: str, other: str) -> bool:
        return one == other

    config: dict[str, Any] = {"strategy": "parallel", "dataset": "d", "target": "t"}
    runs = [
        RunResults("a", config, RunSummary(chains=1, chain_length=10.0, decode_flops=5, all_flops=6), True, ()),
        RunResults("b", config, RunSummary(chains=3, chain_length=30.0, decode_flops=7, all_flops=8), True, ()),
    ]
    one = asyncio.run(evaluate(runs, same))
    assert (one.chains, one.chain_length, one.decode_flops, one.all_flops) == (4, 25.0, 12, 14)
    runs[1] = RunResults("b", config, RunSummary(), True, ())
    one = asyncio.run(evaluate(runs, same))
    assert (one.chains, one.chain_length, one.decode_flops, one.all_flops) == (1, 10.0, None, None)
