"""Things that lie where a program expects a file or a folder of its own kind."""
import os
import random
import shutil
import socket

# In place of a file: what it may be instead.
FILE_FAULTS = ('missing', 'empty', 'folder', 'dangling', 'pipe', 'socket', 'locked', 'truncated',
               'random')
# In place of a folder.
FOLDER_FAULTS = ('missing', 'empty_folder', 'file', 'dangling', 'pipe', 'locked_folder')


def make(fault, path, whole=None):
    """Puts what `fault` names at `path`; `whole` is a good file, to be cut in the middle."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)
    _MAKERS[fault](path, whole)


def _write(path, content, mode=0o644):
    with open(path, 'wb') as file:
        file.write(content)
    os.chmod(path, mode)


def _bind(path, _):
    # The name of a socket is short; its folder's is not.
    here = os.getcwd()
    os.chdir(os.path.dirname(path))
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(os.path.basename(path))
    finally:
        os.chdir(here)


def _cut(path, whole):
    with open(whole, 'rb') as file:
        content = file.read()
    _write(path, content[:len(content) // 2])


def _random(path, _):
    generator = random.Random(7)
    _write(path, bytes(generator.randrange(256) for _ in range(5000)))


_MAKERS = {
    'missing': lambda path, _: None,
    'empty': lambda path, _: _write(path, b''),
    'folder': lambda path, _: os.mkdir(path),
    'empty_folder': lambda path, _: os.mkdir(path),
    'file': lambda path, _: _write(path, b'no folder\n'),
    'dangling': lambda path, _: os.symlink('/nowhere/at/all', path),
    'pipe': lambda path, _: os.mkfifo(path),
    'socket': _bind,
    'locked': lambda path, _: _write(path, b'{}', mode=0),
    'locked_folder': lambda path, _: os.mkdir(path, 0),
    'truncated': _cut,
    'random': _random,
}
