"""requirements.txt, requirements.lock and SECURITY.md say the same."""
import os
import re

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def read(name):
    with open(os.path.join(ROOT, name)) as file:
        return file.read()


def canonical(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def pins(name):
    """Package -> version of the lines `<package>==<version>` of a file, but those of aarch64."""
    lines = [line for line in read(name).splitlines() if '== "aarch64"' not in line]
    matches = [re.match(r'([\w.-]+)==([\w.]+)', line) for line in lines]
    return {canonical(match.group(1)): match.group(2) for match in matches if match}


def test_the_lock_has_every_requirement_at_its_version():
    required, locked = pins('requirements.txt'), pins('requirements.lock')
    assert len(required) > 20
    assert {name: locked.get(name) for name in required} == required
    # What pip draws in beyond them.
    assert set(locked) - set(required) == {'setuptools'}


def test_every_entry_of_the_lock_has_hashes_and_no_line_names_an_index():
    text = read('requirements.lock')
    entries = re.sub(r'\\\n', ' ', re.sub(r'(?m)^#.*\n', '', text)).splitlines()
    assert len(entries) == len(pins('requirements.lock'))
    for entry in entries:
        assert re.search(r' --hash=sha256:[0-9a-f]{64}\b', entry), entry
    assert '://' not in text and not re.search(r'(?m)^\s*--', text.replace('    --hash', ''))


@pytest.mark.parametrize('name', ['tensorflow', 'numpy', 'h5py'])
def test_an_aarch64_host_keeps_what_the_index_does_not_have(name):
    line, = re.findall(rf'(?m)^{name}[<>=].*; platform_machine == "aarch64"$',
                       read('requirements.txt'))
    assert '==' not in line.split(';')[0]


def test_security_md_speaks_of_the_versions_that_are_pinned():
    pinned = {**pins('requirements.lock'), **pins('requirements-export.txt')}
    named = [pair for row in re.findall(r'(?m)^\| ([a-z][^|]*) \|.*CVE', read('SECURITY.md'))
             for pair in re.findall(r'([a-z0-9]+) (\d[\d.]*)', row)]
    assert len(named) >= 9
    for name, version in named:
        assert pinned[name] == version, name
