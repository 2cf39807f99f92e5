"""benchmarks/input_pipeline.py: what it writes, and what does not depend on the machine's mood."""
import json
import os
import sys

import pytest
import tensorflow.compat.v1 as tf

from benchmarks import contenders
from benchmarks import dataset_create
from benchmarks import input_pipeline
from benchmarks import input_worker
from common.errors import UserError

# A stand-in for the parts of torch that benchmarks/pil_worker.py uses; it checks the batches.
TORCH = '''
import itertools
import numpy as np

class Tensor:
    def __init__(self, array):
        self.array = array
    def permute(self, *axes):
        return Tensor(self.array.transpose(axes))
    def contiguous(self):
        return self

from_numpy = Tensor
'''
TORCH_DATA = '''
import numpy as np

class RandomSampler:
    def __init__(self, dataset, replacement, num_samples):
        assert replacement and num_samples > 1e9
        self.size = len(dataset)

class DataLoader:
    def __init__(self, dataset, batch_size, sampler, num_workers, prefetch_factor):
        assert num_workers > 0 and prefetch_factor > 0
        self.dataset, self.batch_size, self.sampler = dataset, batch_size, sampler

    def __iter__(self):
        while True:
            batch = np.stack([self.dataset[index].array for index in np.random.randint(
                self.sampler.size, size=self.batch_size)])
            assert batch.dtype == np.uint8 and batch.shape == (32, 3, 224, 224)
            assert len({image.tobytes() for image in batch}) > 16
            yield batch
'''


@pytest.fixture
def interpreter_with_torch(tmp_path):
    """An interpreter whose torch is a stand-in, without torchvision and timm."""
    package = tmp_path / 'packages' / 'torch'
    (package / 'utils').mkdir(parents=True)
    (package / '__init__.py').write_text(TORCH)
    (package / 'utils' / '__init__.py').write_text('')
    (package / 'utils' / 'data.py').write_text(TORCH_DATA)
    interpreter = tmp_path / 'python'
    interpreter.write_text(
        f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n')
    os.chmod(interpreter, 0o755)
    return interpreter


@pytest.mark.slow
def test_the_benchmark_of_the_input_writes_its_figures(run, tmp_path, interpreter_with_torch):
    path = tmp_path / 'input.json'
    completed = run('-m', 'benchmarks.input_pipeline', f'--json={path}', '--rounds=1',
                    '--batches_per_round=2', f'--pytorch_python={interpreter_with_torch}',
                    '--row=train_none', '--row=eval', '--row=train_none_288')
    assert completed.returncode == 0, completed.stderr
    figures = json.loads(path.read_text())
    ours = ['train_none', 'eval', 'train_none_288']
    assert list(figures) == [*ours, 'pil_loader']
    assert 'pil_loader_autoaugment skipped' in completed.stdout
    for case, row in figures.items():
        assert f'\n{case} ' in completed.stdout
        assert row['images_per_sec'] > 0 and row['first_batch_secs'] > 0
    for row in map(figures.get, ours):
        assert 0 < row['ratio_to_ceiling'] < 2
        assert row['core_ms_per_image'] > 0 and row['ceiling_core_ms_per_image'] > 0
        assert row['peak_rss_mb'] < 600
        assert row['graph_nodes'] < 3000
    line, = (line for line in completed.stdout.splitlines() if line.startswith('smaller shards'))
    for case, other, name in [
            ('train_none_288', 'train_none', 'ratio_to_full_size'),
            ('train_none', 'pil_loader', 'ratio_to_pil_loader'),
            ('train_none_288', 'pil_loader', 'ratio_to_pil_loader')]:
        # One round: the median of ratios is the ratio of medians.
        ratio = figures[case]['images_per_sec'] / figures[other]['images_per_sec']
        assert figures[case][name] == pytest.approx(ratio, rel=0.01)
        assert f'{case} {figures[case][name]:.2f}' in line


# Row -> ratio -> row that it is compared with.
COMPARED = {
    'train_none': {'ratio_to_pil_loader': 'pil_loader'},
    'train_autoaugment': {'ratio_to_pil_loader': 'pil_loader_autoaugment'},
    'train_randaugment': {}, 'eval': {}, 'pil_loader': {}, 'pil_loader_autoaugment': {},
    'train_none_288': {'ratio_to_full_size': 'train_none', 'ratio_to_pil_loader': 'pil_loader'},
    'train_autoaugment_288': {'ratio_to_full_size': 'train_autoaugment',
                              'ratio_to_pil_loader': 'pil_loader_autoaugment'},
}


def test_each_row_is_compared_with_its_own():
    """All of the ratios, from turns that are made up: each row has a speed of its own."""
    rows = [*input_pipeline.PIPELINES, *input_pipeline.PIL_LOADERS]
    names = [*rows, *map(input_pipeline.ceiling_of, input_pipeline.PIPELINES)]
    turns = {name: [{'secs': 1 + index, 'core_secs': 2, 'results': [0]}]
             for index, name in enumerate(names)}
    for row in rows:
        figures = input_pipeline.summarize(
            row, {'graph_nodes': 7, 'first_batch_secs': 1}, turns, peak_rss_mb=9)
        others = dict(COMPARED[row])
        if row in input_pipeline.PIPELINES:
            others['ratio_to_ceiling'] = input_pipeline.ceiling_of(row)
        assert {name for name in figures if name.startswith('ratio')} == set(others)
        for name, other in others.items():
            ratio = turns[other][0]['secs'] / turns[row][0]['secs']
            assert figures[name] == pytest.approx(ratio, abs=1e-3)


def test_the_graph_of_each_row_is_small(digits_dir):
    for row, (_, flags) in input_pipeline.PIPELINES.items():
        with tf.Graph().as_default() as graph:
            input_worker.make_dataset(input_worker.parse_options([
                f'--data_dir={digits_dir}', '--image_size=224', '--batch_size=32', *flags]))
            assert input_worker.count_nodes(graph.as_graph_def()) < 3000, row


def test_a_command_that_fails_is_one_sentence(tmp_path):
    absent, target = str(tmp_path / 'absent'), str(tmp_path / 'made')
    with pytest.raises(UserError, match='^cp failed: cp: .*absent'):
        dataset_create.copy_with_cp(absent, target)
    with pytest.raises(UserError, match='^dataset.create failed: .*--raw_dir'):
        dataset_create.create(absent, target)
    with pytest.raises(UserError, match='^silent failed: it printed nothing$'):
        with contenders.started({'silent': (['true'], {})}):
            pass
