"""The protocol between a benchmark and its contenders: lines of JSON.

A contender is a process. It reports its start-up as one line, then reads numbers of steps from
standard input and reports each turn, and finally reports its peak memory. This module uses only the
standard library, because contenders also run under other interpreters.
"""
import argparse
import json
import sys
import time

from common.image_sizes import ImageSize

TRAIN, INFER = TASKS = 'train', 'infer'
NAIVE, OURS, OPTIMIZED, ONEDNN, PYTORCH, PYTORCH_COMPILE = CONTENDERS = (
    'naive', 'ours', 'optimized', 'onednn', 'pytorch', 'pytorch_compile')


def parse_options():
    """Returns the command-line options of a contender."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--helpfull', action='help', help='the same as --help')
    parser.add_argument('--contender', required=True, choices=CONTENDERS)
    parser.add_argument('--task', required=True, choices=TASKS)
    parser.add_argument('--model_name', required=True)
    parser.add_argument('--batch_size', type=int, required=True)
    parser.add_argument('--image_size', type=ImageSize.of, required=True)
    return parser.parse_args()


def serve(step, facts, check=None):
    """Runs steps on request until standard input ends.

    Args:
      step: function that runs one step and returns a number, such as its loss, or None.
      facts: dict, reported before the first step.
      check: function called at the end, or None; raises if the steps did not do all of their work.
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
    """Returns the peak resident memory of this process in 10^6 bytes."""
    # Not from getrusage, whose figure a process inherits from its parent.
    return memory_mb('VmHWM', 'self')


def memory_mb(name, pid):
    """Returns a memory figure of a process in 10^6 bytes.

    Args:
      name: str, field of /proc/PID/status, such as 'VmRSS'.
      pid: int, or 'self'.

    Raises:
      OSError, ValueError: the process has ended.
    """
    with open(f'/proc/{pid}/status') as file:
        kilobytes, = (line.split()[1] for line in file if line.startswith(f'{name}:'))
    return int(kilobytes) * 1024 / 1e6


def _say(message):
    print(json.dumps(message), flush=True)
