"""Offline inference on Ascend: checkpoint, frozen graph, .bin files, emulated outputs, top-1."""
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from run_log import event_log

pytestmark = pytest.mark.slow

MODELS = ('efficientnet-condconv-b0-4e', 'efficientnet-lite0')
# uint8 clips bicubic resizing's overshoot at the edges of digits: 0.02 to 0.04 of top-1, measured.
UINT8_TOP_1 = {'efficientnet-condconv-b0-4e': 0.05, 'efficientnet-lite0': 0.01}


@pytest.fixture(scope='module', params=MODELS)
def exported(request, run, learned_dir, tmp_path_factory):
    """(model_dir, folder with its frozen graphs of 1 and 4 images)."""
    folder = tmp_path_factory.mktemp('graphs')
    model_dir = learned_dir(request.param)
    completed = run('export_model.py', f'--ckpt_dir={model_dir}', f'--output_dir={folder}',
                    '--formats=frozen', '--batch_sizes=1,4', '--aipp', '--soc_version=Ascend910Z',
                    '--atc_precision_mode=mixed_float16')
    assert completed.returncode == 0, completed.stderr
    assert '--soc_version=Ascend910Z: unknown chip' in completed.stderr
    return model_dir, folder / request.param


def good(completed):
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def refused(completed, words):
    assert completed.returncode == 1 and words in completed.stderr, completed.stderr
    assert completed.stderr.count('error: ') == 1 and 'Traceback' not in completed.stderr


def offline(run, command, **options):
    return run('-m', 'export.offline', command,
               *(f'--{name}={value}' for name, value in options.items()))


def scored(run, folder, inputs, outputs, **options):
    said = good(offline(run, 'score', inputs=inputs, outputs=outputs, json=folder / 'score.json',
                        **options))
    return json.loads((folder / 'score.json').read_text()), said


def test_convert_sh_compiles_each_graph(exported, tmp_path):
    _, stem = exported
    script = stem.parent / 'convert.sh'
    subprocess.run(['shellcheck', script], check=True)
    without = subprocess.run(['bash', script], stderr=subprocess.PIPE, text=True,
                             env={'PATH': '/usr/bin:/bin'})
    assert without.returncode == 1 and 'install the CANN toolkit' in without.stderr
    atc = tmp_path / 'atc'
    atc.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    atc.chmod(0o755)
    # As it is on another machine, whose path has a space.
    folder = tmp_path / 'a b'
    shutil.copytree(stem.parent, folder)
    said = subprocess.run(['bash', folder / 'convert.sh'], check=True, stdout=subprocess.PIPE,
                          text=True, env={'PATH': f'{tmp_path}:/usr/bin:/bin'}).stdout
    is_condconv = 'condconv' in stem.name
    calls = [set(call.splitlines()) for call in said.split(f'{folder}\n')[1:]]
    assert len(calls) == (2 if is_condconv else 3)
    outputs = [word for call in calls for word in call if word.startswith('--output=')]
    assert len(set(outputs)) == len(calls)
    for size in (1, 4):
        assert {f'--model={stem.name}_bs{size}.pb', f'--output={stem.name}_bs{size}_Ascend910Z',
                f'--input_shape=image:{size},40,40,3', '--framework=3', '--input_format=NHWC',
                '--soc_version=Ascend910Z', '--out_nodes=probabilities:0', '--output_type=FP32',
                '--precision_mode_v2=mixed_float16',
                '--insert_op_conf=aipp_40.cfg'} in calls
    assert is_condconv or '--dynamic_batch_size=1,2,4,8,16' in set.union(*calls)
    assert 'src_image_size_w: 40' in (folder / 'aipp_40.cfg').read_text()


@pytest.mark.parametrize('dtype, batch_size, layout', [
    ('float32', 1, 'msame'), ('float32', 4, 'ais_bench'), ('uint8', 4, 'msame')])
def test_outputs_have_the_top_1_of_main(
        run, exported, digits_dir, tmp_path, dtype, batch_size, layout):
    model_dir, stem = exported
    inputs, outputs = tmp_path / 'in', tmp_path / 'out'
    said = good(offline(run, 'prepare', ckpt_dir=model_dir, data_dir=digits_dir, output_dir=inputs,
                        dtype=dtype, batch_size=batch_size))
    assert '1000 images' in said
    assert 'emulation' in good(offline(
        run, 'emulate', frozen_graph=f'{stem}_bs{batch_size}.pb', inputs=inputs, outputs=outputs,
        layout=layout))
    scores, said = scored(run, tmp_path, inputs, outputs, reference=model_dir)
    main = [event for event in event_log.read(model_dir)
            if event['event'] == 'eval' and event['weights'] == 'ema'][-1]
    print(dtype, scores['top_1'], 'main.py:', main['top_1'])
    limit = UINT8_TOP_1[stem.name] if dtype == 'uint8' else 1e-6
    assert set(scores) == {'top_1', 'top_5', 'num_images', 'max_difference'}
    assert scores['num_images'] == 1000 and 0 <= scores['max_difference'] < 1e-4
    assert scores['top_1'] == pytest.approx(main['top_1'], abs=limit)
    assert scores['top_5'] == pytest.approx(main['top_5'], abs=limit)
    assert f'top-1 {scores["top_1"]:.4f}' in said and 'precision' in said and 'zero' in said


@pytest.fixture(scope='module')
def small(run, learned_dir, digits_dir, tmp_path_factory):
    """(folder of inputs of 10 images, 4 a file; folder of outputs; the graph of 4, and of 1)."""
    folder = tmp_path_factory.mktemp('small')
    name = MODELS[1]
    good(run('export_model.py', f'--ckpt_dir={learned_dir(name)}', f'--output_dir={folder}',
             '--formats=frozen', '--batch_sizes=1,4'))
    graphs = [f'{folder}/{name}_bs{size}.pb' for size in (4, 1)]
    good(offline(run, 'prepare', frozen_graph=graphs[1], data_dir=digits_dir, num_images=10,
                 output_dir=folder / 'in', batch_size=4))
    good(offline(run, 'emulate', frozen_graph=graphs[0], inputs=folder / 'in',
                 outputs=folder / 'out'))
    return folder, graphs


@pytest.fixture
def copied(small, tmp_path):
    """(inputs, outputs, the folder in it): copies of `small`'s, to be spoiled."""
    folder, _ = small
    shutil.copytree(folder / 'in', tmp_path / 'in')
    shutil.copytree(folder / 'out', tmp_path / 'out')
    made, = (tmp_path / 'out').iterdir()
    return tmp_path / 'in', tmp_path / 'out', made


def test_packed_inputs_are_padded_and_resumed(run, small, copied, digits_dir, tmp_path):
    _, graphs = small
    inputs, outputs, _ = copied
    manifest = json.loads((inputs / 'manifest.json').read_text())
    assert manifest['shape'] == [4, 40, 40, 3] and manifest['num_padding'] == 2
    assert [len(line.split()) for line in open(inputs / 'image_labels.txt')] == [5, 5, 3]
    assert not np.fromfile(inputs / '00002.bin', np.float32)[2 * 40 * 40 * 3:].any()
    kept = os.stat(inputs / '00000.bin').st_mtime_ns
    os.truncate(inputs / '00001.bin', 99)
    (inputs / 'manifest.json').write_text(json.dumps({**manifest, 'files': {}}))
    refused(offline(run, 'score', inputs=inputs, outputs=outputs), 'incomplete')
    (inputs / 'manifest.json').write_text(json.dumps(manifest))
    options = dict(frozen_graph=graphs[1], data_dir=digits_dir, num_images=10, output_dir=inputs,
                   batch_size=4)
    good(offline(run, 'prepare', **options))
    assert json.loads((inputs / 'manifest.json').read_text()) == manifest
    assert os.stat(inputs / '00000.bin').st_mtime_ns == kept
    refused(offline(run, 'prepare', **{**options, 'batch_size': 1}), 'contains inputs of another')
    assert sorted(os.listdir(inputs)) == ['00000.bin', '00001.bin', '00002.bin',
                                          'image_labels.txt', 'manifest.json']
    assert scored(run, tmp_path, inputs, outputs)[0]['num_images'] == 10


def test_what_does_not_fit_is_refused(run, small, copied, learned_dir):
    _, graphs = small
    inputs, outputs, made = copied
    refused(offline(run, 'emulate', frozen_graph=graphs[1], inputs=inputs, outputs=outputs,
                    layout='msame'), 'takes 1 images')
    first = (made / '00000_0.bin').read_bytes()
    for spoil, words in (
            (first[:-1], 'truncated'), (first[:len(first) // 2], 'float16'), (first * 2, 'classes'),
            (np.full(40, np.nan, np.float32).tobytes(), 'not finite')):
        (made / '00000_0.bin').write_bytes(spoil)
        refused(offline(run, 'score', inputs=inputs, outputs=outputs), words)
    os.remove(made / '00000_0.bin')
    refused(offline(run, 'score', inputs=inputs, outputs=outputs), 'such as 00000.bin')
    (made / '00000_0.bin').write_bytes(first)
    (made / '00007_0.bin').write_bytes(first)
    refused(offline(run, 'score', inputs=inputs, outputs=outputs), '00007_0.bin')
    os.remove(made / '00007_0.bin')
    (made / 'emulation.json').write_text('{"model_checksum": "x"}')
    refused(offline(run, 'score', inputs=inputs, outputs=outputs), 'other weights')
    os.remove(made / 'emulation.json')
    os.truncate(inputs / '00001.bin', 99)
    refused(offline(run, 'emulate', frozen_graph=graphs[0], inputs=inputs, outputs=outputs),
            'truncated')
    manifest = json.loads((inputs / 'manifest.json').read_text())
    for key, value in (('num_images', 11), ('dtype', 'int8'), ('shape', [4, 40]),
                       ('num_classes', 'x')):
        (inputs / 'manifest.json').write_text(json.dumps({**manifest, key: value}))
        refused(offline(run, 'score', inputs=inputs, outputs=outputs), 'manifest.json')


def test_a_folder_of_images_has_labels_by_its_subfolders(run, small, digits_dir, tmp_path):
    _, graphs = small
    source = f'{digits_dir}/examples'
    for subfolders in (True, False):
        images = tmp_path / f'images_{subfolders}'
        for name in ('one', 'two'):
            place = images / name if subfolders else images
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(f'{source}/{name}_0.jpg', place)
        inputs, outputs = tmp_path / f'in_{subfolders}', tmp_path / f'out_{subfolders}'
        good(offline(run, 'prepare', frozen_graph=graphs[1], images=images, output_dir=inputs))
        good(offline(run, 'emulate', frozen_graph=graphs[0], inputs=inputs, outputs=outputs))
        assert os.path.exists(inputs / 'image_labels.txt') == subfolders
        if subfolders:
            assert [line.split()[1] for line in open(inputs / 'image_labels.txt')] == ['1', '2']
            continue
        refused(offline(run, 'score', inputs=inputs, outputs=outputs), '--reference')
        scores, said = scored(run, tmp_path, inputs, outputs, reference=graphs[0])
        assert scores == {'top_1': None, 'top_5': None, 'num_images': 2,
                          'max_difference': pytest.approx(0, abs=1e-6)}
        assert 'top-1' not in said


def test_changed_images_are_prepared_anew(run, small, digits_dir, tmp_path):
    _, graphs = small
    images, inputs = tmp_path / 'images', tmp_path / 'in'
    images.mkdir()
    for name in ('one', 'two'):
        shutil.copy(f'{digits_dir}/examples/{name}_0.jpg', images)
    options = dict(frozen_graph=graphs[1], images=images, output_dir=inputs, dtype='uint8')
    assert 'clipped' in good(offline(run, 'prepare', **options))
    before = [(inputs / f'0000{index}.bin').read_bytes() for index in (0, 1)]
    kept = os.stat(inputs / '00001.bin').st_mtime_ns
    shutil.copy(f'{digits_dir}/examples/seven_0.jpg', images / 'one_0.jpg')
    shutil.copy(f'{digits_dir}/examples/three_0.jpg', images / 'zero_0.jpg')
    good(offline(run, 'prepare', **options))
    assert json.loads((inputs / 'manifest.json').read_text())['num_images'] == 3
    os.remove(images / 'zero_0.jpg')
    # As a kill leaves it.
    manifest = json.loads((inputs / 'manifest.json').read_text())
    sources, checksums = manifest.pop('sources'), manifest.pop('files')
    (inputs / 'manifest.json').write_text(json.dumps({**manifest, 'files': {}}))
    (inputs / 'finished.txt').write_text(''.join(
        f'{name} {source} {checksums[name]}\n' for name, source in sources.items()) + '00002.b')
    # The file has the right size and images, but not the content that prepare wrote.
    (inputs / '00000.bin').write_bytes(bytes(len(before[0])))
    good(offline(run, 'prepare', **options))
    after = [(inputs / f'0000{index}.bin').read_bytes() for index in (0, 1)]
    assert after[0] != before[0] and after[1] == before[1]
    assert os.stat(inputs / '00001.bin').st_mtime_ns == kept
    assert sorted(os.listdir(inputs)) == ['00000.bin', '00001.bin', 'manifest.json']


def test_the_newest_outputs_are_scored_and_a_saved_model_may_be_the_reference(
        run, small, copied, learned_dir, tmp_path):
    inputs, outputs, made = copied
    newer = outputs / 'newer'
    shutil.copytree(made, newer)
    first = np.fromfile(newer / '00000_0.bin', np.float32)
    first[:10] = first[:10][::-1]
    first.tofile(newer / '00000_0.bin')
    os.utime(made, (1, 1))
    good(run('export_model.py', f'--ckpt_dir={learned_dir(MODELS[1])}',
             f'--output_dir={tmp_path}/saved', '--formats=saved_model'))
    completed = offline(run, 'score', inputs=inputs, outputs=outputs,
                        reference=f'{tmp_path}/saved')
    assert 'newer, the newest, is scored' in completed.stderr
    assert 'another class for 1 of 10 images' in good(completed)
    os.utime(newer, (0, 0))
    scores, said = scored(run, tmp_path, inputs, outputs, reference=f'{tmp_path}/saved')
    assert 0 < scores['max_difference'] < 1e-5 and 'another class for 0 of 10' in said


def test_images_without_labels_leave_no_earlier_labels(run, small, digits_dir, tmp_path):
    _, graphs = small
    images, inputs = tmp_path / 'images', tmp_path / 'in'
    (images / 'one').mkdir(parents=True)
    shutil.copy(f'{digits_dir}/examples/one_0.jpg', images / 'one')
    options = dict(frozen_graph=graphs[1], images=images, output_dir=inputs)
    good(offline(run, 'prepare', **options))
    assert sorted(os.listdir(inputs)) == ['00000.bin', 'image_labels.txt', 'manifest.json']
    (images / 'one' / 'one_0.jpg').rename(images / 'one_0.jpg')
    (images / 'one').rmdir()
    good(offline(run, 'prepare', **options))
    assert sorted(os.listdir(inputs)) == ['00000.bin', 'manifest.json']


def test_score_overwrites_no_file_of_another_kind(run, small, copied, learned_dir, tmp_path):
    folder, graphs = small
    inputs, outputs, made = copied
    model_dir = tmp_path / 'run'
    shutil.copytree(learned_dir(MODELS[1]), model_dir)
    graph = tmp_path / os.path.basename(graphs[1])
    for path in (graphs[1], f'{graphs[1]}.json'):
        shutil.copy(path, tmp_path)
    link, pipe = tmp_path / 'link.json', tmp_path / 'pipe'
    link.symlink_to(inputs / 'manifest.json')
    os.mkfifo(pipe)
    for path in (inputs / 'manifest.json', model_dir / 'config.json', made / 'emulation.json',
                 inputs / 'image_labels.txt', f'{graph}.json', link, pipe, inputs):
        before = None if path in (pipe, inputs) else open(path, 'rb').read()
        refused(offline(run, 'score', inputs=inputs, outputs=outputs, reference=model_dir,
                        json=path), '--json=')
        assert before is None or open(path, 'rb').read() == before
    for _ in range(2):
        scored(run, outputs, inputs, outputs)


def test_paths_are_local(run, copied):
    inputs, outputs, _ = copied
    refused(offline(run, 'score', inputs='obs://bucket/in', outputs=outputs), 'not a local path')


def test_the_checksum_is_that_of_the_weights(small):
    from export import emulation
    _, graphs = small
    assert len({emulation.FrozenGraph(path).checksum for path in graphs}) == 1
    assert [emulation.FrozenGraph(path).batch_size for path in graphs] == [4, 1]
