"""Converts weights of other frameworks to checkpoints of this program, and vice versa."""
import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil

from absl import logging

from checkpoints import store
from common.errors import UserError
from common.files import readable_errors
from common.files import whole_file
from common.paths import check_input_file
from common.paths import check_output_folder
from common.stages import stage
from config import run_config
from config import run_settings
from tfrecords import class_labels
from tfrecords import schema
from weights import checkpoint_file
from weights import origin
from weights import pytorch

# Values of --to.
CHECKPOINT, TIMM, TENSORFLOW = FORMS = 'checkpoint', 'timm', 'tensorflow'
# Suffix of the directory in which the converted weights of a file are cached.
CONVERTED = '.converted'
_FILE_ENDINGS = (pytorch.SAFETENSORS, *pytorch.TORCH_ENDINGS, *checkpoint_file.ARCHIVE_ENDINGS)
_DIGITS = 16            # of the SHA-256, in directory names


def read(path, flag, timm_name='', model_name=None):
    """Returns the `NetworkWeights` of a weight file, or of a checkpoint or its directory.

    Args:
      path: path of a file or directory, or path prefix of a checkpoint.
      flag: name of the flag that `path` was given with.
      timm_name, model_name: timm's and our name of the network; '' and None to detect it.

    Raises:
      UserError: see `pytorch.read` and `checkpoint_file.read`.
    """
    path = _file_in(path)
    if _is_file(path):
        _check_file(path, flag)
        origin.file_sha256(path)
    return _read(path, flag, timm_name, model_name)


def as_checkpoint(path, flag, other_dir=None):
    """Converts a weight file to a checkpoint if necessary; returns the path of the checkpoint.

    The checkpoint is cached in the directory FILE.converted/<first digits of the SHA-256> beside
    the file, or in `other_dir`. Processes that need the same file wait for the first of them.

    Args:
      path: path of a weight file; a checkpoint or its directory is returned unchanged.
      flag: name of the flag that `path` was given with.
      other_dir: directory to use if that of the file is not writable, or None.

    Raises:
      UserError: see `read`; or no directory is writable.
    """
    path = _file_in(path)
    if not _is_file(path):
        return path
    _check_file(path, flag)
    name = os.path.join(os.path.basename(path) + CONVERTED, origin.file_sha256(path)[:_DIGITS])
    folders = [os.path.dirname(os.path.abspath(path)), *([other_dir] if other_dir else [])]
    for folder in folders:
        if os.path.isdir(os.path.join(folder, name)):
            return os.path.join(folder, name)
    folder = folders[-1]
    if os.access(folders[0], os.W_OK):
        folder = folders[0]
    elif not other_dir:
        raise UserError(f'--{flag}={path}: its directory, in which the converted weights are '
                        'cached, is not writable; convert it with python -m weights.convert '
                        f'--input={path} --output_dir=DIR, and use --{flag}=DIR.')
    target = os.path.join(folder, name)
    with readable_errors(), _locked(path):
        if not os.path.isdir(target):
            with stage(f'Converting {path} to {target}'):
                write_checkpoint(_read(path, flag), target)
    return target


def write_checkpoint(weights, folder):
    """Writes a directory that every program accepts as a model_dir, atomically."""
    folder = os.path.abspath(folder)
    partial = f'{folder}.{os.getpid()}.tmp'
    try:
        os.makedirs(partial)
        checkpoint_file.write(partial, f'model.ckpt-{weights.step}', weights, weights.averages)
        _config(weights, folder).save(partial)
        if weights.class_names:
            with whole_file(os.path.join(partial, schema.LABELS_NAME)) as file:
                file.write('\n'.join(weights.class_names) + '\n')
        os.rename(partial, folder)
    except OSError as error:
        # Without file locks, another process may have written the directory first.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(weights, form, output_dir, enable_ema=True):
    """Writes weights to a directory; returns the path of the file or directory written.

    Args:
      weights: a `NetworkWeights`.
      form: CHECKPOINT, a directory like a model_dir; TIMM, a .safetensors file; TENSORFLOW, a
        checkpoint like Google's, with moving averages of every variable.
      output_dir: directory. Unless `form` is TIMM, it must be empty or not exist.
      enable_ema: with TIMM, whether to write the moving averages if there are any.
    """
    with readable_errors():
        if form == CHECKPOINT:
            write_checkpoint(weights, output_dir)
            return output_dir
        os.makedirs(output_dir, exist_ok=True)
        if form == TENSORFLOW:
            checkpoint_file.write(output_dir, 'model.ckpt', weights, weights.best())
            return output_dir
        path = os.path.join(output_dir, origin.timm_name(weights.model_name) + pytorch.SAFETENSORS)
        pytorch.write(weights, path, enable_ema)
        return path


def check_output(output_dir, form):
    """Raises UserError if `write` cannot write to output_dir or would mix its files with others."""
    if '://' in output_dir:
        raise UserError(f'--output_dir={output_dir}: not a local directory; name one, and copy the '
                        'result.')
    check_output_folder(output_dir, '--output_dir')
    if form != TIMM and os.path.isdir(output_dir) and os.listdir(output_dir):
        raise UserError(f'--output_dir={output_dir}: not empty; name a new directory.')


def _read(path, flag, timm_name='', model_name=None):
    if _is_file(path) and not path.endswith(checkpoint_file.ARCHIVE_ENDINGS):
        return pytorch.read(path, timm_name, model_name)
    return checkpoint_file.read(path, flag, timm_name, model_name)


def _is_file(path):
    return path.endswith(_FILE_ENDINGS) and not os.path.isdir(path)


def _check_file(path, flag):
    if '://' in path:
        raise UserError(f'--{flag}={path}: not a local file; copy it to this machine first.')
    check_input_file(path, f'--{flag}')


def _file_in(path):
    """Returns the only weight file of a directory from timm's hub; other paths unchanged."""
    if not os.path.isdir(path) or store.files(path, 'checkpoint') or store.candidates(path):
        return path
    paths = [each for each in store.files(path, '') if _is_file(each)]
    # The hub also has the same weights as pytorch_model.bin.
    paths = [each for each in paths if each.endswith(pytorch.SAFETENSORS)] or paths
    return paths[0] if len(paths) == 1 else path


@contextlib.contextmanager
def _locked(path):
    """Holds an exclusive lock on a file; does without on file systems that do not support locks.

    Two processes may then convert the same file, which is safe: directories are renamed when they
    are complete.
    """
    with open(path, 'rb') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logging.info('%s: continuing without a file lock (%s).', path, error.strerror)
        yield


def _config(weights, folder):
    """Returns the `Config` that makes a directory of weights usable as a model_dir."""
    config = run_config.from_values({
        'mode': run_settings.EVAL, 'model_dir': folder, 'data_dir': schema.SYNTHETIC_DIR,
        'model_name': weights.model_name, 'num_label_classes': weights.num_classes,
        'normalization': weights.normalization,
        'moving_average_decay': 0.9999 if weights.averages else 0.0})
    config = run_config.replaced(config, 'data', data_dir='')
    return dataclasses.replace(config, class_names=weights.class_names)


def named(weights, path):
    """Returns the weights with class names read from a file, the value of --class_names."""
    names = class_labels.read(path, 'class_names')
    if len(names) == weights.num_classes - 1 == schema.IMAGENET.num_classes:
        names = (class_labels.BACKGROUND, *names)
    if len(names) != weights.num_classes:
        raise UserError(f'--class_names={path}: contains {len(names)} names, but the network has '
                        f'{weights.num_classes} classes; name another file.')
    return dataclasses.replace(weights, class_names=names)
