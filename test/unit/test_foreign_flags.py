"""What is said of flags that do not exist: it helps, or it is no more than that."""
import pytest

from common import foreign_flags
from config import settings

KNOWN = {field.name for _, field, _ in settings.rows()}


@pytest.mark.parametrize('name', [
    'use_tpu', 'nouse_tpu', 'tpu', 'gcp_project', 'tpu_zone', 'bigtable_project',
    'bigtable_instance', 'bigtable_eval_prefix', 'num_replicas', 'batch_norm_batch_size',
    'export_to_tpu'])
def test_flags_of_the_tpu_scripts_are_to_be_left_out(name):
    assert foreign_flags.refusal(name, KNOWN) == f'--{name}: a flag for TPUs; leave it out.'


@pytest.mark.parametrize('name, replacement', [
    ('use_bfloat16', 'precision_mode'), ('resume_checkpoint', 'init_checkpoint'),
    ('learning_rate', 'base_learning_rate'), ('data_path', 'data_dir'), ('data_url', 'data_dir'),
    ('network_name', 'model_name'), ('autotune', 'npu_auto_tune')])
def test_what_does_the_same_is_named(name, replacement):
    assert foreign_flags.refusal(name, KNOWN) == (
        f'--{name}: no such flag; use --{replacement} instead.')


@pytest.mark.parametrize('name, words', [
    ('drop_connect_rate', 'survival_prob, which is 1 - drop_connect_rate'),
    ('include_background_label', 'one class more'), ('momentum', 'it is 0.9')])
def test_another_value_is_told_apart(name, words):
    assert words in foreign_flags.refusal(name, KNOWN)
    assert foreign_flags.refusal(name, {'data_dir'}) == f'--{name}: no such flag.'


def test_only_what_the_program_has_is_named():
    assert foreign_flags.refusal('use_bfloat16', {'data_dir'}).endswith('leave it out.')
    assert foreign_flags.refusal('learning_rate', {'data_dir'}) == '--learning_rate: no such flag.'


@pytest.mark.parametrize('name, meant', [
    ('batchsize', 'batch_size'), ('lr_decay_epochs', 'lr_decay_epoch'),
    ('save_checkpoints', 'save_checkpoints_secs or --save_checkpoints_steps')])
def test_a_typo_is_recognized(name, meant):
    assert foreign_flags.refusal(name, KNOWN).endswith(f'did you mean --{meant}?')


@pytest.mark.parametrize(
    'name', ['x', 'num_eval_steps', 'use_profile', 'train_dir', 'no_such_flag'])
def test_an_unrelated_flag_is_not_offered(name):
    assert foreign_flags.refusal(name, KNOWN) == f'--{name}: no such flag.'


def test_every_replacement_is_a_flag_of_some_program():
    others = {'image_size', 'quantize', 'checkpoint', 'data_path', 'output_path'}
    assert {each for names in foreign_flags._REPLACED_BY.values() for each in names} <= (
        KNOWN | others)
