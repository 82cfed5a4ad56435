"""What is built on the meta device, emptied and loaded equals the original: nothing is known to `__init__` only."""

import laws
import matrix
import pytest
import torch

import xflash
from xflash import (
    FLASH,
    GAU,
    AttentionLayers,
    AttentionPool,
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    ContinuousAutoregressiveWrapper,
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    FLASHTransformer,
    MaskedLMWrapper,
    MultiInputTransformerWrapper,
    NonAutoregressiveWrapper,
    PrefixDecoder,
    RecurrentMemoryWrapper,
    RecurrentTrainerWrapper,
    SegmentWrapper,
    TransformerWrapper,
    ViTransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
    XValAutoregressiveWrapper,
    XValTransformerWrapper,
)
from xflash.base.registry import blocks, joins, norms, positions, reads, scales
from xflash.saving.classes import CLASSES

V, DIM, N = 31, 20, 17
SMALL = {"attn_dim_head": 6, "gau_query_key_dim": 6, "flash_query_key_dim": 6, "flash_group_size": 5}


def stack(cls=Decoder, **flags):
    flags = {"dim": DIM, "depth": 1, "heads": 2, "layers": "attn ff", "attn_dim_head": 6, **flags}
    return cls(**flags)


def model(cls=Decoder, **flags):
    own = {name: flags.pop(name) for name in ("max_mem_len", "attn_pool", "scaled_sinu_pos_emb") if name in flags}
    return TransformerWrapper(num_tokens=V, max_seq_len=N, attn_layers=stack(cls, **flags), **own)


def block_recurrent():
    return BlockRecurrentTransformer(
        num_tokens=V, dim=DIM, depth=2, dim_head=6, heads=2, block_width=4, max_seq_len=8, num_state_vectors=3
    )


def seq2seq():
    sizes = {"depth": 1, "heads": 2, "num_tokens": V, "max_seq_len": N}
    sides = {f"{side}_{name}": size for side in ("enc", "dec") for name, size in sizes.items()}
    return XTransformer(dim=DIM, tie_token_emb=True, **sides)


def vectors():
    return ContinuousTransformerWrapper(dim_in=DIM, dim_out=DIM, max_seq_len=N, attn_layers=stack())


def several():
    return MultiInputTransformerWrapper(num_tokens={"note": V, "length": V}, max_seq_len=N, attn_layers=stack())


def numbers():
    return XValTransformerWrapper(num_tokens=V, numerical_token_id=3, max_seq_len=N, attn_layers=stack())


BUILT = {
    AttentionLayers: lambda: stack(AttentionLayers, causal=True),
    Encoder: lambda: stack(Encoder, layers="attn flash gau ff", **SMALL),
    Decoder: lambda: stack(layers="attn flash gau ff", num_memory_tokens=2, **SMALL),
    PrefixDecoder: lambda: stack(PrefixDecoder),
    CrossAttender: lambda: CrossAttender(dim=DIM, depth=1, heads=2),
    TransformerWrapper: lambda: model(attn_pool=True, scaled_sinu_pos_emb=True),
    FLASHTransformer: lambda: FLASHTransformer(num_tokens=V, dim=DIM, depth=1, group_size=5, query_key_dim=6),
    GAU: lambda: GAU(DIM, 6, rel_pos_bias="toeplitz"),
    FLASH: lambda: FLASH(DIM, 5, 6, rotary_pos_emb=True),
    BlockRecurrentTransformer: block_recurrent,
    RecurrentTrainerWrapper: lambda: RecurrentTrainerWrapper(block_recurrent()),
    RecurrentMemoryWrapper: lambda: RecurrentMemoryWrapper(model(), 2, 5),
    AutoregressiveWrapper: lambda: AutoregressiveWrapper(model()),
    SegmentWrapper: lambda: SegmentWrapper(model(), 5),
    XLAutoregressiveWrapper: lambda: XLAutoregressiveWrapper(model(pos="rotary", max_mem_len=5)),
    MaskedLMWrapper: lambda: MaskedLMWrapper(
        model(Encoder), mask_token_id=3, mask_ignore_token_ids=[4, 9], replace_prob=0.5, random_token_prob=0.4
    ),
    NonAutoregressiveWrapper: lambda: NonAutoregressiveWrapper(model(Encoder), mask_id=3),
    ViTransformerWrapper: lambda: ViTransformerWrapper(
        image_size=12, patch_size=4, num_classes=5, attn_layers=stack(Encoder), num_register_tokens=2, pool="attn"
    ),
    XTransformer: seq2seq,
    ContinuousTransformerWrapper: vectors,
    ContinuousAutoregressiveWrapper: lambda: ContinuousAutoregressiveWrapper(vectors()),
    AttentionPool: lambda: AttentionPool(DIM, 3, heads=2, dim_head=6),
    MultiInputTransformerWrapper: several,
    XValTransformerWrapper: numbers,
    XValAutoregressiveWrapper: lambda: XValAutoregressiveWrapper(numbers()),
}
# One stack for each registered part that is in none of the above.
PARTS = {
    "positions": {
        "pos": ("rotary", "rotary2d", "rel_pos", "alibi", "dynamic", "polar"),
        "scale": "layerscale",
        "norm": "layernorm",
    },
    "norms": {"norm": "rmsnorm", "scale": "rezero", "join": "orthogonal"},
    "streams": {"depth": 2, "reads": "unet lime", "lime_views": True, "join": "hyper", "attn_value_residual": True},
    "gates": {"join": "gru", "gru_gain": True, "scale": "constant", "norm": "dynamic_tanh"},
    "dual": {
        "join": "resi_dual",
        "norm_place": "post",
        "macaron": True,
        "layers": "ff attn ff",
        "softclamp_output": True,
    },
    "injected": {"join": "mv_split", "reads": "reinject", "layers_execute_order": (1, 0, 1)},
    "scalenorm": {"norm": "scalenorm", "join": "scaled", "norm_place": "sandwich"},
    "adaptive": {"norm": "adaptive_layernorm", "scale": "adaptive_layerscale", "dim_condition": 7},
    "adaptive rmsnorm": {"norm": "adaptive_rmsnorm"},
    "simple": {"norm": "simple_rmsnorm", "layers": "attn cross_attn"},
    "layers": {"layers": "attn+ff(norm=own) attn(pos=rel_pos, rel_pos_num_buckets=8, norm_place=after)"},
    "experts": {"layers": "attn moe", "moe_dim": 7, "moe_shared_dim": 5, "moe_shared_gate": True},
    "cross_gau": {"layers": "cross_gau ff", "attn_dim_head": None},
    "recurrent": {"layers": "block_attn state_read recurrent ff", "attn_dim_head": None}
    | {"recurrent_block_width": 4, "block_attn_block_width": 4, "recurrent_num_state_vectors": 3}
    | {"block_attn_compress": "conv", "block_attn_retrieve": 2},
}


VECTORS = (AttentionLayers, AttentionPool, GAU, FLASH, ContinuousTransformerWrapper, ContinuousAutoregressiveWrapper)


def given(module):
    """What a module of the package is called with."""
    chance = torch.Generator().manual_seed(1)
    if isinstance(module, ViTransformerWrapper):
        return (torch.randn(2, 3, 12, 12, generator=chance),)
    if isinstance(module, VECTORS):
        return (torch.randn(2, N, DIM, generator=chance),)
    ids = torch.randint(V, (2, N), generator=chance)
    if isinstance(module, MultiInputTransformerWrapper):
        return ({"note": ids, "length": ids.flip(1)},)
    if isinstance(module, (XValTransformerWrapper, XValAutoregressiveWrapper)):
        return ids, torch.randn(2, N, generator=chance)
    return (ids, ids.flip(1)) if isinstance(module, XTransformer) else (ids,)


def called(module):
    """What a module gives, with the same chance each time."""
    torch.manual_seed(2)
    out = laws.run(module, *given(module)) if isinstance(module, AttentionLayers) else module(*given(module))
    out = out["note"] if isinstance(out, dict) else out
    return out[0] if isinstance(out, tuple) else out


def check(make):
    """What `make` builds; the same built on the meta device and filled by `load_state_dict` alone is alike."""
    torch.manual_seed(0)
    original = make()
    with torch.device("meta"):
        again = make()
    again = again.to_empty(device="cpu")
    # As memory that nobody has written may be.
    for t in (*again.parameters(), *again.buffers()):
        t.data.fill_(float("nan") if t.is_floating_point() else 1)
    again.load_state_dict(original.state_dict())
    torch.testing.assert_close(called(again), called(original), rtol=0, atol=0)
    assert called(again).isfinite().all()
    return original


@pytest.mark.parametrize("kind", BUILT, ids=lambda kind: kind.__name__)
def test_every_class(kind):
    assert isinstance(check(BUILT[kind]), kind)


def test_every_class_is_here():
    ours = {kind for kind in CLASSES.values() if kind.__module__.startswith("xflash.") and "__init__" in vars(kind)}
    assert ours <= {base for kind in BUILT for base in kind.__mro__}, f"not built here: {ours - set(BUILT)}"


def test_every_part():
    """Each registered block, norm, position, read, scale and join."""
    seen = set()
    for flags in PARTS.values():
        flags = {name: value for name, value in {"attn_dim_head": 6, **flags}.items() if value is not None}
        found = check(lambda flags=flags: Decoder(**{"dim": DIM, "depth": 1, "heads": 2, "layers": "attn ff", **flags}))
        seen |= {type(module) for module in found.modules()}
    seen |= {type(module) for module in check(BUILT[Encoder]).modules()}
    parts = [*blocks.values(), *norms.values(), *positions.values()]
    parts += [*reads.values(), *scales.values(), *joins.values()]
    missing = {part for part in parts if part.__module__.startswith("xflash.")} - seen
    assert not missing, f"no stack here has {missing}"


@pytest.mark.parametrize("kind", matrix.stored())
def test_flags(kind):
    """A sample of the combinations of flags."""
    what, direction = kind.split()
    for row in matrix.stored()[kind]["accepted"][::23]:
        choices = matrix.as_row(what, row)
        _, build = matrix.domain_of(what)
        original = build(direction == "causal", choices)
        with torch.device("meta"):
            again = build(direction == "causal", choices)
        assert not list(again.buffers()) and again.state_dict().keys() == original.state_dict().keys()
        for name, module in again.named_modules():
            held = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
            assert not held, f"{type(module).__name__} {name} holds tensors that no checkpoint has: {held}"


def test_a_checkpoint_of_the_time_of_buffers():
    """What MaskedLMWrapper's buffers held was in no checkpoint."""
    torch.manual_seed(0)
    net = BUILT[MaskedLMWrapper]()
    assert not [name for name in net.state_dict() if "." not in name]


def test_random_words_are_ordinary_ones():
    net = MaskedLMWrapper(
        model(Encoder), mask_token_id=3, mask_ignore_token_ids=[4, 9], replace_prob=0.0, random_token_prob=1.0
    )
    special = torch.tensor([3, 4, 9])
    expected = torch.tensor([token not in special for token in range(V)])
    assert torch.equal(net.ordinary(torch.device("cpu")), expected)
    x = torch.zeros(50, 97, dtype=torch.long)
    made = net.corrupt(x, torch.ones_like(x, dtype=torch.bool), torch.Generator().manual_seed(5))
    assert torch.equal(made.unique(), expected.nonzero()[:, 0])
    assert (made.flatten().bincount(minlength=V)[expected] / x.numel()).sub(1 / 28).abs().max() < 0.01


def test_saved_models_are_built_so(tmp_path):
    """The file's own way: `from_config` on the meta device, then the weights."""
    from safetensors.torch import load_file

    torch.manual_seed(0)
    original = BUILT[MaskedLMWrapper]()
    original.save(tmp_path)
    with torch.device("meta"):
        again = xflash.from_config(original.to_config())
    again.to_empty(device="cpu").load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(called(again), called(original), rtol=0, atol=0)
