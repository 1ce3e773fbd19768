"""GRPO-RM: the set of classes as the group, its rewards, its two weightings, and runs of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTModel

import gspo
from gspo.advantages import GroupMean, GroupStd
from gspo.cli.main import run as command
from gspo.config import Checkpoints, ColdStart, Evaluation, RunConfig
from gspo.data import DataConfig
from gspo.models import TinyConfig
from gspo.objectives import GRPO
from gspo.objectives.corrected import Corrected
from gspo.policies import Payload, RepresentationPolicy
from gspo.policies.config import RepresentationConfig
from gspo.policies.master import AdamW
from gspo.policies.representation import RepresentationModel
from gspo.rewards import RewardConfig
from gspo.rewards.classes import class_rewards
from gspo.samplers.base import SampleRequest
from gspo.samplers.class_set import ClassSet
from gspo.sampling import Sampling
from gspo.tasks.digits import load_images, split, variant
from gspo.training.batch import advantage_input, assemble, flatten, on_units
from gspo.training.parts import build
from gspo.training.run import resume, start
from gspo.training.self_supervised import contrastive_loss, view
from gspo.types import Step

CLASSES = 5
SMALL = RunConfig(
    name="digits",
    threads=1,
    steps=3,
    prompts_per_step=8,
    updates_per_step=2,
    epochs=2,
    policy=RepresentationConfig(),
    objective=GRPO(),
    tiny=TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32),
    optimizer=AdamW(lr=1e-3),
    data=DataConfig(task="digits", held_out_prompts=20, options={"labelled": 40}),
    evaluation=Evaluation(every=2, prompts=20),
    checkpoints=Checkpoints(every=1),
    trackers=(),
)


def backbone(seed: int = 0) -> ViTModel:
    torch.manual_seed(seed)
    shape = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=2,
        num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTModel(shape, add_pooling_layer=False).double()


def policy(classes: int = CLASSES, is_dense: bool = False, budget: int = 10**6):
    torch.manual_seed(1)
    return RepresentationPolicy(
        backbone(), nn.Linear(16, classes).double(), is_dense=is_dense, micro_batch_tokens=budget
    )


def images(number: int) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(0).random((number, 1, 8, 8)))


def step_of(model, number: int, old: torch.Tensor | None = None, questions: int = 1) -> Step:
    """Images with random advantages; old log-probs are the policy's own unless given."""
    units = questions * CLASSES
    step = Step(
        mask=torch.ones(number, units, dtype=torch.bool),
        advantage=torch.from_numpy(np.random.default_rng(1).normal(size=(number, units))),
        old_logprobs=torch.zeros(number, units, dtype=torch.float64),
        length=torch.full((number,), units),
        group=torch.arange(number),
        rollout=torch.arange(number),
        payload=Payload(((),) * number, (tuple(range(units)),) * number, inputs=images(number)),
    )
    return replace(step, old_logprobs=model.logprobs(step).logprobs if old is None else old)


def logit_gradient(model, step: Step, objective) -> torch.Tensor:
    """Derivative of the loss in the logits, [B,C]."""
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    handle = model.network.model.head.register_forward_hook(keep)
    model.forward_backward(step, [objective.weights(step, objective.counts(step))], (objective,))
    handle.remove()
    model.weights.clear()
    return kept[-1].grad


def test_uniform_weights_push_each_logit_by_its_advantage_over_the_number_of_classes():
    """At ratio 1, with advantages that add up to 0 over the set: A / C (per image), however sure the policy is."""
    model = policy()
    step = step_of(model, 6)
    advantage = step.advantage - step.advantage.mean(dim=1, keepdim=True)
    step = replace(step, advantage=advantage)
    found = logit_gradient(model, step, GRPO())
    torch.testing.assert_close(found, -advantage / CLASSES / 6, rtol=1e-9, atol=1e-12)


def test_pi_old_weights_give_the_policy_gradient():
    """The derivative of - mean over images of sum_i pi(i) A_i, by autograd."""
    from gspo.corrections import OldProbability

    model = policy()
    step = step_of(model, 6)
    found = logit_gradient(model, step, Corrected(base=GRPO(), corrections=(OldProbability(),)))
    logits = model.network.model(torch.from_numpy(np.stack(images(6))))[:, 0].detach().requires_grad_(True)
    (-(logits.softmax(dim=-1) * step.advantage).sum(dim=1).mean()).backward()
    torch.testing.assert_close(found, logits.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("is_dense", (False, True))
def test_scores_are_the_models_own_softmax(is_dense):
    model = policy(is_dense=is_dense)
    questions = 64 if is_dense else 1
    step = step_of(model, 3, questions=questions)
    found = model.logprobs(step)
    inner = model.network.model
    states = inner.backbone(pixel_values=torch.from_numpy(np.stack(images(3)))).last_hidden_state
    if is_dense:
        patches = inner.head(states[:, 1:]).reshape(3, 4, 4, CLASSES).permute(0, 3, 1, 2)
        full = nn.functional.interpolate(patches, size=(8, 8), mode="bilinear")
        plain = torch.stack([full[:, :, y, x] for y in range(8) for x in range(8)], dim=1)
    else:
        plain = inner.head(states[:, 0])[:, None]
    plain = plain.log_softmax(dim=-1)
    torch.testing.assert_close(found.logprobs, plain.flatten(1), rtol=1e-12, atol=1e-12)
    entropy = -(plain.exp() * plain).sum(dim=-1, keepdim=True).expand_as(plain).flatten(1)
    torch.testing.assert_close(found.entropy, entropy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_dense", (False, True))
def test_micro_batches_add_up(is_dense):
    gradients = []
    for budget in (1, 40, 10**6):
        model = policy(is_dense=is_dense, budget=budget)
        step = step_of(model, 7, old=torch.full((7, CLASSES * (64 if is_dense else 1)), -1.6, dtype=torch.float64),
                       questions=64 if is_dense else 1)  # fmt: skip
        batches = model.scorer.micro_batches(step)
        assert sorted(row for rows in batches for row in rows) == list(range(7))
        objective = GRPO()
        result = model.forward_backward(step, [objective.weights(step, objective.counts(step))], (objective,))
        gradients.append((result.loss, [p.grad.clone() for p in model.network.model.parameters()]))
    assert len({len(policy(budget=b).scorer.micro_batches(step)) for b in (1, 40, 10**6)}) == 3
    for loss, found in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-12)
        for a, b in zip(found, gradients[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_ratio_is_one_to_the_bit_after_the_sampler():
    model = policy()
    step = step_of(model, 4)
    sampler = ClassSet(model.network, images_at_once=4)
    requests = [SampleRequest(prompt_ids=(), n=1, seed=0, step=0, prompt_id=i, sampling=Sampling(), inputs=image)
                for i, image in enumerate(images(4))]  # fmt: skip
    drawn = sampler.sample(requests)
    assert torch.equal(torch.tensor([c.logprobs for (c,) in drawn], dtype=torch.float64), step.old_logprobs)
    assert all(c.ids == tuple(range(CLASSES)) for (c,) in drawn)
    alone = [ClassSet(model.network, images_at_once=1).sample([r])[0][0].logprobs for r in requests]
    np.testing.assert_allclose(alone, [c.logprobs for (c,) in drawn], rtol=1e-12)


def test_rewards_by_hand():
    """Two questions of three classes; the label earns 1, a wrong class minus lambda times its probability."""
    old = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    values, total = class_rewards(old, np.array([0, 2]), accuracy=2.0, uniformity=0.5)
    np.testing.assert_allclose(values[:, 0], [1, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(values[:, 1], [0, -0.3, -0.2, -0.1, -0.8, 0])
    np.testing.assert_allclose(total, [2, -0.15, -0.1, -0.05, -0.4, 2])


@pytest.mark.parametrize("estimator", (GroupStd(), GroupMean(), gspo.RLOO(), gspo.OPO(), gspo.GDPO(weights=(1.0, 1.0))))
def test_any_estimator_sees_a_set_as_its_group(estimator):
    """What it gives for the set of an image is what it gives for a group of completions with those rewards."""
    parts = build(SMALL)
    groups = parts.source.wave(parts.source.next_rows(0, 4), 0).groups
    parts.rewards.close()
    advantage, _ = estimator(advantage_input(groups, parts.rewards.weights), estimator.init())
    laid = on_units(advantage, groups)
    assert laid.shape == (4, 10)
    for row, group in zip(laid, groups, strict=True):
        rewards = group.rollouts[0].unit_rewards
        one, _ = estimator(advantage_input([group], parts.rewards.weights), estimator.init())
        if estimator.name != "gdpo":  # it whitens over the whole batch
            torch.testing.assert_close(row, one)
        best = int(np.argmax(rewards.total))
        assert row[best] == row.max() and str(best) == group.columns["answer"]
    step = assemble(flatten(groups, laid, False), torch.device("cpu"))
    assert step.advantage.shape == (4, 10) and step.payload.inputs is not None


def test_view_and_loss_of_pre_training():
    generator = torch.Generator().manual_seed(0)
    shown = view(torch.rand(6, 1, 8, 8), generator)
    again = view(torch.rand(6, 1, 8, 8), torch.Generator().manual_seed(0))
    assert shown.shape == again.shape == (6, 1, 8, 8)
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    unit = nn.functional.normalize(torch.cat([first, second]), dim=-1)
    by_hand = 0.0
    for a in range(8):
        others = [c for c in range(8) if c != a]
        near = torch.stack([unit[a] @ unit[c] / 0.2 for c in others])
        by_hand += -(unit[a] @ unit[(a + 4) % 8] / 0.2 - near.logsumexp(dim=0)) / 8
    torch.testing.assert_close(contrastive_loss(first, second), by_hand)


def test_variants_change_images_and_splits_do_not_touch():
    shown, target = load_images()
    train, held_out = split(400)
    assert not set(train) & set(held_out) and len(train) + len(held_out) == len(target) == 1797
    for kind in ("rotated", "noised", "inverted"):
        assert np.abs(variant(shown[:5], kind) - shown[:5]).max() > 0.1
    np.testing.assert_array_equal(variant(shown[:5], "noised"), variant(shown[:5], "noised"))


@pytest.mark.parametrize(
    "more",
    (
        {},
        {"policy": RepresentationConfig(weighting="pi_old"), "terms": (gspo.ReferenceKL(coef=0.1),)},
        {
            "policy": RepresentationConfig(is_dense=True),
            "data": replace(SMALL.data, options={"labelled": 40, "dense": True}),
        },
    ),
)  # fmt: skip
def test_a_resumed_run_has_the_bits_of_one_in_a_piece(tmp_path, more):
    whole = start(replace(SMALL, **more, folder=str(tmp_path / "whole"), cold_start=ColdStart(steps=2, batch=8)
                          if not more.get("policy", SMALL.policy).is_dense else ColdStart()))  # fmt: skip
    parts = start(replace(SMALL, **more, folder=str(tmp_path / "parts"), steps=1, cold_start=ColdStart(steps=2, batch=8)
                          if not more.get("policy", SMALL.policy).is_dense else ColdStart()))  # fmt: skip
    assert parts.state.step == 1
    again = resume(tmp_path / "parts", overrides=[("steps", 3)])
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("whole", "parts")]
    a, b = (json.loads(line) for line in lines)
    assert {k: v for k, v in a.items() if "time" not in k and "second" not in k} == {
        k: v for k, v in b.items() if "time" not in k and "second" not in k
    }
    loaded = RepresentationModel.from_pretrained(whole.folder / "model")
    for a, b in zip(whole.model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_if_and_report_of_a_run(tmp_path, capsys):
    run = start(replace(SMALL, folder=str(tmp_path / "run")))
    assert (run.folder / "report.html").is_file()
    assert command(["what-if", str(run.folder), "--step", "1", "--objective", "gspo_token"]) == 0
    assert command(["why-clipped", str(run.folder), "--step", "1"]) == 0
    assert "gspo_token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"policy": RepresentationConfig(classes=("a", "b"))}, "none of the 2 classes"),
        ({"objective": gspo.GSPO()}, "gives an advantage per unit here and objective gspo takes one per sequence"),
        ({"objective": gspo.DPO()}, "compares whole completions"),
        ({"advantage": gspo.TurnReturns()}, "classes compete"),
        ({"data": DataConfig(task="addition")}, "needs a column 'image'"),
        ({"rewards": (RewardConfig(name="length", options={"target_tokens": 2}),)}, "rewards are for completions"),
    ),
)  # fmt: skip
def test_what_cannot_go_together_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        parts = build(replace(SMALL, **change))
        parts.source.wave(parts.source.next_rows(0, 2), 0)


def test_a_set_of_one_class_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        RepresentationConfig(classes=("a",))
    with pytest.raises(ValueError, match="at least two"):
        RepresentationPolicy(backbone(), nn.Linear(16, 1))


def test_images_of_a_file_through_a_backbones_own_processor(tmp_path):
    """A folder such as the hub has them, images as files, class names as answers."""
    from PIL import Image
    from transformers import ViTImageProcessor

    shape = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16,
                      patch_size=8, num_channels=3)  # fmt: skip
    ViTModel(shape).save_pretrained(tmp_path / "backbone")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "backbone")
    lines = []
    for number in range(24):
        name = ("cat", "dog", "owl")[number % 3]
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": str(tmp_path / f"{number}.png"), "answer": name}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = replace(
        SMALL,
        model=str(tmp_path / "backbone"),
        data=DataConfig(path=str(tmp_path / "rows.jsonl"), template="{image}"),
        folder=str(tmp_path / "run"),
        steps=2,
    )
    run = start(config)
    assert run.is_finished and run.model.head.out_features == 3
