"""Turns prompts into token ids and sampled ids into text, with any transformers tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gspo.renderers.vision import images_of, read_with_images

Messages = list[dict[str, Any]]
Prompt = str | Messages
PLACE = "@gspo-said@"
"""Stands for the assistant's words where only what the template puts behind them is wanted."""


class Renderer:
    """A text prompt goes to the model as it is; a list of messages goes through the chat template.

    chat="always" makes a user message of a text prompt; "never" refuses message lists.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        generation: Any = None,
        system_prompt: str = "",
        chat: Literal["auto", "always", "never"] = "auto",
        stop: tuple[str, ...] = (),
        strip_thinking: bool = False,
        processor: Any = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.processor = processor
        self.system_prompt = system_prompt
        self.chat = chat
        self.strip_thinking = strip_thinking
        self._pieces: dict[int, str] = {}
        self.stop_ids = _stop_ids(tokenizer, generation, stop)
        self.end_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else self.stop_ids[0]
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_ids[0]

    def prompt_ids(self, prompt: Prompt, tools: Sequence[dict[str, Any]] = ()) -> tuple[int, ...]:
        """Token ids that the completion follows. An empty prompt is refused. `tools`: JSON schemas for the template."""
        if not self.is_chat(prompt):
            ids = self.encode(prompt)
            # Some tokenizers end every text with the end token; a prompt must stay open.
            ids = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        else:
            ids = self.tokenizer.apply_chat_template(
                self.messages(prompt),
                tools=list(tools) or None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )["input_ids"]
        if not ids:
            raise ValueError(f"the prompt {prompt!r} has no tokens under this tokenizer")
        return tuple(ids)

    def is_chat(self, prompt: Prompt) -> bool:
        """Whether a prompt goes through the chat template."""
        return not isinstance(prompt, str) or self.chat == "always" or bool(self.system_prompt)

    def read(self, row: Mapping[str, Any]) -> tuple[tuple[int, ...], Any]:
        """(token ids, inputs) of a data row's prompt; inputs are None where the model or the row has no images.

        A text prompt holds the processor's own image tokens; in a conversation {"type": "image"} stands for each.
        """
        prompt, images = row["prompt"], images_of(row)
        if not images or self.processor is None:
            return self.prompt_ids(prompt), None
        if self.is_chat(prompt):
            prompt = self.processor.apply_chat_template(
                self.messages(prompt), add_generation_prompt=True, tokenize=False
            )
        ids, inputs = read_with_images(self.processor, prompt, images)
        return tuple(ids[:-1] if ids and ids[-1] in self.stop_ids else ids), inputs

    def reply_ids(self, content: str | Messages, ended: bool, is_chat: bool) -> tuple[int, ...]:
        """What stands between a sampled completion and the next one, when the environment says `content`.

        In a conversation that is what the chat template puts behind an assistant's words: their end (unless the
        completion `ended` itself), the environment's messages, the opening of the next turn. Bare text is encoded as
        it is. The sampled ids before it are never touched.
        """
        if not is_chat:
            if not isinstance(content, str):
                raise ValueError(f"the environment says messages, but the prompt is bare text: {content!r:.80}")
            return tuple(self.encode(content, special=False)) if content else ()
        said = [{"role": "user", "content": content}] if isinstance(content, str) else list(content)
        spoken = [{"role": "user", "content": "-"}, {"role": "assistant", "content": PLACE}, *said]
        try:
            text = self.tokenizer.apply_chat_template(spoken, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # jinja2's, or the template's own
            roles = ", ".join(sorted({message["role"] for message in said}))
            raise ValueError(f"the model's chat template cannot render a message of role {roles}: {error}") from error
        ids = self.encode(text.partition(PLACE)[2], special=False)
        return tuple(ids[1:] if ended and ids and ids[0] in self.stop_ids else ids)

    def cut(self, content: str, budget: int) -> tuple[str, bool]:
        """Text of at most about `budget` tokens, marked where something is missing; and whether it is."""
        if len(content) <= budget:  # a token is at least a character, save for rare ones of several tokens
            return content, False
        ids = self.tokenizer(content, add_special_tokens=False)["input_ids"]
        if len(ids) <= budget:
            return content, False
        kept = self.tokenizer.decode(ids[:budget], skip_special_tokens=True)
        mark = f"... [cut: {budget} of {len(ids)} tokens]"
        return (kept + mark if self._knows(mark) else kept), True

    def _knows(self, text: str) -> bool:
        """Whether the tokenizer has tokens for a text; one of a few characters may not."""
        try:
            return self.tokenizer.decode(self.tokenizer(text, add_special_tokens=False)["input_ids"]) == text
        except Exception:  # tokenizers raises nothing more particular
            return False

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of bare text, with what the tokenizer puts around every text unless `special` is False.

        Text that the tokenizer has no tokens for is refused, not replaced.
        """
        try:
            return self.tokenizer(text, add_special_tokens=special)["input_ids"]
        except Exception as error:  # tokenizers raises nothing more particular
            raise ValueError(f"the model's tokenizer cannot encode {text[:80]!r}: {error}") from error

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a completion that is imitated or compared, closed by the end token."""
        return (*self.encode(text, special=False), self.end_id)

    def messages(self, prompt: Prompt) -> Messages:
        """The conversation that the chat template renders, the system prompt first."""
        if not isinstance(prompt, str) and self.chat == "never":
            raise ValueError('the data has chat messages but chat = "never"; set chat = "auto"')
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the prompt is a conversation (or has a system prompt) but this model has no chat template; "
                "use text prompts, or a chat model"
            )
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        has_system = bool(turns) and turns[0].get("role") == "system"
        if self.system_prompt and not has_system:
            turns.insert(0, {"role": "system", "content": self.system_prompt})
        return turns

    def prompt_text(self, ids: tuple[int, ...]) -> str:
        """The prompt as the model saw it, special tokens included."""
        return self.tokenizer.decode(list(ids))

    def text(self, ids: tuple[int, ...]) -> str:
        """The completion as text, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def ended_text(self, ids: tuple[int, ...]) -> str:
        """The same up to the first end token: a diffusion model fills all positions, those behind it too."""
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return self.text(ids[: end + 1])

    def shown(self, completions: Sequence[tuple[int, ...]]) -> dict[str, list[Any]]:
        """Columns that rewards read beside the texts of completions."""
        return {}

    def answer(self, text: str) -> str:
        """What rewards read: the text, or what follows its last </think>."""
        return text.rpartition("</think>")[2].lstrip() if self.strip_thinking else text

    def pieces(self, ids: tuple[int, ...]) -> list[str]:
        """One readable piece per token, for reports."""
        for i in ids:
            if i not in self._pieces:
                self._pieces[i] = self.tokenizer.decode([i])
        return [self._pieces[i] for i in ids]


def _stop_ids(tokenizer: Any, generation: Any, stop: tuple[str, ...]) -> tuple[int, ...]:
    found: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    configured = None if generation is None else generation.eos_token_id
    found += configured if isinstance(configured, list) else [] if configured is None else [configured]
    for text in stop:
        ids = tokenizer.convert_tokens_to_ids([text])
        if ids[0] is None or ids[0] == tokenizer.unk_token_id:
            raise ValueError(f"stop token {text!r} is not one token of this tokenizer")
        found.append(ids[0])
    if not found:
        raise ValueError('the tokenizer has no end token; name one with stop = ["<token>"]')
    return tuple(sorted(set(found)))
