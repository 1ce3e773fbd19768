"""Supervised steps on prompt-completion rows: the cold start before RL, and `gspo sft`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from gspo.data import Row, rows_at
from gspo.objectives.supervised import Supervised
from gspo.policies.trained import TrainedPolicy
from gspo.renderers import Renderer
from gspo.training.batch import assemble
from gspo.types import Sample


def supervised_sample(row: Row, number: int, renderer: Renderer, width: int = 0) -> Sample:
    """A row's completion, closed by the end token, as the units of a sample; the prompt is not trained.

    With `width` it has so many units: filled up with end tokens, or cut.
    """
    completion = row["completion"]
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    ids = renderer.completion_ids(text)
    prompt_ids, inputs = renderer.read(row)
    ids = (*ids, *[renderer.end_id] * (width - len(ids)))[:width] if width else ids
    return Sample(
        group_id=number,
        rollout_id=number,
        index=0,
        prompt_ids=prompt_ids,
        inputs=inputs,
        completion_ids=ids,
        sampler_logprobs=(0.0,) * len(ids),
        advantage=1.0,
        reward=1.0,
        is_trained=True,
    )


def train_supervised(
    policy: TrainedPolicy,
    renderer: Renderer,
    rows: Sequence[Row],
    *,
    steps: int,
    batch: int,
    lr: float,
    warmup_steps: int,
    seed: int,
    is_done: Callable[[int, float], bool],
    width: int = 0,
) -> int:
    """Up to `steps` updates on `batch` rows each, until `is_done(steps made, last loss)`. Returns the steps made.

    Every step has random draws of its own, for a likelihood that is estimated.
    """
    objective = Supervised()
    for step in range(steps):
        chosen = [rows[i] for i in rows_at(step * batch, batch, len(rows), seed)]
        samples = [supervised_sample(row, number, renderer, width) for number, row in enumerate(chosen)]
        data = assemble(samples, policy.network.device)
        data = replace(data, payload=data.payload.with_draw(seed, step))
        weight = objective.weights(data, objective.counts(data))
        result = policy.forward_backward(data, [weight], (objective,))
        policy.optim_step(lr * min(1.0, (step + 1) / max(warmup_steps, 1)))
        if is_done(step + 1, result.loss):
            return step + 1
    return steps
