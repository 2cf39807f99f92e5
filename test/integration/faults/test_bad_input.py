"""Every flag and every input of every program, wrong in every way: one sentence, and nothing done.

The flags are those that the programs themselves list: a new one is tried without being named here,
unless its values are text, which somebody has to think of.
"""
import glob
import os
import re
import shutil
import xml.etree.ElementTree

import bad_files
from conftest import ROOT
from conftest import TINY
import numpy as np
import pytest
import test_mutated_inputs

from weights import safetensors_file
from weights import timm_names

NAME = 'efficientnet-condconv-b0-4e'
WEIGHTS_NAME = 'tf_efficientnet_lite0.safetensors'
MOST_SECS = 10
# What a flag's kind allows no program to take. Of whole numbers the last is over any limit.
WRONG = {
    'int': ['abc', '', 'nan', 'inf', '1.5', '-1', '-' + '9' * 30, '9' * 30, '2147483648'],
    'float': ['abc', '', 'nan', 'inf', '-inf', '-1', '1e308'],
    'bool': ['maybe', '', '2'],
    'string enum': ['no_such_value', ''],
    'multi string enum': ['no_such_value', ''],
    'image size': ['abc', '', '1.5', '0x5', '5x0', '224x', 'x224', '224x224x3', 'axb', '224X288',
                   '-64x64', '7', '64x4097', '9' * 30],
}
# Program -> flags with which it would work.
GOOD = {
    'main.py': ['--data_dir=DIGITS', '--model_dir=OUT/run', *TINY, '--train_steps=1'],
    'export_model.py': ['--ckpt_dir=TRAINED', '--output_dir=OUT/export'],
    'predict.py': ['--saved_model=EXPORT', 'DIGITS/examples/one_0.jpg'],
    'inspect_model_architecture.py': [],
    'dataset.create': ['--source=folder', '--raw_dir=RAW', '--output_dir=OUT/data'],
    'dataset.inspect': ['--data_dir=DIGITS', '--contact_sheet=OUT/sheet.png'],
    'dataset.sample': ['--output_dir=OUT/data'],
    'export.offline': ['prepare', '--ckpt_dir=TRAINED', '--data_dir=DIGITS',
                       '--output_dir=OUT/inputs', '--num_images=2'],
    'report.modelzoo': ['--model_dir=TRAINED', '--log_file=OUT/log'],
    'benchmarks.train_step': [], 'benchmarks.scaling': [], 'benchmarks.input_pipeline': [],
    'benchmarks.augmentation_ops': [], 'benchmarks.dataset_create': [], 'benchmarks.finetune': [],
    'benchmarks.soak': [], 'benchmarks.summary_overhead': [], 'benchmarks.input_cost': [],
    'benchmarks.kernel_table': [],
    'report.html_report': ['TRAINED', '--output=OUT/report.html'],
    'weights.convert': ['--input=WEIGHTS', '--output_dir=OUT/weights'],
}
SHARD_FLAGS = ('train_pattern', 'eval_pattern', 'image_key', 'label_key')
NO_SHARDS = ['x*', '/etc/*', '../*', 'a//b', '[']
# Program -> flag of text -> wrong values. Flags that name a file or folder are below.
WRONG_TEXT = {
    'main.py': {
        'freeze': ['nonsense', 'blocks_99', 'blocks_5-3', 'stem,,head', 'stem,blocks_0-99'],
        'loss_scale': ['abc', '0', '-1', 'nan', 'inf', '1e999', ''],
        'dump_step': ['x', '', '-1', '5-3', '0|', '1.5', '|'.join('0' * 101)],
        'eval_name': ['../../x', 'a/b', '/etc', 'two\nlines'],
        'npu_option': ['x', '', '=1', 'a b=1'],
        # Without a folder to keep them in, compiled operators are not kept.
        'op_cache_dir': [],
        'stop_at': ['soon', '', '25:00', '2026-13-01T00:00', '9' * 30],
        'train_pattern': NO_SHARDS, 'eval_pattern': NO_SHARDS,
        'image_key': ['nonsense'], 'label_key': ['nonsense'],
    },
    'export_model.py': {
        'formats': ['caffe', 'saved_model,caffe', 'saved_model,,onnx'],
        'batch_size': ['abc', '', '0', '-1', '1.5', 'nan', '65537', '9' * 30],
        'batch_sizes': ['abc', '0', '-1', '1,x', '1,,2', '65537', '1'],
        'soc_version': ['', 'x', 'Ascend310 rm', '$(id)', 'Ascend310'],
        'endpoint_name': ['tail', 'a b', '../x'],
        # There is no --data_dir that they could be about.
        **{name: ['x'] for name in SHARD_FLAGS},
    },
    # TRAINED's own are given with GOOD; those of other commands are refused by prepare.
    'export.offline': {
        'inputs': ['x'], 'outputs': ['x'], 'json': ['x'], 'reference': ['x'], 'images': ['x'],
        'eval_pattern': NO_SHARDS, 'image_key': ['nonsense'], 'label_key': ['nonsense']},
    # The image that is predicted is not in a shard.
    'predict.py': {'eval_pattern': ['x'], 'image_key': [], 'label_key': []},
    'inspect_model_architecture.py': {
        **{name: ['x'] for name in SHARD_FLAGS if name != 'train_pattern'},
        'model_name': ['b17', '../b0', 'efficientnet-'], 'compare': ['b17', 'b0,', 'b0,,b1'],
        'batch_sizes': ['abc', '0', '-1', '1,x', '1,,2', '65537', '²']},
    'dataset.create': {}, 'dataset.sample': {},
    # Records that lack a feature are what it tells.
    'dataset.inspect': {'train_pattern': NO_SHARDS, 'eval_pattern': NO_SHARDS, 'image_key': [],
                        'label_key': []},
    'report.modelzoo': {},
    'benchmarks.train_step': {name: ['/no/such/python'] for name in ('onednn_python',
                                                                      'pytorch_python')},
    'benchmarks.input_pipeline': {'pytorch_python': ['/no/such/python']},
    'benchmarks.scaling': {}, 'benchmarks.augmentation_ops': {},
    'benchmarks.dataset_create': {}, 'benchmarks.finetune': {}, 'benchmarks.soak': {},
    'benchmarks.summary_overhead': {}, 'benchmarks.input_cost': {}, 'benchmarks.kernel_table': {},
    # Where the images are no longer there the report says so.
    'report.html_report': {'data_dir': []},
    'weights.convert': {'timm_name': ['resnet50', 'efficientnet_b0', 'tf_efficientnet_b1'],
                        'pytorch_python': ['/no/such/python']},
}
# What an answer calls a flag, if not by its name.
CALLED = {('main.py', 'train_batch_size'): 'batch_size',
          ('export.offline', 'image_key'): 'nonsense',
          ('inspect_model_architecture.py', 'num_label_classes'): 'num_classes',
          ('inspect_model_architecture.py', 'model_name'): 'unknown model',
          ('inspect_model_architecture.py', 'compare'): 'unknown model'}
# Program, flags that do not go together, words of the answer.
CONTRADICTIONS = [
    ('main.py', '--train_steps=1 --train_epochs=1', '--train_epochs'),
    ('main.py', '--npu_dump_data --over_dump', '--over_dump'),
    ('main.py', '--transpose_input --data_format=channels_first', '--transpose_input'),
    ('main.py', '--data_format=channels_first', '--data_format'),
    ('main.py', '--nesterov', '--nesterov'),
    ('main.py', '--modify_mixlist=DIGITS/dataset_info.json --precision_mode=force_fp32',
     '--modify_mixlist'),
    ('main.py', '--freeze=stem', '--init_checkpoint'),
    ('main.py', '--obs_dir=OUT/run/obs', '--obs_dir'),
    ('main.py', '--mode=eval --eval_once', 'no checkpoint'),
    ('main.py', '--num_train_images=7', '--num_train_images'),
    ('main.py', '--num_eval_images=1001', '--num_eval_images'),
    ('main.py', '--num_label_classes=7', '--num_label_classes'),
    ('main.py', '--label_base=0', '--label_base'),
    ('main.py', '--holdout_shards=4', '--holdout_shards'),
    ('main.py', '--train_epochs=1e6 --train_steps=1', '--train_epochs'),
    ('main.py', '--mode=train --per_class_csv=OUT/classes.csv', '--per_class_csv'),
    ('main.py', '--mode=train --early_stopping_evals=2', '--early_stopping_evals'),
    ('main.py', '--class_weights=balanced --sampling=balanced', '--sampling'),
    ('main.py', '--lr_range_min=20', '--lr_range_min'),
    ('main.py', '--normalization=advprop --noadvprop_preprocessing', '--noadvprop_preprocessing'),
    ('main.py', 'stray', 'stray'),
    ('main.py', '--model_dir=~/run', '--model_dir=~/run'),
    ('dataset.create', '--output_dir=~/data', '$HOME'),
    ('export_model.py', '--checkpoint=TRAINED', '--checkpoint'),
    ('export_model.py', '--ckpt_dir=', '--ckpt_dir'),
    ('export_model.py', '--output_dir=', '--output_dir'),
    ('export_model.py', '--input=image_bytes --formats=onnx', 'onnx'),
    ('export_model.py', '--quantize', '--quantize'),
    ('export_model.py', '--aipp', '--aipp'),
    ('export_model.py', '--formats=frozen --batch_sizes=1 --batch_size=2', '--batch_size'),
    ('export_model.py', '--formats=frozen --input=image_bytes --batch_sizes=1', '--batch_sizes'),
    ('export_model.py', '--num_label_classes=48', '--num_label_classes'),
    ('export_model.py', '--num_label_classes=7', '--num_label_classes'),
    ('export_model.py', '--model_name=efficientnet-b0', '--model_name'),
    ('export_model.py', '--normalization=advprop --advprop_preprocessing=false', '--normalization'),
    ('predict.py', '--checkpoint=TRAINED', '--checkpoint'),
    ('predict.py', '--saved_model=', '--saved_model'),
    ('predict.py', '--data_dir=DIGITS', '--data_dir'),
    ('predict.py', '--image_size=64', '--image_size'),
    ('predict.py', '--image_size=64x96', '--image_size'),
    ('predict.py', '--advprop_preprocessing', '--advprop_preprocessing'),
    ('predict.py', '--normalization=advprop', '--normalization'),
    ('predict.py', '--num_label_classes=10', '--num_label_classes'),
    ('predict.py', f'--model_name={NAME}', '--model_name'),
    ('inspect_model_architecture.py', '--json --csv', '--csv'),
    ('inspect_model_architecture.py', '--compare=b0 --model_name=b1', '--model_name'),
    ('inspect_model_architecture.py', '--compare=b0 --batch_sizes=8', '--batch_sizes'),
    ('inspect_model_architecture.py', '--data_dir=DIGITS --batch_sizes=8', '--data_dir'),
    ('inspect_model_architecture.py', '--checkpoint=TRAINED', '--data_dir'),
    ('inspect_model_architecture.py', '--data_dir=DIGITS', '--checkpoint'),
    ('inspect_model_architecture.py', '--checkpoint=TRAINED --data_dir=DIGITS --model_name=b0',
     'CondConv'),
    ('dataset.create', '--synset_labels=RAW/x', '--synset_labels'),
    ('dataset.create', '--source=imagenet --validation_fraction=0.5', '--validation_fraction'),
    ('dataset.create', '--source=imagenet --class_order=number', '--class_order'),
    ('dataset.create', '--num_train_shards=99', '--num_train_shards'),
    ('dataset.create', '--output_dir=RAW/out', '--raw_dir'),
    ('dataset.sample', '--output_dir=RAW --folders', 'RAW'),
    ('weights.convert', '--input=', '--input'),
    ('weights.convert', '--output_dir=', '--output_dir'),
    ('weights.convert', '--output_dir=RAW', 'RAW: not empty'),
    ('weights.convert', '--model_name=efficientnet-b0', '--model_name'),
    ('weights.convert', '--input=TRAINED', '--width_coefficient'),
    ('weights.convert', '--class_names=IMAGENET/synset_labels.txt', '4 names'),
    ('weights.convert', '--verify', '--pytorch_python'),
    ('weights.convert', '--verify --pytorch_python=/no/such/python', '--pytorch_python'),
    # What would be overwritten, or has no room for its name.
    ('predict.py', '--csv=DIGITS/examples/one_0.jpg', '--csv'),
    ('predict.py', '--csv=TRAINED/config.json', '--csv'),
    ('report.html_report', '--output=TRAINED/results.jsonl', '--output'),
    ('report.modelzoo', '--log_file=TRAINED/checkpoint', '--log_file'),
    ('dataset.inspect', '--contact_sheet=DIGITS/train-00000-of-00004', '--contact_sheet'),
    ('benchmarks.augmentation_ops', '--json=DIGITS/dataset_info.json', '--json'),
    *((program, f'--{flag}=OUT/{"x" * 300}', f'--{flag}') for program, flag in (
        ('main.py', 'model_dir'), ('main.py', 'export_dir'), ('predict.py', 'csv'),
        ('export_model.py', 'output_dir'), ('report.html_report', 'output'))),
]
# Program, flags where PATH is, the name of PATH, a good one. PATH has to be a file.
FILES = [
    ('main.py', '--flagfile=PATH', 'f.flags', None),
    ('main.py', '--modify_mixlist=PATH', 'mixlist.json', 'TRAINED/config.json'),
    ('main.py', '--init_checkpoint=PATH', 'model.ckpt-6', None),
    ('main.py', '--class_weights=PATH', 'weights.csv', 'TRAINED/config.json'),
    ('export_model.py', '--ckpt_dir= --checkpoint=PATH', 'model.ckpt-6', None),
    ('predict.py', '--saved_model=PATH', f'{NAME}.pb', f'EXPORT/{NAME}.pb'),
    ('export.offline', '--ckpt_dir= --frozen_graph=PATH', f'{NAME}.pb', f'EXPORT/{NAME}.pb'),
    ('predict.py', '--saved_model=PATH', f'{NAME}.tflite', f'EXPORT/{NAME}.tflite'),
    ('predict.py', '--saved_model=PATH', f'{NAME}.onnx', f'EXPORT/{NAME}.onnx'),
    ('predict.py', '--saved_model=PATH', 'model.zip', f'EXPORT/{NAME}.pb'),
    ('predict.py', '--saved_model= --checkpoint=PATH', 'model.ckpt-6', None),
    ('main.py', '--class_names=PATH', 'labels.txt', 'EXPORT/labels.txt'),
    ('export_model.py', '--class_names=PATH', 'labels.txt', 'EXPORT/labels.txt'),
    ('predict.py', '--class_names=PATH', 'labels.txt', 'EXPORT/labels.txt'),
    ('predict.py', '--labels=PATH', 'labels.txt', 'EXPORT/labels.txt'),
    ('predict.py', 'PATH', 'x.jpg', 'DIGITS/examples/two_0.jpg'),
    ('predict.py', 'PATH', 'x.tfrecord', 'DIGITS/validation-00000-of-00002'),
    ('inspect_model_architecture.py', '--checkpoint=PATH --data_dir=DIGITS', 'model.ckpt-6', None),
    ('dataset.create', '--source=imagenet --raw_dir=IMAGENET --synset_labels=PATH', 'labels',
     'IMAGENET/synset_labels.txt'),
    ('dataset.create', '--source=imagenet --raw_dir=IMAGENET --synset_names=PATH', 'names', None),
    ('dataset.create', '--source=imagenet --raw_dir=IMAGENET --bounding_boxes=PATH', 'boxes',
     None),
    ('weights.convert', '--class_names=PATH', 'labels.txt', 'EXPORT/labels.txt'),
    *((program, f'{words}=PATH', WEIGHTS_NAME, 'WEIGHTS') for program, words in (
        ('main.py', '--init_checkpoint'), ('predict.py', '--saved_model= --checkpoint'),
        ('export_model.py', '--ckpt_dir= --checkpoint'), ('weights.convert', '--input'))),
]
# PATH has to be a folder that holds something.
FOLDERS = [
    ('main.py', '--data_dir=PATH'), ('main.py', '--init_checkpoint=PATH'),
    ('main.py', '--mode=eval --eval_once --model_dir=PATH'),
    ('export_model.py', '--ckpt_dir=PATH'), ('export_model.py', '--data_dir=PATH'),
    ('predict.py', '--saved_model=PATH'), ('predict.py', '--saved_model= --checkpoint=PATH'),
    ('predict.py', '--data_dir=PATH'), ('predict.py', 'PATH'),
    ('inspect_model_architecture.py', '--checkpoint=PATH --data_dir=DIGITS'),
    ('inspect_model_architecture.py', '--checkpoint=TRAINED --data_dir=PATH'),
    ('dataset.create', '--raw_dir=PATH'), ('dataset.create', '--source=imagenet --raw_dir=PATH'),
    ('dataset.inspect', '--data_dir=PATH'), ('report.modelzoo', '--model_dir=PATH'),
    ('report.html_report', 'PATH'), ('weights.convert', '--input=PATH'),
    ('export.offline', '--ckpt_dir=PATH'), ('export.offline', '--data_dir=PATH'),
    ('export.offline', '--data_dir= --images=PATH'),
]
# PATH has to be a folder that can be written to or made.
OUTPUT_FOLDERS = [
    ('main.py', '--model_dir=PATH'), ('main.py', '--model_dir=PATH/below'),
    ('main.py', '--export_dir=PATH'), ('main.py', '--obs_dir=PATH'),
    ('main.py', '--npu_dump_data --dump_dir=PATH'), ('main.py', '--over_dump --dump_dir=PATH'),
    ('main.py', '--npu_profiling --profiling_dir=PATH'),
    ('main.py', '--npu_dump_graph --graph_dir=PATH'),
    ('main.py', '--npu_auto_tune --tune_dir=PATH'),
    ('export_model.py', '--output_dir=PATH'), ('export_model.py', '--output_saved_model_dir=PATH'),
    ('dataset.create', '--output_dir=PATH'), ('dataset.sample', '--output_dir=PATH'),
    ('dataset.sample', '--output_dir=PATH --folders'),
    ('weights.convert', '--output_dir=PATH'),
    ('export.offline', '--output_dir=PATH'),
    ('benchmarks.dataset_create', '--work_dir=PATH'), ('benchmarks.finetune', '--work_dir=PATH'),
]
OUTPUT_FOLDER_FAULTS = ('file', 'dangling', 'pipe', 'locked_folder')
# PATH has to be a file that can be written.
OUTPUT_FILES = [
    ('main.py', '--per_class_csv=PATH'),
    ('export_model.py', '--output_tflite=PATH'), ('predict.py', '--csv=PATH'),
    ('dataset.inspect', '--contact_sheet=PATH'), ('report.modelzoo', '--log_file=PATH'),
    ('report.html_report', '--output=PATH'),
    *((f'benchmarks.{name}', '--json=PATH') for name in (
        'train_step', 'scaling', 'input_pipeline', 'augmentation_ops', 'dataset_create',
        'finetune', 'soak', 'summary_overhead', 'input_cost', 'kernel_table')),
]
OUTPUT_FILE_FAULTS = ('folder', 'pipe', 'socket')
# Of a folder, copied to PATH, one file is not what it was: program, flags, the folder, the file,
# what became of it.
CUT = ('truncated', 'random', 'empty')
NO_FILE = ('folder', 'pipe', 'locked')
SPOILED = [
    ('main.py', '--data_dir=PATH', 'DIGITS', 'train-00002-of-00004',
     ('missing', 'empty', 'random', 'dangling', 'socket', *NO_FILE)),
    ('main.py', '--data_dir=PATH --max_bad_records=9', 'DIGITS', 'train-00002-of-00004', NO_FILE),
    ('main.py', '--data_dir=PATH', 'DIGITS', 'dataset_info.json', CUT + NO_FILE),
    ('main.py', '--model_dir=PATH --train_steps=99', 'TRAINED', 'config.json', CUT + NO_FILE),
    *(('main.py', '--model_dir=PATH --train_steps=99', 'TRAINED', name, faults)
      for name, faults in (
          ('results.jsonl', ('dangling', *NO_FILE)), ('train.lock', ('dangling', *NO_FILE)),
          ('checkpoint', NO_FILE), ('class_counts.json', ('empty', 'random', *NO_FILE)),
          ('archive/best_eval.json', CUT + NO_FILE),
          ('eval_raw', ('file',)), ('archive', ('file',)))),
    *(('report.html_report', 'PATH', 'TRAINED', name, NO_FILE)
      for name in ('results.jsonl', 'config.json', 'archive/best_eval.json')),
    *((program, f'{arguments}=PATH{more}', 'LONE', name, faults)
      for program, arguments, more in (
          ('main.py', '--init_checkpoint', ''), ('export_model.py', '--ckpt_dir', ''),
          ('predict.py', '--saved_model= --checkpoint', ''),
          ('inspect_model_architecture.py', '--checkpoint', ' --data_dir=DIGITS'))
      for name, faults in (
          ('model.ckpt-6.index', ('missing', 'dangling', *CUT, *NO_FILE)),
          ('model.ckpt-6.data-00000-of-00001', ('missing', 'dangling', *CUT, *NO_FILE)),
          ('config.json', CUT + NO_FILE if program != 'main.py' else ()))),
    # An export is compared on the images that there are.
    *((program, f'{arguments}=PATH', 'DIGITS', 'validation-00000-of-00002',
       ('missing', 'empty', 'dangling', *NO_FILE,
        *(['random'] if program != 'export_model.py' else [])))
      for program, arguments in (
          ('export_model.py', '--data_dir'), ('predict.py', '--data_dir'),
          ('inspect_model_architecture.py', '--checkpoint=TRAINED --data_dir'))),
    ('dataset.inspect', '--data_dir=PATH', 'DIGITS', 'train-00002-of-00004',
     ('missing', 'dangling', 'socket', *NO_FILE)),
    ('predict.py', '--saved_model=PATH', 'EXPORT', '6/saved_model.pb', ('missing', *CUT, *NO_FILE)),
    ('predict.py', '--saved_model=PATH', 'EXPORT', '6/variables/variables.index',
     ('missing', *CUT, *NO_FILE)),
    ('predict.py', '--saved_model=PATH', 'EXPORT', '6/variables/variables.data-00000-of-00001',
     ('missing', *CUT, *NO_FILE)),
    ('predict.py', '--saved_model=PATH', 'EXPORT', '6/assets.extra/export.json', CUT + NO_FILE),
    ('predict.py', f'--saved_model=PATH/{NAME}.onnx', 'EXPORT', f'{NAME}.onnx.json',
     CUT + NO_FILE),
]
# What may be there in place of a flagfile or a checkpoint, and does no harm.
HARMLESS = {('f.flags', 'empty'), ('f.flags', 'pipe'),
            # A pipe that ends is what the shell's <(...) gives; and an empty file has no flags.
            ('model.ckpt-6', 'truncated'), ('f.flags', 'truncated'), ('names', 'truncated'),
            ('boxes', 'truncated')}


@pytest.fixture(scope='module')
def place(tmp_path_factory, programs, digits_dir, trained_dir):
    """Word in the tables above -> path."""
    folder = tmp_path_factory.mktemp('bad_input')
    paths = {'DIGITS': digits_dir, 'TRAINED': trained_dir,
             **{name: str(folder / name)
                for name in ('OUT', 'EXPORT', 'RAW', 'IMAGENET', 'IN', 'LONE')}}
    # A run with one checkpoint. Of several, the one before a damaged one is used.
    shutil.copytree(trained_dir, paths['LONE'])
    for path in glob.glob(f"{paths['LONE']}/model.ckpt-[0-5].*"):
        os.remove(path)
    paths['WEIGHTS'] = str(folder / WEIGHTS_NAME)
    safetensors_file.write(paths['WEIGHTS'], {
        row.theirs: np.zeros(row.their_shape, np.float32)
        for row in timm_names.tensors('efficientnet-lite0', 10)}, {})
    ended = programs.run('export_model.py', f'--ckpt_dir={trained_dir}',
                         f"--output_dir={paths['EXPORT']}",
                         '--formats=saved_model,frozen,tflite,onnx', timeout_secs=200)
    assert ended.returncode == 0, ended.stderr
    for index, digit in enumerate(('one', 'two', 'one', 'two')):
        for class_dir in (f'RAW/{digit}', f'IMAGENET/train/n0000000{digit == "two":d}',
                          'IMAGENET/val'):
            (folder / class_dir).mkdir(parents=True, exist_ok=True)
            shutil.copy(f'{digits_dir}/examples/{digit}_0.jpg',
                        str(folder / class_dir / f'{index}.jpg'))
    (folder / 'IMAGENET' / 'synset_labels.txt').write_text('n00000000\nn00000001\n' * 2)
    return paths


class Trial:
    """Runs programs on what is wrong, and keeps a list of what did not go as it has to."""

    def __init__(self, programs, place):
        self._programs, self._place = programs, place
        self.problems, self.count = [], 0
        self.environment = {}

    def path(self, text):
        for name, path in self._place.items():
            text = text.replace(name, path)
        return text

    def refuse(self, program, arguments, words, fault=None, name='', good=None, folder=None):
        """Runs `program` with `fault` at PATH; the first line of its errors has to have `words`.

        With `folder`, PATH is a copy of that and the fault lies in it.
        """
        shutil.rmtree(self._place['OUT'], ignore_errors=True)
        self._clear_inputs()
        path = os.path.join(self._place['IN'], 'folder' if folder else name)
        if folder:
            shutil.copytree(self.path(folder), path)
        if fault:
            bad_files.make(fault, os.path.join(path, name) if folder else path,
                           good and self.path(good))
        os.mkdir(self._place['OUT'])
        arguments = [self.path(word) for word in [*GOOD[program], *arguments]]
        if program == 'predict.py' and arguments[-1] in ('PATH', '--data_dir=PATH'):
            del arguments[1]  # the image that can be read
        arguments = [word.replace('PATH', path) for word in arguments]
        before = tree(self._place)
        ended = self._programs.run(program, *arguments, timeout_secs=1.2 * MOST_SECS,
                                   **self.environment)
        lines = [line for line in ended.stderr.splitlines() if ' error: ' in line]
        self.count += 1
        faults = [text for text, is_wrong in (
            (f'exit code {ended.returncode}', ended.returncode not in (1, 2)),
            (f'it took {ended.secs:.1f} s', ended.secs > MOST_SECS),
            ('not one line of error', len(lines) != 1 and program != 'predict.py'),
            ('a traceback', 'Traceback' in ended.stderr or 'Fatal Python' in ended.stderr),
            (f'not named: {words}', not lines or words.replace('PATH', path) not in lines[0]),
            ('the disk changed', tree(self._place) != before)) if is_wrong]
        if faults:
            self.problems.append((program, arguments, fault, faults, ended.stderr[-600:]))

    def _clear_inputs(self):
        place = self._place['IN']
        if os.path.isdir(place):
            for name in os.listdir(place):
                bad_files.make('missing', os.path.join(place, name))
            os.rmdir(place)
        os.mkdir(place)


@pytest.fixture
def trial(programs, place):
    made = Trial(programs, place)
    yield made
    shown = '\n'.join(map(str, made.problems[:20]))
    assert not made.problems, f'{len(made.problems)} of {made.count}:\n{shown}'


def tree(place):
    """Path -> size and time of all that lies in the folders of `place`."""
    found = {}
    for folder in place.values():
        for parent, folders, files in os.walk(folder):
            for name in folders + files:
                path = os.path.join(parent, name)
                status = os.lstat(path)
                found[path] = status.st_size, status.st_mtime_ns, status.st_mode
    return found


def flags_of(programs, program):
    """(name, kind) of each flag that a program lists in its help."""
    text = programs.run(program, '--helpxml').stdout
    root = xml.etree.ElementTree.fromstring(text[text.index('<?xml'):])
    return [(flag.findtext('name'), flag.findtext('type')) for flag in root.iter('flag')
            if not flag.findtext('file').startswith(('absl', 'tensorflow'))]


def flag_cases(programs, program):
    """(flag, wrong value) of each flag of a program."""
    for name, kind in flags_of(programs, program):
        for value in WRONG.get(kind, ()):
            yield name, value
    for name, values in WRONG_TEXT[program].items():
        for value in values:
            yield name, value


def file_cases():
    """(program, arguments, fault, name, good) of each thing that is none of the wanted kind."""
    for program, words, name, good in FILES:
        for fault in bad_files.FILE_FAULTS:
            if (name, fault) not in HARMLESS:
                yield program, words, fault, name, good
    for table, faults in ((FOLDERS, bad_files.FOLDER_FAULTS),
                          (OUTPUT_FOLDERS, OUTPUT_FOLDER_FAULTS),
                          (OUTPUT_FILES, OUTPUT_FILE_FAULTS)):
        for program, words in table:
            for fault in faults:
                yield program, words, fault, 'input', None


@pytest.mark.slow
@pytest.mark.parametrize('program', GOOD)
def test_no_flag_takes_a_wrong_value(programs, trial, program):
    for name, value in flag_cases(programs, program):
        trial.refuse(program, [f'--{name}={value}'], CALLED.get((program, name), name))


@pytest.mark.parametrize('program', GOOD)
def test_every_flag_of_text_is_in_a_table(programs, program):
    tables = ' '.join([row[1] for row in FILES + FOLDERS + OUTPUT_FOLDERS + OUTPUT_FILES
                       if row[0] == program])
    for name, kind in flags_of(programs, program):
        assert kind in WRONG or name in WRONG_TEXT[program] or f'--{name}=' in tables, name


@pytest.mark.slow
def test_no_program_takes_a_contradiction(trial):
    for program, arguments, words in CONTRADICTIONS:
        trial.refuse(program, arguments.split(), trial.path(words))


@pytest.mark.slow
@pytest.mark.parametrize('program', sorted({case[0] for case in file_cases()}))
def test_no_program_takes_what_is_no_file_or_folder_of_its_kind(trial, program):
    for its_program, arguments, fault, name, good in file_cases():
        if its_program == program:
            trial.refuse(program, arguments.split(), 'PATH', fault, name, good)


@pytest.mark.slow
@pytest.mark.parametrize('program', sorted({row[0] for row in SPOILED}))
def test_no_program_takes_a_folder_with_a_file_that_is_spoiled(trial, program):
    for its_program, arguments, folder, name, faults in SPOILED:
        for fault in faults if its_program == program else ():
            trial.refuse(program, arguments.split(), 'PATH', fault, name, f'{folder}/{name}',
                         folder)


@pytest.mark.parametrize('text', [
    '{', '[]', '5', '"worker"', 'null', '{"cluster": []}', '{"cluster": {"worker": 5}}',
    '{"cluster": {"worker": ["a:1", 7]}}', '{"cluster": {"worker": ["a:1"]}, "task": []}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"index": "0"}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"index": true}}',
    '{"cluster": {"worker": ["a:1", "no port"]}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"worker": ["a:1", "a:99999"]}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}'])
def test_a_tf_config_that_describes_no_place_among_workers(programs, trial, text):
    trial.environment = {'TF_CONFIG': text}
    trial.refuse('main.py', ['--accelerator=stock'], 'TF_CONFIG')


def test_a_modelarts_job_without_npu_bridge_ends_before_it_fetches(programs, tmp_path):
    ended = programs.run(
        'boot_modelarts.py', f'--data_url={tmp_path}', f'--train_url={tmp_path}/out',
        f'--data_dir={tmp_path}/data', f'--model_dir={tmp_path}/run', ASCEND_OPP_PATH='/opp')
    assert ended.returncode == 1 and 'error: ASCEND_OPP_PATH=/opp' in ended.stderr
    assert not (tmp_path / 'data').exists()


def test_the_documentation_says_how_much_is_tried(programs):
    with open(os.path.join(ROOT, 'docs', 'faults.md')) as file:
        rows = re.findall(r'(?m)^\| .*?over ([\d,]+)', file.read())
    told = [int(number.replace(',', '')) for number in rows]
    tried = [sum(len(list(flag_cases(programs, program))) for program in GOOD),
             len(CONTRADICTIONS), len(list(file_cases())), sum(len(row[4]) for row in SPOILED),
             test_mutated_inputs.NUM_MUTATED]
    assert len(told) == len(tried)
    assert all(fewer <= number for fewer, number in zip(told, tried)), (told, tried)
