"""Output of benchmarks: the figures as JSON, and a temporary work directory."""
import contextlib
import json
import os
import tempfile

from common.errors import UserError
from common.files import whole_file
from common.paths import check_output_file
from common.paths import check_output_folder


def check_json(path):
    """Raises UserError if --json cannot be written. Benchmarks call this before they measure."""
    if path is not None:
        check_output_file(path, '--json')


def write_json(path, figures):
    """Writes the figures atomically as JSON.

    Args:
      path: str, value of --json; None writes nothing.
      figures: dict.
    """
    if not path:
        return
    with whole_file(path) as file:
        json.dump(figures, file, indent=2)
        file.write('\n')


def check_ended_well(name, exit_code, log):
    """Raises UserError with the last line of the log if a process failed.

    Args:
      name: str, the process.
      exit_code: int, that of the process.
      log: text file with its standard error.
    """
    if exit_code:
        raise failure(name, log)


def failure(name, log):
    """Returns a UserError with the last line of the log of a process that failed."""
    log.seek(0)
    lines = log.read().strip().splitlines() or ['it printed nothing']
    return UserError(f'{name} failed: {lines[-1]}')


@contextlib.contextmanager
def work_folder(parent):
    """Context manager that creates a directory, yields its path and removes the directory.

    Args:
      parent: str, value of --work_dir; None uses the system's directory for temporary files.

    Raises:
      UserError: --work_dir cannot be written.
    """
    if parent:
        check_output_folder(parent, '--work_dir')
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield folder
