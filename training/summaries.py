"""What TensorBoard is shown: of training steps what they fetch, of evaluations their metrics.

The graph holds no summary op. `watch` gives the tensors that are to be seen a name, the progress
hook fetches them with every step (another set of fetches would be another graph to optimise, and on
an NPU to compile), and `Board` turns them into summaries on the host whenever some are due.
"""
import os

import numpy as np
import tensorflow.compat.v1 as tf

from analysis import experts
from common.errors import UserError
from run_log import event_log
from training import pictures

# What is written, by TensorBoard's run (a folder of event files) and tag.
TAGS = {
    '.': {
        'train/loss': 'cross entropy of the batch and L2',
        'train/cross_entropy': 'without L2, with label smoothing',
        'train/l2_loss': 'weight decay',
        'train/top_1': 'share of the batch that is classified rightly',
        'train/top_5': 'share whose class is among the first five',
        'train/learning_rate': '',
        'train/gradient_norm': 'of all gradients together, the loss scale taken out',
        'train/images_per_sec': 'of all ranks together',
        'train/epoch': '',
        'train/input_stall': 'with `--log_input_stall`: share of the time spent waiting for input',
        'train/loss_scale': 'with mixed precision',
        'train/skipped_steps': 'with mixed precision: steps that overflowed, since the start',
        'train/input_images': 'the first images of a batch, as the network sees them: cropped, '
                              'augmented, mixed; once a start',
        'condconv_<block>/<expert>/mean_weight': 'mean routing weight in the batch',
        'condconv_<block>/<expert>/entropy': 'mean entropy of that weight in bits: 1 at 0.5, 0 '
                                             'where the expert is wholly on or off',
        'condconv_<block>/<expert>/weights': 'histogram of the routing weight over the batch',
        'condconv_<block>/<expert>/entropies': 'histogram of its entropy',
    },
    'eval_raw, eval_ema': {
        'top_1': 'on the validation images, with the trained and the averaged weights',
        'top_5': '',
        'cross_entropy': 'mean over the images, without label smoothing',
        'loss': 'the same as a mean of the batches',
        'num_images': '',
        'confusion_matrix/picture': 'up to 50 classes: how many of each row were taken for the '
                                    "column's class",
        'confusion_matrix/table': 'the same as text',
        'confusion_matrix': 'the same as a tensor, for programs',
        'class_images': 'tensor: images of each class',
        'class_correct': 'tensor: those that are classified rightly',
        'checkpoint_path': 'text: what was evaluated',
    },
}

NUM_IMAGES = 16
MAX_CONFUSION_CLASSES = 50

_SCOPE = 'watched/'
_SCALARS = _SCOPE + 'scalars/'
_ROUTING = _SCOPE + 'routing/'
_IMAGES = _SCOPE + 'images'
_NUM_BUCKETS = 30


# In the graph ------------------------------------------------------------------------------------

def watch_scalars(scalars):
    """Lets each training step show these, a dict of name -> float scalar."""
    for name, value in scalars.items():
        tf.identity(value, name=_SCALARS + name)


def watch_network(images, mean_rgb, stddev_rgb, endpoints):
    """Lets each training step show what the network is given, and how it routes it.

    Args:
      images: float [batch, height, width, 3], as the network takes them.
      mean_rgb, stddev_rgb: with which they were normalised.
      endpoints: of the network, see `efficientnet_model.Model`.
    """
    # They were uint8, or means of two that were: 0 to 255 again, up to rounding.
    pixels = images[:NUM_IMAGES] * stddev_rgb + (np.asarray(mean_rgb, np.float32) + 0.5)
    tf.cast(pixels, tf.uint8, name=_IMAGES)
    for block, weights in experts.routing_weights(endpoints).items():
        tf.identity(weights, name=_ROUTING + block)


# On the host -------------------------------------------------------------------------------------

class Board:
    """Writes what is watched of training to the event file of `model_dir`.

    Scalars are written whenever there is a progress line; histograms and what is told of each
    expert every `every_steps` steps, the first time with the first line. Images are written that
    first time only, since they always look alike.
    """

    def __init__(self, model_dir, every_steps):
        self._model_dir = model_dir
        self._every_steps = every_steps
        self._last_step = None

    @staticmethod
    def tensors(graph):
        """Name -> tensor of all that `graph` lets one watch; to be fetched with a step."""
        return {operation.name: operation.outputs[0] for operation in graph.get_operations()
                if operation.name == _IMAGES or operation.name.startswith((_SCALARS, _ROUTING))}

    @staticmethod
    def scalars(values):
        """The scalars among the values of `tensors`: name -> float; None for what is not finite."""
        return {name[len(_SCALARS):]: event_log.finite(value)
                for name, value in values.items() if name.startswith(_SCALARS)}

    def write(self, step, scalars, values):
        """Writes the summaries that are due.

        Args:
          step: global step.
          scalars: name -> float, or None for what is not known.
          values: name -> array, as `tensors`.
        """
        summaries = [scalar(f'train/{name}', value) for name, value in scalars.items()
                     if value is not None]
        if self._last_step is None and _IMAGES in values:
            summaries.append(image('train/input_images', pictures.grid(values[_IMAGES]), 'JPEG'))
        if self._last_step is None or (
                step // self._every_steps > self._last_step // self._every_steps):
            self._last_step = step
            for name, weights in values.items():
                if name.startswith(_ROUTING):
                    summaries += _routing_summaries(name[len(_ROUTING):], weights)
        _write(self._writer, tf.Summary(value=summaries), step)

    @property
    def _writer(self):
        return tf.summary.FileWriterCache.get(self._model_dir)


def _routing_summaries(block, weights):
    """Mean and spread of each expert's weight, and its entropy, from [images, experts]."""
    weights = np.asarray(weights, np.float64)
    entropies = experts.binary_entropy(weights)
    for expert in experts.describe(block, weights):
        tag, index = f"condconv_{block}/expert_{expert['expert']}", expert['expert']
        yield scalar(f'{tag}/mean_weight', expert['mean'])
        yield scalar(f'{tag}/entropy', expert['entropy'])
        yield histogram(f'{tag}/weights', weights[:, index])
        yield histogram(f'{tag}/entropies', entropies[:, index])


def write_evaluation(folder, step, confusion_matrix, class_names):
    """Adds the confusion matrix of an evaluation to its event file, as a picture and as a table.

    Args:
      folder: of the event file.
      step: global step.
      confusion_matrix: [classes, classes], images of the row's class taken for the column's.
      class_names: of the classes; empty where they have none.
    """
    names = class_names or [str(index) for index in range(len(confusion_matrix))]
    _write(tf.summary.FileWriterCache.get(folder), tf.Summary(value=[
        image('confusion_matrix/picture', pictures.confusion(confusion_matrix, names), 'PNG'),
        text('confusion_matrix/table', _table(confusion_matrix, names))]), step)


def _table(matrix, names):
    """Markdown: a row for each class, the classes it was taken for in columns."""
    names = [name.replace('|', '&#124;') for name in names]
    return '\n'.join([f"| class | {' | '.join(names)} |", '|---' + '|--:' * len(names) + '|',
                      *(f"| **{name}** | {' | '.join(f'{int(count)}' for count in row)} |"
                        for name, row in zip(names, matrix))])


def tags_table():
    """TAGS as a table in Markdown."""
    rows = ['| run | tag | what |', '|---|---|---|']
    for run, tags in TAGS.items():
        for tag, what in tags.items():
            rows.append(f'| {run} | `{tag}` | {what} |')
            run = ''
    return '\n'.join(rows)


def _write(writer, summary, step):
    """Adds a summary to an event file; UserError if the file does not grow by it.

    TensorFlow says nothing of what a full disk refuses.
    """
    writer.flush()
    path = tf.compat.as_str(writer.event_writer._ev_writer.FileName())
    is_local = '://' not in path
    length = is_local and os.path.getsize(path)
    writer.add_summary(summary, step)
    writer.flush()
    if is_local and os.path.getsize(path) < length + summary.ByteSize():
        raise UserError(f'{path} cannot be written to its end: make room, or raise the limit of '
                        'file sizes (ulimit -f), then start again; what was saved before is whole.')


# Summaries ---------------------------------------------------------------------------------------

def scalar(tag, value):
    return tf.Summary.Value(tag=tag, simple_value=value)


def histogram(tag, values):
    """Of values in [0, 1], in buckets of the same width."""
    values = np.asarray(values, np.float64)
    counts, edges = np.histogram(values, _NUM_BUCKETS, (0.0, 1.0))
    return tf.Summary.Value(tag=tag, histo=tf.HistogramProto(
        min=values.min(), max=values.max(), num=values.size, sum=values.sum(),
        sum_squares=np.square(values).sum(), bucket_limit=edges[1:], bucket=counts))


def image(tag, picture, file_format):
    """Of a Pillow image."""
    return tf.Summary.Value(tag=tag, image=tf.Summary.Image(
        height=picture.height, width=picture.width, colorspace=3,
        encoded_image_string=pictures.encode(picture, file_format)))


def text(tag, markdown):
    metadata = tf.SummaryMetadata(
        plugin_data=tf.SummaryMetadata.PluginData(plugin_name='text'))
    return tf.Summary.Value(tag=tag, metadata=metadata, tensor=tf.make_tensor_proto(markdown))
