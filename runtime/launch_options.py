"""Parses and checks the command line of test/train_*.sh, and has its --help text."""
import dataclasses
import re
from typing import NamedTuple

from common import foreign_flags
from common.errors import UserError
from runtime import main_flags
from runtime import precision

_LARGEST_RANK_SIZE = 4096

_USAGE = f"""\
Usage: bash {{script}} --data_path=DIR [OPTIONS] [-- FLAGS OF main.py]

{{summary}}
On an Ascend host that is done with npu_bridge, elsewhere with stock TensorFlow.

  --data_path=DIR         the TFRecord shards; required
  --output_path=DIR       results of rank N go to DIR/N/, train_N.log first of all; default: test/output
  --model_name=NAME       the network; default: {main_flags.DEFAULT_MODEL_NAME}. --network_name is another
                          name for it
  --mode=MODE             train, eval (the newest checkpoint of an earlier run, once) or train_and_eval;
                          default: {{mode}}
  --batch_size=N          images per step and device; default: that of the network's recipe in recipes/,
                          {main_flags.RECIPE_BATCH_SIZE}, or without one {main_flags.DEFAULT_BATCH_SIZE}
  --train_steps=N         steps to train in all{{steps_note}}
  --train_epochs=N        the same in epochs{{epochs_note}}
  --learning_rate=RATE    the peak for 256 images a step; larger global batches get proportionally more;
                          default: that of the recipe or of main.py
  --loss_scale=SCALE      a number, or dynamic; default: dynamic where float16 is computed with, else none
  --ckpt_path=PATH        checkpoint, or its folder, whose weights a new run starts with; default: none
  --precision_mode=MODE   allow_mix_precision, force_fp32, ...; default: allow_mix_precision on NPUs,
                          float32 elsewhere
  --over_dump=True        dump operators that overflow to DIR/overflow_dump
  --data_dump_flag=True   dump tensors to DIR/data_dump
  --data_dump_step=STEPS  of these steps, like 0|5|10-20; default: 0
  --profiling=True        profile to DIR/profiling
  --autotune=True         tune operators first; results to DIR/tuning
{{rank_options}}\
  -h, --help              show this

Options =True are off unless given. What follows -- goes to main.py as it is; main.py --help lists its flags.

Ctrl-C and SIGTERM are passed on: main.py saves a checkpoint at the end of its step. The exit code is
130 or 143 then, and 0 where main.py's --max_hours or --stop_at ends the run.
"""  # noqa: E501
_RANK_USAGE = """\
  --rank_size=N           devices (without NPUs: processes) in all; default: {rank_size}
  --hosts=A,B             servers that share them evenly; started on each with the same options. The
                          first one's DIR has to be seen by all
  --host_index=N          which of the hosts this is, from 0; default: found by its address
  --bind_core=True        share out the processor's cores: each rank keeps to its own
"""


class LaunchScript(NamedTuple):
    """Describes one of test/train_*.sh.

    Attributes:
      name: of its file, for messages.
      summary: what it does, for --help.
      kind: 'full' or 'performance'.
      rank_size: default of --rank_size; 1 for a script without that option.
      default_steps: default of --train_steps as text; empty to leave it to main.py.
    """
    name: str
    summary: str
    kind: str
    rank_size: int
    default_steps: str = ''


@dataclasses.dataclass
class LaunchOptions:
    """The options of a command line as text; empty if an option was not given.

    A boolean option keeps its text if true and is empty if false. `rank_size` is an int after
    `parse`. `main_flags` is the tuple of words that follow --.
    """
    data_path: str = ''
    output_path: str = ''
    model_name: str = ''
    batch_size: str = ''
    train_steps: str = ''
    train_epochs: str = ''
    mode: str = ''
    learning_rate: str = ''
    loss_scale: str = ''
    ckpt_path: str = ''
    precision_mode: str = ''
    over_dump: str = ''
    data_dump_flag: str = ''
    data_dump_step: str = ''
    profiling: str = ''
    autotune: str = ''
    rank_size: str = ''
    hosts: str = ''
    host_index: str = ''
    bind_core: str = ''
    main_flags: tuple = ()


_ALIASES = {'network_name': 'model_name'}
_MODES = ('train', 'eval', 'train_and_eval')
_POSITIVE = r'(?=[^eE]*[1-9])([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?'
_BOOLEANS = ('over_dump', 'data_dump_flag', 'profiling', 'autotune', 'bind_core')
_RANK_OPTIONS = ('rank_size', 'hosts', 'host_index', 'bind_core')
_OPTIONS = tuple(field.name for field in dataclasses.fields(LaunchOptions)
                 if field.name != 'main_flags')


def usage(script):
    """Returns the text that --help prints for a `LaunchScript`."""
    return _USAGE.format(
        script=script.name, summary=script.summary, mode=main_flags.MODES[script.kind],
        steps_note=f"; default: {script.default_steps or 'by --train_epochs'}",
        epochs_note='' if script.default_steps else f'; default: {main_flags.DEFAULT_EPOCHS}',
        rank_options=_RANK_USAGE.format(rank_size=script.rank_size) if script.rank_size > 1 else '')


def parse(script, words):
    """Reads and checks the words of a command line.

    Returns:
      `LaunchOptions`, or None if --help is among the words.

    Raises:
      UserError: a word is not an option of the script, or a value is invalid.
    """
    options = _read(script, words)
    if options:
        _check_run(options)
        _require(options.mode in ('', 'train') or script.kind == 'full',
                 f'--mode={options.mode}: {script.name} measures training; use '
                 f"{script.name.replace('performance', 'full')}")
        if not options.train_epochs:
            options.train_steps = options.train_steps or script.default_steps
        _check_device_options(options)
        options.rank_size = int(options.rank_size)
    return options


def _read(script, words):
    options = LaunchOptions(rank_size=str(script.rank_size))
    for index, word in enumerate(words):
        if word in ('-h', '--help', '--helpfull'):
            return None
        if word == '--':
            options.main_flags = tuple(words[index + 1:])
            break
        match = re.fullmatch('--([^=]*)=(.*)', word, re.DOTALL)
        _require(match, f"unexpected argument '{word}'; options are written --data_path=DIR "
                 '(--help lists them), and flags of main.py follow after " -- "')
        name, value = match.groups()
        known = [option for option in (*_OPTIONS, *_ALIASES)
                 if script.rank_size > 1 or option not in _RANK_OPTIONS]
        _require(name in known, f'{foreign_flags.refusal(name, known)} --help lists the options; '
                 'flags of main.py follow after " -- "')
        _require(value, f'--{name}: empty; give it a value or leave it out')
        name = _ALIASES.get(name, name)
        _require(name != 'model_name' or options.model_name in ('', value),
                 f'--model_name={options.model_name} and --network_name={value}: names of one '
                 'option; keep one of them')
        setattr(options, name, value)
    return options


def _check_run(options):
    _require(options.data_path, '--data_path: not given; name the directory of the TFRecord shards')
    for name in ('batch_size', 'train_steps', 'rank_size'):
        _check(options, name, '[1-9][0-9]{0,8}', 'not a whole number from 1 on')
    for flag in options.main_flags:
        _require(not flag.startswith(('-model_dir', '--model_dir')),
                 f'{flag} after --: results are looked for in --output_path only; use that option')
    _require(not options.output_path.startswith('~'),
             f"--output_path={options.output_path}: '~' is not expanded after '='; use $HOME or an "
             'absolute path')
    _require(int(options.rank_size) <= _LARGEST_RANK_SIZE,
             f'--rank_size={options.rank_size}: above the limit of {_LARGEST_RANK_SIZE}; ask for '
             'fewer')
    _check(options, 'host_index', '[0-9]{1,4}', 'not a whole number from 0 on')
    _require(options.mode in ('', *_MODES),
             f"--mode={options.mode}: unknown; choose one of {', '.join(_MODES)}")
    _check(options, 'learning_rate', _POSITIVE, 'not a number above 0')
    _check(options, 'loss_scale', f'dynamic|{_POSITIVE}', 'neither dynamic nor a number above 0')
    _check(options, 'train_epochs', r'(?=.*[1-9])[0-9]*\.?[0-9]+', 'not a number above 0')
    _require(not (options.train_steps and options.train_epochs),
             '--train_steps and --train_epochs: mutually exclusive; keep one of them')


def _check_device_options(options):
    for name in _BOOLEANS:
        value = getattr(options, name)
        _require(value in ('', 'True', 'true', '1', 'False', 'false', '0'),
                 f'--{name}={value}: neither True nor False; give one of them')
        if value in ('False', 'false', '0'):
            setattr(options, name, '')
    _require(not (options.over_dump and options.data_dump_flag),
             '--over_dump and --data_dump_flag: mutually exclusive; keep one of them')
    _check(options, 'data_dump_step', r'[0-9]+(-[0-9]+)?(\|[0-9]+(-[0-9]+)?)*',
           'not like 0|5|10-20')
    _require(not options.precision_mode or options.precision_mode in precision.MODES,
             f'--precision_mode={options.precision_mode}: unknown; choose one of '
             f"{', '.join(precision.MODES)}")


def _check(options, name, pattern, complaint):
    value = getattr(options, name)
    _require(not value or re.fullmatch(pattern, value), f'--{name}={value}: {complaint}')


def _require(claim, message):
    if not claim:
        raise UserError(message)
