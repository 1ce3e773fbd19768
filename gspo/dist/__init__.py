"""Many ranks: one run on the processes that `torchrun` starts, equal to one process up to rounding.

Every rank runs the same loop on the same values; what differs is inside three parts. The policy scores and trains the
rows of its own groups and hands all of them back (`policy`), the sampler draws its share of a wave (`sampler`), and
rank 0 alone talks to rewards and environments and writes files (`lead`).
"""
