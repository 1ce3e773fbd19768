"""`gspo VERB ...`: words in, one function call, exit code out. Two is the user's mistake, in one line."""

import errno
import keyword
import os
import sys
from collections.abc import Callable, Sequence

VERBS = {
    "train": "train a model: gspo train [RECIPE.toml] [--key VALUE ...]; without a recipe, the embedded default",
    "resume": "go on with a run: gspo resume RUN [--steps N]",
    "eval": "score a model on held-out problems: gspo eval MODEL --task NAME [--samples N] [--json]",
    "sample": "see what a model says: gspo sample MODEL PROMPT [--n 4] [--temperature 0.7]",
    "sft": "supervised training on prompt-completion rows: gspo sft MODEL --data.path FILE --out FOLDER",
    "plan": "a step as a table, before anything is loaded: gspo plan [RECIPE.toml] [--key VALUE ...]",
    "check": "load everything, sample a few groups, name settings without effect: gspo check [RECIPE.toml]",
    "serve": "a vLLM server that a run can sample from: gspo serve MODEL [--port 8000] [--python PATH]",
    "doctor": "why the sampler's log-probs are not the policy's, cause by cause: gspo doctor RUN | RECIPE.toml",
    "check-env": "prove that an environment keeps the protocol: gspo check-env NAME | FILE.py:NAME | RECIPE.toml",
    "report": "write a run's report.html again: gspo report RUN",
    "recipes": "list the shipped recipes",
    "papers": "every objective, advantage and correction with its paper: gspo papers [NAME]",
    "what-if": "a saved rollout batch under other objectives: gspo what-if RUN --step N --objective grpo sapo",
    "why-clipped": "the ledger of a step in words: gspo why-clipped RUN --step N",
    "values": "A*'s value of every training prompt: gspo values MODEL --task NAME --out FILE",
    "import": "settings of TRL or verl as a recipe: gspo import trl CONFIG.yaml | gspo import verl A.B=VALUE ...",
}


def main(words: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, or 2 for a mistake of the user's, or 130 when interrupted."""
    words = list(sys.argv[1:] if words is None else words)
    sys.exit(run(words))


def run(words: list[str]) -> int:
    """The exit code of a command."""
    # Read here and nowhere else: libraries look at these when they are first imported.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from importlib import metadata

        print(f"gspo {metadata.version('gspo')}")
        return 0
    try:
        return _verb(words[0])(words[1:])
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"the disk is full ({error.filename or 'while writing'}); the last good checkpoint is kept")
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        return _fail(" ".join(str(error).split()))
    except Exception as error:  # libraries in Rust have errors of their own for ENOSPC
        if f"(os error {errno.ENOSPC})" not in str(error):
            raise
        return _fail("the disk is full (while writing); the last good checkpoint is kept")


def usage() -> str:
    lines = ["gspo: sequence-level reinforcement learning for language models", "", "usage: gspo VERB ...", ""]
    lines += [f"  {verb:11} {what}" for verb, what in VERBS.items()]
    return "\n".join([*lines, "", "gspo VERB --help says more; every setting is documented by gspo train --help"])


def _verb(word: str) -> Callable[[list[str]], int]:
    if word not in VERBS:
        import difflib

        close = difflib.get_close_matches(word, VERBS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown command {word!r}{hint} (one of {', '.join(VERBS)})")
    from gspo.cli import verbs

    name = word.replace("-", "_")
    return vars(verbs)[f"{name}_" if keyword.iskeyword(name) else name]


def _fail(line: str, code: int = 2) -> int:
    print(f"gspo: {line}", file=sys.stderr)
    return code
