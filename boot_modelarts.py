"""The boot file of a ModelArts job: copies the data here, runs main.py, copies the results back.

    boot_modelarts.py --data_url=obs://BUCKET/DATA --train_url=obs://BUCKET/RESULTS [main.py flags]

The shards are in --data_url or in its only subdirectory. They are copied to --data_dir, and results
are written to --model_dir; both default to the job's local disk.
"""
import fcntl
import fnmatch
import os

from absl import flags

from common import app
from common import object_storage
from common.errors import UserError
from common.errors import first_line
from common.paths import check_input_folder
from common.paths import check_output_folder
from config import command_line
from config import run_config
from config import settings
import runtime
from tfrecords import schema
from training import header
from training import trainer
from weights import conversion

_LOCAL_DATA_DIR = '/cache/data'
_LOCAL_MODEL_DIR = '/cache/result'


def main(_):
    header.log_first_line()
    values = flags.FLAGS
    for name in ('data_url', 'train_url'):
        if not values[name].value:
            raise UserError(f'--{name}: not given; choose the directory in the ModelArts job.')
    values.data_dir = values.data_dir or _LOCAL_DATA_DIR
    values.model_dir = values.model_dir or _LOCAL_MODEL_DIR
    check_input_folder(values.data_url, '--data_url')
    check_output_folder(values.train_url, '--train_url')
    check_output_folder(values.data_dir, '--data_dir')
    values.obs_dir = values.train_url
    # Checks come first, because copying the data may take hours.
    command_line.check_flags()
    runtime.load_bridge(values.accelerator)
    patterns = [values[flag].value or f'{split}-?????-of-?????'
                for split, flag in schema.PATTERN_FLAGS.items()]
    _fetch(_shard_folder(values.data_url, patterns), values.data_dir)
    return trainer.run(command_line.from_flags(conversion.as_checkpoint))


def _shard_folder(url, patterns):
    """Returns `url`, or its only subdirectory if the shards are in there.

    Raises:
      UserError: neither has a file that matches one of the patterns.
    """
    try:
        folder, names = url, object_storage.names_in(url)
        if not _matches(names, patterns):
            folders = [path for path in (os.path.join(url, name) for name in names)
                       if object_storage.is_folder(path)]
            if len(folders) == 1:
                folder, names = folders[0], object_storage.names_in(folders[0])
    except Exception as error:  # moxing has errors of its own.
        raise UserError(f'--data_url={url}: cannot be listed ({first_line(error)}); check the '
                        'address and the permissions.') from error
    if not _matches(names, patterns):
        raise UserError(
            f"--data_url={url}: no shards ({', '.join(patterns)}) there or in a single "
            'subdirectory; name their directory, or the shards with --train_pattern and '
            '--eval_pattern.')
    return folder


def _matches(names, patterns):
    # The first part of a pattern may be the name of a directory.
    return any(fnmatch.filter(names, pattern.split('/')[0]) for pattern in patterns)


def _fetch(source, folder):
    """Copies the data once per host, whichever rank comes first."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, '.fetched'), 'a+') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        job = f"{os.environ.get('JOB_ID')} {source}"
        num_ranks = os.environ.get('CM_WORKER_SIZE') or os.environ.get('RANK_SIZE') or '1'
        if num_ranks == '1' or file.read() != job:
            object_storage.copy_folder(source, folder)
            file.truncate(0)
            file.write(job)


if __name__ == '__main__':
    run_config.define_flags()
    flags.DEFINE_string('data_url', '', 'OBS directory of the TFRecord shards.')
    flags.DEFINE_string('train_url', '', 'OBS directory for the results, copied there at the end.')
    flags.DEFINE_alias('modelarts_data_dir', 'data_dir')
    app.run(main, first_flags={
        'ModelArts': ('data_url', 'train_url', 'modelarts_data_dir'), **settings.FIRST})
