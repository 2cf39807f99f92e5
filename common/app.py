"""Runs the main function of a command: flags, log lines, exit codes."""
import contextlib
import functools
import itertools
import logging as standard_logging
import math
import os
import re
import select
import signal
import stat
import sys

from absl import app
from absl import flags
from absl import logging
import tensorflow.compat.v1 as tf
from tensorflow.python.util import deprecation

from common import foreign_flags
from common.errors import DiskFullError
from common.errors import UserError
from common.errors import first_line
from common.files import described

EXIT_FAILED = 1
EXIT_BAD_FLAG = 2
EXIT_INTERRUPTED = 130
EXIT_WITHOUT_READER = 141    # as of a program that SIGPIPE ends
# The largest int32, which TensorFlow counts with.
LARGEST_INTEGER = 2 ** 31 - 1
# Flag of the training programs that restricts the log to errors.
_QUIET = 'quiet'
# Flags that decide how much memory a program takes.
_SIZES = ('batch_size', 'eval_batch_size', 'input_image_size', 'image_size', 'use_cache',
          'num_parallel_calls', 'read_ahead_mb', 'num_workers', 'max_image_pixels')
_OUT_OF_MEMORY = re.compile(r'OOM|[Oo]ut of memory|OUT_OF_MEMORY|Cannot allocate memory|'
                            r'[Ff]ailed to (alloc|malloc)|Dst tensor is not initialized|bad_alloc|'
                            r'[Mm]alloc\w* .*fail')
# absl shows the arguments of its exception.
_NO_BOOLEAN = re.compile(r"\('Non-boolean argument to boolean flag', .*\)")
_FLAGFILE = re.compile(r'--?flagfile(?:=(.*))?', re.DOTALL)
_MAX_FLAGFILE_BYTES = 1 << 20
_MAX_FLAGFILES = 100


def run(main, takes_arguments=False, first_flags=None):
    """Parses the flags, runs `main(argv)`, and exits with its result (None is 0).

    A `UserError` becomes one line on stderr and exit code 1; an unknown or invalid flag becomes one
    line and exit code 2; Ctrl-C becomes one line and 130. --quiet, in a program that has it,
    restricts the log to errors.

    Args:
      main: function of the remaining arguments -> exit code.
      takes_arguments: whether main accepts arguments that are not flags.
      first_flags: dict of theme -> names of the flags that --help shows; default: all flags.
    """
    def guarded(argv):
        try:
            if len(argv) > 1 and not takes_arguments:
                raise UserError(f'unexpected argument {argv[1]!r}; flags are written '
                                '--name=value.')
            if _QUIET in flags.FLAGS and flags.FLAGS[_QUIET].value:
                logging.set_verbosity(logging.ERROR)
            exit_code = main(argv)
            print(end='', flush=True)
            return exit_code
        except KeyboardInterrupt:
            return _fail('interrupted', EXIT_INTERRUPTED)
        except Exception as error:
            explained = _explained(error)
            if explained is None:
                raise
            if isinstance(explained, DiskFullError):
                # Python would flush a full standard output once more at exit.
                sys.stdout = open(os.devnull, 'w')
            return _fail(str(explained), EXIT_FAILED)

    if sys.stdout:
        # Escapes characters that the terminal cannot encode.
        sys.stdout.reconfigure(errors='backslashreplace')
    _set_up_logging()
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(_fail(f'the working directory does not exist ({error.strerror}); change to '
                       'another one.', EXIT_FAILED))
    # Deprecation warnings are not shown, but to look for them takes 6 % of the start of a training.
    with _ended_by_the_reader(), deprecation.silence():
        app.run(guarded, flags_parser=functools.partial(
            _parse_flags, first_flags=first_flags))


def _explained(error):
    """Returns a UserError for an exception that the user can remedy, or None."""
    if isinstance(error, UserError):
        return error
    refused = described(error)
    if refused:
        return refused
    is_of_tensorflow = isinstance(error, (tf.errors.OpError, OSError))
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)) or (
            is_of_tensorflow and _OUT_OF_MEMORY.search(str(error))):
        sizes = ', '.join(f'--{name}' for name in _SIZES if name in flags.FLAGS)
        return UserError(f'out of memory ({first_line(error)}); lower {sizes or "the sizes"}, or '
                         'use a machine with more.')
    if isinstance(error, RecursionError):
        return UserError('directories, or lists in a JSON file, are nested too deeply; the limit '
                         f'is {sys.getrecursionlimit()} levels.')
    return None


@contextlib.contextmanager
def _ended_by_the_reader():
    """Exits quietly when the reader of standard output (such as `head`) closes the pipe."""
    try:
        try:
            yield
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if not poll.poll(0):
            # A pipe other than standard output is broken.
            raise
        # Python would flush standard output once more at exit.
        sys.stdout = open(os.devnull, 'w')
        sys.exit(EXIT_WITHOUT_READER)


def define_text_flags(rows):
    """Registers flags without a default; `rows` is a dict of name -> (help, choices or None)."""
    # The flags count as the caller's own, so that the --help of an entry point lists them.
    flags.disclaim_key_flags()
    for name, (help_text, choices) in rows.items():
        if choices:
            flags.DEFINE_enum(name, None, choices, help_text)
        else:
            flags.DEFINE_string(name, None, help_text)


def end_with_the_reader():
    """Lets SIGPIPE end a program that prints much, when the reader (such as `head`) closes."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _parse_flags(argv, first_flags=None):
    try:
        if first_flags and {'--help', '-help'} & set(itertools.takewhile('--'.__ne__, argv)):
            print(_first_help(first_flags))
            sys.exit(0)
        _check_flagfiles(argv[1:], iter(range(_MAX_FLAGFILES)))
        for word in argv:
            # Python decodes bytes that are not UTF-8 to these surrogates.
            if any('\udc80' <= letter <= '\udcff' for letter in word):
                raise flags.Error(f'{word!a} is not UTF-8, which TensorFlow requires of names')
        arguments = flags.FLAGS(argv)
        for name in flags.FLAGS:
            value = flags.FLAGS[name].value
            # NaN passes the bounds that absl checks.
            if isinstance(value, float) and not math.isfinite(value):
                raise flags.Error(f'flag --{name}={value}: not a finite number')
            if isinstance(value, str) and '\0' in value:
                raise flags.Error(f'flag --{name}={value!r}: no file can have this name')
            if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
                raise flags.Error(f'flag --{name}={value}: too large')
        return arguments
    except SystemExit:
        # absl's exit code after --help and --helpfull is 1.
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        refusal = foreign_flags.refusal(error.flagname, _own_flags())
        sys.exit(_fail(f'{refusal} See --helpfull for every flag.', EXIT_BAD_FLAG))
    except (flags.Error, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            given = ' '.join(word for word in argv if 'flagfile' in word)
            error = f'{given}: not a text file ({error})'
        message = ' '.join(str(error).replace('ERROR:: ', '').split())
        message = _NO_BOOLEAN.sub('it is true or false', message)
        sys.exit(_fail(f'{message.rstrip(".")}. See --helpfull for every flag.', EXIT_BAD_FLAG))


def _first_help(first_flags):
    """Returns the text of --help: one line for each of the first flags."""
    lines = [sys.modules['__main__'].__doc__.strip()]
    for theme, names in first_flags.items():
        lines += ['', f'{theme}:']
        for name in names:
            flag = flags.FLAGS[name]
            sentence = flag.help.split('. ')[0].rstrip('.')
            if flag.default not in (None, '') and 'default: ' not in sentence:
                sentence += f' (default: {flag.default})'
            lines.append(f'--{name:<24} {sentence}')
    return '\n'.join([*lines, '', f'--helpfull shows all {len(_own_flags())} flags.'])


def _own_flags():
    return {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}


def _check_flagfiles(words, numbers, including=()):
    """Raises flags.Error for a flag file that includes itself or is not a regular file.

    absl reads a device to its end, and silently skips a circular inclusion.

    Args:
      words: arguments, or lines of a file.
      numbers: iterator with one item for each file that may be read.
      including: device and inode of the files that include these lines.
    """
    words = iter(words)
    for word in words:
        if word == '--':
            break
        match = _FLAGFILE.fullmatch(word.strip())
        path = match and (next(words, '') if match[1] is None else match[1])
        if not path:
            continue
        path = os.path.expanduser(path.strip())
        given = f'--flagfile={path}'
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            raise flags.Error(f'{given} cannot be read ({first_line(error)})') from error
        key = status.st_dev, status.st_ino
        if key in including:
            raise flags.Error(f'{given} includes itself; remove that line')
        if next(numbers, None) is None:
            raise flags.Error(f'{given} is one of more than {_MAX_FLAGFILES} files; merge them')
        if not stat.S_ISREG(status.st_mode):
            kind = 'a directory' if stat.S_ISDIR(status.st_mode) else 'not a regular file'
            raise flags.Error(f'{given} is {kind}; name a text file of flags')
        if status.st_size > _MAX_FLAGFILE_BYTES:
            raise flags.Error(f'{given} is too large for a flag file')
        try:
            with open(path) as file:
                _check_flagfiles(file.read().splitlines(), numbers, (*including, key))
        except OSError as error:
            raise flags.Error(f'{given} cannot be read ({first_line(error)})') from error


def _fail(message, exit_code):
    print(f'{os.path.basename(sys.argv[0])}: error: {message}', file=sys.stderr, flush=True)
    return exit_code


def _set_up_logging():
    """Logs one short line a message, and only errors of TensorFlow's own."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(
        standard_logging.Formatter('%(asctime)s  %(message)s', '%H:%M:%S'))
    # TensorFlow 1.15 logs through a handler of its own and, by propagation, through absl's as well.
    tf.get_logger().propagate = False
    tf.logging.set_verbosity(tf.logging.ERROR)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
