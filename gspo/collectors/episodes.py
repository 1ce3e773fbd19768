"""Groups of whole episodes: the policy and an environment take turns until one of them ends it, or a limit does.

All episodes of a wave move in step: every round samples one turn of all that go on, together, then lets their
environments answer side by side. What is sampled with what is then a function of the data and of what was said, never
of how fast an environment was; the price is that a round is as slow as its slowest environment.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from gspo.collectors.base import Facts
from gspo.collectors.source import Wave, columns_of, next_rows
from gspo.data import Row
from gspo.envs.base import Action, Env, EnvFactory, Observation, Scores
from gspo.envs.calls import Called, Calls
from gspo.envs.config import EnvironmentConfig
from gspo.renderers import Messages, Prompt, Renderer
from gspo.rewards import Rewards, Scored, check_failures
from gspo.rewards.calling import Outcome
from gspo.rewards.scoring import ENVIRONMENT
from gspo.samplers.base import Sampler, SampleRequest
from gspo.samplers.streams import stream_keys
from gspo.sampling import Sampling
from gspo.types import FAILED_ENDINGS, Completion, Ending, Group, Rollout, Turn

MAX_ERRORS = 20
"""Distinct messages kept per wave."""
OK, ERROR, TIMEOUT = "ok", "error", "timeout"
ENDINGS: tuple[Ending, ...] = (
    "done", "env_truncated", "max_turns", "max_tokens", "cut", "env_error", "env_timeout", "rollout_timeout",
)  # fmt: skip


class EnvironmentFailure(ValueError):
    """Too many environments failed for the run to go on."""


@dataclass(kw_only=True)
class Episode:
    """One rollout under way. Belongs to one wave."""

    number: int
    """Of its group in the wave."""
    prompt_id: int
    row: Row
    index: int
    env: Env | None = None
    is_chat: bool = False
    first_ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    """What the policy reads next."""
    messages: Messages = field(default_factory=list)
    """The conversation so far, the prompt included where it is one of messages."""
    tools: tuple[dict[str, Any], ...] = ()
    turns: list[Turn] = field(default_factory=list)
    text: str = ""
    """Of the last turn."""
    used: int = 0
    """Tokens behind the first prompt, the environment's included."""
    ending: Ending | None = None
    message: str = ""
    """What went wrong."""
    seconds: float = 0.0
    """In calls of the environment."""
    score: float = math.nan
    observations_cut: int = 0
    facts: dict[str, float] = field(default_factory=dict)

    def fails(self, ending: Ending, message: str) -> None:
        self.ending, self.message = ending, message


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What turns of episodes need: sampling them, and giving their environments' answers back to them."""

    renderer: Renderer
    sampler: Sampler
    sampling: Sampling
    settings: EnvironmentConfig
    seed: int
    context: int = 0
    """Tokens that the model can read; 0 where it is not known."""

    def begin(self, factory: EnvFactory, episodes: Sequence[Episode], step: int, calls: Calls) -> None:
        """Makes and starts the environments: the seed is the group's, so that its episodes begin alike."""

        def start(episode: Episode) -> Any:
            episode.env = factory(episode.row, environment_seed(self.seed, step, episode.prompt_id))
            return episode.env.start()

        found = calls.together([partial(start, e) for e in episodes], self.settings.step_timeout)
        for episode, called in zip(episodes, found, strict=True):
            observation = self.answered(episode, called, "start")
            if observation is None:
                continue
            episode.tools = observation.tools
            prompt: Prompt = observation.content or episode.row["prompt"]
            self._opens(episode, prompt)
            if observation.is_done or observation.is_truncated:
                episode.fails("env_error", "start() says that the episode is over before its first turn")

    def _opens(self, episode: Episode, prompt: Prompt) -> None:
        try:
            episode.is_chat = self.renderer.is_chat(prompt)
            episode.messages = self.renderer.messages(prompt) if episode.is_chat else []
            episode.first_ids = episode.prompt_ids = self.renderer.prompt_ids(
                episode.messages if episode.is_chat else prompt, episode.tools
            )
        except ValueError as error:
            episode.fails("env_error", f"start() gave a prompt that the model cannot read: {error}")

    def room(self, episode: Episode) -> int:
        """Tokens that the next completion may have."""
        room = self.sampling.max_completion_tokens
        if self.settings.max_tokens:
            room = min(room, self.settings.max_tokens - episode.used)
        if self.context:
            room = min(room, self.context - len(episode.prompt_ids))
        return room

    def speak(self, episodes: Sequence[Episode], step: int) -> list[Episode]:
        """Samples the next turn of all episodes that have room for one; gives those back. They are at one turn."""
        going = []
        for episode in episodes:
            if self.room(episode) < 1:
                episode.ending = "max_tokens"
            else:
                going.append(episode)
        together: dict[tuple[Any, ...], list[Episode]] = {}
        for episode in going:
            key = (episode.prompt_id, episode.prompt_ids, self.room(episode))
            together.setdefault(key, []).append(episode)
        requests = [
            SampleRequest(
                prompt_ids=ids,
                n=len(members),
                seed=self.seed,
                step=step,
                prompt_id=prompt_id,
                sampling=self.sampling,
                turn=len(members[0].turns),
                indices=tuple(e.index for e in members),
                limit=room,
            )
            for (prompt_id, ids, room), members in together.items()
        ]
        for members, completions in zip(together.values(), self.sampler.sample(requests), strict=True):
            for episode, completion in zip(members, completions, strict=True):
                self.says(episode, completion)
        return going

    def says(self, episode: Episode, completion: Completion) -> None:
        """The policy's next turn."""
        episode.turns.append(Turn(prompt_ids=episode.prompt_ids, completion=completion))
        episode.text = self.renderer.text(completion.ids)
        episode.messages = [*episode.messages, {"role": "assistant", "content": episode.text}]
        episode.used += len(completion.ids)

    def action(self, episode: Episode) -> Action:
        completion = episode.turns[-1].completion
        return Action(
            text=self.renderer.answer(episode.text),
            is_cut=completion.finish_reason == "length",
            turn=len(episode.turns) - 1,
        )

    def answer(self, episodes: Sequence[Episode], calls: Calls) -> None:
        """Every environment answers its episode's last turn."""
        steps = [partial(_env(episode).step, self.action(episode)) for episode in episodes]
        found = calls.together(steps, self.settings.step_timeout)
        for episode, called in zip(episodes, found, strict=True):
            observation = self.answered(episode, called, "step")
            if observation is not None:
                self.hears(episode, observation)

    def answered(self, episode: Episode, called: Called, method: str) -> Observation | None:
        """A checked observation; None where the call failed, and then the episode is over."""
        episode.seconds += called.seconds
        if called.status == TIMEOUT:
            episode.fails("env_timeout", f"{method}(): {called.message}")
        elif called.status == ERROR:
            episode.fails("env_error", f"{method}(): {called.message}")
        elif fault := fault_of(called.value):
            episode.fails("env_error", f"{method}() {fault}")
        elif episode.seconds > self.settings.rollout_timeout:
            limit = self.settings.rollout_timeout
            episode.fails("rollout_timeout", f"its calls took {episode.seconds:.3g} s together, the limit is {limit:g}")
        else:
            return called.value
        return None

    def hears(self, episode: Episode, observation: Observation) -> None:
        """The environment's answer: a reward, and the end or what the policy reads next."""
        if observation.reward is not None:
            episode.turns[-1] = replace(episode.turns[-1], reward=float(observation.reward))
        for name, value in observation.facts.items():
            episode.facts[name] = episode.facts.get(name, 0.0) + value
        completion = episode.turns[-1].completion
        if observation.is_truncated:
            episode.ending = "env_truncated"
        elif completion.finish_reason == "length":  # whatever the environment makes of the rest of a sentence
            is_own = len(completion.ids) == self.sampling.max_completion_tokens
            episode.ending = "cut" if is_own else "max_tokens"
        elif observation.is_done:
            episode.ending = "done"
        elif len(episode.turns) >= self.settings.max_turns:
            episode.ending = "max_turns"
        else:
            try:
                self._goes_on(episode, observation)
            except ValueError as error:
                episode.fails("env_error", f"step() said what the model cannot read: {error}")

    def _goes_on(self, episode: Episode, observation: Observation) -> None:
        content = self._cut(episode, observation.content)
        if observation.rewrites:
            self._opens(episode, content)
            return
        role = "user" if episode.is_chat else ENVIRONMENT
        said: Messages = [{"role": role, "content": content}] if isinstance(content, str) else list(content)
        episode.messages = [*episode.messages, *said]
        if episode.is_chat and self.settings.history == "template":
            episode.prompt_ids = self.renderer.prompt_ids(episode.messages, episode.tools)
            return
        last = episode.turns[-1].completion
        reply = self.renderer.reply_ids(content, last.finish_reason == "stop", episode.is_chat)
        episode.prompt_ids = episode.prompt_ids + last.ids + reply
        episode.used += len(reply)

    def _cut(self, episode: Episode, content: str | Messages) -> str | Messages:
        budget = self.settings.max_observation_tokens
        if isinstance(content, str):
            content, was_cut = self.renderer.cut(content, budget)
            episode.observations_cut += was_cut
            return content
        kept = []
        for message in content:
            text, was_cut = self.renderer.cut(message["content"], budget)
            episode.observations_cut += was_cut
            kept.append({**message, "content": text})
        return kept

    def finish(self, episodes: Sequence[Episode], calls: Calls) -> None:
        """Asks for the episodes' scores, and closes all environments, those that failed too."""
        scoring = [e for e in episodes if isinstance(e.env, Scores) and e.ending not in FAILED_ENDINGS]
        found = calls.together([_env(e).score for e in scoring], self.settings.step_timeout)  # type: ignore[attr-defined]
        for episode, called in zip(scoring, found, strict=True):
            value = called.value
            if called.status != OK:
                ending: Ending = "env_timeout" if called.status == TIMEOUT else "env_error"
                episode.fails(ending, f"score(): {called.message}")
            elif value is not None and not is_number(value):
                episode.fails("env_error", f"score() returned {value!r:.60}; it must be a finite number or None")
            elif value is not None:
                episode.score = float(value)
        self.close(episodes, calls)

    def close(self, episodes: Sequence[Episode], calls: Calls) -> None:
        """Closes each environment once."""
        environments = {id(e.env): e.env for e in episodes if e.env is not None}
        calls.together([env.close for env in environments.values()], self.settings.step_timeout)

    def reward(self, episode: Episode, by_turn: bool = False) -> Outcome:
        """The environment's score of an episode; without one the sum of its turns' rewards. Or the last turn's."""
        if episode.ending in FAILED_ENDINGS:
            if self.settings.on_failure == "score":
                return OK, self.settings.failure_reward, ""
            return (ERROR if episode.ending == "env_error" else TIMEOUT), math.nan, episode.message
        if episode.score == episode.score:
            return OK, episode.score, ""
        turns = episode.turns[-1:] if by_turn else episode.turns
        rewards = [turn.reward for turn in turns if turn.reward == turn.reward]
        return (OK, math.fsum(rewards), "") if rewards else ("none", math.nan, "")


def environment_seed(seed: int, step: int, prompt_id: int) -> int:
    """31 bits, a function of counters: one for all rollouts of a group."""
    return int(stream_keys([(seed, step, prompt_id)])[0]) & 0x7FFFFFFF


def fault_of(value: Any) -> str:
    """What is wrong with what an environment returned, or nothing."""
    if not isinstance(value, Observation):
        return f"returned a {type(value).__name__}; it must return a gspo.envs.Observation"
    content = value.content
    is_messages = isinstance(content, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in content
    )
    if not isinstance(content, str) and not is_messages:
        return f"gave the content {content!r:.60}; it must be text, or messages with role and content"
    if value.reward is not None and not is_number(value.reward):
        return f"gave the reward {value.reward!r:.60}; it must be a finite number or None"
    wrong = [name for name, number in value.facts.items() if not is_number(number)]
    return f"gave the fact {wrong[0]!r} = {value.facts[wrong[0]]!r:.40}; it must be a finite number" if wrong else ""


def is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _env(episode: Episode) -> Env:
    assert episode.env is not None
    return episode.env


@dataclass(frozen=True, kw_only=True)
class EpisodeSource:
    """Plays and scores `group_size` episodes for given rows."""

    rows: Sequence[Row]
    factory: EnvFactory
    renderer: Renderer
    sampler: Sampler
    rewards: Rewards
    sampling: Sampling
    group_size: int
    seed: int
    settings: EnvironmentConfig
    failure_limit: float = 1.0
    """Of reward functions; at 1 environments may fail without limit too."""
    context: int = 0
    dropped: frozenset[int] = frozenset()
    """Rows that are not drawn."""

    @property
    def stage(self) -> Stage:
        return Stage(
            renderer=self.renderer,
            sampler=self.sampler,
            sampling=self.sampling,
            settings=self.settings,
            seed=self.seed,
            context=self.context,
        )

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]:
        return next_rows(self.rows, self.seed, cursor, count, self.dropped)

    def wave(self, rows: Sequence[tuple[int, Row]], step: int) -> Wave:
        """Groups of episodes for (prompt id, row) pairs, played in step and scored at the end."""
        stage, clock = self.stage, Counter[str]()
        episodes = [
            Episode(number=number, prompt_id=prompt_id, row=row, index=index)
            for number, (prompt_id, row) in enumerate(rows)
            for index in range(self.group_size)
        ]
        with Calls() as calls:
            with timed(clock, "environment"):
                stage.begin(self.factory, episodes, step, calls)
            while going := [episode for episode in episodes if episode.ending is None]:
                with timed(clock, "sample"):
                    going = stage.speak(going, step)
                with timed(clock, "environment"):
                    stage.answer(going, calls)
            with timed(clock, "environment"):
                stage.finish(episodes, calls)
        with timed(clock, "reward"):
            groups, scored = self.scored(episodes)
        return Wave(
            groups=tuple(groups),
            seconds=dict(clock),
            errors=messages_of(episodes, scored),
            facts=facts_of(episodes),
        )

    def scored(self, episodes: Sequence[Episode], by_turn: bool = False) -> tuple[list[Group], Scored]:
        """Groups of episodes, which come group by group: whole ones, or (`by_turn`) their last turns alone."""
        refuse_failures(self.settings, episodes, self.failure_limit)
        columns = columns_of([episode.row for episode in episodes])
        scored = self.rewards.score(
            [episode.row["prompt"] for episode in episodes],
            [self.renderer.answer(episode.text) for episode in episodes],
            [[i for turn in (e.turns[-1:] if by_turn else e.turns) for i in turn.completion.ids] for e in episodes],
            {"conversation": [episode.messages for episode in episodes], **columns},
            [self.stage.reward(episode, by_turn) for episode in episodes],
        )
        check_failures(scored, self.failure_limit, but=(ENVIRONMENT,))
        rollouts = iter(
            Rollout(
                group_id=episode.number,
                index=episode.index,
                turns=tuple(episode.turns[-1:] if by_turn else episode.turns),
                text=episode.text,
                ending=_turn_ending(episode) if by_turn else episode.ending or "done",
                rewards=tuple(scored.values[i].tolist()),
                statuses=tuple(scored.statuses[i]),
                reward=float(scored.total[i]),
            )
            for i, episode in enumerate(episodes)
        )
        sizes = Counter(episode.number for episode in episodes)
        first = {episode.number: episode for episode in reversed(episodes)}
        return [
            group_of(first[number], tuple(islice(rollouts, sizes[number])), self.renderer) for number in sorted(sizes)
        ], scored


def _turn_ending(episode: Episode) -> Ending:
    """How a single turn ended: limits on the episode are none of its own."""
    return "done" if episode.ending in (None, "max_turns", "env_truncated") else episode.ending


def group_of(episode: Episode, rollouts: tuple[Rollout, ...], renderer: Renderer) -> Group:
    """A group whose prompt is that of its first episode."""
    ids = rollouts[0].turns[0].prompt_ids if rollouts[0].turns else episode.first_ids
    ids = ids or renderer.prompt_ids(episode.row["prompt"])
    return Group(
        prompt_id=episode.prompt_id,
        prompt_ids=ids,
        prompt_text=renderer.prompt_text(ids),
        rollouts=rollouts,
        columns={key: value for key, value in episode.row.items() if key != "prompt"},
    )


def refuse_failures(settings: EnvironmentConfig, episodes: Sequence[Episode], reward_limit: float) -> None:
    """Raises EnvironmentFailure when more episodes failed than the run allows, with the name of the culprit."""
    failed = [episode for episode in episodes if episode.ending in FAILED_ENDINGS]
    if reward_limit >= 1 or len(failed) <= settings.failure_limit * len(episodes):
        return
    kinds = Counter(str(episode.ending) for episode in failed)
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    raise EnvironmentFailure(
        f"environment {settings.name or settings.function or 'given from Python'}: {len(failed)} of {len(episodes)} "
        f"episodes failed ({said}), more than environment.failure_limit = {settings.failure_limit:g} allows; first: "
        f"{failed[0].message}"
    )


def messages_of(episodes: Sequence[Episode], scored: Scored) -> tuple[str, ...]:
    """Distinct messages of what failed, environments first."""
    said = [f"{ENVIRONMENT}: {e.message}" for e in episodes if e.message]
    others = [error for error in scored.errors if not error.startswith(f"{ENVIRONMENT}: ")]
    return tuple(dict.fromkeys([*said, *others]))[:MAX_ERRORS]


def facts_of(episodes: Sequence[Episode]) -> Facts:
    """Turns, endings and the environments' own numbers, as means over episodes; failures as a count."""
    count = float(len(episodes))
    facts: Facts = {
        "environment/turns": (float(sum(len(e.turns) for e in episodes)), count),
        "environment/observations_cut": (float(sum(e.observations_cut for e in episodes)), 0.0),
        "environment/failed": (float(sum(e.ending in FAILED_ENDINGS for e in episodes)), 0.0),
    }
    for ending in ENDINGS:
        facts[f"environment/ended/{ending}"] = (float(sum(e.ending == ending for e in episodes)), count)
    for name in sorted({name for e in episodes for name in e.facts}):
        facts[f"environment/{name}"] = (sum(e.facts.get(name, 0.0) for e in episodes), count)
    return facts


class timed:
    """Adds the seconds spent inside to a clock."""

    def __init__(self, clock: Counter[str], name: str) -> None:
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock[self.name] += time.perf_counter() - self.started
