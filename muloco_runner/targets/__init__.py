"""Code from outside the package that a run names by `_target_`: where it is, what is in it, and what runs it made.

source_code < questions < answers < code_record < launch_check. Without torch.
"""

from muloco_runner.targets.answers import Answer, facts_of, known_facts
from muloco_runner.targets.code_record import hand_on_code, make_importable, record_code, refuse_sharded
from muloco_runner.targets.launch_check import check_targets
from muloco_runner.targets.source_code import find_source

__all__ = [
    "Answer",
    "check_targets",
    "facts_of",
    "find_source",
    "hand_on_code",
    "known_facts",
    "make_importable",
    "record_code",
    "refuse_sharded",
]
