# %% [markdown]
# # From the first stack to a mixed one
#
# A stack is written as keyword flags. This notebook builds a plain transformer, turns it into GAU, into FLASH and into
# a mixture by changing one word, looks at its flags and its attention, trains it for a moment and lets it write. It
# takes less than a minute on one core and needs no network.

# %%
import matplotlib.pyplot as plt
import torch

from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper
from xflash.datasets.sequences import ngram_bits, splits, text, to_ids

_ = torch.manual_seed(0)

# %% [markdown]
# ## A stack, and a model around it
#
# `Decoder` is causal, `Encoder` is not. Without `layers` the layout is `'attn ff'`, a transformer.

# %%
stack = Encoder(dim=64, depth=2, heads=4)
x = torch.randn(2, 10, 64)
mask = torch.arange(10) < torch.tensor([[10], [7]])
print(stack(x, mask).shape)

# %% [markdown]
# `TransformerWrapper` puts token embeddings in front and logits behind. Its `step` carries a state on, so that a prompt
# and the tokens after it never have to be read twice.

# %%
model = TransformerWrapper(num_tokens=256, max_seq_len=128, attn_layers=Decoder(dim=64, depth=2, heads=4))
ids = torch.randint(256, (1, 12))
with torch.no_grad():
    whole = model(ids)
    first, state = model.step(ids[:, :8])
    rest, state = model.step(ids[:, 8:], state)
print("one pass and two steps differ by", (whole - torch.cat((first, rest), 1)).abs().max().item())

# %% [markdown]
# ## One word makes it another model
#
# The layout is repeated `depth` times. GAU and FLASH mix channels themselves and need no `ff`.

# %%
for layers in ("attn ff", "gau", "flash", "flash*2 gau attn(window=32) ff"):
    built = Decoder(dim=128, depth=1, heads=4, layers=layers)
    print(f"{layers:32} {sum(p.numel() for p in built.parameters()):9,} parameters")

# %% [markdown]
# A flag that does not exist, or that nothing in the layout would use, is an error and not a silence.

# %%
for wrong in ({"flash_group": 64}, {"gau_heads": 2}, {"pos": "alibi"}):
    try:
        Decoder(dim=128, depth=1, layers="flash", **wrong)
    except (TypeError, ValueError) as error:
        print(error)

# %% [markdown]
# ## The mixed stack and its flag table
#
# What differs from the defaults: each flag with its value, its default, its type and what it does. `flag_table()` shows
# all, and so does `python -m xflash flags Decoder layers='flash*2 gau attn ff'` in a shell.

# %%
stack = Decoder(
    dim=96,
    depth=1,
    heads=4,
    layers="flash*2 gau attn ff",
    pos="rotary",
    shift_tokens=1,
    flash_group_size=32,
    attn_dim_head=24,
)
model = AutoregressiveWrapper(TransformerWrapper(num_tokens=256, attn_layers=stack))
print(model.net.flag_table(changed_only=True))

# %% [markdown]
# ## A short training
#
# `text()` finds real text: enwik8 or Wikipedia where they have been fetched, else the Python sources on this machine.
# Bits per byte are compared with a table of byte pairs, counted on the same text.

# %%
found = text(download=False, say=lambda words: None)
parts = splits(found)
train, valid = to_ids(parts.train), to_ids(parts.valid)
print(f"{found.name}: {len(found.data):,} bytes ({found.licence})")

# %% small="STEPS, BATCH, LENGTH, COUNTED = 7, 2, 32, 20_000"
STEPS, BATCH, LENGTH, COUNTED = 100, 8, 128, 2_000_000

# %%
bigram = ngram_bits(parts.train[:COUNTED], parts.valid[: COUNTED // 20], 2)
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)


def batch(ids):
    starts = torch.randint(len(ids) - LENGTH, (BATCH, 1))
    return ids[starts + torch.arange(LENGTH + 1)].long()


losses = []
for step in range(STEPS):
    for group in optimizer.param_groups:
        group["lr"] = 4e-3 * min(1, (step + 1) / 10, 1.2 * (1 - step / STEPS))
    loss = model(batch(train))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item() / torch.log(torch.tensor(2.0)).item())

# %%
model.eval()
with torch.no_grad():
    after = sum(model(batch(valid)).item() for _ in range(8)) / 8 / torch.log(torch.tensor(2.0)).item()
plt.figure(figsize=(7, 3.5))
plt.plot(losses, label="training")
plt.plot(STEPS, after, "*", ms=12, label=f"validation: {after:.2f}")
plt.axhline(bigram, ls=":", color="gray", label=f"byte pairs: {bigram:.2f}")
plt.xlabel("step")
plt.ylabel("bits per byte")
plt.legend()
plt.show()

# %% [markdown]
# ## What it looks at
#
# `return_attn=True` gives the matrix of every layer that has one: here the GAU's (its weights need not sum to one) and
# the four heads of the attention, each row in proportion to its largest weight. FLASH has two, one inside a group of
# tokens and one of the groups before: [what models attend to](attention.ipynb).

# %%
window = valid[:48].long()[None]
with torch.no_grad():
    logits, maps = model.net(window, return_attn=True)
shown = [("gau", maps[0][0, 0]), *((f"attn, head {h}", m) for h, m in enumerate(maps[1][0]))]
figure, axes = plt.subplots(1, len(shown), figsize=(3 * len(shown), 3.2))
for axis, (title, weights) in zip(axes, shown, strict=True):
    axis.imshow((weights / weights.amax(-1, keepdim=True)).numpy(), cmap="magma")
    axis.set(title=title, xlabel="key", ylabel="query")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## What it writes
#
# Generation goes through `step`: with a FLASH stack each token costs the same, however much there is before it.

# %%
prompt = valid[:64].long()
made = model.generate(prompt, 120, temperature=0.7, generator=torch.Generator().manual_seed(0))
print(bytes(prompt.tolist()).decode(errors="replace") + "|" + bytes(made.tolist()).decode(errors="replace"))

# %% [markdown]
# From here: `python examples/train_lm.py` trains a larger one and keeps checkpoints;
# [your own block, step and norm](own_parts.ipynb) puts parts of your own into the layout;
# [docs/flags.md](../docs/flags.md) has every flag.
