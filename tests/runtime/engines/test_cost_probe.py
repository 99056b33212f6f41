"""Measured costs: what a fit finds must be what made the timings."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.cost_probe import Measurement, Prober, fit_costs, glance, measure_sharing
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.device import Device
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.engines.simulated.presets import PRESETS
from speclrm.runtime.engines.simulated.text_world import MIXES, SimulatedWorld
from speclrm.runtime.errors import EngineStalledError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.engine import EngineCosts

CPU_LIKE = EngineCost(w=0.045, p=0.0016, k=4e-7, s=0.007, request_s=0.003, kv_tokens=30_000, max_num_seqs=32)


def engine(cost: EngineCost, device: Device | None = None, share: float = 0.5) -> SimulatedEngine:
    world = SimulatedWorld(MIXES["a70"])
    return SimulatedEngine("e", cost, world, world.tokenizer, device, share=share)


def measured(cost: EngineCost, *, quick: bool = False) -> list[Measurement]:
    async def main() -> list[Measurement]:
        one = engine(cost)
        found = await Prober(one).measure(quick=quick)
        await one.aclose()
        return found

    return run_virtual(main())


@pytest.mark.parametrize("cost", [CPU_LIKE, *PRESETS.values()])
@pytest.mark.parametrize("quick", [False, True])
def test_a_fit_recovers_the_constants_of_simulated_timings(cost: EngineCost, quick: bool) -> None:
    fit = fit_costs(measured(cost, quick=quick))
    assert (fit.w, fit.p, fit.k) == pytest.approx((cost.w, cost.p, cost.k), rel=0.02)
    assert (fit.s, fit.request_s) == pytest.approx((cost.s, cost.request_s), rel=0.02, abs=2e-5)
    assert fit.residual < 0.01


@pytest.mark.parametrize(("cost", "limit_s"), [(CPU_LIKE, 8.0), *((cost, 3.0) for cost in PRESETS.values())])
def test_a_glance_tells_iterations_from_tokens_in_seconds(cost: EngineCost, limit_s: float) -> None:
    async def main() -> tuple[EngineCosts, float]:
        one = engine(cost)
        began = now_s()
        (found,) = await glance([one], together=False)
        await one.aclose()
        return found, now_s() - began

    found, took_s = run_virtual(main())
    assert found.w == pytest.approx(cost.w, rel=0.1)
    assert found.p == pytest.approx(cost.p + cost.s, rel=0.35)
    assert found.k == (0 if cost is CPU_LIKE else pytest.approx(cost.k, rel=0.2, abs=1e-8))
    assert took_s < limit_s


def test_a_glance_fits_small_engines() -> None:
    async def main() -> EngineCosts:
        one = engine(replace(CPU_LIKE, max_model_len=40, max_num_seqs=1))
        (found,) = await glance([one], together=False)
        await one.aclose()
        return found

    assert run_virtual(main()).w == pytest.approx(CPU_LIKE.w, rel=0.3)


def test_a_fit_withstands_noise_and_pauses_of_the_machine() -> None:
    draw = random.Random(5)
    noisy: Sequence[Measurement] = [
        replace(
            one, seconds=one.seconds * draw.uniform(0.97, 1.03) * (draw.choice((2, 4)) if draw.random() < 0.15 else 1)
        )
        for _ in range(3)
        for one in measured(CPU_LIKE)
    ]
    fit = fit_costs(noisy)
    assert (fit.w, fit.p, fit.s) == pytest.approx((CPU_LIKE.w, CPU_LIKE.p, CPU_LIKE.s), rel=0.1)
    assert fit.residual > 0.1  # and says how far it is off


def test_no_constant_comes_out_negative() -> None:
    fit = fit_costs([Measurement(1.0, 10, 10, 1000, 10), Measurement(0.9, 10, 10, 9000, 10)])
    assert fit.k == 0
    assert min(fit.w, fit.p, fit.s, fit.request_s) >= 0


def test_the_sharing_of_a_device_is_found_again() -> None:
    async def main() -> list[float]:
        device = Device()
        slow, fast = engine(CPU_LIKE, device, 0.6), engine(replace(CPU_LIKE, w=0.01), device, 0.45)
        shares = await measure_sharing([slow, fast], quick=False)
        await slow.aclose()
        await fast.aclose()
        return shares

    assert run_virtual(main()) == pytest.approx([0.6, 0.45], abs=0.02)


def test_engines_that_do_not_meet_are_not_slowed() -> None:
    async def main() -> list[float]:
        one, other = engine(CPU_LIKE), engine(CPU_LIKE)
        shares = await measure_sharing([one, other], quick=True)
        await one.aclose()
        await other.aclose()
        return shares

    assert run_virtual(main()) == pytest.approx([1.0, 1.0], abs=0.01)


def test_an_engine_that_takes_too_long_is_given_up() -> None:
    async def main() -> None:
        one = engine(replace(CPU_LIKE, w=30.0))
        try:
            with pytest.raises(EngineStalledError, match="did not answer 33 tokens"):
                await Prober(one).decode(1, 16, 33)
        finally:
            await one.aclose()

    run_virtual(main())
