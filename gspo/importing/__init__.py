"""Settings of TRL and of verl as a recipe of ours, with a report of what is equal, scaled, different or missing.

Nothing of either library is needed: their names, defaults and formulas are written down here, as read in TRL 1.16 and
verl 0.9.1. `gspo import` is the command.
"""

from collections.abc import Sequence

from gspo.importing.report import Imported, Line
from gspo.importing.trl import import_trl
from gspo.importing.verl import import_verl
from gspo.settings import nearest

__all__ = ["Imported", "Line", "import_settings", "import_trl", "import_verl"]

LIBRARIES = ("trl", "verl")


def import_settings(words: Sequence[str], *, world_size: int = 1, prompts: int = 0) -> Imported:
    """["trl", "config.yaml"] or ["verl", "a.b=1", ...] -> recipe and report."""
    library = words[0] if words else ""
    if library not in LIBRARIES:
        raise ValueError(f"import from which library? trl or verl, not {library!r}{nearest(library, LIBRARIES)}")
    if len(words) == 1:
        what = "a YAML or JSON file, or --flag value ..." if library == "trl" else "a.b=value ..., or a file of them"
        raise ValueError(f"gspo import {library}: give {what}")
    if library == "trl":
        return import_trl(words[1:], world_size=world_size, prompts=prompts)
    if world_size != 1:
        raise ValueError("--world-size is for trl: verl's settings have trainer.n_gpus_per_node and trainer.nnodes")
    return import_verl(words[1:], prompts=prompts)
