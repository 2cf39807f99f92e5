"""Writes what the tools of Ascend's ModelZoo read: result lines, CaseName.log, the losses.

    python3.7 -m report.modelzoo --model_dir=DIR --log_file=FILE --kind=full --e2e_secs=N

All figures come from the run's results.jsonl. test/train_*.sh run this command last.
"""
import os
import platform

from absl import flags
import tensorflow.compat.v1 as tf

from common import app
from common.errors import UserError
from common.files import readable_errors
from common.files import whole_file
from common.paths import check_output_file
from config import run_config
from run_log import event_log

# Suffix of the case name for each --kind.
_SUFFIXES = {'full': 'acc', 'performance': 'perf'}


def define_flags():
    flags.DEFINE_string('model_dir', '', "The run's folder.")
    flags.DEFINE_string('log_file', '', "The run's log, which gets the lines that tools look for. "
                        'CaseName.log and the losses are written beside it.')
    flags.DEFINE_enum('kind', 'full', list(_SUFFIXES), 'full: the accuracy is that of the last '
                      'evaluation; performance: of the last training batch that was logged.')
    flags.DEFINE_bool('bound', False, 'The ranks kept to cores of their own, which CaseName says.')
    flags.DEFINE_integer('e2e_secs', 0, 'Seconds from the start of the script to its end.',
                         lower_bound=0)


def main(_):
    options = flags.FLAGS
    if not options.log_file:
        raise UserError('--log_file is not given; name the log of the run.')
    check_output_file(
        options.log_file, '--log_file', [options.model_dir], '.log')
    config = run_config.load(options.model_dir)
    events = event_log.read(options.model_dir)
    if not config or not events:
        raise UserError(f'{options.model_dir} holds no run; check --model_dir.')
    figures = summarize(
        config, events, options.kind, options.e2e_secs, is_bound=options.bound)
    final_lines = [
        '------------------ Final result ------------------',
        f"Final Performance images/sec : {figures['ActualFPS']}",
        f"Final Train Accuracy : {figures['TrainAccuracy']}",
        f"E2E Training Duration sec : {figures['E2ETrainingTime']}"]
    steps = [event for event in events
             if event['event'] == 'train' and event['loss'] is not None]
    folder = os.path.dirname(options.log_file)
    with readable_errors():
        _write(folder, f"{figures['CaseName']}.log",
               [f'{key} = {value}' for key, value in figures.items()])
        _write(folder, f"train_{figures['CaseName']}_loss.txt", [event['loss'] for event in steps])
        with tf.gfile.GFile(options.log_file, 'a') as log:
            log.write('\n'.join([*_log_lines(steps, config.global_batch_size), *final_lines, '']))
    print('\n'.join(final_lines))


def summarize(config, events, kind, e2e_secs, is_bound=False):
    """Returns the keys and values of CaseName.log, in the ModelZoo's order.

    Args:
      config: the run's `Config`.
      events: list of dict, see `event_log.read`.
      kind: 'full' or 'performance'.
      e2e_secs: seconds from start to end, with evaluations.
      is_bound: whether each rank was bound to its own cores.

    Returns:
      dict of str to str or int. ActualFPS is images per second of all ranks together, TrainingTime
      milliseconds per step. A value is 'not measured' if the run was too short for it.
    """
    steps = [event for event in events if event['event'] == 'train']
    evaluations = [event for event in events if event['event'] == 'eval']
    images_per_sec, step_ms = event_log.images_per_sec(steps), None
    if images_per_sec:
        step_ms = 1000 * config.global_batch_size / images_per_sec
    network, batch_size = config.model.model_name, config.data.batch_size
    case = f"{network}{'_bindcore' * is_bound}_bs{batch_size}_{config.num_ranks}p"
    return {
        'Network': network,
        'RankSize': config.num_ranks,
        'BatchSize': batch_size,
        'DeviceType': platform.machine(),
        'CaseName': f'{case}_{_SUFFIXES[kind]}',
        'ActualFPS': _text(images_per_sec, 2),
        'TrainingTime': _text(step_ms, 2),
        'TrainAccuracy': _text(_last(evaluations if kind == 'full' else steps, 'top_1'), 4),
        'ActualLoss': _text(_last(steps, 'loss'), 4),
        'E2ETrainingTime': e2e_secs,
    }


def _last(events, key):
    return events[-1][key] if events else None


def _text(value, digits):
    return 'not measured' if value is None else f'{value:.{digits}f}'


def _log_lines(steps, global_batch_size):
    """Yields lines as in an Estimator's log, which the ModelZoo's tools look for."""
    for event in steps:
        if event.get('images_per_sec'):
            rate = event['images_per_sec'] / global_batch_size
            yield f'INFO:tensorflow:global_step/sec: {rate:.6g}'
        yield f"INFO:tensorflow:loss = {event['loss']:.6g}, step = {event['step']}"


def _write(folder, name, lines):
    with whole_file(os.path.join(folder, name)) as file:
        file.write(''.join(f'{line}\n' for line in lines))


if __name__ == '__main__':
    define_flags()
    app.run(main)
