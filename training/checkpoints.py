"""Checkpoints: what is in a model_dir, which weights are restored, which one was the best."""
import json
import os

import tensorflow.compat.v1 as tf

from training import optimization
from user_error import UserError

EMA = 'ema'
RAW = 'raw'

ARCHIVE_DIR = 'archive'
_BEST_FILE = 'best_eval.json'


def latest(model_dir):
    """Path prefix of the newest checkpoint in `model_dir`, or None."""
    return tf.train.latest_checkpoint(model_dir)


def step_of(checkpoint):
    """The global step a checkpoint was saved at; 0 for None."""
    if not checkpoint:
        return 0
    return int(tf.train.load_variable(checkpoint, tf.GraphKeys.GLOBAL_STEP))


def weights_saver(weights):
    """A Saver that restores the graph's variables; with `weights` EMA, from their averages."""
    if weights == RAW:
        return tf.train.Saver()
    ema = tf.train.ExponentialMovingAverage(decay=0.0)
    return tf.train.Saver(ema.variables_to_restore(optimization.ema_variables()))


def has_ema(checkpoint):
    """Whether a checkpoint holds averaged weights."""
    return any(name.endswith('/ExponentialMovingAverage')
               for name, _ in tf.train.list_variables(checkpoint))


def check_model(checkpoint, model_name, num_classes):
    """Raises UserError if `checkpoint` is of another model or has another number of classes."""
    try:
        shapes = dict(tf.train.list_variables(checkpoint))
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f'{checkpoint} is no readable checkpoint ({_first_line(error)}); name '
                        'another one.') from error
    classifier = f'{model_name}/head/dense/bias'
    if classifier not in shapes:
        others = sorted({name.split('/')[0] for name in shapes if name.endswith('head/dense/bias')})
        held = ' and '.join(others) or 'no model of this family'
        raise UserError(f'{checkpoint} holds {held}, not {model_name}; change --model_name or the '
                        'folder.')
    if shapes[classifier] != [num_classes]:
        raise UserError(f'{checkpoint} has {shapes[classifier][0]} classes, not {num_classes}; '
                        'change --num_label_classes or the folder.')


def archive_if_best(model_dir, checkpoint, evaluation):
    """Copies `checkpoint` to model_dir/archive if its top_1 beats the one there.

    The new files are copied first, then one file that names them is replaced, then the old ones go:
    at any moment, a kill leaves a whole checkpoint in the archive.

    Args:
      model_dir: the run's folder.
      checkpoint: path prefix of the evaluated checkpoint.
      evaluation: dict with 'step' and 'top_1', kept beside the checkpoint in best_eval.json.

    Returns:
      whether it was the best.
    """
    archive = os.path.join(model_dir, ARCHIVE_DIR)
    best = best_evaluation(model_dir)
    if best and best['top_1'] >= evaluation['top_1']:
        return False
    tf.gfile.MakeDirs(archive)
    name = os.path.basename(checkpoint)
    for path in tf.gfile.Glob(f'{checkpoint}.*'):
        _copy_whole(path, os.path.join(archive, os.path.basename(path)))
    best_path = os.path.join(archive, _BEST_FILE)
    with tf.gfile.GFile(best_path + '.tmp', 'w') as file:
        json.dump({**evaluation, 'checkpoint': name}, file, indent=2)
    tf.gfile.Rename(best_path + '.tmp', best_path, overwrite=True)
    tf.train.update_checkpoint_state(archive, name)
    for old in tf.gfile.Glob(os.path.join(archive, 'model.ckpt-*')):
        if not os.path.basename(old).startswith(f'{name}.'):
            tf.gfile.Remove(old)
    return True


def best_evaluation(model_dir):
    """The evaluation of the archived checkpoint, a dict, or None."""
    path = os.path.join(model_dir, ARCHIVE_DIR, _BEST_FILE)
    if not tf.gfile.Exists(path):
        return None
    with tf.gfile.GFile(path) as file:
        return json.load(file)


def _copy_whole(source, target):
    tf.gfile.Copy(source, target + '.tmp', overwrite=True)
    tf.gfile.Rename(target + '.tmp', target, overwrite=True)


def _first_line(error):
    return str(getattr(error, 'message', error)).splitlines()[0]
