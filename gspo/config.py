"""The settings of a run: dataclass defaults, then one TOML file, then `--a.b VALUE`; nothing else anywhere.

Validation happens once, at the edge (`load_config`); unknown and ill-typed keys are refused with the nearest name.
The fields of objectives, advantages and terms are those of their own classes.
"""

import copy
import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from gspo.advantages import Advantage, GroupStd
from gspo.data import DataConfig
from gspo.models import SMOLLM2, TINY, Dtype, LoRA, TinyConfig
from gspo.objectives import GSPO, Objective, Term
from gspo.policies.layouts import LayoutName
from gspo.policies.master import AdamW
from gspo.rewards import RewardConfig
from gspo.sampling import Sampling

OldLogprobs = Literal["auto", "sampler", "policy"]


def _at_least(settings: Any, table: str, minimum: int, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value < minimum:
            raise ValueError(f"{table}{name} is {value}; it must be at least {minimum}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Course of the learning rate over optimizer updates."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or falling to `final` x lr at the last step, linearly or along a half cosine."""
    warmup_steps: int = 0
    """Steps (rollout batches) over which the rate rises linearly from 0."""
    final: float = 0.0
    """Share of the peak rate left at the last step."""

    def __post_init__(self) -> None:
        _at_least(self, "schedule.", 0, "warmup_steps", "final")


@dataclass(frozen=True, kw_only=True)
class CollectorConfig:
    """Which rollouts become a training batch."""

    refill: bool = False
    """DAPO's dynamic sampling: groups without reward spread are replaced by new prompts."""
    max_rounds: int = 4
    """Rounds of refilling before the step goes on with the groups it has."""
    drop_truncated: bool = False
    """DAPO's overlong filter: completions cut by the token limit are not trained (they still count as rows)."""

    def __post_init__(self) -> None:
        _at_least(self, "collector.", 1, "max_rounds")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out evaluation, with sampling settings of its own."""

    every: int = 20
    """Steps between evaluations; 0 evaluates before and after only."""
    prompts: int = 200
    """Held-out problems used (fewer when there are fewer)."""
    samples: int = 1
    """Completions per problem at `temperature`."""
    temperature: float = 0.0
    """Temperature of `eval/accuracy`; 0 is greedy."""
    greedy: bool = False
    """Also evaluate greedily, as `eval/greedy_*`, when `temperature` is not 0."""
    max_completion_tokens: int = 0
    """Token limit; 0 takes the training limit."""

    def __post_init__(self) -> None:
        _at_least(self, "evaluation.", 0, "every", "prompts", "temperature", "max_completion_tokens")
        _at_least(self, "evaluation.", 1, "samples")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What is written, and what is kept."""

    every: int = 20
    """Steps between checkpoints; one is always written at the end and when the run is interrupted."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_rollouts: int = 50
    """Newest rollout and ledger files kept; 0 keeps all."""
    save_rollouts_every: int = 1
    """Steps between saved rollout and ledger files."""

    def __post_init__(self) -> None:
        _at_least(self, "checkpoints.", 1, "every", "keep", "save_rollouts_every")
        _at_least(self, "checkpoints.", 0, "keep_rollouts")


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Supervised steps before reinforcement learning, on the task's own answers."""

    steps: int = 0
    """Most supervised steps; 0 starts from the model as it is."""
    batch: int = 128
    """Rows per supervised step."""
    lr: float = 2e-3
    """Learning rate of AdamW."""
    warmup_steps: int = 20
    """Steps over which the rate rises linearly from 0."""
    stop_at: float = 0.4
    """Greedy held-out accuracy at which the cold start ends."""
    check_every: int = 10
    """Steps between checks of that accuracy."""

    def __post_init__(self) -> None:
        _at_least(self, "cold_start.", 0, "steps", "warmup_steps")
        _at_least(self, "cold_start.", 1, "batch", "check_every")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a run."""

    name: str = "addition"
    """Name of the run; its folder is runs/NAME unless `folder` says otherwise."""
    folder: str = ""
    """Run folder; empty means runs/NAME, with a number appended when that exists."""
    seed: int = 0
    """Seed of the run: data order, sampling, and a tiny model's weights are functions of it."""
    model: str = TINY
    """"tiny", "smollm2-135m-instruct", a local folder, or a Hugging Face id such as "Qwen/Qwen3-0.6B"."""
    dtype: Dtype = "auto"
    """What the network computes in; master weights are float32. auto: float32 if small or on MPS, else bfloat16."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps."""
    threads: int = 0
    """CPU threads; 0 is one for models under 20 M parameters, else all cores. Part of what makes a run bit-equal."""
    steps: int = 100
    """Rollout batches of the whole run."""
    prompts_per_step: int = 32
    """Prompts sampled at once."""
    group_size: int = 8
    """Completions per prompt."""
    updates_per_step: int = 4
    """Mini-batches of whole groups that a rollout batch is cut into, one optimizer update each."""
    epochs: int = 1
    """Passes over each rollout batch."""
    micro_batch_tokens: int = 16384
    """Tokens, padding included, that go through the network at once while training."""
    layout: LayoutName = "padded"
    """Forward layout while training: padded rows, or shared_prefix (each prompt once for its group; same values)."""
    sampler_rows: int = 512
    """Completions decoded at once."""
    old_logprobs: OldLogprobs = "auto"
    """Denominator of the ratio: the sampler's own log-probs, a second pass of the policy, or auto by measured noise."""
    reward_failure_limit: float = 0.1
    """Share of reward calls that may fail in one step before the run stops."""
    system_prompt: str = ""
    """System message put before chat prompts."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Whether text prompts go through the chat template: auto sends only message lists."""
    stop: tuple[str, ...] = ()
    """Further end tokens, by their text, beside the tokenizer's and the generation config's."""
    strip_thinking: bool = False
    """Rewards see only the text behind </think>."""
    objective: Objective = field(default_factory=GSPO)
    """Objective by name, or a table with its fields."""
    terms: tuple[Term, ...] = ()
    """Terms added to the objective: reference_kl, entropy_bonus."""
    advantage: Advantage = field(default_factory=GroupStd)
    """Advantage estimator by name, or a table with its fields."""
    sampling: Sampling = field(default_factory=Sampling)
    """How completions are drawn while training."""
    data: DataConfig = field(default_factory=DataConfig)
    """Prompts and their columns."""
    rewards: tuple[RewardConfig, ...] = ()
    """Reward functions; empty takes the task's own."""
    optimizer: AdamW = field(default_factory=AdamW)
    """AdamW."""
    schedule: Schedule = field(default_factory=Schedule)
    """Learning-rate schedule."""
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    """Dynamic sampling and filters."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Held-out evaluation."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """Saving and retention."""
    cold_start: ColdStart = field(default_factory=ColdStart)
    """Supervised start."""
    lora: LoRA = field(default_factory=LoRA)
    """Low-rank adapters."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    """Shape of the embedded model."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Trackers written beside metrics.jsonl; one that is not installed is an error, except tensorboard."""

    def __post_init__(self) -> None:
        _at_least(self, "", 1, "steps", "prompts_per_step", "group_size", "updates_per_step", "epochs")
        _at_least(self, "", 1, "micro_batch_tokens", "sampler_rows")
        _at_least(self, "", 0, "seed", "threads", "reward_failure_limit")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu, cuda, cuda:1 or mps")
        if self.prompts_per_step % self.updates_per_step:
            raise ValueError(
                f"prompts_per_step = {self.prompts_per_step} does not divide into updates_per_step = "
                f"{self.updates_per_step} mini-batches of whole groups; choose a multiple"
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0: every completion of a group would be the same; use e.g. 1.0")


Node = dict[str, Any]
"""A nested table of settings, as TOML gives it."""


def load_config(recipe: Path | None = None, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Defaults, then the recipe, then overrides such as ["--steps", "10", "--objective.clip_low", "2e-4"].

    Without a recipe the base is the embedded default, recipes/addition.toml.
    """
    path = recipe if recipe is not None else recipe_folder() / "addition.toml"
    return validate(apply_overrides(read_recipe(path), parse_overrides(overrides)), str(path))


def recipe_folder() -> Path:
    """The recipes shipped inside the package."""
    return Path(__file__).parent / "recipes"


def find_recipe(name: str) -> Path:
    """A recipe file by path, or a shipped one by name ("smollm2-chain-sum", with or without folder and ".toml")."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(recipe_folder().glob("*.toml"))}
    if path.stem in shipped and path.parent.name in ("", "recipes"):
        return shipped[path.stem]
    raise ValueError(f"recipe {name!r} does not exist{nearest(path.stem, shipped)}; `gspo recipes` lists them")


def read_recipe(path: Path) -> Node:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"recipe {str(path)!r} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def parse_overrides(words: typing.Sequence[str]) -> list[tuple[str, Any]]:
    """["--a.b", "1", "--c=x"] -> [("a.b", 1), ("c", "x")]. Values are TOML values; anything else is text."""
    pairs: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ValueError(f"expected an override such as --steps 10, got {word!r}")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest:
                raise ValueError(f"--{key} needs a value")
            text = rest.pop(0)
        pairs.append((key.replace("-", "_"), _value(text)))
    return pairs


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def apply_overrides(table: Node, pairs: typing.Sequence[tuple[str, Any]]) -> Node:
    """Settings with dotted keys set; lists are addressed by position (`--rewards.0.weight 2`)."""
    table = copy.deepcopy(table)
    for key, value in pairs:
        node: Any = table
        *parents, last = key.split(".")
        for part in parents:
            node = _child(node, part, key)
        if isinstance(node, list):
            node[_position(node, last, key)] = value
        elif parents and last == "name" and isinstance(node.get("name"), str) and node["name"] != value:
            node.clear()  # another objective: its fields start from that class's defaults
            node["name"] = value
        else:
            node[last] = value
    return table


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, key)]
    if isinstance(node.get(part), str):
        node[part] = {"name": node[part]}  # objective = "gspo" is short for {name = "gspo"}
    child = node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise ValueError(f"--{key}: {part} is a value, not a table")
    return child


def _position(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"--{key}: {part!r} is not a position in a list of {len(node)}")
    return int(part)


def nearest(word: str, options: typing.Iterable[str]) -> str:
    """ "; did you mean 'x'?", or nothing."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def validate(table: Node, where: str = "settings") -> RunConfig:
    """A RunConfig, or one line that names the key, what is wrong, and the nearest name."""
    table = {
        key: {"name": value} if key in ("objective", "advantage") and isinstance(value, str) else value
        for key, value in table.items()
    }
    for key in ("objective", "advantage"):
        # A table without a name refines the default.
        if isinstance(table.get(key), dict):
            table[key] = {"name": {"objective": "gspo", "advantage": "group_std"}[key], **table[key]}
    _refuse_unknown(table, RunConfig, "", where)
    try:
        return ADAPTER.validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in NAMES) or "settings"
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] in ("value_error", "missing") else f" (got {first.get('input')!r})"
        raise ValueError(f"{where}: {key}: {message}{got}") from None


def _refuse_unknown(value: Any, kind: Any, path: str, where: str) -> None:
    """Walk settings beside their classes; the first unknown key is an error with the nearest name."""
    kind = _resolve(kind, value, f"{where}: {path.rstrip('.') or 'settings'}")
    if isinstance(value, list) and typing.get_origin(kind) is tuple:
        for i, item in enumerate(value):
            _refuse_unknown(item, typing.get_args(kind)[0], f"{path}{i}.", where)
    if not (isinstance(value, dict) and dataclasses.is_dataclass(kind)):
        return
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name for f in dataclasses.fields(kind)}
    for key, item in value.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {path + key!r}{nearest(key, fields)}")
        _refuse_unknown(item, hints[key], f"{path}{key}.", where)


def _resolve(kind: Any, value: Any, where: str) -> Any:
    """The member of a discriminated union that `value` names; other kinds unchanged."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and isinstance(value, dict):
        members = {m.name: m for m in typing.get_args(kind) if dataclasses.is_dataclass(m)}
        name = value.get("name")
        if name not in members:
            close = nearest(str(name), members)
            raise ValueError(f"{where}: unknown name {name!r}{close} (one of {', '.join(members)})")
        return members[name]
    return kind


def to_table(config: Any) -> Node:
    """A config as plain settings, ready for TOML; what `validate` reads back to an equal config."""
    return ADAPTER.dump_python(config, mode="json")


def write_toml(table: Node) -> str:
    """TOML of nested tables, lists of tables, and plain values."""
    lines: list[str] = []
    _write_table(table, "", lines)
    return "\n".join(lines).strip() + "\n"


def _write_table(table: Node, path: str, lines: list[str]) -> None:
    nested = {k: v for k, v in table.items() if isinstance(v, dict) or _is_table_list(v)}
    lines += [f"{_key(key)} = {_toml(value)}" for key, value in table.items() if key not in nested]
    for key, value in nested.items():
        inner = path + _key(key)
        for item in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{inner}]]" if isinstance(value, list) else f"[{inner}]"]
            _write_table(item, f"{inner}.", lines)


def _is_table_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if value is None:
        raise ValueError("a setting is None, which TOML cannot hold; leave it out")
    # TOML's strings are JSON's, except that DEL must be escaped.
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


ADAPTER = TypeAdapter(with_config(ConfigDict(extra="forbid"))(RunConfig))
SHIPPED_MODELS = (TINY, SMOLLM2)
NAMES = {m.name for union in (Objective, Term, Advantage) for m in typing.get_args(typing.get_args(union)[0])}
"""Discriminators, which pydantic puts into the path of an error."""
