"""model_dir/archive: the checkpoint with the best evaluation, and that evaluation."""
import json
import math
import os

from absl import logging

from checkpoints import store
from common import json_files
from common.files import whole_file

# Values of --best_metric.
TOP_1, LOSS, MACRO_F1 = METRICS = 'top_1', 'loss', 'macro_f1'
# What an 'eval' event calls them.
FIELDS = {TOP_1: 'top_1', LOSS: 'cross_entropy', MACRO_F1: 'macro_f1'}

_BEST_FILE = 'best_eval.json'
_FIELDS = {
    'checkpoint': json_files.Kind('a name', lambda value: (
        isinstance(value, str) and value not in ('', '.', '..') and '/' not in value)),
    'step': json_files.INTEGER, 'top_1': json_files.NUMBER,
    'name': json_files.optional(json_files.TEXT),
    'num_images': json_files.optional(json_files.INTEGER),
    'cross_entropy': json_files.optional(json_files.NUMBER),
    'macro_f1': json_files.optional(json_files.NUMBER)}


def archive_if_best(model_dir, checkpoint, evaluation, metric=TOP_1):
    """Copies `checkpoint` to model_dir/archive if its evaluation beats the one there.

    Of two evaluations the one without a --eval_name counts for more, for it is the run's own, then
    the one of more images, then that of the better metric: a look at a hundred images, or at other
    data, does not displace what a whole evaluation found best.

    The new files are copied first, then one file that names them is replaced, then the old ones go:
    at any moment, a kill leaves a whole checkpoint in the archive.

    Args:
      model_dir: the run's folder.
      checkpoint: path prefix of the evaluated checkpoint.
      evaluation: dict with 'step', 'top_1' and, if known, 'name' and 'num_images', kept beside the
        checkpoint in best_eval.json. One with other preprocessing, or with a cross entropy that
        is not finite (None), never is the best.
      metric: one of METRICS.

    Returns:
      whether it was the best.
    """
    archive = os.path.join(model_dir, store.ARCHIVE_DIR)
    if evaluation.get('cross_entropy', 0) is None:
        logging.warning('Not archived: the cross entropy is not finite.')
        return False
    if not is_of_the_run(evaluation):
        logging.info("Not archived: with images of %s pixels, which are not the run's own, no "
                     'checkpoint becomes the best.', evaluation['image_size'])
        return False
    best = best_evaluation(model_dir)
    if best and weight_of(best, metric) >= weight_of(evaluation, metric):
        if score(best, metric) < score(evaluation, metric):
            logging.info('Not archived: %s holds the checkpoint of step %d, whose evaluation '
                         'counts for more (%s images, %s).', archive, best['step'],
                         best.get('num_images', 0),
                         f"--eval_name={best['name']}" if best.get('name') else 'no --eval_name')
        return False
    name = os.path.basename(checkpoint)
    if best and best['checkpoint'] == name:
        # The same step once more, of a run that went back: not over the files that are in use.
        name += '-again'
    store.copy(checkpoint, archive, name)
    with whole_file(os.path.join(archive, _BEST_FILE)) as file:
        json.dump({**evaluation, 'checkpoint': name}, file, indent=2)
    store.keep_only(archive, name)
    return True


def is_of_the_run(evaluation):
    """Whether an evaluation had the run's own preprocessing, so that it can be compared."""
    return evaluation.get('image_size') is None


def score(evaluation, metric):
    """Returns the value of a metric, the larger the better; -inf where it is not known."""
    value = evaluation.get(FIELDS[metric])
    if value is None:
        return -math.inf
    return -value if metric == LOSS else value


def weight_of(evaluation, metric):
    """What evaluations are compared by, see `archive_if_best`."""
    return (not evaluation.get('name'), evaluation.get('num_images') or 0,
            score(evaluation, metric))


def best_evaluation(model_dir):
    """The evaluation of the archived checkpoint, a dict, or None."""
    path = os.path.join(model_dir, store.ARCHIVE_DIR, _BEST_FILE)
    return json_files.read_if_any(
        path, 'remove the file, and the next evaluation is the best again', _FIELDS)
