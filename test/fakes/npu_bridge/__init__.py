"""Test double of Huawei's npu_bridge for TensorFlow 1.15, on a CPU.

The contract is docs/npu_bridge.md; docstrings name the sections. Environment:

  FAKE_NPU_BRIDGE_RELEASE  dev, r1.3.0, ... r1.15.0 (double/releases.py); default r1.8.0
  FAKE_NPU_RECORD          file that gets a JSON line per session and per constructor call
  FAKE_NPU_OVERFLOW_STEPS  steps whose gradients overflow, as '3,4'; 1 is the first of the process
"""
import atexit as _atexit

from npu_bridge.double import device as _device
from npu_bridge.double import record as _record
from npu_bridge.double import releases as _releases

_device.install()
if _releases.since('r1.3.0'):
    _atexit.register(_record.write, 'npu_close')
