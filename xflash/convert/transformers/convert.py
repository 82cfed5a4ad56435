"""`from_transformers`: a model of transformers as the flags that it is, with its weights."""

from typing import Any

from torch import nn

from . import bart as bart
from . import bert as bert
from . import deit as deit
from . import dinov2 as dinov2
from . import falcon as falcon
from . import gemma as gemma
from . import gpt2 as gpt2
from . import gpt_neox as gpt_neox
from . import gpt_oss as gpt_oss
from . import llama as llama
from . import mistral as mistral
from . import mixtral as mixtral
from . import modernbert as modernbert
from . import olmo2 as olmo2
from . import opt as opt
from . import phi as phi
from . import phi3 as phi3
from . import qwen as qwen
from . import roberta as roberta
from . import smollm3 as smollm3
from . import t5 as t5
from . import vit as vit
from .fill import Plan, build

__all__ = ["from_transformers"]


def from_transformers(model: nn.Module, long_context: bool = False) -> Any:
    """The xflash model with the weights and outputs of one of transformers; which ones, docs/models.md says.

    It shares nothing with the old model, and has its dtype, device and mode. TypeError for what is no model of
    transformers; ValueError, with the name of the setting, for what has no counterpart.

    long_context: of rotary factors for texts as long as in training and for longer ones (rope_type 'longrope'), between
    which transformers changes in the midst of a text, those for longer ones.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not hasattr(config, "model_type") or not hasattr(config, "to_dict"):
        raise TypeError(
            "from_transformers takes a model of transformers, such as a LlamaForCausalLM, not "
            f"{type(model).__module__}.{type(model).__qualname__}"
        )
    plan, weights = plan_of(model, long_context), model.state_dict()
    laid = plan.laid(weights)
    plan.check(laid)
    main = plan.main_of(weights)
    return plan.filled(laid, main.device, main.dtype).train(model.training)


def plan_of(model: Any, long_context: bool = False) -> Plan:
    """What the model is built of here, and where its weights go."""
    return build(model.config.to_dict(), type(model).__name__, long_context, has_own_head(model.state_dict()))


def has_own_head(weights: dict[str, Any]) -> bool:
    """Whether a model's head is no other weight again."""
    head = weights.get("lm_head.weight")
    others = (t for name, t in weights.items() if name != "lm_head.weight")
    return head is not None and all(t.data_ptr() != head.data_ptr() for t in others)
