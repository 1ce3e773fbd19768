"""The laws of a collector, over all of them, with the real sampler and a small model's weights."""

from collections.abc import Callable

import pytest
import torch
from guessing import Guessing

from gspo.collectors import Collector, Direct, DraftThenRefine, EpisodeSource, GroupSource, Refill, TurnForks
from gspo.collectors.draft_then_refine import DraftConfig
from gspo.collectors.offline import OfflineSource
from gspo.collectors.pairs import PairCollector
from gspo.envs.config import EnvironmentConfig
from gspo.models import TinyConfig, tiny_model
from gspo.policies import Network, TokenScorer, TrainedPolicy
from gspo.policies.master import AdamW
from gspo.renderers import Renderer
from gspo.rewards import RewardConfig, Rewards
from gspo.samplers.in_process import InProcess
from gspo.sampling import Sampling
from gspo.training.batch import assemble, flatten
from gspo.types import Group
from gspo.verifiers import Pair

LOADED = tiny_model(TinyConfig(hidden_size=32, layers=2, heads=2, kv_heads=2, intermediate_size=64), seed=0)
LOADED.model.eval()
NETWORK = Network(LOADED.model)
RENDERER = Renderer(LOADED.tokenizer)
SAMPLING = Sampling(max_completion_tokens=5)
ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(7) for b in range(5)]
PAIRS = [{**row, "chosen": row["answer"], "rejected": "1-1"} for row in ROWS]
REWARD = RewardConfig(name="length", options={"target_tokens": 2})
P = 3


def sampler(rows: int = 512) -> InProcess:
    made = InProcess(NETWORK, RENDERER.stop_ids, RENDERER.pad_id, rows)
    made.sync_weights(None, 7)
    return made


def groups(**settings) -> GroupSource:
    return GroupSource(
        rows=ROWS, renderer=RENDERER, sampler=sampler(), rewards=Rewards([REWARD]), sampling=SAMPLING, group_size=4,
        seed=5, **settings,
    )  # fmt: skip


def episodes(**settings) -> EpisodeSource:
    return EpisodeSource(
        rows=ROWS, factory=Guessing, renderer=RENDERER, sampler=sampler(), rewards=Rewards([], {"environment": 1.0}),
        sampling=SAMPLING, group_size=4, seed=5, settings=EnvironmentConfig(function="guessing.py:Guessing"),
        context=256, **settings,
    )  # fmt: skip


def pairs(**_) -> Collector:
    encode = lambda text: (*RENDERER.encode(text, special=False), RENDERER.end_id)  # noqa: E731
    found = [
        Pair(
            kind="accuracy", prompt_id=i, prompt_ids=RENDERER.prompt_ids(row["prompt"]),
            chosen_ids=encode(row["chosen"]), rejected_ids=encode(row["rejected"]),
        )
        for i, row in enumerate(PAIRS[:10])
    ]  # fmt: skip
    return PairCollector(pairs=found, first_step=0, prompts_per_step=P, seed=5, renderer=RENDERER)


def direct(source) -> Collector:
    return Direct(source=source, prompts_per_step=P)


COLLECTORS: dict[str, Callable[..., Collector]] = {
    "direct": lambda **s: direct(groups(**s)),
    "refill": lambda **s: Refill(source=groups(**s), prompts_per_step=P, max_rounds=3),
    "drafts": lambda **s: direct(
        DraftThenRefine(source=groups(**s), settings=DraftConfig(number=2, template="{draft} {prompt}"))
    ),
    "drafts, refilled": lambda **s: Refill(
        source=DraftThenRefine(source=groups(**s), settings=DraftConfig(number=2, template="{draft} {prompt}")),
        prompts_per_step=P,
        max_rounds=2,
    ),
    "episodes": lambda **s: direct(episodes(**s)),
    "episodes, refilled": lambda **s: Refill(source=episodes(**s), prompts_per_step=P, max_rounds=2),
    "forks": lambda **s: direct(TurnForks(source=episodes(**s))),
    "forks, random": lambda **s: direct(TurnForks(source=episodes(**s), continuation="random")),
    "offline": lambda **s: direct(OfflineSource(rows=PAIRS, renderer=RENDERER, seed=5)),
    "pairs": pairs,
}
SAMPLED = [name for name in COLLECTORS if name not in ("offline", "pairs")]


def law(names):
    return pytest.mark.parametrize("name", list(names))


def without_prompts(found: tuple[Group, ...]):
    return [rollout for group in found for rollout in group.rollouts]


@law(COLLECTORS)
def test_the_same_counters_give_the_same_batch(name):
    first, second = (COLLECTORS[name]().collect(6, 2) for _ in range(2))
    assert str(first.groups) == str(second.groups) and first.cursor == second.cursor  # text: NaN differs from itself


@law(COLLECTORS)
def test_another_step_draws_anew(name):
    first, second = COLLECTORS[name]().collect(0, 0), COLLECTORS[name]().collect(0, 1)
    is_given = name == "offline"
    assert (str(first.groups) == str(second.groups)) == is_given


@law(COLLECTORS)
def test_the_cursor_is_all_the_state_there_is(name):
    whole = COLLECTORS[name]()
    first = whole.collect(0, 0)
    again = COLLECTORS[name]().collect(first.cursor, 1)
    assert str(whole.collect(first.cursor, 1).groups) == str(again.groups)


@law(SAMPLED)
def test_no_prompt_is_drawn_twice_or_left_out(name):
    collector, cursor, seen = COLLECTORS[name](), 0, []
    for step in range(3):
        found = collector.collect(cursor, step)
        assert all(cursor <= group.prompt_id < found.cursor for group in found.groups)
        seen += sorted({group.prompt_id for group in found.groups})
        assert found.cursor - cursor == found.prompts_drawn
        cursor = found.cursor
    assert len(seen) == len(set(seen))


@law(COLLECTORS)
def test_rollouts_know_their_group_and_place(name):
    found = COLLECTORS[name]().collect(0, 0).groups
    for number, group in enumerate(found):
        assert {rollout.group_id for rollout in group.rollouts} == {number}
        assert [rollout.index for rollout in group.rollouts] == list(range(len(group.rollouts)))
        assert all(rollout.turns[0].prompt_ids == group.prompt_ids for rollout in group.rollouts)


@law(SAMPLED)
def test_every_completion_says_the_policy_version(name):
    for rollout in without_prompts(COLLECTORS[name]().collect(0, 0).groups):
        assert {turn.completion.policy_version for turn in rollout.turns} == {7}


@law(SAMPLED)
def test_the_policy_scores_what_was_sampled_as_the_sampler_did(name):
    """Ids and masks are right: under the same weights each chosen token has the log-probability it was drawn with."""
    found = COLLECTORS[name]().collect(0, 0).groups
    rows = flatten(found, torch.zeros(sum(len(g.rollouts) for g in found)), False)
    step = assemble(rows, torch.device("cpu"))
    scorer = TokenScorer(network=NETWORK, scoring=SAMPLING, micro_batch_tokens=4096, pad_id=RENDERER.pad_id)
    scored = TrainedPolicy(scorer, AdamW()).logprobs(step).logprobs
    torch.testing.assert_close(scored[step.mask], step.old_logprobs[step.mask], atol=2e-5, rtol=0)
    assert (step.old_logprobs[~step.mask] == 0).all() and step.mask.any(dim=1).all()


@law(SAMPLED)
def test_dropped_rows_are_passed_over(name):
    dropped = frozenset(range(0, len(ROWS), 2))
    left = {row["prompt"] for i, row in enumerate(ROWS) if i not in dropped}
    collector, cursor = COLLECTORS[name](dropped=dropped), 0
    for step in range(2):
        found = collector.collect(cursor, step)
        texts = {group.prompt_text for group in found.groups}
        assert all(any(prompt in text for prompt in left) for text in texts)
        cursor = found.cursor
    everything = frozenset(range(len(ROWS)))
    with pytest.raises(ValueError, match="all 35 prompts are solved"):
        COLLECTORS[name](dropped=everything).collect(0, 0)


@law(COLLECTORS)
def test_numbers_for_the_metrics_are_finite(name):
    found = COLLECTORS[name]().collect(0, 0)
    assert all(value == value and weight >= 0 for value, weight in found.facts.values())
