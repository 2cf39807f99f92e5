"""What a contender of a benchmark and `benchmarks.contest` say to each other: lines of JSON.

A contender is a process that builds something, says what that took, runs as many steps as it is
told to, again and again, and at the end says what it used. Standard library only: contenders run
under other interpreters, too.
"""
import argparse
import json
import sys
import time

from common.image_sizes import ImageSize

TRAIN, INFER = TASKS = 'train', 'infer'
NAIVE, OURS, ONEDNN, PYTORCH, PYTORCH_COMPILE = CONTENDERS = (
    'naive', 'ours', 'onednn', 'pytorch', 'pytorch_compile')


def parse_options():
    """What a contender is asked to be."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--helpfull', action='help', help='the same as --help')
    parser.add_argument('--contender', required=True, choices=CONTENDERS)
    parser.add_argument('--task', required=True, choices=TASKS)
    parser.add_argument('--model_name', required=True)
    parser.add_argument('--batch_size', type=int, required=True)
    parser.add_argument('--image_size', type=ImageSize.of, required=True)
    return parser.parse_args()


def serve(step, facts, check=None):
    """Runs steps until standard input ends.

    Args:
      step: function that runs one step and returns its loss, or None.
      facts: dict of what is known before these steps; said at once.
      check: called at the end; raises if the steps did not do all of their work.
    """
    _say(facts)
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        results = [step() for _ in range(int(line))]
        _say({'secs': time.perf_counter() - start, 'core_secs': time.process_time() - cpu_start,
              'results': results})
    if check:
        check()
    _say({'peak_rss_mb': peak_rss_mb()})


def peak_rss_mb():
    """The most memory that this process has had, by the operating system, in 10^6 bytes."""
    # Not getrusage, where a process starts with the figure of the one that started it.
    return memory_mb('VmHWM', 'self')


def memory_mb(name, pid):
    """What the operating system says of the memory of a process under `name`, in 10^6 bytes.

    Raises:
      OSError, ValueError: the process has ended.
    """
    with open(f'/proc/{pid}/status') as file:
        kilobytes, = (line.split()[1] for line in file if line.startswith(f'{name}:'))
    return int(kilobytes) * 1024 / 1e6


def _say(message):
    print(json.dumps(message), flush=True)
