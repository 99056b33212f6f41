"""Old forms, unknown kinds, and memory."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from speclrm.evaluators.metrics import summarize
from speclrm.runtime.errors import TraceReadError
from speclrm.runtime.events import SCHEMA_VERSION, StepDrafted, TrackStarted
from speclrm.runtime.trace.check import Checker
from speclrm.runtime.trace.reader import read_placed, read_run, read_trace
from speclrm.runtime.trace.upgrade import UPGRADES

TRACES = Path(__file__).parents[2] / "traces"
OLD = TRACES / "v1-scripted.jsonl"


def test_every_older_form_has_its_own_upgrade() -> None:
    assert sorted(UPGRADES) == list(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize(
    ("name", "accuracy", "accepted", "rewritten"), [("v1-scripted", 0.5, 8, 4), ("v1-simulated", 1.0, 61, 28)]
)
def test_a_trace_of_form_1_gives_what_it_gave_then(name: str, accuracy: float, accepted: int, rewritten: int) -> None:
    summary = summarize(read_trace(TRACES / f"{name}.jsonl"))
    assert (summary.accuracy, summary.accepted, summary.rewritten) == (accuracy, accepted, rewritten)
    assert summary.status == "finished"


def test_token_ids_of_form_1_are_read_as_they_were() -> None:
    events = list(read_trace(OLD))
    started = next(event for event in events if isinstance(event, TrackStarted))
    drafted = next(event for event in events if isinstance(event, StepDrafted))
    # Scripted engines have a token a byte, and a few more for marks and blank lines.
    assert bytes(token for token in drafted.ids if token < 256).decode() == drafted.text.rstrip()
    assert drafted.text == "First [bold]we[/bold] add.\n\n"
    assert b"two and two" in bytes(token for token in started.prompt_ids["draft"] if token < 256)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def test_a_newer_kind_of_event_is_an_error_that_says_what_to_do_or_is_left_out(tmp_path: Path) -> None:
    lines = lines_of(OLD)
    lines.insert(3, '{"seq":99,"attempt":0,"t":0.0,"kind":"step_judged","more":1}\n')
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(lines))
    with pytest.raises(TraceReadError, match=r"line 4: .*'step_judged'.*--skip-unknown"):
        list(read_trace(path))
    notices: list[str] = []
    assert len(list(read_trace(path, notices.append, skip_unknown=True))) == len(lines) - 1
    assert notices == ["1 events of the unknown kind 'step_judged' were left out"]


def test_a_newer_form_is_refused_with_what_this_one_reads(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(lines_of(OLD)[0].replace('"schema_version":1', '"schema_version":99'))
    with pytest.raises(TraceReadError, match=rf"form 99; this one reads up to {SCHEMA_VERSION}"):
        list(read_trace(path))


@pytest.mark.parametrize("spoiled", ["[]\n", '{"kind":"step_drafted","ids":5}\n', '"x"\n', "{}\n", "\x00\n"])
def test_a_broken_line_of_an_old_form_is_named(tmp_path: Path, spoiled: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(lines_of(OLD)[0] + spoiled)
    with pytest.raises(TraceReadError, match="line 2: no event"):
        list(read_trace(path))


def test_a_segment_of_another_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "trace.0001.jsonl").write_text(lines_of(OLD)[0])
    header = {"kind": "segment_started", "schema_version": 2, "run": "other", "segment": 2, "seq": 1}
    (tmp_path / "trace.jsonl").write_text(json.dumps(header, separators=(",", ":")) + "\n")
    with pytest.raises(TraceReadError, match="a segment of run other"):
        list(read_run(tmp_path))


def test_reading_and_checking_hold_no_more_memory_for_a_longer_trace(tmp_path: Path) -> None:
    lines = lines_of(TRACES / "v1-simulated.jsonl")
    body = lines[1:-1]

    def peak(copies: int) -> tuple[int, int]:
        path = tmp_path / f"{copies}.jsonl"
        with path.open("w") as file:
            file.write(lines[0])
            for copy in range(copies):  # the same samples under other names
                file.writelines(line.replace("sim-", f"sim{copy}-") for line in body)
        checker = Checker()
        kinds: Counter[str] = Counter()
        tracemalloc.start()
        for placed in read_placed(path):
            kinds[placed.event.kind] += 1
            checker.add(placed.path, placed.line, placed.event)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, path.stat().st_size

    small, _ = peak(2)
    large, size = peak(24)
    assert size > 3_000_000
    # Numbers of order are wrong here, and violations are kept up to a limit; nothing else may grow.
    assert large < small + 500_000
