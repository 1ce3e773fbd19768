"""Files of preferences: which columns are read how, and what is refused."""

import json

import pytest
from scripted import TOKENIZER, text_of

from gspo.collectors import Direct
from gspo.collectors.offline import OfflineSource
from gspo.data import DataConfig, load_dataset
from gspo.renderers import Renderer
from gspo.settings import validate
from gspo.training.parts import build


def dataset(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset(DataConfig(path=str(path)), seed=0)


def one_group(data):
    source = OfflineSource(rows=data.train, renderer=Renderer(TOKENIZER), seed=0)
    return Direct(source=source, prompts_per_step=1).collect(0, 0).groups[0]


PAIRS = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(12)]


def test_pairs_are_groups_of_two_closed_by_the_end_token(tmp_path):
    data = dataset(tmp_path, *PAIRS)
    assert "completions to learn from, nothing is sampled" in data.reading
    group = one_group(data)
    number = int(group.prompt_text.partition("+")[0])
    assert [text_of(r.completion.ids) for r in group.rollouts] == [f"{number + 1}|", f"{number}|"]
    assert [r.reward for r in group.rollouts] == [1.0, 0.0] and group.columns == {}


def test_completions_with_scores_are_groups_of_any_size(tmp_path):
    rows = [{"prompt": f"{i}=", "completions": ["1", "2", "3"], "scores": [0.5, -1, 2], "id": i} for i in range(12)]
    group = one_group(dataset(tmp_path, *rows))
    assert [r.reward for r in group.rollouts] == [0.5, -1.0, 2.0] and set(group.columns) == {"id"}


def test_an_implicit_prompt_is_what_both_conversations_begin_with(tmp_path):
    user = lambda i: {"role": "user", "content": f"q{i}"}  # noqa: E731
    said = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    rows = [{"chosen": [user(i), said("a")], "rejected": [user(i), said("b")]} for i in range(12)]
    row = dataset(tmp_path, *rows).train[0]
    assert row["prompt"] == [user(int(row["prompt"][0]["content"][1:]))] and row["chosen"] == [said("a")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "a", "rejected": "b"}, "rows.jsonl:1: chosen and rejected are texts without a prompt"),
        (
            {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]},
            "no message in common",
        ),
    ],
)
def test_rows_that_are_no_pairs(tmp_path, row, words):
    with pytest.raises(ValueError, match=words):
        dataset(tmp_path, row, row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completions": ["x"], "scores": [1, 2]}, "1 completions and 2 scores"),
        ({"prompt": "a", "completions": ["x"], "scores": [1]}, "at least two"),
        ({"prompt": "a", "chosen": [{"role": "assistant", "content": "x"}] * 2, "rejected": "y"}, "several turns"),
    ],
)
def test_groups_that_are_none(tmp_path, row, words):
    rows = [{**row, "prompt": f"{i}="} for i in range(12)]
    with pytest.raises(ValueError, match=words):
        one_group(dataset(tmp_path, *rows))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rewards": [{"name": "exact"}]}, "rewards is for sampled ones"),
        ({"collector": {"refill": True}}, "collector.refill is for sampled ones"),
        ({"collector": {"drafts": {"number": 1}}}, "collector.drafts is for sampled ones"),
        ({"environment": {"name": "calculator"}}, "an environment is for sampled ones"),
    ],
)
def test_settings_for_sampling_are_refused(tmp_path, settings, words):
    dataset(tmp_path, *PAIRS)
    config = validate({"data": {"path": str(tmp_path / "rows.jsonl")}, "objective": "dpo", "group_size": 2, **settings})
    with pytest.raises(ValueError, match=words):
        build(config)
