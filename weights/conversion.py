"""Weights of other frameworks as a checkpoint of this program, and the other way round."""
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
# Ends the name of the folder of what a file was converted to on the way.
CONVERTED = '.converted'
_FILE_ENDINGS = (pytorch.SAFETENSORS, *pytorch.TORCH_ENDINGS, *checkpoint_file.ARCHIVE_ENDINGS)
_DIGITS = 16            # of the SHA-256, in names of folders


def read(path, flag, timm_name='', model_name=None):
    """Returns the `NetworkWeights` of a file, a folder or a path prefix of a checkpoint.

    Args:
      path: what `flag` names.
      timm_name, model_name: what is given of the network; '' and None to find it out.

    Raises:
      UserError: see `pytorch.read` and `checkpoint_file.read`.
    """
    path = _file_in(path)
    if _is_file(path):
        _check_file(path, flag)
        origin.file_sha256(path)
    return _read(path, flag, timm_name, model_name)


def as_checkpoint(path, flag, other_dir=None):
    """Returns `path`, or the folder of the checkpoint that the file at `path` was converted to.

    That is FILE.converted/<beginning of the SHA-256>, or the same in another folder; what is there
    already is used again. Processes that need the same file wait for the first of them.

    Args:
      path: what `flag` names: a file of weights, or a checkpoint or its folder, which are returned.
      flag: name.
      other_dir: folder that is used if that of the file cannot be written to, or None.

    Raises:
      UserError: see `read`; or no folder can be written to.
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
        raise UserError(f'--{flag}={path}: its folder, for the converted weights, cannot be '
                        'written to; convert it with python -m weights.convert '
                        f'--input={path} --output_dir=DIR, and name DIR.')
    target = os.path.join(folder, name)
    with readable_errors(), _locked(path):
        if not os.path.isdir(target):
            with stage(f'Converting {path} to {target}'):
                write_checkpoint(_read(path, flag), target)
    return target


def write_checkpoint(weights, folder):
    """Writes a folder that every program takes for that of a run, whole or not at all."""
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
        # Another process was faster, where there are no locks.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(weights, form, output_dir, enable_ema=True):
    """Writes weights to a folder in one of FORMS; returns the path of what was written.

    Args:
      weights: a `NetworkWeights`.
      form: CHECKPOINT, a folder as of a run; TIMM, a .safetensors file; TENSORFLOW, a checkpoint
        as Google published them, moving averages of every variable included.
      output_dir: folder. Unless `form` is TIMM it is empty or does not exist.
      enable_ema: whether the moving averages are written for timm, where there are any.
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
    """UserError where `write` could not write to a folder, or would mix its files with others."""
    if '://' in output_dir:
        raise UserError(f'--output_dir={output_dir}: not a folder of this machine; name one, and '
                        'copy what is in it.')
    check_output_folder(output_dir, '--output_dir')
    if form != TIMM and os.path.isdir(output_dir) and os.listdir(output_dir):
        raise UserError(f'--output_dir={output_dir}: not empty; name a new folder.')


def _read(path, flag, timm_name='', model_name=None):
    if _is_file(path) and not path.endswith(checkpoint_file.ARCHIVE_ENDINGS):
        return pytorch.read(path, timm_name, model_name)
    return checkpoint_file.read(path, flag, timm_name, model_name)


def _is_file(path):
    return path.endswith(_FILE_ENDINGS) and not os.path.isdir(path)


def _check_file(path, flag):
    if '://' in path:
        raise UserError(f'--{flag}={path}: not a file of this machine; copy it here first.')
    check_input_file(path, f'--{flag}')


def _file_in(path):
    """The only file of weights in a folder that holds no checkpoint, as timm's hub has it."""
    if not os.path.isdir(path) or store.files(path, 'checkpoint') or store.candidates(path):
        return path
    paths = [each for each in store.files(path, '') if _is_file(each)]
    # The hub has the same weights as pytorch_model.bin, too.
    paths = [each for each in paths if each.endswith(pytorch.SAFETENSORS)] or paths
    return paths[0] if len(paths) == 1 else path


@contextlib.contextmanager
def _locked(path):
    """Waits for, and holds, the lock of a file; goes on without on file systems that have none.

    Two processes that convert the same file do no harm, as folders are renamed when they are whole.
    """
    with open(path, 'rb') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logging.info('%s: not locked (%s).', path, error.strerror)
        yield


def _config(weights, folder):
    """The `Config` that lets other programs take a folder of weights for that of a run."""
    config = run_config.from_values({
        'mode': run_settings.EVAL, 'model_dir': folder, 'data_dir': schema.SYNTHETIC_DIR,
        'model_name': weights.model_name, 'num_label_classes': weights.num_classes,
        'normalization': weights.normalization,
        'moving_average_decay': 0.9999 if weights.averages else 0.0})
    config = run_config.replaced(config, 'data', data_dir='')
    return dataclasses.replace(config, class_names=weights.class_names)


def named(weights, path):
    """The same weights with the names of their classes in a file, as --class_names names it."""
    names = class_labels.read(path, 'class_names')
    if len(names) == weights.num_classes - 1 == schema.IMAGENET.num_classes:
        names = (class_labels.BACKGROUND, *names)
    if len(names) != weights.num_classes:
        raise UserError(f'--class_names={path} has {len(names)} names, and there are '
                        f'{weights.num_classes} classes; name another file.')
    return dataclasses.replace(weights, class_names=names)
