"""docs/parity.md says what the golden tests compare: no row without a case, no case without a row."""

import ast
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest
from parity_cases import EVERY, RECORDED

import gspo

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "parity.md").read_text()
EQUALITY = re.compile("equal|reach|has_a_repository|empty_rows_have|keep_the_same")
"""Tests that state no difference."""


def tables(heading):
    """Cells of the table rows under a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def written(value):
    """An objective as one would write it: fields that are not the default."""
    if isinstance(value, gspo.Corrected):
        return f"{written(value.base)} under {', '.join(map(written, value.corrections))}"
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return " + ".join(map(written, value))
    if not is_dataclass(value):
        return repr(value)
    given = []
    for field in fields(value):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if getattr(value, field.name) != default:
            given.append(f"{field.name}={written(getattr(value, field.name))}")
    return f"{type(value).__name__}({', '.join(given)})"


def settings_of(case):
    """What their side was given, as the recorded file has it."""
    library, name, *rest = case.recorded.split("/")
    data = RECORDED[library]
    if library == "authors":
        author = data["authors"][name]
        found = author["cases"].get(rest[0], {"settings": {}})
        return {"": found.get("file", author["file"]).split("/")[-1], **found.get("settings", {})}
    if name in data and "settings" in data[name]:
        return data[name]["settings"]
    section = next(part for part in ("cases", "weights", "rejections", "advantages") if name in data.get(part, {}))
    given = data[section][name]
    names = ("trainer", "loss_mode", "loss_agg_mode", "kl_loss_type", "rollout_rs", "rollout_rs_threshold", "estimator")
    own = {key: given[key] for key in names if key in given and given[key] != "GRPOTrainer"}
    sampler = {f"vllm_importance_sampling_{key}": v for key, v in given.get("vllm", {}).items() if v is not None}
    return own | given.get("settings", {}) | given.get("arguments", {}) | sampler


def row(case):
    settings = ", ".join(f"{k}={v}" if k else v for k, v in settings_of(case).items()).replace("'", "")
    close = "the same" if case.part == "rows kept" else f"{case.rtol:g}"
    part = "" if case.part == "value and gradient" else f" ({case.part})"
    return [f"`{case.recorded}`", settings, f"`{written(case.ours)}`", close + part]


@pytest.mark.parametrize("library", RECORDED)
def test_the_page_has_every_case_and_no_other(library):
    versions = RECORDED[library]["versions"]
    heading = {"trl": f"TRL {versions.get('trl')}", "verl": f"verl {versions.get('verl')}", "authors": "Authors' code"}
    expected = [row(case) for case in EVERY if case.file == library]
    wanted = "\n".join(f"| {' | '.join(cells)} |" for cells in expected)
    assert tables(heading[library]) == expected, f"the rows should be\n{wanted}"


def test_the_page_has_every_repository_and_commit():
    rows = tables("Whose code")
    expected = {a["repository"]: a["commit"][:8] for a in RECORDED["authors"]["authors"].values()}
    assert {cells[0]: cells[1] for cells in rows} == expected


def test_every_difference_is_checked_and_every_check_is_on_the_page():
    """The last column names a test; a test that states a difference is in some row."""
    defined = set()
    for file in HERE.parent.rglob("test_*.py"):
        defined |= {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
    golden = set()
    for name in ("test_trl.py", "test_verl.py", "test_authors.py"):
        tree = ast.parse((HERE / name).read_text())
        golden |= {node.name for node in tree.body if getattr(node, "name", "").startswith("test_")}
    named = {name for cells in tables("Where we differ on purpose") for name in re.findall(r"`(test_\w+)`", cells[-1])}
    assert named <= defined
    assert {name for name in golden if not EQUALITY.search(name)} <= named
