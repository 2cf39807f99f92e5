"""Puts the double of npu_bridge into this process, one release at a time."""
import contextlib
import importlib
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = ('npu_bridge', 'hccl')


@contextlib.contextmanager
def installed(release, record=None):
    """Within it, `import npu_bridge` gives the double of `release`; after it, none.

    Args:
      release: see npu_bridge/double/releases.py.
      record: path of the file for the JSON lines, or None.

    Yields:
      the package npu_bridge, freshly imported, its state (rank size, overflow count) fresh too.
    """
    variables = {'FAKE_NPU_BRIDGE_RELEASE': release, 'FAKE_NPU_RECORD': str(record or '')}
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    sys.path.insert(0, _HERE)
    _forget()
    try:
        yield importlib.import_module('npu_bridge')
    finally:
        if 'npu_bridge.double.device' in sys.modules:
            sys.modules['npu_bridge.double.device'].uninstall()
        _forget()
        sys.path.remove(_HERE)
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _forget():
    for name in [name for name in sys.modules if name.split('.')[0] in _PACKAGES]:
        del sys.modules[name]
