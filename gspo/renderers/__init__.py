"""Text in and out of a model: chat templates, end tokens, thinking tags. Sampled ids are never re-tokenised."""

from gspo.renderers.chat import Messages, Prompt, Renderer

__all__ = ["Messages", "Prompt", "Renderer"]
