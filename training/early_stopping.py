"""Early stopping: detects that the evaluations of a run no longer improve."""
import math

from checkpoints.best import FIELDS
from checkpoints.best import is_of_the_run
from checkpoints.best import score
from run_log import event_log
from training.evaluation import kinds_of_weights


def find(config, model_dir, step):
    """Returns why training stops early at a step, or '' if it continues.

    The decision depends only on the events of the run, so a resumed run and all ranks reach the
    same one. Evaluations on another number of images than the newest one are ignored.

    Args:
      config: `run_config.Config`.
      model_dir: directory of results.jsonl, that of rank 0.
      step: global step of the newest checkpoint.

    Returns:
      str that begins with ': ' and completes a log line.
    """
    patience, metric = config.run.early_stopping_evals, config.run.best_metric
    if not patience or step >= config.total_steps:
        return ''
    evaluations = _evaluations(config, model_dir, step)
    if len(evaluations) <= patience:
        return ''
    scores = [_score(evaluation, metric) for evaluation in evaluations]
    best = scores.index(max(scores))
    num_worse = len(scores) - 1 - best
    if num_worse < patience:
        return ''
    value = evaluations[best].get(FIELDS[metric])
    shown = 'none' if value is None else f'{value:.4f}'
    return (f': {num_worse} evaluation{"s" * (num_worse > 1)} in a row without a better {metric} '
            f"than {shown} of step {evaluations[best]['step']}")


def _evaluations(config, model_dir, step):
    """Returns the comparable evaluations up to `step`, ordered by step.

    They evaluate the moving average of the weights if the run has one. Events of later steps exist
    if the run was rolled back; they do not count.
    """
    weights = kinds_of_weights(config)[-1]
    found = [event for event in event_log.read(model_dir)
             if event['event'] == 'eval' and event['weights'] == weights and event['step'] <= step
             and event.get('name') == config.run.eval_name and is_of_the_run(event)]
    by_step = {event['step']: event for event in found
               if event.get('num_images') == found[-1].get('num_images')}
    return [by_step[step] for step in sorted(by_step)]


def _score(evaluation, metric):
    """Returns `score`, or -inf if the cross entropy of the evaluation is not finite."""
    is_finite = evaluation.get('cross_entropy', 0) is not None
    return score(evaluation, metric) if is_finite else -math.inf
