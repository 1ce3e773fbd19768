"""The list of objectives that every law runs over. A new objective is accepted when it is here and green."""

import gspo

OBJECTIVES = (
    gspo.GSPO(),
    gspo.GSPO(clip_low=0.1, clip_high=0.2),
    gspo.GSPOToken(),
    gspo.GSPOToken(clip_low=0.1, clip_high=0.2),
    gspo.GRPO(),
    gspo.DrGRPO(max_length=11),
    gspo.DAPO(),
)

TERMS = (
    *((gspo.GSPO(clip_low=0.1, clip_high=0.1), gspo.ReferenceKL(estimator=e)) for e in ("k1", "k2", "k3", "unbiased")),
    (gspo.GRPO(), gspo.ReferenceKL(coef=0.1, averaging="token")),
    (gspo.DAPO(), gspo.EntropyBonus(coef=0.1)),
    (gspo.GSPO(), gspo.EntropyBonus(coef=0.1, averaging="sequence"), gspo.ReferenceKL()),
)
