"""Each law of check_env holds for environments that keep it, and breaks on one that was made to break it."""

import asyncio
import copy
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest

from gspo.envs import Action, Observation
from gspo.envs.check import LAWS, check_env

ROWS = [{"prompt": "count", "target": 3, "tags": ["a"]}, {"prompt": "count", "target": 2, "tags": []}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


class Counter:
    """Adds up the numbers it is told; over after `target` turns. Keeps every law, and has every ability."""

    def __init__(self, row, seed):
        self.row, self.seed, self.turn, self.total = row, seed, 0, 0

    def start(self):
        return Observation()

    def answer(self, action):
        number = int(action.text) if action.text in ("1", "2", "3") else 0
        total, turn = self.total + number, self.turn + 1
        is_done = turn == self.row["target"]
        return Observation(content=f"sum {total}", reward=float(number), is_done=is_done, facts={"sum": total}), total

    def step(self, action):
        observation, self.total = self.answer(action)
        self.turn += 1
        return observation

    def evaluate(self, action):
        return self.answer(action)[0]

    def fork(self):
        return copy.copy(self)

    def score(self):
        return float(self.total)

    def close(self):
        pass


def check(factory, rows=ROWS, **options):
    return check_env(factory, rows, **{"actions": ["1", "2"], "timeout": 5.0, **options})


def broken(report):
    """Laws that are broken, without those that were not checked."""
    return {f.law: f.sentence for f in report.findings if not f.passed and not f.sentence.startswith("not checked")}


# ---- good ones


class Bare:
    """No more than the three methods; ends at once; says the task itself; messages and a tool."""

    def __init__(self, row, seed):
        self.number = random.Random(seed).randrange(10)

    def start(self):
        return Observation(content=[{"role": "user", "content": f"say {self.number}"}], tools=(TOOL,))

    def step(self, action):
        return Observation(reward=np.float32(action.text == str(self.number)), is_truncated=True)

    def close(self):
        pass


class Coroutines(Counter):
    async def start(self):
        await asyncio.sleep(0)
        return Observation()

    async def step(self, action):
        await asyncio.sleep(0)
        return Counter.step(self, action)

    async def close(self):
        pass


class RefusesSecondStart(Counter):
    has_started = False

    def start(self):
        if self.has_started:
            raise RuntimeError("this environment has been used")
        self.has_started = True
        return Observation()


class Forever(Bare):
    is_endless = True

    def step(self, action):
        return Observation(content="go on")


@pytest.mark.parametrize("factory", [Counter, Bare, Coroutines, RefusesSecondStart, Forever])
def test_good_ones_pass(factory):
    report = check(factory, rows=ROWS if factory is not Bare else [{}])
    assert report.ok, str(report)
    assert [finding.law for finding in report.findings] == [*LAWS, "time"]
    assert all(finding.sentence for finding in report.findings)


def test_what_it_lacks_is_said():
    said = {finding.law: finding.sentence for finding in check(Bare).findings}
    assert all(said[law].endswith("nothing to check") for law in ("fork", "evaluate", "score"))
    assert "endless" in {f.law: f.sentence for f in check(Forever).findings}["ends"]
    assert str(check(Bare)).count("\nok") == len(LAWS)


# ---- bad ones


def answers(**changes):
    """A counter whose answers to actions are changed."""

    class Changed(Counter):
        def answer(self, action):
            observation, total = Counter.answer(self, action)
            return replace(observation, **changes), total

    return Changed


def begins(**fields):
    class Changed(Counter):
        def start(self):
            return Observation(**fields)

    return Changed


class NoClose:
    def __init__(self, row, seed):
        pass

    def start(self):
        return Observation()

    def step(self, action):
        return Observation(is_done=True)


class TupleOfGym(Counter):
    def step(self, action):
        return "sum", 0.0, True, False, {}


class ClosesBadly(Counter):
    def close(self):
        raise OSError("no such container")


class ChangesRow(Counter):
    def step(self, action):
        self.row["tags"].append(action.text)
        return Counter.step(self, action)


class Dice(Counter):
    def answer(self, action):
        observation, total = Counter.answer(self, action)
        return replace(observation, content=f"dice {random.random()}"), total


class SharesTotal:
    totals = [0]  # noqa: RUF012

    def __init__(self, row, seed):
        self.totals[0] = self.turn = 0

    def start(self):
        return Observation()

    def step(self, action):
        self.turn += 1
        self.totals[0] += 1
        return Observation(content=f"{self.totals[0]}", is_done=self.turn == 3)

    def close(self):
        pass


class StartsAnew(Counter):
    def start(self):
        self.turn = self.total = 0
        return Observation()


class WantsNumbers(Counter):
    def answer(self, action):
        int(action.text)
        return Counter.answer(self, action)


class NeverEnds(Counter):
    def answer(self, action):
        observation, total = Counter.answer(self, action)
        return replace(observation, is_done=False), total


class ForksItself(Counter):
    def fork(self):
        return self


class ForksShallowly(Counter):
    def __init__(self, row, seed):
        Counter.__init__(self, row, seed)
        self.said = []

    def answer(self, action):
        observation, total = Counter.answer(self, action)
        return replace(observation, content=f"{len(self.said)} said"), total

    def step(self, action):
        observation = Counter.step(self, action)
        self.said.append(action.text)
        return observation

    def fork(self):
        return copy.copy(self)


class ForksHalf(Counter):
    def fork(self):
        return Counter(self.row, self.seed)


class EvaluatesByDoing(Counter):
    def evaluate(self, action):
        return self.step(action)


class EvaluatesOtherwise(Counter):
    def evaluate(self, action):
        return replace(self.answer(action)[0], reward=0.5)


class ScoresNothing(Counter):
    def score(self):
        return math.nan


BROKEN = [
    ("factory", lambda row: Counter(row, 0), "does not take (row, seed)"),
    ("factory", lambda row, seed: {}["x"], "raised KeyError"),
    ("factory", NoClose, "NoClose, which has no method close"),
    ("start", begins(content=None), "content = None"),
    ("start", begins(content=["hello"]), "the message 'hello'"),
    ("start", begins(is_done=True), "is over"),
    ("start", begins(reward=0.0), "reward = 0.0"),
    ("start", begins(tools=[TOOL]), "tuple of JSON schemas"),
    ("start", begins(tools=({"name": "add"},)), "a tool is"),
    ("start", begins(tools=({"function": {"name": "f", "parameters": {"x": object()}}},)), "a tool is"),
    ("step", TupleOfGym, "(tuple); return a gspo.envs.Observation"),
    ("step", answers(reward=math.nan), "reward = nan"),
    ("step", answers(reward=True), "reward = True"),
    ("step", answers(reward="1"), "reward = '1'"),
    ("step", answers(is_done=1), "is_done = 1"),
    ("step", answers(facts={"sum": math.inf}), "the fact 'sum' = inf"),
    ("step", answers(facts=None), "facts = None"),
    ("step", answers(rewrites=True), "as messages"),
    ("step", answers(tools=(TOOL,)), "come from start only"),
    ("close", ClosesBadly, "raised OSError: no such container"),
    ("row", ChangesRow, "changed column 'tags'"),
    ("replay", Dice, "its content was 'dice"),
    ("brothers", SharesTotal, "keep state in self"),
    ("single use", StartsAnew, "a second start() began it anew"),
    ("any text", WantsNumbers, "step('') on turn 0 raised ValueError"),
    ("ends", NeverEnds, "had not ended after 32 turns"),
    ("fork", ForksItself, "stepping a fork moved the original"),
    ("fork", ForksShallowly, "stepping a fork moved the original"),
    ("fork", ForksHalf, "copy all of the state"),
    ("evaluate", EvaluatesByDoing, "change nothing"),
    ("evaluate", EvaluatesOtherwise, "its reward was 1.0 and should have been 0.5; step() must give"),
    ("score", ScoresNothing, "score() gave nan"),
]


@pytest.mark.parametrize(("law", "factory", "message"), BROKEN)
def test_each_law_is_broken_by_its_defect(law, factory, message):
    report = check(factory, rows=[{"prompt": "count", "target": 3, "tags": ["a"]}])
    assert not report.ok
    assert list(broken(report)) == [law], str(report)
    assert message in broken(report)[law]
    assert "\n" not in broken(report)[law]


def test_every_law_has_a_defect():
    assert {law for law, *_ in BROKEN} == set(LAWS)


def test_a_row_that_says_nothing_needs_a_start_that_does():
    assert "the row has no prompt" in broken(check(Counter, rows=[{"target": 2}]))["start"]


def test_the_defect_of_one_row_is_named():
    class FailsOnSecond(Counter):
        def step(self, action):
            return Counter.step(self, action) if self.row["target"] == 3 else None

    assert broken(check(FailsOnSecond))["step"].startswith("row 1: step('1') on turn 0 gave None (NoneType)")


def hangs(where, wait):
    class Hanging(Counter):
        pass

    def method(self, *arguments):
        return wait()

    setattr(Hanging, where, method)
    return Hanging


@pytest.mark.parametrize("where", ["start", "step", "close", "fork", "evaluate", "score"])
@pytest.mark.parametrize("wait", [lambda: time.sleep(3), lambda: asyncio.sleep(3)], ids=["thread", "coroutine"])
def test_a_hang_is_reported_and_not_suffered(where, wait):
    began = time.perf_counter()
    report = check(hangs(where, wait), timeout=0.2)
    assert time.perf_counter() - began < 2.5
    assert f"{where}(" in broken(report)["time"] and "had not returned after 0.2 s" in broken(report)["time"]
    assert not report.findings[-1].passed
    after = [f.law for f in report.findings if f.sentence.startswith("not checked: a call hung")]
    assert after or where == "score"


def test_laws_that_build_on_a_broken_one_are_not_taken_for_proved():
    report = check(Dice)
    unchecked = {f.law for f in report.findings if "it builds on `replay`" in f.sentence}
    assert unchecked == {"brothers", "single use", "fork", "evaluate"}
    assert not any(f.passed for f in report.findings if f.law in unchecked)


def test_turns_and_texts_of_actions_arrive():
    heard = []

    class Listens(Counter):
        def step(self, action):
            heard.append(action)
            return Counter.step(self, action)

    assert check(Listens, actions=["3", "1"]).ok
    assert [Action(text=text, turn=turn) for turn, text in enumerate(["3", "1", "3"])] == heard[:3]


def test_observations_with_arrays_are_compared():
    class Sees(Counter):
        def step(self, action):
            content = [{"role": "user", "content": [{"type": "image", "image": np.eye(3) * self.turn}]}]
            return replace(Counter.step(self, action), content=content)

    class SeesNoise(Sees):
        def step(self, action):
            content = [{"role": "user", "content": [{"type": "image", "image": np.random.rand(3)}]}]
            return replace(Counter.step(self, action), content=content)

    rows = [{"prompt": "look", "target": 2, "pixels": np.array([1.0, math.nan])}]
    for kind in (Sees, SeesNoise):
        kind.evaluate = kind.fork = None
    assert check(Sees, rows=rows).ok
    assert list(broken(check(SeesNoise, rows=rows))) == ["replay"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rows": []}, "at least one row"), ({"max_turns": 0}, "max_turns = 0"), ({"actions": []}, "actions = []")],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        check(Counter, **options)
