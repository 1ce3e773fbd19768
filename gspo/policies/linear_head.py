"""Log-probabilities and entropies straight from hidden states through a linear head, with a backward pass of our own.

    z = (W h + b) scale          z = c tanh(z / c) under a softcap          l = z / temperature
    log p(y) = l_y - L           L = log sum_j exp l_j                       H = L - sum_j p_j l_j
    d L / d l_j = p_j            d H / d l_j = -p_j (log p_j + H)            d l_y / d l_j = [j = y]

Logits exist one block [rows, columns] at a time. L, H and the chosen logits add up over the blocks of columns against
a running maximum; in the backward pass a block is computed again, turned into its gradient in place, and multiplied
into both products. Three ways to come to the backward pass, by what they keep:

- all logits, where they fit in `kept_elements`: the forward product is not repeated;
- nothing but hidden states, L and H: what training a large vocabulary does;
- with a frozen head, sum_j p_j W_j [M,D], which the forward pass adds up beside L: the backward pass,
  W_y - sum_j p_j W_j times the upstream gradient, then needs no logits at all.

Logits are rounded as the model rounds them (in its own dtype); everything after runs in float32 (float64 stays), and so
do the sums of gradients over blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

ROWS = 1024
"""Hidden states in a block: enough for the products to run at full speed."""
CACHED_ELEMENTS = 2**20
"""Logits in a block on a CPU: 4 MiB in float32, so that the passes after the product read cache, not memory."""
DEVICE_ELEMENTS = 2**24
"""Logits in a block elsewhere, where few large kernels are better."""


@dataclass(frozen=True)
class LinearHead:
    """An output layer that is nothing but its weights, and what the model does to the logits after it."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, "V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """[N,D] -> [N,V] logits in the model's dtype."""
        return shape_logits(linear(hidden, self.weight, self.bias), self.scale, self.softcap)

    def columns(self, hidden: Tensor, columns: slice) -> Tensor:
        """The logits of a slice of the vocabulary."""
        bias = None if self.bias is None else self.bias[columns]
        return shape_logits(linear(hidden, self.weight[columns], bias), self.scale, self.softcap)

    def token_logprobs(
        self,
        hidden: Float[Tensor, "M D"],
        ids: Int[Tensor, "N"],
        position: Int[Tensor, "N"] | None,
        temperature: float,
        entropy: str,
        kept_elements: int,
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """`likelihood.token_logprobs`, for sampling that truncates nothing."""
        where = torch.arange(len(ids), device=ids.device) if position is None else position
        chosen, total, value = likelihoods(self, hidden, ids, where, temperature, entropy, kept_elements)
        return (chosen - total, value) if position is None else (chosen - total[position], value[position])


def shape_logits(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What a model does to its logits after the output layer."""
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How the work is cut and what is asked."""

    scale: float
    softcap: float | None
    temperature: float
    entropy: str
    rows: int
    columns: int
    keeps_logits: bool
    keeps_pull: bool
    """Add sum_j p_j W_j up in the forward pass: the head is frozen."""

    @property
    def slope(self) -> float:
        """d l / d (W h + b), but for the softcap."""
        return self.scale / self.temperature


@dataclass(frozen=True)
class _Block:
    """A block of logits, and which of the chosen ids lie inside it (the others point at its edges)."""

    rows: slice
    columns: slice
    row: Int[Tensor, "N"]
    column: Int[Tensor, "N"]
    is_inside: Bool[Tensor, "N"]


def likelihoods(
    head: LinearHead,
    hidden: Float[Tensor, "M D"],
    ids: Int[Tensor, "N"],
    position: Int[Tensor, "N"],
    temperature: float,
    entropy: str,
    kept_elements: int,
    has_all: bool = True,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "M"], Float[Tensor, "M"]]:
    """Chosen logits, logsumexp of each position, entropy of each position, all under the temperature.

    Without `has_all` the head is a slice of the vocabulary, and ids outside of it (negative, or past its end) have a
    chosen logit of 0.
    """
    vocabulary = len(head.weight)
    trains = torch.is_grad_enabled()
    is_frozen = not (head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad))
    needs_states = trains and is_frozen and hidden.requires_grad
    keeps_pull = needs_states and head.softcap is None and entropy != "gradient" and has_all
    size = CACHED_ELEMENTS if hidden.device.type == "cpu" else DEVICE_ELEMENTS
    rows = max(1, min(len(hidden), ROWS, size))
    plan = _Plan(
        scale=head.scale,
        softcap=head.softcap,
        temperature=temperature,
        entropy=entropy,
        rows=rows,
        columns=min(vocabulary, max(1, size // rows)),
        keeps_logits=trains and not keeps_pull and len(hidden) * vocabulary <= kept_elements,
        keeps_pull=keeps_pull,
    )
    return _Likelihood.apply(hidden, head.weight, head.bias, ids, position, plan)


class _Likelihood(torch.autograd.Function):
    """Chosen logits [N], logsumexp of each position [M], entropy of each position [M], all under the temperature."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, position: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = LinearHead(weight, bias, plan.scale, plan.softcap)
        dtype = _accumulating(hidden)
        blank = torch.zeros(len(hidden), dtype=dtype, device=hidden.device)
        chosen = torch.zeros(len(ids), dtype=dtype, device=hidden.device)
        # Against the running maximum: sum_j exp l_j, and sum_j exp(l_j) l_j.
        peak, mass, heat = torch.full_like(blank, torch.finfo(dtype).min), blank.clone(), blank.clone()
        pull = _Pull(hidden, weight, ids, position) if plan.keeps_pull else None
        kept = []
        for block in _blocks(plan, hidden, weight, ids, position):
            rows = block.rows
            logits = _logits(head, hidden, block, plan)
            chosen = torch.where(block.is_inside, logits[block.row, block.column], chosen)
            top = torch.maximum(peak[rows], logits.amax(dim=1))
            rise = peak[rows] - top
            if plan.keeps_logits:
                kept.append(logits)
                logits = logits - top[:, None]
            else:
                logits.sub_(top[:, None])
            weights = logits.exp()
            if plan.entropy != "none":
                heat[rows] = rise.exp() * (heat[rows] + mass[rows] * rise) + logits.mul_(weights).sum(dim=1)
            mass[rows] = rise.exp() * mass[rows] + weights.sum(dim=1)
            peak[rows] = top
            if pull is not None:
                pull.add(block, weights, rise.exp())
        total = peak + mass.log()
        entropy = blank if plan.entropy == "none" else mass.log() - heat / mass
        if plan.entropy != "gradient":
            ctx.mark_non_differentiable(entropy)
        ctx.plan = plan
        mean = None if pull is None else pull.mean(mass)
        ctx.save_for_backward(hidden, weight, bias, ids, position, total, entropy, mean, *kept)
        return chosen, total, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_chosen: Tensor, d_total: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, position, total, entropy, mean, *kept = ctx.saved_tensors
        plan: _Plan = ctx.plan
        d_chosen, d_total, d_entropy = d_chosen * plan.slope, d_total * plan.slope, d_entropy * plan.slope
        if mean is not None:
            d_hidden = mean * d_total[:, None]
            d_hidden.index_add_(0, position, weight[ids].to(mean.dtype) * d_chosen[:, None])
            return d_hidden.to(hidden.dtype), None, None, None, None, None
        head = LinearHead(weight, bias, plan.scale, plan.softcap)
        sums = _Sums(hidden, weight, bias, ctx.needs_input_grad)
        for i, block in enumerate(_blocks(plan, hidden, weight, ids, position)):
            rows = block.rows
            logits = kept[i] if kept else _logits(head, hidden, block, plan)
            # z / c = l * temperature / c
            flat = None if plan.softcap is None else 1.0 - (logits * (plan.temperature / plan.softcap)).square_()
            log_p = logits - total[rows, None] if kept else logits.sub_(total[rows, None])
            if plan.entropy == "gradient":
                gradient = log_p.exp()
                by_row = (d_total[rows] - d_entropy[rows] * entropy[rows])[:, None]
                gradient.mul_(log_p.mul_(-d_entropy[rows, None]).add_(by_row))
            else:
                gradient = log_p.exp_().mul_(d_total[rows, None])
            inside = torch.where(block.is_inside, d_chosen, 0.0)
            gradient.index_put_((block.row, block.column), inside, accumulate=True)
            if flat is not None:
                gradient.mul_(flat)
            sums.add(block, gradient)
        return (*sums.gradients(), None, None, None)


class _Pull:
    """Adds up sum_j exp(l_j) W_j [M,D] against the running maximum, for the backward pass of a frozen head.

    One id of each position stays out of the product and is added at its exact weight: where a chosen token has nearly
    all probability, W_y - sum_j p_j W_j would drown in the rounding of a half-precision product.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, ids: Tensor, position: Tensor) -> None:
        self.weight = weight
        self.apart = ids.new_zeros(len(hidden)).scatter_reduce(0, position, ids, "amax", include_self=False)
        self.total = torch.zeros(hidden.shape, dtype=_accumulating(hidden), device=hidden.device)
        self.own = torch.zeros_like(self.total[:, :1])

    def add(self, block: _Block, weights: Tensor, fade: Tensor) -> None:
        """`weights` are exp(l - running maximum), and are changed; `fade` is what the maximum's rise makes of sums."""
        rows, columns = block.rows, block.columns
        column = self.apart[rows, None] - columns.start
        is_inside = (column >= 0) & (column < columns.stop - columns.start)
        column = torch.where(is_inside, column, 0)
        own = torch.where(is_inside, weights.gather(1, column), 0.0)
        weights.scatter_add_(1, column, -own)
        self.own[rows] = self.own[rows] * fade[:, None] + own
        _add_product(self.total[rows].mul_(fade[:, None]), weights, self.weight[columns])

    def mean(self, mass: Tensor) -> Tensor:
        return self.total.addcmul_(self.own, self.weight[self.apart].to(self.own.dtype)).div_(mass[:, None])


class _Sums:
    """Gradients of hidden states, weight and bias over the blocks, those that are asked for."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self.inputs = (hidden, weight, bias)
        dtype = _accumulating(hidden)
        self.hidden = torch.zeros_like(hidden, dtype=dtype) if needed[0] else None
        self.weight = (torch.empty_like if len(hidden) else torch.zeros_like)(weight) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and needed[2] else None

    def add(self, block: _Block, gradient: Tensor) -> None:
        hidden, weight, _ = self.inputs
        rows, columns = block.rows, block.columns
        if self.bias is not None:
            self.bias[columns] += gradient.sum(dim=0)
        gradient = gradient.to(hidden.dtype)
        if self.hidden is not None:
            _add_product(self.hidden[rows], gradient, weight[columns])
        if self.weight is not None:
            self._add_to_weight(self.weight[columns], gradient, hidden, rows)

    def _add_to_weight(self, target: Tensor, gradient: Tensor, hidden: Tensor, rows: slice) -> None:
        """target [C,D] += gradient.T @ hidden[rows]; several sums of half-precision products are made in float32."""
        is_first, is_last = rows.start == 0, rows.stop == len(hidden)
        if is_first and (is_last or target.dtype == _accumulating(hidden)):
            torch.mm(gradient.T, hidden[rows], out=target)
        elif target.dtype == _accumulating(hidden):
            target.addmm_(gradient.T, hidden[rows])
        else:
            product = gradient.T @ hidden[rows]
            self.part = product.to(_accumulating(hidden)) if is_first else self.part.add_(product)
            if is_last:
                target.copy_(self.part)

    def gradients(self) -> tuple[Tensor | None, ...]:
        hidden, _, bias = self.inputs
        return (
            None if self.hidden is None else self.hidden.to(hidden.dtype),
            self.weight,
            None if self.bias is None else self.bias.to(bias.dtype),
        )


def _blocks(plan: _Plan, hidden: Tensor, weight: Tensor, ids: Tensor, position: Tensor) -> Iterator[_Block]:
    """Columns outside, rows inside: a slice of the weights is used for all rows while it is at hand."""
    for left in range(0, len(weight), plan.columns):
        right = min(left + plan.columns, len(weight))
        for first in range(0, len(hidden), plan.rows):
            last = min(first + plan.rows, len(hidden))
            yield _Block(
                rows=slice(first, last),
                columns=slice(left, right),
                row=(position - first).clamp(0, last - first - 1),
                column=(ids - left).clamp(0, right - left - 1),
                is_inside=(position >= first) & (position < last) & (ids >= left) & (ids < right),
            )


def _logits(head: LinearHead, hidden: Tensor, block: _Block, plan: _Plan) -> Tensor:
    """Logits under the temperature, in a fresh tensor; the same roundings as `sampling_logits` of the whole head."""
    logits = head.columns(hidden[block.rows], block.columns).to(_accumulating(hidden))
    return logits.div_(plan.temperature) if plan.temperature != 1.0 else logits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum in the dtype of `total`."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left.to(right.dtype) @ right


def _accumulating(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
