"""Small tasks that tell architectures apart: each draws rows with what is asked in them, and has one score.

`probe = xflash.probes.recall(pairs=4)`; `ids, labels = probe.draw(rows, generator)`; `probe.score(model(ids), labels)`.
"""

from .associative_recall import Recall
from .induction_heads import Induction
from .needle_in_segments import Needle
from .probe import Probe, maker
from .selective_copy import Copy
from .state_tracking import Parity, Permutations

__all__ = ["Probe", "copy", "induction", "needle", "parity", "permutations", "recall"]

copy = maker(Copy)
induction = maker(Induction)
needle = maker(Needle)
parity = maker(Parity)
permutations = maker(Permutations)
recall = maker(Recall)
