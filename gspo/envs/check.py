"""Whether an environment keeps the protocol of gspo/envs/base.py, law by law, in plain words.

    report = check_env(MyEnv, rows[:3], actions=["move left", "stop"])
    print(report)
    assert report.ok

Every call is made as a run makes it (gspo/envs/calls.py) and none is waited for longer than `timeout`. After a call
that hangs nothing more is called: what was not checked counts as not passed. A law that builds on a broken one is not
checked either. Not proved: that nothing is shared which shows under parallel calls only, nor anything of other actions.
"""

import copy
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gspo.envs.base import Action, EnvFactory, Evaluates, Forks, Observation, Scores
from gspo.envs.calls import Called, Calls
from gspo.tasks.base import Row

ACTIONS = ("1", "0", "a")
"""What is said, over and over, where the caller gives no actions."""
SOME_TURNS = 4
"""Turns that laws play, unless there are more actions; only the law `ends` plays on to max_turns."""
ANY_TEXT = (
    *(
        "",
        " ",
        "\n\n",
        "x" * 100_000,
        "9" * 5_000,
        "-1",
        "nan",
        "{",
        '{"name": 1}',
        "<tool_call>",
        "</think>",
        "```\n```",
    ),
    *("\x00\x1b[0m", "\ufffd", "\u0661\u0662\u0663", "\U0001f916" * 100, "=" * 1_000, "((((((((" * 1_000),
)
"""What a policy says that has learned nothing yet."""


@runtime_checkable
class Endless(Protocol):
    """Says of itself, by an attribute that is true, that only a run's limit on turns ends it."""

    is_endless: bool


@dataclass(frozen=True, kw_only=True)
class Finding:
    law: str
    passed: bool
    sentence: str
    """What was proved, or what was wrong, with its value, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One finding per law; prints as a list."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.passed for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(f"{'ok    ' if f.passed else 'BROKEN'}  {f.law:<10}  {f.sentence}" for f in self.findings)


def check_env(
    factory: EnvFactory,
    rows: Sequence[Row],
    *,
    max_turns: int = 32,
    timeout: float = 10.0,
    actions: Sequence[str] | None = None,
) -> Report:
    """Proves the laws of an environment on some rows, which are of the user's own kind. Give `actions` that make sense
    to the environment (they are said one after the other, over and over), so that more than its refusals are seen."""
    if not rows:
        raise ValueError("check_env needs at least one row to make environments of")
    if max_turns < 1 or not timeout > 0 or (actions is not None and not actions):
        raise ValueError(f"max_turns = {max_turns}, timeout = {timeout}, actions = {actions}: none may be 0 or empty")
    texts = tuple(ACTIONS if actions is None else actions)
    with Calls() as calls:
        bench = _Bench(factory=factory, calls=calls, timeout=timeout, max_turns=max_turns, texts=texts)
        findings: dict[str, Finding] = {}
        for law in LAWS:
            findings[law] = _finding(bench, law, rows, findings)
    slowest = f"the slowest of all calls, {bench.slowest[0]}, took {bench.slowest[1]:.3f} s of {timeout:g} s"
    time = Finding(law="time", passed=not bench.hang, sentence=bench.hang or slowest)
    return Report(findings=(*findings.values(), time))


def _finding(bench: "_Bench", law: str, rows: Sequence[Row], before: Mapping[str, Finding]) -> Finding:
    broken = [name for name in NEEDS.get(law, ()) if not before[name].passed]
    if bench.hang or broken:
        why = "a call hung" if bench.hang else f"it builds on `{broken[0]}`, which is broken"
        return Finding(law=law, passed=False, sentence=f"not checked: {why}")
    sentence = ""
    for number, row in enumerate(rows):
        try:
            sentence = LAWS[law](bench, row)
        except _Broken as broke:
            return Finding(law=law, passed=False, sentence=f"row {number}: {broke}")
        finally:
            bench.close_all()
    return Finding(law=law, passed=True, sentence=sentence)


# ---- the bench on which environments are played


class _Broken(Exception):
    """A law does not hold; says why."""


@dataclass(kw_only=True)
class _Bench:
    factory: EnvFactory
    calls: Calls
    timeout: float
    max_turns: int
    texts: tuple[str, ...]
    hang: str = ""
    """What did not return in time."""
    slowest: tuple[str, float] = ("none", 0.0)
    opened: list["_Played"] = field(default_factory=list)

    def attempt(self, what: str, function: Callable[[], Any]) -> Called:
        """What became of a call. A hang is noted, for every law after it."""
        called = self.calls.together([function], self.timeout)[0]
        if called.seconds > self.slowest[1]:
            self.slowest = (what, called.seconds)
        if called.status == "timeout":
            self.hang = (
                f"{what} had not returned after {self.timeout:g} s; give what it waits for a deadline of its own"
            )
        return called

    def call(self, what: str, function: Callable[[], Any], remedy: str = "") -> Any:
        """The result of a call; what it raises, and a hang, breaks the law that is being checked."""
        called = self.attempt(what, function)
        if called.status == "timeout":
            raise _Broken(self.hang)
        if called.status == "error":
            raise _Broken(f"{what} raised {called.message}" + f"; {remedy}" * bool(remedy))
        return called.value

    def make(self, row: Row, seed: int = 0) -> "_Played":
        made = self.call(f"factory(row, {seed})", lambda: self.factory(row, seed))
        played = _Played(bench=self, env=made)
        self.opened.append(played)
        return played

    def text(self, turn: int) -> str:
        return self.texts[turn % len(self.texts)]

    @property
    def some_turns(self) -> int:
        return min(self.max_turns, max(SOME_TURNS, len(self.texts)))

    def transcript(self, row: Row, seed: int = 0) -> list[Observation]:
        """What a fresh environment says: at its start, and to the first few actions."""
        played = self.make(row, seed)
        start = played.start()
        said = [start, *played.rest(self.some_turns)]
        played.close()
        return said

    def close_all(self) -> None:
        for played in self.opened:
            played.close()
        self.opened.clear()


@dataclass(kw_only=True)
class _Played:
    """An environment under its checks: every observation is looked at as it comes."""

    bench: _Bench
    env: Any
    turn: int = 0
    is_over: bool = False
    is_closed: bool = False

    def start(self) -> Observation:
        return _checked(self.bench.call("start()", self.env.start), "start()")

    def step(self, text: str) -> Observation:
        what = f"step({_short(text)}) on turn {self.turn}"
        remedy = "a policy says anything: answer with an Observation that says what was wrong"
        action = Action(text=text, turn=self.turn)
        observation = _checked(self.bench.call(what, lambda: self.env.step(action), remedy), what)
        self.turn += 1
        self.is_over = observation.is_done or observation.is_truncated
        return observation

    def rest(self, until: int) -> list[Observation]:
        """Steps with the bench's actions to the end of the episode, or to turn `until`."""
        said = []
        while not self.is_over and self.turn < until:
            said.append(self.step(self.bench.text(self.turn)))
        return said

    def evaluate(self, text: str) -> Observation:
        what = f"evaluate({_short(text)}) on turn {self.turn}"
        action = Action(text=text, turn=self.turn)
        return _checked(self.bench.call(what, lambda: self.env.evaluate(action)), what)

    def fork(self) -> "_Played":
        forked = self.bench.call("fork()", self.env.fork)
        _check_methods(forked, "fork()")
        played = _Played(bench=self.bench, env=forked, turn=self.turn, is_over=self.is_over)
        self.bench.opened.append(played)
        return played

    def close(self) -> None:
        """Closes once; what that raises is the business of the law `close` alone."""
        if not self.is_closed and not self.bench.hang:
            self.is_closed = True
            self.bench.attempt("close()", lambda: self.env.close())


def _short(value: object) -> str:
    """A value as messages show it, on one line."""
    if isinstance(value, str) and len(value) > 30:
        return f"{value[:20]!r}... of {len(value):,} characters"
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 80 else shown[:80] + "..."


# ---- what an observation may be


def _checked(value: Any, what: str) -> Observation:
    if not isinstance(value, Observation):
        raise _Broken(f"{what} gave {_short(value)} ({type(value).__name__}); return a gspo.envs.Observation")
    for name in ("is_done", "is_truncated", "rewrites"):
        if type(getattr(value, name)) is not bool:
            raise _Broken(f"{what} gave {name} = {_short(getattr(value, name))}; it must be True or False")
    _check_content(value, what)
    if value.reward is not None and not _is_finite(value.reward):
        raise _Broken(
            f"{what} gave reward = {_short(value.reward)}; give a finite number, or None where the turn has none"
        )
    if not isinstance(value.facts, dict):
        raise _Broken(f"{what} gave facts = {_short(value.facts)}; give a dict of names and finite numbers")
    for name, fact in value.facts.items():
        if not isinstance(name, str) or not _is_finite(fact):
            raise _Broken(f"{what} gave the fact {name!r} = {_short(fact)}; metrics are finite numbers under names")
    _check_tools(value, what)
    return value


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_content(value: Observation, what: str) -> None:
    if isinstance(value.content, str):
        if value.rewrites:
            raise _Broken(f"{what} rewrites the conversation with a text; give the whole conversation as messages")
        return
    if not isinstance(value.content, list):
        raise _Broken(f"{what} gave content = {_short(value.content)}; give a text or a list of messages")
    for message in value.content:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise _Broken(
                f'{what} gave the message {_short(message)}; a message is {{"role": "user", "content": "..."}}'
            )


def _check_tools(value: Observation, what: str) -> None:
    if not isinstance(value.tools, tuple) or (value.tools and not what.startswith("start")):
        raise _Broken(
            f"{what} gave tools = {_short(value.tools)}; tools are a tuple of JSON schemas, and come from start only"
        )
    for tool in value.tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        described = isinstance(function, dict) and isinstance(function.get("name"), str)
        if not described or not isinstance(function.get("parameters"), dict) or not _is_json(tool):
            raise _Broken(
                f'{what} gave the tool {_short(tool)}; a tool is {{"type": "function", "function": {{"name": ..., '
                '"description": ..., "parameters": {"type": "object", "properties": {...}}}}'
            )


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_methods(env: Any, what: str) -> None:
    for name in ("start", "step", "close"):
        if not callable(getattr(env, name, None)):
            raise _Broken(f"{what} gave {type(env).__name__}, which has no method {name}; an environment has all three")


def _check_same(found: Sequence[Observation], wanted: Sequence[Observation], remedy: str) -> None:
    """Compares two transcripts observation by observation."""
    for number, (a, b) in enumerate(zip(found, wanted, strict=False)):
        names = [name for name in vars(a) if not _is_same(vars(a)[name], vars(b)[name])]
        if names:
            where = "at the start" if number == 0 else f"to action {number}"
            now, then = (_short(vars(observation)[names[0]]) for observation in (a, b))
            raise _Broken(f"{where} its {names[0]} was {now} and should have been {then}; {remedy}")
    if len(found) != len(wanted):
        raise _Broken(f"it ended after {len(found) - 1} actions and should have after {len(wanted) - 1}; {remedy}")


def _is_same(a: Any, b: Any) -> bool:
    """Equality of what rows and observations hold, where NaN and arrays are equal to themselves."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _is_same(a.tolist(), b.tolist())
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return a is b or bool(np.all(a == b))


# ---- the laws, each on one row: a sentence that says what held, or _Broken


def _factory(bench: _Bench, row: Row) -> str:
    try:
        inspect.signature(bench.factory).bind(row, 0)
    except TypeError as error:
        raise _Broken(f"the factory does not take (row, seed): {error}; write def factory(row, seed)") from None
    _check_methods(bench.make(row).env, "the factory")
    return "factory(row, seed) makes something with start, step and close"


def _start(bench: _Bench, row: Row) -> str:
    said = bench.make(row).start()
    if said.is_done or said.is_truncated:
        raise _Broken("start() says that the episode is over; say so from step, or leave such rows out of the data")
    if said.reward is not None:
        raise _Broken(f"start() gave reward = {said.reward}; nothing has been done yet: give rewards from step")
    if said.content == "" and not row.get("prompt"):
        raise _Broken(
            "start() says nothing and the row has no prompt; say the task in content, or give a column prompt"
        )
    return "start() says the task, or leaves it to the row's prompt"


def _step(bench: _Bench, row: Row) -> str:
    bench.transcript(row)
    return "step() answers with observations of the right types"


def _row(bench: _Bench, row: Row) -> str:
    own = copy.deepcopy(row)
    bench.transcript(own)
    changed = [n for n in {**row, **own} if n not in row or n not in own or not _is_same(row[n], own[n])]
    if changed:
        raise _Broken(f"it changed column {changed[0]!r} of its row, which its brothers read too; copy what you change")
    return "the row is left as it was"


def _ends(bench: _Bench, row: Row) -> str:
    played = bench.make(row)
    played.start()
    played.rest(bench.max_turns)
    if played.is_over:
        return f"the episode ended, after {played.turn} turns at the last row"
    if isinstance(played.env, Endless) and played.env.is_endless is True:
        return f"it says of itself that it is endless, and went on for {bench.max_turns} turns"
    raise _Broken(
        f"the episode had not ended after {bench.max_turns} turns; say is_done=True in the end, give check_env more "
        "max_turns, or set is_endless = True on the environment if only a run's limit is to end it"
    )


def _replay(bench: _Bench, row: Row) -> str:
    remedy = "draw random numbers from a generator made of the seed, and keep clocks and ids out of what it says"
    for seed in (0, 1):
        _check_same(bench.transcript(row, seed), bench.transcript(row, seed), remedy)
    return "the same row and seed begin alike and answer the same actions alike"


def _brothers(bench: _Bench, row: Row) -> str:
    wanted = bench.transcript(row)
    one, other = bench.make(row), bench.make(row)
    one.start()
    said = [other.start()]
    one.rest(bench.some_turns)
    one.close()
    said += other.rest(bench.some_turns)
    _check_same(said, wanted, "a brother's steps changed it: keep state in self, not in the class, module or row")
    return "stepping and closing one leaves its brother as it was"


def _single_use(bench: _Bench, row: Row) -> str:
    wanted = bench.transcript(row)
    for turns in range(min(2, len(wanted) - 1)):
        played = bench.make(row)
        said = [played.start(), *played.rest(turns)]
        again = bench.attempt("a second start()", played.env.start)
        if again.status == "timeout":
            raise _Broken(bench.hang)
        if again.status == "ok":
            said += played.rest(bench.some_turns)
            _check_same(said, wanted, "a second start() began it anew: an environment serves one rollout; let it raise")
    return "a second start() raises, or changes nothing: one environment, one rollout"


def _any_text(bench: _Bench, row: Row) -> str:
    for text in ANY_TEXT:
        played = bench.make(row)
        played.start()
        played.step(text)
        played.close()
    patient = bench.make(row)
    patient.start()
    for text in ANY_TEXT[: bench.max_turns]:
        if not patient.is_over:
            patient.step(text)
    return f"{len(ANY_TEXT)} texts that no one expects are answered with an Observation"


def _fork(bench: _Bench, row: Row) -> str:
    wanted = bench.transcript(row)
    if not isinstance(bench.make(row).env, Forks):
        return "it has no fork: nothing to check"
    for turns in range(min(2, len(wanted) - 1)):
        played = bench.make(row)
        said = [played.start(), *played.rest(turns)]
        astray, twin = played.fork(), played.fork()
        while not astray.is_over and astray.turn < bench.some_turns:
            astray.step(bench.text(astray.turn + 1))
        astray.close()
        copied = list(said)
        said += played.rest(bench.some_turns)
        _check_same(said, wanted, "stepping a fork moved the original: copy in fork() what steps change")
        copied += twin.rest(bench.some_turns)
        _check_same(copied, wanted, "a fork must answer as the original would: copy all of the state in fork()")
    return "forks answer as the original would, and leave it as it was"


def _evaluate(bench: _Bench, row: Row) -> str:
    wanted = bench.transcript(row)
    played = bench.make(row)
    if not isinstance(played.env, Evaluates):
        return "it has no evaluate: nothing to check"
    said = [played.start()]
    while not played.is_over and played.turn < bench.some_turns:
        text = bench.text(played.turn)
        first, _, second = played.evaluate(text), played.evaluate(bench.text(played.turn + 1)), played.evaluate(text)
        _check_same([*said, second], [*said, first], "evaluate() twice must say the same: let it change nothing")
        said.append(played.step(text))
        _check_same(said, [*said[:-1], first], "step() must give what evaluate() said it would")
    _check_same(said, wanted, "evaluate() moved the episode: let it change nothing")
    return "evaluate() says what step() then gives, and moves nothing"


def _score(bench: _Bench, row: Row) -> str:
    played = bench.make(row)
    if not isinstance(played.env, Scores):
        return "it has no score: nothing to check"
    played.start()
    played.rest(bench.max_turns)
    score = bench.call("score()", played.env.score)
    if score is not None and not _is_finite(score):
        raise _Broken(f"score() gave {_short(score)}; give a finite number, or None where the episode has none")
    return "score() is None or a finite number"


def _close(bench: _Bench, row: Row) -> str:
    unplayed, played = bench.make(row), bench.make(row)
    for environment, turns in ((unplayed, 0), (played, bench.some_turns)):
        environment.start()
        environment.rest(turns)
        environment.is_closed = True
        bench.call(f"close() after {environment.turn} turns", environment.env.close)
    return "close() raises nothing, in the middle of an episode or at its end"


LAWS: dict[str, Callable[[_Bench, Row], str]] = {
    "factory": _factory,
    "start": _start,
    "step": _step,
    "close": _close,
    "row": _row,
    "replay": _replay,
    "brothers": _brothers,
    "single use": _single_use,
    "any text": _any_text,
    "ends": _ends,
    "fork": _fork,
    "evaluate": _evaluate,
    "score": _score,
}
"""In the order in which they are checked; `time` is the last, and comes from all calls."""

PLAYED = ("factory", "start", "step")
NEEDS: dict[str, tuple[str, ...]] = {
    "start": ("factory",),
    "step": ("factory", "start"),
    **dict.fromkeys(("close", "row", "replay", "any text", "ends", "score"), PLAYED),
    **dict.fromkeys(("brothers", "single use", "fork", "evaluate"), (*PLAYED, "replay")),
}
"""Laws that a law builds on."""
