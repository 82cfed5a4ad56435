"""Weights of four bits, number by number, and what is refused of them."""

import pytest
import torch

from xflash.convert.transformers.mxfp4 import check_packed, dequantised, unpacked
from xflash.convert.transformers.settings import Settings

NAME = "layers.0.mlp.experts.down_proj"


def by_hand(bits, scale):
    """A sign, two bits of exponent, one of mantissa; a scale is an exponent alone."""
    sign, exponent, mantissa = -1.0 if bits & 8 else 1.0, bits >> 1 & 3, bits & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
    return sign * size * 2.0 ** (scale - 127)


def drawn():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 5, 2, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(90, 150, (3, 5, 2), generator=generator, dtype=torch.uint8)


def test_every_number_of_four_bits():
    blocks, scales = drawn()
    found = dequantised(blocks, scales)
    assert found.shape == (3, 5, 64) and found.dtype == torch.bfloat16
    for e in range(3):
        for r in range(5):
            for column in range(64):
                byte = blocks[e, r, column // 32, column % 32 // 2].item()
                expected = by_hand(byte >> 4 if column % 2 else byte & 15, scales[e, r, column // 32].item())
                assert found[e, r, column].item() == expected


def test_they_are_made_when_they_are_read():
    blocks, scales = drawn()
    other = torch.ones(3)
    made = unpacked({NAME + "_scales": scales, "norm.weight": other, NAME + "_blocks": blocks}, torch.nn.Module())
    assert list(made) == ["norm.weight", NAME] and made["norm.weight"] is other
    assert made[NAME].shape == (3, 64, 5) and torch.equal(made[NAME].read(), dequantised(blocks, scales).mT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_scales": None}, rf"there is a weight '{NAME}_blocks', but none '{NAME}_scales'"),
        ({"_blocks": None}, rf"there is a weight '{NAME}_scales', but none '{NAME}_blocks'"),
        ({"_scales": torch.zeros(3, 5)}, rf"the weight '{NAME}_scales' is torch.float32, not torch.uint8"),
        (
            {"_scales": torch.zeros(3, 5, dtype=torch.uint8)},
            r"are of shapes \(3, 5, 2, 16\) and \(3, 5\), not \(experts, rows, groups, bytes\)",
        ),
    ],
)
def test_what_is_refused(change, message):
    blocks, scales = drawn()
    given = {NAME + end: t for end, t in ({"_blocks": blocks, "_scales": scales} | change).items() if t is not None}
    with pytest.raises(ValueError, match=message):
        unpacked(given, torch.nn.Module())


def test_other_quantised_weights_are_refused():
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(ValueError, match=r"quant_method='awq' of a 'gpt_oss' config .* only 'mxfp4' has"):
        check_packed(Settings(config))
