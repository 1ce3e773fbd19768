"""How numbers are written, and where the ticks of an axis go."""

import math
from collections.abc import Iterable, Sequence


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def format_number(value: float) -> str:
    """Three significant digits, thousands separated, exponents as in a settings file: 0.0123, 12,300, 3e-4."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if value == 0 or 1e-3 <= size < 1e4:
        return _trim(f"{value:.{_decimals(size)}f}")
    if 1e4 <= size < 1e9:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{_trim(mantissa)}e{int(exponent)}"


def _decimals(size: float) -> int:
    return 3 if size < 1e-9 else min(max(2 - math.floor(math.log10(size)), 0), 6)


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_percent(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{format_number(100 * value)} %"


def format_share(value: float) -> str:
    """A percentage with one decimal, so that a column of them lines up."""
    return "–" if not math.isfinite(value) else f"{100 * value:.1f} %"


def format_duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{format_number(seconds)} s"
    minutes = round(seconds / 60)
    if seconds < 600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, within [low, high] and about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def step_ticks(low: float, high: float) -> list[float]:
    """Whole numbers only: there is no step 2.5."""
    whole = sorted({round(tick) for tick in nice_ticks(low, high)})
    ticks = [float(tick) for tick in whole if low <= tick <= high]
    # A run starts at step 1, which is no round number but the one to read from.
    starts_bare = not ticks or (ticks[0] - low) > 0.12 * (high - low)
    return [low, *ticks] if starts_bare and low == round(low) else ticks


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], thinned to at most six."""
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    stride = max(1, math.ceil(len(exponents) / 6))
    return [10.0**exponent for exponent in exponents[::stride]]


def tick_labels(ticks: Sequence[float], *, percent: bool = False) -> list[str]:
    """Labels with as many decimals as the distance between ticks needs, the same for all."""
    scaled = [100 * tick for tick in ticks] if percent else list(ticks)
    if len(scaled) < 2:
        return [format_number(tick) for tick in scaled]
    distance, largest = abs(scaled[1] - scaled[0]), max(map(abs, scaled))
    if largest >= 1e5 or distance < 1e-5:
        return ["0" if tick == 0 else format_number(tick) for tick in scaled]
    decimals = max(0, -math.floor(math.log10(distance) + 1e-9))
    return [f"{tick + 0.0:,.{decimals}f}" for tick in scaled]
