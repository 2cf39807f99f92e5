"""Names of classes: the forms of their files, and data whose classes are not the model's."""
import pytest

from common.errors import UserError
from tfrecords import class_labels

NAMES = ('cat', 'dog', 'owl, the "grey" one')


@pytest.mark.parametrize('name, text', [
    ('x.txt', 'cat\ndog\nowl, the "grey" one\n'),
    ('x.json', '["cat", "dog", "owl, the \\"grey\\" one"]'),
    ('x.json', '{"1": "dog", "0": "cat", "2": "owl, the \\"grey\\" one"}'),
    ('x.JSON', '{"dog": 1, "cat": 0, "owl, the \\"grey\\" one": 2}'),
    ('x.csv', 'class,name\n0,cat\n2,"owl, the ""grey"" one"\n1,dog\n'),
    ('x.csv', '0,cat\n1,dog\n2,"owl, the ""grey"" one"\n'),
    ('x.csv', 'cat\ndog\n"owl, the ""grey"" one"\n')])
def test_files_of_names(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert class_labels.read(str(tmp_path / name), 'class_names') == NAMES


@pytest.mark.parametrize('name, text', [
    ('x.txt', ''), ('x.json', '{'), ('x.json', '7'), ('x.json', '[1, 2]'),
    ('x.json', '[' * 10 ** 5),
    ('x.json', '{"0": "cat", "2": "dog"}'), ('x.json', '{"a": "b"}'), ('x.json', '{"0": ["cat"]}'),
    ('x.csv', '0,cat\n0,dog\n'), ('x.csv', 'class,name\nx,cat\n'), ('x.csv', '0,cat\ndog\n')])
def test_what_is_no_file_of_names_is_one_sentence(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r'^--class_names=\S+: (is empty|cannot be read)'):
        class_labels.read(str(tmp_path / name), 'class_names')


@pytest.mark.parametrize('model, data, names_from, expected', [
    ('abc', 'abc', None, ()), ('', 'abc', None, ()), ('abc', '', None, ()),
    ('abc', 'cab', 'data', ()), ('abc', 'cab', 'model', (2, 0, 1)), ('abc', 'ca', 'model', (2, 0))])
def test_class_map(model, data, names_from, expected):
    assert class_labels.class_map(tuple(model), tuple(data), names_from, 'x') == expected
    if model and names_from != 'data':
        with_background = (class_labels.BACKGROUND, *model)
        assert class_labels.class_map(with_background, tuple(data), names_from, 'x') == tuple(
            index + 1 for index in expected)


@pytest.mark.parametrize('model, data, names_from, words', [
    ('abcde', 'acdeb', None, "class 1 was 'b' and is 'c', class 2 was 'c' and is 'd', class 3 was "
                             "'d' and is 'e'); "),
    ('abc', 'ab', None, '2 of its 3'), ('abc', 'abx', 'model', "no class 'x'"),
    ('abc', 'aab', 'model', 'the same name')])
def test_other_classes_are_refused(model, data, names_from, words):
    with pytest.raises(UserError) as raised:
        class_labels.class_map(tuple(model), tuple(data), names_from, 'x')
    assert words in str(raised.value) and '--class_names_from=' in str(raised.value)

