"""Completions as they look, where they are more than words: puzzles, and images of grey codes as PNGs in the page."""

import base64
import struct
import zlib
from collections.abc import Callable, Sequence

from gspo.renderers.images import read_codes
from gspo.report.data import Run, parse_settings
from gspo.report.grids import sudoku_grid

Drawing = Callable[[str, str | None, str], str]
"""(prompt, completion or None for the prompt alone, answer) -> HTML; "" where there is nothing to draw."""


def drawing(run: Run) -> Drawing:
    """How a run's completions are drawn."""
    policy = (parse_settings(run.settings) or {}).get("policy") or {}
    if isinstance(policy, dict) and policy.get("name") == "image_tokens" and not policy.get("decoder"):
        size = [int(policy.get(name, 8)) for name in ("height", "width", "levels")]
        return lambda prompt, said, answer: picture(said, *size) if said else ""
    if run.declared("task") == "sudoku":
        return sudoku_grid
    return lambda prompt, said, answer: ""


def picture(text: str, height: int, width: int, levels: int) -> str:
    """HTML of the image that a completion's codes are; "" where they are none of that size."""
    try:
        codes = read_codes(text, levels)
    except ValueError:
        return ""
    if len(codes) != height * width:
        return ""
    pixels = [round(255 * code / (levels - 1)) for code in codes]
    data = base64.b64encode(png(pixels, height, width)).decode()
    return f'<img class="picture" alt="{height} x {width} pixels" src="data:image/png;base64,{data}">'


def png(pixels: Sequence[int], height: int, width: int) -> bytes:
    """A grey image of 0..255 (PNG specification, sections 5 and 11)."""
    rows = b"".join(b"\0" + bytes(pixels[row * width : (row + 1) * width]) for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
