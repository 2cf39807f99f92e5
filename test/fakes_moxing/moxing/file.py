"""moxing.file: copies between local folders and obs://bucket/..."""
import json
import os
import shutil


def copy_parallel(src_url, dst_url):
    """Copies the files below a folder into another folder, and records it."""
    record = os.environ.get('FAKE_MOXING_RECORD')
    if record:
        with open(record, 'a') as lines:
            lines.write(json.dumps({'copy_parallel': [src_url, dst_url]}) + '\n')
    source = _local(src_url)
    if not os.path.isdir(source):
        raise FileNotFoundError(f'{src_url} is not a folder')
    for folder, _, names in os.walk(source):
        target = os.path.join(_local(dst_url), os.path.relpath(folder, source))
        os.makedirs(target, exist_ok=True)
        for name in names:
            shutil.copyfile(os.path.join(folder, name), os.path.join(target, name))


def copy(src_url, dst_url):
    """Copies a file."""
    target = _local(dst_url)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(_local(src_url), target)


def exists(url):
    return os.path.exists(_local(url))


def is_directory(url):
    return os.path.isdir(_local(url))


def list_directory(url):
    """Names of the files and folders in a folder."""
    return os.listdir(_local(url))


def make_dirs(url):
    os.makedirs(_local(url), exist_ok=True)


def _local(url):
    scheme = 'obs://'
    if not url.startswith(scheme):
        return url
    return os.path.join(os.environ['FAKE_OBS_ROOT'], url[len(scheme):])
