import laws
import pytest
from objectives import OBJECTIVES, TERMS
from steps import names


@pytest.mark.parametrize("law", laws.EVERY_LAW, ids=lambda law: law.__name__)
@pytest.mark.parametrize("terms", [*OBJECTIVES, *TERMS], ids=names)
def test_law(terms, law):
    law(terms)


@pytest.mark.parametrize("law", laws.POLICY_GRADIENT_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=names)
def test_policy_gradient_law(objective, law):
    law(objective)


@pytest.mark.parametrize("terms", [o for o in OBJECTIVES if o.name != "gspo_token"] + list(TERMS), ids=names)
def test_gradient_is_the_derivative(terms):
    """GSPO-token is left to the parity test with GSPO: its stop-gradient makes its gradient differ from the
    derivative of its value by design (2507.18071, section 4.3)."""
    laws.gradient_is_the_derivative(terms)
