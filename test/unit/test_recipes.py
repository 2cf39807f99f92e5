"""Every recipe is a valid configuration, and those for ImageNet are what was published."""
import json
import os
import re

from absl import flags
import pytest

from config import run_config
from config import settings

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NAMES = sorted(name for name in os.listdir(os.path.join(ROOT, 'recipes'))
               if name.endswith('.flags'))


def read(path):
    with open(os.path.join(ROOT, path)) as file:
        return file.read()


def parse(name, data_dir, monkeypatch, *arguments):
    """The `Config` of a recipe, as main.py makes it, started at the root of the repository."""
    monkeypatch.chdir(ROOT)
    holder = flags.FlagValues()
    run_config.define_flags(holder)
    holder(['main.py', f'--flagfile=recipes/{name}', f'--data_dir={data_dir}',
            '--model_dir=/tmp/never_made', *arguments])
    return run_config.from_values({
        field.name: holder[field.name].value
        for fields in settings.by_group().values() for field in fields})


@pytest.mark.parametrize('name', NAMES)
def test_recipes_are_valid_and_open_with_what_they_cost(name, tmp_path, monkeypatch):
    head = read(f'recipes/{name}').split('\n--')[0]
    assert head.startswith('# ')
    for word in ('command', 'hardware', 'cost', 'result'):
        assert f'\n#   {word}' in head
    arguments = ['--init_checkpoint=/some'] if name == 'finetune.flags' else []
    parse(name, str(tmp_path), monkeypatch, *arguments)


def test_the_result_of_fine_tuning_is_the_measured_one():
    measured = json.loads(read('benchmarks/finetune.json'))['top_1']['fine_tuning']
    rate = max(measured, key=measured.get)
    result = read('recipes/finetune.flags').split('#   result')[1].split('\n#\n')[0]
    assert re.findall(r'0\.\d+ top-1', result) == [f'{measured[rate]:.3f} top-1']
    assert f'--base_learning_rate={rate} ' in result


def test_a_recipe_cites_no_report_of_another_network():
    """The user who reported 22.67 % error trained condconv-b0-8e."""
    for name in NAMES:
        cites = re.search('report|issue', read(f'recipes/{name}')) is not None
        assert cites == (name == 'condconv_b0_8e.flags'), name
    assert '77.3 %' in read('recipes/condconv_b0_8e.flags')
    assert re.search(r'condconv-b0-8e, .*\| 77\.3 % \|', read('README.md'))


def test_each_of_the_published_networks_has_a_recipe():
    assert {'b0.flags', 'b0_8p.flags', 'condconv_b0_4e.flags', 'condconv_b0_8e.flags',
            'condconv_b0_8e_depth.flags', 'finetune.flags', 'performance.flags',
            'quickstart.flags'} <= set(NAMES)


@pytest.mark.parametrize('name', [name for name in NAMES if 'b0' in name])
def test_recipes_for_imagenet_are_the_public_recipe(name, tmp_path, monkeypatch):
    config = parse(name, str(tmp_path), monkeypatch)
    is_condconv = name.startswith('condconv')
    stem = name[:-len('.flags')].replace('_8p', '').replace('_', '-')
    assert config.model.model_name == f'efficientnet-{stem}'
    assert config.run.train_epochs == 350 and config.model.num_label_classes == 1000
    assert config.data.augment_name == 'autoaugment'
    assert config.data.mixup_alpha == (0.2 if is_condconv else 0)
    optimization = config.optimization
    assert optimization.dropout_rate == (0.25 if is_condconv else 0.2)
    assert {name: getattr(optimization, name) for name in (
        'optimizer', 'base_learning_rate', 'lr_schedule', 'lr_decay_factor', 'lr_decay_epoch',
        'lr_warmup_epochs', 'moving_average_decay', 'weight_decay', 'label_smoothing',
        'survival_prob')} == dict(
            optimizer='rmsprop', base_learning_rate=0.016, lr_schedule='exponential',
            lr_decay_factor=0.97, lr_decay_epoch=2.4, lr_warmup_epochs=5,
            moving_average_decay=0.9999, weight_decay=1e-5, label_smoothing=0.1,
            survival_prob=0.8)
    # The scripts end a recipe after so many steps.
    assert parse(name, str(tmp_path), monkeypatch, '--train_steps=7').total_steps == 7


def test_checkpoints_come_with_the_end_of_a_loop(tmp_path, monkeypatch):
    """Of every recipe that runs several steps in one call of the device."""
    loops = set()
    for name in NAMES:
        arguments = ['--init_checkpoint=/some'] if name == 'finetune.flags' else []
        config = parse(name, str(tmp_path), monkeypatch, *arguments)
        loops.add(config.runtime.iterations_per_loop)
        assert config.run.save_checkpoints_steps % config.runtime.iterations_per_loop == 0, name
    assert loops == {1, 100}
