"""How large a trace is for what it holds; docs/trace.md gives the figures."""

from __future__ import annotations

import pytest
import structlog
from typer.testing import CliRunner

from speclrm.commands import program
from speclrm.evaluators.trace_stats import StatsFold
from speclrm.runtime.events import ProblemStarted, StepDrafted, StepWritten
from speclrm.runtime.trace.reader import read_placed

PACKED_MAX = 3.0


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("options", "step_bytes_max"),
    [(("--speculate", "always", "--draft-ahead", "never", "--rewrite-ahead", "never"), 1200), ((), 1500)],
    ids=["nothing ahead", "auto"],
)
def test_a_trace_stays_within_its_bounds_raw_and_packed(
    options: tuple[str, ...], step_bytes_max: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrow = pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("size") / "run"
    models = ["--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b"]
    size = ["--dataset", "sim:aime-mix?size=2", "--tracks", "3", "--token-budget", "3000"]
    done = CliRunner().invoke(
        program.app, ["run", "speculative", *models, *size, *options, "--output-dir", str(folder)]
    )
    structlog.reset_defaults()  # the command's log goes to a stream that is closed by now
    assert done.exit_code == 0, done.output
    fold = StatsFold()
    texts: list[str] = []
    for placed in read_placed(folder):
        fold.add(placed.event, placed.size)
        if isinstance(placed.event, ProblemStarted | StepDrafted | StepWritten):
            texts.append(placed.event.text)
    stats = fold.stats()
    assert stats.steps > 200
    raw = (folder / "trace.jsonl").read_bytes()
    per_step = (len(raw) - 8 * sum(stats.tokens.values())) / stats.steps
    packed = len(arrow.compress(raw, codec="zstd", asbytes=True)) / len("".join(texts).encode())
    print(f"{per_step:.0f} bytes a step + 8 a token; packed {packed:.2f} times the text")
    assert per_step <= step_bytes_max
    assert packed <= PACKED_MAX
