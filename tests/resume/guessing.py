"""An environment for small runs: the shorter the better, and each answer is a digit."""

from gspo.envs import Observation


class Guessing:
    def __init__(self, row, seed):
        self.turns = 0
        self.digit = seed % 10

    def start(self):
        return Observation()

    def step(self, action):
        self.turns += 1
        reward = 1.0 / (1 + len(action.text)) + 0.1 * action.text.count(str(self.digit))
        return Observation(content=str(self.digit), reward=reward, is_done=self.turns == 3, facts={"digit": self.digit})

    def fork(self):
        copy = Guessing({}, self.digit)
        copy.turns = self.turns
        return copy

    def close(self):
        pass
