"""The folders for what a device leaves behind: dumps, traces, graphs, tuning results."""
import os

from user_error import UserError


def make(folder, rank):
    """Makes `<folder>/<rank>`, if it is not there yet, and returns its absolute path.

    Raises:
      UserError: it cannot be made here; devices write to local file systems only.
    """
    if '://' in folder:
        raise UserError(f'{folder} is not a folder of this machine; choose one with --dump_dir, '
                        '--profiling_dir, --graph_dir or --tune_dir.')
    path = os.path.join(os.path.abspath(folder), str(rank))
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path} cannot be made ({error.strerror}); choose another '
                        'folder.') from error
    return path
