"""The boot file of a ModelArts job: fetches the data, does what main.py does, copies back.

    boot_modelarts.py --data_url=obs://BUCKET/DATA --train_url=obs://BUCKET/RESULTS [main.py flags]

Data go to --data_dir, results are in --model_dir; both have defaults on the job's local disk.
"""
import fcntl
import os

from absl import flags

from common import app
from common import object_storage
from common.errors import UserError
from common.paths import check_input_folder
from common.paths import check_output_folder
from config import command_line
from config import run_config
import runtime
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
            raise UserError(f'--{name} is not given; choose the folder in the ModelArts job.')
    values.data_dir = values.data_dir or _LOCAL_DATA_DIR
    values.model_dir = values.model_dir or _LOCAL_MODEL_DIR
    check_input_folder(values.data_url, '--data_url')
    check_output_folder(values.train_url, '--train_url')
    check_output_folder(values.data_dir, '--data_dir')
    values.obs_dir = values.train_url
    # Before data are fetched for hours.
    command_line.check_flags()
    runtime.load_bridge(values.accelerator)
    _fetch(values.data_url, values.data_dir)
    return trainer.run(command_line.from_flags(conversion.as_checkpoint))


def _fetch(source, folder):
    """Copies the data; of a job with several ranks, the first one here does so for all of them."""
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
    flags.DEFINE_string('data_url', '', 'OBS folder of the TFRecord shards.')
    flags.DEFINE_string('train_url', '', 'OBS folder for the results, copied there at the end.')
    app.run(main)
