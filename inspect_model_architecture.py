"""Shows what a network is made of and what it costs, part by part; compares models.

    python3.7 inspect_model_architecture.py --model_name=condconv-b0-8e
    python3.7 inspect_model_architecture.py --compare=b0,condconv-b0-4e,condconv-b0-8e
    python3.7 inspect_model_architecture.py --checkpoint=MODEL_DIR --data_dir=DIR

The first two build no graph and allocate nothing. The third runs a batch of evaluation images
through a trained network as well, and adds how each CondConv block routes them. Printed is a table,
or, with --json, --csv or --markdown, something to keep. Shapes are height x width x channels.
"""
import collections
import csv
import io
import json
import os
import signal
import textwrap
from typing import Any
from typing import Callable
from typing import Dict
from typing import List
from typing import NamedTuple
from typing import Optional
from typing import Tuple

from absl import flags
import numpy as np
import tensorflow.compat.v1 as tf

from dataset import schema
import efficientnet_builder
import efficientnet_model
import entry_point
import imagenet_input
import model_builder_factory
from training import checkpoints
from training import config as configs
from user_error import UserError

DEFAULT_MODEL = 'efficientnet-condconv-b0-8e'
PREFIX = 'efficientnet-'
ALL_MODELS = 'all'

# What multiply-adds are spent on.
KINDS = ('convolution', 'depthwise', 'squeeze_excite', 'dense', 'routing', 'mixing')
BYTES_PER_VALUE = 4
DEAD_BELOW = 0.01
NOTE_WIDTH = 100

MULTIPLY_ADDS_NOTE = (
    'Multiply-adds are those of one image: one for each weight at each position it is applied at '
    '(convolutions, squeeze-excite, routing, classifier), and one for each weight of each expert '
    'to mix the kernels. "With elementwise" adds one for every two values that are averaged, added '
    'to a residual or a bias, or multiplied by a gate (swish, squeeze-excite), which reproduces '
    'the published figures.')
ACTIVATIONS_NOTE = (
    'Activations are what a training step on {batch_size} images keeps for its backward pass, in '
    'float32: the outputs of every convolution, activation (of a swish also its argument and its '
    'sigmoid), squeeze-excite and block, and the mixed kernels of each image.')
PUBLISHED_NOTE = (
    "Published figures are Google's, of Google's own training at the model's own input size.")
ROUTING_NOTE = (
    'Routing weights of {num_images} images, by the {weights} weights of {checkpoint}. The entropy '
    'is that of a single routing weight, in bits, on average: 1 if it always is 0.5, 0 if the '
    'expert is always wholly on or off. An expert is dead if its weight is below {dead_below} on '
    'every image: {dead}.')


class Published(NamedTuple):
    """What Google reports of a model: top-1 on ImageNet in percent, multiply-adds of one image."""
    top_1: Optional[float] = None
    multiply_adds: Optional[int] = None


PUBLISHED = {
    'efficientnet-b0': Published(77.3, 391000000),
    'efficientnet-condconv-b0-4e': Published(77.8, 402000000),
    'efficientnet-condconv-b0-8e': Published(78.3, 413000000),
    'efficientnet-condconv-b0-8e-depth': Published(79.5, 614000000),
}


class Part(NamedTuple):
    """The stem, a block or the head.

    Attributes:
      name: as in the network's endpoints: 'stem', 'block_<i>', 'head'.
      type: 'conv', 'MBConv', 'MBConv+CondConv', 'fused MBConv' or 'head'.
      kernel_size, stride: of its spatial convolution.
      num_experts: 0 for a part without CondConv.
      input_shape, output_shape: (height, width, channels); the head's output is (classes,).
      costs: for one image: multiply-adds by kind, 'elementwise' operations, 'trainable' parameters,
        batch 'statistics', and how many values are 'kept' for the backward pass.
    """
    name: str
    type: str
    kernel_size: int
    stride: int
    num_experts: int
    input_shape: Tuple[int, ...]
    output_shape: Tuple[int, ...]
    costs: Dict[str, int]


class Column(NamedTuple):
    """A column of a printed table."""
    heading: str
    cell: Callable[[Dict[str, Any]], str]
    is_text: bool = False


class Table(NamedTuple):
    """Records, and how to print them. The total is printed, but is no record."""
    records: List[Dict[str, Any]]
    columns: Tuple[Column, ...]
    total: Optional[Dict[str, Any]] = None


class Report(NamedTuple):
    """What one command has found out: the whole of it for --json, and as tables with notes."""
    content: Dict[str, Any]
    tables: List[Table]
    notes: List[str]


def define_flags():
    flags.DEFINE_string('model_name', None, 'The network, with or without "efficientnet-" in '
                        f"front; default: the checkpoint's, else {DEFAULT_MODEL}.")
    flags.DEFINE_integer('image_size', None, 'Side of the input images in pixels; default: the '
                         "checkpoint's, else the model's.", lower_bound=8)
    flags.DEFINE_integer('num_classes', None, "Classes; default: the checkpoint's, else the "
                         "model's.", lower_bound=1)
    # Training calls it by this name, and so do messages about a checkpoint.
    flags.DEFINE_alias('num_label_classes', 'num_classes')
    flags.DEFINE_integer('batch_size', 128, 'Images that activation memory is stated for, and '
                         'that are routed through a checkpoint.', lower_bound=1)
    flags.DEFINE_list('compare', [], 'Models to compare, a row each; "all" for all there are.')
    flags.DEFINE_string('checkpoint', '', 'A checkpoint, or the folder of the newest one, to show '
                        'the routing of; averaged weights are used where it has them.')
    flags.DEFINE_string('data_dir', '', 'Folder with the shards validation-?????-of-????? that '
                        'the images to be routed come from.')
    flags.DEFINE_bool('json', False, 'Print everything, multiply-adds by kind included, as JSON.')
    flags.DEFINE_bool('csv', False, 'Print the records, without a total, as CSV; those of the '
                      'routing if there is a checkpoint.')
    flags.DEFINE_bool('markdown', False, 'Print the tables and their definitions as Markdown.')


def main(_):
    options = flags.FLAGS
    formats = [name for name in FORMATTERS if options[name].value]
    if len(formats) > 1:
        raise UserError(f'--{formats[0]} and --{formats[1]} are both given; keep one of them.')
    if options.compare:
        for name in ('model_name', 'checkpoint', 'data_dir'):
            if options[name].value:
                raise UserError(f'--{name} does not go with --compare; keep one of them.')
        report = compare(options.compare, options.image_size, options.num_classes,
                         options.batch_size)
    else:
        report = inspect(options.model_name, options.image_size, options.num_classes,
                         options.batch_size, options.checkpoint, options.data_dir)
    formatter = FORMATTERS[formats[0]] if formats else to_text
    # Whoever reads the output, such as `head`, may have enough before it ends.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(formatter(report))


def compare(model_names, image_size=None, num_classes=None, batch_size=128):
    """A `Report` with a row for each model; UserError for a name that does not exist."""
    if list(model_names) == [ALL_MODELS]:
        model_names = model_builder_factory.MODEL_NAMES
    records = []
    for model_name in map(full_name, model_names):
        size = image_size or model_builder_factory.get_model_input_size(model_name)
        params = efficientnet_builder.get_model_params(model_name, {'num_classes': num_classes})
        records.append({'model': model_name, 'image_size': size,
                        **_costs_record(_total(parts_of(params, size)), batch_size),
                        'published': PUBLISHED.get(model_name, Published())._asdict()})
    return Report({'batch_size': batch_size, 'models': records},
                  [Table(records, MODEL_COLUMNS)],
                  [MULTIPLY_ADDS_NOTE, ACTIVATIONS_NOTE.format(batch_size=batch_size),
                   PUBLISHED_NOTE])


def inspect(model_name=None, image_size=None, num_classes=None, batch_size=128, checkpoint='',
            data_dir=''):
    """A `Report` with a row for each part of a model and, given a checkpoint, of its routing.

    What is None comes from the config.json beside the checkpoint, else from the model's own row.

    Raises:
      UserError: an unknown model, a checkpoint without images or the other way round, one that
        cannot be read or is of another model, a model without CondConv, images that cannot be read.
    """
    if bool(checkpoint) != bool(data_dir):
        raise UserError('--checkpoint and --data_dir go together: the routing of a trained network '
                        'is shown on images; give both or neither.')
    config = None
    if checkpoint:
        checkpoint, config = _find(checkpoint)
    model_name = full_name(model_name or (config.model.model_name if config else DEFAULT_MODEL))
    image_size = (image_size or (config and config.optimization.input_image_size)
                  or model_builder_factory.get_model_input_size(model_name))
    overrides = {**(config.model_overrides if config else {}),
                 # The layout changes no figure, and a CPU runs this one only.
                 'data_format': efficientnet_model.CHANNELS_LAST}
    if num_classes:
        overrides['num_classes'] = num_classes
    params = efficientnet_builder.get_model_params(model_name, overrides)

    parts = parts_of(params, image_size)
    records = [_part_record(part, batch_size) for part in parts]
    total = _costs_record(_total(parts), batch_size)
    report = Report({'model': model_name, 'image_size': image_size,
                     'num_classes': params.num_classes, 'batch_size': batch_size,
                     'parts': records, 'total': total},
                    [Table(records, PART_COLUMNS, total)],
                    [MULTIPLY_ADDS_NOTE, ACTIVATIONS_NOTE.format(batch_size=batch_size)])
    if not checkpoint:
        return report

    if not any(part.num_experts for part in parts):
        raise UserError(f'{model_name} has no CondConv block, so there is no routing to show; '
                        'leave --checkpoint out.')
    checkpoints.check_model(checkpoint, model_name, params.num_classes)
    described = schema.DatasetInfo.load(data_dir) or (config and config.data) or schema.IMAGENET
    images = imagenet_input.ImageNetInput(
        data_dir, is_training=False, image_size=image_size, batch_size=batch_size,
        num_classes=params.num_classes, label_base=described.label_base,
        resize_method=model_builder_factory.get_model_builder(model_name).resize_method)
    routing = routing_statistics(checkpoint, images, model_name, overrides)
    dead = [f'{number} in {block}' for block, number in routing['num_dead'].items() if number]
    return Report({**report.content, 'routing': routing},
                  report.tables + [Table(routing['experts'], EXPERT_COLUMNS)],
                  report.notes + [ROUTING_NOTE.format(dead=', '.join(dead) or 'none', **routing)])


def full_name(model_name):
    """A model's name with its prefix; UserError lists the names that exist."""
    for candidate in (model_name, PREFIX + model_name):
        if candidate in model_builder_factory.MODEL_NAMES:
            return candidate
    names = ', '.join(name[len(PREFIX):] for name in model_builder_factory.MODEL_NAMES)
    raise UserError(f'There is no model {model_name!r}; choose one of {names}.')


def parts_of(params, image_size):
    """Counts what each part of a network costs, from the network's description alone.

    So the count is that of the mathematics, whichever way a layer computes it.

    Args:
      params: `GlobalParams`.
      image_size: side of the square input in pixels.

    Returns:
      a list of `Part`: stem, blocks, head.
    """
    parts = [_stem(params, (image_size, image_size, 3))]
    for index, block in enumerate(efficientnet_model.expand_stages(params)):
        parts.append(_block(f'block_{index}', block, params, parts[-1].output_shape))
    return parts + [_head(params, parts[-1].output_shape)]


class _Tally:
    """Goes through the layers of one part as the network does, and adds up their costs.

    Attributes:
      shape: (height, width, channels) after the layers so far.
      costs: see `Part`.
    """

    def __init__(self, shape, params):
        self.shape = shape
        self.costs = collections.Counter()
        self._is_swish = params.relu_fn == 'swish'

    @property
    def channels(self):
        return self.shape[2]

    @property
    def num_values(self):
        return int(np.prod(self.shape))

    def conv(self, filters, kernel_size, stride=1, num_experts=0):
        num_weights = kernel_size ** 2 * self.channels * filters
        self._convolve('convolution', num_weights, filters, stride, num_experts)

    def depthwise_conv(self, kernel_size, stride, num_experts):
        num_weights = kernel_size ** 2 * self.channels
        self._convolve('depthwise', num_weights, self.channels, stride, num_experts)

    def _convolve(self, kind, num_weights, filters, stride, num_experts):
        height, width = (-(-size // stride) for size in self.shape[:2])
        self.shape = height, width, filters
        self.costs[kind] += num_weights * height * width
        self.costs['trainable'] += num_weights * (num_experts or 1)
        self.costs['mixing'] += num_weights * num_experts
        self.costs['kept'] += self.num_values + (num_weights if num_experts else 0)

    def batch_norm(self):
        self.costs['trainable'] += 2 * self.channels
        self.costs['statistics'] += 2 * self.channels

    def activation(self):
        self.costs['kept'] += self.num_values * (3 if self._is_swish else 1)
        if self._is_swish:
            self.costs['elementwise'] += self.num_values

    def add_residual(self):
        self.costs['elementwise'] += self.num_values

    def keep_output(self):
        self.costs['kept'] += self.num_values

    def squeeze_excite(self, reduced_filters):
        self._dense_on_mean('squeeze_excite', reduced_filters)
        if self._is_swish:
            self.costs['elementwise'] += reduced_filters
        self._dense('squeeze_excite', reduced_filters, self.channels)
        self.costs['elementwise'] += self.num_values
        self.keep_output()

    def routing(self, num_experts):
        self._dense_on_mean('routing', num_experts)

    def classifier(self, num_classes):
        self._dense_on_mean('dense', num_classes)
        self.shape = num_classes,

    def _dense_on_mean(self, kind, units):
        self.costs['elementwise'] += self.num_values
        self._dense(kind, self.channels, units)

    def _dense(self, kind, num_inputs, units):
        self.costs[kind] += num_inputs * units
        self.costs['trainable'] += num_inputs * units + units
        self.costs['elementwise'] += units


def _stem(params, shape):
    tally = _Tally(shape, params)
    tally.conv(efficientnet_model.round_filters(32, params, params.fix_head_stem), 3, 2)
    tally.batch_norm()
    tally.activation()
    return Part('stem', 'conv', 3, 2, 0, shape, tally.shape, tally.costs)


def _block(name, block, params, shape):
    num_experts = params.condconv_num_experts if block.condconv else 0
    stride = block.strides[0]
    filters = block.input_filters * block.expand_ratio
    kind = 'MBConv'
    tally = _Tally(shape, params)
    if num_experts:
        kind = 'MBConv+CondConv'
        tally.routing(num_experts)
    if block.fused_conv:
        kind = 'fused MBConv'
        tally.conv(filters, block.kernel_size, stride)
    else:
        if block.expand_ratio != 1:
            tally.conv(filters, 1, num_experts=num_experts)
            tally.batch_norm()
            tally.activation()
        tally.depthwise_conv(block.kernel_size, stride, num_experts)
    tally.batch_norm()
    tally.activation()
    if params.use_se and block.se_ratio:
        tally.squeeze_excite(max(1, int(block.input_filters * block.se_ratio)))
    tally.conv(block.output_filters, 1, num_experts=num_experts)
    tally.batch_norm()
    if block.id_skip and block.strides == (1, 1) and tally.shape == shape:
        tally.add_residual()
    tally.keep_output()
    return Part(name, kind, block.kernel_size, stride, num_experts, shape, tally.shape, tally.costs)


def _head(params, shape):
    tally = _Tally(shape, params)
    tally.conv(efficientnet_model.round_filters(1280, params, params.fix_head_stem), 1)
    tally.batch_norm()
    tally.activation()
    tally.classifier(params.num_classes)
    return Part('head', 'head', 1, 1, 0, shape, tally.shape, tally.costs)


def _total(parts):
    return sum((part.costs for part in parts), collections.Counter())


def _part_record(part, batch_size):
    return {'part': part.name, 'type': part.type, 'kernel_size': part.kernel_size,
            'stride': part.stride, 'num_experts': part.num_experts,
            'input_shape': part.input_shape, 'output_shape': part.output_shape,
            **_costs_record(part.costs, batch_size)}


def _costs_record(costs, batch_size):
    """`costs` of one image under the names that --json and --csv have."""
    multiply_adds = {kind: costs[kind] for kind in KINDS}
    total = sum(multiply_adds.values())
    return {'trainable_params': costs['trainable'],
            'all_params': costs['trainable'] + costs['statistics'],
            'multiply_adds': {**multiply_adds, 'total': total,
                              'with_elementwise': total + costs['elementwise'] // 2},
            'activation_bytes': BYTES_PER_VALUE * batch_size * costs['kept']}


def _find(checkpoint):
    """(path prefix, `Config` or None) of a checkpoint that is named by its folder or itself."""
    is_folder = tf.gfile.IsDirectory(checkpoint)
    folder = checkpoint if is_folder else os.path.dirname(checkpoint) or '.'
    return checkpoints.find(checkpoint, 'checkpoint'), configs.load(folder)


def routing_statistics(checkpoint, images, model_name, override_params):
    """How the CondConv blocks of a trained network route the first batch of evaluation images.

    Args:
      checkpoint: path prefix.
      images: `ImageNetInput`, for evaluation.
      model_name: a model with CondConv blocks.
      override_params: see `efficientnet_builder.get_model_params`.

    Returns:
      dict of 'checkpoint', 'weights' ('ema' or 'raw'), 'num_images', 'dead_below', 'num_dead'
      (block -> number of dead experts) and 'experts', a dict for each expert of each block:
      'block', 'expert', the 'mean', standard deviation 'std', 'min' and 'max' of its weight over
      the images, the mean binary 'entropy' of the weight in bits, and 'is_dead'.

    Raises:
      UserError: the checkpoint cannot be restored, or an image cannot be read.
    """
    images.check_first_records()
    weights = checkpoints.EMA if checkpoints.has_ema(checkpoint) else checkpoints.RAW
    builder = model_builder_factory.get_model_builder(model_name)
    with tf.Graph().as_default(), tf.Session() as session:
        pixels, labels = tf.data.make_one_shot_iterator(images.dataset()).get_next()
        _, endpoints = builder.build_model_base(
            builder.normalize(pixels), model_name, training=False, override_params=override_params)
        suffix = '/routing_weights'
        routing = {name[:-len(suffix)]: tensor for name, tensor in endpoints.items()
                   if name.endswith(suffix)}
        try:
            checkpoints.weights_saver(weights, checkpoint).restore(session, checkpoint)
        except tf.errors.OpError as error:
            raise UserError(f'{checkpoint} is damaged, or its variables are not those of '
                            f'{model_name} ({type(error).__name__}); name another one.') from error
        try:
            routing, is_image = session.run([routing, labels['weight']])
        except tf.errors.DataLossError as error:
            raise UserError(f'A validation shard in {images.data_dir} is corrupt '
                            f'({error.message.splitlines()[0]}); copy or make it again.') from error
        except tf.errors.InvalidArgumentError as error:
            sentence = imagenet_input.bad_record_sentence(error)
            if not sentence:
                raise
            raise UserError(sentence) from error
    # The last batch of the data set is filled up with what is no image.
    is_image = is_image > 0
    experts = [expert for block, values in routing.items()
               for expert in _expert_records(block, values[is_image].astype(np.float64))]
    return {'checkpoint': checkpoint, 'weights': weights,
            'num_images': int(is_image.sum()), 'dead_below': DEAD_BELOW,
            'num_dead': {block: sum(expert['is_dead'] for expert in experts
                                    if expert['block'] == block) for block in routing},
            'experts': experts}


def _expert_records(block, weights):
    """A record for each expert of a block from its routing weights [images, experts]."""
    tiny = np.finfo(np.float64).tiny  # 0 log 0 is 0
    entropy = -(weights * np.log2(weights + tiny) + (1 - weights) * np.log2(1 - weights + tiny))
    for index, values in enumerate(weights.T):
        yield {'block': block, 'expert': index, 'mean': float(values.mean()),
               'std': float(values.std()), 'min': float(values.min()), 'max': float(values.max()),
               'entropy': float(entropy[:, index].mean()),
               'is_dead': bool(values.max() < DEAD_BELOW)}


def _shape_cell(shape):
    return 'x'.join(str(size) for size in shape)


def _millions(value, digits):
    """`value` in millions; nothing for None."""
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
    Column('input', lambda record: _shape_cell(record.get('input_shape', ()))),
    Column('output', lambda record: _shape_cell(record.get('output_shape', ()))),
) + _COST_COLUMNS
MODEL_COLUMNS = (
    Column('model', lambda record: record['model'], is_text=True),
    Column('input', lambda record: str(record['image_size'])),
) + _COST_COLUMNS + (
    Column('published (M)', lambda record: _millions(record['published']['multiply_adds'], 0)),
    Column('published top-1 (%)', lambda record: str(record['published']['top_1'] or '')),
)
EXPERT_COLUMNS = (
    Column('block', lambda record: record['block'], is_text=True),
    Column('expert', lambda record: str(record['expert'])),
    *map(_three_digits, ('mean', 'std', 'min', 'max', 'entropy')),
    Column('', lambda record: 'dead' if record['is_dead'] else '', is_text=True),
)


def _rows(table):
    """The cells of a table, headings first and the total last."""
    records = table.records + ([table.total] if table.total else [])
    return [[column.heading for column in table.columns]] + [
        [column.cell(record) for column in table.columns] for record in records]


def _aligned(table):
    """Lists of cells that are as wide in every row."""
    rows = _rows(table)
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    return [[cell.ljust(width) if column.is_text else cell.rjust(width)
             for cell, width, column in zip(row, widths, table.columns)] for row in rows]


def to_text(report):
    """Aligned tables, then the notes."""
    tables = ['\n'.join('  '.join(row).rstrip() for row in _aligned(table))
              for table in report.tables]
    return '\n\n'.join(tables + [textwrap.fill(note, NOTE_WIDTH) for note in report.notes])


def to_markdown(report):
    """Tables, each heading with its alignment, then the notes."""
    tables = []
    for table in report.tables:
        lines = [f"| {' | '.join(row)} |" for row in _aligned(table)]
        rule = '|'.join('---' if column.is_text else '--:' for column in table.columns)
        tables.append('\n'.join([lines[0], f'|{rule}|', *lines[1:]]))
    return '\n\n'.join(tables + report.notes)


def to_json(report):
    """The whole content."""
    return json.dumps(report.content, indent=2)


def to_csv(report):
    """The records of the last table; what is nested in JSON has names joined with '_' here."""
    rows = [dict(_flat(record)) for record in report.tables[-1].records]
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys(), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().rstrip('\n')


def _flat(record, prefix=''):
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{name}_')
        else:
            yield prefix + name, _shape_cell(value) if isinstance(value, tuple) else value


FORMATTERS = {'json': to_json, 'csv': to_csv, 'markdown': to_markdown}


if __name__ == '__main__':
    define_flags()
    entry_point.run(main)
