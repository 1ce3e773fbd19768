"""Images in prompts: a small LLaVA of random weights through its processor, every layout, the sampler, whole runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AddedToken,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import gspo
from gspo.config import Checkpoints, Evaluation, RunConfig
from gspo.data import DataConfig, Dataset
from gspo.models import character_tokenizer
from gspo.policies import Network, Payload, TokenScorer, TrainedPolicy
from gspo.policies.master import AdamW
from gspo.renderers import Renderer
from gspo.rewards import RewardConfig
from gspo.samplers.base import SampleRequest
from gspo.samplers.decoding import CopiedCache
from gspo.samplers.in_process import InProcess
from gspo.sampling import Sampling
from gspo.training.parts import Given, build
from gspo.training.run import resume, start
from gspo.types import Step

LAYOUTS = ("padded", "packed", "shared_prefix", "auto")
SMALL = RunConfig(
    name="vision",
    threads=1,
    steps=3,
    prompts_per_step=4,
    group_size=4,
    updates_per_step=2,
    sampling=Sampling(max_completion_tokens=4),
    rewards=(RewardConfig(name="length", options={"target_tokens": 2}),),
    optimizer=AdamW(lr=1e-3),
    evaluation=Evaluation(every=2, prompts=2),
    checkpoints=Checkpoints(every=1),
    trackers=(),
)


def processor() -> LlavaProcessor:
    tokenizer = character_tokenizer("abcdefgh ?:")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>")]})
    pixels = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        pixels, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def llava(seed: int = 0) -> LlavaForConditionalGeneration:
    reader = processor()
    torch.manual_seed(seed)
    shape = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(reader.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        ),
        image_token_index=reader.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(shape).eval()


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8))


ROWS = [
    {"prompt": "a<image>b?", "images": [picture(1)]},
    {"prompt": "a<image>b?", "images": [picture(2)]},  # the same words, another image
    {"prompt": "<image>c<image>", "images": [picture(1), picture(3)]},
    {"prompt": "cab?"},
]
COMPLETIONS = ((4, 5, 1), (4, 6, 7, 8), (9, 1), (3, 3, 3, 1))


def renderer() -> Renderer:
    reader = processor()
    return Renderer(reader.tokenizer, processor=reader)


def step_of() -> Step:
    """Two completions of every row."""
    read = [renderer().read(row) for row in ROWS for _ in range(2)]
    said = [COMPLETIONS[(i + j) % 4] for i in range(4) for j in range(2)]
    width = max(map(len, said))
    mask = torch.tensor([[u < len(c) for u in range(width)] for c in said])
    return Step(
        mask=mask,
        advantage=torch.linspace(-1, 1, 8, dtype=torch.float64),
        old_logprobs=torch.zeros(mask.shape, dtype=torch.float64) - 2.0 * mask,
        length=mask.sum(dim=1),
        group=torch.arange(8) // 2,
        rollout=torch.arange(8),
        payload=Payload(tuple(ids for ids, _ in read), tuple(said), inputs=tuple(given for _, given in read)),
    )


def own_logits(model, prompt, given, completion) -> torch.Tensor:
    """[U,V] by the model's own forward pass, one sequence at a time."""
    ids = torch.tensor([[*prompt, *completion[:-1]]])
    like = next(model.parameters()).dtype
    tensors = {name: torch.as_tensor(value).to(like) for name, value in (given or {}).items()}
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **tensors)
    return out.logits[0, len(prompt) - 1 :]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_and_gradients_are_the_models_own(layout):
    step, objective = step_of(), gspo.GRPO()
    weight = objective.weights(step, objective.counts(step))
    slow = llava().double()
    rows = []
    for prompt, given, said in zip(step.payload.prompt, step.payload.inputs, step.payload.completion, strict=True):
        logprobs = own_logits(slow, prompt, given, said).log_softmax(dim=-1)[range(len(said)), list(said)]
        rows.append(torch.nn.functional.pad(logprobs, (0, step.mask.shape[1] - len(said))))
    wanted = torch.stack(rows)
    (-(objective.gain(gspo.types.Scores(logprobs=wanted), step) * weight).sum()).backward()
    wanted_gradients = {name: p.grad for name, p in slow.named_parameters()}

    model = llava().double()
    scorer = TokenScorer(network=Network(model), scoring=Sampling(), micro_batch_tokens=10**6, layout=layout)
    policy = TrainedPolicy(scorer, AdamW())
    torch.testing.assert_close(policy.logprobs(step).logprobs, wanted.detach(), rtol=1e-9, atol=1e-9)
    for budget in (10**6, 20):
        policy.scorer = replace(scorer, micro_batch_tokens=budget)
        policy.forward_backward(step, [weight], (objective,))
        for name, parameter in model.named_parameters():
            a, b = parameter.grad, wanted_gradients[name]
            assert (a is None) == (b is None), name
            if a is not None:
                # Llama's norms round to float32: other kernels in front of them move last bits.
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
        assert any("vision_tower" in n and p.grad is not None and p.grad.any() for n, p in model.named_parameters())
        policy.weights.clear()


def test_a_prompt_stands_once_for_its_completions_and_never_for_another_image():
    step = step_of()
    network = Network(llava())
    with network.seeing(step.payload.prompt, step.payload.inputs) as prompts:
        assert prompts[0] == prompts[1] and prompts[0] != prompts[2]
        assert step.payload.prompt[0] == step.payload.prompt[2]  # by tokens alone they are the same
        assert all(i < network.vocabulary for i in prompts[6])
        assert len(network.images.table) == 4 + 4 + 8  # four patches of each image of each distinct prompt
    assert not network.images.table.numel()


@pytest.mark.parametrize("decoder", ("shared", "copied"))
def test_sampled_logprobs_are_the_models_own(decoder, monkeypatch):
    model = llava().double()
    network = Network(model)
    sampler = InProcess(network, [1], 0)
    assert sampler._shares_prompts
    if decoder == "copied":
        sampler._shares_prompts = False
    read = [renderer().read(row) for row in ROWS]
    requests = [
        SampleRequest(prompt_ids=ids, n=3, seed=0, step=0, prompt_id=i, inputs=given,
                      sampling=Sampling(max_completion_tokens=5))
        for i, (ids, given) in enumerate(read)
    ]  # fmt: skip
    found = sampler.sample(requests)
    for (prompt, given), group in zip(read, found, strict=True):
        for completion in group:
            said = completion.ids
            own = own_logits(model, prompt, given, said).log_softmax(dim=-1)[range(len(said)), list(said)]
            np.testing.assert_allclose(completion.logprobs, own.detach(), rtol=1e-5, atol=1e-5)
    assert isinstance(CopiedCache, type)
    assert found[0] != found[1]
    assert torch.is_grad_enabled()


def rows_of(number: int) -> list[dict]:
    return [{"prompt": "a<image>b?", "images": [picture(i)], "answer": "c"} for i in range(number)]


def given() -> Given:
    data = Dataset(
        name="pictures", train=rows_of(8), held_out=rows_of(2), rewards=(), is_correct=None, reading="pictures"
    )
    return Given(model=llava(), tokenizer=processor(), data=data)


@pytest.mark.parametrize("layout", ("shared_prefix", "padded"))
def test_gspo_trains_it_and_a_resumed_run_has_the_same_bits(tmp_path, layout):
    base = replace(SMALL, layout=layout)
    whole = start(replace(base, folder=str(tmp_path / "whole")), given())
    start(replace(base, folder=str(tmp_path / "parts"), steps=1), given())
    again = resume(tmp_path / "parts", overrides=[("steps", 3)], given=given())
    moved = 0
    for (name, a), b, first in zip(
        whole.model.named_parameters(), again.model.parameters(), llava().parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        moved += "vision_tower" in name and not torch.equal(a, first)
    assert moved and whole.summary["old_logprobs"] == "sampler"


def test_a_folder_and_a_file_of_pictures(tmp_path):
    """As a user has them: an exported model with its processor, rows with paths."""
    llava().save_pretrained(tmp_path / "llava")
    processor().save_pretrained(tmp_path / "llava")
    lines = []
    for i in range(8):
        picture(i).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"prompt": "a<image>b?", "image": str(tmp_path / f"{i}.png"), "answer": "cc"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = replace(
        SMALL,
        model=str(tmp_path / "llava"),
        folder=str(tmp_path / "run"),
        data=DataConfig(path=str(tmp_path / "rows.jsonl")),
        terms=(gspo.ReferenceKL(coef=0.01),),
    )
    run = start(config)
    assert run.is_finished
    parts = build(replace(config, model=str(run.folder / "model")), report=lambda text: None)
    parts.rewards.close()
    assert parts.loaded.processor is not None
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("kl", 0) > 0 for line in lines)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the processor cannot read the prompt"):
        renderer().read({"prompt": "a<image>b<image>", "images": [picture(1)]})
    network = Network(llava())
    ids, inputs = renderer().read(ROWS[0])
    with pytest.raises(ValueError, match="no image token"), network.seeing([ids[:1]], [inputs]):
        pass
    from small_models import network as text_network

    with pytest.raises(ValueError, match="reads text alone"), text_network("llama").seeing([ids], [inputs]):
        pass


def test_positions_in_two_dimensions_are_refused_by_name():
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    shape = Qwen2VLConfig(
        text_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "num_key_value_heads": 1, "vocab_size": 40,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1},
        image_token_id=30, video_token_id=31, vision_start_token_id=32, vision_end_token_id=33,
    )  # fmt: skip
    network = Network(Qwen2VLForConditionalGeneration(shape).eval())
    pixels = {
        "pixel_values": np.zeros((16, 3 * 2 * 4 * 4), dtype=np.float32),
        "image_grid_thw": np.array([[1, 4, 4]]),
        "mm_token_type_ids": np.array([[0, 0, 1, 1, 1, 1, 0, 0]]),
    }
    prompt = (2, 32, 30, 30, 30, 30, 33, 3)
    with pytest.raises(ValueError, match=r"positions in two dimensions \(M-RoPE\)"), network.seeing([prompt], [pixels]):
        pass
