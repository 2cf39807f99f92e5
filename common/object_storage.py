"""Copies folders between this machine and object storage: ModelArts' OBS, or tf.gfile's."""
import os

import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from common.files import described
from common.paths import is_inside


def copy_folder(source, target):
    """Copies all files below `source` to the same places below `target`, over what is there.

    Through moxing where it can be imported, that is on ModelArts; else through tf.gfile.

    Raises:
      UserError: a folder or a file cannot be read or written, or the target is in the source.
    """
    if is_inside(target, source):
        raise UserError(f'{source} cannot be copied to {target}, which is the same folder or in '
                        'it; choose another one.')
    try:
        import moxing
    except ImportError:
        copy = _copy_by_gfile
    else:
        copy = moxing.file.copy_parallel
    try:
        copy(source, target)
    except Exception as error:  # moxing has errors of its own.
        refused = described(error)
        if refused:
            raise refused from error
        raise UserError(f'{source} cannot be copied to {target} ({first_line(error)}); check the '
                        'address and the rights.') from error


def _copy_by_gfile(source, target):
    if not tf.gfile.IsDirectory(source):
        raise FileNotFoundError(f'{source} is not a folder')
    for folder, _, names in tf.gfile.Walk(source):
        place = os.path.normpath(os.path.relpath(folder, source))
        target_folder = target if place == '.' else os.path.join(target, place)
        tf.gfile.MakeDirs(target_folder)
        for name in names:
            tf.gfile.Copy(os.path.join(folder, name), os.path.join(target_folder, name),
                          overwrite=True)
