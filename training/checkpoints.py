"""Checkpoints: what is in a model_dir, which weights are restored, which one was the best."""
import json
import os

import tensorflow.compat.v1 as tf

from training import optimization
from training import warm_start
from user_error import UserError
import user_paths

EMA = 'ema'
RAW = 'raw'
_KINDS = {EMA: warm_start.AVERAGED, RAW: warm_start.UNAVERAGED}

ARCHIVE_DIR = 'archive'
_BEST_FILE = 'best_eval.json'


def latest(model_dir):
    """Path prefix of the newest checkpoint in `model_dir`, or None."""
    return tf.train.latest_checkpoint(model_dir)


def step_of(checkpoint):
    """The global step a checkpoint was saved at; 0 for None or if it does not say."""
    if not checkpoint:
        return 0
    reader = tf.train.load_checkpoint(checkpoint)
    if not reader.has_tensor(tf.GraphKeys.GLOBAL_STEP):
        return 0
    return int(reader.get_tensor(tf.GraphKeys.GLOBAL_STEP))


def find(path, flag):
    """Path prefix of the checkpoint that a flag names, by itself or by its folder.

    Whether all of it can be read is not looked at; that there is none is a UserError.
    """
    if os.path.lexists(path) and not tf.gfile.IsDirectory(path):
        # TensorFlow takes a file of that very name for a checkpoint of its oldest form.
        user_paths.check_input_file(path, f'--{flag}')
    checkpoint = latest(path) if tf.gfile.IsDirectory(path) else path
    if not checkpoint:
        raise UserError(f'{path} holds no checkpoint; check --{flag}.')
    # A pipe in place of one of its files would never end.
    for part in tf.gfile.Glob(f'{checkpoint}.*'):
        user_paths.check_input_file(part)
    return checkpoint


def check_whole(checkpoint):
    """Reads every tensor of a checkpoint; UserError if it is not there, or damaged anywhere."""
    names = _shapes(checkpoint)
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        for name in names:
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f'{checkpoint} is damaged ({_first_line(error)}); copy it again or name '
                        'another one.') from error


def weights_saver(weights, checkpoint):
    """A Saver that restores the graph's variables; with `weights` EMA, from their averages.

    Args:
      weights: EMA or RAW.
      checkpoint: path prefix of what will be restored, or of another one of the same run. It may
        be an ancestor's, see `warm_start.match`.

    Raises:
      UserError: the checkpoint lacks a variable of the graph, or has it in another shape.
    """
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    match = warm_start.match(checkpoint, optimization.ema_variables(), [_KINDS[weights]])
    tensors = {**{name: name for name in variables}, **match.loaded}
    lacking = [*match.skipped, *match.missing,
               *sorted(set(tensors.values()) - set(_shapes(checkpoint)))]
    if lacking:
        raise UserError(f'{checkpoint} does not hold the {weights} weights of this network: '
                        f'{lacking[0]} is not there or has another shape; name another one, or '
                        'check the flags that describe the network.')
    return tf.train.Saver({tensor: variables[name] for name, tensor in tensors.items()})


def has_ema(checkpoint):
    """Whether a checkpoint holds averaged weights."""
    return any(name.endswith(warm_start.AVERAGED)
               for name, _ in tf.train.list_variables(checkpoint))


def check_model(checkpoint, model_name, num_classes):
    """Raises UserError if `checkpoint` is of another model or has another number of classes."""
    shapes = _shapes(checkpoint)
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
    name = _copy(checkpoint, archive)
    best_path = os.path.join(archive, _BEST_FILE)
    with tf.gfile.GFile(best_path + '.tmp', 'w') as file:
        json.dump({**evaluation, 'checkpoint': name}, file, indent=2)
    tf.gfile.Rename(best_path + '.tmp', best_path, overwrite=True)
    _keep_only(archive, name)
    return True


def follow(leader_dir, model_dir):
    """Leaves in `model_dir` one checkpoint, the newest of rank 0's folder, or none if it has none.

    Ranks that were stopped at different moments have saved different steps. Each would wait for the
    others at the end, if they went on from there.

    Raises:
      UserError: there is a checkpoint, and nothing to see of rank 0's folder, which on several
        servers may be another disk.
    """
    if not tf.gfile.IsDirectory(leader_dir):
        if latest(model_dir):
            raise UserError(f'{model_dir} holds a checkpoint, but {leader_dir}, that of rank 0, '
                            'cannot be seen from here; put --model_dir on storage that all servers '
                            'share, or remove the former to start anew.')
        return
    checkpoint = latest(leader_dir)
    if checkpoint or latest(model_dir):
        _keep_only(model_dir, checkpoint and _copy(checkpoint, model_dir))


def best_evaluation(model_dir):
    """The evaluation of the archived checkpoint, a dict, or None."""
    path = os.path.join(model_dir, ARCHIVE_DIR, _BEST_FILE)
    if not tf.gfile.Exists(path):
        return None
    with tf.gfile.GFile(path) as file:
        return json.load(file)


def _shapes(checkpoint):
    """Tensor's name -> shape, a list; UserError where the checkpoint cannot be read."""
    try:
        return dict(tf.train.list_variables(checkpoint))
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f'{checkpoint} is no readable checkpoint ({_first_line(error)}); name '
                        'another one.') from error


def _copy(checkpoint, folder):
    """Copies a checkpoint into `folder`, each file whole or not at all; returns its name."""
    tf.gfile.MakeDirs(folder)
    for path in tf.gfile.Glob(f'{checkpoint}.*'):
        target = os.path.join(folder, os.path.basename(path))
        tf.gfile.Copy(path, target + '.tmp', overwrite=True)
        tf.gfile.Rename(target + '.tmp', target, overwrite=True)
    return os.path.basename(checkpoint)


def _keep_only(folder, name):
    """Makes the checkpoint `name` the newest one of `folder`, and removes all others."""
    state = os.path.join(folder, 'checkpoint')
    if name:
        tf.train.update_checkpoint_state(folder, name)
    elif tf.gfile.Exists(state):
        tf.gfile.Remove(state)
    for old in tf.gfile.Glob(os.path.join(folder, 'model.ckpt-*')):
        if not os.path.basename(old).startswith(f'{name}.'):
            tf.gfile.Remove(old)


def _first_line(error):
    return str(getattr(error, 'message', error)).splitlines()[0]
