"""The segments of a run: which settings it trained with, from which step on."""
import dataclasses
import os
from typing import Any
from typing import Dict

from config import runtime_settings
from config import settings as all_settings


@dataclasses.dataclass(frozen=True)
class Segment:
    """Steps that were trained with the same settings.

    Attributes:
      step: the global step that the first of them follows.
      settings: group -> setting -> value, and 'num_ranks': JSON values, as in config.json.
    """
    step: int
    settings: Dict[str, Any]

    @property
    def sizes(self):
        """Images of a micro-batch, micro-batches of a step, ranks."""
        # Earlier versions had no micro-batches.
        return (self.settings['data']['batch_size'],
                self.settings['optimization'].get('gradient_accumulation_steps', 1),
                self.settings['num_ranks'])

    @property
    def global_batch_size(self):
        num_images, num_micro_batches, num_ranks = self.sizes
        return num_images * num_micro_batches * num_ranks


def num_examples(segments, step):
    """How many training images a run has seen at a global step, those of all ranks together."""
    ends = [segment.step for segment in segments[1:]] + [step]
    return sum(max(0, min(end, step) - segment.step) * segment.global_batch_size
               for segment, end in zip(segments, ends))


def continued(segments, step, settings):
    """The segments of a run that goes on from `step` with `settings`.

    Segments that begin at that step or later are left out. Equal settings make no new segment.
    """
    kept = [segment for segment in segments if segment.step < step]
    if kept and not changes(kept[-1].settings, settings):
        return tuple(kept)
    # A config.json that was lost told of the steps before; these settings are the likeliest.
    return (*kept, Segment(step if kept else 0, settings))


def changes(before, now):
    """Returns name -> (was, is) of the settings that differ.

    A setting that an earlier version did not have was its default, unless that depends on others.
    """
    was = {**_DEFAULTS, **_flat(before)}
    return {name: (was[name], value) for name, value in _flat(now).items()
            if name in was and _comparable(name, was[name]) != _comparable(name, value)}


_DEFAULTS = {field.name: list(field.default) if isinstance(field.default, tuple) else field.default
             for _, field, _ in all_settings.rows() if not field.metadata['derived']}


def _comparable(name, value):
    """A value; of a folder, however it is spelled, the same one."""
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
    return [{'step': segment.step, **segment.settings} for segment in segments]


def from_json(saved):
    """The inverse of `to_json`; ValueError, TypeError or KeyError for what it could not write."""
    segments = []
    for settings in saved:
        segment = Segment(settings.pop('step'), settings)
        last_step = segments[-1].step if segments else -1
        if type(segment.step) is not int or segment.step <= last_step or not all(
                type(size) is int and size > 0 for size in segment.sizes):
            raise ValueError(f'the segment of step {segment.step} cannot be')
        segments.append(segment)
    return tuple(segments)
