"""The pages in docs/ are what the code says they are."""
import glob
import os
import re

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CITING = [path for pattern in ('runtime/*.py', 'test/fakes/**/*.py', 'test/unit/test_*npu*.py')
          for path in sorted(glob.glob(os.path.join(ROOT, pattern), recursive=True))]


def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as file:
        return file.read()


def cited_sections(text):
    """Numbers behind 'section' or 'sections': '4', '1 to 3, 7', '6 and 7'."""
    for numbers in re.findall(r'[Ss]ections? ((?:\d+(?:, | to | and )?)+)', text):
        for first, last in re.findall(r'(\d+)(?: to (\d+))?', numbers):
            yield from range(int(first), int(last or first) + 1)


@pytest.mark.parametrize('path', CITING, ids=lambda path: os.path.relpath(path, ROOT))
def test_every_section_of_the_contract_that_is_cited_exists(path):
    headings = {int(number) for number in re.findall(
        r'^## (\d+)\. ', read('docs/npu_bridge.md'), re.MULTILINE)}
    assert headings == set(range(1, 13))
    text = read(path)
    assert set(cited_sections(text)) <= headings
    assert not re.search(r'(?<!docs/)npu_bridge\.md', text)


def test_the_modules_that_rely_on_the_contract_exist():
    modules = read('docs/npu_bridge.md').split('\n## 11. ')[1].split('\n## ')[0]
    paths = re.findall(r'\w+(?:/[\w*.]+)+', modules)
    assert len(paths) > 5 and all(glob.glob(os.path.join(ROOT, path)) for path in paths)


def test_the_contract_is_cited():
    assert sum(len(list(cited_sections(read(path)))) for path in CITING) > 28
