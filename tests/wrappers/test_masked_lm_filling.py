"""What a masked language model fills in, in how many calls, and what it has learnt."""

import itertools
import math

import laws
import pytest
import torch
import torch.nn.functional as F
from hidden_tokens import CLS, HIDDEN, PAD, SEP, SPECIAL, VOCABULARY, N, batch, encoder, masked_lm, seeded

from xflash import MaskedLMWrapper
from xflash.wrappers.hiding import SCHEDULES, random_subset


class Told(torch.nn.Module):
    """Says token (place + 1), the surer the further to the right; notes how many places were hidden in each call."""

    def __init__(self):
        super().__init__()
        self.num_tokens, self.hidden = VOCABULARY, []

    def forward(self, ids, mask=None):
        self.hidden.append((ids == HIDDEN).sum(1).tolist())
        place = torch.arange(ids.shape[1])
        return (F.one_hot(place + 1, VOCABULARY) * (3.0 + place[:, None])).expand(len(ids), -1, -1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_of_decoding(schedule):
    net = Told()
    ids = torch.full((2, 12), HIDDEN)
    ids[1, 3:] = 5
    made = MaskedLMWrapper(net, mask_token_id=HIDDEN).generate(ids, steps=6, schedule=schedule, temperature=0)
    assert made.tolist() == [list(range(1, 13)), [1, 2, 3] + [5] * 9]
    share = {"linear": lambda t: 1 - t, "cosine": lambda t: math.cos(t * math.pi / 2)}[schedule]
    expected = [math.floor(share(step / 6) * 12 + 1e-4) for step in range(6)]
    assert [rows[0] for rows in net.hidden] == expected
    second = [rows[1] for rows in net.hidden]
    assert second[0] == 3 and all(b < a or a == b == 0 for a, b in itertools.pairwise(second))


def test_the_temperature_falls_to_zero():
    """The last call takes the likeliest token, however warm the first was."""
    model = MaskedLMWrapper(Told(), mask_token_id=HIDDEN)
    made = model.generate(batch_size=50, seq_len=12, steps=1, temperature=1000.0)
    assert (made == torch.arange(1, 13)).all()
    two = model.generate(batch_size=50, seq_len=12, steps=2, temperature=1000.0, generator=seeded())
    right = (two == torch.arange(1, 13)).float().mean().item()
    # Of twelve, cos(pi / 4) * 12 = 8 are left to the last call.
    assert right == pytest.approx((8 + 4 / 22) / 12, abs=0.03)


def test_how_sure_the_net_is_has_gumbel_noise():
    logits = torch.full((1, 20000, VOCABULARY), -1e4).index_fill(2, torch.tensor([7]), 0.0)
    drawn, sure = masked_lm().draw(logits, lambda x: x, 2.0, seeded())
    assert (drawn == 7).all()
    assert sure.mean().item() == pytest.approx(2 * 0.5772, abs=0.06)
    assert sure.std().item() == pytest.approx(2 * math.pi / 6**0.5, abs=0.06)
    assert (masked_lm().draw(logits, lambda x: x, 0.0, None)[1] == 0).all()


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_decoding_leaves_the_rest_alone(steps):
    """What is known stays, padding too; nothing special is ever drawn; the model is in its mode again."""
    model = masked_lm(**SPECIAL).train()
    ids, _ = batch()
    hide = (torch.rand(ids.shape, generator=seeded(2)) < 0.6) & ~torch.isin(ids, torch.tensor([PAD, CLS, SEP]))
    made = model.generate(ids.masked_fill(hide, HIDDEN), steps=steps, temperature=5.0, generator=seeded())
    assert torch.equal(made[~hide], ids[~hide])
    assert not torch.isin(made[hide], torch.tensor([HIDDEN, PAD, CLS, SEP])).any()
    assert model.training and model.net.training
    one = model.generate(ids[0].masked_fill(hide[0], HIDDEN), steps=steps, temperature=0)
    assert one.shape == (N,)


def test_decoding_without_chance_is_the_same_in_any_padding():
    model = laws.live(masked_lm(**SPECIAL))
    ids, lengths = batch()
    ids = ids.masked_fill((torch.arange(N) % 3 > 0) & (ids != PAD), HIDDEN)
    together = model.generate(ids, temperature=0, steps=5)
    for row, n in enumerate(lengths.tolist()):
        assert torch.equal(together[row, :n], model.generate(ids[row, :n], temperature=0, steps=5))
        assert (together[row, n:] == PAD).all()
    mask = torch.arange(N) < lengths[:, None]
    other = masked_lm(model.net, mask_ignore_token_ids=(PAD, CLS, SEP)).eval()
    made = other.generate(ids.masked_fill(~mask, HIDDEN), mask=mask, temperature=0, steps=5)
    assert torch.equal(made, together.masked_fill(~mask, HIDDEN))


def test_new_rows():
    model = masked_lm()
    assert model.generate(batch_size=3, seq_len=7, generator=seeded()).shape == (3, 7)
    assert model.generate(seq_len=7).shape == (1, 7)
    limited = masked_lm(encoder(max_seq_len=11))
    assert limited.generate(batch_size=2, filter_logits_fn="top_k", filter_kwargs={"k": 3}).shape == (2, 11)


def progressions(count, generator, length=7, modulus=7):
    """Rows that count up in ones or twos: a few tokens say all the others."""
    start = torch.randint(modulus, (count, 1), generator=generator)
    by = torch.randint(1, 3, (count, 1), generator=generator)
    return (start + by * torch.arange(length)) % modulus + 1


@pytest.fixture(scope="module")
def trained():
    """A small encoder after 200 steps on `progressions`, and its losses."""
    net = encoder(num_tokens=9, dim=36, depth=2)
    model = MaskedLMWrapper(net, mask_token_id=8, pad_token_id=0, mask_prob="cosine")
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 200)
    generator, losses = seeded(5), []
    for _ in range(200):
        loss = model(progressions(64, generator), generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_training_lowers_the_loss(trained):
    """A guess costs log(7) = 1.95 nats; many rows keep too little to be told from, so the loss stays high."""
    model, losses = trained
    assert losses[0] == pytest.approx(math.log(7), abs=0.4)
    assert max(losses[-20:]) < 1.25
    few = MaskedLMWrapper(model.net, mask_token_id=8, pad_token_id=0, mask_prob=0.15)
    with torch.no_grad():
        assert few(progressions(64, seeded(6)), generator=seeded(7)) < 0.1


def test_generate_fills_in_the_right_tokens(trained):
    """Two known tokens tell all others; a guess is right one time in seven."""
    model, _ = trained
    rows = progressions(97, seeded(8))
    lengths = torch.randint(5, 8, (97, 1), generator=seeded(9))
    real = torch.arange(7) < lengths
    known = random_subset(real, torch.full((97,), 3), seeded(10))
    ids = torch.where(known, rows, 8).masked_fill(~real, 0)
    made = model.generate(ids, steps=6, temperature=0)
    assert (made == rows)[real & ~known].float().mean().item() > 0.85
    assert (made[~real] == 0).all()


def test_generate_makes_rows_that_hold_together(trained):
    """From nothing at all: neighbours differ by one or by two, and by the same all along, in many different rows."""
    model, _ = trained
    made = model.generate(batch_size=64, seq_len=7, steps=7, generator=seeded(11))
    steps = made.diff(dim=1) % 7
    whole = (steps == 1).all(1) | (steps == 2).all(1)
    assert whole.float().mean().item() > 0.6
    assert len({tuple(row) for row in made[whole].tolist()}) > 7
