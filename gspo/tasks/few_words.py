"""Answer in fewer than ten words: an instruction task about length."""

from typing import Any

from gspo.rewards.base import RewardConfig
from gspo.rewards.few_words import few_words as few_words_reward
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, permutation, refuse_unknown

TOPICS = (
    "the sun",
    "the moon",
    "rain",
    "snow",
    "the sea",
    "a river",
    "a mountain",
    "a forest",
    "a desert",
    "an island",
    "a volcano",
    "a rainbow",
    "a city",
    "a school",
    "a library",
    "a hospital",
    "a museum",
    "a market",
    "a bridge",
    "a train",
    "a bicycle",
    "an airplane",
    "a ship",
    "a clock",
    "a camera",
    "a telephone",
    "a computer",
    "a mirror",
    "a guitar",
    "a piano",
    "a book",
    "a newspaper",
    "a dog",
    "a cat",
    "a horse",
    "a bee",
    "an elephant",
    "bread",
    "coffee",
    "chocolate",
)
PHRASINGS = (
    "What is {topic}?",
    "What comes to mind when you think of {topic}?",
    "Describe {topic}.",
    "How would you explain {topic} to a child?",
    "Name one thing people like about {topic}.",
    "Name one thing people dislike about {topic}.",
    "Why does {topic} matter?",
    "What would the world miss without {topic}?",
    "Tell me a fact about {topic}.",
    "What is special about {topic}?",
    "Give a title for a story about {topic}.",
    "What could a poem about {topic} say?",
    "What question would you ask about {topic}?",
    "What might surprise someone about {topic}?",
    "What is the first thing you notice about {topic}?",
    "Where might you come across {topic}?",
    "When do people think about {topic}?",
    "Who cares most about {topic}?",
    "What goes well with {topic}?",
    "What is the opposite of {topic}, in your view?",
    "How does {topic} make people feel?",
    "What would you write about {topic} on a postcard?",
    "What can we learn from {topic}?",
    "Compare {topic} with something else.",
    "What is a common mistake about {topic}?",
)
REQUEST = " Answer in fewer than ten words."
HELD_OUT_TOPICS = 8


def few_words(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """40 topics x 25 phrasings; 8 whole topics (200 prompts) are held out."""
    refuse_unknown("few_words", options, ())
    topics = permutation(SPLIT_SEED, 0, len(TOPICS))
    phrasings = len(PHRASINGS)
    held = [t * phrasings + p for p in range(phrasings) for t in topics[:HELD_OUT_TOPICS]]
    train = [t * phrasings + p for t in topics[HELD_OUT_TOPICS:] for p in range(phrasings)]
    reward = few_words_reward()

    def row(i: int) -> Row:
        topic, phrasing = TOPICS[i // phrasings], PHRASINGS[i % phrasings]
        return {"prompt": [{"role": "user", "content": phrasing.format(topic=topic) + REQUEST}], "topic": topic}

    held_out = Rows(held[:held_out_prompts], row)
    return Dataset(
        name="few_words",
        train=Rows(train, row),
        held_out=held_out,
        rewards=(RewardConfig(name="few_words"),),
        is_correct=lambda completion, row: reward(row["prompt"], completion) == 1.0,
        reading=(
            f"task few_words: {len(train)} prompts on {len(TOPICS) - HELD_OUT_TOPICS} topics to train on, "
            f"{len(held)} on {HELD_OUT_TOPICS} other topics held out, {len(held_out)} of those evaluated"
        ),
    )
