"""Paths of outputs: what could not be written, or would be lost, is told before any work."""
import io
import os
import re
import sys

import pytest

from common import text_tables
from common.errors import UserError
from common.files import literal
from common.paths import check_no_input
from common.paths import check_output_file
from common.paths import check_output_folder

LONG = 'x' * 300


@pytest.mark.parametrize('path', [
    LONG, f'{LONG}/x.csv', 'ä' * 125, f'new/{LONG}/x', 'a/' * 2100 + 'x', f'{"y" * 250}.csv'])
def test_a_name_or_path_that_is_too_long(tmp_path, path):
    for check in (lambda path: check_output_file(path, '--csv', makes_folders=True),
                  lambda path: check_output_folder(path, '--csv')):
        with pytest.raises(UserError, match=r'^--csv=.*: the (name|path) has \d+ bytes; choose'):
            check(f'{tmp_path}/{path}')
    assert not os.listdir(tmp_path)


def test_names_that_are_long_enough(tmp_path):
    check_output_file(f'{tmp_path}/{"x" * 240}', '--csv')
    # A folder that is there was made by somebody, and nothing is written beside it.
    os.mkdir(tmp_path / ('x' * 255))
    check_output_folder(f'{tmp_path}/{"x" * 255}', '--model_dir')


@pytest.mark.parametrize('name', [
    'config.json', 'results.jsonl', 'best_eval.json', 'dataset_info.json', 'checkpoint',
    'model.ckpt-7.index', 'model.ckpt-7.data-00000-of-00001', 'my.meta', 'train-00000-of-00004',
    'events.out.tfevents.1.host', 'labels.txt', 'manifest.json', 'emulation.json',
    'x.onnx', 'x.onnx.json', 'saved_model.pb'])
def test_files_of_runs_data_sets_and_exports_are_kept(tmp_path, name):
    path = str(tmp_path / name)
    check_output_file(path, '--json')
    open(path, 'w').close()
    with pytest.raises(UserError, match=f'^--json={path}: .* would be overwritten; choose'):
        check_output_file(path, '--json')
    # An export replaces an earlier one, and nothing else.
    if re.search(r'\.(onnx|pb)\b', name):
        check_output_file(path, '', is_export=True)
        return
    with pytest.raises(UserError, match='would be overwritten'):
        check_output_file(path, '', [str(tmp_path)], os.path.splitext(name)[1], is_export=True)


def test_inputs_are_kept(tmp_path, monkeypatch):
    folder, names, table = tmp_path / 'photos', tmp_path / 'names.csv', tmp_path / 'table.csv'
    folder.mkdir()
    for path in (names, table, folder / 'a.jpg', folder / 'table.csv'):
        path.write_text('x')
    os.symlink(names, tmp_path / 'link.csv')
    os.symlink(folder, tmp_path / 'more')
    inputs = [str(folder), str(names), '', None]

    def check(path):
        check_output_file(str(path), '--csv', inputs, '.csv')
    for path in (names, tmp_path / 'link.csv', tmp_path / 'photos' / '..' / 'names.csv',
                 folder / 'a.jpg', tmp_path / 'more' / 'a.jpg'):
        with pytest.raises(UserError, match='^--csv=.*: the input .* would be overwritten'):
            check(path)
    for path in (table, folder / 'table.csv', folder / 'new', tmp_path / 'other.csv'):
        check(path)
    for words in ([f'--flagfile={table}'], ['--flagfile', str(table)]):
        monkeypatch.setattr(sys, 'argv', ['predict.py', *words])
        with pytest.raises(UserError, match='the input'):
            check(table)
    with pytest.raises(UserError, match='^x: the input'):
        check_no_input(str(names), 'x', inputs)


@pytest.mark.parametrize('name', ['a[1]', 'a*', 'a?', 'a\\b', 'a[', '[*]'])
def test_what_looks_like_a_pattern_is_linked_to(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for other in (f'{name}.index', f'{name}.data', f'{name}x', 'a1.index'):
        (folder / other).write_text(other)
    with literal(str(folder / name)) as path:
        assert not set('*?[\\') & set(path)
        assert open(f'{path}.index').read() == f'{name}.index'
        assert sorted(os.listdir(os.path.dirname(path))) == ['of.data', 'of.index']
    assert not os.path.exists(os.path.dirname(path))
    with literal(str(folder)) as path:
        assert sorted(os.listdir(path)) == sorted(os.listdir(folder))
    with literal('/plain/path') as path:
        assert path == '/plain/path'


def test_no_text_of_a_table_is_a_formula():
    file = io.StringIO()
    text_tables.CsvWriter(file).writerow(
        ['=1+1', '+x', '-x', '@x', '\tx', '\rx', 'x=1', '', -1, -0.5, 'a,b'])
    assert file.getvalue() == (
        "'=1+1,'+x,'-x,'@x,'\tx,\"'\rx\",x=1,,-1,-0.5,\"a,b\"\r\n")
    report = text_tables.Findings({}, [text_tables.Table([{'=name': '@x', 'n': -3}], ())], [])
    assert text_tables.to_csv(report) == "'=name,n\n'@x,-3"
