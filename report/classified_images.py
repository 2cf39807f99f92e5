"""Report sections from validation images: the mistakes of the best checkpoint, and its experts.

`mistakes_of` and `experts_of` return the argument of a macro of report.html.j2, or a sentence (str)
to show instead.
"""
import base64
import dataclasses
import os

from absl import logging
import tensorflow.compat.v1 as tf

from analysis import experts
from analysis import routing
from checkpoints import store
from common.errors import UserError
from common.paths import is_same
from condconv_layers import CHANNELS_LAST
from config import command_line
from report import page
from report import plots
from report import run_data
from tfrecords import layout
from tfrecords import schema
from training import inputs
from training import pictures

NUM_MISTAKES = 24
MAX_ROUTED_CLASSES = 50
BATCH_SIZE = 32
PICTURE_SIZE = 128         # pixels of the longer side


def examine(run, data_dir, num_images):
    """Classifies validation images with the best checkpoint of a run.

    Args:
      run: the `run_data.Run`.
      data_dir: directory of the shards; None for the run's own.
      num_images: maximum number of images.

    Returns:
      a `routing.Examination`, or a sentence (str) that explains why there is none.
    """
    if not num_images:
        return 'No images were classified (--num_images=0).'
    data_dir = data_dir or run.config.data.data_dir
    if data_dir == schema.SYNTHETIC_DIR:
        return 'The run used synthetic images, which cannot be shown.'
    if not tf.gfile.IsDirectory(data_dir):
        return (f'The validation images are not in {data_dir}; set --data_dir to their directory.')
    archive = os.path.join(run.model_dir, store.ARCHIVE_DIR)
    checkpoint = store.latest(archive) or store.latest(run.model_dir)
    if not checkpoint:
        return 'The run has no checkpoint.'
    logging.info('Checkpoint %s classifies up to %d images.', checkpoint, num_images)
    try:
        class_map = command_line.class_map(
            run.config, data_dir, run.config.data.class_names_from)
        images = dataclasses.replace(
            inputs.make_input(run.config, is_training=False), data_dir=data_dir,
            batch_size=BATCH_SIZE, num_images=num_images, transpose_input=False,
            class_map=class_map, **_of_other_data(run.config.data, data_dir))
        return routing.examine(
            checkpoint, images, run.config.model.model_name,
            {**run.config.model_overrides, 'data_format': CHANNELS_LAST}, NUM_MISTAKES,
            run.config.model.normalization, run.config.optimization.class_activation)
    except UserError as error:
        return str(error)


def _of_other_data(data, data_dir):
    """Returns the `ImageNetInput` fields to replace if `data_dir` is not the directory of `data`.
    """
    if is_same(data_dir, data.data_dir):
        return {}
    info = schema.DatasetInfo.load(data_dir) or schema.IMAGENET
    return {'shards': layout.DETECTED, 'holdout_shards': None,
            'label_base': layout.DETECTED.label_base(data_dir, info)}


def mistakes_of(run, examination):
    """Returns the pictures of the most confident mistakes.

    Args:
      run: the `run_data.Run`.
      examination: result of `examine`.
    """
    if isinstance(examination, str):
        return examination
    return {'num_images': examination.num_images,
            'weights': run_data.WEIGHT_NAMES[examination.weights],
            'pictures': [_picture(mistake, run.class_names) for mistake in examination.mistakes]}


def _picture(mistake, names):
    picture = pictures.grid(mistake.pixels[None])
    longer_side = max(picture.size)
    if longer_side > PICTURE_SIZE:
        picture = picture.resize(
            [max(1, side * PICTURE_SIZE // longer_side) for side in picture.size])
    return {'jpeg': base64.b64encode(pictures.encode(picture, 'JPEG')).decode(),
            'label': names[mistake.label], 'predicted': names[mistake.predicted],
            'probability': f'{mistake.probability:.1%}',
            'label_probability': f'{mistake.label_probability:.1%}'}


def experts_of(run, examination):
    """Returns figures of expert usage in the CondConv blocks; arguments as for `mistakes_of`."""
    if isinstance(examination, str):
        return examination
    if not examination.routing:
        return f'{run.config.model.model_name} has no CondConv block.'
    present = [index for index, count in enumerate(examination.class_images) if count]
    shown = present[:MAX_ROUTED_CLASSES]
    return {
        'num_images': examination.num_images, 'dead_below': experts.DEAD_BELOW,
        'dead': [f"{record['expert']} of {record['block']}" for record in examination.experts
                 if record['is_dead']],
        'of_blocks': [_block_figure(examination, key, top, caption) for key, top, caption in (
            ('mean', 1.0, 'Mean routing weight of each expert'),
            ('std', None, 'Standard deviation of the routing weight over the images; 0 means that '
             'the weight does not depend on the image'),
            ('entropy', 1.0, 'Mean entropy of the routing weight in bits: 1 for a weight of 0.5, '
             '0 for an expert that is fully on or off'))],
        'num_shown': len(shown), 'num_present': len(present),
        'of_classes': [
            page.Figure(plots.heatmap(weights[shown], [run.class_names[index] for index in shown],
                                      range(weights.shape[1]), 'expert', top=1.0),
                        f'Mean routing weights of each class in {block}')
            for block, weights in examination.routing.items()]}


def _block_figure(examination, key, top, caption):
    """Returns a `page.Figure` of one statistic of all experts, with a row per block."""
    values = [[record[key] for record in examination.experts if record['block'] == block]
              for block in examination.routing]
    return page.Figure(plots.heatmap(values, list(examination.routing), range(len(values[0])),
                                     'expert', top=top), caption)
