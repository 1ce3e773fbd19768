import subprocess
import sys
from pathlib import Path

import pytest

import gspo.rewards
from gspo.rewards import RewardConfig, Rewards
from gspo.rewards.builtin import BUILTIN
from gspo.rewards.numeric import last_number


def test_exact():
    score = BUILTIN["exact"]()
    assert score(" 7\n", "7") == score("7", 7) == 1.0
    assert score("7.", "7") == 0.0 and score("None", None) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3+4=7", 7.0),
        ("so 5-3 is 2, or 5-3", 3.0),
        ("it is -3.5.", -3.5),
        ("x = \u22124", -4.0),
        ("1,234,567 people", 1234567.0),
        ("2e3", 2000.0),
        ("about .5", 0.5),
        ("12,34", 34.0),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_numeric():
    score = BUILTIN["numeric"](tolerance=0.01)
    assert score("about 100.9", "100") == 1.0 and score("101.1", "100") == 0.0
    assert score("it is 1,000", "1,000") == 1.0 and score("no idea", "5") == 0.0
    with pytest.raises(ValueError, match="not a number"):
        score("5", "five")


def test_format():
    score = BUILTIN["format"]()
    assert score(" <think>a\nb</think>\n<answer>7</answer>\n") == 1.0
    for bad in (
        "<think>a</think>",
        "<think></think><answer>7</answer>",
        "x<think>a</think><answer>7</answer>",
        "<think>a</think>x<answer>7</answer>",
        "<think>a</think><answer>7</answer> done",
        "<answer>7</answer><think>a</think>",
        "<think>a<think>b</think><answer>7</answer>",
        "",
    ):
        assert score(bad) == 0.0, bad
    assert BUILTIN["format"](template="...</think>...")("why</think> 7") == 1.0


def test_length():
    near, limit = BUILTIN["length"](target_tokens=4), BUILTIN["length"](max_tokens=4)
    assert [near("", [0] * n) for n in (4, 3, 6, 0, 40)] == [0.0, -0.25, -0.5, -1.0, -1.0]
    assert [limit("", [0] * n) for n in (0, 4, 5, 40)] == [0.0, 0.0, -0.25, -1.0]


def test_overlong_is_the_papers_formula():
    score = BUILTIN["overlong"](max_tokens=20, buffer_tokens=4)
    assert [score("", [0] * n) for n in (0, 16, 17, 19, 20, 21)] == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]


def test_repetition():
    score = BUILTIN["repetition"](ngram=2, max_penalty=0.5)
    assert score("a b c d") == 0.0 and score("a") == 0.0
    assert score("a a a A a") == pytest.approx(-0.5 * 3 / 4)


def test_two_words():
    score = BUILTIN["two_words"]()
    words = ["river", "build"]
    assert score("They build a house by the River.", words) == 1.0
    assert score('She said: "We build at the river!"', words) == 1.0
    for bad in (
        "They build by the rivers.",
        "They build. The river flows.",
        "They build by the river",
        "They build\nby the river.",
        "River build.",
        "",
    ):
        assert score(bad, words) == 0.0, bad


def test_few_words():
    score = BUILTIN["few_words"]()
    prompt = [{"role": "user", "content": "What is rain? Answer in fewer than ten words."}]
    assert score(prompt, "Water falling from clouds.") == 1.0
    for bad in (
        "",
        "...",
        "42",
        "Rain is rain.",
        "drop drop drop",
        "one two three four five six seven eight nine ten",
        "Water\nfalls",
    ):
        assert score(prompt, bad) == 0.0, bad
    assert score("What is rain?", "a b c d e f g h i") == 1.0


def test_math_kills_a_hang_and_goes_on():
    pytest.importorskip("math_verify")
    # math-verify 0.9 computes 9^(9^9) digit by digit: this one really never ends.
    completions = ["$\\frac{2}{4}$", "it is 0.25", "no expression", "$9^{9^{9}}$", "\\boxed{0.5}"]
    with Rewards([RewardConfig(name="math", timeout=2.0)]) as rewards:
        scored = rewards.score(["p"] * 5, completions, [[]] * 5, {"answer": ["1/2"] * 5})
    statuses = [row[0] for row in scored.statuses]
    assert statuses == ["ok", "ok", "ok", "timeout", "ok"]
    assert scored.values[[0, 1, 2, 4], 0].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_pattern_that_backtracks_for_ever_is_killed():
    config = RewardConfig(name="regex", options={"pattern": "(a+)+$"}, timeout=1.0)
    with Rewards([config]) as rewards:
        scored = rewards.score(["p"] * 3, ["caaa", "a" * 40 + "b", "b"], [[]] * 3, {})
    assert [row[0] for row in scored.statuses] == ["ok", "timeout", "ok"]
    assert scored.total[[0, 2]].tolist() == [1.0, 0.0]


def test_an_answer_that_math_verify_cannot_read_is_an_error():
    pytest.importorskip("math_verify")
    with Rewards([RewardConfig(name="math")]) as rewards:
        scored = rewards.score(["p"], ["5"], [[]], {"answer": [""]})
    assert scored.statuses == [["error"]] and "no mathematical expression" in scored.errors[0]


def test_reasoning_gym_scores_by_the_entry():
    pytest.importorskip("reasoning_gym")
    entry = {"question": "2 + 2 =", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}
    config = RewardConfig(name="reasoning_gym", options={"tag": "answer"})
    with Rewards([RewardConfig(name="reasoning_gym", label="plain"), config]) as rewards:
        scored = rewards.score(["p"] * 3, [" 4\n", "5", "<answer>4</answer>"], [[]] * 3, {"entry": [entry] * 3})
    # chain_sum itself gives len(answer) / len(text) to a text that contains the answer.
    assert scored.values.tolist() == [[1.0, 0.0], [0.0, 0.0], [pytest.approx(1 / 18), 1.0]]


def test_the_worker_starts_without_torch(tmp_path):
    folder = Path(gspo.rewards.__file__).parent
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('c', {str(folder / 'calling.py')!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['c'] = module; spec.loader.exec_module(module)\n"
        f"for name in ('math', 'regex', 'reasoning_gym'):\n"
        f"    module.load_function({str(folder)!r} + f'/{{name}}.py:{{name}}', append_folder=False)\n"
        "print([m for m in ('torch', 'gspo', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
