"""Image tokens: guidance against a slow reference, the laws of a policy, Janus, rewards that see images, and runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import gspo
from gspo.cli.main import run as command
from gspo.config import Checkpoints, ColdStart, Evaluation, RunConfig
from gspo.data import DataConfig
from gspo.models import TinyConfig
from gspo.policies import Payload
from gspo.policies.config import ImageTokensConfig
from gspo.policies.image_network import ImageNetwork, JanusCodes, VocabularyCodes
from gspo.policies.image_tokens import ImageTokenPolicy, packed_rows
from gspo.policies.master import AdamW
from gspo.renderers.images import read_codes, written
from gspo.rewards import RewardConfig
from gspo.rewards.digit_image import rule_checks
from gspo.samplers.base import SampleRequest
from gspo.samplers.image_tokens import ImageSampler
from gspo.sampling import Sampling
from gspo.tasks.digit_images import ALPHABET, digit_images, is_unseen, styled_set, styles, words
from gspo.training.kinds.image_tokens import tiny_image_model
from gspo.training.parts import Given, build
from gspo.training.run import resume, start
from gspo.types import Step

LEVELS, CODES = 5, 6
PROMPTS = ((3, 4, 5), (6, 7), (3, 4, 5), (8,))
TINY = TinyConfig(hidden_size=32, layers=2, heads=2, kv_heads=2, intermediate_size=64, alphabet=ALPHABET)
SMALL = RunConfig(
    name="images",
    threads=1,
    steps=3,
    prompts_per_step=4,
    group_size=4,
    updates_per_step=2,
    policy=ImageTokensConfig(guidance=1.5),
    tiny=TINY,
    sampling=Sampling(max_completion_tokens=64),
    optimizer=AdamW(lr=1e-3),
    data=DataConfig(task="digit_images", held_out_prompts=4),
    rewards=(RewardConfig(name="digit_image", options={"judge": "weak"}),),
    evaluation=Evaluation(every=2, prompts=2, temperature=1.0),
    checkpoints=Checkpoints(every=1),
    trackers=(),
)


def network() -> ImageNetwork:
    loaded = tiny_image_model(TINY, LEVELS, seed=3)
    size = len(loaded.tokenizer)
    return ImageNetwork(
        loaded.model.double().eval(), VocabularyCodes(levels=LEVELS, first_id=size, null_ids=(9,)), pad_id=0
    )


def janus() -> ImageNetwork:
    """transformers' own class, of random weights: 5 codes, 6 to an image of 2 x 3."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    torch.manual_seed(0)
    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 20, "head_dim": 16}  # fmt: skip
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
              "num_image_tokens": CODES, "projection_dim": 32, "mlp_ratio": 1.0}  # fmt: skip
    codes = {"embed_dim": 4, "num_embeddings": LEVELS, "latent_channels": 8, "base_channels": 32,
             "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 2, "projection_dim": 32,
             "image_token_embed_dim": 32}  # fmt: skip
    model = JanusForConditionalGeneration(JanusConfig(text_config=text, vision_config=vision, vq_config=codes))
    return ImageNetwork(model.double().eval(), JanusCodes(levels=LEVELS, begin_ids=(3,), pad_id=0), pad_id=0)


NETWORKS = {"vocabulary": network, "janus": janus}


def slow_logits(net: ImageNetwork, prompt: tuple[int, ...], codes: list[int], guidance: float) -> torch.Tensor:
    """[L,K]: one row at a time, no padding, no cache, guidance by two forward passes written out."""
    found = []
    for given in (prompt, net.codes.unconditional(prompt)):
        row = net.embed_prompt(torch.tensor([given]))
        if len(codes) > 1:
            row = torch.cat([row, net.embed_codes(torch.tensor([codes[:-1]]))], dim=1)
        hidden = net.codes.body(net.model)(inputs_embeds=row, use_cache=False).last_hidden_state
        found.append(net.head(hidden[0, len(given) - 1 :]))
    conditional, unconditional = found
    return unconditional + guidance * (conditional - unconditional)


def step_of(number: int = 4, seed: int = 0) -> Step:
    rng = np.random.default_rng(seed)
    codes = rng.integers(LEVELS, size=(number, CODES))
    return Step(
        mask=torch.ones(number, CODES, dtype=torch.bool),
        advantage=torch.from_numpy(rng.normal(size=number)),
        old_logprobs=torch.full((number, CODES), -1.6, dtype=torch.float64),
        reference_logprobs=torch.full((number, CODES), -1.7, dtype=torch.float64),
        length=torch.full((number,), CODES),
        group=torch.arange(number) // 2,
        rollout=torch.arange(number),
        rewards=torch.from_numpy(rng.normal(size=number)),
        payload=Payload(tuple(PROMPTS[i % 4] for i in range(number)), tuple(tuple(row) for row in codes.tolist())),
    )


def requests(n: int = 3, **sampling) -> list[SampleRequest]:
    settings = Sampling(**sampling)
    return [
        SampleRequest(prompt_ids=p, n=n, seed=1, step=2, prompt_id=i, sampling=settings) for i, p in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("guidance", (0.0, 1.0, 2.5))
def test_scores_are_those_of_the_slow_reference(kind, guidance):
    net, step = NETWORKS[kind](), step_of()
    for scoring, used in (("guided", guidance), ("conditional", 1.0)):
        found = ImageTokenPolicy(net, guidance=guidance, scoring=scoring).logprobs(step)
        for row in range(4):
            codes = list(step.payload.completion[row])
            slow = slow_logits(net, step.payload.prompt[row], codes, used).log_softmax(dim=-1)
            torch.testing.assert_close(found.logprobs[row], slow[range(CODES), codes], rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(found.entropy[row], -(slow.exp() * slow).sum(dim=-1), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("guidance", (1.0, 2.5))
def test_sampled_logprobs_are_of_the_distribution_drawn_from(kind, guidance):
    net = NETWORKS[kind]()
    sampler = ImageSampler(net, codes=CODES, guidance=guidance, scoring="guided")
    assert sampler.scores == "exact"
    for request, group in zip(requests(), sampler.sample(requests()), strict=True):
        for completion in group:
            slow = slow_logits(net, request.prompt_ids, list(completion.ids), guidance).log_softmax(dim=-1)
            np.testing.assert_allclose(
                completion.logprobs, slow[range(CODES), list(completion.ids)].detach(), rtol=1e-6, atol=1e-6
            )
    assert ImageSampler(net, codes=CODES, guidance=2.5, scoring="conditional").scores == "guided"


@pytest.mark.parametrize("guidance", (1.0, 2.5))
def test_a_sample_is_a_function_of_its_counters(guidance):
    """Alone, in chunks, or with others beside it; and frequencies are the model's."""
    net = network()
    make = lambda rows: ImageSampler(net, codes=CODES, guidance=guidance, scoring="guided", max_rows=rows)  # noqa: E731
    together = make(512).sample(requests())
    assert [[c.ids for c in g] for g in make(3).sample(requests())] == [[c.ids for c in g] for g in together]
    alone = [make(512).sample([request])[0] for request in requests()]
    assert [[c.ids for c in g] for g in alone] == [[c.ids for c in g] for g in together]
    many = make(4096).sample([replace(requests()[0], n=4000)])[0]
    share = np.bincount([c.ids[0] for c in many], minlength=LEVELS) / 4000
    wanted = slow_logits(net, PROMPTS[0], [0], guidance)[0].softmax(dim=-1).detach().numpy()
    assert np.abs(share - wanted).max() < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("objective", (gspo.GSPO(), gspo.GRPO(), gspo.AGRO()))
@pytest.mark.parametrize("guidance", (1.0, 2.5))
def test_micro_batches_add_up(objective, guidance):
    found, cuts = [], set()
    for budget in (1, 40 if guidance == 1 else 80, 10**6):
        net = network()
        policy = ImageTokenPolicy(net, guidance=guidance, micro_batch_tokens=budget)
        policy.scorer = replace(policy.scorer, keeps_groups_whole=objective.traits.keeps_groups_whole)
        step = step_of(8)
        cuts.add(len(policy.scorer.micro_batches(step)))
        result = policy.forward_backward(step, [objective.weights(step, objective.counts(step))], (objective,))
        found.append((result, [p.grad for p in net.model.parameters() if p.grad is not None]))
    assert len(cuts) == 3
    for result, gradients in found[1:]:
        assert result.loss == pytest.approx(found[0][0].loss, rel=1e-10)
        torch.testing.assert_close(result.logprobs, found[0][0].logprobs)
        for a, b in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_gradient_of_guided_scores_reaches_both_branches():
    """The derivative in the head, against autograd through the slow reference."""
    net, step = network(), step_of(2)
    policy = ImageTokenPolicy(net, guidance=2.5)
    objective = gspo.GRPO()
    weight = objective.weights(step, objective.counts(step))
    policy.forward_backward(step, [weight], (objective,))
    found = [p.grad.clone() for p in net.model.parameters() if p.grad is not None]
    net.model.zero_grad()
    rows = [slow_logits(net, p, list(c), 2.5).log_softmax(dim=-1)[range(CODES), list(c)]
            for p, c in zip(step.payload.prompt, step.payload.completion, strict=True)]  # fmt: skip
    gain = objective.gain(gspo.types.Scores(logprobs=torch.stack(rows)), step)
    (-(gain * weight).sum()).backward()
    for a, b in zip(found, [p.grad for p in net.model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


def test_janus_draws_as_transformers_generates():
    """Greedy, with guidance: the very codes of its own `generate`."""
    from transformers import GenerationConfig

    net = janus()
    ids = torch.tensor([[3, 7, 8, 9, 4]])
    settings = GenerationConfig(bos_token_id=3, pad_token_id=0, eos_token_id=1, do_sample=False, guidance_scale=3.0)
    settings.generation_kwargs = {"boi_token_id": 4}
    own = net.model.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=settings, generation_mode="image"
    )
    net = ImageNetwork(net.model, JanusCodes(levels=LEVELS, begin_ids=(3, 4), pad_id=0), pad_id=0)
    ours = ImageSampler(net, codes=CODES, guidance=3.0, scoring="guided").sample(
        [
            SampleRequest(
                prompt_ids=tuple(ids[0].tolist()), n=1, seed=0, step=0, prompt_id=0, sampling=Sampling(temperature=0.0)
            )
        ]
    )
    assert tuple(own[0].tolist()) == ours[0][0].ids


@pytest.mark.parametrize("objective", (gspo.GSPO(), gspo.DPO()))
@pytest.mark.parametrize("scoring", ("guided", "conditional"))
def test_a_resumed_run_has_the_bits_of_one_in_a_piece(tmp_path, objective, scoring):
    base = replace(SMALL, objective=objective, policy=ImageTokensConfig(guidance=1.5, scoring=scoring))
    base = replace(base, cold_start=ColdStart(steps=2, batch=4, check_every=100))
    whole = start(replace(base, folder=str(tmp_path / "whole")))
    start(replace(base, folder=str(tmp_path / "parts"), steps=1))
    again = resume(tmp_path / "parts", overrides=[("steps", 3)])
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    if objective.name == "gspo":
        assert whole.summary["old_logprobs"] == ("policy" if scoring == "conditional" else "sampler")
    assert command(["what-if", str(whole.folder), "--step", "1", "--objective", "grpo"]) == 0
    assert (whole.folder / "report.html").is_file()


def test_rewards_see_the_images():
    seen = []

    def brightness(completions, images, **columns):
        seen.extend(images)
        return [float(image.mean()) for image in images]

    parts = build(replace(SMALL, rewards=()), Given(rewards=(brightness,)))
    groups = parts.source.wave(parts.source.next_rows(0, 2), 0).groups
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    for image, rollout in zip(seen, rollouts, strict=True):
        assert image.shape == (8, 8)
        assert rollout.reward == pytest.approx(np.mean(rollout.completion.ids) / 7)
        assert read_codes(rollout.text, 8) == rollout.completion.ids


def test_a_decoder_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def decode(codes):\n    raise RuntimeError('no such codebook')\n")
    settings = replace(SMALL.policy, decoder=str(tmp_path / "broken.py") + ":decode")
    parts = build(replace(SMALL, policy=settings))
    with pytest.raises(ValueError, match=r"the image decoder failed on 64 codes: RuntimeError: no such codebook"):
        parts.source.wave(parts.source.next_rows(0, 1), 0)
    parts.rewards.close()


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"levels": 500}, "do not fit into a vocabulary"),
        ({"guidance": -1.0}, "policy.guidance is -1.0"),
        ({"null_prompt": ""}, "has no tokens"),
    ),
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        parts = build(replace(SMALL, policy=replace(SMALL.policy, **change), model="tiny"))
        parts.rewards.close()
        if "levels" in change:  # the embedded model is made to fit: a real one has the vocabulary it has
            ImageNetwork(parts.loaded.model, VocabularyCodes(levels=10**6, first_id=0, null_ids=()), pad_id=0)


def test_codes_are_written_and_read():
    for levels in (8, 36, 40):
        codes = tuple(range(min(levels, 40)))
        assert read_codes(written(codes, levels), levels) == codes
    with pytest.raises(ValueError, match="is not an image"):
        read_codes("0#", 8)
    with pytest.raises(ValueError, match="beyond 8 levels"):
        read_codes("9", 8)


def test_rows_are_packed_in_order():
    assert packed_rows([[0], [1], [2]], [3, 3, 3], 6) == [[0, 1], [2]]
    assert packed_rows([[0, 1], [2]], [4, 4, 4], 3) == [[0, 1], [2]]


def test_the_task_keeps_combinations_out_of_training():
    data = digit_images({}, 0, 10)
    unseen = {words(style) for style in styles() if is_unseen(style)}
    assert len(unseen) == 10 and {row["prompt"] for row in data.held_out} == unseen
    assert not unseen & {row["prompt"] for row in [*data.train, *data.cold_start]}
    share = np.mean([row["prompt"] == "." for row in data.cold_start])
    assert 0.05 < share < 0.15
    images, shown = styled_set("metric", False)
    assert rule_checks(images, shown).mean(axis=0).min() > 0.95
    wrong = shown.copy()
    wrong[:, 2] = 1 - wrong[:, 2]
    assert rule_checks(images, wrong)[:, 2].mean() < 0.05
    right = data.cold_start[0]
    if right["prompt"] != ".":
        asked = next(style for style in styles() if words(style) == right["prompt"])
        assert data.is_correct(right["completion"], {"style": list(asked)})
        other = (9 - asked[0], 1 - asked[1], 1 - asked[2])
        assert not data.is_correct(right["completion"], {"style": list(other)})


def test_supervised_start_learns_the_images(tmp_path):
    """Loss of imitation falls, on conditional log-probs whatever the guidance."""
    run = start(replace(SMALL, folder=str(tmp_path / "run"), steps=1,
                        cold_start=ColdStart(steps=60, batch=16, lr=3e-3, check_every=1000)))  # fmt: skip
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    entropy = next(line["entropy"] for line in lines if "entropy" in line)
    assert entropy < 0.85 * np.log(8)
    assert isinstance(run.model, nn.Module)
