"""What programs do beside their work: nothing. No connection, no stray file, no code in data."""
import ast
import os
import stat
import subprocess

from conftest import LITE
from conftest import ROOT
import pytest

# Its unpickler builds tensors and dicts only, see test_weight_files.
RESTRICTED_UNPICKLER = 'weights/torch_file.py'
CODE_IN_DATA = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}


def modules():
    """(path, syntax tree) of every module that is no test."""
    names = subprocess.run(['git', 'ls-files', '*.py'], cwd=ROOT, stdout=subprocess.PIPE,
                           check=True, text=True).stdout.split()
    for name in names:
        if not name.startswith('test/'):
            with open(os.path.join(ROOT, name)) as file:
                yield name, ast.parse(file.read())


def test_no_module_reads_code_from_data_or_asks_a_shell():
    seen = 0
    for name, tree in modules():
        seen += 1
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imported = [alias.name for alias in node.names]
                imported.append(getattr(node, 'module', '') or '')
                assert name == RESTRICTED_UNPICKLER or not CODE_IN_DATA & {
                    part.split('.')[0] for part in imported}, name
            if isinstance(node, ast.Call):
                called = ast.dump(node.func)
                assert not any(word in called for word in (
                    "Name(id='eval'", "Name(id='exec'", "attr='system'", "attr='popen'",
                    "attr='getoutput'")), f'{name}:{node.lineno}'
                assert not any(keyword.arg in ('allow_pickle', 'shell')
                               for keyword in node.keywords), f'{name}:{node.lineno}'
    assert seen > 60


def test_no_script_evaluates_a_value():
    names = subprocess.run(['git', 'ls-files', '*.sh', '.ci/run'], cwd=ROOT,
                           stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    assert len(names) >= 8
    for name in names:
        with open(os.path.join(ROOT, name)) as file:
            for line in file:
                words = line.split('#')[0].split()
                assert 'eval' not in words, f'{name}: {line}'


def entries(*folders):
    """Path -> mode of all that lies in folders."""
    return {os.path.join(parent, name): stat.S_IMODE(os.lstat(os.path.join(parent, name)).st_mode)
            for folder in folders for parent, names, files in os.walk(str(folder))
            for name in names + files}


def source_files():
    """What lies in the repository beside what git, the linters and this run's tests keep there."""
    kept = tuple(os.path.join(ROOT, name) for name in (
        '.git', '.venv', '.cache', '.pytest_cache', '.hypothesis', '.ruff_cache'))
    return {path for path in entries(ROOT)
            if not path.startswith(kept) and '__pycache__' not in path}


@pytest.mark.slow
def test_programs_write_where_they_are_told_with_the_users_modes_and_call_nobody(
        programs, digits_dir, tmp_path):
    for name in ('here', 'home', 'temporary', 'out'):
        (tmp_path / name).mkdir()
    out = tmp_path / 'out'
    before = source_files()

    def run(*command):
        ended = programs.run(
            *command, timeout_secs=300, cwd=tmp_path / 'here', is_confined=True,
            HOME=str(tmp_path / 'home'), TMPDIR=str(tmp_path / 'temporary'))
        assert ended.returncode == 0, ended.stderr

    run('main.py', f'--data_dir={digits_dir}', f'--model_dir={out}/run', *LITE, '--train_steps=2',
        '--num_eval_images=96', f'--export_dir={out}/served', '--npu_dump_graph',
        f'--obs_dir={out}/copy', '--moving_average_decay=0')
    run('export_model.py', f'--ckpt_dir={out}/run', f'--output_dir={out}/exports',
        '--formats=saved_model,frozen,tflite,onnx')
    run('predict.py', f'--saved_model={out}/exports', f'--csv={out}/table.csv',
        f'{digits_dir}/examples')
    run('dataset.sample', f'--output_dir={out}/photos', '--folders')
    run('dataset.create', '--source=folder', f'--raw_dir={out}/photos',
        f'--output_dir={out}/data')
    run('dataset.inspect', f'--data_dir={out}/data', f'--contact_sheet={out}/sheet.png')
    run('inspect_model_architecture.py', '--model_name=b0')
    run('report.modelzoo', f'--model_dir={out}/run', f'--log_file={out}/run.log')

    # TensorFlow writes its settings wherever it is imported.
    assert set(entries(tmp_path / 'here', tmp_path / 'home', tmp_path / 'temporary')) <= {
        str(tmp_path / 'home' / name) for name in ('.keras', '.keras/keras.json')}
    assert source_files() == before
    written = entries(out)
    assert len(written) > 60
    for path, mode in written.items():
        runs = os.path.isdir(path) or path.endswith('.sh')
        assert mode == (0o750 if runs else 0o640), (path, oct(mode))
