"""Finds, verifies, copies and removes the checkpoints of a directory."""
import contextlib
import os
import re
import time

from absl import logging
import numpy as np
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from common.files import check_still_there
from common.files import literal
from common.files import renamed_when_whole
from common.paths import check_input_file
from common.paths import check_input_folder

ARCHIVE_DIR = 'archive'
# The settings of a run, stored with its checkpoints (see `config.run_config`).
CONFIG_FILE = 'config.json'
# Names of unfinished files of TensorFlow's savers and of this program. Other files are the user's.
_UNFINISHED = re.compile(
    r'(checkpoint|config\.json|best_eval\.json|model_params\.txt)\.tmp[0-9a-f]*|'
    r'model\.ckpt-\d+(-again)*(\..*\.(tmp[0-9a-f]*|tempstate\d*)|_temp_.*)')
_POLL_SECS = 1


def config_folders(folder):
    """Returns the directories that may contain the config.json of a directory's checkpoints.

    The config.json of a run's archive may also be in the parent directory.
    """
    folder = folder.rstrip('/') or '/'
    if os.path.basename(folder) == ARCHIVE_DIR:
        return [folder, os.path.dirname(folder) or '.']
    return [folder]


class Saver(tf.train.Saver):
    """A tf.train.Saver that also restores checkpoints whose path looks like a pattern."""

    def restore(self, sess, save_path):
        with literal(save_path) as path:
            super().restore(sess, path)


@contextlib.contextmanager
def _reader(checkpoint):
    with literal(checkpoint) as path:
        yield tf.train.load_checkpoint(path)


def latest(model_dir):
    """Returns the path prefix of the newest complete checkpoint in `model_dir`, or None.

    Checks the sizes of files but not their content, and is therefore fast.
    """
    return _newest(model_dir, is_complete)


def arriving(model_dir, timeout_secs, awaited, check=lambda: None):
    """Yields the newest checkpoint, then each new one, until none arrives for `timeout_secs`.

    Args:
      model_dir: directory of the checkpoints.
      timeout_secs: value of --eval_timeout; None for no limit.
      awaited: function of the last checkpoint, or None -> description of the next one for the log.
      check: function that is called between polls; its exceptions end the wait.
    """
    limit = ('without a timeout (--eval_timeout)' if timeout_secs is None else
             f'for up to {timeout_secs} seconds (--eval_timeout)')
    last, last_secs, is_told = None, time.monotonic(), False
    was_there = tf.gfile.IsDirectory(model_dir)
    while timeout_secs is None or time.monotonic() - last_secs < timeout_secs:
        checkpoint = latest(model_dir)
        if checkpoint and checkpoint != last:
            yield checkpoint
            last, last_secs, is_told = checkpoint, time.monotonic(), False
            continue
        if not is_told:
            logging.info('Waiting for %s in %s, %s; --eval_once evaluates the newest and exits.',
                         awaited(last), model_dir, limit)
            is_told = True
        time.sleep(_POLL_SECS)
        check()
        if was_there:
            check_still_there(model_dir)
        was_there = tf.gfile.IsDirectory(model_dir)


def latest_intact(model_dir):
    """Returns the path prefix of the newest checkpoint that can be read to its end, or None."""
    return _newest(model_dir, is_intact)


def _newest(model_dir, is_good):
    damaged = []
    for checkpoint in candidates(model_dir):
        if is_good(checkpoint):
            if damaged:
                logging.log_first_n(logging.WARNING, '%s is corrupt; using %s, the previous one.',
                                    1, damaged[0], checkpoint)
            return checkpoint
        damaged.append(checkpoint)
    return None


def candidates(model_dir):
    """Returns the path prefixes of all checkpoints, newest first; they may be corrupt.

    Checkpoints in TensorFlow's `checkpoint` file come first, in its order, which a user may have
    changed. Others follow, because that file may be corrupt.
    """
    # TensorFlow finds no checkpoint behind a double slash.
    model_dir = model_dir.rstrip('/') or '/'
    found = [path[:-len('.index')] for path in files(model_dir, 'model.ckpt-')
             if path.endswith('.index')]
    found.sort(key=step_in_name, reverse=True)
    # The directory may have been moved since.
    here = [os.path.join(model_dir, os.path.basename(path)) for path in listed(model_dir)]
    return list(dict.fromkeys(here + found))


def listed(model_dir):
    """Returns the paths in the file `checkpoint`; TensorFlow resumes from the first one."""
    path = os.path.join(model_dir, 'checkpoint')
    if tf.gfile.Exists(path):
        check_input_file(path)
    try:
        state = tf.train.get_checkpoint_state(model_dir)
    except ValueError:
        state = None
    if state is None or not state.model_checkpoint_path:
        return []
    return [state.model_checkpoint_path, *reversed(state.all_model_checkpoint_paths)]


def newest_listed(model_dir):
    """Returns the path that TensorFlow resumes from, or '', without checking that it exists."""
    return next(iter(listed(model_dir)), '')


def files(folder, prefix):
    """Returns the paths of all files in `folder` with a prefix; none if it does not exist."""
    if not tf.gfile.IsDirectory(folder):
        return []
    check_input_folder(folder)
    names = sorted(name.rstrip('/') for name in tf.gfile.ListDirectory(folder))
    return [os.path.join(folder, name) for name in names if name.startswith(prefix)]


def files_of(checkpoint):
    folder, name = os.path.split(checkpoint)
    return [path for path in files(folder or '.', f'{name}.')
            if not _UNFINISHED.fullmatch(os.path.basename(path))]


def unfinished(folder):
    """Returns the paths of files and directories in `folder` that a killed process left unfinished.
    """
    return [path for path in files(folder, '') if _UNFINISHED.fullmatch(os.path.basename(path))]


def remove_unfinished(folder):
    for path in unfinished(folder):
        is_folder = tf.gfile.IsDirectory(path) and not os.path.islink(path)
        (tf.gfile.DeleteRecursively if is_folder else tf.gfile.Remove)(path)


def is_complete(checkpoint):
    """Returns whether the files of a checkpoint exist in full length."""
    if not tf.gfile.Exists(checkpoint + '.index'):
        # TensorFlow's first checkpoint format is a single file.
        return tf.gfile.Exists(checkpoint)
    try:
        check_files(checkpoint)
        with _reader(checkpoint) as reader:
            dtypes = reader.get_variable_to_dtype_map()
            num_bytes = sum(np.prod(shape, dtype=np.int64) * dtypes[name].size
                            for name, shape in reader.get_variable_to_shape_map().items()
                            if dtypes[name] != tf.string)
        return num_bytes <= sum(tf.gfile.Stat(path).length for path in files_of(checkpoint)
                                if path.startswith(f'{checkpoint}.data-'))
    except (tf.errors.OpError, ValueError, UserError):
        return False


def is_intact(checkpoint):
    try:
        verify(checkpoint)
    except UserError:
        return False
    return True


def step_in_name(checkpoint):
    """Returns the global step in the name of a checkpoint; -1 if its name has none."""
    match = re.search(r'-(\d+)$', checkpoint)
    return int(match.group(1)) if match else -1


def add_newest(checkpoint, keep_max):
    """Lists `checkpoint` as the newest of its directory; removes the oldest beyond `keep_max`."""
    folder, name = os.path.split(checkpoint)
    earlier = [os.path.basename(path) for path in reversed(listed(folder))]
    names = [each for each in dict.fromkeys(earlier)
             if each != name and tf.gfile.Exists(os.path.join(folder, f'{each}.index'))] + [name]
    # The list is written first, so that a kill leaves no name of a removed checkpoint in it.
    name_in_state(folder, names[-keep_max:])
    for old in names[:-keep_max]:
        remove(os.path.join(folder, old))


def name_in_state(folder, names):
    """Writes the file `checkpoint` of a directory with the names of checkpoints, newest last."""
    # The file has bare names, so that the directory can be moved. TensorFlow resolves a relative
    # path against the working directory if the directory itself is relative or remote.
    paths = names if os.path.isabs(folder) else [os.path.join(folder, name) for name in names]
    tf.train.update_checkpoint_state(folder, paths[-1], list(paths))


def remove(checkpoint):
    for path in files_of(checkpoint):
        tf.gfile.Remove(path)


def step_of(checkpoint):
    """Returns the global step of a checkpoint, from its variable or else its name; 0 if unknown."""
    if not checkpoint:
        return 0
    # For a corrupt checkpoint, the run later falls back to the previous one.
    with contextlib.suppress(tf.errors.OpError, ValueError), _reader(checkpoint) as reader:
        if reader.has_tensor(tf.GraphKeys.GLOBAL_STEP):
            return int(reader.get_tensor(tf.GraphKeys.GLOBAL_STEP))
    return max(0, step_in_name(checkpoint))


def find(path, flag):
    """Returns the path prefix of the checkpoint that a flag names, directly or by its directory.

    For a directory, that is the newest intact checkpoint. A checkpoint that is named directly is
    not verified.

    Raises:
      UserError: the directory has no intact checkpoint.
    """
    if not tf.gfile.IsDirectory(path):
        if os.path.lexists(path):
            # TensorFlow reads a file of this name as a checkpoint of its first format.
            check_input_file(path, f'--{flag}')
        check_files(path)
        return path
    checkpoint = latest_intact(path)
    if not checkpoint:
        damaged = candidates(path)
        raise UserError(
            f'{damaged[0]}: corrupt, and no other checkpoint exists; check --{flag}.' if damaged
            else f'{path}: no checkpoint found; check --{flag}.')
    return checkpoint


def check_files(checkpoint):
    """Raises UserError unless all files of a checkpoint are regular files."""
    for path in files_of(checkpoint):
        check_input_file(path)


def verify(checkpoint):
    """Reads every tensor of a checkpoint; UserError if it is missing or corrupt."""
    for _ in tensors(checkpoint):
        pass


def not_finite(checkpoint, names=None):
    """Returns the names of a checkpoint's tensors that contain NaN or infinity.

    Args:
      checkpoint: path prefix.
      names: of the tensors to check; None for all.
    """
    # A finite sum proves that all elements are finite; sums of finite elements rarely overflow.
    with np.errstate(over='ignore', invalid='ignore'):
        return [name for name, value in tensors(checkpoint, names)
                if np.issubdtype(value.dtype, np.floating)
                and not np.isfinite(np.sum(value)) and not np.isfinite(value).all()]


def tensors(checkpoint, names=None):
    """Yields the name and array of each tensor of a checkpoint, or of the given names.

    Raises:
      UserError: the checkpoint is missing or corrupt.
    """
    check_files(checkpoint)
    names = names or shapes(checkpoint)
    try:
        with _reader(checkpoint) as reader:
            for name in names:
                yield name, reader.get_tensor(name)
    except (tf.errors.OpError, ValueError) as error:
        raise unreadable(checkpoint, f'corrupt ({first_line(error)}); copy it again or name '
                         'another one') from error


def shapes(checkpoint):
    """Returns tensor name -> shape (a list); UserError if the checkpoint cannot be read."""
    try:
        with literal(checkpoint) as path:
            return dict(tf.train.list_variables(path))
    except (tf.errors.OpError, ValueError) as error:
        raise unreadable(checkpoint, f'not a readable checkpoint ({first_line(error)}); name '
                         'another one') from error


def unreadable(checkpoint, fault=''):
    """Returns a UserError that reports `fault`, or that the checkpoint does not exist."""
    if not files_of(checkpoint) and not tf.gfile.Exists(checkpoint):
        fault = ('not a readable checkpoint: it does not exist or has been removed; name another '
                 'one, or train with a larger --keep_checkpoint_max')
    return UserError(f'{checkpoint}: {fault}.')


def copy(checkpoint, folder, name):
    """Copies a checkpoint into `folder` under a name; copies all of its files or none.

    Raises:
      UserError: the checkpoint does not exist.
    """
    paths, copies = files_of(checkpoint), []
    if not paths:
        raise unreadable(checkpoint)
    tf.gfile.MakeDirs(folder)
    try:
        for path in paths:
            target = os.path.join(folder, name + path[len(checkpoint):])
            with renamed_when_whole(target) as partial_path:
                tf.gfile.Copy(path, partial_path, overwrite=True)
            copies.append(target)
    except BaseException:
        for target in copies:
            tf.gfile.Remove(target)
        raise


def keep_only(folder, name):
    """Makes the checkpoint `name` the newest of `folder`, and removes all others."""
    state = os.path.join(folder, 'checkpoint')
    if name:
        name_in_state(folder, [name])
    elif tf.gfile.Exists(state):
        tf.gfile.Remove(state)
    for old in files(folder, 'model.ckpt-'):
        if not os.path.basename(old).startswith(f'{name}.'):
            tf.gfile.Remove(old)
