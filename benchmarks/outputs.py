"""What a benchmark leaves: its figures as JSON, and a folder of work that goes with it."""
import contextlib
import json
import os
import tempfile

import storage
import user_paths


def check_json(path):
    """Raises UserError where the file of --json could not be written; before all measuring."""
    if path:
        user_paths.check_output_file(path, '--json')


def write_json(path, figures):
    """Writes the figures, whole or not at all; nowhere if there is no --json."""
    if not path:
        return
    with storage.whole_file(path) as file:
        json.dump(figures, file, indent=2)
        file.write('\n')


@contextlib.contextmanager
def work_folder(parent):
    """Gives a new folder in that of --work_dir, or else where temporary files go; removes it."""
    if parent:
        user_paths.check_output_folder(parent, '--work_dir')
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield folder
