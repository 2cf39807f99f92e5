"""Writes the files that the tools of Ascend's ModelZoo read: result lines, CaseName.log, losses.

    python3.7 -m report.modelzoo --model_dir=DIR --log_file=FILE --kind=full --e2e_secs=N

All values come from the results.jsonl of the run. test/train_*.sh run this command last.
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

# Value of --kind -> suffix of the case name.
_SUFFIXES = {'full': 'acc', 'performance': 'perf'}


def define_flags():
    flags.DEFINE_string('model_dir', '', 'Directory of the run.')
    flags.DEFINE_string('log_file', '', 'Log of the run, to which the result lines are appended. '
                        'CaseName.log and the losses are written to the same directory.')
    flags.DEFINE_enum('kind', 'full', list(_SUFFIXES), 'Source of the accuracy. full: the last '
                      'evaluation; performance: the last logged training batch.')
    flags.DEFINE_bool('bound', False, 'Whether each rank was bound to its own cores, which is part '
                      'of the case name.')
    flags.DEFINE_integer('e2e_secs', 0, 'Seconds from the start to the end of the script.',
                         lower_bound=0)


def main(_):
    options = flags.FLAGS
    if not options.log_file:
        raise UserError('--log_file: not given; name the log of the run.')
    check_output_file(
        options.log_file, '--log_file', [options.model_dir], '.log')
    config = run_config.load(options.model_dir)
    events = event_log.read(options.model_dir)
    if not config or not events:
        raise UserError(f'--model_dir={options.model_dir}: has no run; name the directory of a '
                        'run.')
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
      e2e_secs: seconds from start to end, including evaluations.
      is_bound: whether each rank was bound to its own cores.

    Returns:
      dict of str to str or int. ActualFPS is in images per second of all ranks together,
      TrainingTime in milliseconds per step. A value is 'not measured' if the run was too short.
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
    """Yields lines in the format of an Estimator's log, which the ModelZoo's tools parse."""
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
