"""One HTML file about a run, or about several that it compares.

    python3.7 -m report.html_report MODEL_DIR [MODEL_DIR ...] --output=report.html

The file needs no other one, no server and no network. Curves, evaluations, classes, configuration
and environment come from what the run left in its folder. The pictures of mistakes and the usage of
experts come from the images, which the best checkpoint classifies for this.
"""
import dataclasses
import datetime
import os
from typing import Any
from typing import Dict
from typing import List
from typing import NamedTuple
from typing import Optional

from absl import flags
from absl import logging
import tensorflow.compat.v1 as tf

from analysis import experts
from analysis import routing
from checkpoints import store
from checkpoints.best import best_evaluation
from checkpoints.best import weight_of
from common import app
from common.errors import UserError
from common.files import whole_file
from common.paths import check_output_file
from condconv_layers import CHANNELS_LAST
from config import run_config
from config import settings
from report import page
from report import plots
from run_log import class_metrics
from run_log import evaluation_table
from run_log import event_log
from tfrecords import schema
from training import inputs
from training import pictures

NUM_MISTAKES = 24
NUM_CLASSES_SHOWN = 10     # of the best, and of the worst
MAX_ROUTED_CLASSES = 50
BATCH_SIZE = 32
PICTURE_SIZE = 128         # pixels
_WEIGHTS = {'raw': 'trained', 'ema': 'averaged'}


class Run(NamedTuple):
    """A run, as its folder has it.

    Attributes:
      name: what sets it apart from the others in the report.
      model_dir: its folder.
      config: its `Config`.
      events: of results.jsonl.
      steps: the 'train' events in order, of each step the last.
      rows: `evaluations.Row`s.
      colour: of its curves.
    """
    name: str
    model_dir: str
    config: run_config.Config
    events: List[Dict[str, Any]]
    steps: List[Dict[str, Any]]
    rows: List[evaluation_table.Row]
    colour: str

    @property
    def best(self):
        """The best `evaluations.Row`, or None."""
        return next((row for row in self.rows if row.is_best), None)

    @property
    def class_names(self):
        return self.config.class_names or tuple(
            str(index) for index in range(self.config.model.num_label_classes))


def define_flags():
    flags.DEFINE_string('output', None, 'File to write; default: report.html in the first '
                        'MODEL_DIR.')
    flags.DEFINE_string('data_dir', None, 'Folder with the validation shards, if they are no '
                        "longer where the run had them.")
    flags.DEFINE_integer('num_images', 5000, 'Validation images that the best checkpoint '
                         'classifies, for the mistakes and the experts; 0 for none.',
                         lower_bound=0)


def main(argv):
    """Reads the runs and writes the report."""
    model_dirs = [path.rstrip('/') or '/' for path in argv[1:]]
    if not model_dirs:
        raise UserError('No MODEL_DIR is given; name the folder of a run, or of several.')
    plots.check_installed()
    runs = [load(path, name, plots.PALETTE[index % len(plots.PALETTE)])
            for index, (path, name) in enumerate(zip(model_dirs, short_names(model_dirs)))]
    output = flags.FLAGS.output or os.path.join(model_dirs[0], 'report.html')
    folder = os.path.dirname(output) or '.'
    if not tf.gfile.IsDirectory(folder):
        raise UserError(f'--output={output}: there is no folder {folder}; make it, or choose '
                        'another one.')
    check_output_file(output, '--output')
    text = write(runs, flags.FLAGS.data_dir, flags.FLAGS.num_images)
    try:
        with whole_file(output) as file:
            file.write(text)
    except tf.errors.OpError as error:
        raise UserError(f'--output={output} cannot be written ({error.message}); choose another '
                        'file.') from error
    print(f'{output} ({len(text) / 1e6:.1f} MB)')


def load(model_dir, name='', colour=plots.PALETTE[0]):
    """The `Run` in a folder; UserError if there is none."""
    config, events = run_config.load(model_dir), event_log.read(model_dir)
    if not config or not events:
        raise UserError(f'{model_dir} holds no run (config.json and results.jsonl); check the '
                        'folder.')
    steps = {event['step']: event for event in events if event['event'] == 'train'}
    return Run(name or os.path.basename(model_dir), model_dir, config, events,
               [steps[step] for step in sorted(steps)],
               evaluation_table.rows(events, model_dir), colour)


def write(runs, data_dir=None, num_images=0):
    """The report as HTML, str.

    Args:
      runs: list of `Run`.
      data_dir: where the images are; None for where each run had them.
      num_images: to be classified, of each run; 0 for none.
    """
    is_one = len(runs) == 1
    title = runs[0].name if is_one else f'{len(runs)} runs compared'
    sections = [('curves', 'Curves', _curves(runs))]
    for index, run in enumerate(runs):
        prefix = '' if is_one else f'run{index}-'
        of = '' if is_one else f' of {run.name}'
        examination, reason = _examine(run, data_dir, num_images)
        sections += [
            (f'{prefix}evaluations', f'Evaluations{of}', _evaluations(run)),
            (f'{prefix}classes', f'Classes{of}', _classes(run)),
            (f'{prefix}mistakes', f'Most confident mistakes{of}',
             _mistakes(run, examination, reason)),
            (f'{prefix}experts', f'Experts{of}', _experts(run, examination, reason))]
    sections += [('configuration', 'Configuration', _configuration(runs)),
                 ('environment', 'Environment', _environment(runs))]
    now = datetime.datetime.now().strftime('%Y-%m-%d %H:%M')
    return page.document(
        title, page.heading(title, 1),
        page.paragraph(f"{', '.join(sorted({run.config.model.model_name for run in runs}))}; "
                       f'written {now}', is_soft=True),
        page.contents([(name, heading) for name, heading, _ in sections]),
        page.tiles(_tiles(runs[0])) if is_one else _overview(runs),
        *(page.section(name, heading, *parts) for name, heading, parts in sections))


# What is seen first ------------------------------------------------------------------------------

def _facts(run):
    """(name, value) of what one wants to know of a run first."""
    best, rate = run.best, event_log.images_per_sec(run.steps)
    judged = best and best.judged
    ends = [event for event in run.events if event['event'] in ('run_start', 'run_stop')]
    last_step = max((event['step'] for event in run.events if 'step' in event), default=0)
    return [
        ('best top-1', judged and _percent(judged['top_1'])),
        ('its top-5', judged and _percent(judged.get('top_5'))),
        ('at step', best and f'{best.step:,}'),
        ('trained until step', f'{last_step:,}'),
        ('epochs', f'{last_step / run.config.steps_per_epoch:.1f}'),
        ('images/s, median', rate and f'{rate:,.0f}'),
        ('hours', f'{_secs(run.events) / 3600:.2f}'),
        ('ended', ends[-1].get('status', 'not yet').replace('_', ' ') if ends else 'not yet')]


def _tiles(run):
    return [(name, '-' if value is None else value) for name, value in _facts(run)]


def _overview(runs):
    facts = [_facts(run) for run in runs]
    best = max((run for run in runs if run.best), default=None,
               key=lambda run: weight_of(run.best.judged))
    return page.table(
        ['run', 'model', *(name for name, _ in facts[0])],
        [[run.name, run.config.model.model_name, *(value for _, value in values)]
         for run, values in zip(runs, facts)], 'All runs; the best one is marked.',
        ['best' if run is best else None for run in runs])


def _secs(events):
    """How long a run took, without the time between an end and the next beginning."""
    total, last = 0.0, None
    for event in events:
        if event['event'] != 'run_start' and last is not None:
            total += event['time'] - last
        last = event['time']
    return total


# Curves ------------------------------------------------------------------------------------------

def _curves(runs):
    """Figures over epochs: of training, and of evaluations where there are any."""
    def trained(key, label='', style='-'):
        return [(_label(runs, run, label), [step.get('epoch') or _epoch(run, step['step'])
                                            for step in run.steps],
                 [step.get(key) for step in run.steps], run.colour, style) for run in runs]

    def evaluated(key, weights, label, style, colour):
        rows = [(run, [row for row in run.rows if weights in row.by_weights and not row.name])
                for run in runs]
        return [(_label(runs, run, label), [_epoch(run, row.step) for row in found],
                 [row.by_weights[weights].get(key) for row in found],
                 run.colour if len(runs) > 1 else plots.PALETTE[colour], style)
                for run, found in rows]

    without_l2 = trained('cross_entropy', 'training, without L2', ':') if len(runs) == 1 else []
    parts = []
    for lines, y_label, is_log, text in (
            (trained('loss', 'training') + without_l2
             + evaluated('cross_entropy', 'raw', 'validation, trained weights', '--o', 1)
             + evaluated('cross_entropy', 'ema', 'validation, averaged weights', '-o', 2),
             'loss', False, 'Loss of training batches, with L2 and label smoothing, and cross '
             'entropy of validation images'),
            (trained('top_1', 'training')
             + evaluated('top_1', 'raw', 'validation, trained weights', '--o', 1)
             + evaluated('top_1', 'ema', 'validation, averaged weights', '-o', 2),
             'top-1', False, 'Share of images whose class is the first guess'),
            (trained('top_5', 'training')
             + evaluated('top_5', 'raw', 'validation, trained weights', '--o', 1)
             + evaluated('top_5', 'ema', 'validation, averaged weights', '-o', 2),
             'top-5', False, 'Share of images whose class is among the first five guesses'),
            (trained('learning_rate'), 'learning rate', False, 'Learning rate'),
            (trained('gradient_norm'), 'norm', True,
             'Norm of all gradients together'),
            (trained('l2_loss'), 'L2', False, 'Weight decay in the loss'),
            (trained('images_per_sec'), 'images/s', False, 'Speed of training'),
            (trained('input_stall'), 'share', False,
             'Share of the time for which the device waited for input'),
            (trained('loss_scale'), 'loss scale', True, 'Loss scale'),
            (trained('skipped_steps'), 'steps', False,
             'Steps skipped since the start of the run because they overflowed')):
        parts.append(page.figure(plots.curves(lines, 'epoch', y_label, is_log), text))
    if not any(parts):
        return [page.paragraph('No training step has been logged yet.')]
    return [page.beside(*parts, is_wide=True)]


def _label(runs, run, label):
    """Of a curve; a figure that has one for each run needs no more than the run's name."""
    return label if len(runs) == 1 else ': '.join(filter(None, (run.name, label)))


def _epoch(run, step):
    return step / run.config.steps_per_epoch


# Evaluations and classes -------------------------------------------------------------------------

def _evaluations(run):
    if not run.rows:
        return [page.paragraph('Nothing has been evaluated yet.')]
    kinds = [kind for kind in _WEIGHTS if any(kind in row.by_weights for row in run.rows)]
    columns = {'step': [f'{row.step:,}' for row in run.rows],
               'epoch': [f'{_epoch(run, row.step):.2f}' for row in run.rows]}
    if any(row.name for row in run.rows):
        columns['name'] = [row.name or '' for row in run.rows]
    for key, heading, form in (('top_1', 'top-1', _percent), ('top_5', 'top-5', _percent),
                               ('cross_entropy', 'cross entropy', _rounded)):
        for kind in kinds:
            columns[f'{heading}, {_WEIGHTS[kind]}'] = [
                form(row.by_weights.get(kind, {}).get(key)) for row in run.rows]
    columns['images'] = [f"{row.judged.get('num_images', 0):,}" for row in run.rows]
    archived = best_evaluation(run.model_dir)
    where = page.paragraph('The best checkpoint is not archived.')
    if archived:
        path = os.path.join(run.model_dir, store.ARCHIVE_DIR, archived['checkpoint'])
        where = page.paragraph(page.Html(f'The best checkpoint: {page.code(path)}'))
    return [page.table(
        list(columns), list(zip(*columns.values())),
        'Of the trained weights and of their moving average. The best one is marked.',
        ['best' if row.is_best else None for row in run.rows]), where]


def _classes(run):
    """The worst and the best classes of the best evaluation, and what is taken for what."""
    found, row = None, run.best
    if row:
        label = '_'.join(filter(None, (row.name, row.judged['weights'])))
        found = class_metrics.read_evaluations(
            class_metrics.evaluation_folder(run.model_dir, label)).get(row.step)
    if not found or 'class_images' not in found:
        return [page.paragraph('The event files of this run say nothing of single classes.')]
    counts, correct = found['class_images'], found['class_correct']
    lines = [(correct[index] / counts[index], run.class_names[index], int(counts[index]))
             for index in range(len(counts)) if counts[index]]
    lines.sort(key=lambda line: line[0])

    def table(chosen, caption):
        return page.table(['class', 'right', 'images'], [
            [name, _percent(share), f'{number:,}'] for share, name, number in chosen], caption)

    shown = min(NUM_CLASSES_SHOWN, (len(lines) + 1) // 2)
    intro = (f'Of {len(lines)} classes, at step {row.step:,}, with the '
             f"{_WEIGHTS[row.judged['weights']]} weights.")
    parts = [page.paragraph(intro), page.beside(
        table(lines[:shown], 'The worst'), table(lines[::-1][:len(lines) - shown][:shown],
                                                 'The best'))]
    if 'confusion_matrix' in found:
        parts.append(page.figure(
            plots.heatmap(found['confusion_matrix'], run.class_names, run.class_names,
                            'taken for', 'class', digits=0),
            'Confusion matrix: how many images of each class (row) were taken for which (column)'))
    return parts


# What the network makes of images ----------------------------------------------------------------

def _examine(run, data_dir, num_images):
    """(`routing.Examination` or None, why there is none)."""
    if not num_images:
        return None, '--num_images=0 leaves the images out.'
    data_dir = data_dir or run.config.data.data_dir
    if data_dir == schema.SYNTHETIC_DIR:
        return None, 'The run had generated images, of which there is nothing to see.'
    if not tf.gfile.IsDirectory(data_dir):
        return None, (f'The images are not in {data_dir} any more; --data_dir names the folder '
                      'where they are.')
    archive = os.path.join(run.model_dir, store.ARCHIVE_DIR)
    checkpoint = store.latest(archive) or store.latest(run.model_dir)
    if not checkpoint:
        return None, 'The run has no checkpoint to classify images with.'
    images = dataclasses.replace(
        inputs.make_input(run.config, is_training=False), data_dir=data_dir, batch_size=BATCH_SIZE,
        num_images=num_images, transpose_input=False)
    logging.info('%s classifies up to %d images.', checkpoint, num_images)
    try:
        return routing.examine(
            checkpoint, images, run.config.model.model_name,
            {**run.config.model_overrides, 'data_format': CHANNELS_LAST}, NUM_MISTAKES), None
    except UserError as error:
        return None, str(error)


def _mistakes(run, examination, reason):
    if not examination:
        return [page.paragraph(reason)]
    names = run.class_names
    used = (f'Among {examination.num_images:,} validation images, with the '
            f'{_WEIGHTS[examination.weights]} weights of the best checkpoint. Images are shown as '
            'the network sees them.')
    if not examination.mistakes:
        return [page.paragraph(f'{used} There is no mistake.')]
    items = []
    for mistake in examination.mistakes:
        picture = pictures.grid(mistake.pixels[None])
        if picture.width > PICTURE_SIZE:
            picture = picture.resize((PICTURE_SIZE, PICTURE_SIZE))
        label, predicted = names[mistake.label], names[mistake.predicted]
        items.append((
            pictures.encode(picture, 'JPEG'),
            f'Image of class {label}, taken for {predicted}', page.Html(
                f'<b>{page.html_of(predicted)}</b> {mistake.probability:.1%}<br>'
                f'is {page.html_of(label)}, {mistake.label_probability:.1%}')))
    return [page.paragraph(used), page.pictures(items)]


def _experts(run, examination, reason):
    if not examination:
        return [page.paragraph(reason)]
    if not examination.routing:
        return [page.paragraph(f'{run.config.model.model_name} has no CondConv block.')]
    blocks = list(examination.routing)
    by_block = {block: [record for record in examination.experts if record['block'] == block]
                for block in blocks}
    names = [str(record['expert']) for record in by_block[blocks[0]]]
    dead = [f"{record['expert']} of {record['block']}" for record in examination.experts
            if record['is_dead']]
    parts = [
        page.paragraph(
            f'Over {examination.num_images:,} validation images. An expert is dead if its weight '
            f"is below {experts.DEAD_BELOW} on every image: {', '.join(dead) or 'none'}."),
        page.beside(*(page.figure(plots.heatmap(
            [[record[key] for record in by_block[block]] for block in blocks], blocks, names,
            'expert', top=top), text) for key, top, text in (
                ('mean', 1.0, 'Mean routing weight of each expert'),
                ('std', None, 'Its standard deviation over the images: 0 means that the expert '
                 'does not depend on the image'),
                ('entropy', 1.0, 'Mean entropy of the weight in bits: 1 at 0.5, 0 where an expert '
                 'is wholly on or off'))))]
    present = [index for index, count in enumerate(examination.class_images) if count]
    shown = present[:MAX_ROUTED_CLASSES]
    if len(shown) < len(present):
        parts.append(page.paragraph(f'By class, of the first {len(shown)} of {len(present)}:'))
    parts.append(page.beside(*(page.figure(
        plots.heatmap(weights[shown], [run.class_names[index] for index in shown], names,
                        'expert', top=1.0),
        f'Mean routing weights of each class in {block}')
        for block, weights in examination.routing.items())))
    return parts


# Configuration and environment -------------------------------------------------------------------

def _configuration(runs):
    """Every setting of one run; of several, what sets them apart, then every setting."""
    lines, marks = [], []
    for group, fields in settings.by_group().items():
        for field in fields:
            values = [getattr(getattr(run.config, group), field.name) for run in runs]
            if len(runs) > 1:
                is_marked = len({str(value) for value in values}) > 1
            else:
                is_marked = values[0] != field.default
            lines.append([page.code(f'--{field.name}'), *(_shown(value) for value in values)])
            marks.append('changed' if is_marked else None)
    headings = ['flag', *(run.name for run in runs)] if len(runs) > 1 else ['flag', 'value']
    if len(runs) == 1:
        return [page.table(headings, lines, 'Settings that differ from the defaults are marked.',
                           marks)]
    different = [line for line, mark in zip(lines, marks) if mark]
    return [page.table(headings, different, 'Settings that differ between the runs.'),
            page.heading('All settings'), page.table(headings, lines, '', marks)]


def _shown(value):
    return '' if value is None else str(value)


def _environment(runs):
    """What each run was last started on."""
    found = [_last_environment(run) for run in runs]
    names = list(dict.fromkeys(name for environment in found for name in environment))
    if not names:
        return [page.paragraph('This run did not record what it ran on.')]
    headings = ['', *(run.name for run in runs)] if len(runs) > 1 else ['what', 'value']
    return [page.table(headings, [
        [name.replace('_', ' '), *(environment.get(name, '') for environment in found)]
        for name in names], 'As recorded when the run was last started.')]


def _last_environment(run):
    found = [event['environment'] for event in run.events
             if event['event'] == 'run_start' and event.get('environment')]
    return {**(found[-1] if found else {}), 'processes': str(run.config.num_ranks)}


def short_names(model_dirs):
    """The folders' own names, or their paths where those are not all different."""
    short = [os.path.basename(os.path.abspath(path)) for path in model_dirs]
    return short if len(set(short)) == len(short) else model_dirs


def _percent(share):
    return None if share is None else f'{share:.2%}'


def _rounded(value: Optional[float]):
    return None if value is None else f'{value:.4f}'


if __name__ == '__main__':
    define_flags()
    app.run(main, takes_arguments=True)
