"""Checkpoints: what is in a model_dir, which weights are restored, which one was the best."""
import json
import os
import re
import time

from absl import logging
import numpy as np
import tensorflow.compat.v1 as tf

import storage
from training import optimization
from training import warm_start
from user_error import UserError
from user_error import first_line
import user_paths

EMA = 'ema'
RAW = 'raw'
_KINDS = {EMA: warm_start.AVERAGED, RAW: warm_start.UNAVERAGED}

ARCHIVE_DIR = 'archive'
_BEST_FILE = 'best_eval.json'
_DAMAGED_DIR = 'damaged'
# What TensorFlow's savers, and this program, call what is not whole yet. All else is the user's.
_UNFINISHED = re.compile(r'checkpoint\.tmp[0-9a-f]*|config\.json\.tmp|'
                         r'model\.ckpt-\d+(\..*\.(tmp|tempstate\d*)|_temp_.*)')
_REPAIR_TIMEOUT_SECS = 600


def latest(model_dir):
    """Path prefix of the newest checkpoint in `model_dir` whose files are complete, or None.

    Looks at sizes, not at contents, so that it costs little.
    """
    return _newest(model_dir, is_complete)


def latest_intact(model_dir):
    """Path prefix of the newest checkpoint in `model_dir` that can be read to its end, or None."""
    return _newest(model_dir, _is_intact)


def _newest(model_dir, is_good):
    damaged = []
    for checkpoint in _candidates(model_dir):
        if is_good(checkpoint):
            if damaged:
                logging.log_first_n(logging.WARNING, '%s is damaged; %s, the one before, is used.',
                                    1, damaged[0], checkpoint)
            return checkpoint
        damaged.append(checkpoint)
    return None


def _candidates(model_dir):
    """Path prefixes, the newest first: those that TensorFlow's `checkpoint` file lists, in its
    order, which may be somebody's choice; then what else is there, for that file may be damaged."""
    # TensorFlow finds nothing behind a double slash.
    model_dir = model_dir.rstrip('/') or '/'
    found = [path[:-len('.index')] for path in _files(model_dir, 'model.ckpt-')
             if path.endswith('.index')]
    found.sort(key=lambda path: (len(path), path), reverse=True)
    # The folder may have been moved since.
    here = [os.path.join(model_dir, os.path.basename(path)) for path in _listed(model_dir)]
    return list(dict.fromkeys(here + found))


def _listed(model_dir):
    """What the file `checkpoint` lists, first of all what TensorFlow resumes from."""
    path = os.path.join(model_dir, 'checkpoint')
    if tf.gfile.Exists(path):
        user_paths.check_input_file(path)
    try:
        state = tf.train.get_checkpoint_state(model_dir)
    except ValueError:
        state = None
    if state is None or not state.model_checkpoint_path:
        return []
    return [state.model_checkpoint_path, *reversed(state.all_model_checkpoint_paths)]


def _files(folder, prefix):
    """Paths of all files in `folder` whose names begin with `prefix`; none if it does not exist."""
    if not tf.gfile.IsDirectory(folder):
        return []
    user_paths.check_input_folder(folder)
    names = sorted(name.rstrip('/') for name in tf.gfile.ListDirectory(folder))
    return [os.path.join(folder, name) for name in names if name.startswith(prefix)]


def _files_of(checkpoint):
    return _files(os.path.dirname(checkpoint) or '.', f'{os.path.basename(checkpoint)}.')


def is_complete(checkpoint):
    """Whether the files of a checkpoint are there, and as long as they have to be."""
    if not tf.gfile.Exists(checkpoint + '.index'):
        # The first format of TensorFlow was one file.
        return tf.gfile.Exists(checkpoint)
    try:
        _check_files(checkpoint)
        reader = tf.train.load_checkpoint(checkpoint)
        dtypes = reader.get_variable_to_dtype_map()
        num_bytes = sum(np.prod(shape, dtype=np.int64) * dtypes[name].size
                        for name, shape in reader.get_variable_to_shape_map().items()
                        if dtypes[name] != tf.string)
        return num_bytes <= sum(tf.gfile.Stat(path).length for path in _files_of(checkpoint)
                                if path.startswith(f'{checkpoint}.data-'))
    except (tf.errors.OpError, ValueError, UserError):
        return False


def _is_intact(checkpoint):
    try:
        check_whole(checkpoint)
    except UserError:
        return False
    return True


def repair(model_dir):
    """Makes the newest intact checkpoint the one that TensorFlow resumes from.

    Damaged ones are moved to model_dir/damaged. What a kill has left of files that were not
    finished is removed. For the process that trains in `model_dir` alone.

    Raises:
      UserError: there are checkpoints, and none of them is intact.
    """
    for path in _files(model_dir, ''):
        if _UNFINISHED.fullmatch(os.path.basename(path)):
            remove = (tf.gfile.DeleteRecursively if tf.gfile.IsDirectory(path)
                      else tf.gfile.Remove)
            remove(path)
    archive, best = os.path.join(model_dir, ARCHIVE_DIR), best_evaluation(model_dir)
    if best and is_complete(os.path.join(archive, best['checkpoint'])):
        # A kill may have come between the two files. The rest is left to the next best: somebody
        # may be evaluating, and copying, just now.
        tf.train.update_checkpoint_state(archive, best['checkpoint'])
    candidates, checkpoint = _candidates(model_dir), latest_intact(model_dir)
    if candidates and not checkpoint:
        raise UserError(f'{candidates[0]} is damaged, and there is none before it; put a copy in '
                        f'its place, or remove what is in {model_dir} to start anew.')
    if checkpoint and [checkpoint] != _listed(model_dir)[:1]:
        go_back_to(checkpoint)


def go_back_to(checkpoint):
    """Makes `checkpoint` the one its folder resumes from; later ones go to the folder `damaged`."""
    model_dir = os.path.dirname(checkpoint)
    candidates = _candidates(model_dir)
    index = candidates.index(checkpoint)
    damaged_dir = os.path.join(model_dir, _DAMAGED_DIR)
    for path in [path for later in candidates[:index] for path in _files_of(later)]:
        tf.gfile.MakeDirs(damaged_dir)
        tf.gfile.Rename(path, os.path.join(damaged_dir, os.path.basename(path)), overwrite=True)
    tf.train.update_checkpoint_state(
        model_dir, os.path.basename(checkpoint),
        [os.path.basename(path) for path in reversed(candidates[index:])])


def one_before(checkpoint):
    """Path prefix of the newest intact checkpoint of the same folder before this, or None."""
    candidates = _candidates(os.path.dirname(checkpoint))
    earlier = candidates[candidates.index(checkpoint) + 1:]
    return next(filter(_is_intact, earlier), None)


def wait_for_repair(model_dir):
    """Waits, in a rank that shares `model_dir` with rank 0, until that has done `repair`."""
    deadline, checkpoint = time.monotonic() + _REPAIR_TIMEOUT_SECS, latest_intact(model_dir)
    while (checkpoint and [checkpoint] != _listed(model_dir)[:1]
           and time.monotonic() < deadline):
        time.sleep(1)


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

    Of a folder's checkpoints it is the newest intact one; a folder without any is a UserError.
    Whether one that is named by itself can be read is not looked at.
    """
    if not tf.gfile.IsDirectory(path):
        if os.path.lexists(path):
            # TensorFlow takes a file of that very name for a checkpoint of its oldest form.
            user_paths.check_input_file(path, f'--{flag}')
        _check_files(path)
        return path
    checkpoint = latest_intact(path)
    if not checkpoint:
        damaged = _candidates(path)
        raise UserError(
            f'{damaged[0]} is damaged, and there is no other; check --{flag}.' if damaged else
            f'{path} holds no checkpoint; check --{flag}.')
    return checkpoint


def _check_files(checkpoint):
    """Raises UserError for what is no file: reading a pipe would never end."""
    for path in _files_of(checkpoint):
        user_paths.check_input_file(path)


def check_whole(checkpoint):
    """Reads every tensor of a checkpoint; UserError if it is not there, or damaged anywhere."""
    _check_files(checkpoint)
    names = _shapes(checkpoint)
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        for name in names:
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f'{checkpoint} is damaged ({first_line(error)}); copy it again or name '
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
    """Copies `checkpoint` to model_dir/archive if its evaluation beats the one there.

    Of two evaluations the one without a --eval_name counts for more, for it is the run's own, then
    the one of more images, then that of the higher top_1: a look at a hundred images, or at other
    data, does not displace what a whole evaluation found best.

    The new files are copied first, then one file that names them is replaced, then the old ones go:
    at any moment, a kill leaves a whole checkpoint in the archive.

    Args:
      model_dir: the run's folder.
      checkpoint: path prefix of the evaluated checkpoint.
      evaluation: dict with 'step', 'top_1' and, if known, 'name' and 'num_images', kept beside the
        checkpoint in best_eval.json.

    Returns:
      whether it was the best.
    """
    archive = os.path.join(model_dir, ARCHIVE_DIR)
    best = best_evaluation(model_dir)
    if best and weight_of(best) >= weight_of(evaluation):
        if best['top_1'] < evaluation['top_1']:
            logging.info('Not archived: %s holds the checkpoint of step %d, whose evaluation '
                         'counts for more (%s images, %s).', archive, best['step'],
                         best.get('num_images', 0),
                         f"--eval_name={best['name']}" if best.get('name') else 'no --eval_name')
        return False
    name = os.path.basename(checkpoint)
    if best and best['checkpoint'] == name:
        # The same step once more, of a run that went back: not over the files that are in use.
        name += '-again'
    _copy(checkpoint, archive, name)
    with storage.whole_file(os.path.join(archive, _BEST_FILE)) as file:
        json.dump({**evaluation, 'checkpoint': name}, file, indent=2)
    _keep_only(archive, name)
    return True


def weight_of(evaluation):
    """What evaluations are compared by, see `archive_if_best`."""
    return not evaluation.get('name'), evaluation.get('num_images') or 0, evaluation['top_1']


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
    checkpoint = latest_intact(leader_dir)
    if checkpoint or latest(model_dir):
        name = checkpoint and os.path.basename(checkpoint)
        if checkpoint:
            _copy(checkpoint, model_dir, name)
        _keep_only(model_dir, name)


def best_evaluation(model_dir):
    """The evaluation of the archived checkpoint, a dict, or None."""
    path = os.path.join(model_dir, ARCHIVE_DIR, _BEST_FILE)
    if not tf.gfile.Exists(path):
        return None
    user_paths.check_input_file(path)
    try:
        with tf.gfile.GFile(path) as file:
            evaluation = json.load(file)
        for key, kind in (('checkpoint', str), ('step', int), ('top_1', (int, float))):
            if not isinstance(evaluation[key], kind):
                raise TypeError(f'{key} is {evaluation[key]}')
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is damaged ({error}); remove it, and the next evaluation is the '
                        'best again.') from error
    return evaluation


def _shapes(checkpoint):
    """Tensor's name -> shape, a list; UserError where the checkpoint cannot be read."""
    try:
        return dict(tf.train.list_variables(checkpoint))
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f'{checkpoint} is no readable checkpoint ({first_line(error)}); name '
                        'another one.') from error


def _copy(checkpoint, folder, name):
    """Copies a checkpoint into `folder`, to another name there; each file whole or not at all."""
    tf.gfile.MakeDirs(folder)
    for path in _files_of(checkpoint):
        target = os.path.join(folder, name + path[len(checkpoint):])
        tf.gfile.Copy(path, target + '.tmp', overwrite=True)
        tf.gfile.Rename(target + '.tmp', target, overwrite=True)


def _keep_only(folder, name):
    """Makes the checkpoint `name` the newest one of `folder`, and removes all others."""
    state = os.path.join(folder, 'checkpoint')
    if name:
        tf.train.update_checkpoint_state(folder, name)
    elif tf.gfile.Exists(state):
        tf.gfile.Remove(state)
    for old in _files(folder, 'model.ckpt-'):
        if not os.path.basename(old).startswith(f'{name}.'):
            tf.gfile.Remove(old)
