"""Atomic writes, file system errors as one sentence, and the lock of a directory."""
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
_CHOOSE = 'correct the permissions, or choose another directory'
_PUT_BACK = 'restore what was removed, renamed or replaced during the run'
_RECONNECT = 'check the file server'
# Error number -> cure. TensorFlow's errors have no number, but their messages contain its text.
_CURES = {errno.ENOSPC: _MAKE_ROOM, errno.EDQUOT: _MAKE_ROOM, errno.EROFS: _CHOOSE,
          errno.EACCES: _CHOOSE, errno.EPERM: _CHOOSE,
          errno.EFBIG: 'raise the limit of file sizes (ulimit -f)',
          errno.EMFILE: 'raise the limit of open files (ulimit -n)',
          errno.ENOENT: _PUT_BACK, errno.ENOTDIR: _PUT_BACK, errno.EISDIR: _PUT_BACK,
          errno.EIO: 'check the disk', errno.ENODEV: 'check the disk',
          errno.ESTALE: _RECONNECT, errno.ENOTCONN: _RECONNECT, errno.ETIMEDOUT: _RECONNECT,
          errno.ELOOP: 'correct the circular links',
          errno.ENAMETOOLONG: 'choose a shorter path'}


@contextlib.contextmanager
def renamed_when_whole(path, folder=None):
    """Yields a temporary path to write to, and renames that file to `path` when the block ends.

    An existing file is kept until then. If the block raises, the temporary file is removed; if the
    process is killed, it remains and the next attempt overwrites it.

    Args:
      path: str, local or remote.
      folder: str, directory of the temporary file `<name>.tmp`, on the same file system; default:
        the directory of `path`.
    """
    partial_path = path + PARTIAL
    if folder is not None:
        partial_path = os.path.join(folder, os.path.basename(partial_path))
    if os.path.islink(partial_path):
        # A write would go to the link's target.
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
    """Yields a file to write that replaces `path` when the block ends without an error.

    Leaves no other file behind, except `path`.tmp if the process is killed.
    """
    with renamed_when_whole(path) as partial_path, tf.gfile.GFile(partial_path, mode) as file:
        yield file


def described(error):
    """Returns a UserError for an error of the file system, or None for any other error.

    Args:
      error: an exception raised by TensorFlow or Python.
    """
    if not isinstance(error, (tf.errors.OpError, OSError)):
        return None
    text = ' '.join((getattr(error, 'message', '') or str(error)).splitlines()[:1])
    if isinstance(error, OSError):
        # An error on an open file has no file name.
        text = '; '.join(filter(None, (error.filename, error.strerror)))
    for number, cure in _CURES.items():
        if text.endswith(os.strerror(number)):
            kind = DiskFullError if cure == _MAKE_ROOM else UserError
            return kind(f'{text}; {cure} and rerun. Files saved earlier are intact.')
    return None


def read_error(path, error):
    """Returns a UserError for a file that cannot be read because of a system error.

    Args:
      path: of the file.
      error: an exception raised by TensorFlow or Python.
    """
    reason = first_line(error).split('; ')[-1]
    cure = next((cure for number, cure in _CURES.items() if os.strerror(number) == reason),
                'check the path')
    return UserError(f'{path}: cannot be read ({reason}); {cure} and rerun.')


def check_room(folder, num_bytes):
    """Raises DiskFullError if the file system of a directory has less than num_bytes left.

    Remote directories and quotas cannot be checked.
    """
    if '://' not in folder and shutil.disk_usage(folder).free < num_bytes:
        raise DiskFullError(
            f'{folder}: {os.strerror(errno.ENOSPC)}; {_MAKE_ROOM} ({bytes_text(num_bytes)} needed) '
            'and rerun. Files saved earlier are intact.')


def check_still_there(folder):
    """Raises UserError if a directory that was in use no longer exists."""
    if not tf.gfile.IsDirectory(folder):
        raise UserError(f'{folder}: removed or renamed while it was in use; move it back and '
                        'rerun.')


@contextlib.contextmanager
def readable_errors():
    """Turns errors of the file system into UserErrors.

    The block has to be where they occur: TensorFlow takes the OutOfRangeError of a file that is too
    large for the end of the training data, and ends the session silently.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        readable = described(error)
        if readable is None:
            raise
        raise readable from error


# TensorFlow takes a path with one of these characters for a pattern.
_PATTERN = re.compile(r'[*?[\\]')


@contextlib.contextmanager
def literal(path):
    """Yields a path that leads to the same files and contains no pattern characters.

    TensorFlow 1.15 finds the files of a checkpoint by pattern. If the path has *, ?, [ or a
    backslash, a temporary directory holds links to the files until the block ends.

    Args:
      path: of a directory, or path prefix of a checkpoint.
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
    """Holds the lock of a directory; logs a warning if the file system has no locks.

    Object storage and some network file systems have no locks; on other network file systems,
    locks only work between processes of one machine.

    Raises:
      UserError: another process holds the lock.
    """
    if '://' in model_dir:
        yield
        return
    path = os.path.join(model_dir, LOCK_FILE)
    check_file_if_any(path)
    check_no_link(path)
    # Mode 'w' would erase the name of the process that holds the lock.
    with open(path, 'a+', errors='replace') as file:
        file.seek(0)
        owner = file.read().strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f'{model_dir}: in use by {owner or "another process"}; wait until it '
                            'ends, or choose another --model_dir.') from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            logging.warning('%s: the file system has no locks (%s); make sure that no other '
                            'process trains there.', model_dir, error.strerror)
        else:
            if owner:
                logging.info('Took over the stale lock of %s, which has ended.', owner)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def size_text(folder, left_out=()):
    """Returns the size of a directory, such as '34 files, 2.4 GB'.

    Args:
      folder: str, local or remote.
      left_out: directories and files below it that are not counted.
    """
    num_files = num_bytes = 0
    for place, _, names in tf.gfile.Walk(folder):
        if is_inside_any(place, left_out):
            continue
        names = [name for name in names
                 if not is_inside_any(os.path.join(place, name), left_out)]
        num_files += len(names)
        # Another process may remove a file meanwhile, such as an old checkpoint.
        with contextlib.suppress(tf.errors.OpError):
            for name in names:
                num_bytes += tf.gfile.Stat(os.path.join(place, name)).length
    return f'{num_files} file{"s" * (num_files != 1)}, {bytes_text(num_bytes)}'
