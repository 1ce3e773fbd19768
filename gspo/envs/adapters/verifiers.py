"""Environments of verifiers, both lines, driven turn by turn: their own rollout runs, gspo answers as its model.

    https://github.com/PrimeIntellect-ai/verifiers
    v0 (up to 0.3.1): vf.Environment with rollout(input, client, model), stop conditions, a rubric; `load_environment`
    v1 (0.4.0, where v0 is gone): vf.Env with run_episode(task, ModelContext): a taskset, a harness, rewards on a trace

Everything the environment defines is kept, because it runs the episode itself (gspo/envs/adapters/endpoint.py):
setup_state, env_response, tools, overridden rollouts, harness programs, stops, rewards, clean-up.

v0: rewards over a whole group (plural arguments) are refused: a rollout is scored by itself here. A reward function
that raises is caught by verifiers' rubric, logged and counted as 0; that cannot be seen from outside.

v1: one trained agent; an environment in which several agents speak to the policy ends in an error that says so (agents
with a model and client of their own may take part). The built-in harnesses (null, bash, codex, ...) are programs that
verifiers starts with `uv`, which has to be installed and to reach a package index; a harness that runs in this process
needs neither. A rollout cut by a limit of the run is scored without the harness's runtime: rewards that look into a
sandbox then count nothing.
"""

import asyncio
import atexit
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import cache
from threading import Lock
from typing import Any

from gspo.envs.adapters.endpoint import MODEL, TOO_LONG, Outcome, endpoint, plain, program_env
from gspo.envs.base import EnvFactory
from gspo.envs.tool_calls import Format
from gspo.tasks.base import Row

SAYS_NOTHING = "EmptyModelResponseError"
"""v0's error for a completion without text: the policy's doing, so the rollout is scored as it stands."""
CLOSING_SECONDS = 10.0
"""How long shared servers of an environment may take to stop at the end of the process."""


def verifiers_v0_env(environment: Any, *, format: Format = "auto") -> EnvFactory:
    """Environments of a v0 `vf.Environment`. Rows are those of its dataset (`verifiers_rows`)."""
    if environment.requires_group_rollouts:
        raise ValueError("its rubric scores whole groups (arguments such as `completions`): not one rollout by itself")

    async def program(url: str, row: Row, seed: int) -> Outcome:
        from verifiers.clients import OpenAIChatCompletionsClient

        client = OpenAIChatCompletionsClient(_openai().with_options(base_url=url))
        state = await environment.rollout(row, client, MODEL, {})
        error = state["error"]
        if error is not None and type(error).__name__ != SAYS_NOTHING:
            raise RuntimeError(f"the environment failed: {error!r}") from error
        await environment.rubric.score_rollout(state)
        await environment.rubric.cleanup(state)
        numbers = {name: float(value) for name, value in state["metrics"].items() if value is not None}
        return Outcome(reward=float(state["reward"]), facts=numbers)

    return program_env(program, format=format)


@cache
def _openai() -> Any:
    """One client for all; copies of it for other addresses share its connections."""
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="-", max_retries=0, timeout=None)


def verifiers_v1_env(environment: Any, *, format: Format = "auto") -> EnvFactory:
    """Environments of a v1 `vf.Env`. Rows name a task by its place in the taskset (`verifiers_rows`)."""
    tasks, serving = _Tasks(environment.taskset), _Serving(environment)

    async def program(url: str, row: Row, seed: int) -> Outcome:
        from verifiers.v1 import EvalClientConfig, ModelContext

        task = tasks[row["task"]]
        await serving.begin()
        client = EvalClientConfig(base_url=url, api_key_var="GSPO_NO_KEY")
        episode = await environment.run_episode(task, ModelContext(model=MODEL, client=client))
        if len(episode.traces) != 1:
            raise RuntimeError(f"the episode has {len(episode.traces)} agents' traces: one agent can be trained here")
        trace = episode.traces[0]
        faults = [f"{error.type}: {error.message}" for error in (*episode.errors, *trace.errors)]
        is_cut = any(TOO_LONG in fault for fault in faults)
        if faults and not is_cut:
            raise RuntimeError(f"the episode failed: {faults[-1]}")
        if is_cut:
            await task.score(trace)
        numbers = {name: float(value) for name, value in trace.metrics.items() if value is not None}
        return Outcome(reward=float(trace.reward), facts=numbers)

    return program_env(program, format=format)


def verifiers_rows(environment: Any, count: int) -> list[Row]:
    """Rows of the first examples (v0) or tasks (v1) of an environment. A v1 row's prompt is for reading: its harness
    says what the policy is asked."""
    if "taskset" not in dir(environment):
        return [dict(example) for example in environment.get_dataset(n=count)]
    tasks = _Tasks(environment.taskset)
    return [{"task": i, "prompt": _prompt_of(tasks[i].data)} for i in range(count)]


def _prompt_of(data: Any) -> list[dict[str, Any]]:
    system = [] if data.system_prompt is None else [{"role": "system", "content": data.system_prompt}]
    if data.prompt is None or isinstance(data.prompt, str):
        return [*system, *([{"role": "user", "content": data.prompt}] if data.prompt else [])]
    return [*system, *(plain(message.model_dump()) for message in data.prompt)]


class _Tasks:
    """Tasks of a taskset by their place, read as far as they are asked for: a taskset may be infinite."""

    def __init__(self, taskset: Any) -> None:
        self._taskset, self._found, self._lock = taskset, [], Lock()
        self._rest: Iterator[Any] | None = None

    def __getitem__(self, index: int) -> Any:
        with self._lock:
            if self._rest is None:
                self._rest = iter(self._taskset)
            while len(self._found) <= index:
                try:
                    self._found.append(next(self._rest))
                except StopIteration:
                    raise ValueError(f"the taskset has {len(self._found)} tasks; there is no task {index}") from None
            return self._found[index]


class _Serving:
    """What an environment serves to all its episodes (interception, shared tools): begun once, ended at exit."""

    def __init__(self, environment: Any) -> None:
        self._environment, self._stack, self._lock = environment, AsyncExitStack(), asyncio.Lock()
        self._is_begun = False

    async def begin(self) -> None:
        """Called on the programs' loop."""
        async with self._lock:
            if self._is_begun:
                return
            await self._stack.enter_async_context(self._environment.serving())
            self._is_begun = True
            atexit.register(self._end)

    def _end(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stack.aclose(), endpoint().loop).result(CLOSING_SECONDS)
