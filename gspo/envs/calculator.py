"""A calculator of two tools, and questions that take both: what a policy cannot work out in its head it must call."""

from gspo.envs.base import EnvFactory
from gspo.envs.tool_calls import Format
from gspo.envs.tools import Reply, tools_env
from gspo.tasks.base import Row


def add(a: int, b: int) -> int:
    """
    Adds two whole numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


def mul(a: int, b: int) -> int:
    """
    Multiplies two whole numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


def calculator(format: Format = "auto", deadline: float = 2.0) -> EnvFactory:
    """Episodes with `add` and `mul`; the reward is 1 where what is said last is column `answer`, else 0.

    Into bare text results go as "1702;" and errors as "?;", which a character model can be given the letters for.
    """
    reply = Reply(text="{content};", error="?")
    return tools_env([add, mul], format=format, deadline=deadline, reply=reply, score=is_answer)


def is_answer(said: str, row: Row) -> float:
    return float(said.strip() == str(row["answer"]).strip())
