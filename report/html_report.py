"""Writes an HTML report about one run, or a comparison of several runs.

    python3.7 -m report.html_report MODEL_DIR [MODEL_DIR ...] --output=report.html

The file is self-contained: it needs no server and no network. Curves, evaluations, classes,
configuration and environment come from the logs of the run. For the mistakes and the usage of
experts, the best checkpoint classifies validation images.
"""
import datetime
import os

from absl import flags
import tensorflow.compat.v1 as tf

from common import app
from common.errors import UserError
from common.files import whole_file
from common.paths import check_output_file
from report import classified_images
from report import curves
from report import page
from report import run_data
from report import sections

MAX_NAMES_IN_TITLE = 4


def define_flags():
    flags.DEFINE_string('output', None, 'File to write; default: report.html in the first '
                        'MODEL_DIR.')
    flags.DEFINE_string('data_dir', None, 'Directory of the validation shards; default: '
                        '--data_dir of the run.')
    flags.DEFINE_integer('num_images', 5000, 'Maximum number of validation images that the best '
                         'checkpoint classifies for the sections on mistakes and experts; 0 omits '
                         'both.', lower_bound=0)


def main(argv):
    """Reads the runs in the directories of `argv` and writes the report."""
    model_dirs = [path.rstrip('/') or '/' for path in argv[1:]]
    if not model_dirs:
        raise UserError('MODEL_DIR: not given; name the directory of one or several runs.')
    page.check_installed()
    runs = [run_data.load(path, name)
            for path, name in zip(model_dirs, run_data.short_names(model_dirs))]
    output = flags.FLAGS.output or os.path.join(model_dirs[0], 'report.html')
    folder = os.path.dirname(output) or '.'
    if not tf.gfile.IsDirectory(folder):
        raise UserError(f'--output={output}: the directory {folder} does not exist; create it, or '
                        'choose another file.')
    check_output_file(
        output, '--output', [*model_dirs, flags.FLAGS.data_dir], '.html')
    text = write(runs, flags.FLAGS.data_dir, flags.FLAGS.num_images)
    try:
        with whole_file(output) as file:
            file.write(text)
    except tf.errors.OpError as error:
        raise UserError(f'--output={output}: cannot be written ({error.message}); choose another '
                        'file.') from error
    print(f'{output} ({len(text) / 1e6:.1f} MB)')


def write(runs, data_dir=None, num_images=0):
    """Returns the report as HTML, str.

    Args:
      runs: list of `run_data.Run`.
      data_dir: directory of the validation shards; None for each run's own.
      num_images: maximum number of images to classify for each run; 0 for none.
    """
    model_names = ', '.join(sorted({run.config.model.model_name for run in runs}))
    names = ', '.join(run.name for run in runs)
    return page.render(
        names if len(runs) <= MAX_NAMES_IN_TITLE else f'{len(runs)} runs compared',
        f'{model_names}; written {datetime.datetime.now():%Y-%m-%d %H:%M}',
        sections.overview(runs), list(_sections(runs, data_dir, num_images)))


def _sections(runs, data_dir, num_images):
    """Yields the `page.Section`s in order; sections about a single run come once per run."""
    yield page.Section('curves', 'Curves', 'curves', curves.figures(runs))
    for index, run in enumerate(runs):
        prefix, of = ('', '') if len(runs) == 1 else (f'run{index}-', f' of {run.name}')
        examination = classified_images.examine(run, data_dir, num_images)
        for kind, heading, content in (
                ('evaluations', 'Evaluations', sections.evaluations(run)),
                ('classes', 'Classes', sections.classes(run)),
                ('mistakes', 'Most confident mistakes',
                 classified_images.mistakes_of(run, examination)),
                ('experts', 'Experts', classified_images.experts_of(run, examination))):
            yield page.Section(f'{prefix}{kind}', f'{heading}{of}', kind, content)
    yield page.Section('configuration', 'Configuration', 'configuration',
                       sections.configuration(runs))
    yield page.Section('environment', 'Environment', 'environment', sections.environment(runs))


if __name__ == '__main__':
    define_flags()
    app.run(main, takes_arguments=True)
