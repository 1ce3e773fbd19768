"""Write one sentence with two given words: an instruction task that a small pretrained model half knows."""

from typing import Any

from gspo.rewards.base import RewardConfig
from gspo.rewards.two_words import two_words as two_words_reward
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, permutation, refuse_unknown

LIST = """
    apple arm artist autumn baby bag ball bank basket beach bear bed bell bird boat book bottle box boy bread
    bridge brother bus butter cake camera candle car castle cat chair child city clock cloud coat coffee color
    cook corn cow cup dance daughter day desk dinner doctor dog door dream driver duck ear egg engine eye face
    family farmer father fence field fire fish flower food forest friend frog fruit garden gift girl glass gold
    grass guitar hand hat heart hill horse hospital hotel house ice island jacket key kitchen kite lake lamp
    leaf letter library lion market milk mirror money moon morning mother mountain mouse music neighbor nest
    night nurse ocean office onion orange paint paper park pen phone piano picture pilot plane plant pocket
    queen rabbit radio rain river road rocket roof room rope salt school sea shadow sheep ship shoe shop
    sister snow soap song soup spoon star station stone storm story street student sugar summer sun table
    teacher tent tiger tower town train tree truck uncle village wall water whale wheel wind window winter
    wolf wood
    bake build carry catch clean climb draw drink drive eat find fly hide jump laugh learn listen open plant
    play push read ride run share sing sleep smile speak swim teach throw travel visit wait walk wash watch
    write
    bright brave busy calm clever cold dark deep dry early empty fast fresh gentle happy heavy hungry large
    late lazy loud lucky narrow new old proud quick quiet rich round safe sharp short simple slow small soft
    strong sweet tall tiny tired warm wet wide wild young
    """
WORDS = tuple(dict.fromkeys(LIST.split()))  # "open" and "plant" are in it twice, as two kinds of word
HELD_OUT_PAIRS = 1000


def two_words(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """All pairs of the word list; 1,000 pairs are held out, so no held-out pair is trained on in either order."""
    refuse_unknown("two_words", options, ())
    pairs = [(i, j) for i in range(len(WORDS)) for j in range(i + 1, len(WORDS))]
    order = permutation(SPLIT_SEED, 0, len(pairs))
    held, train = order[:HELD_OUT_PAIRS], order[HELD_OUT_PAIRS:]
    reward = two_words_reward()

    def row(p: int) -> Row:
        # Which word is named first must not follow the alphabet; it alternates with the pair's number.
        first, second = (WORDS[i] for i in (pairs[p] if p % 2 else reversed(pairs[p])))
        content = f'Write one sentence that includes the words "{first}" and "{second}".'
        return {"prompt": [{"role": "user", "content": content}], "words": [first, second]}

    held_out = Rows(held[:held_out_prompts], row)
    return Dataset(
        name="two_words",
        train=Rows(train, row),
        held_out=held_out,
        rewards=(RewardConfig(name="two_words"),),
        is_correct=lambda completion, row: reward(completion, row["words"]) == 1.0,
        reading=(
            f"task two_words: {len(train):,} pairs of {len(WORDS)} words to train on, {len(held):,} other pairs "
            f"held out by a fixed permutation, {len(held_out):,} of those evaluated"
        ),
    )
