"""The public names, what importing them costs, and who may import whom."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gspo
from gspo.advantages import __all__ as estimators
from gspo.corrections import __all__ as corrections
from gspo.objectives import __all__ as objectives

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gspo"
HEAVY = ("transformers", "pyarrow", "rich", "datasets", "ray", "vllm", "peft")


def sources(*places: str) -> list[Path]:
    """Python files of modules and packages of gspo."""
    paths = [PACKAGE / place for place in places]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_public_names_are_sorted_and_importable():
    """Constants and acronyms first, then classes, then functions, as ruff sorts them."""
    assert gspo.__all__ == sorted(gspo.__all__, key=lambda name: (not name.isupper(), name.islower(), name))
    assert all(getattr(gspo, name) is not None for name in gspo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gspo.nothing


def test_the_mathematics_imports_light():
    modules = "gspo, gspo.objectives, gspo.advantages, gspo.functional"
    code = f"import json, sys, {modules}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = json.loads(out)
    assert [name for name in loaded if name in HEAVY] == []
    assert [name for name in loaded if is_under(name, "gspo.training") or is_under(name, "gspo.policies")] == []


PURE = (
    *("types.py", "ratio.py", "surrogate.py", "averaging.py", "kl.py", "groups.py", "explain.py", "corrections.py"),
    *("functional.py", "objectives", "advantages"),
)
FORBIDDEN = [
    *((place, ("transformers", "torch.distributed", "vllm", "ray", "rich", "pyarrow")) for place in PURE),
    *(
        (place, ("gspo.policies", "gspo.samplers", "gspo.collectors", "gspo.rewards", "gspo.training"))
        for place in PURE
    ),
    ("policies", ("gspo.rewards", "gspo.samplers", "gspo.collectors", "gspo.training", "gspo.cli")),
    ("samplers", ("gspo.rewards", "gspo.collectors", "gspo.training", "gspo.objectives", "gspo.cli")),
    ("rewards", ("gspo.policies", "gspo.samplers", "gspo.collectors", "gspo.training", "gspo.objectives", "gspo.cli")),
    ("collectors", ("gspo.policies", "gspo.training", "gspo.cli")),
    ("training", ("gspo.cli",)),
]


@pytest.mark.parametrize("place, forbidden", FORBIDDEN)
def test_imports_point_downwards(place, forbidden):
    files = sources(place)
    assert files
    wrong = [(f.name, m) for f in files for m in imported(f) for package in forbidden if is_under(m, package)]
    assert wrong == []


def test_a_paper_is_a_small_file_and_there_are_no_drawers():
    papers = [f for f in sources("objectives", "advantages") if f.name != "__init__.py"]
    lines = {f.name: len(f.read_text().splitlines()) for f in papers}
    assert {name: number for name, number in lines.items() if number > (80 if name != "base.py" else 120)} == {}
    drawers = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [str(f) for f in PACKAGE.rglob("*.py") if f.name in drawers] == []


def test_docs_name_every_public_name():
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
    seams = {"Objective", "Term", "UnitObjective", "Advantage", "AdvantageEstimator", "AdvantageInput"}
    seams |= {"AnyCorrection", "Correction", "Reweighting", "mismatch_log_ratio"}
    names = {*gspo.__all__, *objectives, *estimators, *corrections} - seams
    missing = [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)]
    assert missing == []
