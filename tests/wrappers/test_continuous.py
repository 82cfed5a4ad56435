"""Models of vectors: the laws, the loss on the next frame, rolling out, and frames that are made."""

import model_laws
import pytest
import torch
from laws import live

from xflash import ContinuousAutoregressiveWrapper, ContinuousTransformerWrapper, Decoder, Encoder

SMALL = {"dim": 12, "depth": 1, "heads": 2}
D, N = 5, 11


def net(cls=Decoder, flags=None, **arguments):
    torch.manual_seed(0)
    flags = flags or {}
    stack = cls(**SMALL, **({} if "layers" in flags else {"attn_dim_head": 6}), **flags)
    return ContinuousTransformerWrapper(
        **{"dim_in": D, "dim_out": D, "max_seq_len": 23, **arguments}, attn_layers=stack
    )


def frames(b=3, n=N, seed=1):
    return torch.randn(b, n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trainer(**arguments):
    return ContinuousAutoregressiveWrapper(live(net(num_memory_tokens=2)), **arguments)


GATED = {"layers": "gau flash", "gau_query_key_dim": 6, "flash_query_key_dim": 6, "flash_group_size": 3}
# Beside what the covering set has of causal ones.
CASES = {
    "gau": (Decoder, {**GATED, "pos": "rotary"}, {"emb_dim": 8, "dim_out": None}),
    "no projections": (Decoder, {}, {"dim_in": None, "dim_out": None, "max_seq_len": None, "post_emb_norm": True}),
    "pooled": (Encoder, {"pos": "rotary"}, {"attn_pool": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_laws(name, tmp_path):
    cls, flags, arguments = CASES[name]
    model_laws.model_laws(net(cls, flags, **{"max_seq_len": 67, **arguments}), tmp_path)


def test_positions_are_learned_where_they_have_a_length():
    assert net().length_limit == 23
    assert net(max_seq_len=None).length_limit is None and net(flags={"pos": "rotary"}).length_limit is None
    with pytest.raises(ValueError, match="learned absolute positions need max_seq_len"):
        net(max_seq_len=None, use_abs_pos_emb=True)


def test_a_padded_frame_reaches_nothing():
    """Neither as input nor as target, whatever it holds, and not in any gradient."""
    model, x = trainer(), frames()
    lens = torch.tensor([N, 6, 0])
    broken = x.masked_fill(torch.arange(N)[:, None] >= lens[:, None, None], torch.nan)
    loss = model(broken, lens=lens)
    loss.backward()
    assert loss == model(x, lens=lens) and all(p.grad.isfinite().all() for p in model.parameters())
    # By hand: the mean over the frames that follow a real one and are real.
    found = model.net(x)
    gaps = [(found[row, : lens[row] - 1] - x[row, 1 : lens[row]]).square() for row in (0, 1)]
    torch.testing.assert_close(loss, torch.cat(gaps).mean())
    holed = torch.arange(N) % 3 != 1
    torch.testing.assert_close(model(x, holed.expand(3, N)), model(x[:, holed]))
    assert model(x, lens=[0, 0, 1]) == 0


def test_the_loss_of_rows_and_distances():
    x, lens = frames(), torch.tensor([N, 4, 1])
    model, rows, l1 = trainer(), trainer(equal_loss_weight_batch=True), trainer(use_l1_loss=True)
    alone = [model(x[row : row + 1, : lens[row]]) for row in (0, 1)]
    torch.testing.assert_close(rows(x, lens=lens), torch.stack(alone).mean())
    torch.testing.assert_close(l1(x), (l1.net(x[:, :-1]) - x[:, 1:]).abs().mean())
    loss, y = model(x, lens=lens, return_outputs=True)
    assert loss == model(x, lens=lens) and y.shape == (3, N - 1, D)
    ids = torch.tensor([0] * 4 + [1] * 7).expand(3, N)
    packed = ContinuousAutoregressiveWrapper(live(net()))
    parts = [packed(x[:, :4]) * 3, packed(x[:, 4:]) * 6]
    torch.testing.assert_close(packed(x, doc_ids=ids), sum(parts) / 9)


def test_rolling_out_is_going_on_by_itself(monkeypatch):
    """From a frame that is drawn for each row: what `generate` makes from there, compared with what was there."""
    model, x, lens = trainer(), frames(), [N, 7, 3]
    monkeypatch.setattr("xflash.wrappers.continuous_autoregressive.uniform", lambda t, _: torch.full((3,), 0.6))
    loss, y = model(x, lens=lens, rollout_steps=3, return_outputs=True)
    # 1 + 0.6 of the places that leave room for three.
    starts = [1 + int(0.6 * (n - 3)) for n in lens[:2]]
    made = torch.cat([model.generate(x[row : row + 1, :start], 3) for row, start in enumerate(starts)])
    torch.testing.assert_close(y[:2], made)
    right = torch.stack([x[row, start : start + 3] for row, start in enumerate(starts)])
    torch.testing.assert_close(loss, (made - right).square().mean())
    left = torch.arange(N).flip(0) < torch.tensor(lens)[:, None]
    moved = torch.stack([x[row].roll(N - n, 0) for row, n in enumerate(lens)])
    torch.testing.assert_close(model(moved, left, rollout_steps=3), loss)
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p is not model.net.attn_layers.memory_tokens)
    assert model(x, lens=[3, 2, 0], rollout_steps=3) == 0


def test_frames_that_are_made():
    model, x = trainer().train(), frames()
    made = model.generate(x[:, :4], 5)
    assert model.training and made.shape == (3, 5, D)
    again = x[:, :4]
    with torch.no_grad():
        model.eval()
        for _ in range(5):
            again = torch.cat((again, model.net(again)[:, -1:]), 1)
    torch.testing.assert_close(made, again[:, 4:])
    ragged = model.generate(x, 5, prompt_lens=[4, 2, 9])
    torch.testing.assert_close(ragged[0], model.generate(x[0, :4], 5))
    torch.testing.assert_close(ragged, model.generate(x, 5, mask=torch.arange(N) < torch.tensor([[4], [2], [9]])))
    torch.testing.assert_close(ragged, model.generate(x, 5, prompt_lens=[4, 2, 9], cache_kv=False))
    # Past what has positions it stops with a sentence, or reads the last frames only.
    with pytest.raises(ValueError, match="but the model has max_seq_len=23: at most seq_len=13 fits"):
        model.generate(x, 14)
    far = model.generate(x, 14, restrict_to_max_seq_len=True)
    torch.testing.assert_close(far[:, :13], model.generate(x, 13))
    read = torch.cat((x, far[:, :-1]), 1)[:, -23:]
    torch.testing.assert_close(far[:, -1], model.net(read)[:, -1])


def test_what_is_no_model_of_frames():
    with pytest.raises(ValueError, match="sees the frames that it is to predict"):
        ContinuousAutoregressiveWrapper(net(Encoder))
    with pytest.raises(ValueError, match="dim_in=5 and gives them with dim_out=7"):
        ContinuousAutoregressiveWrapper(net(dim_out=7))
    with pytest.raises(TypeError, match="net must be a ContinuousTransformerWrapper, not"):
        ContinuousAutoregressiveWrapper(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"ContinuousAutoregressiveWrapper\(model\).generate makes frames"):
        net().generate(frames(), 2)
    with pytest.raises(TypeError, match="sees all tokens at once; a Decoder"):
        net(Encoder).generate(frames(), 2)


def test_what_is_no_frame():
    model, x = trainer(), frames()
    for wrong, error, match in (
        (torch.zeros(3, 4, dtype=torch.long), TypeError, r"x must be a floating-point tensor \(batch, frames, 5\)"),
        (x[..., :3], ValueError, r"x must be \(batch, frames, 5\) with at least one frame, not \(3, 11, 3\)"),
        (x[:, :1], ValueError, "x has 1 frames, but a loss with rollout_steps=1 needs 2 at least"),
        (x.float(), TypeError, "x is torch.float32, but the model is torch.float64"),
    ):
        with pytest.raises(error, match=match):
            model(wrong)
    with pytest.raises(ValueError, match="needs 12 at least"):
        model(x, rollout_steps=N)
    for name, value in (("doc_ids", torch.zeros(3, N).long()), ("attn_mask", torch.ones(N, N).bool())):
        with pytest.raises(ValueError, match=f"which has no {name}"):
            model(x, rollout_steps=2, **{name: value})
    adaptive = live(net(flags={"norm": "adaptive_layernorm"}))
    with pytest.raises(ValueError, match="frames that would have no condition: give one for each row"):
        ContinuousAutoregressiveWrapper(adaptive)(x, rollout_steps=2, condition=torch.ones(3, N, 12).double())
    with pytest.raises(TypeError, match=r"prompts must be a floating-point tensor \(frames, 5\) or"):
        model.generate([x[0]], 2)
    with pytest.raises(ValueError, match=r"prompts must be .*, not \(5,\)"):
        model.generate(x[0, 0], 2)
