"""Reward functions as a user would write them in a file; the tests name them as file.py:function."""

import asyncio
import os
import signal
import time


def trl(completions, answer, **kwargs):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def some_rows_raise(completions, answer):
    return [1.0 / len(c) for c in completions]


def per_row(prompt, completion, answer, bonus=0.0):
    return float(completion == answer) + bonus


def hangs_on_x(completion):
    if completion == "x":
        while True:
            pass
    return 1.0


def batch_hangs(completions):
    time.sleep(60)


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "acc": 1.0, "source": data_source}


async def judge(completion):
    await asyncio.sleep(60 if completion == "x" else 0.01)
    return 0.5


def dies(completion):
    if completion == "x":
        os._exit(7)
    return 1.0


def uses_alarm(completion):
    signal.setitimer(signal.ITIMER_REAL, 5)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("printing must not disturb the answer")
    return 1.0
