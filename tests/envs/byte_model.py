"""A small chat model for any text: one token per byte, a template of the usual kind, random weights."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from gspo.models import TinyConfig, tiny_shape

TEMPLATE = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|pad|>", "<|start|>", "<|end|>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    return fast


def byte_model(context: int = 8192) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = byte_tokenizer()
    shape = TinyConfig(hidden_size=32, layers=2, heads=2, kv_heads=2, intermediate_size=64)
    config = tiny_shape(shape, tokenizer)
    config.max_position_embeddings = context
    return Qwen3ForCausalLM(config), tokenizer
