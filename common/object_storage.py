"""Lists and copies directories in object storage, through moxing (ModelArts' OBS) or tf.gfile."""
import os

import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from common.files import described
from common.files import size_text
from common.paths import is_inside
from common.paths import is_inside_any
from common.stages import stage


def copy_folder(source, target, left_out=()):
    """Copies all files below `source` to the same paths below `target`, overwriting files there.

    Uses moxing if it is installed, as on ModelArts; else tf.gfile, which skips files that exist in
    `target` with the same size and are not older.

    Args:
      source, target: str, local or remote.
      left_out: directories and files below `source` that are not copied.

    Raises:
      UserError: a file cannot be read or written, or the target is in the source.
    """
    if is_inside(target, source):
        raise UserError(f'{target}: a copy of {source} cannot be in {source} itself; choose '
                        'another directory.')
    left_out = [path for path in left_out if tf.gfile.Exists(path) and is_inside(path, source)]
    with stage(f'Copying {_described(source, left_out)} to {target}'):
        try:
            _copy(source, target, left_out)
        except Exception as error:  # moxing has errors of its own.
            refused = described(error)
            if refused:
                raise refused from error
            raise UserError(f'{source}: cannot be copied to {target} ({first_line(error)}); check '
                            'the address and the permissions.') from error


def names_in(folder):
    """Returns the names of the files and directories in a local or remote directory."""
    names = _file_api('list_directory', tf.gfile.ListDirectory)(folder)
    return [name.rstrip('/') for name in names]


def is_folder(path):
    return _file_api('is_directory', tf.gfile.IsDirectory)(path)


def _file_api(name, otherwise):
    """A function of moxing.file, or `otherwise` where moxing is not installed."""
    try:
        import moxing
    except ImportError:
        return otherwise
    return getattr(moxing.file, name)


def _described(source, left_out):
    """Returns a local directory with its size; summing up a remote one takes as long as copying.
    """
    if '://' in source or not tf.gfile.IsDirectory(source):
        return source
    return f'{source} ({size_text(source, left_out)})'


def _copy(source, target, left_out):
    try:
        import moxing
    except ImportError:
        _copy_by_gfile(source, target, left_out)
        return
    if not left_out:
        moxing.file.copy_parallel(source, target)
        return
    # moxing cannot exclude files from a copy.
    for name in tf.gfile.ListDirectory(source):
        path, copied_path = os.path.join(source, name), os.path.join(target, name)
        if is_inside_any(path, left_out):
            continue
        if tf.gfile.IsDirectory(path):
            _copy(path, copied_path, [each for each in left_out if is_inside(each, path)])
        else:
            moxing.file.copy(path, copied_path)


def _copy_by_gfile(source, target, left_out):
    if not tf.gfile.IsDirectory(source):
        raise FileNotFoundError(f'{source} is not a directory')
    for folder, _, names in tf.gfile.Walk(source):
        if is_inside_any(folder, left_out):
            continue
        place = os.path.normpath(os.path.relpath(folder, source))
        target_folder = target if place == '.' else os.path.join(target, place)
        tf.gfile.MakeDirs(target_folder)
        for name in names:
            path, copied_path = os.path.join(folder, name), os.path.join(target_folder, name)
            if not is_inside_any(path, left_out) and not _is_copied(path, copied_path):
                tf.gfile.Copy(path, copied_path, overwrite=True)


def _is_copied(path, copied_path):
    if not tf.gfile.Exists(copied_path):
        return False
    here, there = tf.gfile.Stat(path), tf.gfile.Stat(copied_path)
    return here.length == there.length and here.mtime_nsec <= there.mtime_nsec
