"""The contenders of a benchmark: one process each, which implements `benchmarks.protocol`."""
import contextlib
import json
import os
import subprocess
import tempfile
import time

from benchmarks import outputs
from common.errors import UserError

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def find_interpreter(name, flag, packages, statement, options):
    """Returns the interpreter of a contender, or None and prints a line if it lacks packages.

    Args:
      name: str, the contender.
      flag: str, name of the flag with the interpreter.
      packages: str, packages that the interpreter needs, for messages.
      statement: str, Python statement that fails without the packages.
      options: object with the flag's value as an attribute.

    Raises:
      UserError: the interpreter cannot be started.
    """
    interpreter = getattr(options, flag)
    try:
        completed = subprocess.run([interpreter, '-c', statement], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
    except OSError as error:
        raise UserError(f'--{flag}={interpreter}: cannot be run ({error.strerror}); name a Python '
                        f'that has {packages}.') from error
    if completed.returncode == 0:
        return interpreter
    print(f'{name} skipped: {interpreter} has no {packages}; set --{flag} to a Python that does.',
          flush=True)
    return None


@contextlib.contextmanager
def started(commands):
    """Starts contenders one after another, so that none slows down another's start.

    Args:
      commands: dict, name -> (command line, additional environment variables).

    Yields:
      dict, name -> `Contender`. All contenders are killed at the end.
    """
    contenders = {}
    try:
        for name, (command, environment) in commands.items():
            contenders[name] = Contender(name, command, environment)
            contenders[name].start()
        yield contenders
    finally:
        for contender in contenders.values():
            contender.kill()


def take_turns(started, rounds, num_batches):
    """Runs contenders in turn; returns name -> list of turns, each as `protocol.serve` reports it.

    Args:
      started: dict, name -> `Contender`.
      rounds: int, number of turns of each contender.
      num_batches: int, steps of a turn.
    """
    turns = {name: [] for name in started}
    for _ in range(1 + rounds):
        for name, contender in started.items():
            # Batches prefetched during the turns of others do not count. The sleep lets the
            # contender refill its buffer, so that this does not slow down the next one.
            buffered = contender.facts['buffered_batches']
            contender.run(buffered)
            turns[name].append(contender.run(num_batches))
            time.sleep(turns[name][-1]['secs'] / num_batches * buffered)
    # The first round is a warm-up.
    return {name: own[1:] for name, own in turns.items()}


class Contender:
    """A process that runs steps on request.

    Attributes:
      facts: dict, what the process reports at its start.
    """

    def __init__(self, name, command, environment):
        self._name = name
        # A file, because nothing reads it before the end and a pipe would fill up.
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            command, cwd=_ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._errors, universal_newlines=True)
        self.facts = None

    def start(self):
        """Waits until the process is ready."""
        self.facts = self._hear()

    def run(self, steps):
        """Runs steps; returns their report from `protocol.serve`."""
        self._process.stdin.write(f'{steps}\n')
        self._process.stdin.flush()
        return self._hear()

    def finish(self):
        """Ends the process; returns the final report from `protocol.serve`."""
        self._process.stdin.close()
        return self._hear()

    def kill(self):
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()

    def _hear(self):
        line = self._process.stdout.readline()
        if not line:
            raise outputs.failure(self._name, self._errors)
        return json.loads(line)
