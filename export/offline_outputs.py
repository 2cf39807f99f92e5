"""Reads and scores the outputs of offline inference, as ais_bench and msame write them."""
import os
import re
from typing import NamedTuple
from typing import Optional

from absl import logging
import numpy as np

from common import ranks
from common.errors import UserError
from common.paths import check_input_file
from common.paths import check_input_folder
from export import offline_inputs
from run_log import class_metrics

# Program -> suffix that it appends to an input's name, before .bin.
ENDINGS = {'ais_bench': '_0', 'msame': '_output_0'}
_OUTPUT = re.compile(r'(\d{5,})(_0|_output_0)\.bin')
_CURE = 'run the inference again'


class Scores(NamedTuple):
    """Accuracy of outputs. Values that are not known are None.

    Attributes:
      top_1, top_5: accuracy, in [0, 1].
      num_images: number of images.
      max_difference: largest difference of a probability from the reference's.
      num_changed: number of images whose predicted class differs from the reference's.
      class_scores: list of `class_metrics.ClassScores`.
    """
    top_1: Optional[float]
    top_5: Optional[float]
    num_images: int
    max_difference: Optional[float] = None
    num_changed: Optional[int] = None
    class_scores: Optional[list] = None


def newest_folder(path):
    """Returns the directory of the .bin files: `path` or the newest directory in it.

    Raises:
      UserError: `path` contains neither .bin files nor directories.
    """
    check_input_folder(path, '--outputs')
    entries = list(os.scandir(path))
    if any(entry.name.endswith('.bin') for entry in entries):
        return path
    folders = sorted((entry for entry in entries if entry.is_dir()),
                     key=lambda entry: (entry.stat().st_mtime_ns, entry.name))
    if not folders:
        raise UserError(f'--outputs={path}: contains neither .bin files nor a directory of them; '
                        "name the inference program's --output.")
    if len(folders) > 1:
        logging.warning('%s contains %d directories; %s, the newest, is scored.', path,
                        len(folders), folders[-1].name)
    return folders[-1].path


def read(folder, manifest):
    """Returns the probabilities of all images, float32 [num_images, classes].

    Raises:
      UserError: a file is missing, truncated, or does not belong to the manifest's inputs.
    """
    found = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith('.bin'):
            continue
        match = _OUTPUT.fullmatch(name)
        if not match or f'{match[1]}.bin' not in manifest['files']:
            raise UserError(f'{folder}/{name}: not an output of the inputs listed in '
                            f'{offline_inputs.MANIFEST}; {_CURE} on these inputs.')
        if found.setdefault(f'{match[1]}.bin', name) != name:
            raise UserError(f'{folder}/{name}: a second output of {match[1]}.bin; {_CURE} with an '
                            'empty output directory.')
    missing = [name for name in manifest['files'] if name not in found]
    if missing:
        raise UserError(f'{folder}: {len(missing)} of {len(manifest["files"])} inputs have no '
                        f'output, such as {missing[0]}; {_CURE}.')
    shape = manifest['batch_size'], manifest['num_classes']
    outputs = [_read_file(os.path.join(folder, found[name]), shape) for name in manifest['files']]
    return np.concatenate(outputs)[:manifest['num_images']]


def _read_file(path, shape):
    check_input_file(path)
    wanted, size = 4 * shape[0] * shape[1], os.path.getsize(path)
    if size != wanted:
        cure = ('float16? Convert the model with --output_type=FP32' if 2 * size == wanted else
                f'truncated, or from a model with other classes or batch size; {_CURE}')
        raise UserError(f'{path}: has {size} bytes instead of {wanted} ({shape[0]} x {shape[1]} '
                        f'float32 values); {cure}.')
    values = np.fromfile(path, np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise UserError(f'{path}: contains values that are not finite; {_CURE}, or convert the '
                        'model with another --atc_precision_mode.')
    return values


def score(probabilities, labels, class_names, expected=None):
    """Returns the `Scores` of predicted probabilities.

    Args:
      probabilities: float32 [images, classes].
      labels: int [images], or None.
      class_names: list of names, or empty.
      expected: the reference's predictions, dict with 'probabilities' and 'logits', or None.
    """
    ranking = ranks.ranked_classes({'probabilities': probabilities})
    scores = Scores(None, None, len(probabilities))
    if labels is not None:
        hits = ranking == labels[:, np.newaxis]
        num_classes = probabilities.shape[1]
        matrix = np.zeros([num_classes, num_classes], int)
        np.add.at(matrix, (labels, ranking[:, 0]), 1)
        scores = scores._replace(
            top_1=float(hits[:, 0].mean()), top_5=float(hits[:, :5].any(1).mean()),
            class_scores=class_metrics.scores(class_metrics.counts_of(matrix), class_names))
    if expected is not None:
        scores = scores._replace(
            max_difference=float(np.abs(probabilities - expected['probabilities']).max()),
            num_changed=int((ranking[:, 0] != ranks.ranked_classes(expected)[:, 0]).sum()))
    return scores
