"""One training process at a time in a model_dir.

The lock is the kernel's, on a file that tells who holds it: it goes with the process, however that
ends. Ranks of one job have folders of their own, or leave the lock to rank 0.
"""
import contextlib
import errno
import fcntl
import os
import socket

from absl import logging

from user_error import UserError
import user_paths

LOCK_FILE = 'train.lock'
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
    user_paths.check_file_if_any(path)
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
