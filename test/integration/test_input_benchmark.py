"""benchmarks/input_pipeline.py: what it writes, and what does not depend on the machine's mood."""
import json

import pytest


@pytest.mark.slow
def test_the_benchmark_of_the_input_writes_its_figures(run, tmp_path):
    path = tmp_path / 'input.json'
    completed = run('-m', 'benchmarks.input_pipeline', f'--json={path}', '--rounds=1')
    assert completed.returncode == 0, completed.stderr
    figures = json.loads(path.read_text())
    assert list(figures) == ['train_none', 'train_autoaugment', 'train_randaugment', 'eval']
    for case, row in figures.items():
        assert case in completed.stdout
        assert row['images_per_sec'] > 0 and row['first_batch_secs'] > 0
        assert 0 < row['ratio_to_ceiling'] < 2
        assert row['peak_rss_mb'] < 600
        assert row['graph_nodes'] < 3000
