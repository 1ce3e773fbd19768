import typing

import laws
import pytest
from objectives import OBJECTIVES, TERMS
from steps import names

from gspo.functional import as_terms
from gspo.objectives import Objective, Term


@pytest.mark.parametrize("law", laws.EVERY_LAW, ids=lambda law: law.__name__)
@pytest.mark.parametrize("terms", [*OBJECTIVES, *TERMS], ids=names)
def test_law(terms, law):
    law(terms)


@pytest.mark.parametrize("union", [Objective, Term])
def test_every_objective_and_term_is_under_the_laws(union):
    under = {type(term) for terms in (*OBJECTIVES, *TERMS) for term in as_terms(terms)}
    assert set(typing.get_args(typing.get_args(union)[0])) <= under
