# %% [markdown]
# # Your own block, step and norm
#
# A part is entered in a registry by a name. From then on it can be used like any other: in layouts and flag tables, in
# `save` and `load`, with padding, states and steps. This notebook writes parts of three kinds, checks them against a
# few lines that say the same more slowly or against what they come from, and trains them for a moment: about a minute
# on one core, no network. [docs/own_block.md](../docs/own_block.md) says all that there is to know, and has the other
# kinds.

# %%
import tempfile
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import nn

import xflash
from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper, flag
from xflash.datasets.sequences import splits, text, to_ids

_ = torch.manual_seed(0)

# %% [markdown]
# ## A block
#
# A block is the f in `x + f(norm(x))`; norm, residual and token shift are not its business. Ours is a moving average,
# `y_t = a y_(t-1) + (1 - a) x_t`, with a learned a for each channel. `Config` has its flags. `site` says where it
# stands: `site.linear_out` projects back to the stream, started so small that any number of layers keeps the stream's
# size. The state is a tuple of tensors, None at first. `ctx.new` is how many real tokens each row has, when rows are
# padded: what stands behind them must not reach the state.


# %%
@xflash.blocks.register("average")
class Average(xflash.Block):
    """y_t = a y_(t-1) + (1 - a) x_t, a learned for each channel."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        decay: float = flag(0.8, "what a starts at", above=0, below=1)

    def __init__(self, config, site):
        super().__init__(config, site)
        self.decay = nn.Parameter(torch.full((site.dim,), config.decay).logit())
        self.to_out = site.linear_out(site.dim)

    def forward(self, x, ctx, state=None):
        before = torch.zeros_like(x[:, 0]) if state is None else state[0]
        a, steps = self.decay.sigmoid(), torch.arange(x.shape[1])
        # How much of the token at j is left at i.
        left = (1 - a) * a ** (steps[:, None] - steps).clamp(min=0)[..., None] * (steps[:, None] >= steps)[..., None]
        y = torch.einsum("ijd,bjd->bid", left, x) + a ** (steps + 1)[:, None] * before[:, None]
        seen = torch.cat((before[:, None], y), 1)
        end = seen[:, -1] if ctx.new is None else seen[torch.arange(len(x)), ctx.new]
        return self.to_out(y), (end,) if ctx.keep_state else None


# %% [markdown]
# The slow definition is a loop. A hook tells what the block was given in a stack, and what it gave.

# %%
stack = Decoder(dim=24, depth=2, heads=2, layers="average ff", average_decay=0.6)
block, x, seen = stack.blocks()[0], torch.randn(2, 11, 24), []
watch = block.register_forward_hook(lambda module, inputs, outputs: seen.append((inputs[0], outputs[0])))
whole = stack(x)
watch.remove()

given, gave = seen[0]
a, y, slow = block.decay.sigmoid(), torch.zeros(2, 24), []
for token in given.unbind(1):
    y = a * y + (1 - a) * token
    slow.append(y)
print("block and loop differ by", (gave - block.to_out(torch.stack(slow, 1))).abs().max().item())

# %% [markdown]
# And three of the [laws](../docs/laws.md), by hand: any cut into calls gives the same, nothing sees what comes later,
# and padding changes nothing, on whichever side it is.

# %%
first, state = stack.step(x[:, :4])
rest, state = stack.step(x[:, 4:], state)
later = torch.cat((x[:, :7], torch.randn(2, 4, 24)), 1)
padded = torch.cat((torch.randn(2, 5, 24), x), 1)
mask = (torch.arange(16) >= 5).expand(2, -1)
print("one call and two differ by         ", (whole - torch.cat((first, rest), 1)).abs().max().item())
print("other tokens later change these by ", (whole - stack(later))[:, :7].abs().max().item())
print("five tokens of padding change it by", (whole - stack(padded, mask)[:, 5:]).abs().max().item())

# %% [markdown]
# In a checkout, `laws.all_laws(stack, folder)` of `tests/laws.py` tries all of them.
#
# ## A norm
#
# `norm(x, ctx)` works on the last axis. RMSNorm divides by the root of the mean square; ours by the p-th root of the
# mean p-th power, so that with a large p the largest channel says more. There is one norm in a stack, so its flags are
# named after the place: `norm_p`.


# %%
@xflash.norms.register("pnorm")
class PNorm(xflash.Norm):
    """x / mean(|x|^p)^(1/p) * g."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        p: float = flag(2.0, "the power", at_least=1)
        eps: float = flag(1e-5, "added to the mean", above=0)

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.ones(site.dim))

    def forward(self, x, ctx):
        mean = x.abs().pow(self.config.p).mean(-1, keepdim=True)
        return x / (mean + self.config.eps) ** (1 / self.config.p) * self.gain


torch.manual_seed(0)
ours = Decoder(dim=24, depth=2, heads=2, norm="pnorm", norm_p=2)
torch.manual_seed(0)
theirs = Decoder(dim=24, depth=2, heads=2, norm="rmsnorm")
print("with p = 2 it differs from rmsnorm by", (ours(x) - theirs(x)).abs().max().item())

# %% [markdown]
# ## A step on the scores
#
# What stands between the scores and the values of softmax attention is a step. Scalable softmax
# ([2501.19399](https://arxiv.org/abs/2501.19399)) multiplies the scores by `s log n`, n being how many tokens a query
# sees and s learned for each head, so that weights stay as sharp when the text gets longer. `read.at` says where the
# queries stand in their row, whatever the padding and however the text is cut.


# %%
@xflash.scores.register("scalable")
class Scalable(xflash.ScoreStep):
    """Scores times s log n, of the n tokens up to the query; s is a head's own."""

    needs = frozenset({"causal", "tokens"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        start: float = flag(0.4, "what s starts at")

    def __init__(self, config, site, heads, kind):
        super().__init__(config, site, heads, kind)
        self.s = nn.Parameter(torch.full((heads, 1, 1), config.start))

    def before(self, scores, read):
        count = (read.at + 2).to(scores.dtype)  # one more, so that the first token's is not 0
        return scores * self.s * count.log()[:, None, :, None]


def sharpest(model, length):
    """How much the largest weight of the last query is."""
    ids = torch.randint(64, (8, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids, return_attn=True)[1][0][:, :, -1].amax(-1).mean().item()


def tiny(**flags):
    torch.manual_seed(0)
    stack = Decoder(dim=24, depth=1, heads=2, attn_score_scale=1.0, pos="rotary", **flags)
    return TransformerWrapper(num_tokens=64, attn_layers=stack)


lengths = (8, 16, 32, 64, 128, 256)
for name, flags in {"softmax": {}, "scalable": {"attn_scores": "scalable", "attn_scalable_start": 0.4}}.items():
    model = tiny(**flags)
    plt.semilogx(lengths, [sharpest(model, length) for length in lengths], "o-", base=2, label=name)
plt.xlabel("tokens")
plt.ylabel("largest weight")
plt.legend()
plt.show()

# %% [markdown]
# ## All of them in one stack
#
# They mix with everything else: here with FLASH, in one layout. `flag_table` knows their flags, and a misspelt one is
# answered.

# %%
mixed = {"layers": "flash average attn ff", "norm": "pnorm", "norm_p": 4, "attn_scores": "scalable"}
stack = Decoder(dim=64, depth=1, heads=4, pos="rotary", attn_dim_head=16, flash_group_size=32, **mixed)
print(stack.flag_table(changed_only=True))
try:
    Decoder(dim=64, depth=1, layers="average ff", average_dekay=0.5)
except TypeError as error:
    print("\n" + str(error))

# %% small="STEPS, BATCH, LENGTH = 3, 2, 16"
STEPS, BATCH, LENGTH = 150, 8, 64

# %%
parts = splits(text(download=False, say=lambda words: None))
train = to_ids(parts.train)


def bits(steps=STEPS, **flags):
    """The loss of a short training, in bits a byte, step by step."""
    torch.manual_seed(0)
    stack = Decoder(dim=64, heads=4, pos="rotary", attn_dim_head=16, **flags)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=256, attn_layers=stack))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    chance, losses = torch.Generator().manual_seed(0), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 10, 1.5 * (1 - step / steps))
        starts = torch.randint(len(train) - LENGTH, (BATCH, 1), generator=chance)
        loss = model(train[starts + torch.arange(LENGTH + 1)].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / torch.log(torch.tensor(2.0)).item())
    return model, losses


tried = {
    "attn ff": {"depth": 2},
    "average attn ff": {"depth": 2, "layers": "average attn ff", "norm": "pnorm"},
    "flash average attn ff, all parts": {"depth": 1, "flash_group_size": 32, **mixed},
}
for name, flags in tried.items():
    model, losses = bits(**flags)
    smooth = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
    plt.plot(smooth, label=f"{name}: {smooth[-1]:.2f}")
plt.xlabel("step")
plt.ylabel("bits per byte, means of ten steps")
plt.legend()
plt.show()

# %% [markdown]
# That they train is all this picture says: one seed, one rate, sizes that are not equal. To compare architectures takes
# more care: equal sizes, seeds, rates.
#
# ## Saved, loaded, sampled from
#
# What was registered is found by its name, so a program that loads the model first imports the module that registers
# it. Generation goes through the states: the average's is one vector a layer, however long the text is.

# %%
with tempfile.TemporaryDirectory() as folder:
    model.save(folder)
    again = xflash.load(folder)
prompt = train[:40].long()
made = model.generate(prompt, 60, temperature=0.7, generator=torch.Generator().manual_seed(0))
same = again.generate(prompt, 60, temperature=0.7, generator=torch.Generator().manual_seed(0))
print("saved and loaded, it says the same:", torch.equal(made, same))
_, state = model.net.step(prompt[None])
print("state of the average:", [tuple(t.shape) for t in state.stack.branches[1].block])
