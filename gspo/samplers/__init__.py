"""Samplers: prompts in, completions out."""

from gspo.samplers.base import Sampler, SampleRequest, SamplerLost
from gspo.samplers.fake import FakeSampler
from gspo.samplers.in_process import InProcess

__all__ = ["FakeSampler", "InProcess", "SampleRequest", "Sampler", "SamplerLost"]
