"""`gspo papers`: every public object has a card, and docs/papers is what the cards say."""

import re
import typing
from pathlib import Path

import pytest

import gspo as package
from gspo.advantages import Advantage
from gspo.cli.papers import cards, pages
from gspo.corrections import AnyCorrection
from gspo.objectives import Objective, Term

ROOT = Path(__file__).parents[2]
UNIONS = {"objectives": Objective, "terms": Term, "advantages": Advantage, "corrections": AnyCorrection}


def test_pages_are_what_the_source_says():
    """`gspo papers --write docs/papers` makes them again."""
    made = pages(ROOT / "docs")
    assert {path.name for path in (ROOT / "docs" / "papers").iterdir()} == set(made)
    for name, text in made.items():
        assert (ROOT / "docs" / "papers" / name).read_text() == text, f"{name}: run gspo papers --write docs/papers"


@pytest.mark.parametrize("union", UNIONS)
def test_every_public_object_is_on_a_page(union):
    made = pages(ROOT / "docs")
    for member in typing.get_args(typing.get_args(UNIONS[union])[0]):
        page = made[member.__module__.rpartition(".")[2] + ".md"]
        assert f"## `{member.__name__}`" in page and re.search(rf"[`\"]{member.name}[`\"]", made["README.md"])


def test_every_objective_says_what_it_departs_from_and_how_sure_it_is():
    for card in cards():
        if card.kind in ("objective", "advantage") and card.module != "group":
            assert "Certainty: " in card.text or card.name == "reinforce", card.name
            assert "Departures: " in card.text or "Certainty: " in card.text, card.name
            assert card.paper != "-", card.name
        assert all(meaning for _, _, meaning in card.settings), card.name


def test_a_recipe_can_name_each_and_python_has_each():
    from gspo.settings import validate

    for card in cards():
        table = {"name": card.name, **{field: 1 for field, default, _ in card.settings if default == "required"}}
        listed = card.kind in ("terms", "corrections")
        config = validate({card.kind: [table] if listed else table})
        found = getattr(config, card.kind)
        assert (found[0] if listed else found).name == card.name
        if card.kind != "corrections":
            assert card.class_name in package.__all__


def test_papers_lists_prints_and_writes(gspo, tmp_path):
    listed = gspo("papers").out.splitlines()
    assert len(listed) == len(cards()) and any("sspo" in line and "2602.19327" in line for line in listed)
    card = gspo("papers", "SSPO").out
    assert "one_sided" in card and "our reconstruction" in " ".join(card.split())
    assert "did you mean 'sspo'" in gspo("papers", "sspoo").line
    assert gspo("papers", "--write", tmp_path / "papers").code == 0
    assert (tmp_path / "papers" / "gspo.md").read_text().startswith("# Group Sequence Policy Optimization")


def test_writing_pages_touches_no_other_file(gspo, tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    assert gspo("papers", "--write", tmp_path).code == 0
    assert (tmp_path / "notes.md").read_text() == "mine" and (tmp_path / "sspo.md").exists()
