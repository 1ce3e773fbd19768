"""How much of a Sudoku of 4x4 is right."""

from collections.abc import Callable

CELLS = 16


def sudoku() -> Callable[[str, str, object], float]:
    """Share of the empty cells (0 in the prompt) that are as in column `answer`, from the completion's first 16
    characters; what is missing is wrong. Range [0, 1]."""

    def score(prompt: str, completion: str, answer: object) -> float:
        said, right = completion.strip()[:CELLS].ljust(CELLS, "0"), str(answer)
        empty = [i for i, given in enumerate(prompt) if given == "0"]
        return sum(said[i] == right[i] for i in empty) / max(len(empty), 1)

    return score
