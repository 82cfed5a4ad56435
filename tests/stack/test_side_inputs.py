"""A side input of one's own: declared once, it goes through stacks, models, pieces, padding, losses and decoding."""

import laws
import pytest
import torch
import torch.nn.functional as F

from xflash import AutoregressiveWrapper, Block, Decoder, SegmentWrapper, TransformerWrapper, blocks
from xflash.base.registry import side_inputs
from xflash.stack.side_inputs import SideInput

DIM, B, N = 26, 3, 11


class Loudness(SideInput):
    """(b, n): what each token is multiplied by."""

    def check(self, value, call):
        if tuple(value.shape) != call.shape:
            raise ValueError(f"loudness must be {call.shape}, not {tuple(value.shape)}")
        return value


class Loud(Block):
    mixes_tokens = False
    heeds = frozenset({"loudness"})

    def __init__(self, config, site):
        super().__init__(config, site)
        self.to_out = site.linear_out(site.dim)

    def forward(self, x, ctx, state=None):
        loudness = ctx.beside.get("loudness")
        return self.to_out(x if loudness is None else x * (1 + loudness[..., None])), None


@pytest.fixture
def own():
    before = [(registry, dict(registry._parts)) for registry in (blocks, side_inputs)]
    side_inputs.register("loudness")(Loudness)
    blocks.register("loud")(Loud)
    yield
    for registry, parts in before:
        registry._parts = parts


X, LOUD = (torch.randn(s, generator=torch.Generator().manual_seed(1)).double() for s in ((B, N, DIM), (B, N)))
IDS = torch.randint(29, (B, N), generator=torch.Generator().manual_seed(2))


def stack(layers="loud attn", **flags):
    torch.manual_seed(0)
    return laws.live(Decoder(dim=DIM, depth=2, heads=2, layers=layers, attn_dim_head=6, pos="rotary", **flags))


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("layers", ["loud attn", "state_read recurrent(block_width=4,dim_head=6) loud attn"])
def test_through_a_stack(own, memory, layers):
    net = stack(layers, num_memory_tokens=memory)
    whole = net(X, loudness=LOUD)
    assert not torch.allclose(whole, net(X))
    pieces, state = [], None
    for start, end in ((0, 4), (4, 5), (5, N)):
        y, state = net.step(X[:, start:end], state, loudness=LOUD[:, start:end])
        pieces.append(y)
    laws.close(torch.cat(pieces, 1), whole, "in pieces")
    mask = laws.masks(N)["holes"]
    padded = net(X, mask, loudness=LOUD.masked_fill(~mask, float("nan")))
    for row in range(B):
        alone = net(X[row : row + 1, mask[row]], loudness=LOUD[row : row + 1, mask[row]])[0]
        laws.close(padded[row, mask[row]], alone, "padding")


def test_through_models(own):
    model = laws.live(TransformerWrapper(num_tokens=29, attn_layers=stack(), use_abs_pos_emb=False))
    embedded = model.embedding(IDS)[0]
    laws.close(model(IDS, loudness=LOUD), model.logits(model.attn_layers(embedded, loudness=LOUD)), "a model")
    ahead = torch.randn(B, 2, DIM).double()
    behind = model.attn_layers(torch.cat((ahead, embedded), 1), loudness=F.pad(LOUD, (2, 0)))
    laws.close(model(IDS, prepend_embeds=ahead, loudness=LOUD), model.logits(behind), "embeddings in front")
    logits = model(IDS[:, :-1], loudness=LOUD[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    laws.close(AutoregressiveWrapper(model)(IDS, loudness=LOUD), loss, "a loss")
    laws.close(SegmentWrapper(model, 4)(IDS, loudness=LOUD), loss, "a loss in segments")
    made = AutoregressiveWrapper(model).generate(IDS, 2, temperature=0.0, loudness=LOUD)
    assert torch.equal(made[:, 0], model(IDS, loudness=LOUD)[:, -1].argmax(-1))


def test_what_is_refused(own):
    with pytest.raises(ValueError, match=r"loudness must be \(3, 11\), not \(3, 4\)"):
        stack()(X, loudness=LOUD[:, :4])
    with pytest.raises(ValueError, match=r"loudness is given, but no part of the stack takes one .parts that do: loud"):
        stack("attn")(X, loudness=LOUD)
    with pytest.raises(TypeError, match="has no argument 'loudnes'; did you mean 'loudness'"):
        stack()(X, loudnes=LOUD)
    with pytest.raises(TypeError, match=r"the side input 'loud' must be a subclass of .*SideInput, not Loud"):
        side_inputs.register("loud")(Loud)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("name", ["doc_ids", "attn_mask"])
def test_what_is_said_of_tokens_among_each_other_is_of_a_whole_text(name, n):
    """Of one token it would fit all that came before."""
    stack = laws.live(Decoder(dim=12, depth=1, heads=2, layers="attn"))
    x = laws.sample(stack, 5)
    value = torch.zeros(len(x), n, dtype=torch.long) if name == "doc_ids" else torch.ones(n, n, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"{name} cannot be given to a step"):
        stack.step(x[:, :n], stack.step(x)[1], **{name: value})
