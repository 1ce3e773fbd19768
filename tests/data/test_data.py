import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gspo.data import DataConfig, load_dataset, order, rows_at
from gspo.rewards import Rewards


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(seed=0, **fields):
    return load_dataset(DataConfig(**fields), seed)


# ---- order


@given(st.integers(0, 50), st.integers(0, 30), st.integers(0, 30), st.integers(1, 12), st.integers(0, 2**63))
def test_reading_on_is_the_same_as_reading_at_once(cursor, a, b, n, seed):
    assert rows_at(cursor, a, n, seed) + rows_at(cursor + a, b, n, seed) == rows_at(cursor, a + b, n, seed)


@given(st.integers(1, 40), st.integers(0, 1000), st.integers(0, 5))
def test_every_epoch_is_a_permutation(n, seed, epoch):
    assert sorted(rows_at(epoch * n, n, n, seed)) == list(range(n))
    assert rows_at(epoch * n, n, n, seed) == order(seed, epoch, n).tolist()


def test_epochs_and_seeds_differ_and_the_order_is_fixed():
    assert rows_at(0, 50, 50, 0) != rows_at(50, 50, 50, 0) != rows_at(0, 50, 50, 1)
    # A saved cursor must mean the same rows in the next release.
    assert rows_at(0, 8, 5, seed=7) == [4, 1, 3, 2, 0, 3, 1, 2]


def test_no_rows_to_order():
    with pytest.raises(ValueError, match="no rows"):
        rows_at(0, 1, 0, 0)


# ---- tasks


def test_the_default_is_addition_and_its_held_out_pairs_are_never_trained_on():
    data = load(held_out_prompts=1000)
    train, held = {row["prompt"] for row in data.train}, {row["prompt"] for row in data.held_out}
    assert data.name == "addition" and len(train) == 9000 and len(held) == 1000 and not train & held
    assert not held & {row["prompt"] for row in data.cold_start}
    assert [row["prompt"] for row in load(seed=5, held_out_prompts=1000).held_out] == [
        r["prompt"] for r in data.held_out
    ]
    row = data.train[0]
    a, b = row["prompt"].rstrip("=").split("+")
    assert row["answer"] == f"{int(a) + int(b):03d}" == data.cold_start[0]["completion"]
    assert {len(prompt) for prompt in train | held} == {6}  # "07+40=": no operand is a rarer format than another
    assert data.is_correct(row["answer"] + "\n", row) and not data.is_correct("x", row)
    assert list(data.train[2:4]) == [data.train[2], data.train[3]]


def test_addition_with_one_digit():
    data = load(options={"digits": 1})
    assert (len(data.train), len(data.held_out)) == (90, 10)
    with pytest.raises(ValueError, match="must be 1, 2 or 3"):
        load(options={"digits": 4})
    with pytest.raises(ValueError, match="has no option 'digit'; it has: digits"):
        load(options={"digit": 1})


@pytest.mark.parametrize("task", ["two_words", "few_words"])
def test_instruction_tasks_hold_out_other_prompts(task):
    data = load(task=task)
    text = lambda row: row["prompt"][0]["content"]  # noqa: E731
    assert len(data.held_out) == 200
    assert not {text(row) for row in data.train} & {text(row) for row in data.held_out}
    assert data.train[0].keys() == data.held_out[0].keys()


def test_two_words_pairs_are_disjoint_in_either_order():
    data = load(task="two_words", held_out_prompts=1000)
    pairs = lambda rows: {frozenset(row["words"]) for row in rows}  # noqa: E731
    assert not pairs(data.train) & pairs(data.held_out) and all(len(p) == 2 for p in pairs(data.train))
    first, second = data.train[0]["words"]
    assert data.is_correct(f"The {first} and the {second} are here.", data.train[0])


def test_few_words_topics_are_disjoint():
    data = load(task="few_words")
    assert not {row["topic"] for row in data.train} & {row["topic"] for row in data.held_out}
    assert data.is_correct("Something wonderful indeed", data.train[0])


@pytest.mark.parametrize(
    "options",
    [{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, {"size": 300}],
)
def test_reasoning_gym_split_has_no_overlap(options):
    pytest.importorskip("reasoning_gym")
    splits = [load(seed, task="reasoning_gym/chain_sum", options=options) for seed in (0, 1)]
    for data in splits:
        train, held = [{row["question"] for row in rows} for rows in (data.train, data.held_out)]
        assert len(data.held_out) == 200 and train and held and not train & held
        assert f"{len(train):,} distinct questions" in data.reading and "overlap 0" in data.reading
    # Another seed may not train on what the first one held out.
    assert not {r["question"] for r in splits[1].train} & {r["question"] for r in splits[0].held_out}
    assert ("questions repeat" in splits[0].reading) == ("max_terms" in options)


def test_reasoning_gym_rows_are_scored_by_their_dataset():
    pytest.importorskip("reasoning_gym")
    data = load(task="reasoning_gym/chain_sum", options={"size": 20, "instruction": "Answer with the number only."})
    row = data.train[0]
    assert row["prompt"][0]["content"].endswith("=\nAnswer with the number only.")
    with Rewards(data.rewards) as rewards:
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        assert rewards.score([row["prompt"]], [row["answer"]], [[]], columns).total.tolist() == [1.0]
    assert data.is_correct(row["answer"], row)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "adition"}, "did you mean addition"),
        ({"task": "reasoning_gym/chain_sums"}, "did you mean reasoning_gym/chain_sum"),
        ({"task": "reasoning_gym/chain_sum", "options": {"max_digit": 2}}, "did you mean max_digits"),
        ({"task": "reasoning_gym/chain_sum", "options": {"min_terms": 5, "max_terms": 2}}, "refuses these options"),
        ({"task": "addition", "path": "x.jsonl"}, "both path = 'x.jsonl' and task"),
        ({"options": {"digits": 1}, "path": "x.jsonl"}, "both path = 'x.jsonl' and options"),
        ({"template": "{a}"}, "data.template is for files"),
    ],
)
def test_wrong_tasks_say_what_to_do(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(**fields)
    assert "\n" not in str(caught.value)


# ---- files


def test_trl_messages(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"q{i}"}], "solution": f"${i}$", "level": i} for i in range(30)]
    data = load(path=write_jsonl(tmp_path / "a.jsonl", rows))
    assert (len(data.train), len(data.held_out)) == (27, 3)
    assert not {str(r["prompt"]) for r in data.train} & {str(r["prompt"]) for r in data.held_out}
    row = data.train[0]
    assert row["answer"] == row["solution"] and row["level"] in range(30)
    assert [reward.name for reward in data.rewards] == ["math"]
    assert "TRL columns prompt, solution, level" in data.reading and "messages" in data.reading
    assert "`answer` taken from solution" in data.reading and data.is_correct(row["answer"], row)


def test_prompt_and_completion_rows_are_a_cold_start_too(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": [{"role": "assistant", "content": f"a{i}"}]} for i in range(20)]
    data = load(path=write_jsonl(tmp_path / "a.jsonl", rows))
    assert data.rewards == () and data.is_correct is None and len(data.cold_start) == 18
    assert data.cold_start[0]["completion"] == "a" + data.cold_start[0]["prompt"][1:]


def test_messages_column(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    data = load(path=write_jsonl(tmp_path / "a.jsonl", [{"messages": messages}]))
    assert data.train[0] == {"prompt": messages[:1], "completion": "a"} and len(data.held_out) == 0


def test_verl_parquet(tmp_path):
    rows = [
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": f"{i}+1"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
            "extra_info": {"index": i},
        }
        for i in range(10)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    data = load(path=str(tmp_path / "train.parquet"))
    row = data.train[0]
    assert row["answer"] == row["reward_model"]["ground_truth"] and row["extra_info"]["index"] == int(row["answer"]) - 1
    assert row["prompt"][0]["role"] == "user" and "verl columns" in data.reading
    assert "reward_model.ground_truth" in data.reading and data.rewards[0].name == "math"


def test_csv_with_a_template_and_held_out_file(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"one, two?",3\nfour?,5\n')
    (tmp_path / "b.csv").write_text("question,answer\nfour?,5\n")
    data = load(
        path=str(tmp_path / "a.csv"), held_out_path=str(tmp_path / "b.csv"), template="Question: {question}\nAnswer:"
    )
    assert data.train[0]["prompt"] == "Question: one, two?\nAnswer:" and data.train[0]["answer"] == "3"
    assert len(data.train) == 2 and len(data.held_out) == 1 and "1 of their prompts also" in data.reading
    assert data.rewards[0].name == "exact"


def test_json_prompt_column_and_repeated_prompts(tmp_path):
    rows = [{"problem": f"q{i % 10}", "answer": i} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    data = load(path=str(tmp_path / "a.json"), prompt_column="problem")
    assert len(data.held_out) == 1 and len(data.train) == 18 and "1 repeats of those dropped" in data.reading
    assert data.held_out[0]["prompt"] not in {row["prompt"] for row in data.train}


def test_a_folder_has_splits(tmp_path):
    write_jsonl(tmp_path / "train-0.jsonl", [{"prompt": "a", "answer": "1"}])
    write_jsonl(tmp_path / "train-1.jsonl", [{"prompt": "b", "answer": "2"}])
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "c", "answer": "3"}])
    data = load(path=str(tmp_path), held_out_split="test")
    assert [r["prompt"] for r in data.train] == ["a", "b"] and [r["prompt"] for r in data.held_out] == ["c"]
    with pytest.raises(ValueError, match="no file of split 'dev'"):
        load(path=str(tmp_path), split="dev")


def test_a_dataset_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list([{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}])
    datasets.DatasetDict({"train": found}).save_to_disk(tmp_path / "saved")
    assert {r["prompt"] for r in load(path=str(tmp_path / "saved"), held_out_prompts=0).train} == {"a", "b"}
    with pytest.raises(ValueError, match="no split 'test'; it has: train"):
        load(path=str(tmp_path / "saved"), split="test")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', r"a.jsonl:3: not JSON"),
        ("a.jsonl", '{"prompt": "a"}\n7\n', r"a.jsonl:2: a int is no row"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": [{"role": "user"}]}\n', r"a.jsonl:2: prompt is .*it must be text"),
        ("a.jsonl", '{"prompt": "a", "solution": 1}\n{"prompt": "b"}\n', r"a.jsonl:2: no solution"),
        ("a.jsonl", '{"question": "a"}\n', r"set prompt_column, perhaps to 'question'"),
        ("a.jsonl", "", "has no rows"),
        ("a.json", '{"prompt": "a"}\n{"prompt": "a"}', r"a.json:2: not JSON: Extra data.*belongs in a .jsonl"),
        ("a.json", '{"prompt": "a"}', "must be a list"),
        ("a.csv", "prompt,answer\na,1\nb,1,2\n", r"a.csv:3: not the header's 2 fields"),
        ("a.parquet", "no", "not a Parquet file"),
        ("a.txt", "no", "cannot read .txt files"),
    ],
)
def test_bad_files_say_where(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(path=str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"did you mean .*train.jsonl"):
        load(path=str(tmp_path / "trian.jsonl"))


def test_a_template_with_an_unknown_column(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "a"}])
    with pytest.raises(ValueError, match=r"a.jsonl:1: template .* needs 'quest' \(columns: question\)"):
        load(path=path, template="{quest}")


def test_the_hub_needs_datasets(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "gspo\[datasets\]"'):
        load(path="owner/name")
