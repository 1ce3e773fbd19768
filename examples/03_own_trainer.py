"""GSPO in a bare PyTorch loop: `gspo.advantages`, `gspo.weights` and `gspo.loss`, nothing else of the library."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import gspo
from gspo.advantages import GroupStd

STEPS = 30
PROMPTS, GROUP, LENGTH = 16, 16, 3
UPDATES, MICRO_BATCHES = 2, 4
DIGITS, END = 10, 10
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32}
OBJECTIVE = gspo.GSPO()


def logprobs_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """[B,T] log-probability of each completion token; the prompt is one token long."""
    logits = model(tokens).logits[:, :-1].log_softmax(dim=-1)
    return logits.gather(2, tokens[:, 1:, None])[..., 0]


@torch.no_grad()
def sample(model: torch.nn.Module, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, 1 + LENGTH], and the mask [B, LENGTH] of what was chosen: everything up to the end token, included."""
    tokens = prompts[:, None]
    for _ in range(LENGTH):
        probabilities = model(tokens).logits[:, -1].softmax(dim=-1)
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1)], dim=1)
    ended_before = (tokens[:, 1:] == END).long().cumsum(dim=1) - (tokens[:, 1:] == END).long()
    return tokens, ended_before == 0


def reward_of(tokens: torch.Tensor) -> torch.Tensor:
    """One point for saying the prompt's digit first."""
    return (tokens[:, 1] == tokens[:, 0]).float()


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One batch of completions, UPDATES optimizer updates on it; returns the mean reward."""
    prompts = torch.randint(DIGITS, (PROMPTS,)).repeat_interleave(GROUP)
    group = torch.arange(PROMPTS).repeat_interleave(GROUP)
    tokens, mask = sample(model, prompts)
    rewards = reward_of(tokens)
    advantage = gspo.advantages(GroupStd(), rewards, group)
    with torch.no_grad():
        old = logprobs_of(model, tokens)
    for groups in torch.randperm(PROMPTS).chunk(UPDATES):
        step = torch.isin(group, groups).nonzero()[:, 0]
        weight = gspo.weights(OBJECTIVE, mask[step])  # once, on the whole optimizer step
        for part in torch.arange(len(step)).chunk(MICRO_BATCHES):
            rows = step[part]
            out = gspo.loss(
                OBJECTIVE,
                logprobs_of(model, tokens[rows]),
                old_logprobs=old[rows],
                mask=mask[rows],
                advantage=advantage[rows],
                weight=weight[part],
            )
            out.loss.backward()  # micro-batches add up to the step exactly
        optimizer.step()
        optimizer.zero_grad()
    return rewards.mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=DIGITS + 1, num_key_value_heads=2, tie_word_embeddings=True, **SHAPE)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    rewards = [train_step(model, optimizer) for _ in range(STEPS)]
    print(f"sampled reward {rewards[0]:.3f} -> {rewards[-1]:.3f}")
