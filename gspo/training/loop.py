"""The loop: collect, weigh, update, record, save. Read it from top to bottom."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from gspo.collectors.base import Collected
from gspo.collectors.offline import OfflineSource
from gspo.policies.trained import Scorer
from gspo.samplers.base import SamplerLost
from gspo.samplers.config import restarts
from gspo.sinks import Record, Sink
from gspo.training.batch import MiniBatch, advantage_input, assemble, flatten, mini_batches, on_units, units_of_rollouts
from gspo.training.evaluate import EvaluationResult, evaluate
from gspo.training.experts import expert_metrics
from gspo.training.folder import RunFolder, write_ledger, write_rollouts
from gspo.training.metrics import (
    Metrics,
    completion_metrics,
    preference_metrics,
    rollout_metrics,
    term_metrics,
    update_metrics,
)
from gspo.training.overlap import Ahead, Feed, InTurn
from gspo.training.parts import Parts, export_model
from gspo.training.rankings import RankingResult, evaluate_rankings
from gspo.training.schedule import learning_rate
from gspo.training.state import TrainState
from gspo.training.update import (
    Mismatch,
    Update,
    drawn_anew,
    first_forward,
    is_sampler_sound,
    measure_mismatch,
    prepare,
    run_updates,
)
from gspo.types import Group, Sample

Results = Mapping[str, EvaluationResult | RankingResult]
"""Held-out results by prefix."""


def train_steps(
    parts: Parts,
    state: TrainState,
    reference: Scorer | None,
    folder: RunFolder,
    sinks: Sequence[Sink],
    should_stop: Callable[[], bool] = lambda: False,
    until: int | None = None,
) -> TrainState:
    """Rollout batches from `state.step` until that step, or `config.steps`; ends early, saved, when `should_stop()`."""
    with chosen_feed(parts, until or parts.config.steps) as feed:
        state = _train_steps(parts, state, reference, folder, sinks, should_stop, until or parts.config.steps, feed)
        parts.saver.finish()  # before what is sampled ahead is waited for
        return state


def _train_steps(
    parts: Parts,
    state: TrainState,
    reference: Scorer | None,
    folder: RunFolder,
    sinks: Sequence[Sink],
    should_stop: Callable[[], bool],
    until: int,
    feed: Feed,
) -> TrainState:
    config = parts.config
    started = time.perf_counter() - state.seconds
    while state.step < until and not should_stop():
        step_started = time.perf_counter()
        clock = Clock()

        with saved_if_sampler_is_lost(parts, state, folder):
            collected = feed.collect(state)
        advantage, advantage_state = estimate(parts, collected.groups, reference, state.advantage)
        samples = flatten(collected.groups, advantage, config.collector.drop_truncated)

        batches = [
            MiniBatch(samples=rows, step=assemble(rows, parts.policy.network.device))
            for rows in mini_batches(samples, config.updates_per_step, config.seed, state.step)
        ]
        with clock.time("old_logprobs"):
            choice, mismatch = settle_old_logprobs(parts, state, batches[0])
            epochs = config.epochs
            if parts.policy.scorer.redraws:
                batches, epochs = drawn_anew(batches, epochs, config.seed, state.step), 1
            batches = prepare(
                batches,
                parts.policy,
                parts.terms,
                reference,
                rescore_old=choice == "policy",
                first_scores_itself=not parts.repeats_old_pass,
            )
        with clock.time("update"):
            rates = [_lr(parts, state.step, i) for i in range(len(batches) * epochs)]
            updates, term_states = run_updates(parts.policy, batches, parts.terms, epochs, rates, state.objective or ())
        choice, mismatch = watch_old_logprobs(parts, choice, mismatch, updates)

        state = replace(
            state,
            step=state.step + 1,
            version=state.version + len(updates),
            cursor=collected.cursor,
            num_tokens=state.num_tokens + _tokens(samples),
            old_logprobs=state.old_logprobs if parts.is_offline else choice,
            advantage=advantage_state,
            objective=term_states,
        )
        metrics = {
            **batch_metrics(parts, collected, samples, updates),
            **update_metrics(updates),
            **expert_metrics(updates),
            **term_metrics(parts.terms, updates, term_states),
            **_mismatch_metrics(mismatch),
            "num_tokens": float(state.num_tokens),
        }
        with clock.time("save"):
            if (state.step - 1) % config.checkpoints.save_rollouts_every == 0:
                parts.ranks.first(partial(write_step, parts, folder, state.step, collected, updates, samples))
        is_last = state.step == config.steps
        if is_last or (config.evaluation.every and state.step % config.evaluation.every == 0):
            with clock.time("evaluate"), feed.settled(state):
                results = evaluate_policy(parts)
                metrics |= evaluation_metrics(results)
                state = replace(keep_best(parts, state, results, folder), after=evaluation_record(results))
        state = replace(state, seconds=time.perf_counter() - started)
        seconds = time.perf_counter() - step_started
        metrics |= {"step_time": seconds, "tokens_per_second": _tokens(samples) / seconds}
        metrics |= {f"time/{name}": value for name, value in {**collected.seconds, **clock.seconds}.items()}
        # Records first: a run killed right after its checkpoint must not miss the step's line.
        for sink in sinks:
            sink.write(Record(step=state.step, metrics=metrics, sample=_sample_line(collected)))
        if is_last or should_stop() or state.step % config.checkpoints.every == 0:
            parts.saver.save(folder.checkpoints, state, parts.policy.weights.state(), config.checkpoints.keep)
        parts.saver.settle()
    return state


def write_step(
    parts: Parts,
    folder: RunFolder,
    step: int,
    collected: Collected,
    updates: Sequence[Update],
    samples: Sequence[Sample],
) -> None:
    """The rollout and ledger files of a step."""
    write_rollouts(folder, step, collected.groups, parts.rewards.names, updates, samples, parts.renderer)
    write_ledger(folder, step, updates)
    folder.prune(parts.config.checkpoints.keep_rollouts)


def chosen_feed(parts: Parts, until: int) -> Feed:
    """Batches sampled in turn with training, or ahead of it."""
    config = parts.config
    if not config.max_policy_lag or parts.is_offline:
        return InTurn(collector=parts.collector, sampler=parts.sampler, policy=parts.policy)
    return Ahead(
        parts.leading.beside(parts.collector),
        parts.sampler,
        parts.policy,
        max_lag=config.max_policy_lag,
        until=until,
        restarts=restarts(config.sampler),
        ranks=parts.ranks,
    )


def leave_out(parts: Parts, state: TrainState, until: int, folder: RunFolder, sinks: Sequence[Sink]) -> TrainState:
    """Steps in which there is nothing to learn from; the last of a run still owes its evaluation and checkpoint."""
    state = replace(state, step=until)
    if until == parts.config.steps:
        parts.sampler.sync_weights(parts.policy, state.version)
        results = evaluate_policy(parts)
        state = replace(keep_best(parts, state, results, folder), after=evaluation_record(results))
        for sink in sinks:
            sink.write(Record(step=until, metrics=evaluation_metrics(results)))
        parts.saver.save(folder.checkpoints, state, parts.policy.weights.state(), parts.config.checkpoints.keep)
    return state


def batch_metrics(parts: Parts, collected: Collected, samples: Sequence[Sample], updates: Sequence[Update]) -> Metrics:
    """Of rewards where completions were sampled, of preferences where they were given."""
    if parts.is_offline:
        return {**completion_metrics(collected), **preference_metrics(updates)}
    return rollout_metrics(collected, parts.rewards.names, [sample.mean_advantage for sample in samples])


def estimate(parts: Parts, groups: Sequence[Group], reference: Scorer | None, state: Any) -> tuple[torch.Tensor, Any]:
    """Advantages of the whole rollout batch: [B], or [B,U] from an estimator per token; and the estimator's state."""
    logprobs = None
    if "reference" in parts.advantage.traits.needs:
        assert reference is not None
        rows = flatten(groups, torch.zeros(sum(len(g.rollouts) for g in groups)), False)
        scored = reference.logprobs(assemble(rows, parts.policy.network.device)).logprobs.cpu()
        logprobs = units_of_rollouts(scored, rows)
    advantage, state = parts.advantage(advantage_input(groups, parts.rewards.weights, logprobs), state)
    return on_units(advantage, groups), state


def settle_old_logprobs(parts: Parts, state: TrainState, batch: MiniBatch) -> tuple[str, Mismatch | None]:
    """Whose log-probs divide the ratio. "auto" measures once, on the first mini-batch of the run, then decides."""
    choice = state.old_logprobs or (parts.config.old_logprobs if parts.config.old_logprobs != "auto" else "")
    # Nobody knows how probable completions were where they came from, or the sampler does not say what we score.
    if parts.is_offline or parts.sampler.scores == "none":
        return "policy", None
    if parts.repeats_old_pass:
        choice = "policy"
    elif not any("old" in term.traits.needs for term in parts.terms):
        choice = "sampler"  # nothing divides by it
    if choice:
        return choice, None
    mismatch = measure_mismatch(parts.terms, batch.step, parts.policy.logprobs(batch.step).logprobs)
    return "sampler" if is_sampler_sound(mismatch) else "policy", mismatch


def watch_old_logprobs(
    parts: Parts, choice: str, mismatch: Mismatch | None, updates: Sequence[Update]
) -> tuple[str, Mismatch | None]:
    """The first update measures the mismatch for free; "auto" leaves the sampler's log-probs if it is too wide."""
    if parts.is_offline or parts.sampler.scores == "none":
        return choice, None
    mismatch = first_forward(updates, parts.terms) or mismatch
    if parts.config.old_logprobs == "auto" and mismatch and not is_sampler_sound(mismatch):
        return "policy", mismatch
    return choice, mismatch


@contextmanager
def saved_if_sampler_is_lost(parts: Parts, state: TrainState, folder: RunFolder) -> Iterator[None]:
    """Nothing of the step has been trained yet: what stands in `state` is saved before the run stops."""
    try:
        yield
    except SamplerLost:
        parts.saver.save(folder.checkpoints, state, parts.policy.weights.state(), parts.config.checkpoints.keep)
        parts.saver.finish()
        raise


def evaluate_policy(parts: Parts) -> dict[str, EvaluationResult | RankingResult]:
    """Held-out results by prefix: "" at `evaluation.temperature`, and "greedy_" when asked for."""
    settings = parts.config.evaluation
    rows = [parts.dataset.held_out[i] for i in range(min(settings.prompts, len(parts.dataset.held_out)))]
    if not rows:
        return {}
    if isinstance(parts.source, OfflineSource):
        return {"": evaluate_rankings(parts.source, rows, parts.policy)}
    temperatures = {"": settings.temperature}
    if settings.greedy and settings.temperature != 0:
        temperatures["greedy_"] = 0.0
    return {
        prefix: evaluate(parts.evaluation_source(temperature), rows, parts.dataset.is_correct)
        for prefix, temperature in temperatures.items()
    }


def evaluation_metrics(results: Results) -> Metrics:
    return {
        f"eval/{prefix}{name}": value for prefix, result in results.items() for name, value in result.facts().items()
    }


def evaluation_record(results: Results) -> dict[str, Any]:
    """Scores and examples as summary.json has them."""
    scores = {name.removeprefix("eval/"): value for name, value in evaluation_metrics(results).items()}
    return {"scores": scores, "examples": list(results[""].examples) if results else []}


def score_of(results: Results) -> float:
    """What "best" means: held-out accuracy, or reward where there is no answer to compare with."""
    result = results[""]
    return result.reward if result.accuracy is None else result.accuracy


def keep_best(parts: Parts, state: TrainState, results: Results, folder: RunFolder) -> TrainState:
    """Export the model under `best/` when its held-out score is the highest so far."""
    if not results or not score_of(results) > state.best:
        return state
    export_model(parts, folder.best)
    return replace(state, best=score_of(results))


class Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Any:
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def _lr(parts: Parts, step: int, update: int) -> float:
    """Of update number `update` of a step."""
    config = parts.config
    per_step = config.updates_per_step * config.epochs
    return learning_rate(config.schedule, config.optimizer.lr, step * per_step + update, per_step, config.steps)


def _mismatch_metrics(mismatch: Mismatch | None) -> Metrics:
    if mismatch is None:
        return {}
    return {"mismatch/mean": mismatch.mean, "mismatch/max": mismatch.max, "mismatch/seq_std": mismatch.ratio_std}


def _tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.prompt_ids) + len(sample.completion_ids) for sample in samples)


def _sample_line(collected: Collected) -> str:
    group = collected.groups[0]
    rollout = group.rollouts[0]
    prompt, text = (" ".join(t.split()) for t in (group.prompt_text, rollout.text))
    return f"{prompt[-80:]} -> {text[:120]} (reward {rollout.reward:.3g})"
