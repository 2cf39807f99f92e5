"""What the ModelZoo's tools read of a run, from the events of one."""
import os
import re
import resource
import subprocess
import sys

import pytest

from config import run_config
from report import modelzoo
from run_log import event_log

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def step(number, images_per_sec, loss=2.0, top_1=0.25):
    return {'event': 'train', 'step': number, 'images_per_sec': images_per_sec, 'loss': loss,
            'top_1': top_1}


def evaluation(weights, top_1):
    return {'event': 'eval', 'step': 40, 'weights': weights, 'top_1': top_1}


@pytest.fixture
def make_config(tmp_path):
    def make(num_ranks=2):
        config = run_config.from_values(
            {'data_dir': str(tmp_path), 'model_dir': str(tmp_path / 'run'), 'batch_size': 16,
             'train_steps': 40, 'model_name': 'efficientnet-b0'})
        return run_config.dataclasses.replace(config, num_ranks=num_ranks)
    return make


def test_the_figures_of_a_full_run(make_config):
    events = [step(10, 50.0), step(20, 200.0), step(30, 100.0), step(40, 400.0, loss=1.5),
              evaluation('raw', 0.75), evaluation('ema', 0.5)]
    figures = modelzoo.summarize(make_config(), events, 'full', e2e_secs=90)
    assert list(figures) == [
        'Network', 'RankSize', 'BatchSize', 'DeviceType', 'CaseName', 'ActualFPS', 'TrainingTime',
        'TrainAccuracy', 'ActualLoss', 'E2ETrainingTime']
    assert figures['CaseName'] == 'efficientnet-b0_bs16_2p_acc'
    assert (figures['RankSize'], figures['BatchSize']) == (2, 16)
    # Images of both ranks per second, milliseconds of a step of both: 32 images at 200 a second.
    assert figures['ActualFPS'] == '200.00' and figures['TrainingTime'] == '160.00'
    assert figures['TrainAccuracy'] == '0.5000' and figures['ActualLoss'] == '1.5000'


def test_the_accuracy_of_a_performance_run_is_of_its_last_batch(make_config):
    figures = modelzoo.summarize(
        make_config(1), [step(1, None), step(2, 80.0, top_1=0.125)], 'performance', 9)
    assert figures['CaseName'] == 'efficientnet-b0_bs16_1p_perf'
    assert figures['ActualFPS'] == '80.00' and figures['TrainAccuracy'] == '0.1250'


def test_that_ranks_were_bound_to_cores_is_in_the_name(make_config):
    figures = modelzoo.summarize(make_config(), [step(1, None)], 'full', 9, is_bound=True)
    assert figures['CaseName'] == 'efficientnet-b0_bindcore_bs16_2p_acc'


def test_what_was_not_measured_is_not_made_up(make_config):
    figures = modelzoo.summarize(make_config(), [step(1, None, loss=0.0)], 'full', 9)
    assert figures['ActualFPS'] == figures['TrainingTime'] == 'not measured'
    assert figures['TrainAccuracy'] == 'not measured' and figures['ActualLoss'] == '0.0000'


def write_out(model_dir, log, most_bytes=resource.RLIM_INFINITY):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))

    return subprocess.run(
        [sys.executable, '-m', 'report.modelzoo', f'--model_dir={model_dir}', f'--log_file={log}',
         '--kind=full', '--e2e_secs=12'], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=limit)


@pytest.mark.slow
def test_the_lines_and_files(make_config, tmp_path):
    config, model_dir, log = make_config(), str(tmp_path / 'run'), tmp_path / 'train_0.log'
    os.mkdir(model_dir)
    config.save()
    for number, loss in ((10, 3.0), (20, 2.5)):
        event_log.append(model_dir, **step(number, 64.0, loss))
    event_log.append(model_dir, **evaluation('ema', 0.5))
    log.write_text('what the run said\n')
    completed = write_out(model_dir, log)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.splitlines() == [
        '------------------ Final result ------------------',
        'Final Performance images/sec : 64.00',
        'Final Train Accuracy : 0.5000',
        'E2E Training Duration sec : 12']
    text = log.read_text()
    assert text.startswith('what the run said\n') and text.endswith(completed.stdout)
    assert re.findall(r'^INFO:tensorflow:(.*)$', text, re.MULTILINE) == [
        'global_step/sec: 2', 'loss = 3, step = 10', 'global_step/sec: 2', 'loss = 2.5, step = 20']
    case = (tmp_path / 'efficientnet-b0_bs16_2p_acc.log').read_text()
    assert 'ActualFPS = 64.00\n' in case and 'E2ETrainingTime = 12\n' in case
    losses = (tmp_path / 'train_efficientnet-b0_bs16_2p_acc_loss.txt').read_text()
    assert losses.split() == ['3.0', '2.5']


@pytest.mark.slow
def test_a_disk_without_room_is_one_sentence(make_config, tmp_path):
    config, model_dir, log = make_config(), str(tmp_path / 'run'), tmp_path / 'train_0.log'
    os.mkdir(model_dir)
    config.save()
    event_log.append(model_dir, **step(10, 64.0))
    before = sorted(os.listdir(tmp_path))
    completed = write_out(model_dir, log, most_bytes=20)
    assert completed.returncode == 1 and 'Traceback' not in completed.stderr
    assert 'File too large; raise the limit of file sizes' in completed.stderr.splitlines()[-1]
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.slow
def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    completed = write_out(tmp_path, tmp_path / 'log')
    assert completed.returncode == 1 and 'has no run' in completed.stderr
    assert 'Traceback' not in completed.stderr
