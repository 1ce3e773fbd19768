"""A simulator of your own behind the sizing environment: a common-source stage in ngspice, one process per proposal."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from gspo.envs import Action
from gspo.envs.check import check_env
from gspo.envs.circuit import Circuit, Counting, Metric, Parameter, SimulationError
from gspo.envs.proposals import prompt_of
from gspo.envs.sizing import Sizing

SPECS = "gain>=20 bw>=20 pw<=0.5"
PROPOSALS = ("w=20 rd=5 vb=1", "w=50 rd=8 vb=0.9", "w=100 rd=40 vb=1.6", "w=80 rd=8 vb=0.87")
DEADLINE = 10.0
"""Seconds; a simulation that does not converge in time has failed."""
NETLIST = """common-source stage, resistor load
.model nch nmos(level=1 kp=110u vto=0.7 lambda=0.04 gamma=0.4 phi=0.7 tox=14n cgso=220p cgdo=220p)
vdd supply 0 2.5
vin gate 0 dc {vb} ac 1
rd supply out {rd}k
m1 out gate 0 0 nch w={w}u l=1u
cl out 0 1p
.control
op
let power = -1000*v(supply)*i(vdd)
let overdrive = v(gate) - 0.7
let saturated = v(out) - overdrive
print power saturated
ac dec 50 10k 10g
meas ac gain find vdb(out) at=10k
let corner = gain - 3.0103
meas ac bandwidth when vdb(out)=corner fall=1
.endc
.end
"""


def simulate(parameters: dict[str, float]) -> dict[str, float]:
    """Writes the netlist, runs ngspice on it, reads what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        netlist = Path(folder) / "stage.cir"
        netlist.write_text(NETLIST.format(**parameters))
        try:
            done = subprocess.run(
                ["ngspice", "-b", str(netlist)], cwd=folder, capture_output=True, text=True, timeout=DEADLINE
            )
        except subprocess.TimeoutExpired:
            raise SimulationError(f"no convergence within {DEADLINE:g} s") from None
    found = dict(re.findall(r"^(\w+)\s*=\s*(\S+)", done.stdout, re.MULTILINE))
    if float(found.get("saturated", 0)) < 0:
        raise SimulationError("m1 is out of saturation")
    missing = [name for name in ("power", "gain", "bandwidth") if name not in found]
    if missing:
        raise SimulationError(f"ngspice measured no {missing[0]}")
    return {"gain": float(found["gain"]), "bw": float(found["bandwidth"]) * 1e-6, "pw": float(found["power"])}


STAGE = Circuit(
    name="common_source",
    title="a common-source stage (2.5 V supply, 1 um long n-channel transistor, resistor load, 1 pF)",
    parameters=(
        Parameter(name="w", unit="um", low=1, high=200),
        Parameter(name="rd", unit="kohm", low=1, high=100),
        Parameter(name="vb", unit="V", low=0.75, high=1.65, scale="linear"),
    ),
    metrics=(
        Metric(name="gain", unit="dB", direction=">=", low=0, high=49.5, scale="linear"),
        Metric(name="bw", unit="MHz", direction=">=", low=0.1, high=1000),
        Metric(name="pw", unit="mW", direction="<=", low=0.01, high=10),
    ),
    simulator=simulate,
)


def main() -> None:
    if shutil.which("ngspice") is None:
        print(
            "no reward to show: ngspice is not installed (Debian: apt-get install ngspice; macOS: brew install ngspice)"
        )
        return
    row = {"prompt": prompt_of(STAGE, SPECS, "text"), "specs": SPECS}
    counting = Counting(simulate)
    factory = Sizing(circuit=replace(STAGE, simulator=counting), turns=len(PROPOSALS))
    print(row["prompt"][0]["content"])
    environment = factory(row, seed=0)
    environment.start()
    for turn, text in enumerate(PROPOSALS):
        observation = environment.step(Action(text=text, turn=turn))
        print(f"{text:22} -> {observation.content:56} reward {observation.reward:.3f}")
    print(f"best reward {environment.score():.3f} in {counting.calls} simulations")
    report = check_env(factory, [row], actions=PROPOSALS[:1])
    print(report if not report.ok else "the environment keeps the protocol")


if __name__ == "__main__":
    main()
