"""results.jsonl: append, read, and a line torn by a kill."""
import json

from training import results


def test_events_come_back_in_order(tmp_path):
    results.append(str(tmp_path), 'eval', step=3, top_1=0.5)
    results.append(str(tmp_path), 'run_stop', step=4, status='finished')
    events = results.read(str(tmp_path))
    assert [(event['event'], event['step']) for event in events] == [('eval', 3), ('run_stop', 4)]
    assert all(event['time'] > 0 for event in events)


def test_a_torn_line_is_left_out_and_does_not_take_the_next_with_it(tmp_path):
    results.append(str(tmp_path), 'eval', step=3)
    with open(tmp_path / results.RESULTS_FILE, 'a') as file:
        file.write('{"event": "train", "st')
    results.append(str(tmp_path), 'eval', step=5)
    assert [event['step'] for event in results.read(str(tmp_path))] == [3, 5]


def test_no_file_is_no_events(tmp_path):
    assert results.read(str(tmp_path)) == []


def test_a_torn_line_is_cut_off_by_the_next(tmp_path):
    path = tmp_path / results.RESULTS_FILE
    for torn in ('', '{"event"'):
        path.write_text(torn)
        results.append(str(tmp_path), 'eval', step=5)
        results.append(str(tmp_path), 'eval', step=6)
        assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [5, 6]
