"""Prints the layers, parameters and costs of a network part by part, and compares models.

    python3.7 inspect_model_architecture.py --model_name=condconv-b0-8e
    python3.7 inspect_model_architecture.py --compare=b0,condconv-b0-4e,condconv-b0-8e
    python3.7 inspect_model_architecture.py --model_name=b0 --batch_sizes=32,64,128
    python3.7 inspect_model_architecture.py --checkpoint=MODEL_DIR --data_dir=DIR

The first three commands build no graph. The last one also runs a batch of evaluation images through
a trained network and prints the routing weights of each CondConv block. The output is a text table;
--json, --csv and --markdown select another format. Shapes are height x width x channels.
"""
from typing import NamedTuple
from typing import Optional

from absl import flags

from analysis import complexity
from analysis import memory
from analysis import routing
from checkpoints import store
from common import app
from common import text_tables
from common.errors import UserError
from common.image_sizes import ImageSize
from common.text_tables import Column
from config import network as networks
from config import setting
from config import settings
import efficientnet_builder
import imagenet_input
import model_builder_factory
from tfrecords import layout
from tfrecords import schema
from weights import conversion

DEFAULT_MODEL = 'efficientnet-condconv-b0-8e'
PREFIX = 'efficientnet-'
ALL_MODELS = 'all'

BYTES_PER_VALUE = 4

MULTIPLY_ADDS_NOTE = (
    'Multiply-adds are per image: one for each weight at each position where it is applied '
    '(convolutions, squeeze-excite, routing, classifier), and one for each weight of each expert '
    'for mixing kernels. "With elementwise" adds half an operation for each value that is '
    'averaged, added to a residual or a bias, or multiplied by a gate (swish, squeeze-excite); '
    'this reproduces the published figures.')
ACTIVATIONS_NOTE = (
    'Activations are the float32 tensors that a training step with a batch of {batch_size} saves '
    'for its backward pass: the outputs of every convolution, activation (for swish also its '
    'argument and its sigmoid), squeeze-excite and block, and the mixed kernels of each image.')
MEMORY_NOTE = (
    'Estimated memory of a training step of {model} at {image_size} pixels, in MB. Activations are '
    'the tensors of the forward pass that the backward pass reads. Weights, gradients, the slots '
    'of RMSProp and the moving averages are float32 in both modes. Images, scratch memory and '
    'short-lived tensors are not counted.')
PUBLISHED_NOTE = (
    "Published figures are from Google's training at the model's own input size.")
ROUTING_NOTE = (
    'Routing weights of {num_images} images, computed with the {weights} weights of {checkpoint}. '
    'Entropy is the mean entropy of a single routing weight in bits: 1 if the weight is always '
    '0.5, 0 if it is always 0 or 1. An expert is dead if its weight is below {dead_below} on every '
    'image: {dead}.')


class Published(NamedTuple):
    """Google's published figures: top-1 on ImageNet in percent, multiply-adds per image."""
    top_1: Optional[float] = None
    multiply_adds: Optional[int] = None


PUBLISHED = {
    'efficientnet-b0': Published(77.3, 391000000),
    'efficientnet-condconv-b0-4e': Published(77.8, 402000000),
    'efficientnet-condconv-b0-8e': Published(78.3, 413000000),
    'efficientnet-condconv-b0-8e-depth': Published(79.5, 614000000),
}


def define_flags():
    flags.DEFINE_string('model_name', None, 'Name of the network, with or without the prefix '
                        '"efficientnet-"; default: the network of the checkpoint, else '
                        f'{DEFAULT_MODEL}.')
    setting.define_image_size('image_size', None, 'Size of the input images in pixels, a number '
                              'for squares or HEIGHTxWIDTH; default: the size of the checkpoint, '
                              "else the model's own.")
    flags.DEFINE_integer('num_classes', None, 'Number of classes; default: the number of the '
                         "checkpoint, else the model's own. --num_label_classes is another name "
                         'for this flag.', lower_bound=1,
                         upper_bound=setting.LARGEST_NUM_CLASSES)
    # main.py and messages about checkpoints use this name.
    flags.DEFINE_alias('num_label_classes', 'num_classes')
    flags.DEFINE_integer('batch_size', 128, 'Batch size for activation memory, and number of '
                         'images that are routed with --checkpoint.', lower_bound=1,
                         upper_bound=setting.LARGEST_BATCH_SIZE)
    flags.DEFINE_list('batch_sizes', [], 'Comma-separated batch sizes; estimate the memory of a '
                      'training step for each.')
    flags.DEFINE_list('compare', [], 'Comma-separated models to compare, one row each; "all" for '
                      'all models.')
    flags.DEFINE_string('checkpoint', '', 'Show the routing of this trained network: a checkpoint, '
                        'a directory whose newest checkpoint is used, or a weight file such as '
                        '.safetensors. Moving averages of the weights are used if available.')
    flags.DEFINE_string('data_dir', '', 'Directory of the validation shards whose images are '
                        'routed.')
    app.define_text_flags(layout.EVAL_FLAGS)
    flags.DEFINE_bool('json', False, 'Print all results as JSON, including multiply-adds by kind.')
    flags.DEFINE_bool('csv', False, 'Print the rows without the total as CSV; with --checkpoint, '
                      'the rows of the routing table.')
    flags.DEFINE_bool('markdown', False, 'Print the tables and their definitions as Markdown.')


def main(_):
    options = flags.FLAGS
    formats = [name for name in text_tables.FORMATTERS if options[name].value]
    if len(formats) > 1:
        raise UserError(f'--{formats[0]} and --{formats[1]}: mutually exclusive; keep one of them.')
    layout.check_used(options.flag_values_dict(), options.data_dir)
    if options.compare:
        _check_alone(options, 'compare', ('model_name', 'checkpoint', 'data_dir', 'batch_sizes'))
        report = compare(options.compare, options.image_size, options.num_classes,
                         options.batch_size)
    elif options.batch_sizes:
        report = estimate_memory(options.model_name, options.image_size, options.num_classes,
                                 _batch_sizes(options))
    else:
        report = inspect(options.model_name, options.image_size, options.num_classes,
                         options.batch_size, options.checkpoint, options.data_dir,
                         layout.Layout.of(options.flag_values_dict()))
    formatter = text_tables.FORMATTERS[formats[0]] if formats else text_tables.to_text
    app.end_with_the_reader()
    print(formatter(report))


def _check_alone(options, name, others):
    """Raises UserError if one of the flags `others` is given together with the flag `name`."""
    for other in others:
        if options[other].value:
            raise UserError(f'--{other} and --{name}: mutually exclusive; keep one of them.')


def _batch_sizes(options):
    """Returns the sorted batch sizes of --batch_sizes; raises UserError if one is invalid."""
    _check_alone(options, 'batch_sizes', ('checkpoint', 'data_dir'))
    for text in options.batch_sizes:
        largest = setting.LARGEST_BATCH_SIZE
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= largest):
            raise UserError(f'--batch_sizes: {text!r} is not a whole number from 1 to {largest}; '
                            'write a list such as 32,64,128.')
    return sorted(set(map(int, options.batch_sizes)))


def compare(model_names, image_size=None, num_classes=None, batch_size=128):
    """Returns a `Findings` with one row per model; raises UserError if a model is unknown."""
    if list(model_names) == [ALL_MODELS]:
        model_names = model_builder_factory.MODEL_NAMES
    records = []
    for model_name in map(full_name, model_names):
        size = ImageSize.of(
            image_size or model_builder_factory.get_model_input_size(model_name))
        params = efficientnet_builder.get_model_params(model_name, {'num_classes': num_classes})
        costs = complexity.total(complexity.parts_of(params, size))
        records.append({'model': model_name, 'image_size': size.written,
                        **_costs_record(costs, batch_size),
                        'published': PUBLISHED.get(model_name, Published())._asdict()})
    return text_tables.Findings(
        {'batch_size': batch_size, 'models': records}, [text_tables.Table(records, MODEL_COLUMNS)],
        [MULTIPLY_ADDS_NOTE, ACTIVATIONS_NOTE.format(batch_size=batch_size), PUBLISHED_NOTE])


def estimate_memory(model_name=None, image_size=None, num_classes=None, batch_sizes=(128,)):
    """Returns a `Findings` with one row per batch size; raises UserError if the model is unknown.
    """
    model_name = full_name(model_name or DEFAULT_MODEL)
    size = ImageSize.of(image_size or model_builder_factory.get_model_input_size(model_name))
    params = efficientnet_builder.get_model_params(model_name, {'num_classes': num_classes})
    costs = complexity.total(complexity.parts_of(params, size))
    records = [{'batch_size': batch_size, 'bytes': memory.of_training(costs, batch_size)}
               for batch_size in batch_sizes]
    described = {'model': model_name, 'image_size': size.written}
    return text_tables.Findings(
        {**described, 'num_classes': params.num_classes, 'is_estimate': True, 'memory': records},
        [text_tables.Table(records, MEMORY_COLUMNS)], [MEMORY_NOTE.format(**described)])


def inspect(model_name=None, image_size=None, num_classes=None, batch_size=128, checkpoint='',
            data_dir='', shards=layout.DETECTED):
    """Returns a `Findings` with one row per part of a model and, with a checkpoint, per expert.

    Arguments that are None default to the values of the checkpoint, else to the model's own.

    Raises:
      UserError: the model is unknown or has no CondConv block to route; only one of checkpoint and
        data_dir is given; the checkpoint is unreadable or of another model; an image is unreadable.
    """
    if bool(checkpoint) != bool(data_dir):
        raise UserError('--checkpoint and --data_dir: the routing is computed from both, a trained '
                        'network and images; give both or neither.')
    config = normalization = None
    if checkpoint:
        checkpoint = store.find(
            conversion.as_checkpoint(checkpoint, 'checkpoint'), 'checkpoint')
        if model_name:
            model_name = full_name(model_name)
            _check_is_routed(model_name)
        network = networks.of_checkpoint(checkpoint, model_name, num_classes, image_size)
        store.verify(checkpoint)
        model_name, image_size = network.model_name, network.image_size
        overrides, config = network.overrides, network.config
        normalization = network.normalization
    else:
        model_name = full_name(model_name or DEFAULT_MODEL)
        image_size = ImageSize.of(
            image_size or model_builder_factory.get_model_input_size(model_name))
        overrides = {'num_classes': num_classes}
    params = efficientnet_builder.get_model_params(model_name, overrides)

    parts = complexity.parts_of(params, image_size)
    records = [_part_record(part, batch_size) for part in parts]
    total = _costs_record(complexity.total(parts), batch_size)
    report = text_tables.Findings(
        {'model': model_name, 'image_size': image_size.written, 'num_classes': params.num_classes,
         'batch_size': batch_size, 'parts': records, 'total': total},
        [text_tables.Table(records, PART_COLUMNS, total)],
        [MULTIPLY_ADDS_NOTE, ACTIVATIONS_NOTE.format(batch_size=batch_size)])
    if not checkpoint:
        return report

    _check_is_routed(model_name)
    if config:
        shards = shards.in_folder(data_dir, config.data.data_dir, config.data.layout)
    described = schema.DatasetInfo.load(data_dir) or (config and config.data)
    label_base = described.label_base if described else shards.label_base(data_dir)
    images = imagenet_input.ImageNetInput(
        data_dir, is_training=False, image_size=image_size, batch_size=batch_size,
        num_classes=params.num_classes, label_base=label_base, shards=shards,
        class_names=config.class_names if config else (),
        max_image_pixels=(config.data if config else settings.DataConfig()).max_image_pixels,
        resize_method=model_builder_factory.get_model_builder(model_name).resize_method)
    routed = routing.routing_statistics(checkpoint, images, model_name, overrides, normalization)
    dead = [f'{number} in {block}' for block, number in routed['num_dead'].items() if number]
    return text_tables.Findings(
        {**report.content, 'routing': routed},
        report.tables + [text_tables.Table(routed['experts'], EXPERT_COLUMNS)],
        report.notes + [ROUTING_NOTE.format(dead=', '.join(dead) or 'none', **routed)])


def _check_is_routed(model_name):
    params = efficientnet_builder.get_model_params(model_name, {})
    if not any(part.num_experts for part in complexity.parts_of(
            params, model_builder_factory.get_model_input_size(model_name))):
        raise UserError(f'{model_name}: contains no CondConv block, hence no routing to show; '
                        'leave --checkpoint out.')


def full_name(model_name):
    """Returns a model's name with its prefix; raises UserError with all names if it is unknown."""
    for candidate in (model_name, PREFIX + model_name):
        if candidate in model_builder_factory.MODEL_NAMES:
            return candidate
    names = ', '.join(name[len(PREFIX):] for name in model_builder_factory.MODEL_NAMES)
    raise UserError(f'{model_name!r}: unknown model; choose one of {names}.')


def _part_record(part, batch_size):
    return {'part': part.name, 'type': part.type, 'kernel_size': part.kernel_size,
            'stride': part.stride, 'num_experts': part.num_experts,
            'input_shape': part.input_shape, 'output_shape': part.output_shape,
            **_costs_record(part.costs, batch_size)}


def _costs_record(costs, batch_size):
    """Returns `costs` of one image under the field names of --json and --csv."""
    multiply_adds = {kind: costs[kind] for kind in complexity.KINDS}
    total = sum(multiply_adds.values())
    return {'trainable_params': costs['trainable'],
            'all_params': costs['trainable'] + costs['statistics'],
            'multiply_adds': {**multiply_adds, 'total': total,
                              'with_elementwise': total + costs['elementwise'] // 2},
            'activation_bytes': BYTES_PER_VALUE * batch_size * costs['kept']}


def _millions(value, digits):
    """Formats `value` in millions; '' for None."""
    return '' if value is None else f'{value / 1e6:,.{digits}f}'


def _three_digits(key):
    return Column(key, lambda record: f'{record[key]:.3f}')


_COST_COLUMNS = (
    Column('parameters (M)', lambda record: _millions(record['trainable_params'], 3)),
    Column('multiply-adds (M)', lambda record: _millions(record['multiply_adds']['total'], 2)),
    Column('with elementwise (M)',
           lambda record: _millions(record['multiply_adds']['with_elementwise'], 2)),
    Column('activations (MB)', lambda record: _millions(record['activation_bytes'], 1)),
)
PART_COLUMNS = (
    Column('part', lambda record: record.get('part', 'total'), is_text=True),
    Column('type', lambda record: record.get('type', ''), is_text=True),
    Column('kernel', lambda record: str(record.get('kernel_size', ''))),
    Column('stride', lambda record: str(record.get('stride', ''))),
    Column('experts', lambda record: str(record.get('num_experts') or '')),
    Column('input', lambda record: text_tables.shape_cell(record.get('input_shape', ()))),
    Column('output', lambda record: text_tables.shape_cell(record.get('output_shape', ()))),
) + _COST_COLUMNS
MODEL_COLUMNS = (
    Column('model', lambda record: record['model'], is_text=True),
    Column('input', lambda record: str(record['image_size'])),
) + _COST_COLUMNS + (
    Column('published (M)', lambda record: _millions(record['published']['multiply_adds'], 0)),
    Column('published top-1 (%)', lambda record: str(record['published']['top_1'] or '')),
)
MEMORY_COLUMNS = (
    Column('batch size', lambda record: str(record['batch_size'])),
    *(Column(name, lambda record, name=name: _millions(record['bytes'][name], 1))
      for name in ('weights', 'gradients', 'optimizer', 'averages')),
    *(Column(f'{name}, {mode}',
             lambda record, name=name, mode=mode: _millions(record['bytes'][name][mode], 1))
      for name in ('activations', 'total') for mode in memory.MODES),
)
EXPERT_COLUMNS = (
    Column('block', lambda record: record['block'], is_text=True),
    Column('expert', lambda record: str(record['expert'])),
    *map(_three_digits, ('mean', 'std', 'min', 'max', 'entropy')),
    Column('', lambda record: 'dead' if record['is_dead'] else '', is_text=True),
)


if __name__ == '__main__':
    define_flags()
    app.run(main)
