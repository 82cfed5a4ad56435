"""RoBERTa (https://arxiv.org/abs/1907.11692)."""

from .bert import BESIDE, HEADS, LAYERS, WORDS, bert
from .family import Family, Flags, encoder, families
from .settings import Settings

__all__ = ["roberta"]

OWN = """
    lm_head.dense.weight                                   transform.dense.weight
    lm_head.dense.bias                                     transform.dense.bias
    lm_head.layer_norm.weight                              transform.norm.gain
    lm_head.layer_norm.bias                                transform.norm.bias
    lm_head.bias                                           tied_bias
"""


def roberta(settings: Settings) -> Flags:
    """BERT whose positions are counted from behind that of the padding, with a head of GELU."""
    flags = bert(settings)
    offset = settings("pad_token_id", 1) + 1
    flags.model["max_seq_len"] -= offset
    flags.model.update(pos_emb_offset=offset, head_transform="gelu")
    return flags


families["roberta"] = Family(
    roberta,
    LAYERS + OWN,
    build=encoder,
    heads=HEADS,
    prefix="roberta.",
    tied={"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "lm_head.bias"},
    beside=BESIDE,
)
