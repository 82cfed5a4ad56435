"""Law 6 over every way that a block can go: each gives what the others give, in outputs and gradients.

Fused or plain, with its matrix asked for, as if its queries were few and its keys many, without operators; and each row
and packed document alone, which is the definition of what masks are to do.
"""

import contextlib
import itertools
from dataclasses import replace

import laws
import matrix
import pytest
import torch
from cases import COMPANY, DIM, HEADS, SMALL
from quick import quick

import xflash
from xflash import Encoder, PrefixDecoder
from xflash.base.registry import blocks
from xflash.layers import flash, gated_unit
from xflash.layers.blocks import bands as windows
from xflash.layers.blocks import bounded as bounds
from xflash.layers.kernels import bands, bounded, gated

N, ROWS = 11, laws.BATCH
REAL = torch.tensor([[1] * N, [1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0], [0] * N]).bool()
# Padding has numbers of its own, and documents end inside groups and windows.
DOCUMENTS = torch.tensor([[4] * 6 + [2] * 5, [1] * 4 + [3] * 7, [5] * N]).where(REAL, 10 + torch.arange(N))
PREFIX = torch.tensor([6, 3, 0])


def hidden(heads: int) -> torch.Tensor:
    """A mask in which some queries see nothing, and one only in some heads."""
    seen = torch.rand(ROWS, heads, N, N, generator=torch.Generator().manual_seed(3)) < 0.5
    seen[:, :, 2] = seen[0, :, 9] = seen[1, -1, 5] = False
    return seen


def situations(stack) -> dict[str, dict]:
    """What each call is given beside x, as far as the stack can honour it."""
    able = frozenset.intersection(*(block.honours for block in stack.blocks()))
    able = able if any(block.mixes_tokens for block in stack.blocks()) else frozenset()
    heads = {block.bias_heads() for block in stack.blocks()} - {None}
    found = {"nothing": {}, "padding": {"mask": REAL}}
    if "doc_ids" in able:
        found["documents"] = {"mask": REAL, "doc_ids": DOCUMENTS}
    if "attn_mask" in able:
        found["hidden"] = {"attn_mask": hidden(1)}
        found["all hidden"] = {"mask": REAL, "doc_ids": DOCUMENTS, "attn_mask": hidden(*heads)}
    if "prefix" in able and stack.takes_prefix:
        found["prefix"] = {"mask": REAL, "prefix_attn_len": PREFIX}
        found["hidden prefix"] = {"mask": REAL, "prefix_attn_len": PREFIX, "attn_mask": hidden(1)}
    return found


def variants(name: str) -> list[dict]:
    """The block with each position it can use, and each choice that the matrix of flags has for it with one of them."""
    domains = (matrix.STACK, matrix.CROSSED, matrix.BACK, matrix.ROUTED)
    able = blocks[name].positions - ({"rotary"} if blocks[name].takes_context else set())
    turns = [{}, *({"pos": pos} for pos in sorted(able))]
    found: list[dict] = []
    for choice in (c for domain in domains for options in domain.values() for c in options):
        own = {flag: v for flag, v in choice.items() if flag.startswith(f"{name}_") and "dropout" not in flag}
        if own and own not in found and f"{name}_flash" not in own:
            found.append(own)
    return turns + [{**own, **turns[i % len(turns)]} for i, own in enumerate(found)]


def build(name: str, causal: bool, flags: dict, **more):
    """The block as it is twice, so that what is wrong behind a row's end comes back to its tokens; variants once."""
    torch.manual_seed(0)
    layers = COMPANY.get(name, name)
    small = {k: v for part in layers.split() for k, v in SMALL.get(part, {}).items()}
    able = all("prefix" in blocks[part].honours for part in layers.split()) and "rotary_xpos" not in flags
    kind = Encoder if not causal else PrefixDecoder if able else matrix.Decoder
    return kind(**{"dim": DIM, "depth": 1 if flags else 2, "heads": HEADS, "layers": layers, **small, **flags, **more})


def cases() -> list:
    found = []
    for name, causal in itertools.product(blocks, (True, False)):
        for i, flags in enumerate(variants(name)):
            with contextlib.suppress(ValueError), torch.device("meta"):
                stack = build(name, causal, flags)
                if not any(block.refuses_step() for block in stack.blocks()):
                    direction = "causal" if causal else "bidirectional"
                    found.append(pytest.param(name, causal, flags, id=f"{name}-{direction}-{i}"))
    return found


def call(stack, x, given):
    return stack(x, **given, **laws.of_tokens(stack, x), **laws.beside(stack, x))


def with_maps(stack, x, given):
    return stack.attention_maps(x, **given, **laws.of_tokens(stack, x), **laws.beside(stack, x))[0]


def alone(stack, x, given):
    """Each row's documents one after the other, put where they stand."""
    real = given.get("mask", torch.ones_like(REAL))
    y = torch.zeros_like(x)
    for row in range(ROWS):
        tokens = real[row].nonzero()[:, 0].tolist()
        prefix = {"prefix_attn_len": min(int(PREFIX[row]), len(tokens))} if "prefix_attn_len" in given else {}
        for _, run in itertools.groupby(tokens, lambda i, row=row: given.get("doc_ids", 0 * DOCUMENTS)[row, i].item()):
            where = list(run)
            y[row, where] = call(stack, x[row : row + 1, where], prefix)[0]
    return y


def outcome(way, stack, x, given):
    """The output and the gradients of x and of every parameter."""
    x = x.clone().requires_grad_()
    y = way(stack, x, given)
    push = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    wanted = {"x": x, **dict(stack.named_parameters())}
    grads = torch.autograd.grad((y * push).sum(), list(wanted.values()), allow_unused=True)
    found = zip(wanted.items(), grads, strict=True)
    return {"y": y, **{name: torch.zeros_like(t) if g is None else g for (name, t), g in found}}


def ways(name: str, causal: bool, flags: dict, stack):
    """Every other way there is: its name, its call and the stack that goes it."""
    if hasattr(blocks[name].Config, "flash"):
        yield "plain", call, laws.live(build(name, causal, flags, **{f"{name}_flash": False}))
    with contextlib.suppress(ValueError):
        with torch.no_grad():
            with_maps(stack, laws.sample(stack, 1), {})
        yield "maps", with_maps, stack


class Crossroads:
    """Where the library itself chooses a way: which choices are asked for, and the other answers."""

    places = (
        *((gated, "operators_work"), (flash, "operators_work")),
        *((windows, "pays"), (bounds, "may_look")),
    )

    def __init__(self, monkeypatch):
        self.asked = set()
        for module, name in self.places:
            monkeypatch.setattr(module, name, self.watched(name, getattr(module, name)))

    def watched(self, name, ask):
        return lambda *given: (self.asked.add(name), ask(*given))[1]

    @contextlib.contextmanager
    def otherwise(self, way: str, monkeypatch):
        with monkeypatch.context() as patch:
            if way == "pays":
                patch.setattr(bands, "LEAST", 1)
                patch.setattr(windows, "pays", lambda band: band.fits)
            if way == "may_look":
                patch.setattr(bounded, "BLOCK", 4)
                patch.setattr(bounds, "LEAST", 1)
            if way == "operators_work":
                for module in (gated, flash):
                    patch.setattr(module, "operators_work", lambda: False)
            yield


@pytest.mark.parametrize(("name", "causal", "flags"), quick(cases(), lambda _, number: number % 4 == 0))
def test_every_way_gives_the_same(name, causal, flags, monkeypatch):
    stack = laws.live(build(name, causal, flags))
    others, crossroads = list(ways(name, causal, flags, stack)), Crossroads(monkeypatch)
    for situation, given in situations(stack).items():
        x = laws.sample(stack, N)
        if "mask" in given:
            x = x.masked_fill(~REAL[..., None], float("nan"))
        wanted = outcome(call, stack, x, given)
        assert all(t.isfinite().all() for t in wanted.values()), f"{situation}: not finite"
        here = others + [(asked, call, stack) for asked in crossroads.asked]
        if given and "attn_mask" not in given:
            here.append(("alone", alone, stack))
        for way, run, with_it in here:
            with crossroads.otherwise(way, monkeypatch):
                found = outcome(run, with_it, x, given)
            for part, t in wanted.items():
                laws.close(found[part], t, f"{situation}, {way}: {part}")


POSITIONS = {pos: {"pos": pos} for pos in ("alibi", "rel_pos", "rotary")}


@pytest.mark.parametrize(
    ("causal", "flags"),
    [(causal, flags) for causal in (True, False) for flags in ({}, *POSITIONS.values())]
    + [(True, {"pos": "rotary", "rotary_xpos": True})],
)
def test_memory_keys_see_each_document_as_if_alone(causal, flags):
    stack = laws.live(build("attn", causal, {"attn_num_mem_kv": 2, **flags}))
    x, given = laws.sample(stack, N), {"mask": REAL, "doc_ids": DOCUMENTS}
    wanted, found = outcome(alone, stack, x, given), outcome(call, stack, x, given)
    for part, t in wanted.items():
        laws.close(found[part], t, part)


GAUS = {
    "row_index": {},
    "inside": {"gau_normaliser_place": "inside"},
    "content": {"gau_normaliser_place": "content"},
    "laplace": {"gau_attn_fn": "laplace", "gau_normaliser_place": "inside"},
    "row_sum": {"gau_normaliser": "row_sum"},
    "softmax": {"gau_attn_fn": "softmax"},
    "softmax_plus": {"gau_attn_fn": "softmax_plus"},
    "heads": {"gau_heads": 2},
}


@pytest.mark.parametrize("flags", GAUS.values(), ids=GAUS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_what_attn_mask_hides_is_as_if_it_were_not_there(causal, flags, monkeypatch):
    # softmax_plus tells no lengths below its least apart.
    monkeypatch.setattr(gated_unit, "PLUS_LEAST", 2)
    stack = laws.live(build("gau", causal, {"pos": "alibi", **flags}))
    x = laws.sample(stack, N)
    few = stack(x, attn_mask=(torch.arange(N) < 4).expand(N, N))[:, :4]
    laws.close(few, stack(x[:, :4]), "keys behind the fourth hidden")
    ids = torch.tensor([3] * 4 + [1] * 7).expand(ROWS, N)
    laws.close(stack(x, attn_mask=(ids[:, :, None] == ids[:, None])[:, None]), stack(x, doc_ids=ids), "by a mask")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_each_head_counts_what_it_sees(causal):
    """A head that sees less is divided by less: two heads with masks of their own are two halves of one unit."""
    stack = laws.live(build("gau", causal, {"gau_heads": 2}))
    x, seen = laws.sample(stack, N), hidden(2)
    maps = stack.attention_maps(x, attn_mask=seen)[1]
    for head in range(2):
        one = stack.attention_maps(x, attn_mask=seen[:, head : head + 1])[1]
        laws.close(maps[0][:, head], one[0][:, head], f"head {head}")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    ("name", "flags"),
    [(name, {}) for name in ("attn", "gau", "cross_attn", "cross_gau")]
    + [(name, {f"{name}_{flag}": 1}) for name in ("attn", "cross_attn") for flag in ("kv_heads", "head_scale")]
    + [("attn", {"attn_window": 3}), ("gau", {"gau_heads": 2}), ("gau", {"gau_normaliser": "row_sum"})],
)
def test_a_map_is_what_the_values_are_summed_by(name, causal, flags):
    """Weights times values are what the fused kernel reads; a query that sees nothing, or does not exist, has zeros."""
    flags = {flag: bool(v) if flag.endswith("scale") else v for flag, v in flags.items()}
    stack = laws.live(build(name, causal, flags, depth=1))
    (block,) = stack.blocks()
    x, read, found = laws.sample(stack, N), block.read, []

    def told(options, maps):
        return {"ctx": replace(options["ctx"], maps=maps)} if "ctx" in options else {"maps": maps}

    def both(q, k, v, *rest, **options):
        weights: list = []
        with_maps, without = (told(options, maps) for maps in (weights, None))
        read(q, k, v, *rest, **options | with_maps)
        y = read(q, k, v, *rest, **options | without)
        found.append((weights[0].weights, v.repeat_interleave(q.shape[1] // v.shape[1], 1), y))
        return y

    block.read = both
    for situation, given in situations(stack).items():
        call(stack, x, given)
        weights, v, y = found.pop()
        gain = block.head_gain if getattr(block.config, "head_scale", False) else 1
        laws.close(weights @ v * gain, y, situation)
    del block.read
    blind = {"attn_mask": hidden(1)} if block.mixes_tokens else {}
    maps = stack.attention_maps(x, REAL, **blind, **laws.beside(stack, x))[1]
    assert (maps[0].transpose(1, 2)[~REAL] == 0).all()
    assert not blind or (maps[0][:, :, 2] == 0).all()


PRECISIONS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "autocast bfloat16": (torch.float32, torch.bfloat16),
    "autocast float16": (torch.float32, torch.float16),
}
TRAINED = {
    "attn": [{}, {"attn_flash": False}, {"attn_kv_heads": 1}, {"attn_num_mem_kv": 2}],
    "gau": [{}, {"gau_attn_fn": "laplace", "gau_normaliser": "row_sum"}, GAUS["row_sum"], GAUS["softmax_plus"]],
    "cross_attn": [{}, {"cross_attn_flash": False}, {"cross_attn_kv_heads": 1}],
    "cross_gau": [{}, {"cross_gau_attn_fn": "relu2", "cross_gau_normaliser": "row_sum"}],
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", TRAINED)
def test_training_is_finite_where_rows_see_nothing(name, precision):
    """With dropout of the weights, in every precision, with maps and without; a row of the context is all padding."""
    dtype, half = PRECISIONS[precision]
    for flags in TRAINED[name]:
        stack = build(name, False, {**flags, f"{name}_dropout": 0.3}).to(dtype).train()
        x = laws.sample(stack, N).to(dtype).requires_grad_()
        beside = laws.beside(stack, x)
        if beside:
            beside["context_mask"] = beside["context_mask"] & torch.tensor([[True], [False], [True]])
            beside["context"] = beside["context"].clone().requires_grad_()
        found = situations(stack)
        for given in (found[name] for name in ("padding", "all hidden") if name in found):
            for way in (stack, lambda *a, stack=stack, **b: stack.attention_maps(*a, **b)[0]):
                with torch.autocast("cpu", dtype=half, enabled=half is not None):
                    y = way(x, **given, **beside)
                params = [p for p in (x, beside.get("context"), *stack.parameters()) if p is not None]
                grads = torch.autograd.grad(y.float().square().sum(), params, allow_unused=True)
                assert y.isfinite().all() and all(g.isfinite().all() for g in grads if g is not None), (flags, [*given])


def test_the_loss_of_a_masked_model_is_that_of_every_kernel():
    """Padding whose documents are its own numbers leaves no query of an encoder blind."""
    losses = []
    for kernel in ({}, {"attn_flash": False}):
        torch.manual_seed(0)
        stack = Encoder(dim=DIM, depth=2, heads=HEADS, attn_dim_head=6, **kernel)
        net = xflash.TransformerWrapper(num_tokens=29, max_seq_len=N, attn_layers=stack)
        trainer = xflash.MaskedLMWrapper(laws.live(net), mask_token_id=1, pad_token_id=0, mask_prob=0.5)
        torch.manual_seed(1)
        ids = torch.randint(3, 29, (ROWS, N), generator=torch.Generator().manual_seed(5))
        losses.append(trainer(ids, REAL, doc_ids=DOCUMENTS))
    laws.close(*losses, "loss")


def test_a_prompt_of_one_token_beside_memory_keys_that_heads_share():
    """With a mask, what the token may see is a matrix of one row, which is shared among heads as the scores are."""
    flags = {"attn_num_mem_kv": 2, "attn_kv_heads": 2, "pos": "rel_pos"}
    stack = laws.live(build("attn", True, flags))
    x = laws.sample(stack, 1)
    for mask in (torch.ones(ROWS, 1), torch.tensor([[1], [0], [1]])):
        ours, _ = stack.step(x, None, mask.bool())
        laws.close(ours, torch.where(mask.bool()[..., None], stack(x), 0), "a token and its mask")
