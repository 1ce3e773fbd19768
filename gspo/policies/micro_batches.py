"""Which rows go through the network together: whole blocks of rows, balanced, within a budget of tokens."""

from collections.abc import Hashable, Sequence

from gspo.policies.prefixes import Ids


def blocks_of_rows(keys: Sequence[Hashable]) -> list[list[int]]:
    """Rows of equal key, in the order of first appearance."""
    blocks: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        blocks.setdefault(key, []).append(row)
    return list(blocks.values())


def shared_tokens(prompts: Sequence[Ids], completions: Sequence[Ids], rows: Sequence[int]) -> int:
    """Tokens of a block when each distinct prompt and each distinct completion of it stands once."""
    distinct = {(prompts[i], completions[i]) for i in rows}
    return sum(map(len, {prompts[i] for i in rows})) + sum(len(completion) for _, completion in distinct)


def repeated_tokens(prompts: Sequence[Ids], completions: Sequence[Ids], rows: Sequence[int]) -> int:
    """Tokens of a block when every row brings its own prompt."""
    return sum(len(prompts[i]) + len(completions[i]) for i in rows)


def by_width(
    blocks: Sequence[list[int]], prompts: Sequence[Ids], completions: Sequence[Ids], budget: int
) -> list[list[int]]:
    """For padded rows: the widest blocks first, cut where rows x widest would leave the budget."""
    width = [max(len(prompts[i]) + len(completions[i]) for i in rows) for rows in blocks]
    batches: list[list[int]] = []
    widest = 0
    for i in sorted(range(len(blocks)), key=lambda i: (-width[i], blocks[i][0])):
        if not batches or widest * (len(batches[-1]) + len(blocks[i])) > budget:
            batches.append([])
            widest = width[i]
        batches[-1] += blocks[i]
    return batches


def balanced(blocks: Sequence[list[int]], tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Blocks into as few micro-batches as the budget asks for, the largest first, each to the emptiest.

    A block over the budget goes alone. Rows of a micro-batch stay in order, so that a block's rows are neighbours.
    """
    number = max(1, -(-sum(tokens) // budget))
    order = sorted(range(len(blocks)), key=lambda i: (-tokens[i], blocks[i][0]))
    while True:
        filled = [0] * number
        members: list[list[int]] = [[] for _ in range(number)]
        for i in order:
            emptiest = min(range(number), key=filled.__getitem__)
            filled[emptiest] += tokens[i]
            members[emptiest].append(i)
        if number >= len(blocks) or all(
            total <= budget or len(held) == 1 for total, held in zip(filled, members, strict=True)
        ):
            return [[row for i in sorted(held) for row in blocks[i]] for held in members if held]
        number += 1
