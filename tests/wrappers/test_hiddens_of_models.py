"""`return_hiddens` of models: what is in front of the tokens, what it comes behind, and which models have it."""

import laws
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xflash import (
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    Encoder,
    FLASHTransformer,
    TransformerWrapper,
    XTransformer,
)

V, N, DIM = 13, 11, 22
IDS = torch.randint(V, (3, N), generator=torch.Generator().manual_seed(3))
MASK = laws.masks(N)["holes"]


def model_of(cls=Decoder, stack=None, **arguments):
    torch.manual_seed(0)
    flags = {"dim": DIM, "depth": 2, "heads": 2, "layers": "attn ff", "attn_dim_head": 6, "pos": "rotary"}
    return laws.live(TransformerWrapper(num_tokens=V, attn_layers=cls(**flags, **(stack or {})), **arguments))


def closed(ours, theirs, law):
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        laws.close(one, other, f"{law}: stream {place}")


def test_they_come_behind_what_a_call_gives():
    model = model_of(stack={"num_memory_tokens": 2})
    logits, hiddens = model(IDS, MASK, return_hiddens=True)
    closed(hiddens, model.attn_layers(model.embedding(IDS, MASK)[0], MASK, return_hiddens=True)[1], "of the stack")
    assert torch.equal(logits, model(IDS, MASK)) and torch.equal(model.logits(hiddens[-1]), logits)
    embeddings, again = model(IDS, MASK, return_embeddings=True, return_hiddens=True)
    assert torch.equal(embeddings, hiddens[-1])
    closed(again, hiddens, "with embeddings")
    (out, embeddings), again = model(IDS, MASK, return_logits_and_embeddings=True, return_hiddens=True)
    assert torch.equal(out, logits) and torch.equal(embeddings, again[-1])
    out, maps, again = model(IDS, MASK, return_attn=True, return_hiddens=True)
    laws.close(out, logits, "with matrices")
    closed(maps, model(IDS, MASK, return_attn=True)[1], "matrices")
    closed(again, hiddens, "with matrices")


def test_in_steps_and_across_segments():
    model = model_of(max_mem_len=N)
    whole = model(IDS, return_hiddens=True)[1]
    _, state, head = model.step(IDS[:, :5], return_hiddens=True)
    logits, _, tail = model.step(IDS[:, 5:], state, return_hiddens=True)
    closed([torch.cat(both, 1) for both in zip(head, tail, strict=True)], whole, "steps")
    _, mems, first = model(IDS[:, :5], return_mems=True, return_hiddens=True)
    out, second = model(IDS[:, 5:], mems=mems, return_hiddens=True)
    laws.close(out, logits, "logits behind a memory")
    closed([torch.cat(both, 1) for both in zip(first, second, strict=True)], whole, "segments")


def test_a_compiled_step_gives_them():
    model = model_of().eval()
    with torch.no_grad():
        _, state = model.step(IDS)
        expected = model.step(IDS[:, :1], state, return_hiddens=True)
        model.compile_step(backend="eager")
        got = model.step(IDS[:, :1], state, return_hiddens=True)
    closed(got[2], expected[2], "one token")


def test_what_stands_in_front_is_among_them():
    model = model_of(Encoder, use_cls_token=True, num_cls_tokens=2)
    front = torch.randn(3, 4, DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    logits, hiddens = model(IDS, MASK, prepend_embeds=front, return_hiddens=True)
    assert all(stream.shape == (3, 2 + 4 + N, DIM) for stream in hiddens)
    laws.close(hiddens[0][:, 2:6], front, "embeddings in front")
    laws.close(hiddens[0][:, :2], model.pooled.cls_tokens.tokens.expand(3, -1, -1), "CLS tokens")
    laws.close(model.logits(hiddens[-1][:, :2]), logits, "what the head reads")
    assert all((stream[:, 6:][~MASK] == 0).all() for stream in hiddens)


def test_of_flash_and_block_recurrent_transformers():
    torch.manual_seed(0)
    flash = laws.live(FLASHTransformer(num_tokens=V, dim=DIM, depth=3, group_size=5, query_key_dim=6, causal=True))
    logits, hiddens = flash(IDS, return_hiddens=True)
    assert len(hiddens) == 5
    laws.close(flash.logits(hiddens[-1]), logits, "the head has the last norm")
    recurrent = laws.live(
        BlockRecurrentTransformer(
            num_tokens=V, dim=DIM, depth=2, heads=2, dim_head=6, max_seq_len=8, block_width=4, num_state_vectors=3
        )
    )
    logits, memories, states, head = recurrent(IDS[:, :6], return_hiddens=True)
    _, _, _, tail = recurrent(IDS[:, 6:], xl_memories=memories, states=states, return_hiddens=True)
    laws.close(recurrent.logits(head[-1]), logits, "logits")
    whole = recurrent.step(IDS, return_hiddens=True)[2]
    closed([torch.cat(both, 1) for both in zip(head, tail, strict=True)], whole, "in two calls")


@pytest.mark.parametrize("loss_chunk", [None, 4])
def test_a_loss_and_the_streams_behind_it(loss_chunk):
    trainer = AutoregressiveWrapper(model_of(), loss_chunk=loss_chunk)
    loss, hiddens = trainer(IDS, MASK, return_hiddens=True)
    laws.close(loss, trainer(IDS, MASK), "the loss")
    inputs = IDS[:, :-1].masked_fill(~MASK[:, :-1], 0)
    closed(hiddens, trainer.net(inputs, MASK[:, :-1], return_hiddens=True)[1], "of the net")
    again, logits, _ = trainer(IDS, MASK, return_outputs=True, return_hiddens=True)
    laws.close(again, loss, "with logits")
    laws.close(logits, trainer.net.logits(hiddens[-1]), "logits")


def test_both_sides_have_them():
    torch.manual_seed(0)
    small = {"num_tokens": V, "depth": 1, "heads": 2, "max_seq_len": N, "attn_dim_head": 6}
    sides = {side + name: value for side in ("enc_", "dec_") for name, value in small.items()}
    model = laws.live(XTransformer(dim=DIM, **sides))
    loss, hiddens = model(IDS[:, :7], IDS, MASK[:, :7], return_hiddens=True)
    laws.close(loss, model(IDS[:, :7], IDS, MASK[:, :7]), "the loss")
    assert (len(hiddens.encoder), len(hiddens.decoder)) == (2 + 2, 3 + 2)
    laws.close(hiddens.encoder[-1], model.encode(IDS[:, :7], MASK[:, :7]).context, "what the decoder attends to")
    logits = model.decoder.net.logits(hiddens.decoder[-1])
    laws.close(F.cross_entropy(logits.mT, IDS[:, 1:]), loss, "the loss of the last stream")
    again = model(IDS[:, :7], IDS, MASK[:, :7], return_outputs=True, return_hiddens=True)
    laws.close(again[1], logits, "logits")
    closed(again[2].decoder, hiddens.decoder, "with logits")


class Net(nn.Module):
    """Gives logits, and has no layers to tell of."""

    causal = True

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, V)

    def forward(self, x, mask=None):
        return self.table(x)


def test_who_has_none_is_refused():
    with pytest.raises(TypeError, match=r"return_hiddens=True needs a net that gives the streams .* Net does not"):
        AutoregressiveWrapper(Net())(IDS, return_hiddens=True)
    model = model_of()
    for call in (model, model.step, AutoregressiveWrapper(model)):
        with pytest.raises(TypeError, match="return_hiddens must be True or False, not 'yes'"):
            call(IDS, return_hiddens="yes")
