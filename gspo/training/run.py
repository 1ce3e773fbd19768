"""Starting, resuming and finishing a run: the loop's surroundings."""

import json
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as Terminal

from gspo.collectors.draft_then_refine import drafted
from gspo.collectors.offline import is_offline
from gspo.collectors.pairs import PairCollector
from gspo.config import RunConfig
from gspo.data import Row
from gspo.dist.ranks import Ranks
from gspo.dist.saving import read_like
from gspo.heap import return_blocks, returns_blocks
from gspo.models import pick_device, without_progress_bars
from gspo.policies.master import AdamW
from gspo.report import build_report
from gspo.samplers.base import Closes, SamplerLost
from gspo.settings import apply_overrides, phase_config, read_recipe, to_table, validate, write_toml
from gspo.sinks import Console, JsonlSink, Record, Sink, TensorBoardSink, TrackioSink, WandbSink, truncate_after
from gspo.threads import Threads, available_cores, choose_threads
from gspo.training.evaluate import evaluate
from gspo.training.folder import RunFolder, write_json
from gspo.training.loop import (
    evaluate_policy,
    evaluation_metrics,
    evaluation_record,
    leave_out,
    train_steps,
)
from gspo.training.parts import Given, Parts, build, chosen_terms, export_model, frozen_reference, saved_reference
from gspo.training.phased import Phased, schedule
from gspo.training.state import TrainState, checkpoints, newest
from gspo.training.supervised import train_supervised
from gspo.training.update import initial_states

COLD_START_PROBLEMS = 200
COLD = -1
"""Versions of the weights during a cold start count down from here; it ends with version 0."""


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) run."""

    folder: Path
    state: TrainState
    summary: dict[str, Any]
    """What summary.json holds."""
    model: Any
    """The trained transformers model."""
    tokenizer: Any
    is_finished: bool


def start(config: RunConfig, given: Given = Given(), console: Console | None = None) -> Run:
    """A new run, from nothing to its report."""
    ranks = given.ranks
    ranks.open(config.ranks, config.device)
    folder = RunFolder(ranks.first(lambda: new_folder(config)))
    console = console or console_of(config, ranks)
    with ExitStack() as stack:
        should_stop = _surroundings(stack, console, given)
        parts, threads = _build(config, given, console, stack)
        ranks.first(lambda: _begin(folder, config, given))
        _say_what(parts, threads, folder, console)
        started = time.perf_counter()
        supervised = cold_start(parts, console, should_stop)
        if supervised or (_needs_start(parts) and not config.lora.rank):
            export_model(parts, folder.initial)
        reference = frozen_reference(parts, folder.initial) if _needs_start(parts) else None
        parts.sampler.sync_weights(parts.policy, 0)
        before = evaluate_policy(parts)
        state = TrainState(
            threads=threads.number,
            advantage=parts.advantage.init(),
            objective=initial_states(parts.terms),
            before={**evaluation_record(before), "cold_start_steps": supervised},
            seconds=time.perf_counter() - started,
        )
        sinks = _sinks(config, folder, console, stack) if ranks.is_first else []
        for sink in sinks:
            sink.write(Record(step=0, metrics=evaluation_metrics(before)))
        parts.saver.save(folder.checkpoints, state, parts.policy.weights.state(), config.checkpoints.keep)
        phased = Phased(parts=parts, given=given, folder=folder, reference=reference)
        return _go(phased, state, sinks, console, should_stop)


def resume(
    path: Path, overrides: Sequence[tuple[str, Any]] = (), given: Given = Given(), plain: bool | None = None
) -> Run:
    """Go on from the newest sound checkpoint of a run; `overrides` may extend it (`--steps`).

    A run that was started from Python with objects (data, functions, a model) needs the same ones in `given`.
    """
    folder, config = RunFolder(Path(path)), config_of(path, overrides)
    needed = json.loads(folder.given.read_text()) if folder.given.is_file() else []
    missing = [name for name in needed if name not in given.names()]
    if missing:
        raise ValueError(
            f"{path} was started from Python with its own {', '.join(missing)}; resume it from Python with the same: "
            f"gspo.resume({str(path)!r}, given=gspo.Given(...))"
        )
    ranks = given.ranks
    ranks.open(config.ranks, config.device)
    console = console_of(config, ranks, plain)
    with ExitStack() as stack:
        should_stop = _surroundings(stack, console, given)
        state, saved = ranks.first(lambda: newest(folder.checkpoints, console.message))
        config = replace(config, threads=state.threads)
        parts, _ = _build(config, given, console, stack)
        parts.policy.weights.load(read_like(saved, parts.policy.weights.masters))
        reference = saved_reference(parts, folder.initial) if _needs_start(parts) else None
        ranks.first(lambda: _begin_again(folder, config, state.step))
        console.message(f"resuming {path} at step {state.step} of {config.steps}")
        if state.step >= config.steps:
            console.message(f"all {config.steps} steps are done; extend the run with --steps {config.steps * 2}")
        sinks = _sinks(config, folder, console, stack) if ranks.is_first else []
        phased = Phased(parts=parts, given=given, folder=folder, reference=reference)
        return _go(phased, state, sinks, console, should_stop)


def config_of(path: Path, overrides: Sequence[tuple[str, Any]] = ()) -> RunConfig:
    """The settings that a run was started with, under overrides."""
    file = RunFolder(Path(path)).config
    if not file.is_file():
        raise ValueError(f"{path} is not a run folder: it has no config.toml")
    return validate(apply_overrides(read_recipe(file), overrides), str(file))


def _begin(folder: RunFolder, config: RunConfig, given: Given) -> None:
    folder.path.mkdir(parents=True)
    folder.config.write_text(write_toml(to_table(config)))
    write_json(folder.given, given.names())


def _begin_again(folder: RunFolder, config: RunConfig, step: int) -> None:
    folder.config.write_text(write_toml(to_table(config)))
    truncate_after(folder.metrics, step)
    folder.drop_after(step)


def console_of(config: RunConfig, ranks: Ranks, plain: bool | None = None) -> Console:
    """The terminal; other ranks than the first have nothing to say."""
    if ranks.is_first:
        return Console(config.steps, title=config.name, plain=plain)
    return Console(config.steps, plain=True, terminal=Terminal(quiet=True))


def _needs_start(parts: Parts) -> bool:
    """Whether the policy as it was at the start of the run is compared with, in any phase."""
    phases = [phase for phase in parts.config.phase if not phase.pairs_from or phase.reference == "start"]
    return parts.needs_reference or any(
        "reference" in term.traits.needs for phase in phases for term in chosen_terms(phase_config(parts.config, phase))
    )


def _surroundings(stack: ExitStack, console: Console, given: Given) -> Callable[[], bool]:
    """What a run borrows from its process and gives back: the terminal, threads, signals, progress bars.

    Returns whether to stop, which ranks agree on: any of them may have been asked.
    """
    stack.callback(console.close)
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    stack.enter_context(without_progress_bars())
    ranks = given.ranks
    say = (lambda text: None) if ranks.is_many else console.message
    is_asked = stack.enter_context(stop_on_signals(say))
    return lambda: bool(ranks.largest(int(is_asked() or given.is_asked_to_stop())))


def _build(config: RunConfig, given: Given, console: Console, stack: ExitStack) -> tuple[Parts, Threads]:
    """Parts, on the run's number of threads."""
    parts = build(config, given, console.message)
    stack.callback(parts.rewards.close)
    if isinstance(parts.sampler, Closes):
        stack.callback(parts.sampler.close)
    parameters = sum(p.numel() for p in parts.loaded.model.parameters())
    if returns_blocks(parameters):
        return_blocks()
    threads = choose_threads(config.threads, parameters, max(1, available_cores() // given.ranks.local_size))
    torch.set_num_threads(threads.number)
    return parts, threads


def _go(
    phased: Phased, state: TrainState, sinks: Sequence[Sink], console: Console, should_stop: Callable[[], bool]
) -> Run:
    parts, folder = phased.parts, phased.folder
    try:
        for span in schedule(parts.config):
            if state.step >= span.end or should_stop():
                continue
            began = time.perf_counter()
            now, state, reference, said = phased.enter(span, state)
            state = replace(state, seconds=state.seconds + time.perf_counter() - began)
            console.message(said)
            if isinstance(now.collector, PairCollector) and not now.collector.pairs:
                console.message(f"no pairs for phase {span.phase.name}: its {span.end - span.start} steps are left out")
                state = leave_out(now, state, span.end, folder, sinks)
                continue
            state = train_steps(now, state, reference, folder, sinks, should_stop, until=span.end)
    except SamplerLost as error:
        newest = next((path.name for path in checkpoints(folder.checkpoints)), "none")
        raise ValueError(
            f"{error}; the newest checkpoint is {newest}; go on with: gspo resume {folder.path}"
        ) from error
    except FloatingPointError as error:
        parts.saver.finish()
        raise ValueError(
            f"training diverged: {error}; the last checkpoint is kept. Lower optimizer.lr, or look at it with "
            f"`gspo report {folder.path}`"
        ) from error
    finished = state.step >= parts.config.steps
    summary = _summary(parts, state, finished)
    parts.saver.finish()
    parts.ranks.first(lambda: write_json(folder.summary, summary))
    if finished:
        export_model(parts, folder.model)
    else:
        console.message(f"stopped and saved at step {state.step}; go on with: gspo resume {folder.path}")
    parts.ranks.first(lambda: build_report(folder.path))
    return Run(folder.path, state, summary, parts.loaded.model, parts.loaded.tokenizer, finished)


def cold_start(parts: Parts, console: Console, should_stop: Callable[[], bool]) -> int:
    """Supervised steps until `cold_start.stop_at`; 0 when there are none to do."""
    settings = parts.config.cold_start
    if not settings.steps:
        return 0
    if parts.warm_up is not None:
        console.phase("pre-training", settings.steps)

        def show(step: int, loss: float) -> bool:
            console.advance(1, loss=loss)
            return should_stop()

        steps = parts.warm_up(parts.dataset.cold_start or parts.dataset.train, show)
        parts.policy.weights.adopt()
        return steps
    rows = parts.dataset.cold_start or completions_to_imitate(parts.dataset.train)
    if not rows:
        raise ValueError("cold_start.steps is set but the data has no completion column to imitate")
    if parts.config.collector.drafts.number:
        rows = drafted(rows, parts.config.collector.drafts, parts.renderer, parts.config.seed)
    imitates = parts.policy.scorer.imitating()
    policy = parts.policy.over_same_network(imitates, AdamW(lr=settings.lr, max_grad_norm=1.0))
    problems = [parts.dataset.held_out[i] for i in range(min(COLD_START_PROBLEMS, len(parts.dataset.held_out)))]
    console.phase("cold start", settings.steps)

    def is_done(step: int, loss: float) -> bool:
        facts = {"loss": loss}
        done = should_stop()
        if step % settings.check_every == 0 and not parts.is_offline:
            parts.sampler.sync_weights(parts.policy, COLD - step)
            result = evaluate(parts.evaluation_source(0.0), problems, parts.dataset.is_correct)
            accuracy = result.reward if result.accuracy is None else result.accuracy
            facts["accuracy"] = accuracy
            done |= accuracy >= settings.stop_at
        console.advance(1, **facts)
        return done

    steps = train_supervised(
        policy,
        parts.renderer,
        rows,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        warmup_steps=settings.warmup_steps,
        seed=parts.config.seed,
        is_done=is_done,
        width=parts.width,
    )
    parts.policy.weights.adopt()
    return steps


def completions_to_imitate(rows: Sequence[Row]) -> list[Row]:
    """Rows with a completion; of preference pairs, the chosen one."""
    if len(rows) and is_offline(rows[0]) and "chosen" in rows[0]:
        return [{**row, "completion": row["chosen"]} for row in rows]
    return [row for row in rows if "completion" in row]


def new_folder(config: RunConfig) -> Path:
    """The run's folder: as given (which must not exist), or the first free runs/NAME, runs/NAME-2, ..."""
    if config.folder:
        path = Path(config.folder)
        if path.exists():
            raise ValueError(f"run folder {path} exists; choose another --folder, or go on with: gspo resume {path}")
        return path
    path, number = Path("runs") / config.name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{config.name}-{number}"
    return path


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the loop to save and end after this step; a second one ends at once."""
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say(f"{signal.Signals(number).name}: finishing this step, then saving (again to stop at once)")

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller owns the signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _sinks(config: RunConfig, folder: RunFolder, console: Console, stack: ExitStack) -> list[Sink]:
    sinks: list[Sink] = [JsonlSink(folder.metrics), console]
    for tracker in config.trackers:
        if tracker == "tensorboard":
            try:
                sinks.append(TensorBoardSink(folder.tensorboard))
            except ValueError as error:  # in the defaults, so its absence only costs a line
                console.message(str(error))
        elif tracker == "wandb":
            sinks.append(WandbSink(config.name, config=to_table(config)))
        else:
            sinks.append(TrackioSink(config.name, config=to_table(config)))
    for sink in sinks:
        stack.callback(sink.close)
    return sinks


def _say_what(parts: Parts, threads: Threads, folder: RunFolder, console: Console) -> None:
    size = sum(p.numel() for p in parts.loaded.model.parameters())
    network = parts.policy.network
    console.message(
        f"{parts.loaded.source}, {size / 1e6:.1f} M parameters, {_dtype(network.dtype)} on {network.device}, "
        f"{threads}; {parts.dataset.reading}"
    )
    console.message(f"run folder: {folder.path}")


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _summary(parts: Parts, state: TrainState, finished: bool) -> dict[str, Any]:
    config = parts.config
    packages = ("gspo", "torch", "transformers")
    return {
        "before": state.before.get("scores", {}),
        "after": state.after.get("scores", {}),
        "seconds": state.seconds,
        "steps": state.step,
        "finished": finished,
        "updates": state.version,
        "tokens": state.num_tokens,
        "cold_start_steps": state.before.get("cold_start_steps", 0),
        "objective": to_table(config)["objective"],
        "model": config.model,
        "task": parts.dataset.name,
        "data": parts.dataset.reading,
        "old_logprobs": state.old_logprobs,
        "device": _device_name(config.device),
        "threads": state.threads,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "examples": {"before": state.before.get("examples", []), "after": state.after.get("examples", [])},
        "best": state.best,
    }


def _device_name(device: str) -> str:
    where = pick_device(device)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else f"{where.type} ({platform.machine()})"


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run."""
    return json.loads((folder / "summary.json").read_text())
