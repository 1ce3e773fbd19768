"""Where masked models come from: a small one from scratch, or any that transformers loads, its own code included."""

from typing import Any

import torch

from gspo.models import Loaded, TinyConfig, character_tokenizer

MASK = "<mask>"
REMOTE = ("AutoModelForMaskedLM", "AutoModel", "AutoModelForCausalLM")
"""Names under which a repository's own code may offer a model of logits: LLaDA and Dream have the second."""


def tiny_masked_model(config: TinyConfig, seed: int) -> Loaded:
    """A randomly initialised BERT (every position sees every other) and its character tokenizer with a mask token."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = character_tokenizer(config.alphabet)
    tokenizer.add_special_tokens({"mask_token": MASK})
    shape = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # at BERT's 0.02 so narrow a model takes twice as long to learn to copy
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(shape)
    return Loaded(model, tokenizer, "tiny BERT, random weights")


def read_masked_model(path: str, trusts_remote_code: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder or an id.

    A model that transformers knows as causal alone is loaded as such: whether it reads in both directions is tried
    later, by its answers.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    written, _ = transformers.PretrainedConfig.get_config_dict(path)
    kind, own = written.get("model_type", ""), written.get("auto_map", {})
    if own and kind not in CONFIG_MAPPING_NAMES and not trusts_remote_code:
        raise ValueError("it runs Python files of its own; read them, then set policy.trust_remote_code = true")
    offered = next((name for name in REMOTE if name in own), "") if trusts_remote_code else ""
    known = "AutoModelForMaskedLM" if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "AutoModelForCausalLM"
    load = getattr(transformers, offered or known).from_pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trusts_remote_code)
    return load(path, dtype="auto", trust_remote_code=trusts_remote_code), tokenizer
