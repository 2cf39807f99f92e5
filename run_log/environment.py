"""Describes the environment of a run: machine and software versions."""
import os
import platform
import subprocess

import numpy as np
import tensorflow.compat.v1 as tf

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def describe(device):
    """Returns the environment as a dict of str to str.

    Args:
      device: name of the device, from the runtime.
    """
    return {'device': device, 'machine': platform.machine(), 'processor': _processor(),
            'cores': str(os.cpu_count()), 'host': platform.node(), 'system': platform.platform(),
            'python': platform.python_version(), 'tensorflow': tf.__version__,
            'numpy': np.__version__, 'commit': _commit()}


def _processor():
    try:
        with open('/proc/cpuinfo') as file:
            names = [line.split(':', 1)[1].strip() for line in file
                     if line.startswith('model name')]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _commit():
    """Returns the commit of this program, marked as dirty if files changed; '' if not in a clone.
    """
    try:
        return subprocess.run(
            ['git', '-C', _ROOT, 'describe', '--always', '--dirty', '--tags'], check=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''
