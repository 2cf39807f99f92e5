"""Keeps the checkpoint with the best evaluation in model_dir/archive."""
import json
import math
import os

from absl import logging

from checkpoints import store
from common import json_files
from common.files import whole_file

# Values of --best_metric.
TOP_1, LOSS, MACRO_F1 = METRICS = 'top_1', 'loss', 'macro_f1'
# Metric -> its key in an 'eval' event.
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
    """Copies `checkpoint` to model_dir/archive if its evaluation beats the archived one.

    An evaluation without --eval_name, which is the run's own, beats one with a name; then more
    images beat fewer; then the metric decides. An evaluation of a hundred images, or of other data,
    therefore never replaces the best of the full evaluations.

    New files are copied first, then the file that names them is replaced, then old files are
    removed, so that a kill at any moment leaves a complete checkpoint in the archive.

    Args:
      model_dir: the run's directory.
      checkpoint: path prefix of the evaluated checkpoint.
      evaluation: dict with 'step', 'top_1' and, if known, 'name' and 'num_images', stored in
        best_eval.json. An evaluation with other preprocessing or a non-finite cross entropy (None)
        is never the best.
      metric: one of METRICS.

    Returns:
      whether the checkpoint was archived.
    """
    archive = os.path.join(model_dir, store.ARCHIVE_DIR)
    if evaluation.get('cross_entropy', 0) is None:
        logging.warning('Not archived: the cross entropy is not finite.')
        return False
    if not is_of_the_run(evaluation):
        logging.info("Not archived: evaluated with images of %s pixels, which is not the run's "
                     'own size.', evaluation['image_size'])
        return False
    best = best_evaluation(model_dir)
    if best and weight_of(best, metric) >= weight_of(evaluation, metric):
        if score(best, metric) < score(evaluation, metric):
            logging.info('Not archived: the evaluation of step %d in %s takes precedence '
                         '(%s images, %s).', best['step'], archive,
                         best.get('num_images', 0),
                         f"--eval_name={best['name']}" if best.get('name') else 'no --eval_name')
        return False
    name = os.path.basename(checkpoint)
    if best and best['checkpoint'] == name:
        # A run that rolled back saved the same step again; the files in use are not overwritten.
        name += '-again'
    store.copy(checkpoint, archive, name)
    with whole_file(os.path.join(archive, _BEST_FILE)) as file:
        json.dump({**evaluation, 'checkpoint': name}, file, indent=2)
    store.keep_only(archive, name)
    return True


def is_of_the_run(evaluation):
    """Returns whether an evaluation used the run's own preprocessing."""
    return evaluation.get('image_size') is None


def score(evaluation, metric):
    """Returns the value of a metric (larger is better), or -inf if it is unknown."""
    value = evaluation.get(FIELDS[metric])
    if value is None:
        return -math.inf
    return -value if metric == LOSS else value


def weight_of(evaluation, metric):
    """Returns the key by which evaluations are compared (see `archive_if_best`)."""
    return (not evaluation.get('name'), evaluation.get('num_images') or 0,
            score(evaluation, metric))


def best_evaluation(model_dir):
    """Returns the evaluation of the archived checkpoint as a dict, or None."""
    path = os.path.join(model_dir, store.ARCHIVE_DIR, _BEST_FILE)
    return json_files.read_if_any(
        path, 'remove the file; the next evaluation then counts as the best', _FIELDS)
