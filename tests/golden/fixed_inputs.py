"""The fixed tensors that make_trl.py, make_verl.py and make_authors.py give to other people's code. Not a test.

Every recorded file holds its own copy of them; torch is the only import, since each generator runs in an environment
of its own.
"""

import torch

MAX_LENGTH = 9
LENGTHS = [9, 4, 0, 1, 7, 6]
ADVANTAGE = [1.3, -0.7, 0.4, -1.1, 0.0, 0.9]


def drawn(seed, spread, holes, lengths=LENGTHS):
    """Six rows, ragged, by default the third without a trained token; advantages of both signs and one 0."""
    make = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64)  # noqa: E731
    mask = torch.arange(MAX_LENGTH)[None] < torch.tensor(lengths)[:, None]
    if holes:
        mask[0, 3:5] = mask[4, 0] = False
    old = -normal(6, MAX_LENGTH).abs() - 0.05
    return {
        "logprobs": old + spread * normal(6, MAX_LENGTH),
        "old_logprobs": old,
        "reference_logprobs": old + 0.2 * normal(6, MAX_LENGTH),
        "entropy": normal(6, MAX_LENGTH).abs(),
        "mask": mask,
        "advantage": torch.tensor(ADVANTAGE, dtype=torch.float64),
    }, normal


def far_from_old(lengths=LENGTHS):
    """Probabilities in (0, 1), ratios from about 0.05 to 76, and a sampler that is not the old policy.

    The sampler's log-probs are float32 values, since TRL makes a float32 tensor of them.
    """
    x, normal = drawn(seed=639, spread=0.0, holes=True, lengths=lengths)
    x["old_logprobs"] = 2 * x["old_logprobs"]
    x["logprobs"] = -2 * normal(6, MAX_LENGTH).abs() - 0.05
    x["sampler_logprobs"] = (x["old_logprobs"] + 0.5 * normal(6, MAX_LENGTH)).float().double()
    return x


NO_EMPTY = [9, 4, 3, 1, 7, 6]


def pairs(x):
    """Two groups of three rows, or three of two; rewards with and without ties."""
    x["group_of_two"] = torch.tensor([0, 0, 1, 1, 2, 2])
    x["group_of_three"] = torch.tensor([0, 0, 0, 1, 1, 1])
    x["rewards"] = torch.tensor([1.0, -0.5, 0.0, 1.0, -0.5, -0.5], dtype=torch.float64)
    return x


BASIC = {
    "far": drawn(seed=3, spread=0.3, holes=False)[0],
    "near": drawn(seed=1, spread=2e-3, holes=False)[0],
    "holes": drawn(seed=2, spread=0.3, holes=True)[0],
}
INPUTS = {
    **BASIC,
    "wild": far_from_old(),
    "pairs": pairs(far_from_old(NO_EMPTY)),
    "calm_pairs": pairs(drawn(seed=7, spread=0.3, holes=True, lengths=NO_EMPTY)[0]),
}

REWARDS = {
    # Four groups of three; a group without spread; two reward functions; lengths that differ within a group.
    "rewards": torch.tensor(
        [
            [1, 0], [0, 1], [0.5, 1], [1, 1], [1, 1], [1, 1], [0, 0], [1, 0], [0, 0.25], [0.25, -1], [0.875, 3],
            [0.375, 0.5],
        ],
        dtype=torch.float64,
    ),
    "group": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
    "length": torch.tensor([3, 8, 5, 2, 2, 9, 1, 6, 4, 7, 7, 5]),
}  # fmt: skip
NAN = float("nan")
MISSING = {
    # As above; NaN: a reward function that gave none, in one row both of them.
    **REWARDS,
    "rewards": torch.tensor(
        [
            [1, 0], [0, NAN], [0.5, 1], [1, 1], [NAN, NAN], [1, 0], [0, 0], [1, 0], [0, 0.25], [NAN, -1], [0.875, 3],
            [0.375, 0.5],
        ],
        dtype=torch.float64,
    ),
}  # fmt: skip
SINGLE = {
    "rewards": torch.tensor([[1.0], [0.25], [0.5], [-1.0]], dtype=torch.float64),
    "group": torch.tensor([0, 0, 1, 2]),
    "length": torch.tensor([4, 7, 2, 9]),
}
SCORED = {"complete": REWARDS, "missing": MISSING, "single": SINGLE}


def listed(table):
    """Tensors as lists; NaN as None, which JSON has."""
    tidy = lambda v: [tidy(i) for i in v] if isinstance(v, list) else (None if v != v else v)  # noqa: E731
    return {key: {name: tidy(t.tolist()) for name, t in x.items()} for key, x in table.items()}
