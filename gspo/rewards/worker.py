"""The process that runs one reward function: read a request, answer it, until the other end closes.

Started as `python -P worker.py FD` by process.py. It runs the function in its main thread, so a checker that
sets signal alarms works, and it may be killed at any moment. Nothing of gspo is imported: calling.py is loaded
by its path.
"""

import asyncio
import importlib.util
import os
import sys
import threading
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


def _end_with_parent(parent: int) -> None:
    """A worker stuck in a function must not outlive the run that started it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _load(calling, request: dict):
    sys.path.extend(folder for folder in request["sys_path"] if folder not in sys.path)
    loaded = calling.load_function(request["spec"], append_folder=not request["is_factory"])
    options = request["options"]
    if request["is_factory"]:
        loaded, options = loaded(**options), {}
    return calling.Call(loaded, options, calling.signature_of(loaded, options))


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
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
