"""The table of every setting of a training run: one dataclass a group, one field a setting.

A field's name, default and help are those of its flag; `config.run_config` makes the flags and
`config.checks` checks the values. To add a setting, add its row here and use it where `Config`
arrives.
"""
import dataclasses
import os
from typing import Optional
from typing import Tuple
from typing import get_type_hints

import autoaugment
import condconv_layers
from condconv_layers import CondConvImplementation
import efficientnet_builder
import model_builder_factory
from runtime import precision
from tfrecords import class_labels
from tfrecords import image_formats
from tfrecords import layout
from tfrecords import schema

# Values of --mode.
TRAIN, EVAL, TRAIN_AND_EVAL = MODES = 'train', 'eval', 'train_and_eval'
PRECISION_MODES = tuple(precision.MODES)

# Values of --depthwise_condconv. The network's CPU layers have a faster fold of their own.
CONDCONV_IMPLEMENTATIONS = {
    'auto': CondConvImplementation.FOLD,
    'fold': CondConvImplementation.FOLD,
    'loop': CondConvImplementation.LOOP,
    'experts': CondConvImplementation.EXPERTS_DEPTHWISE}

# What every program takes at most: beyond any use, and within what TensorFlow counts with.
LARGEST_IMAGE_SIZE = 4096          # pixels
LARGEST_NUM_CLASSES = 1000000
LARGEST_BATCH_SIZE = 65536         # images
# Of a setting that has no limit of its own: beyond any use.
LARGEST_FLOAT = 1e9


def _setting(default, help_text, choices=None, derived=None, **limits):
    """Returns the row of a setting.

    Args:
      default: of the flag; None for a setting that may be left open.
      help_text: of the flag.
      choices: the values it may have, or None for any.
      derived: function of (the `Config` so far, the `schema.DatasetInfo`) -> the value of a setting
        that is not given; None for one that has no other default. Rows are filled in from the top.
      **limits: at_least, above, at_most, below.
    """
    return dataclasses.field(default=default, metadata=dict(
        help=help_text, choices=choices, derived=derived, limits=limits))


def _below_model_dir(folder):
    return lambda config, dataset: os.path.join(config.run.model_dir, folder)


def _num_train_images(config, dataset):
    """The images of the training split, less the share that --holdout_shards leaves out."""
    data, num_images = config.data, dataset.num_images[schema.TRAIN]
    if not data.holdout_shards or data.data_dir == schema.SYNTHETIC_DIR:
        return num_images
    shards = data.layout.find_shards(data.data_dir, schema.TRAIN, data.max_bad_records > 0)
    return max(1, num_images * (len(shards) - data.holdout_shards) // len(shards))


def _layout_setting(name):
    help_text, choices = layout.FLAGS[name]
    return _setting(None, help_text, choices=choices)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and in which portions."""
    data_dir: str = _setting(
        '', 'Folder with the TFRecord shards train-?????-of-????? and validation-?????-of-?????; '
        '"synthetic" for generated images and no files.')
    train_pattern: Optional[str] = _layout_setting('train_pattern')
    eval_pattern: Optional[str] = _layout_setting('eval_pattern')
    image_key: Optional[str] = _layout_setting('image_key')
    label_key: Optional[str] = _layout_setting('label_key')
    compression: Optional[str] = _layout_setting('compression')
    batch_size: int = _setting(
        128, 'Training images per step and device. --train_batch_size is another name for it.',
        at_least=1, at_most=LARGEST_BATCH_SIZE)
    eval_batch_size: Optional[int] = _setting(
        None, 'Images per evaluation step; default: --batch_size.',
        derived=lambda config, dataset: config.data.batch_size, at_least=1,
        at_most=LARGEST_BATCH_SIZE)
    num_train_images: Optional[int] = _setting(
        None, "Images an epoch has; default: dataset_info.json's, else ImageNet's 1281167.",
        derived=_num_train_images, at_least=1)
    num_eval_images: Optional[int] = _setting(
        None, 'Evaluate the first so many images only; default: all of them.', at_least=1)
    label_base: Optional[int] = _setting(
        None, "Label of the first class in the records; default: dataset_info.json's, else 0 with "
        'the label key of TFDS, else 1.',
        derived=lambda config, dataset: config.data.layout.label_base(
            config.data.data_dir, dataset), at_least=0, at_most=1)
    class_names: Optional[str] = _setting(
        None, 'File with the name of each class, to show: JSON, CSV, or text with a name a line; '
        "default: dataset_info.json's.")
    class_names_from: Optional[str] = _setting(
        None, 'What holds where the data have other class names than the model, or another order. '
        'model: classes of one name are the same; data: labels stand as they are. Default: an '
        'error.', choices=class_labels.SOURCES)
    holdout_shards: Optional[int] = _setting(
        None, 'Train without this many of the training shards, and evaluate on them.', at_least=1)
    min_crop_area: float = _setting(
        0.08, 'Smallest share of a training image that its random crop may have.',
        above=0, at_most=1)
    random_flip: bool = _setting(True, 'Mirror half of the training images left to right.')
    augment_name: Optional[str] = _setting(
        None, 'Augmentation of training images beyond crop and mirror; default: none.',
        choices=('autoaugment', 'randaugment'))
    randaug_num_layers: int = _setting(
        2, 'RandAugment: operations an image.', at_least=1, at_most=100)
    randaug_magnitude: float = _setting(
        10.0, "RandAugment: strength of each operation; 10 is AutoAugment's strongest.",
        at_least=0, at_most=100)
    augment_scale: str = _setting(
        autoaugment.ABSOLUTE, 'Distances of translations and Cutout. absolute: in pixels, as '
        'published, more than a small image has; relative: scaled by the image size / 224.',
        choices=autoaugment.SCALES)
    mixup_alpha: float = _setting(
        0.0, 'Mixup (arXiv:1710.09412) with Beta(alpha, alpha) weights; 0 is off.', at_least=0,
        at_most=1000)
    use_cache: bool = _setting(
        False, 'Keep the encoded training images in memory after the first epoch.')
    num_parallel_calls: Optional[int] = _setting(
        None, 'Threads that decode images; default: sized to the machine.', at_least=1,
        at_most=1024)
    transpose_input: bool = _setting(
        False, 'Hand images to the device as [height, width, 3, batch].')
    max_bad_records: int = _setting(
        0, 'Bad records (truncated, no image, CMYK, 16 bits, animated, too large, label out of '
        'range) that may be skipped; 0 stops at the first one, with its name. From 1 on, all '
        'records are looked through once before the run begins.', at_least=0)
    max_image_pixels: int = _setting(
        image_formats.MAX_IMAGE_PIXELS, 'A record with an image of more pixels (height x width) is '
        'bad. The limit keeps decompression bombs out.', at_least=1)
    random_seed: Optional[int] = _setting(
        None, 'Makes two runs equal: data order, crops, augmentation, mixup, initial weights, '
        'dropout. Bit for bit in one process on a CPU; elsewhere the order in which the device '
        'adds up stays random, less so with --deterministic. Default: no two runs are equal.',
        at_least=0)

    @property
    def layout(self):
        """The `layout.Layout` of the shards."""
        return layout.Layout.of(vars(self))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What the network is. Two runs can share a model_dir only if all of this is equal."""
    model_name: str = _setting(
        'efficientnet-condconv-b0-8e', 'The network.', choices=model_builder_factory.MODEL_NAMES)
    num_label_classes: Optional[int] = _setting(
        None, "Classes; default: dataset_info.json's, else 1000. 1001 adds a background class 0.",
        derived=lambda config, dataset: dataset.num_classes, at_least=2,
        at_most=LARGEST_NUM_CLASSES)
    width_coefficient: Optional[float] = _setting(
        None, "Scales the number of channels; default: the model's own.", above=0, at_most=20)
    depth_coefficient: Optional[float] = _setting(
        None, "Scales the number of layers; default: the model's own.", above=0, at_most=20)
    normalization: Optional[str] = _setting(
        None, "How images are normalized; default: the model's own way. advprop: to [-1, 1], as "
        'networks that were trained with AdvProp want.',
        choices=tuple(efficientnet_builder.NORMALIZATIONS))


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """How the network learns. These may change from one run in a model_dir to the next."""
    input_image_size: Optional[int] = _setting(
        None, "Side of the square input images in pixels; default: the model's own.",
        derived=lambda config, dataset: model_builder_factory.get_model_input_size(
            config.model.model_name), at_least=8, at_most=LARGEST_IMAGE_SIZE)
    dropout_rate: Optional[float] = _setting(
        None, "Dropout before the classifier; default: the model's own.", at_least=0, below=1)
    survival_prob: Optional[float] = _setting(
        None, 'Stochastic depth: probability that the last block is kept; default: 0.8.',
        above=0, at_most=1)
    routing_init_stddev: Optional[float] = _setting(
        None, "Standard deviation of CondConv's initial routing kernels; default: Glorot's. Images "
        'so small that the last blocks see one or four positions train faster with 0.01.', above=0,
        at_most=100)
    batch_norm_momentum: Optional[float] = _setting(
        None, 'Decay of the moving batch statistics; default: 0.99.', at_least=0, below=1)
    batch_norm_epsilon: Optional[float] = _setting(
        None, 'Added to the batch variance; default: 0.001.', above=1.001e-5, at_most=1)
    data_format: str = _setting(
        condconv_layers.CHANNELS_LAST, 'Layout of image tensors on the device.',
        choices=condconv_layers.DATA_FORMATS)
    depthwise_condconv: str = _setting(
        'auto', 'How depthwise CondConv layers are computed. fold: the batch as channels of one '
        'convolution; loop: example by example, as in the 2021 port; experts: with each expert, '
        'then mixed, for as many times the work; auto: what suits the device. Results are the '
        'same.', choices=tuple(CONDCONV_IMPLEMENTATIONS))
    optimizer: str = _setting(
        'rmsprop', 'The optimizer.', choices=('rmsprop', 'momentum', 'sgd', 'lars'))
    base_learning_rate: float = _setting(
        0.016, 'Learning rate for 256 images per step; scaled with the global batch size.', above=0,
        at_most=1000)
    lr_schedule: str = _setting(
        'exponential', 'How the learning rate changes after the warm-up: exponential by '
        '--lr_decay_factor every --lr_decay_epoch; cosine to 0; poly, the square of what is left, '
        'to 0.1, which is for LARS and its large rates; constant.',
        choices=('exponential', 'cosine', 'constant', 'poly'))
    lr_decay_factor: float = _setting(
        0.97, 'Factor of the exponential schedule.', above=0, at_most=1)
    lr_decay_epoch: float = _setting(
        2.4, 'Epochs between two steps of the exponential schedule.', at_least=0.001)
    lr_warmup_epochs: float = _setting(
        5.0, 'Epochs over which the learning rate rises from 0.', at_least=0, at_most=100000)
    moving_average_decay: float = _setting(
        0.9999, 'Decay of the exponential moving average of the weights; 0 is off.',
        at_least=0, below=1)
    weight_decay: float = _setting(
        1e-5, 'L2 loss on all weights but those of batch norm.', at_least=0, at_most=1)
    label_smoothing: float = _setting(
        0.1, 'Share of the label spread over all classes.', at_least=0, below=1)
    lars_weight_decay: float = _setting(
        1e-5, 'Weight decay inside LARS (which then replaces --weight_decay).', at_least=0,
        at_most=1)
    lars_epsilon: float = _setting(0.0, 'Epsilon of LARS.', at_least=0, at_most=1)
    freeze: Optional[str] = _setting(
        None, 'Parts that keep the weights of --init_checkpoint, their batch norm in inference '
        'mode: stem, blocks_<i>, blocks_<first>-<last> and head, with commas between them; or '
        'all_but_head or all_but_classifier.')
    head_learning_rate_multiplier: float = _setting(
        1.0, 'The head (last convolution and classifier) learns so many times faster.', above=0,
        at_most=1000)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What is done, for how long, and what is left behind."""
    mode: str = _setting(TRAIN_AND_EVAL, 'What to do.', choices=MODES)
    model_dir: str = _setting('', 'Folder of checkpoints and results; training resumes from there.')
    init_checkpoint: str = _setting(
        '', 'Checkpoint, folder of the newest one, or file of weights (.safetensors, .pth, .tar.gz)'
        ' that a new run starts with: the averaged weights if there are any. Without effect once '
        'model_dir has a checkpoint.')
    train_steps: Optional[int] = _setting(
        None, 'Steps to train in all; default: --train_epochs of them.', at_least=1)
    train_epochs: Optional[float] = _setting(
        None, 'Epochs to train in all; default: 350, the published recipe.',
        derived=lambda config, dataset: None if config.run.train_steps else 350.0,
        above=0, at_most=1000000)
    max_hours: Optional[float] = _setting(
        None, 'End after so many hours, with a checkpoint and exit code 0; the same command goes '
        'on from there.', above=0, at_most=1000000)
    stop_at: Optional[str] = _setting(
        None, 'End as by --max_hours, at a time of day like 2026-11-24T18:00: local time, unless '
        'an offset like +08:00 or Z follows.')
    steps_per_eval: Optional[int] = _setting(
        None, 'train_and_eval: steps between evaluations; default: 5 epochs.', at_least=1)
    save_checkpoints_steps: Optional[int] = _setting(
        None, 'Steps between checkpoints; default: 1000, unless --save_checkpoints_secs says when.',
        derived=lambda config, dataset: None if config.run.save_checkpoints_secs else 1000,
        at_least=1)
    save_checkpoints_secs: Optional[float] = _setting(
        None, 'Seconds between checkpoints, in place of --save_checkpoints_steps.', above=0)
    keep_checkpoint_max: int = _setting(5, 'Checkpoints to keep.', at_least=1)
    log_step_count_steps: int = _setting(
        100, "Steps between 'train' events in results.jsonl, and between progress lines, which "
        'are at most 30 seconds apart.', at_least=1)
    quiet: bool = _setting(
        False, 'Print errors and the final line only: for scripts.')
    log_input_stall: bool = _setting(
        False, 'Progress lines and results tell the share of time for which the device waited for '
        'input.')
    log_gradient_norm: bool = _setting(
        False, 'Compute the norm of the gradients even where the loss is scaled, and the optimizer '
        'finds overflows by itself: a kernel more for each variable.')
    save_summary_steps: int = _setting(
        1000, 'Steps between what TensorBoard is shown of each expert; scalars come with the '
        'progress lines.', at_least=1)
    skip_host_call: bool = _setting(False, 'Write no training summaries for TensorBoard.')
    eval_name: Optional[str] = _setting(
        None, 'Name of the evaluation in results and TensorBoard.')
    eval_once: bool = _setting(
        False, 'eval: evaluate the last checkpoint and end, in place of waiting for --train_steps.')
    eval_timeout: Optional[int] = _setting(
        None, 'eval: seconds to wait for a new checkpoint before giving up; default: no limit.',
        at_least=1)
    archive_ckpt: bool = _setting(
        True, 'Keep the checkpoint with the best top-1 in model_dir/archive: of evaluations '
        'without --eval_name, if there are any, and of the most images.')
    per_class_csv: str = _setting(
        '', 'Write precision, recall, F1 and support of each class to this file at each '
        'evaluation: of the averaged weights, if there are any.')
    export_dir: str = _setting('', 'Write a SavedModel there at the end of training.')


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """What the run runs on, and how. None is what the runtime does by itself."""
    accelerator: str = _setting(
        'auto', 'npu: Ascend, through npu_bridge; stock, or host: stock TensorFlow; auto: npu if '
        'npu_bridge is installed.', choices=('auto', 'npu', 'stock', 'host'))
    eval_accelerator: str = _setting(
        'npu', 'NPU: where evaluations run. npu: in a second session on the device; cpu: on the '
        'CPU of the server, which is slower and takes no memory of the device.',
        choices=('npu', 'cpu'))
    iterations_per_loop: int = _setting(
        1, 'NPU: steps per session.run. Progress lines, checkpoints and evaluations come at the '
        'first multiple that is due; the last step is exact all the same.', at_least=1)
    precision_mode: Optional[str] = _setting(
        None, 'Which tensors may be float16 or bfloat16; default: allow_mix_precision on an NPU, '
        'float32 elsewhere. On a GPU allow_mix_precision rewrites the graph.',
        choices=PRECISION_MODES)
    precision_mode_v2: Optional[str] = _setting(
        None, 'NPU: what releases from r1.13 on have in place of --precision_mode.',
        choices=tuple(precision.MODES_V2))
    loss_scale: Optional[str] = _setting(
        None, 'none, dynamic, or a number from 1 on; default: dynamic where the precision mode may '
        'make tensors float16.')
    overflow_mode: str = _setting(
        'auto', 'NPU, from r1.13 on: how numbers overflow. saturate: to the largest number; '
        'inf_nan: to Inf and NaN, recommended on Atlas A2; auto: as the device is set.',
        choices=('auto', 'saturate', 'inf_nan'))
    modify_mixlist: Optional[str] = _setting(
        None, 'NPU: JSON file that moves operators between the lists of allow_mix_precision, or '
        'none; default: recipes/npu_mixlist.json, where the release knows such files.')
    npu_dump_data: bool = _setting(False, 'Dump the tensors of --dump_step to --dump_dir.')
    over_dump: bool = _setting(
        False, 'NPU: dump the operators that overflow to --dump_dir. Not with --npu_dump_data.')
    dump_dir: Optional[str] = _setting(
        None, 'Folder of the dumps, one below it for each rank; default: model_dir/dump.',
        derived=_below_model_dir('dump'))
    dump_step: str = _setting(
        '0', 'Steps to dump, like 0|5|10-20. A step of a real run takes gigabytes.')
    dump_mode: str = _setting(
        'output', 'NPU: which tensors of an operator to dump.', choices=('input', 'output', 'all'))
    npu_profiling: bool = _setting(
        False, 'Profile to --profiling_dir. Without an NPU: a Chrome trace every '
        '--log_step_count_steps.')
    profiling_dir: Optional[str] = _setting(
        None, 'Folder of the profiles, one below it for each rank; default: model_dir/profiling.',
        derived=_below_model_dir('profiling'))
    npu_dump_graph: bool = _setting(
        False, 'Write the graphs to --graph_dir: on an NPU the compiled ones, else the GraphDef.')
    graph_dir: Optional[str] = _setting(
        None, 'Folder of the graphs, one below it for each rank; default: model_dir/graphs.',
        derived=_below_model_dir('graphs'))
    op_cache_dir: Optional[str] = _setting(
        None, 'NPU: folder of compiled operators, which later runs need not compile again, one '
        'below it for each rank; default: beside model_dir, with _op_cache behind its name.',
        derived=lambda config, dataset: f'{config.run.model_dir}_op_cache')
    npu_option: Tuple[str, ...] = _setting(
        (), 'NPU: NAME=VALUE, another argument of NPURunConfig in the installed release; may be '
        'repeated.')
    npu_auto_tune: bool = _setting(
        False, 'NPU: tune the operators before the first step, which takes hours.')
    tune_dir: Optional[str] = _setting(
        None, 'Folder of tuning results, one below it for each rank; default: model_dir/tuning.',
        derived=_below_model_dir('tuning'))
    deterministic: bool = _setting(
        False, 'Operators give the same results each time, at a cost in speed: NPU, from CANN 6.3 '
        'on, and GPU.')
    op_select_implmode: Optional[str] = _setting(
        None, 'NPU: which implementation of an operator to prefer.',
        choices=('high_precision', 'high_performance'))
    hcom_parallel: Optional[bool] = _setting(
        None, 'NPU: overlap gradient exchange with computation; default: yes.')
    enable_data_pre_proc: Optional[bool] = _setting(
        None, 'NPU: feed batches through a queue on the device; default: yes.')
    use_async_checkpointing: bool = _setting(
        False, 'Write checkpoints in a thread, while training goes on: their variables may be a '
        'few steps apart.')
    obs_dir: str = _setting(
        '', 'Copy model_dir and the folders above there when the run is over, failed or not.')

    def __post_init__(self):
        object.__setattr__(self, 'accelerator', accelerator_name(self.accelerator))

    @property
    def output_dirs(self):
        """Setting -> folder of what the device leaves behind, of those that the flags turn on."""
        asked = {'dump_dir': self.npu_dump_data or self.over_dump,
                 'profiling_dir': self.npu_profiling, 'graph_dir': self.npu_dump_graph,
                 'tune_dir': self.npu_auto_tune}
        return {name: getattr(self, name) for name, is_asked in asked.items() if is_asked}

    @property
    def dump_steps(self):
        """`dump_step` as a list of ranges.

        Raises:
          ValueError: it is no list of steps, or of over 100 parts, which is all an NPU takes.
        """
        parts = self.dump_step.split('|')
        if len(parts) > 100:
            raise ValueError('more than 100 parts')
        steps = []
        for part in parts:
            first, dash, last = part.partition('-')
            if not first.isdigit() or (dash and not last.isdigit()):
                raise ValueError(f'{part!r} is neither a step nor a range')
            if dash and int(last) <= int(first):
                raise ValueError(f'the range {part} does not rise')
            steps.append(range(int(first), int(last or first) + 1))
        return steps


def accelerator_name(value):
    """Returns a value of --accelerator by its present name; earlier versions wrote host."""
    return 'stock' if value == 'host' else value


GROUPS = {'data': DataConfig, 'model': ModelConfig, 'optimization': OptimizationConfig,
          'run': RunConfig, 'runtime': RuntimeConfig}


def rows():
    """Yields (group name, dataclass field, value type) of every setting."""
    for group, kind in GROUPS.items():
        types = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            declared = types[field.name]
            # Optional[X] is Union[X, None].
            yield group, field, getattr(declared, '__args__', (declared,))[0]


def by_group():
    """Returns group name -> the dataclass fields of its settings, in order."""
    return {name: dataclasses.fields(kind) for name, kind in GROUPS.items()}
