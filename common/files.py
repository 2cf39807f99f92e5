"""Atomic writes, errors of the file system as one sentence, and the lock of a folder."""
import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile

from absl import logging
import tensorflow.compat.v1 as tf

from common.errors import DiskFullError
from common.errors import UserError
from common.errors import first_line
from common.paths import LOCK_FILE
from common.paths import check_file_if_any
from common.paths import check_no_link
from common.paths import is_inside_any
from common.quantities import bytes_text

PARTIAL = '.tmp'    # ends the name of a file that is being written

_MAKE_ROOM = 'make room'
_CHOOSE = 'correct the rights, or choose another folder'
_PUT_BACK = 'put back what was removed, renamed or replaced meanwhile'
_RECONNECT = 'look after the file server'
# Error number -> cure. TensorFlow's errors have no number; their messages have its text.
_CURES = {errno.ENOSPC: _MAKE_ROOM, errno.EDQUOT: _MAKE_ROOM, errno.EROFS: _CHOOSE,
          errno.EACCES: _CHOOSE, errno.EPERM: _CHOOSE,
          errno.EFBIG: 'raise the limit of file sizes (ulimit -f)',
          errno.EMFILE: 'raise the limit of open files (ulimit -n)',
          errno.ENOENT: _PUT_BACK, errno.ENOTDIR: _PUT_BACK, errno.EISDIR: _PUT_BACK,
          errno.EIO: 'look after the disk', errno.ENODEV: 'look after the disk',
          errno.ESTALE: _RECONNECT, errno.ENOTCONN: _RECONNECT, errno.ETIMEDOUT: _RECONNECT,
          errno.ELOOP: 'correct the links, which lead to each other',
          errno.ENAMETOOLONG: 'choose a shorter path'}


@contextlib.contextmanager
def renamed_when_whole(path, folder=None):
    """Gives a temporary path to write to, and renames that file to `path` when the block ends.

    An existing file stays until then. If the block raises, the temporary file is removed; if the
    process is killed, it stays behind and the next attempt overwrites it.

    Args:
      path: str, local or remote.
      folder: str, where the temporary file `<name>.tmp` lies, on the same file system; default:
        beside `path`.
    """
    partial_path = path + PARTIAL
    if folder is not None:
        partial_path = os.path.join(folder, os.path.basename(partial_path))
    if os.path.islink(partial_path):
        # What is written would be written to where it leads.
        os.remove(partial_path)
    try:
        yield partial_path
        tf.gfile.Rename(partial_path, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            tf.gfile.Remove(partial_path)
        raise


@contextlib.contextmanager
def whole_file(path, mode='w'):
    """Gives a file to write; `path` becomes that file when the block ends, or stays as it is.

    Leaves no other file behind, except `path`.tmp if the process is killed.
    """
    with renamed_when_whole(path) as partial_path, tf.gfile.GFile(partial_path, mode) as file:
        yield file


def described(error):
    """The UserError of what a file system refused, or None for an error of another kind.

    Args:
      error: an exception of TensorFlow or of Python.
    """
    if not isinstance(error, (tf.errors.OpError, OSError)):
        return None
    text = ' '.join((getattr(error, 'message', '') or str(error)).splitlines()[:1])
    if isinstance(error, OSError):
        # A file that is open already has no name here.
        text = '; '.join(filter(None, (error.filename, error.strerror)))
    for number, cure in _CURES.items():
        if text.endswith(os.strerror(number)):
            kind = DiskFullError if cure == _MAKE_ROOM else UserError
            return kind(f'{text}: {cure}, then start again; what was saved before is whole.')
    return None


def read_error(path, error):
    """The UserError of a file that the system cannot read, whatever is in it.

    Args:
      error: an exception of TensorFlow or of Python.
    """
    reason = first_line(error).split('; ')[-1]
    cure = next((cure for number, cure in _CURES.items() if os.strerror(number) == reason),
                'check the path')
    return UserError(f'{path} cannot be read ({reason}); {cure}, then start again.')


def check_room(folder, num_bytes):
    """Raises DiskFullError if the file system of a folder has less than that many bytes left.

    Of a remote folder, and of a quota, nothing is known before they are full.
    """
    if '://' not in folder and shutil.disk_usage(folder).free < num_bytes:
        raise DiskFullError(
            f'{folder}: {os.strerror(errno.ENOSPC)}: {_MAKE_ROOM} ({bytes_text(num_bytes)} are '
            'needed), then start again; what was saved before is whole.')


def check_still_there(folder):
    """Raises UserError if a folder that was in use is gone."""
    if not tf.gfile.IsDirectory(folder):
        raise UserError(f'{folder} was removed or renamed while it was in use; move it back, then '
                        'start again.')


@contextlib.contextmanager
def readable_errors():
    """Raises a UserError in place of what a file system refused.

    At once, where it happens: TensorFlow takes a file that is too large, an OutOfRangeError, for
    the end of the training data, and ends the session without a word.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        readable = described(error)
        if readable is None:
            raise
        raise readable from error


# What makes a path a pattern for TensorFlow, which finds nothing by it, or too much.
_PATTERN = re.compile(r'[*?[\\]')


@contextlib.contextmanager
def literal(path):
    """Gives a path of the same files that TensorFlow does not take for a pattern.

    TensorFlow 1.15 looks for a checkpoint's files by their pattern. Those whose path has *, ?, [ or
    a backslash are linked to in a temporary folder for the length of the with block.

    Args:
      path: of a folder, or path prefix of a checkpoint.
    """
    if '://' in path or not _PATTERN.search(path):
        yield path
        return
    folder, name = os.path.split(os.path.abspath(path))
    with tempfile.TemporaryDirectory(prefix='links-') as links:
        for each in os.listdir(folder) if os.path.isdir(folder) else ():
            if each == name or each.startswith(f'{name}.'):
                os.symlink(os.path.join(folder, each), os.path.join(links, f'of{each[len(name):]}'))
        yield os.path.join(links, 'of')


_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def held(model_dir):
    """Holds the lock of a folder; where there is none to be had, says so and goes on.

    Object storage has no locks. Neither have some network file systems; on others they hold
    between processes of one machine only.

    Raises:
      UserError: another process holds it.
    """
    if '://' in model_dir:
        yield
        return
    path = os.path.join(model_dir, LOCK_FILE)
    check_file_if_any(path)
    check_no_link(path)
    # Not 'w': that would wipe out the name of the process that holds it.
    with open(path, 'a+', errors='replace') as file:
        file.seek(0)
        owner = file.read().strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f'{model_dir} is in use by {owner or "another process"}; wait until it '
                            'ends, or name another --model_dir.') from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            logging.warning('The file system of %s has no locks (%s): see to it that no other '
                            'process trains there.', model_dir, error.strerror)
        else:
            if owner:
                logging.info('Took over the stale lock of %s, which is gone.', owner)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def size_text(folder, left_out=()):
    """Returns the size of a folder, such as '34 files, 2.4 GB'.

    Args:
      folder: str, local or remote.
      left_out: folders and files below it that do not count.
    """
    num_files = num_bytes = 0
    for place, _, names in tf.gfile.Walk(folder):
        if is_inside_any(place, left_out):
            continue
        names = [name for name in names
                 if not is_inside_any(os.path.join(place, name), left_out)]
        num_files += len(names)
        # A file may go while it is looked for, such as a checkpoint that another process removes.
        with contextlib.suppress(tf.errors.OpError):
            for name in names:
                num_bytes += tf.gfile.Stat(os.path.join(place, name)).length
    return f'{num_files} file{"s" * (num_files != 1)}, {bytes_text(num_bytes)}'
