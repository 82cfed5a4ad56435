# %% [markdown]
# # Comparing fairly
#
# Which of two models is better? The first answer that one gets is mostly wrong: one was larger, the rate suited the
# other, or the seed was lucky. `xflash.compare` trains variants side by side so that these do not decide. This notebook
# makes each mistake once, and then does without. It takes about six minutes on one core and needs no network.

# %%
import tempfile

from IPython.display import display

import xflash
from xflash import probes
from xflash.datasets.sequences import text

found = text(download=False, say=lambda words: None)
print(f"{found.name}: {len(found.data):,} bytes ({found.licence})")

# %% [markdown]
# What is the same in all that follows: rows of 128 bytes, and a folder where runs are kept, so that no run is made
# twice. (Without `folder=` they are kept in `~/.cache/xflash`.)

# %% small="QUICK, STEPS, SECONDS, LENGTH, ROWS = '2 steps', '3 steps', '0.1s', 32, 2"
QUICK, STEPS, SECONDS, LENGTH, ROWS = "60 steps", "150 steps", "10s", 128, 128

# %%
common = {"folder": tempfile.mkdtemp(), "progress": False, "dim": 96, "heads": 4, "pos": "rotary"}
common |= {"seq_len": LENGTH, "held_out": ROWS * LENGTH}
variants = {
    "softmax": {"layers": "attn ff"},
    "FLASH": {"layers": "flash"},
    "hybrid": {"layers": "flash*3 attn ff"},
}

# %% [markdown]
# ## Everything wrong at once
#
# The same width, the same number of steps, one rate, one seed:

# %%
xflash.compare(variants, found.data, QUICK, seeds=1, lr=1e-3, **common)

# %% [markdown]
# The table itself says what is wrong with that. `parameters`: the variants are not equally large. `tokens/s`: a step
# of one costs more than a step of another. No `±`: with one seed nobody knows what a difference is worth. And who says
# that 0.001 suits all of them?
#
# ## Equally large
#
# `match='params'` changes the width of each variant until it has as many parameters as the first, within 2 %; 'flops'
# does it by the cost of a forward. What was changed stands above the table.
#
# ## The rate that suits each
#
# `lr=(...)` trains each variant with every rate; its row has the best one, and shows what the others gave.
#
# ## More than one seed
#
# `seeds=2` trains each twice. `±` is half of what lies between the two, and `≈` stands where a difference between two
# neighbouring rows has **not been seen**: their seeds overlap.

# %%
steps = xflash.compare(variants, found.data, STEPS, seeds=2, lr=(1e-3, 5e-3), match="params", **common)
display(steps)

# %% [markdown]
# A rate that is right for one can cost another more than the whole difference between them:

# %%
for row in steps.rows:
    means = {rate: sum(scores) / len(scores) for rate, scores in row.scores.items()}
    print(f"{row.name:10}", ", ".join(f"{score:.3f} bits at a rate of {rate}" for rate, score in means.items()))

# %% [markdown]
# ## Per step, or per second?
#
# Both are fair questions, with different answers. A budget in steps asks who learns most from as much text; a budget in
# seconds who learns most in as much of your time, where a cheap step may win by being taken twice. Seconds are those
# of a run's own compute, and runs take turns, so that whatever else the machine does hits all alike.

# %%
seconds = xflash.compare(variants, found.data, SECONDS, seeds=2, lr=5e-3, match="params", **common)
display(seconds)

# %% [markdown]
# The same runs by steps, and by seconds of compute:

# %%
seconds.plot("steps")

# %%
seconds.plot("seconds")

# %% [markdown]
# ## What a flag is worth
#
# Variants may differ in anything. Token shift lets each layer see half of the token before, for nothing:

# %%
pair = {"without": {"layers": "flash"}, "shift": {"layers": "flash", "shift_tokens": 1}}
shift = xflash.compare(pair, found.data, SECONDS, seeds=2, lr=5e-3, **common)
print(shift)
gain = shift["without"].score - shift["shift"].score
spread = max(row.spread for row in shift.rows)
print(f"\nworth {gain:.3f} bits; less than the spread of {spread:.3f} would be a gain that was not seen")

# %% [markdown]
# `xflash.diff` says how two models differ, when there is more than one flag to keep in mind:

# %%
one, other = (xflash.Decoder(dim=96, heads=4, depth=4, pos="rotary", **flags) for flags in pair.values())
xflash.diff(one, other)

# %% [markdown]
# ## What a loss on text hides
#
# Two models of equal loss can differ in what they can do. A probe asks for one thing: here a row gives four pairs of a
# key and a value, and then asks for the value of each key. The score is the share of right answers.

# %%
probe = probes.recall(seq_len=24, pairs=4)
sizes = {**common, "dim": 32, "heads": 2, "shift_tokens": 1, "batch": 16, "held_out": 2 * ROWS * 24}
del sizes["seq_len"]
short = {name: {"layers": flags["layers"].replace("flash", "flash(group_size=8)")} for name, flags in variants.items()}
recall = xflash.compare(short, probe, STEPS, seeds=2, lr=5e-3, **sizes)
print(f"guessing scores {probe.chance:.3f}")
display(recall)

# %%
recall.plot("steps")

# %% [markdown]
# FLASH in groups of 8 sees across groups through a sum, which holds much and finds little: what led on text is last
# here. One softmax layer beside three of FLASH has begun to find, and does when it is trained for longer:
# [docs/probes.md](../docs/probes.md) has every block on every probe.
#
# From here: [docs/compare.md](../docs/compare.md) says what is held the same, how seconds are counted, and how to
# compare models of your own; `python -m xflash compare 'attn ff' flash` does it in a shell.
