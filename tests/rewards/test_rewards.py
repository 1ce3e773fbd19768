import asyncio
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gspo.rewards import RewardConfig, RewardFailure, Rewards, check_failures, load_function
from gspo.rewards.base import FAILED, weighted_total

FILE = Path(__file__).with_name("rewards_of_a_user.py")


def of_user(name, **fields):
    return RewardConfig(function=f"{FILE}:{name}", **fields)


def score(rewards, completions, prompts=None, **columns):
    """Scores with prompts "p0", "p1", ... and one token id per character."""
    prompts = prompts or [f"p{i}" for i in range(len(completions))]
    with Rewards(rewards) as r:
        return r.score(prompts, completions, [list(range(len(c))) for c in completions], columns)


def column(scored, k=0):
    return [row[k] for row in scored.statuses]


# ---- signatures


def test_a_batch_function_gets_what_it_asks_for_by_keyword():
    seen = {}

    def reward(prompts, completions, completion_ids, level, **rest):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, level=level, rest=rest)
        return [1, True]

    scored = score([reward], ["a", "bc"], level=[3, 4], other=["u", "v"])
    assert scored.values[:, 0].tolist() == [1.0, 1.0]
    assert seen == {
        "prompts": ["p0", "p1"],
        "completions": ["a", "bc"],
        "ids": [[0], [0, 1]],
        "level": [3, 4],
        "rest": {"other": ["u", "v"]},
    }


def test_columns_a_function_does_not_name_are_not_passed():
    assert score([lambda completions: [0.0]], ["a"], other=["u"]).values.tolist() == [[0.0]]


def test_completions_are_messages_where_the_prompt_is():
    def reward(completions):
        return [float(c == "a" or c == [{"role": "assistant", "content": "a"}]) for c in completions]

    prompts = ["text", [{"role": "user", "content": "hi"}]]
    assert score([reward], ["a", "a"], prompts).total.tolist() == [1.0, 1.0]


def test_a_row_function_gets_text_and_the_rows_values():
    def reward(prompt, completion, **row):
        return float(prompt[0]["content"] == "hi" and completion == row["answer"])

    assert score([reward], ["a"], [[{"role": "user", "content": "hi"}]], answer=["a"]).total.tolist() == [1.0]


@pytest.mark.parametrize(
    "columns",
    [
        {"ground_truth": ["1", "2"]},
        {"reward_model": [{"ground_truth": "1"}, {"ground_truth": "2"}]},
        {"answer": ["1", "2"]},
    ],
)
def test_verl_signature_finds_the_ground_truth(columns):
    scored = score([of_user("compute_score")], ["1", "1"], data_source=["d", "d"], **columns)
    assert scored.values[:, 0].tolist() == [1.0, 0.0]


def test_async_functions_wait_together():
    async def slow(completions):
        await asyncio.sleep(0.3)
        return [1.0] * len(completions)

    async def slow_row(completion):
        await asyncio.sleep(0.3)
        return 2.0

    start = time.monotonic()
    scored = score([slow, slow_row], ["a"] * 10)
    assert time.monotonic() - start < 1.5
    assert scored.total.tolist() == [3.0] * 10


def test_scoring_inside_a_running_loop():
    async def reward(completion):
        return 1.0

    async def collector():
        return score([reward], ["a"])

    assert asyncio.run(collector()).total.tolist() == [1.0]


def test_a_callable_object_is_a_reward():
    class Judge:
        async def __call__(self, completions, **columns):
            return [0.25]

    scored = score([Judge()], ["a"])
    assert scored.names == ("Judge",) and scored.total.tolist() == [0.25]


def test_several_rewards_are_weighted():
    rewards = [RewardConfig(name="exact", weight=2.0), RewardConfig(name="length", options={"max_tokens": 2})]
    scored = score(rewards, ["abc", "x"], answer=["abc", "abc"])
    assert scored.names == ("exact", "length")
    assert scored.values.tolist() == [[1.0, -0.5], [0.0, 0.0]]
    assert scored.total.tolist() == [1.5, 0.0]


# ---- failures


def test_only_the_rows_that_raise_are_lost():
    scored = score([of_user("some_rows_raise")], ["ab", "", "abcd"], answer=["", "", ""])
    assert column(scored) == ["ok", "error", "ok"]
    assert scored.values[[0, 2], 0].tolist() == [0.5, 0.25]
    assert math.isnan(scored.total[1])
    (error,) = scored.errors
    assert "some_rows_raise: ZeroDivisionError" in error and "rewards_of_a_user.py:14" in error and "'p1'" in error


def test_a_function_object_that_raises_on_some_rows():
    def reward(completions):
        return [float(c) for c in completions]

    scored = score([reward], ["1", "one", "3"])
    assert column(scored) == ["ok", "error", "ok"] and scored.values[2, 0] == 3.0


def test_a_row_function_that_exits_is_an_error():
    def reward(completion):
        raise SystemExit(3)

    assert column(score([reward], ["1", "2"])) == ["error", "error"]


def test_none_nan_inf_and_text_are_not_zero():
    values = {"none": None, "nan": math.nan, "inf": math.inf, "text": "1.0", "list": [1.0], "dict": {"acc": 1}}

    def reward(completion):
        return values[completion]

    scored = score([reward], list(values))
    assert column(scored) == ["none", "nan", "nan", "error", "error", "error"]
    assert np.isnan(scored.total).all() and np.isnan(scored.values).all()


def test_a_part_that_does_not_apply_is_left_out():
    def maybe(completion):
        return None if completion == "a" else 1.0

    scored = score([maybe, RewardConfig(name="exact")], ["a", "b"], answer=["a", "c"])
    assert scored.total.tolist() == [1.0, 1.0] and column(scored) == ["none", "ok"]


def test_a_wrong_count_is_an_error_for_the_batch():
    scored = score([lambda completions: [1.0]], ["a", "b", "c"])
    assert column(scored) == ["error"] * 3
    assert "returned 1 scores for 3 completions" in scored.errors[0]
    assert "not a list" in score([lambda completions: 1.0], ["a", "b"]).errors[0]


def test_a_thread_that_hangs_is_given_up(monkeypatch):
    def reward(completion):
        time.sleep(3 if completion == "x" else 0)
        return 1.0

    with Rewards([reward]) as rewards:
        object.__setattr__(rewards._parts[0], "timeout", 0.3)
        scored = rewards.score(["p"] * 3, ["a", "x", "b"], [[]] * 3, {})
    assert column(scored) == ["ok", "timeout", "timeout"]
    assert "no score within 0.3 s" in scored.errors[0]


def test_a_hanging_row_is_killed_and_the_others_scored():
    with Rewards([of_user("hangs_on_x", timeout=1.0)]) as rewards:
        first = rewards._parts[0].process._workers[0]._process
        scored = rewards.score(["p"] * 3, ["a", "x", "b"], [[]] * 3, {})
        assert column(scored) == ["ok", "timeout", "ok"]
        assert first.poll() == -9
        assert rewards.score(["p"], ["a"], [[]], {}).total.tolist() == [1.0]


def test_a_hanging_batch_times_out():
    assert column(score([of_user("batch_hangs", timeout=0.5)], ["a", "b"])) == ["timeout", "timeout"]


@pytest.mark.parametrize("in_file", [True, False])
def test_an_async_row_past_the_deadline(in_file):
    async def judge(completion):
        await asyncio.sleep(5 if completion == "x" else 0.01)
        return 0.5

    if in_file:
        scored = score([of_user("judge", timeout=0.5)], ["a", "x", "b"])
    else:
        with Rewards([judge]) as rewards:
            object.__setattr__(rewards._parts[0], "timeout", 0.3)
            scored = rewards.score(["p"] * 3, ["a", "x", "b"], [[]] * 3, {})
    assert column(scored) == ["ok", "timeout", "ok"]


def test_a_process_that_dies_is_an_error_and_comes_back():
    scored = score([of_user("dies")], ["a", "x", "b"])
    assert column(scored) == ["ok", "error", "ok"] and "exit code 7" in scored.errors[0]


def test_functions_from_files_run_in_a_main_thread_and_may_print():
    assert score([of_user("uses_alarm")], ["a"]).total.tolist() == [1.0]


def test_a_column_that_cannot_be_sent_to_a_process_is_an_error():
    scored = score([of_user("trl")], ["a"], answer=["a"], odd=[lambda: 0])
    assert column(scored) == ["error"] and "pickle" in scored.errors[0]


def test_a_worker_stuck_in_c_code_ends_with_the_run_that_started_it():
    code = (
        "from gspo.rewards import RewardConfig, Rewards\n"
        "rewards = Rewards([RewardConfig(name='regex', options={'pattern': '(a+)+$'})])\n"
        "print(rewards._parts[0].process._workers[0]._process.pid, flush=True)\n"
        "rewards.score(['p'], ['a' * 50 + 'b'], [[]], {})\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with run:
        worker = int(run.stdout.readline())
        time.sleep(0.5)
        run.kill()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    raise AssertionError("the worker outlived its run")


def test_workers_share_the_rows():
    with Rewards([of_user("per_row", workers=2, options={"bonus": 0.5})]) as rewards:
        texts = [str(i % 3) for i in range(20)]
        scored = rewards.score(texts, texts, [[]] * 20, {"answer": ["1"] * 20})
        assert scored.total.tolist() == [0.5 + (t == "1") for t in texts]
        pids = [w._process.pid for w in rewards._parts[0].process._workers]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_threshold():
    def reward(completion):
        return None if completion == "none" else float(completion)

    scored = score([RewardConfig(name="exact"), reward], ["1", "x", "none", "3"], answer=["1"] * 4)
    check_failures(scored, 0.25)
    with pytest.raises(RewardFailure, match=r"reward 'reward': 1 of 4 scores failed \(25.0%: 1 error\).*'p1'"):
        check_failures(scored, 0.2)


STATUS = st.sampled_from(["ok", "none", "error", "timeout", "nan"])
PART = st.tuples(STATUS, st.floats(-10, 10))


@given(st.integers(1, 4).flatmap(lambda k: st.lists(st.lists(PART, min_size=k, max_size=k), min_size=1)))
def test_total_is_the_sum_of_what_applies_or_nan(rows):
    statuses = [[status for status, _ in row] for row in rows]
    values = np.array([[value if status == "ok" else math.nan for status, value in row] for row in rows])
    weights = np.arange(1.0, values.shape[1] + 1)
    total = weighted_total(values, statuses, weights)
    for b, row in enumerate(statuses):
        if any(s in FAILED for s in row) or "ok" not in row:
            assert math.isnan(total[b])
        else:
            assert total[b] == pytest.approx(np.nansum(values[b] * weights), abs=1e-12)


def test_no_rows():
    scored = score([RewardConfig(name="exact")], [], answer=[])
    assert scored.values.shape == (0, 1) and scored.total.shape == (0,)
    check_failures(scored, 0.0)


# ---- mistakes of the user


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "exat"}, "did you mean exact"),
        ({"name": "numeric", "options": {"tolerence": 1}}, "did you mean tolerance"),
        ({"name": "regex"}, "'pattern' must be set"),
        ({"name": "regex", "options": {"pattern": "("}}, "not a regular expression"),
        ({"name": "length"}, "exactly one of target_tokens"),
        ({"name": "overlong", "options": {"max_tokens": 4, "buffer_tokens": 5}}, "buffer_tokens"),
        ({"name": "format", "options": {"template": "......<a>"}}, "twice in a row"),
        ({"function": f"{FILE}:per_row", "options": {"bonsu": 1}}, "did you mean bonus"),
        ({"function": f"{FILE}:per_rows"}, "did you mean per_row"),
    ],
)
def test_wrong_configurations_say_what_to_do(config, message):
    with pytest.raises(ValueError, match=message):
        Rewards([RewardConfig(**config)])


@pytest.mark.parametrize("fields", [{}, {"name": "exact", "function": "a.py:b"}])
def test_exactly_one_of_name_and_function(fields):
    with pytest.raises(ValueError, match="exactly one"):
        RewardConfig(**fields)


def test_a_missing_column_is_refused_at_once():
    with pytest.raises(ValueError, match=r"'exact' reads the column 'answer'.*columns: solution"):
        score([RewardConfig(name="exact")], ["a"], solution=["a"])


def test_two_rewards_of_one_name():
    with pytest.raises(ValueError, match="another label"):
        Rewards([RewardConfig(name="exact"), RewardConfig(name="exact")])
    with Rewards([RewardConfig(name="exact"), RewardConfig(name="exact", label="again")]) as rewards:
        assert rewards.names == ("exact", "again")


def test_no_reward_and_a_strange_signature():
    with pytest.raises(ValueError, match="no reward is configured"):
        Rewards([])
    with pytest.raises(ValueError, match="fit no known signature"):
        Rewards([lambda text: 1.0])


def test_load_function(tmp_path):
    good = tmp_path / "mine.py"
    good.write_text("from beside import VALUE\ndef reward(completion):\n    return VALUE\n")
    (tmp_path / "beside.py").write_text("VALUE = 4.0\n")
    assert load_function(f"{good}:reward")("x") == 4.0
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    for spec, message in [
        ("mine.py", "write path/to/file.py:function"),
        (f"{tmp_path}/mien.py:reward", "did you mean mine.py"),
        (f"{good}:rewrad", "did you mean reward"),
        (f"{tmp_path}/broken.py:f", r"ZeroDivisionError: division by zero \(.*broken.py:2\) while importing"),
        (f"{tmp_path}/syntax.py:f", r"syntax.py:2: SyntaxError"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            load_function(spec)
        assert "\n" not in str(caught.value)
        if ":" in spec:
            with pytest.raises(ValueError, match=message):
                Rewards([RewardConfig(function=spec)])
