"""Runs the contenders of a benchmark in turn, each in its own process.

Contenders start one after another, so that none slows down another's start. Their steps alternate,
so that a change in the machine's speed affects all contenders.
"""
import statistics
import sys

from benchmarks import contenders
from benchmarks import network_flags
from benchmarks import outputs
from benchmarks import protocol
from common.errors import UserError

_MODULES = {protocol.NAIVE: 'benchmarks.tensorflow_worker',
            protocol.OURS: 'benchmarks.tensorflow_worker',
            protocol.OPTIMIZED: 'benchmarks.tensorflow_worker',
            protocol.ONEDNN: 'benchmarks.tensorflow_worker',
            protocol.PYTORCH: 'benchmarks.pytorch_worker',
            protocol.PYTORCH_COMPILE: 'benchmarks.pytorch_worker'}
# By default, glibc returns every large tensor to the kernel and pages it in again. TensorFlow has
# its own allocator, which keeps the memory.
_KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': str(2 ** 32), 'MALLOC_TRIM_THRESHOLD_': str(2 ** 34),
                'MALLOC_TOP_PAD_': str(2 ** 28)}
_ENVIRONMENTS = {protocol.PYTORCH: _KEEP_MEMORY, protocol.PYTORCH_COMPILE: _KEEP_MEMORY}
# Contenders with their own interpreter: its flag, its packages, and a statement that checks them.
_PEERS = {
    protocol.ONEDNN: ('onednn_python', 'intel-tensorflow',
                      'import pkg_resources; pkg_resources.get_distribution("intel-tensorflow")'),
    protocol.PYTORCH: ('pytorch_python', 'torch and timm', 'import timm, torch'),
    protocol.PYTORCH_COMPILE: (
        'pytorch_python', 'torch, timm and a C++ compiler that torch.compile finds',
        'import timm, torch; torch.compile(torch.nn.SiLU())(torch.ones(8))'),
}
# Columns of the table: heading -> function of a contender's figures.
_COLUMNS = {
    'images/s': lambda figures: '{median:.1f}'.format(**figures['images_per_sec']),
    'least to most': lambda figures: '{min:.1f} to {max:.1f}'.format(**figures['images_per_sec']),
    'build + first step (s)': lambda figures: '{:.1f}'.format(
        figures['build_secs'] + figures['first_step_secs']),
    'nodes a step': lambda figures: _grouped(figures['step_nodes']),
    'all nodes': lambda figures: _grouped(figures['graph_nodes']),
    'peak memory (MB)': lambda figures: _grouped(figures['peak_rss_mb']),
}


def define_flags(task, flags):
    """Defines the flags of a contest.

    Args:
      task: str, one of `protocol.TASKS`.
      flags: the module absl.flags of an entry point.
    """
    # The flags count as those of the calling module, so that its --help lists them.
    flags.disclaim_key_flags()
    network_flags.define(flags, batch_size=32)
    network_flags.define_image_size(flags)
    flags.DEFINE_integer('rounds', 7, 'Number of turns of each contender.', lower_bound=2)
    flags.DEFINE_integer('steps_per_round', 1, 'Steps of a turn.', lower_bound=1)
    for name in protocol.ONEDNN, protocol.PYTORCH:
        flag, packages, _ = _PEERS[name]
        flags.DEFINE_string(flag, sys.executable, f'Interpreter that has {packages}, for the '
                            f'contender {name}.')
    # The program's own inference uses TensorFlow's graph optimizer anyway.
    names = [name for name in protocol.CONTENDERS
             if task == protocol.TRAIN or name != protocol.OPTIMIZED]
    flags.DEFINE_multi_enum('contender', names, names, 'A contender; repeat the flag for several. '
                            'All of them hold their memory at the same time.')
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def run(task, options):
    """Runs a benchmark, prints its table and writes --json.

    Args:
      task: str, one of `protocol.TASKS`.
      options: object with the flags of `define_flags` as attributes.

    Raises:
      UserError: no contender can be measured.
    """
    outputs.check_json(options.json)
    image_size = network_flags.image_size(options)
    arguments = [f'--task={task}', f'--model_name={options.model_name}',
                 f'--batch_size={options.batch_size}', f'--image_size={image_size}']
    commands = {}
    for name in protocol.CONTENDERS:
        if name not in options.contender:
            continue
        interpreter = (contenders.find_interpreter(name, *_PEERS[name], options)
                       if name in _PEERS else sys.executable)
        if interpreter:
            commands[name] = ([interpreter, '-m', _MODULES[name], f'--contender={name}',
                               *arguments], _ENVIRONMENTS.get(name, {}))
    if not commands:
        raise UserError(f"--contender={','.join(options.contender)}: nobody is left to measure; "
                        'install what was missing, or add --contender=ours.')
    with contenders.started(commands) as started:
        turns = {name: [] for name in started}
        names = list(started)
        for turn in range(options.rounds):
            # Nobody always follows the same contender, which may leave its mark on the machine.
            for name in names if turn % 2 else names[::-1]:
                turns[name].append(started[name].run(options.steps_per_round))
        measured = {name: _figures(contender, turns[name],
                                   options.batch_size * options.steps_per_round)
                    for name, contender in started.items()}
    if task == protocol.TRAIN:
        _check_losses(measured)
    print(table(measured))
    rates = {name: figures['images_per_sec']['median'] for name, figures in measured.items()}
    ours = rates.pop(protocol.OURS, None)
    if ours:
        for name, rate in rates.items():
            print(f'ours / {name}: {ours / rate:.2f}')
        if protocol.NAIVE in rates:
            measured['ratio'] = round(ours / rates[protocol.NAIVE], 3)
    outputs.write_json(options.json, dict(
        model_name=options.model_name, task=task, batch_size=options.batch_size,
        image_size=image_size, **measured))


def table(measured):
    """Returns the figures of all contenders as a Markdown table."""
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
            raise RuntimeError(f"{name}: the loss did not fall ({figures['loss_first']} to "
                               f"{figures['loss_last']}); raise --rounds.")


def _figures(contender, turns, images_per_turn):
    """Ends a contender; returns its figures as written to the JSON file."""
    peak = contender.finish()
    rates = [images_per_turn / turn['secs'] for turn in turns]
    # Stochastic depth makes single losses jump, hence the median of the last five.
    losses = [loss for turn in turns for loss in turn['results']]
    spread = dict(median=statistics.median(rates), min=min(rates), max=max(rates))
    return dict(
        images_per_sec={name: round(rate, 3) for name, rate in spread.items()},
        **{name: round(value, 4) if isinstance(value, float) else value
           for name, value in {**contender.facts, **peak}.items()},
        loss_last=round(statistics.median(losses[-5:]), 4))
