"""The spans of a schedule, one after another over the same loop: what changes when a phase begins.

A phase that learns from pairs begins by reading the rollout files of the phase they come from. What its verifier finds
is written to `pairs/step_N.json` before the first update, with the prompts that are solved; and where DPO compares with
the policy at the beginning of the phase, that policy to `phase_reference/`. A run that is resumed within the phase
reads both, so that it goes on with the very same pairs, whatever a judge would say a second time.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gspo.advantages import GroupStd
from gspo.collectors.pairs import PairCollector
from gspo.config import RunConfig
from gspo.data import rows_at
from gspo.phases import Phase, Span, source_of, spans
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.trained import Scorer
from gspo.renderers import Renderer
from gspo.samplers.streams import stream_keys
from gspo.settings import phase_config
from gspo.training.folder import RunFolder, write_json
from gspo.training.parts import (
    Given,
    Parts,
    chosen_collector,
    chosen_terms,
    export_model,
    frozen_reference,
    saved_reference,
)
from gspo.training.state import TrainState
from gspo.training.update import initial_states
from gspo.verifiers import Attempt, Pair, build_pairs, solved_prompts


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a verifier made of a phase's rollouts."""

    pairs: list[Pair]
    dropped: list[int]
    """Rows of the data that are not drawn again, those dropped before included."""


def schedule(config: RunConfig) -> list[Span]:
    """The whole run as spans; one, of the run's own settings, where there are no phases."""
    return spans(config.phase or (Phase(name="", steps=config.steps),), config.steps)


@dataclass(frozen=True, kw_only=True)
class Phased:
    """Enters the spans of a run."""

    parts: Parts
    given: Given
    folder: RunFolder
    reference: Scorer | None
    """The policy as it was at the start of the run."""

    def enter(self, span: Span, state: TrainState) -> tuple[Parts, TrainState, Scorer | None, str]:
        """Parts, state and reference of a span at `state.step`; and a line to say, empty where there is nothing."""
        if not self.parts.config.phase:
            return self.parts, state, self.reference, ""
        config = phase_config(self.parts.config, span.phase)
        given = replace(self.given, objective=None) if "objective" in _tables(span.phase) else self.given
        terms = chosen_terms(config, given)
        advantage = self.given.advantage or config.advantage
        scorer = self.parts.policy.scorer
        assert isinstance(scorer, TokenScorer)  # the settings refuse phases of other policies
        self.parts.policy.scorer = replace(
            scorer,
            scoring=config.sampling,
            micro_batch_tokens=config.micro_batch_tokens,
            keeps_groups_whole=any(term.traits.keeps_groups_whole for term in terms),
        )
        if span.phase.pairs_from:
            advantage = GroupStd()
        if state.step == span.start:
            state = replace(state, objective=initial_states(terms), advantage=advantage.init())
        said = f"phase {span.phase.name}, round {span.round + 1}: steps {span.start + 1} to {span.end}"
        parts = replace(self.parts, config=config, terms=terms, advantage=advantage)
        if not span.phase.pairs_from:
            source = replace(
                self.parts.source,  # type: ignore[type-var]
                sampling=config.sampling,
                group_size=config.group_size,
                dropped=frozenset(state.dropped),
            )
            collector = parts.leading.collector(chosen_collector(config, source))
            return replace(parts, collector=collector), state, self.reference, said
        found = self.parts.ranks.first(lambda: self.pairs(span, state))
        state = replace(state, dropped=found.dropped)
        collector = PairCollector(
            pairs=found.pairs,
            first_step=span.start,
            prompts_per_step=config.prompts_per_step,
            seed=config.seed,
            renderer=parts.renderer,
            num_rewards=len(parts.rewards.names),
        )
        said += (
            f"; {len(found.pairs)} pairs from {span.phase.pairs_from}, {len(found.dropped)} prompts left out as solved"
        )
        return replace(parts, collector=collector), state, self._phase_reference(parts, span, state), said

    def _phase_reference(self, parts: Parts, span: Span, state: TrainState) -> Scorer | None:
        if span.phase.reference == "start" or not parts.needs_reference:
            return self.reference
        if state.step > span.start:
            return saved_reference(parts, self.folder.phase_reference)
        export_model(parts, self.folder.phase_reference)
        return frozen_reference(parts, self.folder.phase_reference)

    def pairs(self, span: Span, state: TrainState) -> Found:
        """As they were found when the phase began; or found now, and written down."""
        path = self.folder.pairs / f"step_{span.start:06d}.json"
        if path.is_file():
            return read_found(path)
        source = source_of(span, schedule(self.parts.config))
        attempts = read_attempts(self.folder, range(source.start + 1, source.end + 1))
        verdicts = span.phase.verifier(attempts)
        judged = list(zip(attempts, verdicts, strict=True))
        renderer = self.parts.renderer
        pairs = build_pairs(
            judged,
            span.phase.kinds,
            correct=lambda attempt: corrected(attempt, span.phase.reflection, renderer),
            max_tokens=span.phase.max_pair_tokens,
        )
        dropped = self._dropped(solved_prompts(judged), span)
        found = Found(pairs=pairs, dropped=sorted({*state.dropped, *dropped}))
        self.folder.pairs.mkdir(parents=True, exist_ok=True)
        write_json(path, {"pairs": [asdict(pair) for pair in pairs], "dropped": found.dropped})
        return found

    def _dropped(self, solved: Sequence[int], span: Span) -> list[int]:
        """Rows of `drop_solved` of the solved prompts, chosen by (seed, step)."""
        seed, rows = self.parts.config.seed, len(self.parts.dataset.train)
        keys = stream_keys([(seed, span.start, prompt_id) for prompt_id in solved]) if solved else np.zeros(0)
        chosen = [solved[i] for i in np.argsort(keys, kind="stable")[: round(span.phase.drop_solved * len(solved))]]
        return [rows_at(prompt_id, 1, rows, seed)[0] for prompt_id in chosen]


def _tables(phase: Phase) -> set[str]:
    return {key.split(".")[0] for key in phase.settings}


def read_found(path: Path) -> Found:
    """A file of pairs."""
    table = json.loads(path.read_text())
    ids = ("prompt_ids", "chosen_ids", "rejected_ids")
    pairs = [Pair(**{**pair, **{name: tuple(pair[name]) for name in ids}}) for pair in table["pairs"]]
    return Found(pairs=pairs, dropped=table["dropped"])


def read_attempts(folder: RunFolder, steps: range) -> list[Attempt]:
    """Completions of the saved rollouts of these steps, as they were sampled."""
    return [
        Attempt(
            prompt_id=row["prompt_id"],
            prompt=row["prompt"],
            text=row["completion"],
            answer=row["answer"] or "",
            reward=row["reward"],
            is_cut=row["finish_reason"] == "length",
            prompt_ids=tuple(row["prompt_ids"]),
            ids=tuple(row["completion_ids"]),
        )
        for step in steps
        for row in _rows(folder.rollouts / f"step_{step:06d}.parquet")
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: the phase that reads it cannot build its pairs")
    return pq.read_table(path).to_pylist()


def corrected(attempt: Attempt, reflection: str, renderer: Renderer) -> tuple[int, ...] | None:
    """An attempt's own ids, then its correction; None without an answer to correct it with."""
    if not attempt.answer:
        return None
    before, _, after = reflection.partition("{attempt}")
    rest = renderer.encode(after.replace("{answer}", attempt.answer), special=False)
    own = attempt.ids[:-1] if attempt.ids and attempt.ids[-1] in renderer.stop_ids else attempt.ids
    head = renderer.encode(before.replace("{answer}", attempt.answer), special=False) if before else []
    return (*head, *own, *rest, renderer.end_id)
