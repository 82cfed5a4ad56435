"""A right call of everything public: constructors, what modules and states do, and functions."""

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from arguments import Call, hints_of

import xflash
from xflash import convert, data, images
from xflash.flags.aliases import ALIASES, SWITCHES
from xflash.flags.flag import flags_of
from xflash.layers import pooling
from xflash.stack.config import StackConfig
from xflash.stack.held import parts_of

B, N, C, DIM, VOCABULARY, LIMIT = 3, 5, 7, 10, 11, 13
IDS = torch.arange(B * N).reshape(B, N) % VOCABULARY
X = torch.randn(B, N, DIM, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(N) < torch.tensor([[5], [4], [2]])
CONTEXT = torch.randn(B, C, DIM, generator=torch.Generator().manual_seed(1))
CONTEXT_MASK = torch.arange(C) < torch.tensor([[7], [1], [3]])
ROWS = torch.tensor([True, False, True])
SMALL = {"dim": DIM, "depth": 1, "heads": 2}


def stack(cls=xflash.Decoder, **flags):
    torch.manual_seed(0)
    return cls(**{**SMALL, **({} if "layers" in flags else {"attn_dim_head": 4}), **flags}).eval()


def model(cls=xflash.Decoder, flags=None, **arguments):
    given = {"num_tokens": VOCABULARY, "max_seq_len": LIMIT, "attn_layers": stack(cls, **(flags or {})), **arguments}
    return xflash.TransformerWrapper(**given).eval()


def flash():
    return {"num_tokens": VOCABULARY, "dim": DIM, "depth": 1, "group_size": 4, "query_key_dim": 6}


def recurrent():
    small = {"dim_head": 4, "heads": 2, "max_seq_len": 8, "block_width": 4, "num_state_vectors": 3}
    return {"num_tokens": VOCABULARY, "dim": DIM, "depth": 1, **small}


def sides():
    small = {"num_tokens": VOCABULARY, "depth": 1, "heads": 2, "max_seq_len": LIMIT, "attn_dim_head": 4}
    return {"dim": DIM, **{f"{side}_{name}": v for side in ("enc", "dec") for name, v in small.items()}}


def vit():
    return {"image_size": 6, "patch_size": 3, "attn_layers": stack(xflash.Encoder), "channels": 2, "num_classes": 5}


def xl():
    return model(flags={"pos": "rotary"}, max_seq_len=4, max_mem_len=4, use_abs_pos_emb=False)


def tied():
    return {
        "num_tokens": VOCABULARY,
        "attn_layers": stack(pos="rotary"),
        "tie_embedding": True,
        "tie_embedding_scale": 2.0,
    }


def pooling_model():
    return {"num_tokens": VOCABULARY, "max_seq_len": LIMIT, "attn_layers": stack(xflash.Encoder), "use_cls_token": True}


def compressed():
    return {**recurrent(), "use_compressed_mem": True, "compressed_mem_factor": 2}


def frames():
    return {"dim_in": 5, "dim_out": 5, "max_seq_len": LIMIT, "attn_layers": stack()}


def several():
    return {"num_tokens": {"note": VOCABULARY, "length": 5}, "max_seq_len": LIMIT, "attn_layers": stack()}


def numbers():
    return {"num_tokens": VOCABULARY, "numerical_token_id": 10, "max_seq_len": LIMIT, "attn_layers": stack()}


CONSTRUCTORS: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    ("TransformerWrapper", lambda: {"num_tokens": VOCABULARY, "max_seq_len": LIMIT, "attn_layers": stack()}),
    ("AutoregressiveWrapper", lambda: {"net": model()}),
    ("MaskedLMWrapper", lambda: {"net": model(xflash.Encoder), "mask_token_id": 10}),
    ("NonAutoregressiveWrapper", lambda: {"net": model(xflash.Encoder), "mask_id": 10}),
    ("SegmentWrapper", lambda: {"net": model(), "segment_len": 3}),
    ("XLAutoregressiveWrapper", lambda: {"net": xl()}),
    ("RecurrentMemoryWrapper", lambda: {"net": model(), "num_memory_tokens": 2, "segment_len": 3}),
    ("BlockRecurrentTransformer", recurrent),
    ("RecurrentTrainerWrapper", lambda: {"transformer": xflash.BlockRecurrentTransformer(**recurrent())}),
    ("ViTransformerWrapper", vit),
    ("XTransformer", sides),
    ("FLASHTransformer", flash),
    ("ContinuousTransformerWrapper", frames),
    ("ContinuousAutoregressiveWrapper", lambda: {"net": xflash.ContinuousTransformerWrapper(**frames())}),
    ("AttentionPool", lambda: {"dim": DIM, "heads": 2, "dim_head": 4}),
    ("MultiInputTransformerWrapper", several),
    ("XValTransformerWrapper", numbers),
    ("XValAutoregressiveWrapper", lambda: {"net": xflash.XValTransformerWrapper(**numbers())}),
    ("FLASH", lambda: {"dim": DIM, "group_size": 4, "query_key_dim": 6}),
    ("GAU", lambda: {"dim": DIM, "query_key_dim": 6}),
    ("TransformerWrapper", tied),
    ("TransformerWrapper", lambda: {**pooling_model(), "num_cls_tokens": 2}),
    ("BlockRecurrentTransformer", compressed),
]


def constructors():
    for name, given in CONSTRUCTORS:
        cls = getattr(xflash, name)
        yield Call(name, cls, given(), hints_of(cls))


def method(name, module, given, *also):
    """A method of a module by its name, and whose arguments it hands on."""
    function = getattr(module, name)
    return Call(f"{type(module).__name__}.{name}", function, given, hints_of(function, *also))


def stacks():
    one = stack()
    _, state = one.step(X)
    for cls in (xflash.Decoder, xflash.Encoder):
        yield method("forward", stack(cls), {"x": X, "mask": MASK})
    yield method("forward", one, {"x": X, "attn_mask": torch.ones(N, N).tril().bool(), "doc_ids": IDS // 3})
    yield method("step", one, {"x": X, "state": state, "mask": MASK, "reset": ROWS})
    yield method("step", one, {"x": X})
    yield method("attention_maps", one, {"x": X, "mask": MASK}, one.forward)
    yield method("reset", one, {"state": state, "rows": ROWS})
    yield method("shorten", one, {"state": state, "tokens": 3})
    lossy = stack(
        layers="block_attn",
        block_attn_compress="conv",
        block_attn_compress_factor=2,
        block_attn_block_width=4,
        block_attn_dim_head=4,
        block_attn_compress_loss=True,
    )
    before = lossy.step(X)[1]
    yield method("auxiliary_loss", lossy, {"state": lossy.step(X, before)[1], "since": before})
    crossing = stack(cross_attend=True, pos="rotary", cross_attn_dim_head=4)
    side = {"context": CONTEXT, "context_mask": CONTEXT_MASK, "context_pos": torch.arange(C)}
    yield method("forward", crossing, {"x": X, **side})
    yield method("step", crossing, {"x": X, **side})
    prefixed = stack(xflash.PrefixDecoder)
    yield method("forward", prefixed, {"x": X, "prefix_attn_len": 2})
    yield method("step", prefixed, {"x": X, "prefix_attn_len": torch.tensor([1, 2, 3])})
    for name, given in {"reorder": {"index": torch.tensor([2, 0])}}.items():
        yield method(name, state, given)


def models():
    lm = model(max_mem_len=4)
    _, state = lm.step(IDS)
    front = {"prepend_embeds": X[:, :2], "prepend_mask": MASK[:, 2:4]}
    yield method("forward", lm, {"x": IDS, "mask": MASK, **front})
    yield method("forward", lm, {"x": IDS, "doc_ids": IDS // 3, "return_attn": False})
    yield method("forward", lm, {"x": IDS, "mems": lm.remember(state), "return_mems": True})
    yield method("step", lm, {"x": IDS, "state": state, "mask": MASK, "reset": ROWS})
    yield method("step", lm, {"x": IDS, **front})
    yield method("reset", lm, {"state": state, "rows": ROWS})
    yield method("remember", lm, {"state": state})
    yield method("reorder", state, {"index": torch.tensor([2, 0])})
    kinds = model(embed_num_tokens={"kind": 3})
    yield method("forward", kinds, {"x": IDS, "embed_ids": {"kind": IDS % 3}})
    yield method("step", kinds, {"x": IDS, "embed_ids": {"kind": IDS % 3}})
    pooled = model(xflash.Encoder, use_cls_token=True)
    yield method("forward", pooled, {"x": IDS, "mask": MASK})


PROMPTS = {"prompts": IDS, "seq_len": 2}


def trainers():
    net = model()
    ar = xflash.AutoregressiveWrapper(net)
    yield method("forward", ar, {"x": IDS, "mask": MASK, "labels": IDS, "doc_ids": IDS // 3}, net.forward)
    yield method("forward", ar, {"x": IDS, "lens": [5, 4, 2]}, net.forward)
    for how in ("generate", "stream"):
        given = {**PROMPTS, "filter_kwargs": {"k": 2}, "eos_token": 3, "min_tokens": 1, "mask": MASK}
        yield method(how, ar, given, net.step)
    yield method("generate", ar, {**PROMPTS, "filter_kwargs": {"thres": 0.5}, "filter_logits_fn": "top_p"})
    yield method("generate", ar, {"prompts": list(IDS), "seq_len": 2, "filter_thres": 0.5})
    yield method("generate", ar, {**PROMPTS, "prompt_lens": [5, 4, 2]})
    yield method("beam_search", ar, {**PROMPTS, "beams": 2, "eos_token": 3, "mask": MASK}, net.step)
    segments = xflash.SegmentWrapper(net, 3, detach_every=1)
    _, state = segments(IDS[:, :4], return_state=True)
    given = {"x": IDS, "mask": MASK, "labels": IDS, "reset": ROWS, "state": state, "return_state": True}
    yield method("forward", segments, given, net.step)
    many = torch.tensor([[True, False], [False, True], [False, False]])
    yield method("forward", segments, {"x": IDS, "reset": many}, net.step)
    old = xl()
    long = xflash.XLAutoregressiveWrapper(old)
    _, mems = long(IDS, return_mems=True)
    given = {"x": IDS, "mems": mems, "mask": MASK, "labels": IDS, "reset": ROWS, "return_mems": True}
    yield method("forward", long, given, old.step)
    for how in ("generate", "stream", "beam_search"):
        yield method(how, long, {"start_tokens": IDS, "seq_len": 2, "mems": mems}, getattr(ar, how), net.step)
    hidden = model(xflash.Encoder)
    bert = xflash.MaskedLMWrapper(hidden, mask_token_id=10, pad_token_id=0)
    yield method("forward", bert, {"x": IDS, "mask": MASK, "generator": torch.Generator()}, hidden.forward)
    blank = {"steps": 2, "filter_kwargs": {"k": 2}, "filter_logits_fn": "top_k"}
    yield method("generate", bert, {"ids": IDS, "mask": MASK, **blank}, hidden.forward)
    yield method("generate", bert, {"batch_size": 2, "seq_len": 4, **blank}, hidden.forward)
    other = xflash.NonAutoregressiveWrapper(hidden, mask_id=10)
    yield method("forward", other, {"x": IDS, "mask": MASK}, hidden.forward)
    yield method("generate", other, {"batch_size": 2, "filter_thres": 0.5, "steps": 2}, bert.generate)


def others():
    rmt = xflash.RecurrentMemoryWrapper(model(), 2, 3).eval()
    _, state = rmt.step(IDS)
    yield method("forward", rmt, {"x": IDS, "mask": MASK})
    yield method("step", rmt, {"x": IDS, "state": state, "mask": MASK, "reset": ROWS})
    yield method("reset", rmt, {"state": state, "rows": ROWS})
    yield method("reorder", state, {"index": torch.tensor([2, 0])})
    block = xflash.BlockRecurrentTransformer(**recurrent()).eval()
    _, memories, states = block(IDS)
    yield method("forward", block, {"x": IDS, "mask": MASK, "xl_memories": memories, "states": states})
    yield method("forward", block, {"x": IDS, "return_loss": True})
    trainer = xflash.RecurrentTrainerWrapper(block)
    yield method("forward", trainer, {"x": IDS})
    ar = xflash.AutoregressiveWrapper(model())
    for how in ("generate", "stream"):
        yield method(how, block, {"prime": IDS, "length": 7}, getattr(ar, how))
        yield method(how, trainer, {"prime": IDS, "length": 7}, getattr(ar, how))
    seen = xflash.ViTransformerWrapper(**vit()).eval()
    yield method("forward", seen, {"img": torch.rand(B, 2, 6, 9)})
    both = xflash.XTransformer(**sides()).eval()
    side = {"src": IDS, "mask": MASK, "src_prepend_embeds": X[:, :2], "src_prepend_mask": MASK[:, 2:4]}
    yield method("forward", both, {**side, "tgt": IDS, "tgt_mask": MASK, "labels": IDS})
    yield method("encode", both, {"src": IDS, "attn_mask": torch.ones(N, N).bool()})
    for how in ("generate", "stream", "beam_search"):
        given = {**side, "tgt_start": IDS[:, :2], "seq_len": 2, "tgt_mask": MASK[:, :2]}
        yield method(how, both, given, getattr(ar, how))
    for layer in (xflash.FLASH(DIM, 4, 6, causal=True), xflash.GAU(DIM, 6, causal=True)):
        yield method("forward", layer, {"x": X, "mask": MASK})
        yield method("step", layer, {"x": X, "state": layer.step(X)[1], "mask": MASK})
    flashes = xflash.FLASHTransformer(**flash())
    yield method("forward", flashes, {"x": IDS, "mask": MASK})


def vectors():
    """Models of frames, and of numbers beside ids."""
    x = X[..., :5]
    net = xflash.ContinuousTransformerWrapper(**frames()).eval()
    yield method("forward", net, {"x": x, "lens": [5, 4, 2], "prepend_embeds": X[:, :2]})
    yield method("step", net, {"x": x, "state": net.step(x)[1], "mask": MASK, "reset": ROWS})
    trainer = xflash.ContinuousAutoregressiveWrapper(net)
    yield method("forward", trainer, {"x": x, "lens": [5, 4, 2], "rollout_steps": 2}, net.forward)
    yield method("generate", trainer, {"prompts": x, "seq_len": 2, "mask": MASK}, net.step)
    net = xflash.MultiInputTransformerWrapper(**several()).eval()
    ids = {"note": IDS, "length": IDS % 5}
    yield method("forward", net, {"x": ids, "mask": MASK, "prepend_embeds": X[:, :2]})
    yield method("step", net, {"x": ids, "state": net.step(ids)[1], "mask": MASK, "reset": ROWS})
    net = xflash.XValTransformerWrapper(**numbers()).eval()
    both = {"x": torch.full_like(IDS, 10), "x_num": X[..., 0]}
    yield method("forward", net, {**both, "mask": MASK})
    yield method("step", net, {**both, "state": net.step(**both)[1], "mask": MASK, "reset": ROWS})
    pool = xflash.AttentionPool(DIM, heads=2, dim_head=4)
    yield method("forward", pool, {"context": CONTEXT, "mask": CONTEXT_MASK, "queries": X})
    trainer = xflash.XValAutoregressiveWrapper(net)
    yield method("forward", trainer, {**both, "mask": MASK, "doc_ids": IDS // 3}, net.forward)
    start = {"start_tokens": IDS, "start_numbers": X[..., 0], "seq_len": 2}
    yield method("generate", trainer, {**start, "eos_token": 3, "prompt_lens": [5, 4, 2]}, net.step)


LOGITS = torch.randn(2, 7, generator=torch.Generator().manual_seed(3))


def function(fn, given):
    return Call(f"{fn.__module__}.{fn.__name__}", fn, given, hints_of(fn))


def functions():
    for fn in (xflash.top_k, xflash.top_p, xflash.top_a, xflash.min_p):
        yield function(fn, {"logits": LOGITS})
    yield function(xflash.top_k, {"logits": LOGITS, "k": 2})
    yield function(xflash.top_k, {"logits": LOGITS, "thres": 0.5})
    yield function(pooling.mean_pool, {"x": X, "mask": MASK})
    yield function(pooling.first_pool, {"x": X, "mask": MASK})
    yield function(pooling.attention_pool, {"x": X, "query": X[0, 0], "mask": MASK})
    yield function(data.ngram_bits, {"train": b"abcabc", "valid": b"abc", "order": 2})
    yield function(data.in_rows, {"documents": [b"abc", b"de"], "rows": 2, "segment": 2})
    yield function(data.documents, {"data": b"abcabc", "longest": 2})
    yield function(data.articles, {"data": b"<text>a</text>"})
    yield function(data.splits, {"text": data.Text("a", "b", "c", b"abc")})
    few = images.Images("a", "b", "c", 16, torch.zeros(4, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    yield method("split", few, {"share": 0.5, "seed": 1})
    yield method("only", few, {"chosen": torch.tensor([0, 1])})


def part(flags, prefix, config):
    """A stack with a part in it, and the flags of that part."""
    named = " ".join(f"{name}={value!r}" for name, value in flags.items())
    hints = {prefix + name: spec.hint for name, spec in flags_of(config).items()}
    return Call(f"Decoder {named}", xflash.Decoder, {**SMALL, **flags}, hints)


def flags():
    """The flags of a stack, part by part, and their other spellings."""
    yield part({"layers": "ff"}, "", StackConfig)
    for name, block in xflash.blocks.items():
        yield part({"layers": f"{name} recurrent" if name == "state_read" else name}, f"{name}_", block.Config)
        for field, held, config in parts_of(name):
            layers = f"{name} recurrent" if name == "state_read" else name
            yield part({"layers": layers, f"{name}_{field}": held}, f"{name}_{held}_", config)
    for name, position in xflash.positions.items():
        yield part({"layers": "attn", "pos": name}, f"{name}_", position.Config)
    for name, kind in xflash.norms.items():
        yield part({"layers": "ff", "norm": name}, "norm_", kind.Config)
    for slot, registry in (("reads", xflash.reads), ("scale", xflash.scales), ("join", xflash.joins)):
        for name, kind in registry.items():
            yield part({"layers": "ff", "depth": 2, slot: name}, f"{name}_", kind.Config)
    spelt = dict.fromkeys(SWITCHES, bool) | {"norm_type": str | None, "attn_max_attend_past": int | None}
    spelt |= {"pre_norm_has_final_norm": bool | None, "rotary_xpos": bool, "layerscale_init_value": float}
    spelt |= {"depth_scale_residual": float | bool, "dynamic_tanh_init_alpha": float}
    spelt |= {"residual": str, "residual_init": float, "num_residual_streams": int, "hyper_conn_sinkhorn_iters": int}
    spelt |= {"ff_custom_activation": str | Callable | None}
    spelt |= {"rotate_num_heads": int | None, "attn_cope_max_pos": int, "dynamic_pos_bias_mlp_depth": int}
    spelt |= {"attn_data_dependent_alibi_per_row_dim_head": int}
    spelt |= {f"dynamic_pos_bias_{name}": bool for name in ("log_distance", "norm")}
    spelt |= {"polar_bias_uniform_init": bool}
    for block in ("attn", "cross_attn"):
        spelt |= {f"{block}_sparse_topk": int | None, f"{block}_logit_softclamp_value": float}
        booleans = ("pre_talking_heads", "post_talking_heads", "sparse_topk_straight_through")
        spelt |= {f"{block}_{name}": bool for name in booleans}
        spelt |= {f"{block}_gumbel_softmax_temp": float, f"{block}_gumbel_softmax_hard": bool}
        spelt |= {f"{block}_custom_attn_fn": str | Callable[[torch.Tensor], torch.Tensor] | None}
    for block, begins in (("block_attn", ("", "read_")), ("recurrent", ("", "read_")), ("state_read", ("",))):
        spelt |= {f"{block}_{begin}qk_norm": bool for begin in begins}
        spelt |= {f"{block}_{begin}qk_norm_scale": float for begin in begins}
    assert set(spelt) == set(ALIASES)
    layers = "attn gau flash ff cross_attn block_attn state_read recurrent"
    whole = {"layers": layers, "scale": "layerscale", "pos": "rotary dynamic"}
    whole |= {f"{block}_scores": "talking_heads softclamp topk" for block in ("attn", "cross_attn")}
    whole |= {"attn_scores": "talking_heads softclamp cope topk forget_by_query", "attn_weight_fn": "gumbel"}
    yield Call("Decoder, other spellings", xflash.Decoder, {**SMALL, **whole}, spelt)


def saving():
    """What writes, reads and builds from configs."""
    one = stack()
    yield Call("Decoder.compile_step", model().compile_step, {}, {**hints_of(torch.compile)})
    folder = tempfile.mkdtemp()
    xflash.save(one, folder)
    yield function(xflash.save, {"model": one, "folder": folder})
    yield method("save", one, {"folder": folder})
    yield function(xflash.load, {"folder": folder})
    yield function(xflash.create, {"name": "gpt2"})
    yield function(xflash.rebuild, {"model": one})
    yield function(xflash.from_config, {"config": one.to_config()})._replace(hints={"config": Mapping[str, object]})
    yield Call(
        "Decoder.from_config", xflash.Decoder.from_config, {"config": one.to_config()}, {"config": Mapping[str, object]}
    )
    for fn in (convert.from_x_transformers, convert.from_flash_pytorch, convert.from_block_recurrent):
        yield Call(fn.__name__, fn, {}, hints_of(fn))
    for name in ("blocks", "norms", "positions", "reads", "scales", "joins", "scores", "weight_fns", "activations"):
        registry = getattr(xflash, name)
        yield Call(f"{name}.register", registry.register("new"), {}, {"part": Callable})
        yield Call(f"{name}.register", registry.register, {"name": "new"}, {"name": str})
