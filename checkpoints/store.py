"""Checkpoints: what is in a model_dir, which weights are restored, which one was the best."""
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
# Beside the checkpoints of a run: its settings, see `config.run_config`.
CONFIG_FILE = 'config.json'
# What TensorFlow's savers, and this program, call what is not whole yet. All else is the user's.
_UNFINISHED = re.compile(
    r'(checkpoint|config\.json|best_eval\.json|model_params\.txt)\.tmp[0-9a-f]*|'
    r'model\.ckpt-\d+(-again)*(\..*\.(tmp[0-9a-f]*|tempstate\d*)|_temp_.*)')
_POLL_SECS = 1


class Saver(tf.train.Saver):
    """TensorFlow's, which also restores checkpoints whose path looks like a pattern."""

    def restore(self, sess, save_path):
        with literal(save_path) as path:
            super().restore(sess, path)


@contextlib.contextmanager
def _reader(checkpoint):
    with literal(checkpoint) as path:
        yield tf.train.load_checkpoint(path)


def latest(model_dir):
    """Path prefix of the newest checkpoint in `model_dir` whose files are complete, or None.

    Looks at sizes, not at contents, so that it costs little.
    """
    return _newest(model_dir, is_complete)


def arriving(model_dir, timeout_secs, awaited, check=lambda: None):
    """Yields the newest checkpoint, then each that comes, until none has come for --eval_timeout.

    Args:
      model_dir: folder of the checkpoints.
      timeout_secs: value of --eval_timeout; None for no limit.
      awaited: function of the last checkpoint, or None -> what the log says is waited for.
      check: function that is called between two looks; what it raises ends the wait.
    """
    limit = ('without a limit, which --eval_timeout sets' if timeout_secs is None else
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
            logging.info('Waiting for %s in %s, %s; --eval_once evaluates the newest one and ends.',
                         awaited(last), model_dir, limit)
            is_told = True
        time.sleep(_POLL_SECS)
        check()
        if was_there:
            check_still_there(model_dir)
        was_there = tf.gfile.IsDirectory(model_dir)


def latest_intact(model_dir):
    """Path prefix of the newest checkpoint in `model_dir` that can be read to its end, or None."""
    return _newest(model_dir, is_intact)


def _newest(model_dir, is_good):
    damaged = []
    for checkpoint in candidates(model_dir):
        if is_good(checkpoint):
            if damaged:
                logging.log_first_n(logging.WARNING, '%s is damaged; %s, the one before, is used.',
                                    1, damaged[0], checkpoint)
            return checkpoint
        damaged.append(checkpoint)
    return None


def candidates(model_dir):
    """Path prefixes, the newest first: those that TensorFlow's `checkpoint` file lists, in its
    order, which may be somebody's choice; then what else is there, for that file may be damaged."""
    # TensorFlow finds nothing behind a double slash.
    model_dir = model_dir.rstrip('/') or '/'
    found = [path[:-len('.index')] for path in files(model_dir, 'model.ckpt-')
             if path.endswith('.index')]
    found.sort(key=step_in_name, reverse=True)
    # The folder may have been moved since.
    here = [os.path.join(model_dir, os.path.basename(path)) for path in listed(model_dir)]
    return list(dict.fromkeys(here + found))


def listed(model_dir):
    """What the file `checkpoint` lists, first of all what TensorFlow resumes from."""
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
    """What TensorFlow resumes from, or ''; not looked for, unlike tf.train.latest_checkpoint."""
    return next(iter(listed(model_dir)), '')


def files(folder, prefix):
    """Paths of all files in `folder` whose names begin with `prefix`; none if it does not exist."""
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
    """Paths of the files and folders in `folder` that were not whole when a process was killed."""
    return [path for path in files(folder, '') if _UNFINISHED.fullmatch(os.path.basename(path))]


def remove_unfinished(folder):
    for path in unfinished(folder):
        is_folder = tf.gfile.IsDirectory(path) and not os.path.islink(path)
        (tf.gfile.DeleteRecursively if is_folder else tf.gfile.Remove)(path)


def is_complete(checkpoint):
    """Whether the files of a checkpoint are there, and as long as they have to be."""
    if not tf.gfile.Exists(checkpoint + '.index'):
        # The first format of TensorFlow was one file.
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
    """Makes `checkpoint` the newest that its folder names; removes the oldest beyond `keep_max`."""
    folder, name = os.path.split(checkpoint)
    earlier = [os.path.basename(path) for path in reversed(listed(folder))]
    names = [each for each in dict.fromkeys(earlier)
             if each != name and tf.gfile.Exists(os.path.join(folder, f'{each}.index'))] + [name]
    # First, so that a kill in between leaves no name of a checkpoint that is gone.
    name_in_state(folder, names[-keep_max:])
    for old in names[:-keep_max]:
        remove(os.path.join(folder, old))


def name_in_state(folder, names):
    """Writes the file `checkpoint` of a folder: names of checkpoints there, the newest last."""
    # The file keeps bare names, so that the folder can be moved. TensorFlow takes a relative path
    # for one from the working directory, even beside a relative or remote folder.
    paths = names if os.path.isabs(folder) else [os.path.join(folder, name) for name in names]
    tf.train.update_checkpoint_state(folder, paths[-1], list(paths))


def remove(checkpoint):
    for path in files_of(checkpoint):
        tf.gfile.Remove(path)


def step_of(checkpoint):
    """The global step a checkpoint was saved at; 0 for None or if it does not say.

    Its variable says it, or else its name.
    """
    if not checkpoint:
        return 0
    # One that is damaged is rolled back later.
    with contextlib.suppress(tf.errors.OpError, ValueError), _reader(checkpoint) as reader:
        if reader.has_tensor(tf.GraphKeys.GLOBAL_STEP):
            return int(reader.get_tensor(tf.GraphKeys.GLOBAL_STEP))
    return max(0, step_in_name(checkpoint))


def find(path, flag):
    """Path prefix of the checkpoint that a flag names, by itself or by its folder.

    Of a folder's checkpoints it is the newest intact one; a folder without any is a UserError.
    Whether one that is named by itself can be read is not looked at.
    """
    if not tf.gfile.IsDirectory(path):
        if os.path.lexists(path):
            # TensorFlow takes a file of that very name for a checkpoint of its oldest form.
            check_input_file(path, f'--{flag}')
        check_files(path)
        return path
    checkpoint = latest_intact(path)
    if not checkpoint:
        damaged = candidates(path)
        raise UserError(
            f'{damaged[0]} is damaged, and there is no other; check --{flag}.' if damaged else
            f'{path} holds no checkpoint; check --{flag}.')
    return checkpoint


def check_files(checkpoint):
    """Raises UserError for what is no file: reading a pipe would never end."""
    for path in files_of(checkpoint):
        check_input_file(path)


def verify(checkpoint):
    """Reads every tensor of a checkpoint; UserError if it is not there, or damaged anywhere."""
    for _ in tensors(checkpoint):
        pass


def not_finite(checkpoint, names=None):
    """Returns the names of the tensors of a checkpoint that hold NaN or an infinity.

    Args:
      checkpoint: path prefix.
      names: of the tensors to look at; None for all.
    """
    # The sum shows a non-finite number at once; sums that overflow by themselves are rare.
    with np.errstate(over='ignore', invalid='ignore'):
        return [name for name, value in tensors(checkpoint, names)
                if np.issubdtype(value.dtype, np.floating)
                and not np.isfinite(np.sum(value)) and not np.isfinite(value).all()]


def tensors(checkpoint, names=None):
    """Yields name and array of each tensor of a checkpoint, or of those of some names.

    Raises:
      UserError: the checkpoint is not there, or damaged anywhere.
    """
    check_files(checkpoint)
    names = names or shapes(checkpoint)
    try:
        with _reader(checkpoint) as reader:
            for name in names:
                yield name, reader.get_tensor(name)
    except (tf.errors.OpError, ValueError) as error:
        raise unreadable(checkpoint, f'is damaged ({first_line(error)}); copy it again or name '
                         'another one') from error


def shapes(checkpoint):
    """Tensor's name -> shape, a list; UserError where the checkpoint cannot be read."""
    try:
        with literal(checkpoint) as path:
            return dict(tf.train.list_variables(path))
    except (tf.errors.OpError, ValueError) as error:
        raise unreadable(checkpoint, f'is no readable checkpoint ({first_line(error)}); name '
                         'another one') from error


def unreadable(checkpoint, fault=''):
    """The UserError for a checkpoint that has a fault, or that is not there."""
    if not files_of(checkpoint) and not tf.gfile.Exists(checkpoint):
        fault = ('is no readable checkpoint: it is not there, or was removed meanwhile; name '
                 'another one, or train with a larger --keep_checkpoint_max')
    return UserError(f'{checkpoint} {fault}.')


def copy(checkpoint, folder, name):
    """Copies a checkpoint into `folder`, to another name there; all of it or nothing.

    Raises:
      UserError: it is not there.
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
    """Makes the checkpoint `name` the newest one of `folder`, and removes all others."""
    state = os.path.join(folder, 'checkpoint')
    if name:
        name_in_state(folder, [name])
    elif tf.gfile.Exists(state):
        tf.gfile.Remove(state)
    for old in files(folder, 'model.ckpt-'):
        if not os.path.basename(old).startswith(f'{name}.'):
            tf.gfile.Remove(old)
