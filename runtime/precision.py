"""Values of --precision_mode and --precision_mode_v2, and their effect on a float32 network.

Uses only the standard library, because the launcher checks its options without TensorFlow.
"""
from typing import NamedTuple

# Value of --modify_mixlist that disables the default mixlist.
NO_MIXLIST = 'none'

# Precision of a mode on stock TensorFlow; None if the mode has no counterpart there.
FLOAT32 = 'float32'
MIXED = 'mixed'


class PrecisionMode(NamedTuple):
    """Attributes:
      makes_float16: whether an NPU may compute float32 tensors in float16, in which gradients
        underflow without loss scaling.
      on_stock: FLOAT32, MIXED or None.
    """
    makes_float16: bool
    on_stock: str = None


# In the order in which --help lists them.
MODES = {
    'allow_mix_precision': PrecisionMode(makes_float16=True, on_stock=MIXED),
    'allow_mix_precision_fp16': PrecisionMode(makes_float16=True, on_stock=MIXED),
    'allow_mix_precision_bf16': PrecisionMode(makes_float16=False),
    'allow_fp32_to_fp16': PrecisionMode(makes_float16=True),
    'allow_fp32_to_bf16': PrecisionMode(makes_float16=False),
    'force_fp16': PrecisionMode(makes_float16=True),
    'force_fp32': PrecisionMode(makes_float16=False, on_stock=FLOAT32),
    'cube_fp16in_fp32out': PrecisionMode(makes_float16=True),
    'must_keep_origin_dtype': PrecisionMode(makes_float16=False, on_stock=FLOAT32),
}
# npu_bridge from r1.13 on recommends these modes instead of `MODES`.
MODES_V2 = {
    'fp16': PrecisionMode(makes_float16=True),
    'origin': PrecisionMode(makes_float16=False, on_stock=FLOAT32),
    'cube_fp16in_fp32out': PrecisionMode(makes_float16=True),
    'mixed_float16': PrecisionMode(makes_float16=True, on_stock=MIXED),
    'mixed_bfloat16': PrecisionMode(makes_float16=False),
}


def of(settings):
    """Returns the `PrecisionMode` of a dict of settings, or None; precision_mode_v2 comes first."""
    return (MODES_V2.get(settings.get('precision_mode_v2'))
            or MODES.get(settings.get('precision_mode')))
