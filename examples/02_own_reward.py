"""Train on rows and a reward of your own. For a pretrained model, name it in place of "tiny"."""

import gspo

STEPS = 30
PROMPTS = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]


def reversed_prompt(prompt: str, completion: str) -> float:
    """Half a point for each letter of the prompt in its place, backwards; nothing for a wrong length."""
    wanted = prompt[::-1]
    right = sum(a == b for a, b in zip(completion, wanted, strict=False))
    return right / len(wanted) if len(completion) == len(wanted) else 0.0


if __name__ == "__main__":
    run = gspo.train(
        "tiny",
        data=[{"prompt": prompt, "answer": prompt[::-1]} for prompt in PROMPTS],
        reward=reversed_prompt,
        objective=gspo.GSPO(clip_low=3e-4, clip_high=4e-4),
        tiny={"hidden_size": 64, "layers": 1, "intermediate_size": 128, "alphabet": "abcdefgh"},
        steps=STEPS,
        prompts_per_step=32,
        group_size=16,
        sampling={"max_completion_tokens": 3},
        optimizer={"lr": 5e-3},
        evaluation={"every": 0},
        checkpoints={"every": STEPS},
    )
    print(
        f"held-out reward {run.summary['before']['reward']:.3f} -> {run.summary['after']['reward']:.3f}; {run.folder}"
    )
