"""Each law fails on the defect it is there for: the bugs are real ones of other trainers, made again on purpose."""

from dataclasses import dataclass, replace

import laws
import pytest
import torch

import gspo
from gspo.averaging import row_mean, unit_mean
from gspo.objectives import Traits
from gspo.ratio import sequence_log_ratio, token_log_ratio
from gspo.surrogate import clipped_surrogate, per_unit

DECLARED = Traits()


@dataclass(frozen=True)
class Defective:
    """GRPO with one part replaced."""

    title: str
    weigh: object = None
    gains: object = None
    name: str = "defective"
    traits: Traits = DECLARED

    def counts(self, step):
        return gspo.GRPO().counts(step)

    def weights(self, step, counts):
        return self.weigh(step, counts) if self.weigh else row_mean(step, counts)

    def gain(self, scores, step):
        return self.gains(scores, step) if self.gains else gspo.GRPO().gain(scores, step)

    def explain(self, scores, step):
        return None


def _grpo(scores, step, ratio):
    return clipped_surrogate(ratio, per_unit(step.advantage, ratio), 0.2, 0.2)


def _padded_width(step, counts):
    return step.mask.double() / (step.mask.shape[1] * counts["rollouts"])


def _positional(step, counts):
    return row_mean(step, counts) * torch.arange(1, len(step.mask) + 1)[:, None]


def _own_normaliser(scores, step):
    """Divides again by what this micro-batch happens to hold (open-instruct #1161)."""
    return gspo.GRPO().gain(scores, step) / step.mask.sum()


def _centred_over_rows(scores, step):
    """Centres over the rows at hand (Soup #723)."""
    gain = gspo.GRPO().gain(scores, step)
    return gain - gain.mean()


def _sum_ratio(scores, step):
    """The product ratio with the sequence's gradient summed over units (TRL #3823)."""
    ratio = (token_log_ratio(scores, step).sum(dim=1, keepdim=True)).exp()
    return _grpo(scores, step, ratio).expand_as(step.mask)


def _inverted(scores, step):
    return _grpo(scores, step, (-token_log_ratio(scores, step)).exp())


def _looks_behind_the_mask(scores, step):
    hole = (~step.mask) & (scores.logprobs == 0)
    return gspo.GRPO().gain(scores, step) * (1 + hole.sum(dim=1, keepdim=True))


def _bonus_at_zero_advantage(scores, step):
    return gspo.GRPO().gain(scores, step) + 0.01 * scores.logprobs


def _divides_by_length(scores, step):
    ratio = token_log_ratio(scores, step).exp()
    return _grpo(scores, step, ratio) / step.mask.sum()


def _stopped(scores, step):
    return token_log_ratio(scores, step).detach().exp() * per_unit(step.advantage, scores.logprobs) * scores.logprobs


def _first_advantage(scores, step):
    advantage = step.advantage if step.advantage.ndim == 1 else step.advantage[:, 0]
    return _grpo(scores, replace(step, advantage=advantage), token_log_ratio(scores, step).exp())


def _reads_reference(scores, step):
    return (
        gspo.GRPO().gain(scores, step) + 0.01 * (step.reference_logprobs - scores.logprobs.detach()) * scores.logprobs
    )


DEFECTS = [
    (Defective("micro-batch normaliser", gains=_own_normaliser), laws.micro_batches_sum_to_the_step),
    (Defective("centred over rows", gains=_centred_over_rows), laws.micro_batches_sum_to_the_step),
    (Defective("padded width", weigh=_padded_width), laws.padding_width_does_not_matter),
    (Defective("counts padding", gains=_looks_behind_the_mask), laws.padding_width_does_not_matter),
    (Defective("row position", weigh=_positional), laws.row_order_does_not_matter),
    (Defective("product ratio", gains=_sum_ratio), laws.at_ratio_one_the_gradient_is_minus_advantage_times_weight),
    (Defective("inverted ratio", gains=_inverted), laws.at_ratio_one_the_gradient_is_minus_advantage_times_weight),
    (Defective("bonus", gains=_bonus_at_zero_advantage), laws.rows_of_zero_advantage_may_be_left_out),
    (
        Defective("0/0", gains=_divides_by_length, weigh=lambda s, c: s.mask / s.mask.sum()),
        laws.a_step_of_nothing_is_zero,
    ),
    (Defective("reads another row", gains=_centred_over_rows), laws.only_declared_objectives_need_whole_groups),
    (Defective("stopped ratio", gains=_stopped), laws.gradient_is_the_derivative),
    (
        Defective("takes the first unit's advantage", gains=_first_advantage),
        laws.an_advantage_per_unit_is_taken_or_refused,
    ),
    (Defective("reads the reference unasked", gains=_reads_reference), laws.what_is_read_is_declared),
    (Defective("asks for entropy in vain", traits=Traits(needs=("old", "entropy"))), laws.what_is_read_is_declared),
    (
        Defective("weighs by old log-probs", weigh=lambda s, c: row_mean(s, c) * s.old_logprobs.exp()),
        laws.weights_come_before_old_logprobs,
    ),
    (
        Defective("asks for pairs in vain", traits=Traits(min_group=2)),
        laws.a_group_needs_as_many_completions_as_declared,
    ),
    (
        Defective("forgets empty rows", weigh=lambda s, c: row_mean(s, {"rollouts": int(s.mask.any(1).sum()) - 2})),
        laws.empty_rows_count_in_row_denominators,
    ),
]


@pytest.mark.parametrize(("defect", "law"), DEFECTS, ids=lambda x: getattr(x, "title", getattr(x, "__name__", "")))
def test_defect_is_caught(defect, law):
    with pytest.raises((AssertionError, RuntimeError)):
        law(defect)


def test_nan_behind_the_mask_is_caught(monkeypatch):
    """Multiplying by the mask instead of selecting lets NaN through."""
    monkeypatch.setattr("gspo.functional.clean", lambda value, mask: value * mask)
    with pytest.raises(AssertionError):
        laws.masked_units_are_inert((gspo.GRPO(), gspo.ReferenceKL()))


def test_half_precision_arithmetic_is_caught(monkeypatch):
    monkeypatch.setattr("gspo.functional.clean", lambda value, mask: torch.where(mask, value, 0 * value))
    with pytest.raises(AssertionError):
        laws.half_precision_is_raised(gspo.GRPO())


def test_detached_ratio_is_caught():
    """A gradient that is not the derivative of the value (CISPO's form under GRPO's name)."""

    def gains(scores, step):
        ratio = sequence_log_ratio(scores, step).detach().exp()
        return ratio * per_unit(step.advantage, ratio) * scores.logprobs.square()

    detached = Defective("detached", gains=gains, weigh=unit_mean)
    with pytest.raises((AssertionError, RuntimeError)):
        laws.gradient_is_the_derivative(detached)
