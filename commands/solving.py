"""``run``: problems in, a trace and figures out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speclrm.commands.continuing import show
from speclrm.commands.options import (
    FIDELITY,
    MODELS,
    PROBLEMS,
    RUN,
    STRATEGY,
    Display,
    Draft,
    Dtype,
    Judge,
    LogFile,
    LogLevelOption,
    ScoreMethod,
    Scorer,
    complete_dataset,
    complete_fault,
    complete_model,
    complete_strategy,
)
from speclrm.commands.plumbing import (
    Screen,
    checked,
    guard,
    read_seed,
    read_threshold,
    run_async,
    stdout,
)
from speclrm.runtime.errors import SettingsError

if TYPE_CHECKING:
    from speclrm.api import Preview


def run(
    strategy: Annotated[
        str,
        typer.Argument(
            help="baseline, parallel, speculative, or speculative-methods.", autocompletion=complete_strategy
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "--dataset-name",
            help="aime, aime25, math500, gpqa, livemathbench, gsm8k, amc23; reasoning-gym:TASK; or a JSONL, CSV or Parquet "
            "file.",
            rich_help_panel=PROBLEMS,
            autocompletion=complete_dataset,
        ),
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="A folder with the benchmark's rows, instead of the hub.", rich_help_panel=PROBLEMS),
    ] = None,
    problem_id: Annotated[
        str | None,
        typer.Option(
            help="Only these, as in 60-89,95: ids, or rows from 0 where ids are no numbers.", rich_help_panel=PROBLEMS
        ),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many problems at random, by the seed.", rich_help_panel=PROBLEMS)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first problems.", rich_help_panel=PROBLEMS)] = None,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            "--repeat-id",
            "--num-repeats",
            min=1,
            help="Samples of each problem.",
            rich_help_panel=PROBLEMS,
        ),
    ] = 1,
    problem_column: Annotated[
        str | None,
        typer.Option(
            help="A file's column of problems.", show_default="problem, question or prompt", rich_help_panel=PROBLEMS
        ),
    ] = None,
    answer_column: Annotated[
        str | None,
        typer.Option(help="Of answers.", show_default="answer, gold or expected", rich_help_panel=PROBLEMS),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Of ids.", show_default="id, unique_id or problem_id", rich_help_panel=PROBLEMS),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "--model-name",
            help="Target model: a known name, a hub repository, or a folder.",
            rich_help_panel=MODELS,
            autocompletion=complete_model,
        ),
    ] = None,
    draft: Draft = None,
    dtype: Dtype = "auto",
    kv_cache_gib: Annotated[
        float | None,
        typer.Option(
            help="GiB of key-value cache for each engine.", show_default="by the work", rich_help_panel=MODELS
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int, typer.Option(min=1, help="GPUs that share an engine.", rich_help_panel=MODELS)
    ] = 1,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            help="Share of a GPU's memory for all engines together.", show_default="by the work", rich_help_panel=MODELS
        ),
    ] = None,
    engine_log: Annotated[
        Path | None, typer.Option(help="Where the engines write their own log.", rich_help_panel=MODELS)
    ] = None,
    target_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A further argument of vLLM's engine for the target; may be given again.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    draft_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="The same for the draft.", rich_help_panel=MODELS),
    ] = None,
    target_speculative_config: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Token-level speculation inside the target, as vLLM's speculative_config.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    shared_device: Annotated[
        bool,
        typer.Option("--shared-device", help="Simulated engines (sim/...) share one device.", rich_help_panel=MODELS),
    ] = False,
    tracks: Annotated[
        int | None,
        typer.Option(
            "--tracks",
            "--method-num",
            help="Tracks of each sample.",
            show_default="1 for baseline, else 3",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    plan: Annotated[
        Literal["plain", "roles", "drawn", "chosen"] | None,
        typer.Option(
            help="What tracks are told to try: nothing, a role, methods drawn by the seed, or chosen by the target.",
            show_default="by the strategy",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Method codes for the tracks, such as A,C,M.", rich_help_panel=STRATEGY)
    ] = None,
    use_role_prompts: Annotated[
        bool, typer.Option("--use-role-prompts", help="Short for --plan roles.", rich_help_panel=STRATEGY)
    ] = False,
    use_method_prompts: Annotated[
        bool,
        typer.Option(
            "--use-method-prompts",
            help="Short for --plan chosen.",
            rich_help_panel=STRATEGY,
        ),
    ] = False,
    duplicates: Annotated[
        bool | None,
        typer.Option(
            help="Whether the target may choose a method twice.", show_default="it may", rich_help_panel=STRATEGY
        ),
    ] = None,
    fast: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            help="1: the first answer ends a sample; 2: equal answers of two tracks do.",
            show_default="all tracks run to their ends",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    speculate: Annotated[
        Literal["auto", "always", "never"] | None,
        typer.Option(
            help="auto: where it pays, by what is measured while the run goes on.",
            show_default="auto",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    draft_ahead: Annotated[
        Literal["auto", "always", "never"] | None,
        typer.Option(
            help="Draft the next step while a score is on its way; auto: while engines have the time.",
            show_default="auto",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    rewrite_ahead: Annotated[
        Literal["auto", "always", "never"] | None,
        typer.Option(help="The same for a step's rewrite.", show_default="auto", rich_help_panel=STRATEGY),
    ] = None,
    scorer: Scorer = None,
    judge: Judge = None,
    score_threshold: Annotated[
        str | None,
        typer.Option(
            help="0 to 9 for a judge, nats a token (at most 0) for a likelihood, or auto: what `calibrate` kept.",
            show_default="7, or -1 for a likelihood",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    score_method: ScoreMethod = None,
    token_budget: Annotated[
        int | None,
        typer.Option(help="Committed tokens of a track.", show_default="8192", rich_help_panel=STRATEGY),
    ] = None,
    max_step_tokens: Annotated[
        int | None, typer.Option(help="A step is cut there.", show_default="512", rich_help_panel=STRATEGY)
    ] = None,
    min_step_tokens: Annotated[
        int | None,
        typer.Option(
            help="A blank line behind fewer tokens ends no step.", show_default="none", rich_help_panel=STRATEGY
        ),
    ] = None,
    gate_sure: Annotated[
        float | None,
        typer.Option(
            help="Keep drafts unscored whose mean log-probability is at least this.",
            show_default="off",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    gate_doubt: Annotated[
        float | None,
        typer.Option(
            help="Leave drafts unscored to the target whose mean log-probability is under this.",
            show_default="off",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    gate_entropy: Annotated[
        float | None,
        typer.Option(
            help="The same for drafts whose first token's entropy (nats, at most 2.99) is above this.",
            show_default="off",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    gate_tokens: Annotated[
        int | None,
        typer.Option(
            help="With --gate-doubt: leave such a draft from so many tokens on.",
            show_default="at its end",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature.", show_default="0.6", rich_help_panel=STRATEGY)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus sampling.", show_default="0.95", rich_help_panel=STRATEGY)
    ] = None,
    step_limit: Annotated[
        int | None, typer.Option(help="Steps of a track.", show_default="none", rich_help_panel=STRATEGY)
    ] = None,
    closing: Annotated[
        bool | None,
        typer.Option(
            help="Ask a track that used up its budget for its answer, in one short write.",
            show_default="closing",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    prompt_style: Annotated[
        Literal["chat", "raw"] | None,
        typer.Option(
            help="chat: the models' own templates; raw: plain text in the original's layout.",
            show_default="chat",
            rich_help_panel=FIDELITY,
        ),
    ] = None,
    fidelity: Annotated[
        Literal["none", "original"] | None,
        typer.Option(
            help="original: the decisions of the original code, with raw prompts and without a closing write.",
            show_default="none",
            rich_help_panel=FIDELITY,
        ),
    ] = None,
    reproduce_fault: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Faults of the original code, by name, with commas between; `speclrm faults` lists them.",
            rich_help_panel=FIDELITY,
            autocompletion=complete_fault,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; must be new or empty.", show_default="runs/<time>-<strategy>", rich_help_panel=RUN
        ),
    ] = None,
    seed: Annotated[str, typer.Option(help="A number, or none.", rich_help_panel=RUN)] = "0",
    concurrency: Annotated[int, typer.Option(min=1, help="Samples at work at once.", rich_help_panel=RUN)] = 16,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in --output-dir, if these are its settings.", rich_help_panel=RUN
        ),
    ] = False,
    override: Annotated[
        bool,
        typer.Option(
            "--override", help="With --resume: go on under other settings, and record them.", rich_help_panel=RUN
        ),
    ] = False,
    compress_trace: Annotated[
        bool,
        typer.Option(
            "--compress-trace", help="Pack closed segments of a long trace (docs/trace.md).", rich_help_panel=RUN
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

    Each option is also an environment variable (SPECLRM_TOKEN_BUDGET) and a key of a --config file (token_budget). The
    command line counts before the environment, and that before the file.
    """

    def start() -> None:
        from speclrm import api

        options = checked(
            api.RunOptions,
            strategy=strategy,
            dataset=dataset,
            data_dir=data_dir,
            problem_ids=problem_id,
            sample=sample,
            limit=limit,
            repeats=repeats,
            problem_column=problem_column,
            answer_column=answer_column,
            id_column=id_column,
            target=target,
            draft=draft,
            dtype=dtype,
            kv_cache_gib=kv_cache_gib,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            engine_log=engine_log,
            shared_device=shared_device,
            target_args=_arguments("--target-arg", target_arg) | _speculative_config(target_speculative_config),
            draft_args=_arguments("--draft-arg", draft_arg),
            tracks=tracks,
            plan=_plan(plan, use_role_prompts, use_method_prompts),
            methods=_names(methods, upper=True) or None,
            duplicates=duplicates,
            fast=fast,
            speculate=speculate,
            draft_ahead=draft_ahead,
            rewrite_ahead=rewrite_ahead,
            scorer=scorer,
            judge=judge,
            score_threshold=read_threshold(score_threshold),
            score_method=score_method,
            token_budget=token_budget,
            max_step_tokens=max_step_tokens,
            min_step_tokens=min_step_tokens,
            gate_sure=gate_sure,
            gate_doubt=gate_doubt,
            gate_entropy=gate_entropy,
            gate_tokens=gate_tokens,
            temperature=temperature,
            top_p=top_p,
            step_limit=step_limit,
            closing=closing,
            prompt_style=prompt_style,
            fidelity=fidelity,
            reproduce_fault=tuple(name.replace("_", "-") for name in _names(reproduce_fault)),
            output_dir=output_dir,
            seed=read_seed(seed),
            concurrency=concurrency,
            compress_trace=compress_trace,
        )
        if resume and (output_dir is None or dry_run):
            raise SettingsError("--resume goes on with a run: give its folder as --output-dir, and no --dry-run.")
        if override and not resume:
            raise SettingsError("--override belongs to --resume.")
        with Screen(display, log_file, log_level) as screen:
            if dry_run:
                _show(api.preview(options, screen.notify))
                return
            report = run_async(
                lambda: (
                    api.resume(
                        output_dir,
                        options,
                        override=override,
                        sinks=screen.sinks,
                        notify=screen.notify,
                        plan=screen.monitor.plan,
                    )
                    if resume and output_dir is not None
                    else api.run(options, sinks=screen.sinks, notify=screen.notify, plan=screen.monitor.plan)
                ),
                virtual=api.is_simulated(options.target or ""),
            )
        show(report, screen.kind)

    guard(start)


def faults() -> None:
    """List the original experiments' faults that --reproduce-fault switches on."""

    def start() -> None:
        from rich.table import Table

        from speclrm.faults import FAULTS

        table = Table(box=None, pad_edge=False)
        table.add_column("name")
        table.add_column("what it does", overflow="fold")
        for name, fault in FAULTS.items():
            table.add_row(name, fault.what)
        stdout().print(table)

    guard(start)


def _plan(plan: str | None, roles: bool, methods: bool) -> str | None:
    asked = {name for name in (plan, "roles" if roles else None, "chosen" if methods else None) if name is not None}
    if len(asked) > 1:
        raise SettingsError(
            "--plan, --use-role-prompts and --use-method-prompts say different things. Give one of them."
        )
    return next(iter(asked), None)


def _arguments(option: str, items: list[str] | None) -> dict[str, Any]:
    """``name=value`` pairs; a value is JSON where it can be read so, else text."""
    found: dict[str, Any] = {}
    for item in items or []:
        name, given, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not given or not name.isidentifier():
            raise SettingsError(f"{option} {item!r}: write it as NAME=VALUE, for instance quantization=fp8.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


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


def _names(text: str | None, *, upper: bool = False) -> tuple[str, ...]:
    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    return tuple(name.upper() for name in names) if upper else names


def _show(preview: Preview) -> None:
    """Settings in the form that --config takes, then the prompts."""
    from speclrm.display import harmless

    given = preview.options.model_dump(mode="json")
    given["problem_id"] = given.pop("problem_ids")
    for role in ("target", "draft"):
        arguments = given.pop(f"{role}_args")
        given[f"{role}_arg"] = [f"{name}={json.dumps(value)}" for name, value in arguments.items()] or None
    resolved = given | {name: value for name, value in preview.recipe.items() if name in given}
    typer.echo(f"# {resolved.pop('strategy')}: {preview.problems} problems, {given['repeats']} samples of each")
    for name, value in resolved.items():
        typer.echo(f"# {name} is not set" if value is None else f"{name} = {json.dumps(value, ensure_ascii=False)}")
    for what, text in preview.prompts.items():
        typer.echo(f"\n# {what}:")
        for line in text.splitlines():
            typer.echo(f"#   {harmless(line, 10_000)}")
