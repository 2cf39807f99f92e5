"""Lets the contenders of a benchmark take turns, each in a process of its own.

They start one after the other, so that none disturbs another's start, and then run their steps in
turn: what the machine does meanwhile, it does to all of them.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks import outputs
from benchmarks import protocol
from common.errors import UserError
from config import setting
import model_builder_factory

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MODULES = {protocol.NAIVE: 'benchmarks.tensorflow_worker',
            protocol.OURS: 'benchmarks.tensorflow_worker',
            protocol.ONEDNN: 'benchmarks.tensorflow_worker',
            protocol.PYTORCH: 'benchmarks.pytorch_worker',
            protocol.PYTORCH_COMPILE: 'benchmarks.pytorch_worker'}
# glibc returns every large tensor to the kernel and pages it in again, unless it is told to keep
# them. TensorFlow has an allocator of its own that keeps them.
_KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': str(2 ** 32), 'MALLOC_TRIM_THRESHOLD_': str(2 ** 34),
                'MALLOC_TOP_PAD_': str(2 ** 28)}
_ENVIRONMENTS = {protocol.PYTORCH: _KEEP_MEMORY, protocol.PYTORCH_COMPILE: _KEEP_MEMORY}
# Those that need an interpreter of their own: its flag, what it has, and how that is seen.
_PEERS = {
    protocol.ONEDNN: ('onednn_python', 'intel-tensorflow',
                      'import pkg_resources; pkg_resources.get_distribution("intel-tensorflow")'),
    protocol.PYTORCH: ('pytorch_python', 'torch and timm', 'import timm, torch'),
    protocol.PYTORCH_COMPILE: (
        'pytorch_python', 'torch, timm and a C++ compiler that torch.compile finds',
        'import timm, torch; torch.compile(torch.nn.SiLU())(torch.ones(8))'),
}
# What a table shows: heading and how a contender's figure is found.
_COLUMNS = {
    'images/s': lambda figures: '{median:.1f}'.format(**figures['images_per_sec']),
    'least to most': lambda figures: '{min:.1f} to {max:.1f}'.format(**figures['images_per_sec']),
    'build + first step (s)': lambda figures: '{:.1f}'.format(
        figures['build_secs'] + figures['first_step_secs']),
    'nodes a step': lambda figures: _grouped(figures['step_nodes']),
    'all nodes': lambda figures: _grouped(figures['graph_nodes']),
    'peak memory (MB)': lambda figures: _grouped(figures['peak_rss_mb']),
}


def define_flags(flags):
    """Defines the options of a contest by `flags`, the module absl.flags of an entry point."""
    # They count as the caller's own, so that its --help lists them.
    flags.disclaim_key_flags()
    flags.DEFINE_enum('model_name', 'efficientnet-condconv-b0-8e',
                      model_builder_factory.MODEL_NAMES, 'The network.')
    flags.DEFINE_integer('batch_size', 32, 'Images a step.', lower_bound=1,
                         upper_bound=setting.LARGEST_BATCH_SIZE)
    setting.define_image_size('image_size', None, 'Side of the images, or HEIGHTxWIDTH; default: '
                              "the model's own.")
    flags.DEFINE_integer('rounds', 7, 'How often each contender has its turn.', lower_bound=2)
    flags.DEFINE_integer('steps_per_round', 1, 'Steps of a turn.', lower_bound=1)
    for name in protocol.ONEDNN, protocol.PYTORCH:
        flag, packages, _ = _PEERS[name]
        flags.DEFINE_string(flag, sys.executable, f'The interpreter that has {packages} for the '
                            f'contender {name}.')
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def run(task, options):
    """Runs the benchmark that `options` describe, prints its table and writes its JSON."""
    outputs.check_json(options.json)
    image_size = options.image_size or model_builder_factory.get_model_input_size(
        options.model_name)
    arguments = [f'--task={task}', f'--model_name={options.model_name}',
                 f'--batch_size={options.batch_size}', f'--image_size={image_size}']
    interpreters = {protocol.NAIVE: sys.executable, protocol.OURS: sys.executable}
    for name in _PEERS:
        interpreter = find_interpreter(name, options)
        if interpreter:
            interpreters[name] = interpreter
    contenders = {}
    try:
        for name, interpreter in interpreters.items():
            contenders[name] = _Contender(name, interpreter, arguments)
        for _ in range(options.rounds):
            for contender in contenders.values():
                contender.run(options.steps_per_round)
        measured = {name: contender.finish(options.batch_size * options.steps_per_round)
                    for name, contender in contenders.items()}
    finally:
        for contender in contenders.values():
            contender.kill()
    if task == protocol.TRAIN:
        _check_losses(measured)
    rates = [measured[name]['images_per_sec']['median'] for name in (protocol.OURS, protocol.NAIVE)]
    measured = dict(model_name=options.model_name, task=task, batch_size=options.batch_size,
                    image_size=image_size, **measured, ratio=round(rates[0] / rates[1], 3))
    print(table(measured))
    print(f"ours / naive: {measured['ratio']:.2f}")
    outputs.write_json(options.json, measured)


def find_interpreter(name, options):
    """The interpreter of a contender that needs one of its own; None, and a line, if it is not one.

    Args:
      name: a key of `_PEERS`.
      options: has an attribute for its flag.

    Raises:
      UserError: it cannot be started.
    """
    flag, packages, statement = _PEERS[name]
    interpreter = getattr(options, flag)
    try:
        completed = subprocess.run([interpreter, '-c', statement], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
    except OSError as error:
        raise UserError(f'--{flag}={interpreter} does not run ({error.strerror}); name a Python '
                        f'that has {packages}.') from error
    if completed.returncode == 0:
        return interpreter
    print(f'{name} is left out: {interpreter} has no {packages} (--{flag} names another one).',
          flush=True)
    return None


def table(measured):
    """The figures of all contenders as a table in Markdown."""
    lines = [f"| {' | '.join(['', *_COLUMNS])} |", '|---' + '|--:' * len(_COLUMNS) + '|']
    for name in protocol.CONTENDERS:
        if name in measured:
            cells = [column(measured[name]) for column in _COLUMNS.values()]
            lines.append(f"| {' | '.join([name, *cells])} |")
    return '\n'.join(lines)


def _grouped(number):
    return 'n/a' if number is None else f'{number:,.0f}'


def _check_losses(measured):
    for name in protocol.CONTENDERS:
        figures = measured.get(name)
        if figures and not figures['loss_last'] < figures['loss_first']:
            raise RuntimeError(f"The loss of {name} did not fall: {figures['loss_first']} to "
                               f"{figures['loss_last']}. Give it more --rounds.")


class _Contender:

    def __init__(self, name, interpreter, arguments):
        self._name = name
        # A file, since nobody reads it before the end, and a pipe would fill.
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            [interpreter, '-m', _MODULES[name], f'--contender={name}', *arguments], cwd=_ROOT,
            env={**os.environ, **_ENVIRONMENTS.get(name, {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            universal_newlines=True)
        self._facts = self._hear()
        self._turns = []

    def run(self, steps):
        self._process.stdin.write(f'{steps}\n')
        self._process.stdin.flush()
        self._turns.append(self._hear())

    def finish(self, images_per_turn):
        """The figures of this contender, in the form of the JSON file."""
        self._process.stdin.close()
        peak = self._hear()
        rates = [images_per_turn / turn['secs'] for turn in self._turns]
        # Dropped branches make single losses jump.
        losses = [loss for turn in self._turns for loss in turn['losses']]
        spread = dict(median=statistics.median(rates), min=min(rates), max=max(rates))
        return dict(
            images_per_sec={name: round(rate, 3) for name, rate in spread.items()},
            **{name: round(value, 4) if isinstance(value, float) else value
               for name, value in {**self._facts, **peak}.items()},
            loss_last=round(statistics.median(losses[-5:]), 4))

    def kill(self):
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()

    def _hear(self):
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f'{self._name} failed:\n{self._errors.read()}')
        return json.loads(line)
