"""Servers that die, hang, start again, have another model or another run's weights."""

import copy
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_servers import DEFAULT, FakeSGLang, FakeVLLM, serving
from small_models import VOCABULARY, network

from gspo.models import LoRA, with_lora
from gspo.policies.network import Network
from gspo.samplers import SampleRequest, SamplerLost
from gspo.samplers.base import TakesSnapshots
from gspo.samplers.http import Link
from gspo.samplers.servers import Servers, group_seed, runs
from gspo.samplers.sglang import SGLang
from gspo.samplers.vllm import VLLM
from gspo.samplers.weight_store import Snapshot, WeightStore, is_alive, read_label, save_adapters, save_base
from gspo.sampling import Sampling

STOP = 1
DIALECTS = {"vLLM": (VLLM(), FakeVLLM), "SGLang": (SGLang(), FakeSGLang)}


@pytest.fixture
def policy():
    return SimpleNamespace(network=network(dtype=torch.float32))


def engine(kind=FakeVLLM, **settings):
    return kind(network(dtype=torch.float32, seed=1), [STOP], **settings)


def sampler_of(urls, folder, dialect=VLLM(), timeout=10.0, deadline=10.0, **settings):
    links = [Link(url, dialect.name, timeout) for url in urls]
    return Servers(links, dialect, WeightStore(str(folder)), stop_ids=[STOP], deadline=deadline, **settings)


def requests(n=3, prompts=4, tokens=6, step=0):
    return [
        SampleRequest(
            prompt_ids=(5, 6 + p % (VOCABULARY - 6)),
            n=n,
            seed=0,
            step=step,
            prompt_id=p,
            sampling=Sampling(max_completion_tokens=tokens),
        )
        for p in range(prompts)
    ]


def ids(groups):
    return [[c.ids for c in group] for group in groups]


def versions(groups):
    return {c.policy_version for group in groups for c in group}


@pytest.mark.parametrize("name", DIALECTS)
def test_new_weights_other_completions(name, policy, tmp_path):
    """The server says what the policy would say, before and after an update, and old files go."""
    dialect, kind = DIALECTS[name]
    with serving(engine(kind)) as server:
        sampler = sampler_of([server.url], tmp_path, dialect)
        assert isinstance(sampler, TakesSnapshots)
        sampler.sync_weights(policy, 0)
        before = sampler.sample(requests())
        with torch.no_grad():
            for p in policy.network.model.parameters():
                p.mul_(1.3)
        sampler.sync_weights(policy, 3)
        after = sampler.sample(requests())
        assert versions(before) == {0} and versions(after) == {3}
        assert ids(before) != ids(after)
        state = server.engine.network.model.state_dict()
        for key, value in policy.network.model.state_dict().items():
            torch.testing.assert_close(state[key], value)
        assert [path.name for path in sampler.store.folder.iterdir() if path.is_dir()] == ["3"]
    folder = sampler.store.folder
    del sampler
    assert not folder.exists()


def test_an_update_pauses_reloads_forgets_labels_and_resumes(policy, tmp_path):
    with serving(engine()) as server:
        sampler = sampler_of([server.url], tmp_path)
        sampler.sync_weights(policy, 0)
        assert server.engine.log == [
            "/weight_info", "/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"
        ]  # fmt: skip
        sampler.sync_weights(policy, 0)
        assert len(server.engine.log) == 6, "the version was there already"


def test_a_snapshot_is_of_its_moment(policy, tmp_path):
    """It is put in place later, when the policy has moved on."""
    with serving(engine()) as server:
        sampler = sampler_of([server.url], tmp_path)
        sampler.sync_weights(policy, 0)
        kept = policy.network.output.weight.clone()
        put = sampler.snapshot(policy, 1)
        with torch.no_grad():
            policy.network.output.weight.zero_()
        later = sampler.snapshot(policy, 2)
        put()
        assert versions(sampler.sample(requests())) == {1}
        torch.testing.assert_close(server.engine.network.output.weight, kept)
        later()
        assert versions(sampler.sample(requests())) == {2}
        assert not server.engine.network.output.weight.any()


def test_requests_are_spread_and_bounded(policy, tmp_path):
    with serving(engine(delay=0.05)) as one, serving(engine(delay=0.05)) as two:
        sampler = sampler_of([one.url, two.url], tmp_path, rows=6)
        sampler.sync_weights(policy, 0)
        most, sample = [], FakeVLLM.completions

        def watched(self, *arguments):
            most.append(sum(s.engine.under_way for s in (one, two)))
            return sample(self, *arguments)

        for server in (one, two):
            server.engine.completions = watched.__get__(server.engine)
        groups = sampler.sample(requests(prompts=8))
        asked = [server.engine.log.count("/inference/v1/generate") for server in (one, two)]
        assert sum(asked) == 8 and min(asked) >= 3
        assert max(most) <= 1, "6 rows are two groups of three: one is under way when another begins"
        assert len(groups) == 8 and all(len(group) == 3 for group in groups)


def test_positions_have_their_own_seeds():
    """Whatever is asked for together: index i of a prompt and turn is one stream."""
    (request, *_) = requests(n=4)
    some = replace(request, n=3, indices=(2, 3, 7))
    assert runs(request) == [range(4)] and runs(some) == [range(2, 4), range(7, 8)]
    assert [len(run) for run in runs(replace(request, n=150))] == [64, 64, 22]
    assert group_seed(some) == group_seed(request) != group_seed(replace(request, turn=1))
    assert 0 <= group_seed(request) < 2**62


def test_indices_are_those_of_the_group(policy, tmp_path):
    with serving(engine()) as server:
        sampler = sampler_of([server.url], tmp_path)
        sampler.sync_weights(policy, 0)
        (request, *_) = requests(n=5)
        (whole,) = sampler.sample([request])
        (some,) = sampler.sample([replace(request, n=3, indices=(1, 2, 4))])
        assert some == [whole[1], whole[2], whole[4]]
        (short,) = sampler.sample([replace(request, limit=2)])
        assert max(len(c.ids) for c in short) <= 2


def test_a_server_that_dies_and_comes_back_gets_the_weights_first(policy, tmp_path):
    """kill -9 in the middle of a wave: it comes back with what it was started with, and no token of those is taken."""
    with serving(engine(delay=0.1)) as server:
        sampler = sampler_of([server.url], tmp_path, rows=3)
        sampler.sync_weights(policy, 4)
        whole = ids(sampler.sample(requests(prompts=6)))
        came = sampler.sample_each(requests(prompts=6))
        found = [next(came)]
        dead = server.die()

        def start_again():
            time.sleep(0.4)
            dead.restart()
            server.engine = dead

        threading.Thread(target=start_again).start()
        found += list(came)
        assert [[c.ids for c in group] for _, group in sorted(found)] == whole
        assert {c.policy_version for _, group in found for c in group} == {4}
        assert server.engine.label.startswith("gspo 4 ")


def test_a_server_that_restarts_between_two_waves_is_noticed(policy, tmp_path):
    with serving(engine()) as server:
        sampler = sampler_of([server.url], tmp_path)
        sampler.sync_weights(policy, 0)
        before = sampler.sample(requests())
        server.engine.restart()
        assert server.engine.label == DEFAULT
        assert sampler.sample(requests()) == before


@pytest.fixture
def adapted():
    """A policy of adapters, away from where they start."""
    model = with_lora(network(dtype=torch.float32).model, LoRA(rank=2), 0)
    return SimpleNamespace(network=SimpleNamespace(model=model))


def move_adapters(policy) -> None:
    with torch.no_grad():
        for name, p in policy.network.model.named_parameters():
            if "lora_" in name:
                p.add_(0.1)


def of_adapters(urls, folder, **settings):
    """A sampler that sends adapters alone."""
    made = sampler_of(urls, folder, VLLM(sends_adapters=True), **settings)
    made.store.save, made.store.save_base = save_adapters, save_base
    return made


def test_adapters_go_alone_on_top_of_what_the_run_began_with(adapted, tmp_path):
    fake = engine()  # of other weights than the run's
    fake.takes_adapters = True
    with serving(fake) as server:
        sampler = of_adapters([server.url], tmp_path)
        for version in range(3):
            move_adapters(adapted)
            if version == 2:  # started again in between: it has neither base nor adapter
                fake.restart()
            sampler.sync_weights(adapted, version)
            found = sampler.sample(requests())
            merged = Network(copy.deepcopy(adapted.network.model).merge_and_unload())
            expected = FakeVLLM(merged, [STOP])
            seeds = [group_seed(requests()[0]) + i for i in range(3)]
            same = expected.completions(requests()[0].prompt_ids, requests()[0].sampling, seeds)
            assert ids(found)[0] == [ids for ids, *_ in same] and versions(found) == {version}
    assert fake.loads == ["model", "adapter", "adapter", "model", "adapter"]
    assert fake.log.count("/reset_prefix_cache") == 3


def test_a_server_that_lost_its_adapter_in_the_middle_gets_it_again(adapted, tmp_path):
    fake = engine()
    fake.takes_adapters = True
    with serving(fake) as server:
        sampler = of_adapters([server.url], tmp_path)
        sampler.sync_weights(adapted, 0)
        sampler.sample(requests())
        fake.restart()
        assert versions(sampler.sample(requests(step=1))) == {0}
    assert fake.loads == ["model", "adapter"] * 2


def test_a_server_without_room_for_adapters_is_named(adapted, tmp_path):
    with serving(engine()) as server, pytest.raises(SamplerLost, match="--lora-rank R"):
        of_adapters([server.url], tmp_path).sync_weights(adapted, 0)


def test_a_hung_server_is_left_for_another(policy, tmp_path):
    with serving(engine()) as one, serving(engine()) as two:
        sampler = sampler_of([one.url, two.url], tmp_path, timeout=0.5, deadline=90.0)
        sampler.sync_weights(policy, 0)
        one.engine.hangs.set()
        groups = sampler.sample(requests(prompts=6))
        assert versions(groups) == {0} and len(groups) == 6
        sampler.sync_weights(policy, 1)  # one server of two is enough
        assert versions(sampler.sample(requests())) == {1}
        one.engine.hangs.clear()
        time.sleep(1.2)
        assert versions(sampler.sample(requests(prompts=12))) == {1}


@pytest.mark.parametrize("how", ["dead", "hung"])
def test_no_wait_is_without_end(how, policy, tmp_path):
    with serving(engine()) as server:
        sampler = sampler_of([server.url], tmp_path, timeout=0.3, deadline=0.6)
        sampler.sync_weights(policy, 0)
        dead = server.engine
        if how == "hung":
            dead.hangs.set()
        else:
            server.die()
        started = time.monotonic()
        with pytest.raises(SamplerLost, match=r"prompt \d, whose completions .* should give, waited"):
            sampler.sample(requests())
        with pytest.raises(SamplerLost, match=r"the weights of version 1, which the vLLM server at .* should load"):
            sampler.sync_weights(policy, 1)
        assert time.monotonic() - started < 8
        dead.hangs.clear()


def test_a_fault_of_the_server_is_told_in_its_words(policy, tmp_path):
    with serving(engine()) as server:
        sampler = sampler_of([server.url], tmp_path)
        server.engine.load = lambda folder: 1 / 0
        with pytest.raises(SamplerLost, match=r"should load, failed 4 times: .*ZeroDivisionError"):
            sampler.sync_weights(policy, 0)


def test_wrong_url_and_missing_endpoints(policy, tmp_path):
    with pytest.raises(SamplerLost, match=r"waited .* refused"):
        sampler_of(["http://127.0.0.1:9"], tmp_path, deadline=0.3).sync_weights(policy, 0)
    for path in ("/weight_info", "/inference/v1/generate"):
        with serving(engine()) as server:
            server.engine.missing.add(path)
            sampler = sampler_of([server.url], tmp_path)
            with pytest.raises(SamplerLost, match=f"has no {path}: it must be vLLM 0.32"):
                sampler.sync_weights(policy, 0)
                sampler.sample(requests())
    with serving(engine(FakeSGLang)) as server, pytest.raises(SamplerLost, match="no /weight_info"):
        sampler_of([server.url], tmp_path).sync_weights(policy, 0)


def test_two_runs_do_not_share_a_server(policy, tmp_path):
    with serving(engine()) as server:
        first = sampler_of([server.url], tmp_path)
        first.sync_weights(policy, 0)
        second = sampler_of([server.url], tmp_path)
        with pytest.raises(SamplerLost, match=r"is in use by another run, whose weights lie in .*run-"):
            second.sync_weights(policy, 0)
        assert versions(first.sample(requests())) == {0}
        del first  # it ends, and its label stays behind
        second.sync_weights(policy, 5)
        assert versions(second.sample(requests())) == {5}


def test_a_run_that_lost_its_server_to_another_says_so(policy, tmp_path):
    """The other's folder cannot be seen from here: both would go on loading their weights in turn."""
    with serving(engine()) as server:
        sampler = sampler_of([server.url], tmp_path)
        sampler.sync_weights(policy, 0)
        server.engine.label = Snapshot(3, tmp_path / "elsewhere" / "run-1" / "3").label
        with pytest.raises(SamplerLost, match="in use by another run"):
            sampler.sample(requests())


def test_locks_tell_whether_a_run_lives(tmp_path):
    store = WeightStore(str(tmp_path))
    assert is_alive(store.folder) == "yes" and is_alive(tmp_path / "none") == "unknown"
    left = tmp_path / "run-left"
    left.mkdir()
    (left / "lock").touch()
    assert is_alive(left) == "no"
    WeightStore(str(tmp_path))
    assert not left.exists(), "what a killed run left behind goes with the next"


def test_labels_are_read_back():
    label = Snapshot(-7, WeightStore("").folder / "with space" / "-7").label
    assert read_label(label).version == -7 and read_label(label).label == label
    assert all(read_label(text) is None for text in ("default", "", "gspo", "gspo x /a", "gspo 3", "12"))


@pytest.mark.parametrize("restarts", [False, True])
def test_weights_may_change_while_it_samples(restarts, policy, tmp_path):
    """From another thread: no completion mixes two versions; those under way end, or are drawn again."""
    with serving(engine(delay=0.1)) as server:
        sampler = sampler_of([server.url], tmp_path, restarts=restarts, rows=12)
        sampler.sync_weights(policy, 0)
        stop = threading.Event()

        def update():
            version = 0
            while not stop.wait(0.07):
                version += 1
                with torch.no_grad():
                    policy.network.output.weight.mul_(1.01)
                sampler.sync_weights(policy, version)

        thread = threading.Thread(target=update)
        thread.start()
        groups = sampler.sample(requests(prompts=24))
        stop.set()
        thread.join()
        assert len(groups) == 24 and all(len(group) == 3 for group in groups)
        assert all(len({c.policy_version for c in group}) == 1 for group in groups)
        assert len(versions(groups)) > 1
        assert server.engine.drops == (0 if not restarts else server.engine.log.count("/pause"))


def test_a_wave_that_nobody_waits_for_ends(policy, tmp_path):
    with serving(engine(delay=0.05)) as server:
        sampler = sampler_of([server.url], tmp_path, rows=3)
        sampler.sync_weights(policy, 0)
        came = sampler.sample_each(requests(prompts=40))
        next(came)
        came.close()
        time.sleep(0.2)
        asked = len(server.engine.log)
        time.sleep(0.2)
        assert len(server.engine.log) == asked < 20


def test_images_are_refused(policy, tmp_path):
    sampler = sampler_of(["http://127.0.0.1:9"], tmp_path)
    with pytest.raises(ValueError, match="images cannot be sent"):
        sampler.sample([replace(requests()[0], inputs=("image",))])
