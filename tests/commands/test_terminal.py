"""Nothing that a model wrote, or that stands in a file, is obeyed by a terminal: on no way to one."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from cli_runner import ENVIRONMENT
from rich.live import Live
from rich.table import Table
from rich.text import Text

from speclrm.commands import logs
from speclrm.commands.display import Terminal, harmless, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b2J\x7f\u202egnp.exe\u2066\u200f\r\x08x"
SEEN = r"\u001b]0;owned\u0007\u001b[31mred\u009b2J\u007f\u202egnp.exe\u2066\u200f"
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """The text, which holds nothing that a terminal would obey but the ends of lines."""
    assert not OBEYED.findall(text), repr(text)
    return text


# -------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("text", "seen", "line"),
    [
        (
            "plain text, naïve 日本語 😀 \\u001b",
            "plain text, naïve 日本語 😀 \\u001b",
            "plain text, naïve 日本語 😀 \\u001b",
        ),
        ("a\x1b[31mb", r"a\u001b[31mb", r"a\u001b[31mb"),
        ("a\nb\tc\r\nd", "a\nb\tc\\r\nd", "a b c  d"),
        ("\x9b\x7f\x00", r"\u009b\u007f\u0000", r"\u009b\u007f\u0000"),
        ("\u202e\u2066\u061c\ufeff\u200b", r"\u202e\u2066\u061c\ufeff\u200b", r"\u202e\u2066\u061c\ufeff\u200b"),
        ("a\u2028b\x85c", r"a\u2028b\u0085c", "a b c"),
        ("\ud800", r"\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_shown_and_not_sent(text: str, seen: str, line: str) -> None:
    assert visible(text) == seen
    assert harmless(text) == line
    assert visible(seen) == seen
    visible(text).encode()


def test_a_json_text_stays_one_and_means_the_same() -> None:
    value = {"a": HOSTILE, "b": ["\ud800", "日本"]}
    text = visible(json.dumps(value, ensure_ascii=False))
    assert json.loads(clean(text)) == value


def test_a_line_is_cut_where_it_is_told() -> None:
    assert harmless("x" * 70) == "x" * 59 + "…"
    assert len(harmless("\x1b" * 70)) == 60


# ----------------------------------------------------------------------------------------------------------- the screen


@pytest.fixture
def terminal() -> Terminal:
    console = Terminal(width=400)
    console.file = io.StringIO()
    return console


def written(console: Terminal) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_console_neither_obeys_nor_reads_what_it_is_given(terminal: Terminal) -> None:
    table = Table(title="[bold]title" + HOSTILE)
    table.add_column("[bold]column" + HOSTILE)
    table.add_column("other")
    table.add_row("[red]cell[/red] :smiley: " + HOSTILE, Text(HOSTILE, style="bold"))
    for what in (HOSTILE, Text(HOSTILE), table):
        terminal.print(what)
    text = clean(written(terminal))
    assert "[red]cell[/red] :smiley: " in text
    assert "[bold]title" in text
    assert "[bold]column" in text
    assert text.count(r"\u001b[31mred\u009b2J\u007f\u202egnp.exe") == 5  # a cell that is measured with them is cut


def test_a_live_view_moves_the_cursor_by_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Terminal(width=200)
    console.file = io.StringIO()
    console._force_terminal = console.is_interactive = True  # pyright: ignore[reportPrivateUsage]
    with Live(Text("ours\n" + HOSTILE), console=console, auto_refresh=False, transient=True) as live:
        live.refresh()
        live.update(Text(HOSTILE), refresh=True)
    text = written(console)
    assert "\x1b[1A" in text  # the view's own
    assert "\x1b]0" not in text
    assert "\x1b[31m" not in text
    assert r"\u001b[31mred\u009b2J" in text


# ------------------------------------------------------------------------------------------------------------------ logs


@pytest.fixture
def restored() -> Iterator[None]:
    configured, formatted, last = structlog.get_config(), warnings.formatwarning, logging.lastResort
    formatter = last.formatter if last else None
    yield
    structlog.configure(**configured)
    warnings.formatwarning = formatted
    if last is not None:
        last.setFormatter(formatter)


class Odd:
    def __repr__(self) -> str:
        return f"Odd({HOSTILE})"


def say_all() -> None:
    log = structlog.get_logger("t")
    log.warning(
        "event" + HOSTILE,
        answer=HOSTILE,
        lines="a\nb",
        nested={"k" + HOSTILE: [HOSTILE, (HOSTILE, 7)]},
        odd=Odd(),
        number=1.5,
        nothing=None,
    )
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        log.error("failed", exc_info=error)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("form", ["plain", "rich", "file"])
def test_no_form_of_the_log_lets_a_value_through(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], terminal: Terminal
) -> None:
    file = tmp_path / "log.jsonl" if form == "file" else None
    logs.configure("info", file=file, console=terminal if form == "rich" else None)
    say_all()
    if file is not None:
        structlog.get_config()["logger_factory"]._file.close()
    text = {"plain": capsys.readouterr().err, "rich": written(terminal)}.get(form) or (
        tmp_path / "log.jsonl"
    ).read_text()
    clean(text)
    assert "owned" in text
    assert "ValueError" in text
    if form == "file":
        first, second = map(json.loads, text.splitlines())
        assert first["answer"].startswith(SEEN)
        assert first["number"] == 1.5
        assert first["nothing"] is None
        assert second["exception"].startswith("Traceback (most recent call last):\n")
        assert SEEN in second["exception"]
    else:
        lines = text.splitlines()
        assert "number=1.5" in lines[0]  # one line, whatever ends of lines the values have
        assert any(SEEN in line for line in lines[1:])
        assert "say_all" in text  # a traceback without its variables
        assert "log = " not in text


@pytest.mark.usefixtures("restored")
def test_warnings_and_what_other_libraries_log_are_made_harmless_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    assert clean(warnings.formatwarning(HOSTILE, UserWarning, "file", 7, "line")).startswith("file:7: UserWarning: ")
    record = logging.LogRecord("other", logging.WARNING, "file", 7, "%s", (HOSTILE,), None)
    assert logging.lastResort is not None
    assert clean(logging.lastResort.format(record)).startswith(SEEN)


# -------------------------------------------------------------------------------------------------------------- commands


SCRIPT = """
import json, sys
from speclrm import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["speclrm", *arguments]
    try:
        cli.main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
    sys.stdout.flush()
    print(f"{code} from {arguments[0]}", flush=True)
"""
"""Many commands in one process, which takes a second to start, and what each came to."""


def speclrm(folder: Path, *commands: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        timeout=250,
        check=True,
        env={**os.environ, "SPECLRM_CACHE_DIR": str(folder / "cache"), **ENVIRONMENT},
    )
    return clean((done.stdout + done.stderr).decode())


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with problems whose right answers are what the simulated target says, too."""
    rows = [{"id": f"{n}{HOSTILE}", "problem": f"What is {HOSTILE}?", "answer": HOSTILE + str(n)} for n in range(3)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.timeout(300)
def test_no_command_sends_what_models_and_files_say(hostile: Path) -> None:
    run = ("run", "speculative", "--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b", "--dataset", "problems.jsonl")
    run = (*run, "--tracks", "2", "--token-budget", "200", "--max-step-tokens", "64")
    text = speclrm(
        hostile,
        (*run, "--output-dir", "r", "--display", "plain"),
        (*run, "--output-dir", "s", "--display", "json"),
        (*run, "--output-dir", "t", "--display", "none", "--log-level", "debug"),
        (*run, "--dry-run"),
        *(
            ("trace", *words)
            for words in (("check", "r"), ("stats", "r"), ("anomalies", "r"), ("anomalies", "r", "--json"))
        ),
        *(
            ("trace", "show", "r", *words)
            for words in ((), ("--json",), ("--kind", "step_drafted"), ("--problem", HOSTILE))
        ),
        *(("trace", "tail", "r", "-n", "200", *words) for words in ((), ("--json",))),
        ("eval", "r", "s"),
        ("eval", "r", "--json"),
        ("replay", "r", "--display", "plain"),
        ("replay", "r", "--set", "score_threshold=9", "--display", "plain"),
        ("resume", "r", "--display", "plain"),
    )
    codes = re.findall(r"^(\d) from (.*)$", text, re.MULTILINE)
    assert [(code, what) for code, what in codes if code != "0"] == [("2", "trace"), ("1", "replay")]
    assert len(codes) == 19
    assert text.count(SEEN) > 100


@pytest.mark.timeout(300)
def test_no_error_and_no_note_sends_what_it_quotes(hostile: Path) -> None:
    (hostile / "broken.jsonl").write_text(json.dumps({"id": HOSTILE, "problem": "x"}) + "\n" + json.dumps({HOSTILE: 1}))
    odd = f"{HOSTILE.replace('/', '')}.jsonl"
    (hostile / odd).write_text("{")
    (hostile / "graded.jsonl").write_text(json.dumps({"output": f"\\boxed{{{HOSTILE}}}", "gold": HOSTILE + "1"}) + "\n")
    (hostile / "trace.jsonl").write_text(json.dumps({"kind": HOSTILE, "seq": 0}) + "\n")
    base = ("run", "baseline", "--target", "sim/qwq-32b", "--dataset")
    text = speclrm(
        hostile,
        *((*base, name) for name in ("broken.jsonl", odd, f"none{HOSTILE}.jsonl")),
        (*base, "problems.jsonl", "--problem-id", HOSTILE),
        ("run", "baseline", "--target", HOSTILE, "--dataset", "problems.jsonl"),
        ("grade", "graded.jsonl"),
        ("trace", "check", "trace.jsonl"),
        ("trace", "show", "trace.jsonl"),
        ("eval", odd),
    )
    codes = re.findall(r"^(\d) from", text, re.MULTILINE)
    assert codes == ["2", "2", "2", "2", "2", "0", "1", "2", "2"], text


def test_an_error_that_nobody_expected_is_made_harmless_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    import typer

    from speclrm.commands.errors import guard

    def fail() -> None:
        raise RuntimeError(HOSTILE)

    with pytest.raises(typer.Exit) as exit_:
        guard(fail)
    assert exit_.value.exit_code == 1
    text = clean(capfd.readouterr().err)
    assert text.startswith("Traceback")
    assert SEEN in text


def test_there_is_no_other_way_to_the_terminal() -> None:
    """What prints is ``say``, ``print_line`` and consoles of our own kind."""
    ways = {"print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write", "Console"}
    found: set[tuple[str, str]] = set()
    for path in [*ROOT.glob("*.py"), *(ROOT / "app").rglob("*.py"), *(ROOT / "commands").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in ways:
                found.add((str(path.relative_to(ROOT)), name))
    assert found == {
        ("commands/program.py", "typer.echo"),  # the version
        ("commands/errors.py", "typer.echo"),
        ("commands/display.py", "sys.stdout.write"),
    }
