"""Any program that asks an OpenAI-compatible endpoint for completions, turned into an environment.

The program runs as it is and believes it talks to a model server; each of its requests is a turn of the policy:

    program (coroutine)  --POST /v1/chat/completions-->  endpoint  --Observation-->  policy
                         <--------completion------------           <----Action-----

A request that goes on where the last answer ended is an observation of the messages that are new; any other (a summary,
a second conversation, an agent of its own) `rewrites` the conversation. The program's result is the episode's reward.

One HTTP server on 127.0.0.1 serves a whole process, under a secret path per episode; programs share one event loop of
their own. A call of a tool that the policy writes (Hermes or JSON) is handed over in the endpoint's form where the
request has tools; one that cannot be read stays text. A rollout that ends before its program does is answered with
"maximum context length" when its score is asked, which programs take as the end, and then scored as it stands.

Not done: n > 1, logprobs, token ids, pictures, the Responses and Anthropic dialects. Streams are sent in one piece.
Tools are those of the first request: templates show them at the beginning. Sampling settings of a request are not
followed: the run's are what is trained. A program's own client must wait as long as a turn takes: a request given up
and sent again counts as two turns.
"""

import asyncio
import json
import secrets
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gspo.envs.adapters.opening import Once
from gspo.envs.base import Action, EnvFactory, Observation
from gspo.envs.tool_calls import Format, tool_calls
from gspo.renderers import Messages
from gspo.tasks.base import Row

MODEL = "policy"
"""What the endpoint's one model is called."""
TOO_LONG = "This model's maximum context length is reached: the run's limit on this conversation."
ENDING_SECONDS = 10.0
"""How long a cancelled program may take to clean up."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a program's episode was worth."""

    reward: float | None = None
    facts: dict[str, float] = field(default_factory=dict)


Program = Callable[[str, Row, int], Awaitable[Outcome | float | None]]
"""program(base_url, row, seed): a coroutine that lives one episode. `base_url` ends in /v1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """One request of a program, waiting for its answer."""

    messages: Messages
    tools: tuple[dict[str, Any], ...]
    is_streamed: bool
    answer: Future  # of (HTTP status, body)


class Desk:
    """Where the requests of one episode arrive, and its program's end. `_lock` guards what both sides touch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived: deque[Asked | Outcome | BaseException] = deque()
        self._waiting: Future | None = None
        self._open: set[Asked] = set()
        self.is_closed = False

    def put(self, item: Asked | Outcome | BaseException) -> None:
        with self._lock:
            if isinstance(item, Asked):
                self._open.add(item)
            waiting, self._waiting = self._waiting, None
            if waiting is None or not _given(waiting, item):
                self._arrived.append(item)
            is_closed = self.is_closed
        if is_closed:
            self.refuse()

    def next(self) -> Future:
        """What arrives next: a request, the program's outcome, or what it raised."""
        with self._lock:
            future: Future = Future()
            if self._arrived:
                future.set_result(self._arrived.popleft())
            else:
                self._waiting = future
            return future

    def answer(self, asked: Asked, status: int, body: dict[str, Any]) -> None:
        with self._lock:
            self._open.discard(asked)
        _given(asked.answer, (status, body))

    def refuse(self) -> None:
        """Answers all that is open, and all that will come, with the end of the conversation."""
        with self._lock:
            self.is_closed = True
            waiting = list(self._open)
        for asked in waiting:
            error = {"message": TOO_LONG, "type": "invalid_request_error", "code": "context_length_exceeded"}
            self.answer(asked, 400, {"error": error})


def _given(future: Future, value: Any) -> bool:
    """Whether a value still reached the one who waits for it."""
    try:
        future.set_result(value)
    except InvalidStateError:  # given up meanwhile
        return False
    return True


class Endpoint:
    """The HTTP server and the programs' event loop of a process."""

    def __init__(self) -> None:
        self._desks: dict[str, Desk] = {}
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"endpoint": self}))
        self.loop = asyncio.new_event_loop()
        for work in (self._server.serve_forever, self.loop.run_forever):
            threading.Thread(target=work, daemon=True).start()

    def open(self, desk: Desk) -> str:
        """Gives a desk an address; the base URL under which a program reaches it."""
        token = secrets.token_hex(8)
        self._desks[token] = desk
        return f"http://127.0.0.1:{self._server.server_port}/{token}/v1"

    def close(self, url: str) -> None:
        self._desks.pop(url.split("/")[3], None)

    def desk(self, path: str) -> Desk | None:
        return self._desks.get(path.split("/")[1])


@cache
def endpoint() -> Endpoint:
    """The process's endpoint, begun when first asked for."""
    return Endpoint()


class _Server(ThreadingHTTPServer):
    """http.server's, for many programs at once; one that leaves without a word is no news."""

    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            ThreadingHTTPServer.handle_error(self, request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """http.server asks for a subclass; a thread per connection, which waits here for the policy."""

    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        listing = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "gspo"}]}
        self._send(200, listing) if self.path.endswith("/models") else self._fail(404, f"no route {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        desk = self.endpoint.desk(self.path)
        if desk is None or not self.path.endswith("/chat/completions"):
            return self._fail(404, f"no route {self.path}; there is chat/completions, while its episode lasts")
        try:
            asked = _asked(json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            return self._fail(400, f"not a request for a chat completion: {error!r}")
        desk.put(asked)
        status, reply = asked.answer.result()
        if status == 200 and asked.is_streamed:
            return self._stream(reply)
        self._send(status, reply)

    def _fail(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        self._write(status, "application/json", json.dumps(body).encode())

    def _stream(self, completion: dict[str, Any]) -> None:
        """A finished completion as the events of a stream."""
        choice = completion["choices"][0]
        calls = [{"index": i, **call} for i, call in enumerate(choice["message"].get("tool_calls", ()))]
        delta = {**choice["message"], **({"tool_calls": calls} if calls else {})}
        head = {**completion, "object": "chat.completion.chunk"}
        said = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": None}
        done = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
        events = [json.dumps(said), json.dumps(done), "[DONE]"]
        self._write(200, "text/event-stream", "".join(f"data: {event}\n\n" for event in events).encode())

    def _write(self, status: int, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the program is gone
            self.close_connection = True


def _asked(body: dict[str, Any]) -> Asked:
    if body.get("n") not in (None, 1):
        raise ValueError("n must be 1")
    return Asked(
        messages=[plain(message) for message in body["messages"]],
        tools=tuple(body.get("tools") or ()),
        is_streamed=bool(body.get("stream")),
        answer=Future(),
    )


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message of the wire as chat templates read it: text in one piece, arguments of calls as objects."""
    content = message.get("content")
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "".join(part["text"] for part in content)
    kept = {key: message[key] for key in ("role", "name", "tool_call_id") if message.get(key) is not None}
    calls = [
        {"id": call["id"], "type": "function", "function": _plain_call(call["function"])}
        for call in message.get("tool_calls") or ()
    ]
    return {**kept, "content": "" if content is None else content, **({"tool_calls": calls} if calls else {})}


def _plain_call(function: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"name": function["name"], "arguments": json.loads(function["arguments"])}
    except ValueError:
        return {"name": function["name"], "arguments": function["arguments"]}


def answer_message(text: str, asked: Asked, format: Format) -> dict[str, Any]:
    """What the policy said as the endpoint says it: calls of tools apart, where the request has tools."""
    calls = tool_calls(text, {}, format) if asked.tools else []
    if not calls or any(call.fault for call in calls):
        return {"role": "assistant", "content": text}
    before = text.partition("<tool_call>")[0].rstrip() if "<tool_call>" in text else ""
    return {
        "role": "assistant",
        "content": before,
        "tool_calls": [
            {
                "id": f"call_{len(asked.messages)}_{i}",  # equal episodes have equal ids
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for i, call in enumerate(calls)
        ],
    }


class ProgramEnv:
    """One run of a program. Its methods may be awaited on any event loop."""

    def __init__(self, program: Program, row: Row, seed: int, format: Format) -> None:
        self._program, self._row, self._seed, self._format = program, row, seed, format
        self._desk, self._ended = Desk(), Future()
        self._url, self._once = "", Once()
        self._asked: Asked | None = None
        self._said: Messages = []
        self._outcome: Outcome | None = None

    async def start(self) -> Observation:
        self._once.use()
        served = endpoint()
        self._url = served.open(self._desk)
        self._running = asyncio.run_coroutine_threadsafe(self._run(), served.loop)
        await self._advance()
        if self._asked is None:
            raise RuntimeError("the program ended before it asked the model anything")
        return Observation(content=self._asked.messages, tools=self._asked.tools)

    async def step(self, action: Action) -> Observation:
        asked, self._asked = self._asked, None
        if asked is None:
            raise RuntimeError("the program is over")
        message = answer_message(action.text, asked, self._format)
        self._said = [*asked.messages, plain(message)]
        self._desk.answer(asked, 200, _completion(message, action))
        await self._advance()
        if self._asked is None:
            assert self._outcome is not None
            return Observation(is_done=True, facts=self._outcome.facts)
        heard = self._asked.messages
        if heard[: len(self._said)] == self._said and len(heard) > len(self._said):
            return Observation(content=heard[len(self._said) :])
        return Observation(content=heard, rewrites=True)

    async def score(self) -> float | None:
        """The program's reward; one that still waits for the policy is told that the conversation is over."""
        self._asked = None
        self._desk.refuse()
        while self._outcome is None:
            await self._advance()
        return self._outcome.reward

    async def close(self) -> None:
        if not self._url:
            return
        self._desk.refuse()
        endpoint().close(self._url)
        self._running.cancel()
        await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=ENDING_SECONDS)

    async def _run(self) -> None:
        """The program from its beginning to its end, on the programs' loop."""
        try:
            outcome = await self._program(self._url, self._row, self._seed)
            self._desk.put(outcome if isinstance(outcome, Outcome) else Outcome(reward=outcome))
        except Exception as error:
            self._desk.put(error)
        finally:
            _given(self._ended, None)

    async def _advance(self) -> None:
        """Waits for the program's next request or for its end."""
        arrived = await asyncio.wrap_future(self._desk.next())
        if isinstance(arrived, BaseException):
            raise arrived
        if isinstance(arrived, Outcome):
            self._outcome = arrived
        elif not self._desk.is_closed:
            self._asked = arrived


def _completion(message: dict[str, Any], action: Action) -> dict[str, Any]:
    reason = "length" if action.is_cut else "tool_calls" if "tool_calls" in message else "stop"
    return {
        "id": f"chatcmpl-{secrets.token_hex(6)}",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def program_env(program: Program, *, format: Format = "auto") -> EnvFactory:
    """Environments that are runs of a program, as

    async def program(base_url, row, seed):
        client = openai.AsyncOpenAI(base_url=base_url, api_key="-")
        reply = await client.chat.completions.create(model="policy", messages=row["prompt"])
        return float(reply.choices[0].message.content == row["answer"])
    """

    def factory(row: Row, seed: int) -> ProgramEnv:
        return ProgramEnv(program, row, seed, format)

    return factory
