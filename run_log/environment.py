"""What a run runs on: versions and the machine, for whoever compares its results later."""
import os
import platform
import subprocess

import numpy as np
import tensorflow.compat.v1 as tf

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def describe(device):
    """A dict of str; `device` is what the runtime calls what it computes on."""
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
    """Of this program, marked where files were changed since; '' outside of a clone."""
    try:
        return subprocess.run(
            ['git', '-C', _ROOT, 'describe', '--always', '--dirty', '--tags'], check=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''
