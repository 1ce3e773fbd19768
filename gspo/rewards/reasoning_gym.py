"""The score that a reasoning-gym dataset gives, in a process that can be killed (some parse expressions)."""

import re
from collections.abc import Callable
from typing import Any


def reasoning_gym(
    *, dataset: str = "", options: dict[str, Any] | None = None, tag: str = ""
) -> Callable[[str, dict], float]:
    """The dataset's own score_answer(stripped completion, column `entry`). Range [0, 1], dataset-specific.

    dataset, options: which dataset scores; empty takes the entry's own source with default options.
    tag: score only the text inside the last <tag>...</tag>; a completion without it is 0.
    """
    try:
        import reasoning_gym as gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError:
        raise ValueError('reasoning-gym is not installed: pip install "gspo[reasoning-gym]"') from None
    if dataset and dataset not in DATASETS:
        raise ValueError(f"reasoning-gym has no dataset {dataset!r}")
    scorers = {dataset: gym.create_dataset(dataset, **(options or {}))} if dataset else {}

    def score(completion: str, entry: dict[str, Any]) -> float:
        if tag:
            inside = re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", completion, re.DOTALL)
            if not inside:
                return 0.0
            completion = inside[-1]
        name = dataset or entry["metadata"]["source_dataset"]
        if name not in scorers:
            scorers[name] = gym.create_dataset(name)
        return float(scorers[name].score_answer(answer=completion.strip(), entry=entry))

    return score
