"""Sudokus of 4x4 as grids: what was given, what was filled in, and where it is wrong."""

from html import escape

CELLS = 16


def sudoku_grid(prompt: str, completion: str | None, answer: str) -> str:
    """HTML of a grid; "" where the prompt is no puzzle. Without a completion the puzzle alone."""
    prompt = prompt.strip()
    if len(prompt) != CELLS or not prompt.isdigit():
        return ""
    said = "" if completion is None else completion.strip()[:CELLS].ljust(CELLS)
    cells = [_cell(i, given, said[i : i + 1], answer[i : i + 1]) for i, given in enumerate(prompt)]
    rows = "".join(f"<tr>{''.join(cells[i : i + 4])}</tr>" for i in range(0, CELLS, 4))
    return f'<table class="sudoku">{rows}</table>'


def _cell(place: int, given: str, said: str, right: str) -> str:
    """Given digits are bold; one that was changed is as wrong as a wrong one filled in."""
    if not said:
        return f'<td class="given">{given}</td>' if given != "0" else "<td></td>"
    kind = "wrong" if said != right else "given" if given != "0" else "filled"
    return f'<td class="{kind}">{escape(said)}</td>'
