"""Dynamic sampling with a sampler that says what it is told."""

import pytest

from gspo.collectors import Direct, GroupSource, Refill
from gspo.models import character_tokenizer
from gspo.renderers import Renderer
from gspo.rewards import Rewards
from gspo.samplers import FakeSampler
from gspo.sampling import Sampling

TOKENIZER = character_tokenizer("0123456789")


def source(says: str) -> GroupSource:
    """Ten prompts; prompt number n of the run is answered rightly by some, all or none, as `says[n % len]` has it."""

    def say(request, index):
        kind = says[request.prompt_id % len(says)]
        is_right = {"s": index % 2 == 0, "a": True, "n": False}[kind]
        return (*TOKENIZER("1" if is_right else "0")["input_ids"], TOKENIZER.eos_token_id)

    return GroupSource(
        rows=[{"prompt": str(i), "answer": "1"} for i in range(10)],
        renderer=Renderer(TOKENIZER),
        sampler=FakeSampler(say, TOKENIZER.eos_token_id),
        rewards=Rewards([lambda completion, answer: float(completion == answer)]),
        sampling=Sampling(max_completion_tokens=4),
        group_size=4,
        seed=0,
    )


def test_direct_takes_what_comes():
    collected = Direct(source=source("sa"), prompts_per_step=4).collect(6, step=3)
    assert [group.prompt_id for group in collected.groups] == [6, 7, 8, 9]
    assert collected.cursor == 10 and collected.prompts_drawn == 4 and collected.rounds == 1


def test_refill_replaces_groups_without_spread():
    collected = Refill(source=source("san"), prompts_per_step=4, max_rounds=9).collect(0, step=0)
    assert [group.prompt_id for group in collected.groups] == [0, 3, 6, 9]
    assert [rollout.group_id for group in collected.groups for rollout in group.rollouts] == sorted([0, 1, 2, 3] * 4)
    assert collected.rounds == 3 and collected.prompts_drawn == collected.cursor == 12
    assert set(collected.seconds) == {"sample", "reward"}


def test_refill_needs_one_round_when_every_group_has_spread():
    collected = Refill(source=source("s"), prompts_per_step=4, max_rounds=9).collect(5, step=0)
    assert collected.rounds == 1 and collected.cursor == 9


@pytest.mark.parametrize("max_rounds", [1, 2, 3])
def test_refill_gives_up_after_max_rounds_and_fills_up(max_rounds):
    collected = Refill(source=source("snnnnnnn"), prompts_per_step=4, max_rounds=max_rounds).collect(0, step=0)
    assert collected.rounds == max_rounds and collected.cursor == collected.prompts_drawn == 4 * max_rounds
    mixed = [p for p in range(4 * max_rounds) if p % 8 == 0]
    found = [group.prompt_id for group in collected.groups]
    assert found[: len(mixed)] == mixed and len(found) == 4
    assert found[len(mixed) :] == [p for p in range(4 * max_rounds) if p not in mixed][: 4 - len(mixed)]
