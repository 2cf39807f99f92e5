"""Process-wide modes of the device (docs/npu_bridge.md section 7), from r1.13 on."""
from npu_bridge.double import record as _record
from npu_bridge.double import releases as _releases


def set_device_sat_mode(mode):
    """0: numbers saturate; 1: they become Inf and NaN. Must come before the first session."""
    if mode not in (0, 1):
        raise ValueError(f'set_device_sat_mode takes 0 or 1, got {mode!r}')
    _record.write('call', name='set_device_sat_mode', release=_releases.CURRENT,
                  arguments={'mode': mode})


_releases.drop_later_names(globals())
