"""The runtime of a run: an NPU or stock TensorFlow. Callers never ask which one they have.

Importing this package imports neither TensorFlow nor absl, which the launcher does without.
"""
from common.errors import UserError
from common.errors import first_line


def select(config):
    """Returns the runtime that --accelerator asks for.

    Args:
      config: the run's `Config`.

    Returns:
      an `NPURuntime` or a `StockRuntime`.

    Raises:
      UserError: --accelerator=npu and npu_bridge cannot be imported, the environment describes a
        job of several ranks incompletely, or the runtime refuses a flag.
    """
    from absl import logging

    from runtime import stock
    accelerator = config.runtime.accelerator
    if accelerator == 'host':
        return stock.StockRuntime(config)
    # Imported late: --accelerator=host never loads this module.
    from runtime import npu
    try:
        bridge = npu.load_bridge()
    except UserError:
        raise
    except Exception as error:  # A broken CANN raises NameError, OSError and others.
        reason = f'{type(error).__name__}: {first_line(error)}'
        if accelerator == 'npu':
            raise UserError(f'--accelerator=npu: npu_bridge cannot be imported ({reason}); install '
                            'CANN and source its set_env.sh.') from error
        if not npu.is_absence(error):
            logging.warning('npu_bridge is installed but cannot be imported (%s); '
                            'going on without an NPU.', reason)
        return stock.StockRuntime(config)
    return npu.NPURuntime(config, bridge)
