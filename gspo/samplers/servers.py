"""Sampling from inference servers: many requests in flight, weights brought to them, every completion's version known.

Each server carries a label of its weights, and names it with every completion. A label that this run did not give means
a server that has been started again: what it said is dropped, it gets the weights, and is asked again.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal

from gspo.policies.routing import ExpertLayers, Routes
from gspo.samplers.base import SampleRequest, SamplerLost
from gspo.samplers.dialect import Answer, Ask, Dialect
from gspo.samplers.http import FIRST_PAUSE, LONGEST_PAUSE, Failed, Link, Patience, Unanswered, spread
from gspo.samplers.streams import stream_keys
from gspo.samplers.weight_store import Snapshot, WeightStore, is_alive, read_label
from gspo.types import Completion

MOST_AT_ONCE = 64
"""Completions of one request to a server: it refuses more than it can decode at once, 128 or 256 as a rule."""
NO_ROUTES = 'says no expert routes, and policy.routing = "R3" repeats them: start it with gspo serve MODEL --routes'


class Server:
    """One address; shared by threads."""

    def __init__(self, link: Link, dialect: Dialect, verify: Callable[["Server"], None]) -> None:
        self.link, self.dialect = link, dialect
        self.verify = verify
        """Raises ValueError for a server with another model; asked before the first weights, and after a restart."""
        self.asked = 0
        """Requests that wait for it."""
        self._has: Snapshot | None = None
        self._was_ours = False
        self._rests_until, self._rest, self._why = 0.0, FIRST_PAUSE, Unanswered("")
        self._lock = threading.Lock()

    @property
    def rests(self) -> bool:
        return time.monotonic() < self._rests_until

    def bring(self, newest: Callable[[], Snapshot], restarts: bool) -> None:
        """The server has the newest weights when this returns; one thread asks, the others wait for it."""
        with self._lock:
            snapshot = newest()
            if self._has == snapshot:
                return
            if self.rests:
                raise self._why
            found = self.dialect.label(self.link)
            if found != snapshot.label:
                self._refuse_taken(found, snapshot)
                if read_label(found) is None or not self._was_ours:
                    self.verify(self)
                has_base = (known := read_label(found)) is not None and known.folder.parent == snapshot.folder.parent
                base = None if has_base else snapshot.base
                self.dialect.update(self.link, snapshot.folder, snapshot.label, restarts, base)
            self._has, self._was_ours, self._rest = snapshot, True, FIRST_PAUSE

    def _refuse_taken(self, label: str, ours: Snapshot) -> None:
        found = read_label(label)
        if found is None or found.folder.parent == ours.folder.parent:
            return
        alive = is_alive(found.folder.parent)
        if alive == "yes" or (alive == "unknown" and self._was_ours):
            raise SamplerLost(
                f"{self.link} is in use by another run, whose weights lie in {found.folder.parent}: two runs cannot "
                "share a server; start another with gspo serve --port, and name it as sampler.url"
            )

    def failed(self, error: Unanswered) -> None:
        """It is left alone for a while, and its weights are not known any more."""
        self._has, self._why = None, error
        self._rests_until = time.monotonic() + self._rest
        self._rest = min(2 * self._rest, LONGEST_PAUSE)

    def forget(self) -> None:
        """It did not have the weights that it was believed to have."""
        self._has = None


class Servers:
    """The sampler. `sync_weights` may be called while another thread samples."""

    scores: ClassVar[Literal["exact"]] = "exact"

    def __init__(
        self,
        links: Sequence[Link],
        dialect: Dialect,
        store: WeightStore,
        *,
        stop_ids: Sequence[int],
        rows: int = 512,
        deadline: float = 900.0,
        restarts: bool = False,
        verify: Callable[[Server], None] = lambda server: None,
        experts: ExpertLayers | None = None,
        needs_routes: bool = False,
    ) -> None:
        """`rows`: completions under way at once. `restarts`: drop those under way at a weight update. `experts`: of the
        policy's network, for routes that servers record. `needs_routes`: refuse completions without.
        """
        self.servers = [Server(link, dialect, verify) for link in links]
        self.dialect, self.store = dialect, store
        self.stop_ids = tuple(sorted(set(stop_ids)))
        self.rows, self.deadline, self.restarts = rows, deadline, restarts
        self.experts, self.needs_routes = experts, needs_routes
        self._newest: Snapshot | None = None
        self._syncing, self._choosing = threading.Lock(), threading.Lock()

    @property
    def version(self) -> int:
        return self._snapshot().version

    def close(self) -> None:
        """Give up the servers: another run may have them."""
        self.store.close()

    def _snapshot(self) -> Snapshot:
        assert self._newest is not None, "no weights yet: sync_weights comes first"
        return self._newest

    def sync_weights(self, policy: Any, version: int) -> None:
        if self._newest is None or self._newest.version != version:
            self.snapshot(policy, version)()

    def snapshot(self, policy: Any, version: int) -> Callable[[], None]:
        """Save the weights as they are now; the result brings them to every server that answers: one must."""
        return partial(self._put, self.store.write(policy, version))

    def _put(self, snapshot: Snapshot) -> None:
        with self._syncing:
            self._newest = snapshot
            patience = Patience(self.deadline)
            while errors := self._brought():
                if len(errors) < len(self.servers) and not any(isinstance(error, Failed) for error in errors):
                    break
                patience.wait(
                    f"the weights of version {snapshot.version}, which {self._names()} should load,", errors[0]
                )
            self.store.drop_before(snapshot)

    def _brought(self) -> list[Unanswered]:
        """One attempt at each server; those that do not answer get their weights before their next completion."""

        def bring(server: Server) -> Unanswered | None:
            try:
                server.bring(self._snapshot, self.restarts)
            except Unanswered as error:
                server.failed(error)
                return error
            return None

        jobs = [lambda _, server=server: bring(server) for server in self.servers]
        return [error for _, error in spread(jobs, len(jobs)) if error is not None]

    def _names(self) -> str:
        return " or ".join(str(server.link) for server in self.servers)

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        """Completions of each request, in the order of `requests`."""
        results = dict(self.sample_each(requests))
        return [results[i] for i in range(len(requests))]

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]:
        """(index in `requests`, its completions) as soon as a group has ended."""
        refuse_inputs(requests)
        order = sorted(range(len(requests)), key=lambda i: (requests[i].prompt_id, requests[i].turn, i))
        parts = [(i, indices) for i in order for indices in runs(requests[i])]
        found: dict[int, list[Completion]] = {i: [] for i in order}
        yield from ((i, []) for i in order if not requests[i].n)
        jobs = [
            lambda is_over, request=requests[i], indices=indices: self._completions(request, indices, is_over)
            for i, indices in parts
        ]
        ended: dict[int, list[tuple[int, list[Completion]]]] = {i: [] for i in order}
        for number, completions in spread(jobs, self._workers(parts)):
            i, _ = parts[number]
            ended[i].append((number, completions))
            found[i] += completions
            if len(found[i]) == requests[i].n:
                yield i, [completion for _, part in sorted(ended[i], key=lambda pair: pair[0]) for completion in part]

    def _workers(self, parts: Sequence[tuple[int, range]]) -> int:
        widest = max((len(indices) for _, indices in parts), default=1)
        return max(1, self.rows // widest)

    def _completions(self, request: SampleRequest, indices: range, is_over: Callable[[], bool]) -> list[Completion]:
        """Of neighbours in one group, all drawn by one server; asked again until every one has ended."""
        patience = Patience(self.deadline, is_over)
        ask = Ask(
            prompt_ids=request.prompt_ids,
            n=len(indices),
            seed=group_seed(request) + indices.start,
            sampling=request.sampling,
            max_tokens=request.max_completion_tokens,
            stop_ids=self.stop_ids,
        )
        avoided: Server | None = None
        while not is_over():
            with self._chosen(avoided) as server:
                try:
                    server.bring(self._snapshot, self.restarts)
                    answers = self.dialect.answers(server.link, ask)
                    if any(answer.ended == "abort" for answer in answers):
                        patience.got_on()  # a weight update dropped them
                        continue
                    return [self._completion(server, ask, answer) for answer in answers]
                except Unanswered as error:
                    if not server.rests:
                        server.failed(error)
                    reason, avoided = error, server
            patience.wait(f"prompt {request.prompt_id}, whose completions {server.link} should give,", reason)
        raise Unanswered("nobody waits for it any more")

    @contextmanager
    def _chosen(self, avoided: Server | None) -> Iterator[Server]:
        """The server that fewest requests wait for; one that just failed only if there is no other."""
        with self._choosing:
            server = min(self.servers, key=lambda server: (server is avoided, server.rests, server.asked))
            server.asked += 1
        try:
            yield server
        finally:
            with self._choosing:
                server.asked -= 1

    def _completion(self, server: Server, ask: Ask, answer: Answer) -> Completion:
        said_by = {read_label(label) for label in answer.labels}
        ours = [snapshot for snapshot in said_by if snapshot is not None and self.store.owns(snapshot)]
        if len(said_by) != 1 or not ours:
            server.forget()
            names = ", ".join(repr(label) for label in answer.labels) or "no label at all"
            raise Unanswered(f"its completion came from other weights ({names}) than this run's: was it started again?")
        assert len(answer.ids) == len(answer.logprobs), "a token without its log-prob"
        return Completion(
            ids=answer.ids,
            logprobs=answer.logprobs,
            policy_version=ours[0].version,
            finish_reason="stop" if answer.ended == "stop" else "length",
            replay=self._routes(server, len(ask.prompt_ids) + len(answer.ids) - 1, answer),
        )

    def _routes(self, server: Server, tokens: int, answer: Answer) -> Routes | None:
        """Where the tokens of a mixture of experts went, if the server says so."""
        if answer.routes is None and self.needs_routes:
            raise SamplerLost(f"{server.link} {NO_ROUTES}")
        if answer.routes is None or self.experts is None:
            return None
        try:
            return self.experts.routes(answer.routes, tokens)
        except ValueError as error:
            raise SamplerLost(
                f"{server.link} gave {error}: start it with gspo serve MODEL --routes, with the run's model"
            ) from None


def refuse_inputs(requests: Sequence[SampleRequest]) -> None:
    for request in requests:
        if request.inputs is not None:
            raise ValueError(
                "prompts with images cannot be sent to a server yet: sampler.url samples text alone; use "
                'sampler = "in_process"'
            )


def runs(request: SampleRequest) -> list[range]:
    """The positions of a request's completions, as runs of neighbours, which a server draws from seeds in a row."""
    found: list[range] = []
    for index in request.indices or range(request.n):
        if found and found[-1].stop == index and len(found[-1]) < MOST_AT_ONCE:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


def group_seed(request: SampleRequest) -> int:
    """62 bits, a function of the counters; completion i of the group is drawn with this plus i."""
    key = stream_keys([(request.seed, request.step, request.prompt_id, request.turn)])[0]
    return int(key) >> 2
