"""A verifier that asks a language model, over any OpenAI-compatible endpoint (vLLM, llama.cpp, a hosted one)."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from gspo.limits import at_least
from gspo.verifiers.base import Attempt, Verdict

QUESTION = (
    "Judge this attempt at a problem.\n\nProblem:\n{prompt}\n\nReference answer: {answer}\n\nAttempt:\n{text}\n\n"
    "Reply with one JSON object and nothing else: "
    '{{"correct": true or false (the final answer agrees with the reference), '
    '"consistent": true or false (the final answer follows from the reasoning), '
    '"repetitive": true or false (it goes round in circles), "note": "at most ten words"}}'
)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Asks `model` at `url` about every attempt; what it does not answer properly stops the run with its words."""

    name: Literal["judge"] = "judge"
    url: str
    """Base address of the endpoint, as in http://127.0.0.1:8000/v1."""
    model: str
    question: str = QUESTION
    """Asked of each attempt; {prompt}, {answer} and {text} are filled in."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; it may be unset."""
    timeout: float = 60.0
    """Seconds for one answer."""
    attempts: int = 3
    """Times a question is asked before the run stops."""
    together: int = 8
    """Questions under way at once."""
    max_tokens: int = 200
    """Of an answer."""

    def __post_init__(self) -> None:
        at_least(self, "verifier.", 1, "attempts", "together", "max_tokens")

    def __call__(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        with ThreadPoolExecutor(self.together) as threads:
            return list(threads.map(self._verdict, attempts))

    def _verdict(self, attempt: Attempt) -> Verdict:
        said = self.question.format(prompt=attempt.prompt, answer=attempt.answer or "unknown", text=attempt.text)
        fault = ""
        for trial in range(self.attempts):
            if trial:
                time.sleep(2.0**trial / 4)
            try:
                return verdict_of(self._asked(said))
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                fault = f"{type(error).__name__}: {error}"
        raise ValueError(f"judge {self.model} at {self.url} gave no verdict in {self.attempts} attempts: {fault}")

    def _asked(self, question: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0.0,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, data=json.dumps(body).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]


def verdict_of(text: str) -> Verdict:
    """From the last JSON object of a judge's words. Raises ValueError where there is none with what is asked for."""
    found = re.findall(r"\{[^{}]*\}", text)
    if not found:
        raise ValueError(f"no JSON object in {text[:120]!r}")
    said: dict[str, Any] = json.loads(found[-1])
    for name in ("correct", "consistent", "repetitive"):
        if not isinstance(said.get(name), bool):
            raise ValueError(f"{name!r} is {said.get(name)!r} in {found[-1][:120]!r}; it must be true or false")
    return Verdict(
        is_correct=said["correct"],
        is_consistent=said["consistent"],
        is_repetitive=said["repetitive"],
        note=str(said.get("note", "")),
    )
