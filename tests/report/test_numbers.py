import math

import pytest

from gspo.report.numbers import format_duration, format_number, log_ticks, nice_ticks, step_ticks, tick_labels
from gspo.report.panels import smooth


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3e-4, "3e-4"),
        (0.01234, "0.0123"),
        (-1.5, "-1.5"),
        (12300, "12,300"),
        (2.5e9, "2.5e9"),
        (100, "100"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_missing_number_is_a_dash() -> None:
    assert format_number(math.nan) == "–" and format_duration(math.nan) == "–"


def test_durations_read_naturally() -> None:
    shown = [format_duration(seconds) for seconds in (4.2, 78.4, 1200, 9000)]
    assert shown == ["4.2 s", "1 min 18 s", "20 min", "2 h 30 min"]


def test_ticks_are_round_inside_and_equally_labelled() -> None:
    assert tick_labels(nice_ticks(0, 1.05, 4)) == ["0.0", "0.5", "1.0"]
    assert tick_labels(nice_ticks(0.9988, 1.0012)) == ["0.9990", "0.9995", "1.0000", "1.0005", "1.0010"]
    assert tick_labels(nice_ticks(0, 0.3, 4), percent=True) == ["0", "10", "20", "30"]
    assert nice_ticks(2.0, 2.0) == [2.0]
    assert log_ticks(9e-8, 2e-5) == pytest.approx([1e-7, 1e-6, 1e-5])


def test_step_ticks_are_whole() -> None:
    assert step_ticks(1, 3) == [1, 2, 3]
    assert step_ticks(1, 60) == [1, 20, 40, 60]
    assert step_ticks(0.5, 1.5) == [1]


def test_smoothing_keeps_constants_and_skips_missing_values() -> None:
    assert smooth([2.0, math.nan, 2.0, 2.0], 3) == [2.0, 2.0, 2.0, 2.0]
    assert smooth([0.0, 3.0, 6.0], 3) == [1.5, 3.0, 4.5]
