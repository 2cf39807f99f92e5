"""How the integration tests run the program: as a user does, in a process of its own."""
import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# A network and a run as small as they come: a few seconds in all.
TINY = ('--model_name=efficientnet-condconv-b0-4e', '--width_coefficient=0.25',
        '--depth_coefficient=0.25', '--input_image_size=32', '--batch_size=32',
        '--eval_batch_size=96', '--lr_warmup_epochs=0')
# Starts in two thirds of the time. For tests of which CondConv is no part.
LITE = ('--model_name=efficientnet-lite0', *TINY[1:])


@pytest.fixture(scope='session')
def run(programs):
    """Runs what follows `python`: `run('-m', 'dataset.inspect', '--data_dir=x')` -> `Ended`."""
    def run_command(*command, timeout_secs=300, **environment):
        command = command[1:] if command[0] == '-m' else command
        return programs.run(*command, timeout_secs=timeout_secs, **environment)

    return run_command


@pytest.fixture(scope='session')
def start():
    """Like `run`, but returns the running process, which has imported everything itself."""
    def start_command(*command, **environment):
        return subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env={**os.environ, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)

    return start_command


@pytest.fixture(scope='session')
def trained_dir(run, digits_dir, shared_dir):
    """The model_dir of a tiny run of 6 steps and 2 evaluations. Not to be written to."""
    model_dir = str(shared_dir / 'trained')
    with open(shared_dir / 'trained.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(model_dir):
            completed = run(
                'main.py', f'--data_dir={digits_dir}', f'--model_dir={model_dir}', *TINY,
                '--train_steps=6', '--steps_per_eval=3', '--log_step_count_steps=2',
                '--moving_average_decay=0.5')
            assert completed.returncode == 0, completed.stderr
    return model_dir


def assert_is_like_an_export(run, model_dir, saved_model_dir, folder):
    """That a SavedModel of main.py has the signatures, files and weights of export_model.py's."""
    completed = run('export_model.py', f'--ckpt_dir={model_dir}',
                    f'--output_saved_model_dir={folder}/expected')
    assert completed.returncode == 0, completed.stderr
    signatures, files, logits = [], [], []
    for path in (str(saved_model_dir), f'{folder}/expected'):
        with tf.Graph().as_default(), tf.Session() as session:
            definitions = tf.saved_model.load(session, ['serve'], path).signature_def
            signatures.append({
                name: [{key: (info.dtype, [dim.size for dim in info.tensor_shape.dim])
                        for key, info in infos.items()}
                       for infos in (definition.inputs, definition.outputs)]
                for name, definition in definitions.items()})
            image, output = (definitions['image'].inputs['image'].name,
                             definitions['image'].outputs['logits'].name)
            shape = session.graph.get_tensor_by_name(image).shape.as_list()[1:]
            logits.append(session.run(output, {image: np.full([3, *shape], 99.0)}))
        files.append({name: open(os.path.join(path, 'assets.extra', name)).read()
                      for name in os.listdir(os.path.join(path, 'assets.extra'))})
    assert set(signatures[0]) == {'serving_default', 'image', 'image_bytes'}
    assert signatures[0] == signatures[1] and files[0] == files[1]
    assert set(files[0]) == {'labels.txt', 'export.json'}
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-6)


# What exports are tried on, and a run of theirs that is over soon and yet tells digits apart.
EXPORTED_MODELS = 'efficientnet-condconv-b0-4e', 'efficientnet-lite0'
LEARNING = ('--width_coefficient=0.25', '--depth_coefficient=0.25', '--input_image_size=40',
            '--batch_size=32', '--eval_batch_size=250', '--train_steps=120',
            '--steps_per_eval=1000', '--lr_warmup_epochs=0.2', '--base_learning_rate=0.03',
            '--moving_average_decay=0.9', '--batch_norm_momentum=0.8',
            '--routing_init_stddev=0.01', '--norandom_flip', '--min_crop_area=0.7',
            '--survival_prob=1', '--random_seed=1')


@pytest.fixture(scope='session')
def learned_dir(run, digits_dir, shared_dir):
    """Function of a model's name -> the model_dir of such a run. Not to be written to."""
    def make(model_name):
        model_dir = str(shared_dir / f'learned_{model_name}')
        with open(f'{model_dir}.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(model_dir):
                completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={model_dir}',
                                f'--model_name={model_name}', *LEARNING)
                assert completed.returncode == 0, completed.stderr
        return model_dir

    return make
