"""The evaluations of a run as a table with one row per step, in which the best one is marked."""
import dataclasses
import os
from typing import Any
from typing import Dict
from typing import Optional

from checkpoints import restore
from checkpoints import store
from checkpoints.best import FIELDS
from checkpoints.best import LOSS
from checkpoints.best import MACRO_F1
from checkpoints.best import TOP_1
from checkpoints.best import best_evaluation
from checkpoints.best import is_of_the_run
from checkpoints.best import weight_of
from common import text_tables
from common.image_sizes import ImageSize
from common.image_sizes import WrittenSize

MAX_ROWS = 40
_HEADINGS = {TOP_1: 'top-1', LOSS: 'cross entropy', MACRO_F1: 'macro F1'}


@dataclasses.dataclass(frozen=True)
class Row:
    """The evaluations of one checkpoint with the same name and image size.

    Attributes:
      step: global step of the checkpoint.
      name: --eval_name; None for the run's own evaluations.
      image_size: size of the images; None for the run's own.
      by_weights: 'raw' or 'ema' -> the 'eval' event. If there are several, the one with the most
        images counts, then the last one.
      is_best: whether this is the best evaluation of the run; an archived one takes precedence.
    """
    step: int
    name: Optional[str]
    image_size: Optional[WrittenSize]
    by_weights: Dict[str, Dict[str, Any]]
    is_best: bool = False

    @property
    def judged(self):
        """The event that counts for the checkpoint: of the averaged weights, if there are any."""
        return _judged(self.by_weights)


def rows(events, model_dir):
    """Returns the `Row`s of a run in the order of their steps.

    Args:
      events: list of dict, see `event_log.read`.
      model_dir: directory of the run, whose archive decides which row is the best.
    """
    found = {}
    for event in events:
        if event['event'] == 'eval':
            by_weights = found.setdefault(
                (event['step'], event.get('name'), event.get('image_size')), {})
            known = by_weights.setdefault(event['weights'], event)
            if (event.get('num_images') or 0) >= (known.get('num_images') or 0):
                by_weights[event['weights']] = event
    if not found:
        return []
    archived, metric = best_evaluation(model_dir), best_metric(events)
    if archived:
        best = archived['step'], archived.get('name'), None
    else:
        best = max((key for key, by_weights in found.items() if is_of_the_run(_judged(by_weights))),
                   key=lambda key: weight_of(_judged(found[key]), metric), default=None)
    return [Row(*key, by_weights, key == best) for key, by_weights in sorted(
        found.items(), key=lambda item: (
            item[0][0], item[0][1] or '', ImageSize.of(item[0][2] or 0)))]


def best_metric(events):
    """Returns the --best_metric of a run from its events; earlier versions always used top-1."""
    settings = [event['run'] for event in events if event['event'] == 'config']
    return settings[-1].get('best_metric', TOP_1) if settings else TOP_1


def table(events, model_dir):
    """Returns the rows as text for a terminal, or '' if there are none.

    Above MAX_ROWS rows, only the last MAX_ROWS and the best one are shown.
    """
    found = rows(events, model_dir)
    if not found:
        return ''
    metric = best_metric(events)
    shown = [row for row in found[:-MAX_ROWS] if row.is_best] + found[-MAX_ROWS:]
    kinds = [kind for kind in (restore.RAW, restore.EMA)
             if any(kind in row.by_weights for row in shown)]
    columns = [_column('step', lambda row: row.step)]
    if any('epoch' in row.judged for row in shown):
        columns.append(_column('epoch', lambda row: _figure(row.judged, 'epoch', 2)))
    if any(row.name for row in shown):
        columns.append(_column('name', lambda row: row.name or ''))
    if any(row.image_size for row in shown):
        columns.append(_column('image size', lambda row: row.image_size or ''))
    figures = [('top_1', 'top-1'), ('top_5', 'top-5'), ('cross_entropy', 'cross entropy')]
    if metric == MACRO_F1:
        figures.append((FIELDS[metric], _HEADINGS[metric]))
    for kind in kinds:
        for key, heading in figures:
            columns.append(_column(
                f'{kind} {heading}',
                lambda row, kind=kind, key=key: _figure(row.by_weights.get(kind), key, 4)))
    columns.append(_column('images', lambda row: row.judged.get('num_images', '')))
    columns.append(text_tables.Column(
        '', lambda row: '<- best' if row['row'].is_best else '', True))
    text = text_tables.to_text(text_tables.Findings(
        {}, [text_tables.Table([{'row': row} for row in shown], tuple(columns))], []))
    left_out = len(found) - len(shown)
    if left_out:
        text += f'\n{left_out} earlier evaluations are in results.jsonl.'
    return '\n'.join(filter(None, [text, _where(found, model_dir, metric)]))


def _where(found, model_dir, metric):
    """Returns a line with the best evaluation and the path of its checkpoint, or None."""
    best = best_evaluation(model_dir)
    if best:
        path = os.path.join(model_dir, store.ARCHIVE_DIR, best['checkpoint'])
        return f"Best: step {best['step']}, {_shown(best, metric)}, archived as {path}"
    row = next((row for row in found if row.is_best), None)
    if not row:
        return None
    return (f'Best: step {row.step}, {_shown(row.judged, metric)}; not archived '
            '(--noarchive_ckpt).')


def _shown(evaluation, metric):
    return f'{_HEADINGS[metric]} {_figure(evaluation, FIELDS[metric], 4)}'


def _judged(by_weights):
    """Returns the event that counts for a checkpoint: of the averaged weights, if there are any."""
    return by_weights.get(restore.EMA) or by_weights[restore.RAW]


def _column(heading, cell):
    return text_tables.Column(heading, lambda record: str(cell(record['row'])))


def _figure(event, key, digits):
    return f'{event[key]:.{digits}f}' if event and event.get(key) is not None else ''
