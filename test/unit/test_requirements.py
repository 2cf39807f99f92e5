"""The files of requirements, their locks and SECURITY.md say the same."""
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


FILES = sorted(os.path.splitext(path)[0] for path in os.listdir(ROOT)
               if re.fullmatch(r'requirements.*\.txt', path))


@pytest.mark.parametrize('name', FILES)
def test_the_lock_has_every_requirement_at_its_version(name):
    required, locked = pins(f'{name}.txt'), pins(f'{name}.lock')
    assert len(required) >= 7
    assert {package: locked.get(package) for package in required} == required
    # The same version wherever a package is.
    others = pins('requirements-dev.lock')
    assert {package: others.get(package) for package in locked} == locked


def test_setup_installs_only_what_is_named():
    # What pip draws in beyond them.
    assert set(pins('requirements.lock')) - set(pins('requirements.txt')) == {'setuptools'}


@pytest.mark.parametrize('name', FILES)
def test_every_entry_of_a_lock_has_hashes_and_no_line_names_an_index(name):
    text = read(f'{name}.lock')
    entries = re.sub(r'\\\n', ' ', re.sub(r'(?m)^#.*\n', '', text)).splitlines()
    assert len(entries) == len(pins(f'{name}.lock'))
    for entry in entries:
        assert re.search(r' --hash=sha256:[0-9a-f]{64}\b', entry), entry
    assert '://' not in text and not re.search(r'(?m)^\s*--', text.replace('    --hash', ''))


@pytest.mark.parametrize('name', ['tensorflow', 'numpy', 'h5py'])
def test_an_aarch64_host_keeps_what_the_index_does_not_have(name):
    line, = re.findall(rf'(?m)^{name}[<>=].*; platform_machine == "aarch64"$',
                       read('requirements.txt'))
    assert '==' not in line.split(';')[0]


def test_security_md_speaks_of_the_versions_that_are_pinned():
    pinned = pins('requirements-dev.lock')
    named = [pair for row in re.findall(r'(?m)^\| ([a-z][^|]*) \|.*CVE', read('SECURITY.md'))
             for pair in re.findall(r'([a-z0-9]+) (\d[\d.]*)', row)]
    assert len(named) >= 14 and {'fonttools', 'pip'} <= {name for name, _ in named}
    for name, version in named:
        assert pinned[name] == version, name
