"""What happened, as JSON lines in the file that the environment variable FAKE_NPU_RECORD names."""
import functools
import inspect
import json
import os

from npu_bridge.double import releases


def write(event, **fields):
    """Appends one line; does nothing when no file is named."""
    path = os.environ.get('FAKE_NPU_RECORD')
    if path:
        with open(path, 'a') as file:
            file.write(json.dumps({'event': event, **fields}, default=_describe) + '\n')


def _describe(value):
    name = getattr(value, 'name', None)
    return name if isinstance(name, str) else type(value).__name__


def constructor(signature=None):
    """Decorates an __init__: calls are checked against `signature`, and recorded as they were made.

    Args:
      signature: what `inspect.signature` shall show, when it depends on the release; __init__ then
        gets all arguments as keywords. Else its own.
    """
    def decorate(init):
        name = init.__qualname__.split('.')[0]
        shown = signature or inspect.signature(init)

        @functools.wraps(init)
        def recorded(self, *args, **kwargs):
            bound = shown.bind(self, *args, **kwargs)
            given = dict(bound.arguments)
            del given['self']
            write('call', name=name, release=releases.CURRENT, arguments=given)
            bound.apply_defaults()
            init(**bound.arguments)

        recorded.__signature__ = shown
        return recorded
    return decorate
