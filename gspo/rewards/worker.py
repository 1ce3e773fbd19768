"""The process that runs one reward function: read a request, answer it, until the other end closes.

Started as `python -P worker.py FD` by process.py. It runs the function in its main thread, so a checker that
sets signal alarms works, and it may be killed at any moment. Nothing of gspo is imported: calling.py is loaded
by its path.
"""

import asyncio
import importlib.util
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path


def _calling():
    path = Path(__file__).with_name("calling.py")
    spec = importlib.util.spec_from_file_location("gspo_reward_calling", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _end_with_run(pipe: Connection) -> None:
    """Leaves a small process behind that kills this one when the run that started it is gone.

    A thread could not: a function stuck in C code holds the interpreter lock, and would go on for ever.
    """
    run, worker = os.getppid(), os.getpid()
    if os.fork():
        return
    pipe.close()  # or the run would not see the worker's end of the pipe close when the worker dies
    while os.getppid() == worker:
        time.sleep(1.0)
        try:
            os.kill(run, 0)
        except ProcessLookupError:
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _load(calling, request: dict):
    sys.path.extend(folder for folder in request["sys_path"] if folder not in sys.path)
    loaded = calling.load_function(request["spec"], append_folder=not request["is_factory"])
    options = request["options"]
    if request["is_factory"]:
        loaded, options = loaded(**options), {}
    return calling.Call(loaded, options, calling.signature_of(loaded, options))


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    _end_with_run(pipe)
    calling = _calling()
    try:
        call = _load(calling, pipe.recv())
    except Exception as error:
        pipe.send(("failed", str(error) if isinstance(error, ValueError) else calling.describe(error)))
        return
    pipe.send(("loaded", vars(call.signature)))
    while True:
        try:
            fields, timeout = pipe.recv()
        except EOFError:
            return
        batch = calling.Batch(**fields)
        if call.signature.is_async:
            pipe.send(asyncio.run(call.over_async(batch, timeout)))
        else:
            pipe.send([outcome for _, outcome in call.over(batch)])


if __name__ == "__main__":
    main()
