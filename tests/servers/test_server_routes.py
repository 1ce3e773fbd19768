"""Expert routes from a server: what a run repeats of them, which layers they are of, and what is refused."""

import copy
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_servers import FakeVLLM, packed, serving, unpacked
from runs import assert_same_run, metrics, settings
from small_models import FAMILIES, OTHERS, VOCABULARY
from transformers import DeepseekV3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from gspo.models import save_model, tiny_model
from gspo.placement import servers as placed
from gspo.placement.cluster import Where
from gspo.policies.network import Network
from gspo.policies.routing import ExpertLayers
from gspo.samplers import InProcess, SampleRequest, SamplerLost, connect, vllm_command
from gspo.samplers.http import Link
from gspo.samplers.servers import Servers, group_seed, runs
from gspo.samplers.vllm import VLLM
from gspo.samplers.vllm_command import Asked, command_of
from gspo.samplers.weight_store import WeightStore
from gspo.sampling import Sampling
from gspo.training.kinds import causal_lm
from gspo.training.run import start

STOP = 1
EXPERTS = (
    ("tiny.experts", 4),
    ("tiny.layers", 3),
    ("optimizer.lr", 0.01),
    ("old_logprobs", "sampler"),
    ("evaluation.every", 0),
    ("steps", 2),
    ("checkpoints.every", 2),
)


class Alike:
    """In process: each completion from the counters that a server is sent, in a wave of its own."""

    scores = "exact"

    def __init__(self, network: Network) -> None:
        self.sampler = InProcess(network, [STOP], 0)

    def sync_weights(self, policy, version) -> None:
        self.sampler.sync_weights(policy, version)

    def sample(self, requests):
        return [[self._one(request, i) for part in runs(request) for i in part] for request in requests]

    def _one(self, request, index):
        asked = SampleRequest(
            prompt_ids=request.prompt_ids,
            n=1,
            seed=(group_seed(request) + index) % 2**62,
            step=0,
            prompt_id=0,
            sampling=request.sampling,
        )
        return self.sampler.sample([asked])[0][0]


def engine_of(loaded, folder):
    """A server of a run's model, of other weights."""
    save_model(loaded.model, folder)
    engine = FakeVLLM(Network(copy.deepcopy(loaded.model).eval()), [STOP], folder=folder)
    engine.encode = lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    engine.records_routes = True
    return engine


def recipe(folder, routing, url=None, shared=None, *more):
    policy = ("policy", {"name": "causal_lm", "routing": routing})
    where = () if url is None else (("sampler", {"name": "vllm", "url": url, "shared": str(shared)}),)
    return settings(folder, *EXPERTS, policy, *where, *more)


@pytest.fixture
def engine(tmp_path):
    return engine_of(tiny_model(recipe(tmp_path / "none", "free").tiny, seed=5), tmp_path / "model")


@pytest.fixture
def served_run(engine, tmp_path):
    """Trains over HTTP; gives the run's folder."""

    def train(name, routing, *more):
        with serving(engine) as server:
            start(recipe(tmp_path / name, routing, server.url, tmp_path / "shared", *more))
        return tmp_path / name

    return train


@pytest.fixture
def local_run(tmp_path, monkeypatch):
    """The same completions without a server."""

    def train(name, routing):
        with monkeypatch.context() as patch:
            patch.setattr(causal_lm, "chosen_sampler", lambda config, asked, loaded, network, renderer: Alike(network))
            start(recipe(tmp_path / name, routing))
        return tmp_path / name

    return train


def losses(folder):
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def test_a_run_over_http_repeats_the_routes_of_one_in_process(served_run, local_run, engine):
    """To the bit; and it is the routes that make it so: free ones, or those of another layer, are another run."""
    served = served_run("served", "R3")
    assert_same_run(local_run("local", "R3"), served)
    changed = [line["experts/changed"] for line in metrics(served) if "experts/changed" in line]
    assert max(changed) > 0, "nothing was there to repeat"
    free = served_run("free", "free")
    assert_same_run(local_run("free in process", "free"), free)  # recorded there too, for the metrics
    engine.routed = lambda routes: np.roll(FakeVLLM.routed(engine, routes), 1, axis=1)
    shifted = served_run("shifted", "R3")
    assert len({tuple(losses(run)) for run in (served, free, shifted)}) == 3


def test_routes_go_with_a_policy_lag(served_run):
    folder = served_run("beside", "R3", ("max_policy_lag", 1), ("old_logprobs", "auto"), ("steps", 3))
    assert max(line["policy_lag/max"] for line in metrics(folder) if "policy_lag/max" in line) == 1


# ---- which layers


def sparse_model(dense=(0,), layers=4):
    config = copy.deepcopy({**FAMILIES, **OTHERS}["qwen3-moe"])
    config.num_hidden_layers, config.mlp_only_layers = layers, list(dense)
    config.layer_types = ["full_attention"] * layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3.0) if p.ndim > 1 else p
    model.set_experts_implementation("eager")
    return Network(model.eval())


def sampler_of(server, network, folder, **more):
    links = [Link(server.url, "vLLM", 10.0)]
    more = {"needs_routes": True, **more}
    store = WeightStore(str(folder))
    return Servers(links, VLLM(), store, stop_ids=[STOP], deadline=10.0, experts=network.expert_layers, **more)


def requests(prompts=3, n=3, tokens=6):
    sampling = Sampling(max_completion_tokens=tokens)
    return [
        SampleRequest(
            prompt_ids=tuple(range(5, 7 + p))[: VOCABULARY - 1], n=n, seed=0, step=0, prompt_id=p, sampling=sampling
        )
        for p in range(prompts)
    ]


@pytest.mark.parametrize(("dense", "layers"), [((0,), (1, 2, 3)), ((), (0, 1, 2, 3)), ((1, 3), (0, 2))])
def test_the_columns_are_those_of_the_layers_with_experts(dense, layers, tmp_path):
    network = sparse_model(dense)
    assert network.expert_layers == ExpertLayers(layers, 4, 4, 2)
    engine = FakeVLLM(sparse_model(dense), [STOP])
    engine.records_routes = True
    with serving(engine) as server:
        sampler = sampler_of(server, network, tmp_path)
        sampler.sync_weights(SimpleNamespace(network=network), 0)
        found = sampler.sample(requests())
        assert found == Alike(network).sample(requests())
        for request, group in zip(requests(), found, strict=True):
            for completion in group:
                tokens = len(request.prompt_ids) + len(completion.ids) - 1
                assert network.routers.checked(completion.replay, tokens).shape == (tokens, len(layers), 2)


def test_layers_are_found_by_the_names_of_routers():
    shape = {k: v for k, v in FAMILIES["llama"].to_dict().items() if k in ("hidden_size", "vocab_size")}
    config = DeepseekV3Config(
        **shape, num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1,
        moe_intermediate_size=16, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=8,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.set_experts_implementation("eager")
    network = Network(model.eval())
    assert network.expert_layers == ExpertLayers((1, 2), 3, 8, 2)
    twice = SimpleNamespace(modules=network.routers.modules * 2, num_experts=8, top_k=2)
    assert ExpertLayers.of(network.body, twice, 3) is None
    bare = SimpleNamespace(modules=(network.body.norm,), num_experts=8, top_k=2)
    assert ExpertLayers.of(network.body, bare, 3) is None
    settled = SimpleNamespace(lora="merged", name="vllm", shared="", url="", in_flight="finish", timeout=1, deadline=1)
    with pytest.raises(ValueError, match="one router in each numbered layer"):
        connect.connect(
            settled, model_config=None, tokenizer=None, stop_ids=[STOP], rows=1, max_completion_tokens=1,
            needs_routes=True,
        )  # fmt: skip


# ---- what is refused


WRONG = {
    "none": (lambda full: None, "says no expert routes"),
    "one layer less": (lambda full: full[:, 1:], r"gave expert routes of shape \(\d+, 3, 2\) and not \(\d+, 4, 2\)"),
    "another number of experts": (lambda full: full[:, :, :1], r"of shape \(\d+, 4, 1\) and not"),
    "without the prompt's first token": (lambda full: full[1:], r"of shape \(\d+, 4, 2\) and not"),
    "one token more": (lambda full: np.concatenate([full, full[-1:]]), r"of shape \(\d+, 4, 2\) and not"),
    "of more experts": (lambda full: full + np.uint8(3), "that name experts 3 to 6, and there are 4"),
    "negative": (lambda full: full.astype(np.int32) - 1, "that name experts -1 to 2, and there are 4"),
    "a layer further": (lambda full: np.roll(full, 1, axis=1), "without layer 1, which has experts here"),
}


@pytest.mark.parametrize("name", WRONG)
def test_routes_that_do_not_fit_are_one_line_and_not_asked_for_again(name, tmp_path):
    change, said = WRONG[name]
    network = sparse_model()
    engine = FakeVLLM(sparse_model(), [STOP])
    engine.records_routes = True
    generate = engine.generate

    def spoilt(body):
        found = generate(body)
        for choice in found["choices"]:
            assert choice["routed_experts"], "it recorded nothing"
            full = change(unpacked(choice["routed_experts"]))
            choice["routed_experts"] = None if full is None else packed(full)
        return found

    engine.generate = spoilt
    with serving(engine) as server:
        sampler = sampler_of(server, network, tmp_path, rows=1)
        sampler.sync_weights(SimpleNamespace(network=network), 0)
        with pytest.raises(SamplerLost, match=said) as error:
            sampler.sample(requests(prompts=1))
        assert engine.log.count("/inference/v1/generate") == 1
    line = str(error.value)
    assert "\n" not in line and line.startswith("the vLLM server at http://") and "gspo serve MODEL --routes" in line


def test_a_server_without_the_option_is_named_before_it_gets_weights(engine, served_run, tmp_path):
    engine.records_routes = False
    with pytest.raises(SamplerLost, match=r"says no expert routes, .* start it with gspo serve MODEL --routes"):
        served_run("refused", "R3")
    assert "/pause" not in engine.log
    served_run("free", "free", ("steps", 1))  # and is right for a run that needs none
    assert engine.log.count("/inference/v1/generate") > 0


def test_dropped_completions_need_no_routes(tmp_path):
    """A weight update drops them, without routes; they are drawn again."""
    network = sparse_model()
    engine = FakeVLLM(sparse_model(), [STOP], delay=0.2)
    engine.records_routes = True
    with serving(engine) as server:
        sampler = sampler_of(server, network, tmp_path, restarts=True)
        policy = SimpleNamespace(network=network)
        sampler.sync_weights(policy, 0)
        update = threading.Timer(0.1, lambda: sampler.sync_weights(policy, 1))
        update.start()
        found = sampler.sample(requests())
        update.join()
    assert engine.drops == 2 and all(completion.replay for group in found for completion in group)


# ---- how servers are started


def version(monkeypatch, vllm="", cpu=""):
    monkeypatch.setattr(vllm_command, "installed", lambda *python: {"vllm": vllm, "cpu": cpu})
    monkeypatch.setattr(vllm_command, "refuse_taken_port", lambda host, port: None)


@pytest.mark.parametrize("routes", [False, True])
def test_serve_asks_vllm_for_routes(routes, monkeypatch):
    version(monkeypatch, vllm="0.32.0")
    asked = Asked(model="org/model", host="127.0.0.1", port=8000, python="python", routes=routes)
    assert ("--enable-return-routed-experts" in command_of(asked, print).words) == routes


@pytest.mark.parametrize("versions", [{"cpu": "0.32.0"}, {"vllm": "0.32.0+cpu"}])
def test_a_cpu_build_cannot_record_routes(versions, monkeypatch):
    version(monkeypatch, **versions)
    asked = Asked(model="org/model", host="127.0.0.1", port=8000, python="python", routes=True)
    with pytest.raises(ValueError, match="come from vLLM on GPUs"):
        command_of(asked, print)


@pytest.mark.parametrize("routing", ["free", "R3"])
def test_placed_servers_record_what_their_run_needs(routing, tmp_path):
    config = recipe(tmp_path / "run", routing, None, None, ("sampler", "vllm"), ("placement.servers", 1),
                    ("placement.on", "local"), ("placement.samplers", 0))  # fmt: skip
    charge = placed._charge(config, str(tmp_path), 0, Where(node="", address="127.0.0.1", port=1))
    assert charge.asked.routes == (routing == "R3")
