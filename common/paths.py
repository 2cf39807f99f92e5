"""Validates user-supplied paths before any work starts.

Only local paths are checked; a URL fails when it is first used. `name` is the flag that a path was
given with, such as '--csv', or empty.
"""
import os
import re
import stat
import sys

from common.errors import UserError

# The process that trains in a model_dir holds a lock on this file and writes its name into it.
LOCK_FILE = 'train.lock'
# File systems accept names of 255 bytes; a file has a longer name while it is written.
_MAX_NAME_BYTES = 255 - len('.partial.json')
_MAX_PATH_BYTES = 4096 - 512
# Files of runs and data sets, which no table, report or picture may overwrite.
_PRECIOUS = re.compile(
    r'config\.json|results\.jsonl|best_eval\.json|dataset_info\.json|create_report\.jsonl|'
    r'labels\.txt|checkpoint|train\.lock|.*\.(index|meta|data-\d+-of-\d+)|.*tfevents.*|'
    r'.*-\d{5}-of-\d{5}|.*\.tfrecords?|manifest\.json|emulation\.json|image_labels\.txt')
_EXPORT = re.compile(r'.*\.(pb|onnx|tflite)(\.json)?')


def check_input_file(path, name=''):
    """Raises UserError unless `path` is a readable file.

    Pipes, sockets and devices are refused, because reading them may never end.
    """
    if '://' in path:
        return
    given = _given(path, name)
    if not os.path.exists(path):
        raise UserError(f'{given}: does not exist; name another file.')
    _check_regular(path, given)
    if not os.access(path, os.R_OK):
        raise UserError(f'{given}: permission denied; correct its permissions, or name another '
                        'file.')


def check_file_if_any(path):
    """Raises UserError if `path` exists but is not a readable file; a missing file is accepted."""
    if os.path.lexists(path):
        check_input_file(path)


def check_no_link(path):
    """Raises UserError for a symbolic link: a write would go to its target."""
    if os.path.islink(path):
        raise UserError(f'{path}: a symbolic link, and nothing is written through links; remove '
                        'it, or put its target in its place.')


def check_input_folder(path, name=''):
    """Raises UserError unless `path` is a readable directory."""
    if '://' in path:
        return
    if not os.path.isdir(path):
        raise UserError(f'{_given(path, name)}: not a directory; name one.')
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f'{_given(path, name)}: permission denied; correct its permissions, or '
                        'name another directory.')


def check_output_file(path, name, inputs=(), ending='', makes_folders=False, is_export=False):
    """Raises UserError unless a file can be written at `path` without losing another file.

    Args:
      path: of the file. It may exist, unless it is an input or belongs to a run, a data set or an
        export.
      name: flag that the path was given with, or empty.
      inputs: paths of files and directories that the program reads; '' and None are ignored.
      ending: file name extension of the output. An earlier output with this extension is
        overwritten, even in an input directory.
      makes_folders: whether missing parent directories will be created.
      is_export: whether the file may overwrite an earlier export.
    """
    if '://' in path:
        return
    given = _given(path, name)
    if os.path.exists(path):
        names = [os.path.basename(each) for each in (path, os.path.realpath(path))]
        if any(_PRECIOUS.fullmatch(each) or _EXPORT.fullmatch(each) and not is_export
               for each in names):
            raise UserError(f'{given}: a file of a run, a data set or an export would be '
                            'overwritten; choose another file.')
        check_no_input(path, given, inputs, ending)
    _check_regular(path, given)
    _check_name(path, given)
    folder = os.path.dirname(path) or '.'
    if not makes_folders and not os.path.isdir(folder):
        raise UserError(f'{given}: {folder} is not a directory; choose another file.')
    _check_folder(folder, given, 'choose another file.')


def check_output_folder(path, name):
    """Raises UserError unless `path` is a writable directory or can be created."""
    if '://' not in path:
        _check_folder(path, _given(path, name), 'choose another directory.')


def check_no_input(path, given, inputs, ending=''):
    """Raises UserError if writing `path` would overwrite an input; `given` names it in the error.
    """
    for each in filter(None, (*inputs, *_flagfiles())):
        is_earlier = os.path.isdir(each) and ending and path.endswith(ending)
        if is_inside(path, each) and os.path.exists(path) and not is_earlier:
            raise UserError(f'{given}: the input {each} would be overwritten; choose another '
                            'file.')


def _flagfiles():
    """Returns the paths given with --flagfile on the command line; absl does not keep them."""
    return [match['path'] or following
            for word, following in zip(sys.argv, [*sys.argv[1:], ''])
            for match in [re.fullmatch('--?flagfile(=(?P<path>.*))?', word)] if match]


def is_inside(path, folder):
    """Returns whether a path is a directory or lies in it, comparing resolved paths."""
    path, folder = (os.path.join(each if '://' in each else os.path.realpath(each), '')
                    for each in (path, folder))
    return path.startswith(folder)


def is_inside_any(path, folders):
    return any(is_inside(path, each) for each in folders)


def is_same(path, other):
    """Returns whether two paths resolve to the same file or directory."""
    return is_inside(path, other) and is_inside(other, path)


def _given(path, name):
    return f'{name}={path}' if name else path


def _check_name(path, given):
    num_bytes = len(os.fsencode(os.path.basename(path)))
    if num_bytes > _MAX_NAME_BYTES:
        raise UserError(f'{given}: the name has {num_bytes} bytes; choose one of at most '
                        f'{_MAX_NAME_BYTES}.')


def _check_regular(path, given):
    if os.path.isdir(path):
        raise UserError(f'{given}: is a directory; name a file.')
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f'{given}: not a regular file; name one.')


def _check_folder(path, given, cure):
    """Checks `path` or, if it does not exist, the directory that it would be created in."""
    if path.startswith('~'):
        raise UserError(f"{given}: '~' is not expanded after '='; use $HOME or an absolute path.")
    parent = os.path.abspath(path)
    if len(os.fsencode(parent)) > _MAX_PATH_BYTES:
        raise UserError(f'{given[:80]}...: the path has {len(os.fsencode(parent))} bytes; choose '
                        f'one of at most {_MAX_PATH_BYTES}.')
    while not os.path.lexists(parent):
        _check_name(parent, given)
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError(f'{given}: {parent} is not a directory; {cure}')
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f'{given}: permission denied in {parent}; {cure}')


def make_rank_dir(folder, rank):
    """Creates `<folder>/<rank>` if it does not exist, and returns its absolute path.

    Raises:
      UserError: it cannot be created, or is remote; devices write to local file systems only.
    """
    if '://' in folder:
        raise UserError(f'{folder}: not a local directory; choose one with --dump_dir, '
                        '--profiling_dir, --graph_dir or --tune_dir.')
    path = os.path.join(os.path.abspath(folder), str(rank))
    check_no_link(path)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path}: cannot be created ({error.strerror}); choose another '
                        'directory.') from error
    return path
