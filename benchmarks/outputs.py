"""What a benchmark leaves: its figures as JSON, and a folder of work that goes with it."""
import contextlib
import json
import os
import tempfile

from common.errors import UserError
from common.files import whole_file
from common.paths import check_output_file
from common.paths import check_output_folder


def check_json(path):
    """Raises UserError where the file of --json could not be written; before all measuring."""
    if path:
        check_output_file(path, '--json')


def write_json(path, figures):
    """Writes the figures, whole or not at all; nowhere if there is no --json."""
    if not path:
        return
    with whole_file(path) as file:
        json.dump(figures, file, indent=2)
        file.write('\n')


def check_ended_well(exit_code, log):
    """Raises UserError with the last line of `log`, a file, if a run of main.py failed."""
    if exit_code:
        log.seek(0)
        raise UserError(f'main.py failed: {log.read().strip().splitlines()[-1]}')


@contextlib.contextmanager
def work_folder(parent):
    """Gives a new folder in that of --work_dir, or else where temporary files go; removes it."""
    if parent:
        check_output_folder(parent, '--work_dir')
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield folder
