"""When the evaluations of a run end it, and which of them is the best."""
import os
import signal
import threading

import pytest

from checkpoints import best
from config import run_config
from run_log import class_metrics
from run_log import evaluation_table
from run_log import event_log
from training import early_stopping
from training import preemption

TOP_1S = [0.1, 0.5, 0.5, 0.3, 0.6, 0.6, 0.2]
LOSSES = [2.0, 1.5, 1.4, 1.3, 1.3, 1.35, None]
MACRO_F1S = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def write(model_dir, step, weights='ema', **fields):
    event_log.append(str(model_dir), 'eval', **{**dict(
        step=step, weights=weights, top_1=TOP_1S[step - 1], cross_entropy=LOSSES[step - 1],
        macro_f1=MACRO_F1S[step - 1], num_images=10, name=None), **fields})


@pytest.fixture
def configure(tmp_path):
    def make(**values):
        return run_config.from_values({
            'data_dir': 'synthetic', 'model_dir': str(tmp_path), 'train_steps': 100, **values})
    return make


@pytest.mark.parametrize('metric, patience, last_step', [
    ('top_1', 2, 4), ('top_1', 3, None), ('top_1', 1, 3), ('loss', 2, 6), ('loss', 3, 7),
    ('macro_f1', 1, 7), ('top_1', None, None)])
def test_training_ends_after_evaluations_that_are_no_better(
        tmp_path, configure, metric, patience, last_step):
    """An equal one is no better; one whose cross entropy is not finite is none at all."""
    config, ends_at = configure(best_metric=metric, early_stopping_evals=patience), None
    for step in range(1, 8):
        write(tmp_path, step, 'raw', top_1=0.01 * step)
        write(tmp_path, step)
        # Each of them as after a restart: nothing but the events counts.
        if early_stopping.find(config, str(tmp_path), step):
            ends_at = step
            break
    assert ends_at == last_step


def test_the_reason_is_told(tmp_path, configure):
    for step in range(1, 5):
        write(tmp_path, step)
    assert early_stopping.find(configure(early_stopping_evals=2), str(tmp_path), 4) == (
        ': 2 evaluations in a row without a better top_1 than 0.5000 of step 2')


def test_other_evaluations_do_not_count(tmp_path, configure):
    config = configure(early_stopping_evals=1)
    write(tmp_path, 1)
    for fields in (dict(name='other'), dict(image_size=48), dict(weights='raw'),
                   dict(step=3)):
        write(tmp_path, **{'step': 2, 'top_1': 0.0, **fields})
    # Evaluations on another number of images begin a new count; a repeated one counts once.
    write(tmp_path, 2, top_1=0.05, num_images=4)
    write(tmp_path, 2, top_1=0.05, num_images=4)
    assert early_stopping.find(config, str(tmp_path), 2) == ''
    write(tmp_path, 2, top_1=0.05)
    assert early_stopping.find(config, str(tmp_path), 2)
    # The last step of a run ends it anyway, with an evaluation.
    assert early_stopping.find(
        configure(early_stopping_evals=1, train_steps=2), str(tmp_path), 2) == ''


@pytest.mark.parametrize('metric, step, shown', [
    ('top_1', 5, 'top-1 0.6000'), ('loss', 4, 'cross entropy 1.3000'),
    ('macro_f1', 6, 'macro F1 0.6000')])
def test_the_best_evaluation_is_that_of_the_metric(tmp_path, metric, step, shown):
    """In the table; and in the archive, where an evaluation of an earlier version has less."""
    settings = {group: {} for group in ('data', 'model', 'optimization', 'run', 'runtime')}
    event_log.append(str(tmp_path), 'config', class_names=[], num_ranks=1,
                     **{**settings, 'run': {'best_metric': metric}})
    for number in range(1, 7):
        write(tmp_path, number)
    events = event_log.read(str(tmp_path))
    table = evaluation_table.table(events, str(tmp_path))
    assert f'Best: step {step}, {shown}; not archived' in table
    assert ('macro F1' in table) == (metric == 'macro_f1')
    evaluations = [event for event in events if event['event'] == 'eval']
    assert max(evaluations, key=lambda each: best.weight_of(each, metric))['step'] == step
    earlier = {'step': 1, 'top_1': 0.9}
    assert best.score(earlier, metric) == (0.9 if metric == 'top_1' else float('-inf'))


def test_macro_f1_is_that_of_scikit_learn():
    """f1_score([0]*4 + [1]*8, [0, 0, 0, 1, 0, 0, 1, 1, 2, 2, 2, 2], average='macro'); the last
    class has no image and is predicted for none."""
    matrix = [[3, 1, 0, 0], [2, 2, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    counts = class_metrics.counts_of(matrix)
    assert class_metrics.macro_f1(counts) == pytest.approx((2 / 3 + 4 / 11 + 0) / 3)


class Context:
    is_stopped = False

    def request_stop(self):
        self.is_stopped = True


def test_ranks_end_together_after_the_step_that_follows_the_evaluation(tmp_path):
    stops = [preemption.StopRequest(is_alone=False) for _ in range(2)]
    barrier, made = threading.Barrier(2, timeout=20), {}

    def run(rank):
        hook, context = preemption.StopHook(stops[rank], str(tmp_path), rank), Context()
        hook.begin()
        for number in range(1, 9):
            hook.before_run(context)
            # No rank ends a step before all have begun it.
            barrier.wait()
            made[rank] = number
            hook.after_run(context, None)
            if context.is_stopped:
                return
            if rank == 0 and number == 3:
                stops[rank].stop_early()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == {0: 4, 1: 4}
    for stop in stops:
        assert stop.status == preemption.EARLY_STOPPED and stop.exit_code == 0 and stop.is_settled
        # Work after the training, such as an export, is still done.
        stop.check()


def test_a_signal_after_an_early_stop_still_ends_the_run():
    with preemption.StopRequest() as stop:
        stop.stop_early()
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail('went on')
    assert stop.status == preemption.INTERRUPTED and stop.exit_code == 143
