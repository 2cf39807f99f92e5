"""Loads the runs of a report from their directories."""
import os
from typing import Any
from typing import Dict
from typing import List
from typing import NamedTuple

from checkpoints import restore
from common.errors import UserError
from config import run_config
from config import run_settings
from config import settings
from run_log import evaluation_table
from run_log import event_log

# Kind of evaluated weights -> its name in the report.
WEIGHT_NAMES = {restore.RAW: 'trained', restore.EMA: 'averaged'}

# Events that only training writes.
_TRAINING_EVENTS = ('train', 'epoch', 'train_stop')


class Run(NamedTuple):
    """A run that is shown in the report.

    Attributes:
      name: name of the run, unique within the report.
      model_dir: directory of the run.
      config: the stored `Config`.
      events: the events of results.jsonl.
      steps: the 'train' events in the order of their steps, only the last event of each step.
      rows: the `evaluation_table.Row`s.
    """
    name: str
    model_dir: str
    config: run_config.Config
    events: List[Dict[str, Any]]
    steps: List[Dict[str, Any]]
    rows: List[evaluation_table.Row]

    @property
    def best(self):
        """The best `evaluation_table.Row`, or None."""
        return next((row for row in self.rows if row.is_best), None)

    @property
    def class_names(self):
        return self.config.class_names or tuple(
            str(index) for index in range(self.config.model.num_label_classes))

    @property
    def last_step(self):
        """The largest global step of any event, or 0."""
        return max((event['step'] for event in self.events if 'step' in event), default=0)

    @property
    def secs(self):
        """Seconds of training: each session counts from its start to its last training event.

        Evaluations between training steps count. Pauses between sessions and evaluation jobs
        (--mode=eval), whose events may be anywhere in the file, do not.
        """
        total, last = 0.0, None
        for event in self.events:
            if event['event'] == 'run_start' and _is_of_training(event):
                last = event['time']
            elif event['event'] in _TRAINING_EVENTS and last is not None:
                total += max(0.0, event['time'] - last)
                last = event['time']
        return total

    @property
    def status(self):
        """How the last training session ended, in words; 'not yet' if it is running or was killed.
        """
        ends = [event for event in self.events
                if event['event'] in ('run_start', 'run_stop') and _is_of_training(event)]
        return ends[-1].get('status', 'not yet').replace('_', ' ') if ends else 'not yet'

    @property
    def environment(self):
        """The environment of the last start of training, a dict of str to str."""
        found = [event['environment'] for event in self.events if event['event'] == 'run_start'
                 and event.get('environment') and _is_of_training(event)]
        return {**(found[-1] if found else {}), 'processes': str(self.config.num_ranks)}

    @property
    def changed_settings(self):
        """Names of the settings that the user set to a value other than the default.

        Runs of earlier versions did not record them. For those runs, all settings without a
        derived default are compared with their defaults.
        """
        if self.config.changed_settings is not None:
            return set(self.config.changed_settings)
        return {field.name for group, field, _ in settings.rows()
                if not field.metadata['derived']
                and getattr(getattr(self.config, group), field.name) != field.default}

    def epoch_of(self, step):
        """Returns the number of epochs completed at a global step, a float."""
        return self.config.epoch_at(step)


def _is_of_training(event):
    """Returns whether a start or stop event is not from an evaluation job (--mode=eval)."""
    # Earlier versions did not record the mode in 'run_stop'.
    return event.get('mode') != run_settings.EVAL


def load(model_dir, name=''):
    """Returns the `Run` in a directory.

    Args:
      model_dir: directory of the run.
      name: name of the run in the report; '' for the name of the directory.

    Raises:
      UserError: the directory has no run.
    """
    config, events = run_config.load(model_dir), event_log.read(model_dir)
    if not config or not events:
        raise UserError(f'{model_dir}: has no run (config.json and results.jsonl); name the '
                        'directory of a run.')
    steps = {event['step']: event for event in events if event['event'] == 'train'}
    if not config.optimization.label_smoothing:
        # Earlier versions did not log this field; without smoothing, it equals cross_entropy.
        for event in steps.values():
            event.setdefault('unsmoothed_cross_entropy', event.get('cross_entropy'))
    return Run(name or os.path.basename(model_dir), model_dir, config, events,
               [steps[step] for step in sorted(steps)], evaluation_table.rows(events, model_dir))


def short_names(model_dirs):
    """Returns the names of the directories, or their paths if the names are not unique."""
    short = [os.path.basename(os.path.abspath(path)) for path in model_dirs]
    return short if len(set(short)) == len(short) else model_dirs
