"""Files and folders that a user names: whether they will do is told before any work is done.

Only paths of this machine are looked at; what an URL stands for shows when it is used. `name` is
what a path was given for, such as '--csv', or nothing if the path says it.
"""
import os
import re
import stat
import sys

from common.errors import UserError

# In a model_dir: locked by, and naming, the process that trains there.
LOCK_FILE = 'train.lock'
# File systems take names of 255 bytes; a file that is being written has a longer one than its own.
_MAX_NAME_BYTES = 255 - len('.partial.json')
_MAX_PATH_BYTES = 4096 - 512
# Files of runs, data sets and exports, which no table, report or picture may take the place of.
_PRECIOUS = re.compile(
    r'config\.json|results\.jsonl|best_eval\.json|dataset_info\.json|create_report\.jsonl|'
    r'labels\.txt|checkpoint|train\.lock|.*\.(index|meta|data-\d+-of-\d+)|.*tfevents.*|'
    r'.*-\d{5}-of-\d{5}|.*\.tfrecords?|manifest\.json|emulation\.json|image_labels\.txt')
_EXPORT = re.compile(r'.*\.(pb|onnx|tflite)(\.json)?')


def check_input_file(path, name=''):
    """Raises UserError unless `path` is a file that can be read.

    Pipes, sockets and devices are refused: reading from them may never end.
    """
    if '://' in path:
        return
    given = _given(path, name)
    if not os.path.exists(path):
        raise UserError(f'{given} cannot be read, it does not exist; name another file.')
    _check_regular(path, given)
    if not os.access(path, os.R_OK):
        raise UserError(f'{given} cannot be read; correct its rights or name another file.')


def check_file_if_any(path):
    """Raises UserError for what is at `path` and no file that can be read; nothing will do."""
    if os.path.lexists(path):
        check_input_file(path)


def check_no_link(path):
    """Raises UserError for a link: what is written there would be written to where it leads."""
    if os.path.islink(path):
        raise UserError(f'{path} is a link, through which nothing is written; remove it, or put '
                        'what it leads to in its place.')


def check_input_folder(path, name=''):
    """Raises UserError unless `path` is a folder that can be read."""
    if '://' in path:
        return
    if not os.path.isdir(path):
        raise UserError(f'{_given(path, name)} is no folder; name one.')
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f'{_given(path, name)} cannot be read; correct its rights or name another '
                        'folder.')


def check_output_file(path, name, inputs=(), ending='', makes_folders=False, is_export=False):
    """Raises UserError unless a file can be written at `path`, and no other file is lost by it.

    Args:
      path: of the file, which may be there, unless it is an input, or a file of a run, a data set
        or an export.
      name: what it was given for.
      inputs: paths of files and folders that the program reads; '' and None stand for none.
      ending: of the name of such a file; an earlier one in an input folder is overwritten.
      makes_folders: whether the folders that it lies in will be made.
      is_export: whether it may take the place of an export.
    """
    if '://' in path:
        return
    given = _given(path, name)
    if os.path.exists(path):
        names = [os.path.basename(each) for each in (path, os.path.realpath(path))]
        if any(_PRECIOUS.fullmatch(each) or _EXPORT.fullmatch(each) and not is_export
               for each in names):
            raise UserError(f'{given}: a file of a run, a data set or an export, which would be '
                            'overwritten; choose another file.')
        check_no_input(path, given, inputs, ending)
    _check_regular(path, given)
    _check_name(path, given)
    folder = os.path.dirname(path) or '.'
    if not makes_folders and not os.path.isdir(folder):
        raise UserError(f'{given} cannot be written, {folder} is no folder; choose another file.')
    _check_folder(folder, given, 'choose another file.')


def check_output_folder(path, name):
    """Raises UserError unless `path` is a folder that can be written to, or made."""
    if '://' not in path:
        _check_folder(path, _given(path, name), 'choose another folder.')


def check_no_input(path, given, inputs, ending=''):
    """Raises UserError if to write `path`, which `given` calls it, would overwrite an input."""
    for each in filter(None, (*inputs, *_flagfiles())):
        is_earlier = os.path.isdir(each) and ending and path.endswith(ending)
        if is_inside(path, each) and os.path.exists(path) and not is_earlier:
            raise UserError(f'{given}: an input, {each}, would be overwritten; choose another '
                            'file.')


def _flagfiles():
    """Paths that --flagfile gives on the command line; absl does not keep them."""
    return [match['path'] or following
            for word, following in zip(sys.argv, [*sys.argv[1:], ''])
            for match in [re.fullmatch('--?flagfile(=(?P<path>.*))?', word)] if match]


def is_inside(path, folder):
    """Whether a path is that of a folder or of something in it, however the two are written."""
    path, folder = (os.path.join(each if '://' in each else os.path.realpath(each), '')
                    for each in (path, folder))
    return path.startswith(folder)


def is_inside_any(path, folders):
    return any(is_inside(path, each) for each in folders)


def is_same(path, other):
    """Whether two paths are of the same file or folder, however they are written."""
    return is_inside(path, other) and is_inside(other, path)


def _given(path, name):
    return f'{name}={path}' if name else path


def _check_name(path, given):
    num_bytes = len(os.fsencode(os.path.basename(path)))
    if num_bytes > _MAX_NAME_BYTES:
        raise UserError(f'{given}: a name of {num_bytes} bytes; choose one of at most '
                        f'{_MAX_NAME_BYTES}.')


def _check_regular(path, given):
    if os.path.isdir(path):
        raise UserError(f'{given} is a folder; name a file.')
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f'{given} is no regular file; name one.')


def _check_folder(path, given, cure):
    """Looks at `path` or, if there is no such thing, at the folder that it would be made in."""
    if path.startswith('~'):
        raise UserError(f'{given} would be a folder of the name ~, which shells leave alone after '
                        'a =; write $HOME or the whole path.')
    parent = os.path.abspath(path)
    if len(os.fsencode(parent)) > _MAX_PATH_BYTES:
        raise UserError(f'{given[:80]}...: a path of {len(os.fsencode(parent))} bytes; choose '
                        f'one of at most {_MAX_PATH_BYTES}.')
    while not os.path.lexists(parent):
        _check_name(parent, given)
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError(f'{given} cannot be written, {parent} is no folder; {cure}')
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f'{given} cannot be written, {parent} is not open to you; {cure}')


def make_rank_dir(folder, rank):
    """Makes `<folder>/<rank>`, if it is not there yet, and returns its absolute path.

    Raises:
      UserError: it cannot be made here; devices write to local file systems only.
    """
    if '://' in folder:
        raise UserError(f'{folder} is not a folder of this machine; choose one with --dump_dir, '
                        '--profiling_dir, --graph_dir or --tune_dir.')
    path = os.path.join(os.path.abspath(folder), str(rank))
    check_no_link(path)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path} cannot be made ({error.strerror}); choose another '
                        'folder.') from error
    return path
