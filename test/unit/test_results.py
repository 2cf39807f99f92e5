"""results.jsonl: append, read, check, and a line torn by a kill."""
import json
import os

import pytest

from common.errors import UserError
from run_log import event_log

EVALUATION = {'step': 3, 'weights': 'raw', 'top_1': 0.5}


def test_events_come_back_in_order(tmp_path):
    event_log.append(str(tmp_path), 'eval', **EVALUATION)
    event_log.append(str(tmp_path), 'run_stop', step=4, status='finished')
    events = event_log.read(str(tmp_path))
    assert [(event['event'], event['step']) for event in events] == [('eval', 3), ('run_stop', 4)]
    assert all(event['time'] > 0 for event in events)


def test_a_torn_line_is_left_out_and_does_not_take_the_next_with_it(tmp_path):
    event_log.append(str(tmp_path), 'eval', **EVALUATION)
    with open(tmp_path / event_log.RESULTS_FILE, 'ab') as file:
        file.write('{"event": "train", "st\u00e9'.encode()[:-1])
    assert [event['step'] for event in event_log.read(str(tmp_path))] == [3]
    event_log.append(str(tmp_path), 'eval', **{**EVALUATION, 'step': 5})
    assert [event['step'] for event in event_log.read(str(tmp_path))] == [3, 5]


def test_no_file_is_no_events(tmp_path):
    assert event_log.read(str(tmp_path)) == []


@pytest.mark.parametrize('line, words', [
    ('{"event": "eval", "time": 1, "step": 3, "weights": "raw"}', 'line 2: lacks the key "top_1"'),
    ('{"event": "eval", "time": 1, "step": "3", "weights": "raw", "top_1": 0.5}',
     '"step" must be a whole number'),
    ('{"event": "run_stop", "step": 3, "status": "finished"}', 'lacks the key "time"'),
    ('{"event": [], "time": 1}', '"event" must be a string'),
    ('[1, 2]', 'not a JSON object')])
def test_a_whole_line_that_is_wrong_is_named(tmp_path, line, words):
    event_log.append(str(tmp_path), 'eval', **EVALUATION)
    with open(tmp_path / event_log.RESULTS_FILE, 'a') as file:
        file.write(line + '\n')
    with pytest.raises(UserError, match=words):
        event_log.read(str(tmp_path))


@pytest.mark.parametrize('make, words', [
    (os.mkdir, 'is a directory'), (os.mkfifo, 'not a regular file'),
    (lambda path: os.symlink('/no/where', path), 'does not exist')])
def test_what_is_no_file_is_told(tmp_path, make, words):
    make(tmp_path / event_log.RESULTS_FILE)
    with pytest.raises(UserError, match=f'results.jsonl.* {words}'):
        event_log.append(str(tmp_path), 'eval', **EVALUATION)
    with pytest.raises(UserError, match=f'results.jsonl.* {words}'):
        event_log.read(str(tmp_path))


def test_what_a_later_version_writes_is_read(tmp_path):
    event_log.append(str(tmp_path), 'eval', **EVALUATION, more='text')
    event_log.append(str(tmp_path), 'invented', number=1)
    # A loss that is not finite.
    event_log.append(str(tmp_path), 'train', step=4, loss=None, top_1=0.1)
    assert [event['event'] for event in event_log.read(str(tmp_path))] == [
        'eval', 'invented', 'train']


def test_a_torn_line_is_cut_off_by_the_next(tmp_path):
    path = tmp_path / event_log.RESULTS_FILE
    for torn in ('', '{"event"'):
        path.write_text(torn)
        event_log.append(str(tmp_path), 'eval', step=5)
        event_log.append(str(tmp_path), 'eval', step=6)
        assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [5, 6]
