"""How every command of this repository starts and ends: flags, log lines, exit codes."""
import errno
import logging as standard_logging
import math
import os
import signal
import sys

from absl import app
from absl import flags
from absl import logging
import tensorflow.compat.v1 as tf

from common.errors import UserError

EXIT_FAILED = 1
EXIT_BAD_FLAG = 2
EXIT_INTERRUPTED = 130
# What TensorFlow counts with.
LARGEST_INTEGER = 2 ** 31 - 1
# Flag of the programs that train: they log errors only.
_QUIET = 'quiet'


def run(main, takes_arguments=False):
    """Runs `main(argv)`, with the flags parsed, and exits with what it returns (None is 0).

    A `UserError` becomes one line on stderr and exit code 1; a flag that does not exist or does not
    parse becomes one line and exit code 2; Ctrl-C one line and 130. What is no flag is refused
    unless main takes arguments. --quiet, in a program that has it, leaves errors in the log only.
    """
    def guarded(argv):
        try:
            if len(argv) > 1 and not takes_arguments:
                raise UserError(f'{argv[1]!r} is no flag; flags look like --name=value.')
            if _QUIET in flags.FLAGS and flags.FLAGS[_QUIET].value:
                logging.set_verbosity(logging.ERROR)
            exit_code = main(argv)
            print(end='', flush=True)
            return exit_code
        except UserError as error:
            return _fail(str(error), EXIT_FAILED)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # Such as standard output, which Python would try once more at the end.
            sys.stdout = open(os.devnull, 'w')
            return _fail(f'{error.strerror}: make room, then start again.', EXIT_FAILED)
        except KeyboardInterrupt:
            return _fail('interrupted', EXIT_INTERRUPTED)

    if sys.stdout:
        # A terminal that lacks a letter shows its number.
        sys.stdout.reconfigure(errors='backslashreplace')
    _set_up_logging()
    app.run(guarded, flags_parser=_parse_flags)


def define_text_flags(rows):
    """Registers flags without a default; `rows` is a dict of name -> (help, choices or None)."""
    # They count as the caller's own, so that the --help of an entry point lists them.
    flags.disclaim_key_flags()
    for name, (help_text, choices) in rows.items():
        if choices:
            flags.DEFINE_enum(name, None, choices, help_text)
        else:
            flags.DEFINE_string(name, None, help_text)


def end_with_the_reader():
    """For programs that print much: whoever reads it, such as `head`, may have enough before it
    ends, and ends the program with that."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _parse_flags(argv):
    try:
        for word in argv:
            # As Python shows bytes that are not.
            if any('\udc80' <= letter <= '\udcff' for letter in word):
                raise flags.Error(f'{word!a} is not UTF-8, which TensorFlow wants of every name')
        arguments = flags.FLAGS(argv)
        for name in flags.FLAGS:
            value = flags.FLAGS[name].value
            # Bounds let nan pass.
            if isinstance(value, float) and not math.isfinite(value):
                raise flags.Error(f'flag --{name}={value}: it is not a finite number')
            if isinstance(value, str) and '\0' in value:
                raise flags.Error(f'flag --{name}={value!r}: no file can have this name')
            if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
                raise flags.Error(f'flag --{name}={value}: it is too large')
        return arguments
    except (flags.Error, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            given = ' '.join(word for word in argv if 'flagfile' in word)
            error = f'{given} is no text file ({error})'
        message = ' '.join(str(error).replace('ERROR:: ', '').split())
        sys.exit(_fail(f'{message.rstrip(".")}. See --help for every flag.', EXIT_BAD_FLAG))


def _fail(message, exit_code):
    print(f'{os.path.basename(sys.argv[0])}: error: {message}', file=sys.stderr, flush=True)
    return exit_code


def _set_up_logging():
    """One short line a message; TensorFlow says only what went wrong."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(
        standard_logging.Formatter('%(asctime)s  %(message)s', '%H:%M:%S'))
    # TensorFlow 1.15 logs through a handler of its own and, by propagation, through absl's as well.
    tf.get_logger().propagate = False
    tf.logging.set_verbosity(tf.logging.ERROR)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
