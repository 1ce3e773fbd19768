"""A recipe run to its end and measured: `python benchmarks/record.py smollm2-chain-sum`.

    python benchmarks/record.py --name smollm2-chain-sum-vllm smollm2-chain-sum --sampler.name vllm --sampler.url URL

NAME is the recipe's if it is not given. The run lies in runs/NAME and goes on where it stopped. Afterwards the model
before and the model after answer, in this process, the held-out questions, greedily and at the recipe's evaluation
temperature; each figure has a 95 % interval from a bootstrap over *questions* (attempts at one question are not
independent). Writes docs/records/NAME.json and the curve docs/images/NAME.png.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from gspo.config import RunConfig
from gspo.samplers.config import InProcessConfig
from gspo.settings import find_recipe, load_config
from gspo.training.evaluate import evaluate
from gspo.training.parts import build
from gspo.training.run import read_summary, resume, start

ROOT = Path(__file__).parent.parent
COMPLETIONS = 200
"""Sampled completions at least, over all questions."""


def interval(scores: np.ndarray, draws: int = 4000) -> dict[str, float]:
    """Mean of [questions, attempts] scores and its 95 % bootstrap interval over questions."""
    per_question = scores.mean(axis=1)
    random = np.random.default_rng(0)
    means = per_question[random.integers(len(per_question), size=(draws, len(per_question)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(per_question.mean()), "low": float(low), "high": float(high)}


def measure(config: RunConfig, model: str) -> dict[str, dict[str, float]]:
    """Exact match and reward of a model on the distinct held-out questions."""
    parts = build(replace(config, model=model, sampler=InProcessConfig()), report=lambda text: None)
    distinct = {json.dumps(row["prompt"]): row for row in parts.dataset.held_out}
    rows = list(distinct.values())
    attempts_each = -(-COMPLETIONS // len(rows))
    found = {"questions": {"number": len(rows), "attempts": attempts_each}}
    for name, temperature, attempts in (("greedy", 0.0, 1), ("sampled", config.evaluation.temperature, attempts_each)):
        source = replace(parts.evaluation_source(temperature), group_size=attempts)
        result = evaluate(source, rows, parts.dataset.is_correct)
        found[f"{name}_reward"] = interval(np.nan_to_num(result.rewards))
        if result.correct is not None:
            found[f"{name}_exact"] = interval(result.correct.astype(float))
    parts.rewards.close()
    return found


def curve(metrics: list[dict], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    for axis, names, label in (
        (axes[0], ("reward",), "mean reward of sampled completions"),
        (axes[1], ("eval/accuracy", "eval/greedy_accuracy", "eval/reward", "eval/greedy_reward"), "held out"),
        (axes[2], ("completions/mean_length",), "completion length, tokens"),
    ):
        for name in names:
            points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="o" if "eval" in name else "", ms=3, lw=1.2)
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("step (rollout batch)")
        axis.grid(alpha=0.25)
        if len(names) > 1:
            axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    name = args.name or args.recipe
    folder = Path("runs") / name
    config = load_config(find_recipe(args.recipe), [*args.overrides, "--folder", str(folder)])
    run = resume(folder) if (folder / "config.toml").exists() else start(config)
    if not run.is_finished:
        return
    summary = read_summary(folder)
    record = {
        "command": " ".join(["python benchmarks/record.py", *sys.argv[1:]]),
        "before": measure(config, config.model),
        "after": measure(config, str(folder / "model")),
        "seconds": summary["seconds"],
        "steps": summary["steps"],
        "threads": summary["threads"],
        "device": summary["device"],
        "versions": summary["versions"],
        "data": summary["data"],
    }
    out = ROOT / "docs" / "records" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve(metrics, ROOT / "docs" / "images" / f"{name}.png", name)
    print(json.dumps({key: record[key] for key in ("before", "after")}, indent=1))


if __name__ == "__main__":
    main()
