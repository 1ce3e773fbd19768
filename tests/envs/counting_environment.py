"""A small OpenEnv environment, its client, and its server on a port of this machine."""

import socket
import threading
import time
from functools import cache
from typing import Any

import uvicorn
from openenv.core import EnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class CountAction(Action):
    add: int


class CountObservation(Observation):
    total: int
    say: str = ""


class Counting(Environment[CountAction, CountObservation, State]):
    """Count up to a goal in three steps at most."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.total, self.goal, self.steps = 0, 1, 0

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, goal: int = 1, **_: Any
    ) -> CountObservation:
        self.total, self.goal, self.steps = 0, goal, 0
        return CountObservation(total=0, say=f"Count to {goal}.")

    def step(self, action: CountAction, timeout_s: float | None = None, **_: Any) -> CountObservation:
        self.total += action.add
        self.steps += 1
        done = self.total == self.goal or self.steps == 3
        return CountObservation(total=self.total, reward=float(self.total == self.goal), done=done)

    @property
    def state(self) -> State:
        return State(step_count=self.steps)


class CountingClient(EnvClient[CountAction, CountObservation, State]):
    def _step_payload(self, action: CountAction) -> dict[str, Any]:
        return action.model_dump()

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[CountObservation]:
        observation = CountObservation(**payload["observation"])
        return StepResult(observation=observation, reward=payload["reward"], done=payload["done"])

    def _parse_state(self, payload: dict[str, Any]) -> State:
        return State(**payload)


@cache
def served() -> str:
    """The URL of a server that is up."""
    app = create_fastapi_app(Counting, CountAction, CountObservation, max_concurrent_envs=8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    return f"http://127.0.0.1:{port}"
