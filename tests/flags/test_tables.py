"""What tables of flags say beside the values, and what they are asked for."""

from xflash import Decoder

SMALL = {"dim": 24, "depth": 1, "heads": 2}


def test_what_is_said_of_one_of_several_blocks_in_parallel_is_of_all():
    text = Decoder(**SMALL, layers="attn(norm=rmsnorm, scale=rezero)+ff").flag_table(changed_only=True)
    assert "its norm (of blocks in parallel: of all of them), 'none', or 'own': one beside theirs" in text
    assert "what multiplies its update (of blocks in parallel: their sum), or 'none'" in text
