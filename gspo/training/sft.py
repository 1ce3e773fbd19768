"""`gspo sft`: supervised fine-tuning of any model on prompt-completion rows."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gspo.policies.master import AdamW
from gspo.policies.trained import TrainedPolicy
from gspo.settings import apply_overrides, parse_overrides, validate
from gspo.sinks import Console
from gspo.training.parts import build, export_model
from gspo.training.supervised import train_supervised


def fine_tune(args: argparse.Namespace, overrides: Sequence[str], plain: bool | None) -> Path:
    """Train on the completions of the training rows, completion tokens only; write a Hugging Face folder."""
    table = {"model": args.model, "data": {"task": args.task} if args.task else {}}
    config = validate(apply_overrides(table, parse_overrides(overrides)))
    console = Console(args.steps, title="sft", plain=plain)
    try:
        parts = build(replace(config, rewards=()), report=console.message, with_rewards=False)
        rows = parts.dataset.cold_start or [row for row in parts.dataset.train if "completion" in row]
        if not rows:
            raise ValueError("the data has no completion column (or assistant messages) to imitate")
        policy = TrainedPolicy(parts.policy.scorer.imitating(), AdamW(lr=args.lr))
        console.phase("supervised", args.steps)

        def show(step: int, loss: float) -> bool:
            console.advance(1, loss=loss)
            return False

        train_supervised(
            policy,
            parts.renderer,
            rows,
            steps=args.steps,
            batch=args.batch,
            lr=args.lr,
            warmup_steps=args.warmup_steps,
            seed=config.seed,
            is_done=show,
            width=parts.width,
        )
        export_model(parts, args.out)
        console.message(f"model: {args.out}")
    finally:
        console.close()
    return Path(args.out)
