# %% [markdown]
# # What FLASH, GAU and state vectors attend to
#
# Three kinds of layers that look back, none of them by softmax attention alone. Each is trained on a task whose answer
# stands somewhere that we know, for ten seconds or so, and then asked where it looks. No network is needed.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from xflash import Decoder, TransformerWrapper

# %% small="STEPS, ROWS = 3, 4"
STEPS, ROWS = 250, 32

# %% [markdown]
# ## Where the answer stands
#
# A row is 9 to 15 random symbols, over and over. From the second time on each next one can be known, but only by
# finding where the present one stood before, and looking one further: position does not tell, for the period is
# another one in each row. So a token at t should look at t + 1 - period, t + 1 - 2 period, ... With `shift_tokens=1`
# each token knows the one before it, and one layer is enough.

# %%
SYMBOLS, LENGTH, PERIODS = 16, 64, (9, 15)


def repeated(rows, chance):
    """Ids (b, n), and the period (b, 1) of each row."""
    low, high = PERIODS
    period = torch.randint(low, high + 1, (rows, 1), generator=chance)
    once = torch.randint(SYMBOLS, (rows, high), generator=chance)
    return once.gather(1, torch.arange(LENGTH) % period), period


def train(model, loss_of, steps=STEPS):
    """Adam, a rate that rises and falls; `loss_of(model, chance)` draws a batch."""
    optimizer = torch.optim.Adam(model.parameters())
    chance = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20, 1.5 * (1 - step / steps))
        loss = loss_of(model, chance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def next_symbol(model, chance):
    ids, _ = repeated(ROWS, chance)
    return F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:])


def one_layer(layers, **flags):
    torch.manual_seed(0)
    stack = Decoder(dim=64, depth=1, heads=1, layers=layers, norm="rmsnorm", shift_tokens=1, **flags)
    return train(TransformerWrapper(num_tokens=SYMBOLS, attn_layers=stack, use_abs_pos_emb=False), next_symbol)


models = {
    "attn": one_layer("attn", pos="rotary", attn_dim_head=32),
    "gau": one_layer("gau", pos="rotary", gau_query_key_dim=32),
    "flash": one_layer("flash", flash_query_key_dim=32, flash_group_size=32, flash_rel_pos_bias=None),
}

ids, period = repeated(64, torch.Generator().manual_seed(1))
at = torch.arange(LENGTH)
known = (at + 1 >= period)[:, :-1]  # (b, n - 1): what follows has been seen


def right(model):
    """The share of the symbols that can be known and are foretold."""
    with torch.no_grad():
        hits = model(ids)[:, :-1].argmax(-1) == ids[:, 1:]
    return hits[known].float().mean().item()


for name, model in models.items():
    print(f"{name:6} {right(model):.2f} right (chance is {1 / SYMBOLS:.2f})")

# %% [markdown]
# ## Softmax attention and GAU: one matrix
#
# `return_attn=True` gives the matrix of every layer that has one. A row of softmax weights sums to one; a GAU's weights
# are squares, as large as they like. `answers` is where a query should look. How much of its weight does?

# %%
gap = at[:, None] - at  # how far before query i key j stands
answers = ((gap[None] + 1) % period[..., None] == 0) & (gap >= 0)


def share(weights, places=answers):
    """How much of the weight of those queries that can know lies on the answers, or on other places."""
    weights = weights.abs()
    on, all_of_it = (weights * places).sum(-1), weights.sum(-1)
    return (on / all_of_it.clamp(min=1e-9))[:, :-1][known].mean().item()


def draw(maps, row=0):
    """Maps (n, n) side by side, each query in proportion to its largest weight; dots where the answers stand."""
    _, axes = plt.subplots(1, len(maps), figsize=(4 * len(maps), 4))
    query, key = answers[row].nonzero().T.numpy()
    for axis, (title, weights) in zip(axes, maps.items(), strict=True):
        weights = weights[row].abs()
        axis.imshow((weights / weights.amax(-1, keepdim=True).clamp(min=1e-9)).numpy(), cmap="magma")
        axis.plot(key, query, ".", ms=2, color="deepskyblue")
        axis.set(title=title, xlabel="key", ylabel="query")
    plt.tight_layout()
    plt.show()


maps = {}
for name in ("attn", "gau"):
    with torch.no_grad():
        _, (weights,) = models[name](ids, return_attn=True)
    maps[name] = weights[:, 0]
    print(f"{name:6} {share(maps[name]):.2f} of the weight is on the answers")
print(f"evenly {share(gap.expand(64, -1, -1).ge(0).float()):.2f}")
draw(maps)

# %% [markdown]
# ## FLASH: near and far
#
# FLASH has two. *Near* are squared weights inside a group of 32 tokens, as a GAU's; *far* is linear attention to the
# groups before, which are closed: all their keys and values are in one matrix, so a query can only weigh them by a
# product, of either sign. Neither is ever made as a matrix of tokens by tokens, but the definition says what it would
# be, and it gives what the block gives:
#
# `y = (u * (near + far) v) W_o`, `near_ij = relu(q_i k_j / w)^2` in i's group, `far_ij = far_q_i far_k_j / (w G_i)` in
# the G_i groups before.


# %%
def near_and_far(model, ids):
    """The two maps (b, n, n) of the first layer, and how far what they give is from what the block gave."""
    block, seen = model.attn_layers.blocks()[0], []
    watch = block.register_forward_hook(lambda module, inputs, outputs: seen.append((inputs[0], outputs[0])))
    with torch.no_grad():
        model(ids)
        watch.remove()
        (x, gave), w = seen[0], block.config.group_size
        u, v, z = F.silu(block.to_hidden(x)).split(block.widths, -1)
        offset = 0 if block.beta is None else block.beta[:, None, None]
        q, far_q, k, far_k = z * block.gamma[:, None, None] + offset
        group = at // w
        near = F.relu(q @ k.mT / w).square() * ((group[:, None] == group) & (gap >= 0))
        far = far_q @ far_k.mT / w / group[:, None].clamp(min=1) * (group[:, None] > group)
        by_hand = block.to_out(u * ((near + far) @ v))
    return near, far, (by_hand - gave).abs().max().item()


near, far, error = near_and_far(models["flash"], ids)
print("by the definition and by the block differ by", error)

same = (gap[None] % period[..., None] == 0) & (gap >= 0)  # the present symbol, here and wherever it stood before
for name, weights in {"near": near, "far": far, "near + far": near + far}.items():
    print(f"{name:10} {share(weights):.2f} of the weight is on the answers, {share(weights, same):.2f} one before them")
draw({"near": near, "far": far})

# %% [markdown]
# The brightest lines are one token before the answers: where the present symbol itself stood. Queries and keys are
# scaled copies of one z, so a token that looks for its like has the shortest way, and without positions (which are
# left out here, so that the definition stays short) the step from there to the next symbol is harder to learn.

# %% [markdown]
# ## Any layer: by the gradient
#
# Where there is no matrix, the gradient says on which tokens an output depends, through all layers, whatever they are.
# `return_hiddens=True` gives the stream in front of the first layer; the gradient of the answer's logit with respect
# to it is large at the tokens that it was read from.


# %%
def reach(model, ids, row=0):
    """How much the logit of the symbol that the model foretells last depends on each token of a row (n)."""
    logits, hiddens = model(ids[row : row + 1], return_hiddens=True)
    (slope,) = torch.autograd.grad(logits[0, -1].amax(), hiddens[0])
    return slope[0].norm(dim=-1).numpy()


_, axes = plt.subplots(len(models), 1, figsize=(9, 5), sharex=True)
for axis, (name, model) in zip(axes, models.items(), strict=True):
    axis.bar(range(LENGTH), reach(model, ids), color=["deepskyblue" if a else "gray" for a in answers[0, -1]])
    axis.set(ylabel=name, yticks=[])
axes[-1].set_xlabel("token (blue: the last token's answer stands here)")
plt.show()

# %% [markdown]
# ## State vectors
#
# A `recurrent` layer sees its own block of tokens, the one before, and a few state vectors that each full block
# rewrites. What is further back is known from these alone. The task: somewhere in the first block of 8 stands one of
# eight symbols, then noise; at the end it is asked for, one to four blocks later.

# %%
WIDTH, NOISE, VECTORS = 8, 8, 4
ASK = SYMBOLS + NOISE


def needle(rows, blocks, chance):
    """Ids (b, blocks * WIDTH), where the symbol stands (b), and which it is (b)."""
    ids = torch.randint(SYMBOLS, SYMBOLS + NOISE, (rows, blocks * WIDTH), generator=chance)
    symbol, where = (torch.randint(high, (rows,), generator=chance) for high in (SYMBOLS, WIDTH))
    ids[torch.arange(rows), where], ids[:, -1] = symbol, ASK
    return ids, where, symbol


def the_symbol(model, chance):
    blocks = int(torch.randint(2, 6, (1,), generator=chance))
    ids, _, symbol = needle(ROWS, blocks, chance)
    return F.cross_entropy(model(ids)[:, -1], symbol)


def remembers(layers, **flags):
    torch.manual_seed(0)
    sizes = {f"{layers.split()[0]}_{name}": size for name, size in {"block_width": WIDTH, "dim_head": 16}.items()}
    stack = Decoder(dim=48, depth=1, heads=2, layers=layers, norm="rmsnorm", pos="rotary", **sizes, **flags)
    return train(TransformerWrapper(num_tokens=ASK + 1, attn_layers=stack), the_symbol)


without = remembers("block_attn ff")
vectors = remembers("recurrent ff", recurrent_num_state_vectors=VECTORS, recurrent_gate="lstm")
for blocks in (2, 4, 8, 16):
    asked, _, symbol = needle(256, blocks, torch.Generator().manual_seed(2))
    with torch.no_grad():
        shares = [(m(asked)[:, -1].argmax(-1) == symbol).float().mean().item() for m in (without, vectors)]
    print("{:2} blocks: {:.2f} right without state vectors, {:.2f} with".format(blocks, *shares))

# %% [markdown]
# What does the answer depend on? Without state vectors on nothing further back than the block before. With them on the
# one token that matters, four blocks ago.

# %%
asked, where, _ = needle(1, 5, torch.Generator().manual_seed(3))
_, axes = plt.subplots(2, 1, figsize=(9, 4), sharex=True)
for axis, (name, model) in zip(axes, {"block_attn": without, "recurrent": vectors}.items(), strict=True):
    axis.bar(range(asked.shape[1]), reach(model, asked))
    axis.axvline(where.item(), color="deepskyblue", zorder=0, lw=4, alpha=0.5)
    axis.set(ylabel=name, yticks=[], xticks=range(0, asked.shape[1] + 1, WIDTH))
axes[-1].set_xlabel("token (blue: the symbol; ticks: blocks)")
plt.show()

# %% [markdown]
# And what has each vector taken in? A state is a value with gradients: the vectors behind all full blocks,
# differentiated by the tokens. A row of the picture is a vector, the columns are the tokens it was written from.

# %%
_, state, hiddens = vectors.step(asked, return_hiddens=True)
kept = state.stack.branches[0].block.vectors[0]  # (s, d)
taken = torch.stack(
    [torch.autograd.grad(vector.square().sum(), hiddens[0], retain_graph=True)[0][0].norm(dim=-1) for vector in kept]
)
plt.figure(figsize=(9, 2))
plt.imshow((taken / taken.amax(-1, keepdim=True).clamp(min=1e-9)).numpy(), cmap="magma", aspect="auto")
plt.plot(where.item(), -0.7, "v", color="deepskyblue", clip_on=False)
plt.xticks(range(0, asked.shape[1], WIDTH))
plt.xlabel("token (blue: the symbol; ticks: blocks)")
plt.ylabel("state vector")
plt.show()
