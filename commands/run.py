"""``run``: solves the problems of a dataset and writes a trace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speclrm.app.options import RUN_DECLARED, RunOptions
from speclrm.commands.errors import checked, guard, say
from speclrm.commands.from_options import Given, complete_strategy, settings_lines, takes
from speclrm.commands.resume import show
from speclrm.commands.screen import Screen, engines, run_async
from speclrm.commands.screen_options import Display, LogFile, LogLevelOption
from speclrm.runtime.errors import SettingsError
from speclrm.strategies.option import MODELS, RUN, STRATEGY

if TYPE_CHECKING:
    from speclrm.app.preview import Preview


@takes(RUN_DECLARED)
def run(
    strategy: Annotated[
        str,
        typer.Argument(
            help="baseline, parallel, speculative, speculative-methods, or your own: MODULE:CLASS or FILE.py:CLASS.",
            autocompletion=complete_strategy,
        ),
    ],
    given: Given,
    target_speculative_config: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Token-level speculative decoding inside the target: vLLM's speculative_config.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    use_role_prompts: Annotated[
        bool, typer.Option("--use-role-prompts", help="Short for --plan roles.", rich_help_panel=STRATEGY)
    ] = False,
    use_method_prompts: Annotated[
        bool, typer.Option("--use-method-prompts", help="Short for --plan chosen.", rich_help_panel=STRATEGY)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the run in --output-dir; its settings must match.", rich_help_panel=RUN),
    ] = False,
    override: Annotated[
        bool,
        typer.Option(
            "--override", help="With --resume: allow other settings, and record the change.", rich_help_panel=RUN
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the resolved settings and the first prompts; load and write nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Solve the problems of a dataset, write a trace, and grade the answers.

    Each option is also an environment variable (SPECLRM_LIMIT) and a key of a --config file (limit).
    The command line takes precedence over the environment, and the environment over the file.
    """

    def start() -> None:
        from speclrm.app.preview import preview
        from speclrm.app.resume import resume as resume_run
        from speclrm.app.runs import run as start_run
        from speclrm.runtime.engines.simulated.presets import is_simulated

        speculation = _speculative_config(target_speculative_config)
        target_args = given.get("target_args", {}) | speculation
        asked = given | ({"target_args": target_args} if target_args else {})
        plan = _plan(given.get("plan"), use_role_prompts, use_method_prompts)
        options = checked(RunOptions, strategy=strategy, **asked | ({"plan": plan} if plan else {}))
        folder = options.output_dir
        if resume and (folder is None or dry_run):
            raise SettingsError("--resume goes on with a run: give its folder as --output-dir, and no --dry-run.")
        if override and not resume:
            raise SettingsError("--override belongs to --resume.")
        with Screen(display, log_file, log_level) as screen:
            if dry_run:
                _show(preview(options, screen.notify))
                return
            follow: dict[str, Any] = {
                "sinks": screen.sinks,
                "notify": screen.notify,
                "plan": screen.monitor.plan,
                "engines": engines(),
            }
            report = run_async(
                lambda: (
                    resume_run(folder, options, override=override, **follow)
                    if resume and folder is not None
                    else start_run(options, **follow)
                ),
                virtual=is_simulated(options.target or ""),
            )
        show(report, screen.kind)

    guard(start)


def _plan(plan: str | None, roles: bool, methods: bool) -> str | None:
    asked = {name for name in (plan, "roles" if roles else None, "chosen" if methods else None) if name is not None}
    if len(asked) > 1:
        raise SettingsError(
            "--plan, --use-role-prompts and --use-method-prompts say different things. Give one of them."
        )
    return next(iter(asked), None)


def _speculative_config(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"--target-speculative-config is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise SettingsError(
            "--target-speculative-config must be a JSON object, for instance "
            '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}.'
        )
    return {"speculative_config": config}


def _show(preview: Preview) -> None:
    """Prints the settings as a --config file, then the prompts."""
    from speclrm.commands.display import harmless

    options = preview.options
    say(f"# {options.strategy}: {preview.problems} problems, {options.repeats} samples of each")
    for line in settings_lines(RUN_DECLARED, options.model_dump(mode="json") | preview.recipe):
        say(line)
    for what, text in preview.prompts.items():
        say(f"\n# {what}:")
        for line in text.splitlines():
            say(f"#   {harmless(line, 10_000)}")
