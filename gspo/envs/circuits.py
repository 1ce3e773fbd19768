"""Two circuits by closed-form equations, a tenth of a millisecond each.

A two-stage Miller op-amp, n-channel input pair (Allen & Holberg, CMOS Analog Circuit Design, 2nd ed., sections 6.2 and
6.3, process of its table 3.1-2; Razavi, Design of Analog CMOS Integrated Circuits, chapters 6 and 10):

    gm = min(sqrt(2 K' W/L I), I / (n V_T))        square law, and its limit in weak inversion               (3)
    g1 = (lambda_n + lambda_p) I5 / 2,   g2 = (lambda_n + lambda_p) I7,    lambda ~ 1/L                      (4)
    H(s) = gm1 (gm6 - s Cc) M(s) / (g1 g2 + s a1 + s^2 a2)                                                   (5)
    a1 = g1 (C2 + Cc) + g2 (C1 + Cc) + gm6 Cc,   a2 = C1 C2 + Cc (C1 + C2)                                   (6)
    M(s) = (1 + s tau/2) / (1 + s tau),   tau = 2 Cgs3 / gm3        mirror pole and zero                     (7)
    slew rate = min(I5 / Cc, I7 / (CL + Cc)),   power = VDD (I5 + I7)                                        (8)

Not modelled: the bias branch (M5, M7 are ideal sources but for the 0.2 V they need), body effect, velocity saturation,
junction capacitances, moderate inversion, systematic offset, noise, mismatch, corners, temperature.

An RC ladder between an ideal source and an open end (Pozar, Microwave Engineering, section 4.4, ABCD matrices; Elmore
1948, the bracket of the cutoff):

    [A B; C D] = prod_i [1 + s R_i C_i, R_i; s C_i, 1],   V_out / V_in = 1 / A                               (9)

Not modelled: source and load impedances, parasitics, tolerances, noise.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from gspo.envs.circuit import Circuit, Metric, Parameter, SimulationError

# ---- the two-stage op-amp


VDD, LOAD = 5.0, 10e-12
K_N, K_P = 110e-6, 50e-6  # A/V^2
LAMBDA = (0.04 + 0.05) * 1e-6  # m/V: n and p channel together, 1/V at L = 1 um
THRESHOLD, SINK = 0.7, 0.2  # V: of either channel; what a current source needs
C_OX, C_OVERLAP = 24.7e-4, 220e-12  # F/m^2, F/m
WEAK = 1.5 * 0.02585  # V: n V_T at 300 K


def simulate_op_amp(parameters: dict[str, float]) -> dict[str, float]:
    """Metrics of the two-stage op-amp; widths and the length of M1-M4 and M6 in um, currents in uA, cc in pF."""
    w1, w3, w6, length = (parameters[name] * 1e-6 for name in ("w1", "w3", "w6", "l"))
    i5, i7 = parameters["i5"] * 1e-6, parameters["i7"] * 1e-6
    _check_headroom(w1 / length, w3 / length, w6 / length, i5, i7)
    gm1, gm3 = _gm(K_N, w1 / length, i5 / 2), _gm(K_P, w3 / length, i5 / 2)
    gm6 = _gm(K_P, w6 / length, i7)
    g1, g2 = LAMBDA / length * i5 / 2, LAMBDA / length * i7  # (4)
    compensation = parameters["cc"] * 1e-12 + C_OVERLAP * w6
    c1, c2 = _gate(w6, length), LOAD
    a1 = g1 * (c2 + compensation) + g2 * (c1 + compensation) + gm6 * compensation  # (6)
    a2 = c1 * c2 + compensation * (c1 + c2)
    tau = 2 * _gate(w3, length) / gm3  # (7)
    dc = gm1 * gm6 / (g1 * g2)
    if dc <= 1:
        raise SimulationError(f"the gain of {dc:.2g} never crosses 1")
    # (5) as poles and zeros over a0 = g1 g2, in units of the frequency gm1 / Cc that the crossing is near.
    unit = gm1 / compensation
    zero, b1, b2, t = unit * compensation / gm6, unit * a1 / (g1 * g2), unit**2 * a2 / (g1 * g2), unit * tau
    crossing = _unity(dc, zero, b1, b2, t)
    phase = math.atan(crossing * zero) + math.atan2(b1 * crossing, 1 - b2 * crossing**2)
    phase += math.atan(crossing * t) - math.atan(crossing * t / 2)
    return {
        "gain": 20 * math.log10(dc),
        "gbw": crossing * unit / (2 * math.pi) * 1e-6,
        "pm": 180 - math.degrees(phase),
        "pw": VDD * (i5 + i7) * 1e3,  # (8)
        "sr": min(i5 / compensation, i7 / (LOAD + compensation)) * 1e-6,
    }


def _gm(k: float, shape: float, current: float) -> float:
    return min(math.sqrt(2 * k * shape * current), current / WEAK)  # (3)


def _gate(width: float, length: float) -> float:
    """Gate-source capacitance in saturation."""
    return 2 / 3 * width * length * C_OX + C_OVERLAP * width


def _check_headroom(shape1: float, shape3: float, shape6: float, i5: float, i7: float) -> None:
    """Input and output at half the supply: every transistor must find its overdrive sqrt(2 I / (K' W/L)) there."""
    half = VDD / 2
    limits = (
        ("m1", math.sqrt(i5 / (K_N * shape1)), half - THRESHOLD - SINK),
        ("m3", math.sqrt(i5 / (K_P * shape3)), half),  # M1 leaves saturation beyond
        ("m6", math.sqrt(2 * i7 / (K_P * shape6)), half),
    )
    for device, overdrive, limit in limits:
        if overdrive > limit:
            raise SimulationError(f"{device} needs an overdrive of {overdrive:.2f} V and has {limit:.2f} V")


def _unity(dc: float, zero: float, b1: float, b2: float, t: float) -> float:
    """The lowest w with |H(jw)| = 1: a cubic in x = w^2, |denominator|^2 - |numerator|^2 = 0."""
    below, above = b1**2 - 2 * b2, dc**2
    roots = np.roots(
        (
            b2**2 * t**2,
            b2**2 + below * t**2 - above * zero**2 * t**2 / 4,
            below + t**2 - above * (zero**2 + t**2 / 4),
            1 - above,
        )
    )
    # The signs of the first and last coefficient leave an odd number of positive roots, so there is one.
    real = roots.real[(roots.imag == 0) & (roots.real > 0)]
    return math.sqrt(real.min())


def op_amp() -> Circuit:
    """The two-stage Miller op-amp: 7 parameters, 5 metrics. Held out: gain-bandwidth above the training's."""
    sizes = (("w1", "um", 1, 100), ("w3", "um", 1, 100), ("w6", "um", 5, 500), ("l", "um", 0.8, 4))
    biases = (("i5", "uA", 5, 200), ("i7", "uA", 20, 1000), ("cc", "pF", 0.5, 20))
    return Circuit(
        name="op_amp",
        title="a two-stage Miller op-amp (5 V supply, 10 pF load)",
        parameters=tuple(Parameter(name=n, unit=u, low=a, high=b) for n, u, a, b in (*sizes, *biases)),
        metrics=(
            Metric(name="gain", unit="dB", direction=">=", low=0, high=99, scale="linear"),
            Metric(name="gbw", unit="MHz", direction=">=", low=0.1, high=100),
            Metric(name="pm", unit="degrees", direction=">=", low=0, high=99, scale="linear"),
            Metric(name="pw", unit="mW", direction="<=", low=0.1, high=10),
            Metric(name="sr", unit="V/us", direction=">=", low=0.1, high=400),
        ),
        simulator=simulate_op_amp,
        training={"gain": (55, 100), "gbw": (1, 10), "pm": (50, 80)},
        held_out={"gain": (55, 100), "gbw": (10.1, 40), "pm": (50, 80)},
    )


# ---- the RC ladder


STOP = 1e6
"""Hz, where the ladder's attenuation is measured."""


def ladder_chain(resistances: Sequence[float], capacitances: Sequence[float], frequency: float) -> complex:
    """A of (9), the source's voltage for one volt at the open end; ohm, farad, hertz."""
    s = 2j * math.pi * frequency
    a, b = 1.0 + 0j, 0j
    for r, c in zip(resistances, capacitances, strict=True):
        a, b = a * (1 + s * r * c) + b * s * c, a * r + b
    return a


def simulate_rc_ladder(parameters: dict[str, float]) -> dict[str, float]:
    """Metrics of a ladder of r1.. in kohm and c1.. in pF, numbered from the source."""
    stages = range(1, len(parameters) // 2 + 1)
    rs, cs = [parameters[f"r{i}"] * 1e3 for i in stages], [parameters[f"c{i}"] * 1e-12 for i in stages]
    delay = sum(r * sum(cs[i:]) for i, r in enumerate(rs))
    # The poles p are real and sum(1/p) is Elmore's delay, hence |A|^2 = prod(1 + (w/p)^2) lies between
    # 1 + (w delay)^2 / n and exp((w delay)^2): this brackets the one w at which it is 2.
    low, high = math.sqrt(math.log(2)) / delay, math.sqrt(len(rs)) / delay
    for _ in range(32):  # to ten digits
        middle = math.sqrt(low * high)
        below = abs(ladder_chain(rs, cs, middle / (2 * math.pi))) ** 2 < 2
        low, high = (middle, high) if below else (low, middle)
    return {
        "fc": math.sqrt(low * high) / (2 * math.pi) * 1e-3,
        "at": 20 * math.log10(abs(ladder_chain(rs, cs, STOP))),
        "rt": sum(rs) * 1e-3,
        "ct": sum(cs) * 1e12,
    }


def rc_ladder(stages: int = 3) -> Circuit:
    """A low-pass of 1 to 9 stages, r and c of each. Held out: a cutoff above the training's."""
    if not 1 <= stages <= 9:
        raise ValueError(f"an RC ladder of {stages} stages: it must have 1 to 9")
    numbers = range(1, stages + 1)
    return Circuit(
        name="rc_ladder",
        title=f"an RC low-pass ladder of {stages} stages (ideal source, open end; at is the attenuation at 1 MHz)",
        parameters=(
            *(Parameter(name=f"r{i}", unit="kohm", low=1, high=50) for i in numbers),
            *(Parameter(name=f"c{i}", unit="pF", low=10, high=500) for i in numbers),
        ),
        metrics=(
            Metric(name="fc", unit="kHz", direction=">=", low=0.5, high=5000),
            Metric(name="at", unit="dB", direction=">=", low=0, high=99, scale="linear"),
            Metric(name="rt", unit="kohm", direction="<=", low=0.9 * stages, high=60 * stages),
            Metric(name="ct", unit="pF", direction="<=", low=9 * stages, high=600 * stages),
        ),
        simulator=simulate_rc_ladder,
        training={"fc": (5, 100), "at": (10, 100)},
        held_out={"fc": (101, 400), "at": (10, 100)},
    )


CIRCUITS: dict[str, Callable[[], Circuit]] = {"op_amp": op_amp, "rc_ladder": rc_ladder}
"""The circuits by name."""
