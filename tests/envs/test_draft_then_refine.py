"""iGRPO: what is sampled, what is kept, what is trained."""

import numpy as np
import pytest
import torch
from scripted import END, TOKENIZER, ids_of, text_of

from gspo.advantages import GroupStd
from gspo.collectors import Direct, DraftThenRefine, GroupSource
from gspo.collectors.base import shown
from gspo.collectors.draft_then_refine import DraftConfig, best_draft, drafted, second_prompt
from gspo.renderers import Renderer
from gspo.rewards import RewardConfig, Rewards
from gspo.samplers.fake import FakeSampler
from gspo.samplers.streams import stream_keys, uniforms
from gspo.sampling import Sampling
from gspo.training.batch import advantage_input, assemble, flatten

TEMPLATE = "{draft}>{prompt}"
RENDERER = Renderer(TOKENIZER)


def source_of(say, *, budget=8, rows=({"prompt": "1+1=", "answer": "2"},), drafts=4, **settings):
    plain = GroupSource(
        rows=list(rows),
        renderer=RENDERER,
        sampler=FakeSampler(say, stop_id=END),
        rewards=Rewards([RewardConfig(name="exact")]),
        sampling=Sampling(max_completion_tokens=8),
        group_size=budget,
        seed=3,
    )
    return DraftThenRefine(source=plain, settings=DraftConfig(number=drafts, template=TEMPLATE, **settings))


def counting(say):
    requests = []

    def counted(request, index):
        requests.append((request.turn, index, text_of(request.prompt_ids)))
        return ids_of(say(request, index))

    return counted, requests


def test_as_many_completions_as_the_plain_group_and_only_refinements_are_trained():
    say, requests = counting(lambda request, index: "2|" if index == 2 else f"{index}5|")
    source = source_of(say)
    wave = source.wave(source.next_rows(0, 1), step=0)
    assert len(requests) == 8 == source.source.group_size
    assert [(turn, index) for turn, index, _ in requests] == [(t, i) for t in (0, 1) for i in range(4)]
    assert {text for turn, _, text in requests if turn == 0} == {"1+1="}
    assert {text for turn, _, text in requests if turn == 1} == {"2>1+1="}  # the one right draft
    samples = flatten(wave.groups, torch.arange(4.0), False)
    assert [text_of(s.prompt_ids) for s in samples] == ["2>1+1="] * 4 and wave.groups[0].prompt_text == "2>1+1="
    assert [text_of(s.completion_ids) for s in samples] == ["05|", "15|", "2|", "35|"]
    facts = shown(wave.facts)
    assert facts == {"drafts/reward": 0.25, "drafts/best_reward": 1.0, "drafts/sampled": 4.0}


def test_tokens_of_the_draft_are_no_units():
    """What the policy wrote in stage 1 stands in the prompt of stage 2: no weight, so no gradient."""
    say, _ = counting(lambda request, index: "2|" if index % 2 else "3|")
    source = source_of(say)
    wave = source.wave(source.next_rows(0, 1), step=0)
    advantage, _ = GroupStd()(advantage_input(wave.groups), None)
    step = assemble(flatten(wave.groups, advantage, False), torch.device("cpu"))
    assert step.mask.tolist() == [[True, True]] * 4  # one character and the end; no place for the draft's
    assert all(text_of(ids).startswith("2>") for ids in step.payload.prompt)


def test_the_best_of_n_drafts_has_the_reward_it_should():
    """E[max of N Bernoulli rewards] = 1 - (1 - p)^N."""
    p, prompts = 0.3, 4000
    key = lambda request, index: stream_keys([(request.prompt_id, request.turn, index)])  # noqa: E731
    say = lambda request, index: ids_of("2|" if uniforms(key(request, index), 0)[0] < p else "3|")  # noqa: E731
    for drafts in (1, 2, 4):
        source = source_of(say, drafts=drafts, budget=drafts + 1)
        wave = source.wave(source.next_rows(0, prompts), step=0)
        facts = shown(wave.facts)
        expected = 1 - (1 - p) ** drafts
        assert abs(facts["drafts/best_reward"] - expected) < 4 * np.sqrt(expected * (1 - expected) / prompts)
        assert abs(facts["drafts/reward"] - p) < 4 * np.sqrt(p * (1 - p) / prompts / drafts)


def test_ties_go_to_the_first_or_by_the_prompts_own_stream():
    say, _ = counting(lambda request, index: f"{index}|")
    source = source_of(say, rows=[{"prompt": "1", "answer": "9"}])
    groups = source.source.wave(source.next_rows(0, 64), step=0).groups  # every reward is 0
    assert {best_draft(group, DraftConfig(number=4), 0, 0).index for group in groups} == {0}
    random = DraftConfig(number=4, ties="random")
    first = [best_draft(group, random, 0, 0).index for group in groups]
    assert set(first) == set(range(8)) and first == [best_draft(group, random, 0, 0).index for group in groups]
    assert first != [best_draft(group, random, 1, 0).index for group in groups]


@pytest.mark.parametrize(("too_long", "expected"), [("tail", "fghi"), ("head", "abcd"), ("answer", "fghi")])
def test_drafts_that_are_too_long(too_long, expected):
    settings = DraftConfig(number=1, template=TEMPLATE, max_tokens=4, too_long=too_long)
    assert second_prompt("1+1=", "abcdefghi", settings, RENDERER) == f"{expected}>1+1="
    assert second_prompt("1+1=", "abc", settings, RENDERER) == "abc>1+1="


def test_the_template_goes_into_the_last_user_message_and_braces_are_safe():
    settings = DraftConfig(number=1, template="{prompt} / {draft}")
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "{draft}"}]
    found = second_prompt(prompt, "{prompt}", settings, RENDERER)
    assert found == [{"role": "system", "content": "s"}, {"role": "user", "content": "{draft} / {prompt}"}]
    with pytest.raises(ValueError, match="no user message"):
        second_prompt([{"role": "system", "content": "s"}], "x", settings, RENDERER)
    with pytest.raises(ValueError, match=r"no \{draft\}"):
        DraftConfig(number=1, template="{prompt}")


def test_supervised_rows_show_the_second_prompt_too():
    rows = [{"prompt": f"{i}+0=", "completion": str(i)} for i in range(8)]
    found = drafted(rows, DraftConfig(number=4, template=TEMPLATE), RENDERER, seed=0)
    assert len(found) == 16 and found[:8][3] == rows[3]
    prompts = [found[8 + i]["prompt"] for i in range(8)]
    assert all(prompt.endswith(f">{i}+0=") for i, prompt in enumerate(prompts))
    assert sorted(found[8 + i]["completion"] for i in range(8)) == sorted(row["completion"] for row in rows)


def test_it_stands_under_any_collector():
    say, _ = counting(lambda request, index: "2|" if index % 2 else "3|")
    collected = Direct(source=source_of(say), prompts_per_step=3).collect(0, 0)
    assert [len(group.rollouts) for group in collected.groups] == [4] * 3 and collected.cursor == 3
