"""Train on the embedded addition task, in one call. The settings are those of a recipe (`gspo train --help`)."""

import gspo

STEPS = 6

if __name__ == "__main__":
    run = gspo.train(
        "tiny",
        data="addition",
        steps=STEPS,
        prompts_per_step=32,
        sampling={"max_completion_tokens": 6},
        optimizer={"lr": 3e-4},
        cold_start={"steps": 40, "batch": 64},
        evaluation={"every": 0, "prompts": 100},
    )
    print(
        f"held-out reward {run.summary['before']['reward']:.3f} -> {run.summary['after']['reward']:.3f}; {run.folder}"
    )
