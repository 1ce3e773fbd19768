"""Stands for the Python of vLLM's environment: python stand_in_vllm.py -c CODE serve FOLDER --port PORT ...

Asked for versions it names one; asked to serve it speaks as vLLM does, with a process beside it, as vLLM has. The flag
--broken ends it before it serves.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

BESIDE = [sys.executable, "-c", "import time; time.sleep(1000)"]


def main(words: list[str]) -> None:
    code, rest = words[1], words[2:]
    if "importlib.metadata" in code:
        print(json.dumps({"vllm": "0.32.0", "cpu": ""}))
        return
    if "--broken" in rest:
        raise SystemExit("no such flag: --broken")
    from fake_servers import FakeServer, FakeVLLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gspo.policies.network import Network

    folder, port = Path(rest[1]), int(rest[rest.index("--port") + 1])
    subprocess.Popen([*BESIDE, f"beside {__file__}"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = FakeVLLM(Network(AutoModelForCausalLM.from_pretrained(folder).eval()), [1], folder=folder)
    engine.encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    engine.key = os.environ.get("VLLM_API_KEY", "")
    engine.records_routes = "--enable-return-routed-experts" in rest
    FakeServer(engine, port)
    time.sleep(10_000)


if __name__ == "__main__":
    main(sys.argv[1:])
