"""The runs that a report shows, as they left them in their directories."""
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

# What the report calls the weights that were evaluated.
WEIGHT_NAMES = {restore.RAW: 'trained', restore.EMA: 'averaged'}

# Events that only training writes.
_TRAINING_EVENTS = ('train', 'epoch', 'train_stop')


class Run(NamedTuple):
    """One run.

    Attributes:
      name: unique within the report.
      model_dir: its directory.
      config: its `Config`.
      events: the events of results.jsonl.
      steps: the 'train' events in order, the last one of each step.
      rows: `evaluation_table.Row`s.
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
        """The last global step that an event names, 0 if none does."""
        return max((event['step'] for event in self.events if 'step' in event), default=0)

    @property
    def secs(self):
        """Seconds of training: each session from its start to the last that it logged of training.

        The evaluations between its steps count. Pauses between sessions do not, nor do evaluation
        jobs (--mode=eval), whose events may stand anywhere in the file.
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
        """How training ended last, in words; 'not yet' for a run under way or killed."""
        ends = [event for event in self.events
                if event['event'] in ('run_start', 'run_stop') and _is_of_training(event)]
        return ends[-1].get('status', 'not yet').replace('_', ' ') if ends else 'not yet'

    @property
    def environment(self):
        """What training was last started on, a dict of str to str."""
        found = [event['environment'] for event in self.events if event['event'] == 'run_start'
                 and event.get('environment') and _is_of_training(event)]
        return {**(found[-1] if found else {}), 'processes': str(self.config.num_ranks)}

    @property
    def changed_settings(self):
        """Names of the settings that the user gave another value than the default.

        Runs of earlier versions do not say what was given: settings that may have been derived
        from the data, the model or other settings are left out.
        """
        if self.config.changed_settings is not None:
            return set(self.config.changed_settings)
        return {field.name for group, field, _ in settings.rows()
                if not field.metadata['derived']
                and getattr(getattr(self.config, group), field.name) != field.default}

    def epoch_of(self, step):
        """The epoch, with a fraction, that ends at a global step."""
        return self.config.epoch_at(step)


def _is_of_training(event):
    """Whether a start or an end is not that of an evaluation job (--mode=eval)."""
    # Earlier versions did not say whose end it was.
    return event.get('mode') != run_settings.EVAL


def load(model_dir, name=''):
    """Returns the `Run` in a directory.

    Args:
      model_dir: its directory.
      name: of the run in the report; '' for the directory's own.

    Raises:
      UserError: the directory holds no run.
    """
    config, events = run_config.load(model_dir), event_log.read(model_dir)
    if not config or not events:
        raise UserError(f'{model_dir} holds no run (config.json and results.jsonl); check the '
                        'folder.')
    steps = {event['step']: event for event in events if event['event'] == 'train'}
    if not config.optimization.label_smoothing:
        # Earlier runs did not log it by itself; without smoothing it is the same number.
        for event in steps.values():
            event.setdefault('unsmoothed_cross_entropy', event.get('cross_entropy'))
    return Run(name or os.path.basename(model_dir), model_dir, config, events,
               [steps[step] for step in sorted(steps)], evaluation_table.rows(events, model_dir))


def short_names(model_dirs):
    """Returns the directories' own names, or their paths where those are not unique."""
    short = [os.path.basename(os.path.abspath(path)) for path in model_dirs]
    return short if len(set(short)) == len(short) else model_dirs
