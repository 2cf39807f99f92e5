"""Writes TensorBoard summaries of training steps and of evaluations.

The graph contains no summary ops. `add_scalars` and `add_network` name the tensors to write, and
the progress hook fetches them with every step, because each other set of fetches would cause
another optimization of the graph, and on an NPU another compilation. `SummaryWriter` turns their
values into summaries on the CPU.
"""
import os
import time

import numpy as np
import tensorflow.compat.v1 as tf

from analysis import experts
from common.errors import DiskFullError
from run_log import class_metrics
from run_log import event_log
from training import pictures
from training import tensor_names

# Name of a scalar -> its tag. TensorBoard groups tags by the part before the first '/', sorts the
# groups and expands the first two. Training and evaluations share a tag, and so a chart, only if
# both measure the same quantity.
TRAINING_TAGS = {
    'unsmoothed_cross_entropy': 'main/cross_entropy',
    'learning_rate': 'main/learning_rate',
    'loss': 'main/loss',
    'top_1': 'main/top_1',
    'top_5': 'main/top_5',
    'cross_entropy': 'optimizer/cross_entropy_smoothed',
    'gradient_norm': 'optimizer/gradient_norm',
    'l2_loss': 'optimizer/l2_loss',
    'loss_scale': 'optimizer/loss_scale',
    'skipped_steps': 'optimizer/skipped_steps',
    'epoch': 'progress/epoch',
    'images_per_sec': 'progress/images_per_sec',
    'input_stall': 'progress/input_stall',
}
EVALUATION_TAGS = {
    'cross_entropy': 'main/cross_entropy',
    'top_1': 'main/top_1',
    'top_5': 'main/top_5',
    'num_images': 'progress/validation_images',
}
_INPUT_IMAGES = 'input_images'

# TensorBoard's run (a directory of event files) -> tag -> description for docs/monitoring.md.
TAGS = {
    '.': {
        'main/cross_entropy': '`--loss` without label smoothing and weight decay, as in '
                              'evaluations',
        'main/learning_rate': '',
        'main/loss': 'training objective: `--loss` with label smoothing, plus weight decay',
        'main/top_1': 'top-1 accuracy of the batch',
        'main/top_5': 'top-5 accuracy of the batch',
        'optimizer/cross_entropy_smoothed': 'with `--label_smoothing`, without weight decay',
        'optimizer/gradient_norm': 'global norm of the unscaled gradients before '
                                   '`--gradient_clip_norm`; with mixed precision only if that '
                                   'flag or `--log_gradient_norm` is set',
        'optimizer/l2_loss': 'weight decay',
        'optimizer/loss_scale': 'with mixed precision',
        'optimizer/skipped_steps': 'with mixed precision: steps skipped after an overflow, since '
                                   'the start',
        'progress/epoch': '',
        'progress/images_per_sec': 'sum over all ranks',
        'progress/input_stall': 'with `--log_input_stall`: fraction of the time spent waiting for '
                                'input',
        _INPUT_IMAGES: 'first images of a batch as the network sees them (cropped, augmented, '
                       'mixed); written once per start',
        'routing_<block>/<expert>/mean_weight': 'mean routing weight in the batch',
        'routing_<block>/<expert>/entropy': 'mean binary entropy of that weight in bits: 1 at '
                                            'weight 0.5, 0 at weights 0 and 1',
        'routing_<block>/<expert>/weights': 'histogram of the routing weight over the batch',
        'routing_<block>/<expert>/entropies': 'histogram of its entropy',
    },
    'eval_raw, eval_ema': {
        'main/cross_entropy': '`--loss`: mean over the images, without label smoothing',
        'main/top_1': 'top-1 accuracy on the validation images, with the raw or the averaged '
                      'weights',
        'main/top_5': 'the same for top-5',
        'progress/validation_images': 'images evaluated',
        'confusion_matrix/picture': "up to 50 classes: images of the row's class that were "
                                    "predicted as the column's class",
        'confusion_matrix/table': 'the same as text',
        'confusion_matrix': 'the same as a tensor, for programs',
        'class_images': 'tensor: images of each class',
        'class_predicted': 'tensor: images predicted as each class',
        'class_correct': 'tensor: correctly classified images of each class',
        'checkpoint_path': 'text: the evaluated checkpoint',
    },
}

NUM_IMAGES = 16
MAX_CONFUSION_CLASSES = 50

_NUM_BUCKETS = 30


# In the graph ------------------------------------------------------------------------------------

def add_scalars(scalars):
    """Names the float scalars of a dict (name -> tensor) so that training steps write them."""
    for name, value in scalars.items():
        tf.identity(value, name=tensor_names.SCALARS + name)


def add_network(images, mean_rgb, stddev_rgb, endpoints):
    """Names the first images of the batch and the routing weights so that training writes them.

    Args:
      images: float [batch, height, width, 3], normalized.
      mean_rgb, stddev_rgb: the constants of the normalization.
      endpoints: endpoints of the network, see `efficientnet_model.Model`.
    """
    # The images were uint8 or mixtures of uint8 images, so the result is in [0, 255] again.
    pixels = images[:NUM_IMAGES] * stddev_rgb + (np.asarray(mean_rgb, np.float32) + 0.5)
    tf.cast(pixels, tf.uint8, name=tensor_names.IMAGES)
    for block, weights in experts.routing_weights(endpoints).items():
        tf.identity(weights, name=tensor_names.ROUTING + block)


def marked_tensors(graph):
    """Returns the tensors to fetch with each step, as a dict name -> tensor."""
    return {operation.name: operation.outputs[0] for operation in graph.get_operations()
            if operation.name == tensor_names.IMAGES or operation.name.startswith(
                (tensor_names.SCALARS, tensor_names.ROUTING))}


# On the CPU --------------------------------------------------------------------------------------

def scalars_of(values):
    """Returns the scalars among the values of `marked_tensors`, as a dict name -> float.

    A non-finite value becomes None.
    """
    return {name[len(tensor_names.SCALARS):]: event_log.finite(value)
            for name, value in values.items() if name.startswith(tensor_names.SCALARS)}


class SummaryWriter:
    """Writes the summaries of training to the event file of `model_dir`.

    Scalars are written with every progress line. Histograms and statistics of each expert are
    written with the first line, then every `every_steps` steps. Images are written once.
    """

    def __init__(self, model_dir, every_steps):
        self._model_dir = model_dir
        self._every_steps = every_steps
        self._last_step = None

    def write(self, step, scalars, values):
        """Writes the summaries that are due.

        Args:
          step: global step.
          scalars: dict name (a key of TRAINING_TAGS) -> float, or None if unknown.
          values: dict name -> array of the `marked_tensors`.
        """
        summaries = [scalar(TRAINING_TAGS[name], value) for name, value in scalars.items()
                     if value is not None]
        if self._last_step is None and tensor_names.IMAGES in values:
            images = pictures.grid(values[tensor_names.IMAGES])
            summaries.append(image(_INPUT_IMAGES, images, 'JPEG'))
        if self._last_step is None or (
                step // self._every_steps > self._last_step // self._every_steps):
            self._last_step = step
            for name, weights in values.items():
                if name.startswith(tensor_names.ROUTING):
                    summaries += _routing_summaries(name[len(tensor_names.ROUTING):], weights)
        _write(self._writer, tf.Summary(value=summaries), step)

    @property
    def _writer(self):
        return event_file(self._model_dir)


def _routing_summaries(block, weights):
    """Yields the summaries of each expert's weight and entropy.

    Args:
      block: name of the block.
      weights: [images, experts].
    """
    weights = np.asarray(weights, np.float64)
    entropies = experts.binary_entropy(weights)
    for expert in experts.describe(block, weights):
        tag, index = f"routing_{block}/expert_{expert['expert']}", expert['expert']
        yield scalar(f'{tag}/mean_weight', expert['mean'])
        yield scalar(f'{tag}/entropy', expert['entropy'])
        yield histogram(f'{tag}/weights', weights[:, index])
        yield histogram(f'{tag}/entropies', entropies[:, index])


def write_evaluation(folder, step, metrics, checkpoint, class_names, graph):
    """Adds the summaries of an evaluation to the event file in `folder`.

    Args:
      folder: directory of the event file.
      step: global step.
      metrics: dict that `EvaluationSession.evaluate` returned. The confusion matrix, [classes,
        classes], counts the images of the row's class that were predicted as the column's class.
      checkpoint: path prefix of the evaluated checkpoint.
      class_names: names of the classes, or empty.
      graph: tf.Graph of the evaluation.
    """
    written = [scalar(tag, float(metrics[name])) for name, tag in EVALUATION_TAGS.items()]
    written += [tensor(name, metrics[name]) for name in class_metrics.CLASS_METRICS
                if name in metrics]
    written.append(tensor('checkpoint_path', checkpoint))
    if 'confusion_matrix' in metrics:
        matrix = metrics['confusion_matrix']
        names = class_names or [str(index) for index in range(len(matrix))]
        written += [image('confusion_matrix/picture', pictures.confusion(matrix, names), 'PNG'),
                    text('confusion_matrix/table', _table(matrix, names))]
    _write(event_file(folder, graph), tf.Summary(value=written), step)


def _table(matrix, names):
    """Returns a confusion matrix as a Markdown table; rows are labels, columns predictions."""
    names = [name.replace('|', '&#124;') for name in names]
    return '\n'.join([f"| class | {' | '.join(names)} |", '|---' + '|--:' * len(names) + '|',
                      *(f"| **{name}** | {' | '.join(f'{int(count)}' for count in row)} |"
                        for name, row in zip(names, matrix))])


def tags_table():
    """Returns TAGS as a Markdown table."""
    rows = ['| run | tag | what |', '|---|---|---|']
    for run, tags in TAGS.items():
        for tag, what in tags.items():
            rows.append(f'| {run} | `{tag}` | {what} |')
            run = ''
    return '\n'.join(rows)


def _write(writer, summary, step):
    """Adds a summary to an event file; raises DiskFullError if the file does not grow.

    TensorFlow reports no error if the disk is full.
    """
    writer.flush()
    path = _path(writer)
    is_local = '://' not in path
    length = is_local and os.path.getsize(path)
    writer.add_summary(summary, step)
    writer.flush()
    if is_local and os.path.getsize(path) < length + summary.ByteSize():
        raise DiskFullError(
            f'{path}: cannot be written completely; make room, or raise the limit of file sizes '
            '(ulimit -f), and rerun. Files saved earlier are intact.')


def _path(writer):
    return tf.compat.as_str(writer.event_writer._ev_writer.FileName())


def event_file(folder, graph=None):
    """Returns the writer of this process's event file in `folder`, which TensorFlow's hooks share.

    Without this, TensorFlow would begin the file with the default graph, twice.

    Args:
      folder: directory of the event file.
      graph: tf.Graph with which a new file begins, or None.
    """
    # TensorFlow 1.15 has no public access to the cache.
    cache = tf.summary.FileWriterCache._cache
    if folder not in cache:
        cache[folder] = tf.summary.FileWriter(folder)
        if graph:
            add_graph(cache[folder], graph.as_graph_def(add_shapes=True).SerializeToString())
    return cache[folder]


def add_graph(writer, graph):
    """Adds a serialized GraphDef to an event file."""
    writer.add_event(tf.Event(wall_time=time.time(), graph_def=graph))


def close_event_files():
    """Flushes and closes this process's event files, so that they can be copied."""
    tf.summary.FileWriterCache.clear()


def remove_event_files():
    """Removes the event files that this process has written."""
    writers = list(tf.summary.FileWriterCache._cache.values())
    tf.summary.FileWriterCache.clear()
    for writer in writers:
        if tf.gfile.Exists(_path(writer)):
            tf.gfile.Remove(_path(writer))


# Summaries ---------------------------------------------------------------------------------------

def scalar(tag, value):
    return tf.Summary.Value(tag=tag, simple_value=value)


def tensor(tag, value):
    return tf.Summary.Value(tag=tag, node_name=tag, tensor=tf.make_tensor_proto(value))


def histogram(tag, values):
    """Returns the histogram of values in [0, 1], in buckets of equal width."""
    values = np.asarray(values, np.float64)
    counts, edges = np.histogram(values, _NUM_BUCKETS, (0.0, 1.0))
    return tf.Summary.Value(tag=tag, histo=tf.HistogramProto(
        min=values.min(), max=values.max(), num=values.size, sum=values.sum(),
        sum_squares=np.square(values).sum(), bucket_limit=edges[1:], bucket=counts))


def image(tag, picture, file_format):
    """Returns the summary of a Pillow image."""
    return tf.Summary.Value(tag=tag, image=tf.Summary.Image(
        height=picture.height, width=picture.width, colorspace=3,
        encoded_image_string=pictures.encode(picture, file_format)))


def text(tag, markdown):
    metadata = tf.SummaryMetadata(
        plugin_data=tf.SummaryMetadata.PluginData(plugin_name='text'))
    return tf.Summary.Value(tag=tag, metadata=metadata, tensor=tf.make_tensor_proto(markdown))
