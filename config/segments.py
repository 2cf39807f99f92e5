"""Records the segments of a run: its settings, and the step from which they applied."""
import dataclasses
import os
from typing import Any
from typing import Dict

from config import runtime_settings
from config import settings as all_settings


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive steps that were trained with the same settings.

    Attributes:
      step: global step at which the segment starts.
      settings: dict of group -> setting -> JSON value as in config.json, and 'num_ranks'.
    """
    step: int
    settings: Dict[str, Any]

    @property
    def sizes(self):
        """Returns (images per micro-batch, micro-batches per step, ranks)."""
        # Earlier versions had no micro-batches.
        return (self.settings['data']['batch_size'],
                self.settings['optimization'].get('gradient_accumulation_steps', 1),
                self.settings['num_ranks'])

    @property
    def global_batch_size(self):
        num_images, num_micro_batches, num_ranks = self.sizes
        return num_images * num_micro_batches * num_ranks


def num_examples(segments, step):
    """Returns the number of training images that all ranks together saw up to a global step."""
    ends = [segment.step for segment in segments[1:]] + [step]
    return sum(max(0, min(end, step) - segment.step) * segment.global_batch_size
               for segment, end in zip(segments, ends))


def continued(segments, step, settings):
    """Returns the segments of a run that resumes at `step` with `settings`.

    Segments that start at `step` or later are dropped. Unchanged settings add no segment.
    """
    kept = [segment for segment in segments if segment.step < step]
    if kept and not changes(kept[-1].settings, settings):
        return tuple(kept)
    # If config.json was lost, the earlier steps most likely used these settings too.
    return (*kept, Segment(step if kept else 0, settings))


def changes(before, now):
    """Returns a dict of name -> (old value, new value) for the settings that differ.

    A setting that an earlier version did not have counts as its default. It is ignored if its
    default is derived.
    """
    was = {**_DEFAULTS, **_flat(before)}
    return {name: (was[name], value) for name, value in _flat(now).items()
            if name in was and _comparable(name, was[name]) != _comparable(name, value)}


_DEFAULTS = {field.name: list(field.default) if isinstance(field.default, tuple) else field.default
             for _, field, _ in all_settings.rows() if not field.metadata['derived']}


def _comparable(name, value):
    """Returns a value for comparison; local directories are compared by their real paths."""
    is_local = name.endswith('_dir') and value and '://' not in value
    return os.path.realpath(value) if is_local else value


def _flat(settings):
    flat = {}
    for group, values in settings.items():
        flat.update(values if isinstance(values, dict) else {group: values})
    if 'accelerator' in flat:
        flat['accelerator'] = runtime_settings.accelerator_name(flat['accelerator'])
    return flat


def to_json(segments):
    """Returns the segments as a list of JSON objects for config.json."""
    return [{'step': segment.step, **segment.settings} for segment in segments]


def from_json(saved):
    """Returns the segments that `to_json` wrote.

    Raises:
      ValueError, TypeError, KeyError: `to_json` could not have written this value.
    """
    segments = []
    for settings in saved:
        segment = Segment(settings.pop('step'), settings)
        last_step = segments[-1].step if segments else -1
        if type(segment.step) is not int or segment.step <= last_step or not all(
                type(size) is int and size > 0 for size in segment.sizes):
            raise ValueError(f'the segment of step {segment.step} is invalid')
        segments.append(segment)
    return tuple(segments)
