"""What each verb does, given its words. Heavy imports are inside, so that `--help` is quick."""

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.table import Table

from gspo.cli.settings_help import settings_help
from gspo.config import RunConfig
from gspo.settings import find_recipe, load_config, parse_overrides, read_recipe, recipe_folder

TERMINAL = Terminal()
OTHER_SETTINGS = "\nFurther settings as in gspo train --help, such as --data.path FILE or --device cpu."


class _Parser(argparse.ArgumentParser):
    """argparse, with mistakes as ValueErrors instead of exits."""

    def error(self, message: str) -> None:
        raise ValueError(f"{self.prog}: {message}")


def _quiet() -> None:
    """No progress bars of other libraries inside ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _plain() -> bool | None:
    return True if os.environ.get("CI") else None


def _placing(words: Sequence[str]) -> list[str]:
    """`--on PLACE` written out."""
    return [f"--placement.{word[2:]}" if word == "--on" or word.startswith("--on=") else word for word in words]


def _show(text: str) -> None:
    TERMINAL.out(text, end="", highlight=False)


def _recipe_and_overrides(words: Sequence[str]) -> RunConfig:
    has_recipe = bool(words) and not words[0].startswith("--")
    return load_config(find_recipe(words[0]) if has_recipe else None, words[1:] if has_recipe else words)


def _wants_help(words: Sequence[str], text: str) -> bool:
    if "-h" in words or "--help" in words:
        print(text)
        return True
    return False


def train(words: list[str]) -> int:
    if _wants_help(
        words, "usage: gspo train [RECIPE.toml] [--on local|ray://host:port] [--key VALUE ...]\n\n" + settings_help()
    ):
        return 0
    from gspo.dist.launch import joined

    with joined(os.environ) as ranks:
        config = _recipe_and_overrides(_placing(words))
        _quiet()
        if config.placement.is_set:
            from gspo.placement.run import refuse_ranks, start_placed

            refuse_ranks(ranks, config.placement)
            return _say_result(start_placed(config, _show))
        from gspo.training.parts import Given
        from gspo.training.run import console_of, start

        run = start(config, Given(ranks=ranks), console_of(config, ranks, _plain()))
        return _say_result(run) if ranks.is_first else 0


def resume(words: list[str]) -> int:
    if _wants_help(words, "usage: gspo resume RUN [--steps N] [--on local|ray://host:port] [--key VALUE ...]"):
        return 0
    if not words or words[0].startswith("--"):
        raise ValueError("which run? gspo resume RUN, where RUN is a run folder such as runs/addition")
    from gspo.dist.launch import joined

    with joined(os.environ) as ranks:
        _quiet()
        overrides = parse_overrides(_placing(words[1:]))
        from gspo.training.parts import Given
        from gspo.training.run import config_of
        from gspo.training.run import resume as go_on

        placement = config_of(Path(words[0]), overrides).placement
        if placement.is_set:
            from gspo.placement.run import refuse_ranks, resume_placed

            refuse_ranks(ranks, placement)
            return _say_result(resume_placed(Path(words[0]), placement, overrides, _show))
        run = go_on(Path(words[0]), overrides, Given(ranks=ranks), plain=_plain())
        return _say_result(run) if ranks.is_first else 0


def _say_result(run: Any) -> int:
    from gspo.sinks import before_after_table

    if run.is_finished:
        TERMINAL.print(before_after_table(run.summary["before"], run.summary["after"]))
        TERMINAL.print(f"{run.summary['seconds']:.0f} s; model: {run.folder / 'model'}", soft_wrap=True)
    TERMINAL.print(f"report: {run.folder / 'report.html'}", soft_wrap=True)
    return 0


def report(words: list[str]) -> int:
    if _wants_help(words, "usage: gspo report RUN"):
        return 0
    if len(words) != 1:
        raise ValueError("which run? gspo report RUN")
    from gspo.report import build_report

    TERMINAL.print(f"report: {build_report(Path(words[0]))}", soft_wrap=True)
    return 0


def recipes(words: list[str]) -> int:
    if _wants_help(words, "usage: gspo recipes"):
        return 0
    table = Table("recipe", "model", "objective", "what it does", box=None)
    for path in sorted(recipe_folder().glob("*.toml")):
        comment = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        settings = read_recipe(path)
        objective = settings.get("objective", "gspo")
        name = objective if isinstance(objective, str) else objective.get("name", "gspo")
        table.add_row(path.stem, settings.get("model", "tiny"), name, " ".join(comment).split(". ")[0].rstrip("."))
    TERMINAL.print(table)
    return 0


def plan(words: list[str]) -> int:
    parser = _Parser(prog="gspo plan [RECIPE.toml]", allow_abbrev=False, add_help=False)
    parser.add_argument("--rates", help="a run's folder: what this recipe would take on more devices, by its rates")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--devices-per-node", type=int, default=8, help="sampling and training devices of a machine")
    parser.add_argument("--efficiency", type=float, default=1.0, help="of all training devices, against so many of one")
    if _wants_help(words, parser.format_help() + OTHER_SETTINGS):
        return 0
    args, rest = parser.parse_known_args(words)
    config = _recipe_and_overrides(rest)
    devices = args.nodes * args.devices_per_node
    if args.rates is None and args.nodes > 1:
        raise ValueError("--nodes needs --rates RUN: a run on this machine whose steps were timed")
    if devices < 2 or not 0 < args.efficiency <= 1:
        raise ValueError("--nodes x --devices-per-node must be at least 2, and --efficiency between 0 and 1")
    if args.rates is not None:
        from gspo.cli.scale import scale_tables

        tables = scale_tables(config, Path(args.rates), devices, args.efficiency)
    else:
        from gspo.cli.plan import plan_tables

        tables = plan_tables(config)
    for table in tables:
        TERMINAL.print(table)
    return 0


def check(words: list[str]) -> int:
    if _wants_help(words, "usage: gspo check [RECIPE.toml] [--key VALUE ...]"):
        return 0
    config = _recipe_and_overrides(words)
    _quiet()
    from gspo.cli.check import check_run

    check_run(config, TERMINAL)
    return 0


def serve(words: list[str]) -> int:
    parser = _Parser(prog="gspo serve", allow_abbrev=False, add_help=False)
    parser.add_argument("model", help="tiny, smollm2-135m-instruct, a folder, or a Hugging Face id: the run's model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--python", default="", help="Python of the environment that vLLM is installed in")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16: what the run computes in")
    parser.add_argument("--lora-rank", type=int, default=0, help='largest rank of sampler.lora = "adapter"; 0: none')
    parser.add_argument("--max-model-len", type=int, default=0, help="tokens of prompt and completion; 0: the model's")
    parser.add_argument("--routes", action="store_true", help='record expert routes, for policy.routing = "R3"')
    flags = "\nWhat follows -- goes to vLLM as it is: gspo serve MODEL -- --gpu-memory-utilization 0.5"
    if _wants_help(words, parser.format_help() + flags):
        return 0
    ours, theirs = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = parser.parse_args(ours)
    _quiet()
    from gspo.cli.serve import start_vllm

    start_vllm(args, theirs, TERMINAL.print)
    return 0


def doctor(words: list[str]) -> int:
    parser = _Parser(prog="gspo doctor", allow_abbrev=False, add_help=False)
    parser.add_argument("what", help="a run's folder, whose newest weights are taken, or a recipe")
    parser.add_argument("--prompts", type=int, default=6, help="prompts of an experiment, group_size completions each")
    if _wants_help(words, parser.format_help() + OTHER_SETTINGS):
        return 0
    args, rest = parser.parse_known_args(words)
    if args.prompts < 1:
        raise ValueError(f"--prompts is {args.prompts}; it must be at least 1")
    _quiet()
    from gspo.cli.doctor import examine

    run = Path(args.what) if (Path(args.what) / "config.toml").is_file() else None
    recipe = find_recipe(args.what) if run is None else run / "config.toml"
    examine(load_config(recipe, rest), run, TERMINAL, args.prompts)
    return 0


def _model_parser(verb: str) -> _Parser:
    parser = _Parser(prog=f"gspo {verb}", allow_abbrev=False, add_help=False)
    parser.add_argument("model", help="tiny, smollm2-135m-instruct, a folder (also RUN/model), or a Hugging Face id")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=256, help="completion tokens")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _sampling(args: argparse.Namespace) -> Any:
    from gspo.sampling import Sampling

    return Sampling(
        temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, max_completion_tokens=args.max_tokens
    )


def _parts(args: argparse.Namespace, rest: Sequence[str], task: str = "") -> Any:
    """Model, data and rewards of `eval` and `sample`; further settings as overrides."""
    from gspo.settings import apply_overrides, validate
    from gspo.training.parts import build

    table: dict[str, Any] = {"model": args.model, "seed": args.seed}
    if task:
        table["data"] = {"task": task}
    _quiet()
    parts = build(validate(apply_overrides(table, parse_overrides(rest))), report=TERMINAL.print)
    parts.sampler.sync_weights(parts.policy, 0)
    return parts


def _close(parts: Any) -> None:
    from gspo.samplers.base import Closes

    parts.rewards.close()
    if isinstance(parts.sampler, Closes):
        parts.sampler.close()


def eval(words: list[str]) -> int:
    parser = _model_parser("eval")
    parser.add_argument("--task", default="", help="built-in task or reasoning_gym/NAME; or --data.path FILE")
    parser.add_argument("--prompts", type=int, default=200, help="held-out problems")
    parser.add_argument("--samples", type=int, default=1, help="completions per problem")
    parser.add_argument("--k", type=int, nargs="*", default=[], help="also report pass@k for these k")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    if _wants_help(words, parser.format_help() + OTHER_SETTINGS):
        return 0
    args, rest = parser.parse_known_args(words)
    from gspo.training.evaluate import evaluate, pass_at_k

    if args.temperature == 0 and args.samples > 1:
        raise ValueError("--samples > 1 at temperature 0 would repeat one completion; give --temperature")
    if min(args.prompts, args.samples) < 1:
        raise ValueError("--prompts and --samples must be at least 1")
    if not all(1 <= k <= args.samples for k in args.k):
        raise ValueError(f"--k {' '.join(map(str, args.k))}: pass@k needs 1 <= k <= --samples, which is {args.samples}")
    if any(word.startswith("--data.held_out_prompts") for word in rest):
        raise ValueError("use --prompts for the number of held-out problems")
    parts = _parts(args, [*rest, "--data.held_out_prompts", str(args.prompts)], args.task)
    source = replace(parts.source, sampling=_sampling(args), group_size=args.samples, failure_limit=1.0)
    rows = [parts.dataset.held_out[i] for i in range(min(args.prompts, len(parts.dataset.held_out)))]
    result = evaluate(source, rows, parts.dataset.is_correct)
    _close(parts)
    facts: dict[str, Any] = {"model": args.model, "task": parts.dataset.name, "problems": len(rows), **result.facts()}
    facts["reward_errors"] = int((result.rewards != result.rewards).sum())
    if result.correct is not None:
        for k in sorted({1, *args.k}):
            facts[f"pass@{k}"] = pass_at_k(result.correct, k)
    if args.json:
        is_missing = lambda value: isinstance(value, float) and not math.isfinite(value)  # noqa: E731
        print(json.dumps({name: None if is_missing(value) else value for name, value in facts.items()}))
        return 0
    table = Table("measure", "value", box=None)
    for name, value in facts.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    TERMINAL.print(table)
    return 0


def sample(words: list[str]) -> int:
    parser = _model_parser("sample")
    parser.add_argument("prompt")
    parser.add_argument("--n", type=int, default=1, help="completions")
    if _wants_help(words, parser.format_help() + OTHER_SETTINGS):
        return 0
    args, rest = parser.parse_known_args(words)
    if args.temperature == 0 and args.n > 1:
        raise ValueError("--n > 1 at temperature 0 would repeat one completion; give --temperature")
    from gspo.samplers.base import SampleRequest

    parts = _parts(args, rest)
    # A chat model gets its template; a model without one continues the text.
    is_chat = parts.loaded.tokenizer.chat_template is not None
    ids = parts.renderer.prompt_ids([{"role": "user", "content": args.prompt}] if is_chat else args.prompt)
    request = SampleRequest(prompt_ids=ids, n=args.n, seed=args.seed, step=0, prompt_id=0, sampling=_sampling(args))
    has_likelihood = parts.sampler.scores != "none"
    for completion in parts.sampler.sample([request])[0]:
        TERMINAL.print(parts.renderer.ended_text(completion.ids), markup=False, highlight=False)
        TERMINAL.print(
            f"  {len(completion.ids)} tokens, ended by {completion.finish_reason}"
            + (f", log-probability {sum(completion.logprobs):.2f}" if has_likelihood else ""),
            style="dim",
        )
    _close(parts)
    return 0


def values(words: list[str]) -> int:
    parser = _model_parser("values")
    parser.add_argument("--task", default="", help="built-in task or reasoning_gym/NAME; or --data.path FILE")
    parser.add_argument("--out", required=True, help="JSON-lines file: the training rows with a column `value`")
    parser.add_argument("--samples", type=int, default=8, help="completions per prompt")
    parser.add_argument("--beta", type=float, default=0.5, help="temperature of the log-mean-exp, in units of reward")
    parser.add_argument("--prompts", type=int, default=0, help="first training prompts only; 0 takes all")
    parser.set_defaults(temperature=1.0)
    if _wants_help(words, parser.format_help() + OTHER_SETTINGS):
        return 0
    args, rest = parser.parse_known_args(words)
    if args.temperature == 0 or args.samples < 1 or args.beta <= 0:
        raise ValueError("values needs --temperature above 0, --samples of at least 1 and --beta above 0")
    if Path(args.out).exists():
        raise ValueError(f"--out {args.out} exists; choose another file")
    from gspo.cli.values import write_values

    parts = _parts(args, rest, args.task)
    source = replace(parts.source, sampling=_sampling(args), group_size=args.samples, failure_limit=1.0)
    TERMINAL.print(write_values(source, Path(args.out), args.beta, args.prompts))
    _close(parts)
    return 0


def check_env(words: list[str]) -> int:
    parser = _Parser(prog="gspo check-env", allow_abbrev=False, add_help=False)
    parser.add_argument("environment", help="a built-in's name, path/to/file.py:NAME, or a recipe with an environment")
    parser.add_argument("--rows", type=int, default=3, help="data rows to make environments of")
    parser.add_argument("--max-turns", type=int, default=32, help="turns after which an episode counts as endless")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for one call")
    parser.add_argument("--say", nargs="+", help="what the policy says, over and over; give actions that make sense")
    parser.add_argument("--say-file", default="", help="the same from a file, one action per line")
    if _wants_help(words, parser.format_help() + OTHER_SETTINGS):
        return 0
    args, rest = parser.parse_known_args(words)
    from gspo.cli.check_env import check_environment, said

    report = check_environment(
        args.environment,
        rest,
        rows=args.rows,
        max_turns=args.max_turns,
        timeout=args.timeout,
        actions=said(args.say_file) if args.say_file else args.say,
    )
    TERMINAL.print(str(report), soft_wrap=True, highlight=False, markup=False)
    return 0 if report.ok else 1


def sft(words: list[str]) -> int:
    parser = _Parser(prog="gspo sft", allow_abbrev=False, add_help=False)
    parser.add_argument("model", help="tiny, smollm2-135m-instruct, a folder, or a Hugging Face id")
    parser.add_argument("--out", required=True, help="folder for the trained model (must not exist)")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--warmup-steps", type=int, default=10)
    parser.add_argument("--task", default="", help="a built-in task that has completions; or --data.path FILE")
    if _wants_help(words, parser.format_help() + OTHER_SETTINGS):
        return 0
    args, rest = parser.parse_known_args(words)
    from gspo.training.sft import fine_tune

    if Path(args.out).exists():
        raise ValueError(f"--out {args.out} exists; choose another folder")
    _quiet()
    fine_tune(args, rest, plain=_plain())
    return 0


def papers(words: list[str]) -> int:
    if _wants_help(words, "usage: gspo papers [NAME], or gspo papers --write FOLDER for pages of all"):
        return 0
    from gspo.cli.papers import cards, find_card, sections, write_pages

    if words and words[0] == "--write":
        if len(words) != 2:
            raise ValueError("where to? gspo papers --write docs/papers")
        TERMINAL.print(f"{len(write_pages(Path(words[1])))} pages in {words[1]}")
        return 0
    if len(words) > 1:
        raise ValueError("one card at a time: gspo papers NAME")
    if words:
        card = find_card(words[0])
        for line in (card.title, "", *sections(card.text), ""):
            TERMINAL.print(line, markup=False, highlight=False, soft_wrap=line.startswith(" "))
        table = Table(f"{card.kind}: {card.name}", "default", "meaning", box=None)
        for row in card.settings:
            table.add_row(*row)
        TERMINAL.print(table)
        for trait in card.traits:
            TERMINAL.print(f"- {trait}", highlight=False)
        return 0
    for card in cards():
        line = f"{card.kind:12} {card.name:22} {card.paper:18} {card.title}"
        TERMINAL.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def what_if(words: list[str]) -> int:
    parser = _Parser(prog="gspo what-if", allow_abbrev=False, add_help=False)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--step", type=int, required=True, help="a saved step (rollouts/step_N.parquet)")
    parser.add_argument(
        "--objective", nargs="+", default=[], help="names, or inline tables such as '{name = \"gspo\", clip_low = 0.1}'"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, with every share")
    if _wants_help(words, parser.format_help()):
        return 0
    args = parser.parse_args(words)
    from dataclasses import asdict

    from gspo.cli.saved_step import read_saved_step
    from gspo.cli.what_if import objective_of, what_if_table
    from gspo.cli.what_if import what_if as score
    from gspo.settings import toml_value

    saved = read_saved_step(Path(args.run), args.step)
    others = [objective_of(toml_value(text), saved.config) for text in args.objective]
    own = [] if saved.objective is None else [saved.objective]
    if not own and not others:
        raise ValueError("the run's objective was an object given from Python; name some with --objective")
    verdicts = score(saved, [*own, *others])
    if args.json:
        print(json.dumps({"run": args.run, "step": args.step, "objectives": [asdict(v) for v in verdicts]}))
    else:
        TERMINAL.print(what_if_table(saved, verdicts))
    return 0


def why_clipped(words: list[str]) -> int:
    parser = _Parser(prog="gspo why-clipped", allow_abbrev=False, add_help=False)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--step", type=int, required=True, help="a saved step (ledger/step_N.parquet)")
    parser.add_argument("--show", type=int, default=8, help="clipped sequences shown for each update")
    if _wants_help(words, parser.format_help()):
        return 0
    args = parser.parse_args(words)
    from gspo.cli.why_clipped import why_clipped as explain

    for line in explain(Path(args.run), args.step, args.show):
        TERMINAL.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def import_(words: list[str]) -> int:
    parser = _Parser(
        prog="gspo import",
        usage="gspo import trl CONFIG.yaml [--flag value ...] | gspo import verl A.B=VALUE ... or FILE",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--out", default="", help="recipe file to write (must not exist); else it is printed")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--world-size", type=int, default=1, help="TRL: processes the settings were made for")
    parser.add_argument("--prompts", type=int, default=0, help="rows of the data, for runs counted in epochs")
    if _wants_help(words, parser.format_help()):
        return 0
    args, rest = parser.parse_known_args(words)
    from gspo.importing import import_settings
    from gspo.importing.table import report_tables

    if args.out and Path(args.out).exists():
        raise ValueError(f"--out {args.out} exists; choose another file")
    result = import_settings(rest, world_size=args.world_size, prompts=args.prompts)
    if args.out:
        Path(args.out).write_text(result.toml())
    if args.json:
        print(json.dumps(result.as_json()))
        return 0
    for table in report_tables(result):
        TERMINAL.print(table)
    if args.out:
        TERMINAL.print(f"recipe: {args.out}", soft_wrap=True)
    else:
        print(f"\n{result.toml()}", end="")
    return 0
