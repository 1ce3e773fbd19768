"""A verifiers v1 taskset by its id: tasks, their reward, and a harness that talks in this process.

Twice the number is asked; a wrong answer gets one more try, which is worth half.
"""

import verifiers.v1 as vf
from openai import AsyncOpenAI


class DoublingData(vf.TaskData):
    number: int


class DoublingTask(vf.Task[DoublingData]):
    @vf.reward
    async def is_double(self, task: DoublingData, trace: vf.Trace) -> float:
        replies = [(m.content or "").strip() for m in trace.messages if m.role == "assistant"]
        return next((1.0 / (i + 1) for i, reply in enumerate(replies) if reply == str(2 * task.number)), 0.0)

    @vf.metric
    async def tries(self, trace: vf.Trace) -> float:
        return sum(m.role == "assistant" for m in trace.messages)


class DoublingTaskset(vf.Taskset[DoublingTask]):
    INFINITE = True

    def load(self):
        number = 1
        while True:
            yield DoublingTask(DoublingData(number=number, prompt=f"Twice {number}?", system_prompt="Say a number."))
            number += 1


class TwoTries(vf.Harness):
    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            for _ in range(2):
                reply = await client.chat.completions.create(model=ctx.model, messages=messages)
                said = reply.choices[0].message.content
                if said == str(2 * data.number):
                    break
                messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Wrong. Again?"}]
        return vf.ProgramResult(exit_code=0, stdout=said, stderr="")


__all__ = ["DoublingTaskset", "TwoTries"]
