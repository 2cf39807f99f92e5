"""What a run runs on. Nothing above this package asks which runtime it has.

Importing it loads nothing heavy: the launcher runs without TensorFlow and absl.
"""
from common.errors import UserError
from common.errors import first_line


def select(config):
    """The runtime for a `Config`, as --accelerator says.

    Raises:
      UserError: an NPU is asked for and npu_bridge does not import, or the environment describes a
        job of several NPUs by halves.
    """
    from absl import logging

    from runtime import stock
    accelerator = config.runtime.accelerator
    if accelerator == 'host':
        return stock.StockRuntime(config)
    # Not before it is needed: a machine without an NPU never sees this module.
    from runtime import npu
    try:
        bridge = npu.load_bridge()
    except UserError:
        raise
    except Exception as error:  # A broken CANN raises anything, NameError and OSError among it.
        reason = f'{type(error).__name__}: {first_line(error)}'
        if accelerator == 'npu':
            raise UserError(f'--accelerator=npu: npu_bridge cannot be imported ({reason}); install '
                            'CANN and source its set_env.sh.') from error
        if not npu.is_absence(error):
            logging.warning('npu_bridge is installed but cannot be imported (%s); '
                            'going on without an NPU.', reason)
        return stock.StockRuntime(config)
    return npu.NPURuntime(config, bridge)
