"""Tables of all models, their compound scaling, and the functions that build them.

To add a model, add a row to `VARIANTS`.
"""
import dataclasses
import math
import os
import re
from typing import Any
from typing import Callable
from typing import Dict
from typing import List
from typing import NamedTuple
from typing import Optional
from typing import Tuple
from typing import Union

import tensorflow.compat.v1 as tf

from common.files import whole_file
import condconv_layers
from condconv_layers import CondConvImplementation
import efficientnet_cpu
import efficientnet_model

_B0_STAGES = (
    'r1_k3_s11_e1_i32_o16_se0.25', 'r2_k3_s22_e6_i16_o24_se0.25', 'r2_k5_s22_e6_i24_o40_se0.25',
    'r3_k3_s22_e6_i40_o80_se0.25', 'r3_k5_s11_e6_i80_o112_se0.25', 'r4_k5_s22_e6_i112_o192_se0.25',
    'r1_k3_s11_e6_i192_o320_se0.25')

_EDGETPU_STAGES = (
    'r1_k3_s11_e4_i24_o24_f1_noskip', 'r2_k3_s22_e8_i24_o32_f1', 'r4_k3_s22_e8_i32_o48_f1',
    'r5_k5_s22_e8_i48_o96', 'r4_k5_s11_e8_i96_o144', 'r2_k5_s22_e8_i144_o192')

SOFTMAX, SIGMOID = 'softmax', 'sigmoid'
# Functions `(logits, name=...)` that turn logits into class probabilities.
CLASS_ACTIVATIONS = {SOFTMAX: tf.nn.softmax, SIGMOID: tf.nn.sigmoid}


@dataclasses.dataclass(frozen=True)
class BlockArgs:
    """One stage: `num_repeat` MBConv blocks.

    `strides` and `input_filters` are those of the first block; the others have stride 1.
    """
    kernel_size: int
    num_repeat: int
    input_filters: int
    output_filters: int
    expand_ratio: int
    strides: Tuple[int, int]
    se_ratio: Optional[float] = None
    id_skip: bool = True
    fused_conv: bool = False
    condconv: bool = False

    @property
    def expanded_filters(self):
        return self.input_filters * self.expand_ratio

    @property
    def squeezed_filters(self):
        """Channels between the two layers of squeeze-excite; requires a `se_ratio`."""
        return max(1, int(self.input_filters * self.se_ratio))


@dataclasses.dataclass(frozen=True)
class GlobalParams:
    """Parameters of the whole network; `override_params` can override every field.

    The properties describe the network after compound scaling.
    """
    blocks_args: Tuple[BlockArgs, ...] = ()
    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    depth_divisor: int = 8
    min_depth: Optional[int] = None
    fix_head_stem: bool = False
    num_classes: int = 1000
    dropout_rate: float = 0.2
    survival_prob: float = 0.8
    relu_fn: Union[str, Callable] = 'swish'
    use_se: bool = True
    local_pooling: bool = False
    clip_projection_output: bool = False
    condconv_num_experts: int = 0
    condconv_implementation: CondConvImplementation = CondConvImplementation.FOLD
    routing_init_stddev: Optional[float] = None
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1e-3
    batch_norm_variance: str = efficientnet_model.PUBLISHED_VARIANCE
    data_format: str = condconv_layers.CHANNELS_LAST

    @property
    def stem_filters(self):
        return 32 if self.fix_head_stem else self._scale_filters(32)

    @property
    def head_filters(self):
        return 1280 if self.fix_head_stem else self._scale_filters(1280)

    @property
    def stages(self):
        """The scaled stages, each a list of `BlockArgs` with num_repeat 1."""
        stages = []
        for index, stage in enumerate(self.blocks_args):
            is_fixed = self.fix_head_stem and index in (0, len(self.blocks_args) - 1)
            first = dataclasses.replace(
                stage, num_repeat=1,
                input_filters=self._scale_filters(stage.input_filters),
                output_filters=self._scale_filters(stage.output_filters))
            rest = dataclasses.replace(first, input_filters=first.output_filters, strides=(1, 1))
            repeats = stage.num_repeat if is_fixed else self._scale_repeats(stage.num_repeat)
            stages.append([first] + [rest] * (repeats - 1))
        return stages

    @property
    def blocks(self):
        """The blocks of all `stages`, a flat list."""
        return [block for stage in self.stages for block in stage]

    def _scale_filters(self, filters):
        """Returns the channels after width scaling, rounded to a multiple of the divisor.

        Rounding reduces the number of channels by at most 10 %.
        """
        if not self.width_coefficient:
            return filters
        scaled = filters * self.width_coefficient
        divisor = self.depth_divisor
        rounded = max(self.min_depth or divisor, int(scaled + divisor / 2) // divisor * divisor)
        return int(rounded + divisor if rounded < 0.9 * scaled else rounded)

    def _scale_repeats(self, repeats):
        """Returns the number of blocks of a stage after depth scaling, rounded up."""
        return math.ceil(self.depth_coefficient * repeats) if self.depth_coefficient else repeats


@dataclasses.dataclass(frozen=True)
class Family:
    """Builds the models of a family, which share stages and preprocessing.

    Attributes:
      stages: the stages before scaling, strings, see `decode_stage`.
      MEAN_RGB, STDDEV_RGB: lists of 3 floats, for images in [0, 255], see `normalize`.
      params: dict of the `GlobalParams` fields that differ from the defaults.
      resize_method: interpolation for resizing images, one of `preprocessing.RESIZE_METHODS`.
    """
    stages: Tuple[str, ...]
    MEAN_RGB: List[float]
    STDDEV_RGB: List[float]
    params: Dict[str, Any] = dataclasses.field(default_factory=dict)
    resize_method: str = 'bicubic'

    def normalize(self, images):
        """Normalizes RGB images [..., 3] in [0, 255], of any number type; returns float32."""
        return (tf.cast(images, tf.float32) - self.MEAN_RGB) / self.STDDEV_RGB

    def predictions(self, logits, class_activation=SOFTMAX):
        """Returns the network's predictions.

        Args:
          logits: float [batch, classes].
          class_activation: a key of `CLASS_ACTIVATIONS`. SOFTMAX probabilities sum to 1; SIGMOID
            probabilities are independent of each other.

        Returns:
          dict of 'classes', int32 [batch]; 'probabilities' and 'logits', float [batch, classes].
        """
        activate = CLASS_ACTIVATIONS[class_activation]
        return {'classes': tf.argmax(logits, axis=1, output_type=tf.int32, name='classes'),
                'probabilities': activate(logits, name='probabilities'),
                'logits': tf.identity(logits, name='logits')}

    def build_model(self, images, model_name, training, override_params=None, model_dir=None,
                    fine_tuning=False, features_only=False, pooled_features_only=False,
                    uses_cpu_layers=False):
        """Builds a model.

        Args:
          images: float [batch, height, width, 3] ([batch, 3, height, width] for channels_first),
            RGB, normalized by `normalize`. The batch size may be unknown.
          model_name: a key of `VARIANTS`.
          training: whether dropout, stochastic depth and batch statistics are on.
          override_params: see `get_model_params`.
          model_dir: directory to which the parameters are written as model_params.txt, or None.
          fine_tuning: whether batch norm stays in inference mode while the other layers train, as
            is usual for a pre-trained network on a small dataset; or a container with the names of
            the batch norms that do, such as 'blocks_3/tpu_batch_normalization'.
          features_only: whether to return the last block's features instead of logits.
          pooled_features_only: whether to return the globally pooled features instead of logits.
          uses_cpu_layers: whether to use `cpu_layers`, which are faster on a CPU if the environment
            variable TF_CPU_ALLOCATOR_USE_BFC is true, as main.py sets it; use False for
            accelerators and exported models.

        Returns:
          logits [batch, num_classes] (or features) and the dict of endpoints, see
          `efficientnet_model.Model`.

        Raises:
          ValueError: a name, key or value is unknown, or CPU layers are used with channels_first or
            another batch_norm_variance than the published one.
        """
        params = get_model_params(model_name, override_params)
        if model_dir:
            _write_params(params, model_dir)
        model_class = efficientnet_cpu.CpuModel if uses_cpu_layers else efficientnet_model.Model
        model = model_class(model_name, params, training, freeze_batch_norm=fine_tuning)
        outputs = model(images, features_only, pooled_features_only)
        return outputs, model.endpoints

    def build_model_base(self, images, model_name, training, override_params=None):
        """Builds the network without its head; returns (features, endpoints), see `build_model`."""
        return self.build_model(images, model_name, training, override_params, features_only=True)


class Variant(NamedTuple):
    """A model: family, compound scaling and input size (side of square images in pixels)."""
    family: str
    width_coefficient: float
    depth_coefficient: float
    image_size: int
    dropout_rate: float
    num_experts: int = 0


_IMAGENET_MEAN_RGB = [0.485 * 255, 0.456 * 255, 0.406 * 255]
_IMAGENET_STDDEV_RGB = [0.229 * 255, 0.224 * 255, 0.225 * 255]
_LITE_PARAMS = {'use_se': False, 'local_pooling': True}

FAMILIES = {
    'efficientnet': Family(_B0_STAGES, _IMAGENET_MEAN_RGB, _IMAGENET_STDDEV_RGB),
    # CondConv replaces the convolutions of the last three stages (section 4.1 of the paper).
    'condconv': Family(_B0_STAGES[:4] + tuple(stage + '_cc' for stage in _B0_STAGES[4:]),
                       [127.0] * 3, [128.0] * 3),
    'lite': Family(_B0_STAGES, [127.0] * 3, [128.0] * 3,
                   {**_LITE_PARAMS, 'relu_fn': 'relu6', 'fix_head_stem': True}, 'bilinear'),
    'edgetpu': Family(_EDGETPU_STAGES, [127.0] * 3, [128.0] * 3,
                      {**_LITE_PARAMS, 'relu_fn': 'relu', 'num_classes': 1001}, 'bilinear'),
}

VARIANTS = {
    'efficientnet-b0': Variant('efficientnet', 1.0, 1.0, 224, 0.2),
    'efficientnet-b1': Variant('efficientnet', 1.0, 1.1, 240, 0.2),
    'efficientnet-b2': Variant('efficientnet', 1.1, 1.2, 260, 0.3),
    'efficientnet-b3': Variant('efficientnet', 1.2, 1.4, 300, 0.3),
    'efficientnet-b4': Variant('efficientnet', 1.4, 1.8, 380, 0.4),
    'efficientnet-b5': Variant('efficientnet', 1.6, 2.2, 456, 0.4),
    'efficientnet-b6': Variant('efficientnet', 1.8, 2.6, 528, 0.5),
    'efficientnet-b7': Variant('efficientnet', 2.0, 3.1, 600, 0.5),
    'efficientnet-b8': Variant('efficientnet', 2.2, 3.6, 672, 0.5),
    'efficientnet-l2': Variant('efficientnet', 4.3, 5.3, 800, 0.5),
    'efficientnet-condconv-b0-4e': Variant('condconv', 1.0, 1.0, 224, 0.25, 4),
    'efficientnet-condconv-b0-8e': Variant('condconv', 1.0, 1.0, 224, 0.25, 8),
    'efficientnet-condconv-b0-8e-depth': Variant('condconv', 1.0, 1.1, 224, 0.25, 8),
    'efficientnet-lite0': Variant('lite', 1.0, 1.0, 224, 0.2),
    'efficientnet-lite1': Variant('lite', 1.0, 1.1, 240, 0.2),
    'efficientnet-lite2': Variant('lite', 1.1, 1.2, 260, 0.3),
    'efficientnet-lite3': Variant('lite', 1.2, 1.4, 280, 0.3),
    'efficientnet-lite4': Variant('lite', 1.4, 1.8, 300, 0.3),
    'efficientnet-edgetpu-S': Variant('edgetpu', 1.0, 1.0, 224, 0.2),
    'efficientnet-edgetpu-M': Variant('edgetpu', 1.0, 1.1, 240, 0.2),
    'efficientnet-edgetpu-L': Variant('edgetpu', 1.2, 1.4, 300, 0.2),
}

# Alternatives to the normalization of the family: mean and standard deviation.
# AdvProp (arXiv:1911.09665) scales images to [-1, 1].
ADVPROP = 'advprop'
NORMALIZATIONS = {ADVPROP: ([127.5] * 3, [127.5] * 3)}

# `override_params` of exported models, which run on any device with any batch size.
PORTABLE = {'data_format': condconv_layers.CHANNELS_LAST,
            'condconv_implementation': CondConvImplementation.FOLD}

_STAGE_PATTERN = re.compile(
    r'r(?P<num_repeat>\d+)_k(?P<kernel_size>\d+)_s(?P<strides>\d\d)_e(?P<expand_ratio>\d+)'
    r'_i(?P<input_filters>\d+)_o(?P<output_filters>\d+)(_f(?P<fused_conv>[01]))?'
    r'(_se(?P<se_ratio>[\d.]+))?(?P<noskip>_noskip)?(?P<condconv>_cc)?')


def decode_stage(text):
    """Decodes a stage such as 'r2_k5_s22_e6_i24_o40_se0.25' into a `BlockArgs`.

    The fields are r: repeats, k: kernel size, s: strides, e: expansion ratio, i: input filters,
    o: output filters, f1: fused convolution, se: squeeze ratio, noskip: no residual connection,
    cc: CondConv.

    Raises:
      ValueError: the text is malformed, or describes a fused CondConv block.
    """
    match = _STAGE_PATTERN.fullmatch(text)
    if not match:
        raise ValueError(f'{text!r}: not a stage; write it like {_B0_STAGES[1]!r}.')
    fields = match.groupdict()
    block = BlockArgs(
        num_repeat=int(fields['num_repeat']),
        kernel_size=int(fields['kernel_size']),
        strides=tuple(int(digit) for digit in fields['strides']),
        expand_ratio=int(fields['expand_ratio']),
        input_filters=int(fields['input_filters']),
        output_filters=int(fields['output_filters']),
        se_ratio=float(fields['se_ratio']) if fields['se_ratio'] else None,
        id_skip=not fields['noskip'],
        fused_conv=fields['fused_conv'] == '1',
        condconv=bool(fields['condconv']))
    if block.condconv and block.fused_conv:
        raise ValueError(f'{text!r}: a fused CondConv block does not exist; remove f1 or cc.')
    return block


def get_variant(model_name):
    """Returns the row of `VARIANTS` for `model_name`; raises ValueError if it is unknown."""
    if model_name not in VARIANTS:
        raise ValueError(f"unknown model {model_name!r}; choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[model_name]


def get_model_params(model_name, override_params=None):
    """Returns the `GlobalParams` of a model, modified by `override_params`.

    Args:
      model_name: a key of `VARIANTS`.
      override_params: a dict of `GlobalParams` fields; `blocks_args` may contain stage strings, and
        `condconv_implementation` may be a string. Values of None are ignored, so that unset flags
        can be passed unchanged.

    Raises:
      ValueError: a name, key or choice is unknown; the message lists the valid ones.
    """
    variant = get_variant(model_name)
    family = FAMILIES[variant.family]
    params = dict(
        family.params,
        blocks_args=family.stages,
        width_coefficient=variant.width_coefficient,
        depth_coefficient=variant.depth_coefficient,
        dropout_rate=variant.dropout_rate,
        condconv_num_experts=variant.num_experts)
    valid_keys = [field.name for field in dataclasses.fields(GlobalParams)]
    for key, value in (override_params or {}).items():
        if key not in valid_keys:
            raise ValueError(f"override_params: unknown key {key!r}; choose from "
                             f"{', '.join(valid_keys)}.")
        if value is not None:
            params[key] = value
    params['blocks_args'] = tuple(
        decode_stage(stage) if isinstance(stage, str) else stage for stage in params['blocks_args'])
    return _checked(GlobalParams(**params))


def _checked(params):
    if isinstance(params.relu_fn, str) and params.relu_fn not in efficientnet_model.ACTIVATIONS:
        raise ValueError(f'relu_fn {params.relu_fn!r}: unknown; choose one of '
                         f"{', '.join(efficientnet_model.ACTIVATIONS)} or pass a function.")
    if params.data_format not in condconv_layers.DATA_FORMATS:
        raise ValueError(f'data_format {params.data_format!r}: unknown; choose one of '
                         f"{', '.join(condconv_layers.DATA_FORMATS)}.")
    if params.batch_norm_variance not in efficientnet_model.BATCH_NORM_VARIANCES:
        raise ValueError(f'batch_norm_variance {params.batch_norm_variance!r}: unknown; choose one '
                         f"of {', '.join(efficientnet_model.BATCH_NORM_VARIANCES)}.")
    if any(block.condconv for block in params.blocks_args) and params.condconv_num_experts < 1:
        raise ValueError(f'condconv_num_experts={params.condconv_num_experts}: must be at least 1 '
                         'for CondConv blocks.')
    return dataclasses.replace(
        params, condconv_implementation=CondConvImplementation(params.condconv_implementation))


def _write_params(params, model_dir):
    tf.gfile.MakeDirs(model_dir)
    lines = [f'{field.name}: {getattr(params, field.name)}' for field in dataclasses.fields(params)]
    with whole_file(os.path.join(model_dir, 'model_params.txt')) as file:
        file.write('\n'.join(lines) + '\n')
