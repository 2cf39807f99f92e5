"""The contenders of a benchmark, each in a process of its own that speaks `benchmarks.protocol`."""
import contextlib
import json
import os
import subprocess
import tempfile
import time

from common.errors import UserError

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def find_interpreter(name, flag, packages, statement, options):
    """The interpreter of a contender that needs one of its own; None, and a line, if it is not one.

    Args:
      name: str, the contender.
      flag: str, the flag that names the interpreter.
      packages: str, what the interpreter has to have, for messages.
      statement: str, Python that fails where it has not.
      options: has the flag's value as an attribute.

    Raises:
      UserError: it cannot be started.
    """
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


@contextlib.contextmanager
def started(commands):
    """Starts contenders one after the other, so that none disturbs another's start.

    Args:
      commands: dict, name -> (command line, more environment variables).

    Yields:
      dict, name -> `Contender`. All of them are killed at the end.
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
    """Returns name -> list of what `protocol.serve` says of each of its turns."""
    turns = {name: [] for name in started}
    for _ in range(1 + rounds):
        for name, contender in started.items():
            # Batches that were prefetched during the others' turns do not count, and what it
            # prefetches after its own turn must not slow down the next one.
            buffered = contender.facts['buffered_batches']
            contender.run(buffered)
            turns[name].append(contender.run(num_batches))
            time.sleep(turns[name][-1]['secs'] / num_batches * buffered)
    # The first round is a warm-up.
    return {name: own[1:] for name, own in turns.items()}


class Contender:
    """Runs steps when it is told to.

    Attributes:
      facts: dict, what it knew before its steps.
    """

    def __init__(self, name, command, environment):
        self._name = name
        # A file, since nobody reads it before the end, and a pipe would fill.
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            command, cwd=_ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._errors, universal_newlines=True)
        self.facts = None

    def start(self):
        """Waits until it is ready."""
        self.facts = self._hear()

    def run(self, steps):
        """Runs steps; returns what `protocol.serve` says of them."""
        self._process.stdin.write(f'{steps}\n')
        self._process.stdin.flush()
        return self._hear()

    def finish(self):
        """Ends it; returns what `protocol.serve` says at the end."""
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
            self._errors.seek(0)
            raise RuntimeError(f'{self._name} failed:\n{self._errors.read()}')
        return json.loads(line)
