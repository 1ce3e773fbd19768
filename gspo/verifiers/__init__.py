"""Verifiers read a phase's attempts and say what is right about them; pairs are built from what they say."""

from gspo.verifiers.base import Attempt, Verdict, Verifier
from gspo.verifiers.judge import Judge
from gspo.verifiers.pairs import Pair, build_pairs, solved_prompts
from gspo.verifiers.rules import Rules

__all__ = ["Attempt", "Judge", "Pair", "Rules", "Verdict", "Verifier", "build_pairs", "solved_prompts"]
