"""How several ranks agree on their last step; signals and clocks are tried on real processes."""
import os
import signal
import threading
import time
import weakref

import pytest
import tensorflow.compat.v1 as tf

from training import preemption


class Context:
    """Stands for the SessionRunContext."""

    def __init__(self):
        self.is_stopped = False

    def request_stop(self):
        self.is_stopped = True


def train(folder, due_runs, num_runs=20):
    """Ranks in lockstep, as gradients are exchanged; `due_runs`: rank -> after which run it wants
    to end. Returns (runs that each rank has made, the `Stop` of each)."""
    barrier = threading.Barrier(len(due_runs), timeout=20)
    made, stops = {}, {rank: preemption.StopRequest(is_alone=False) for rank in due_runs}

    def run(rank):
        hook = preemption.StopHook(stops[rank], str(folder), rank)
        hook.begin()
        context = Context()
        for index in range(1, num_runs + 1):
            # No rank ends a step before all have begun it.
            barrier.wait()
            if index == due_runs[rank]:
                stops[rank].accept({'signal': 15})
            made[rank] = index
            hook.after_run(context, None)
            if context.is_stopped:
                break

    threads = [threading.Thread(target=run, args=(rank,)) for rank in due_runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made, stops


@pytest.mark.parametrize('due_runs, last_run', [
    ({0: 3, 1: None}, 4), ({0: None, 1: 3}, 4), ({0: 3, 1: 3, 2: 3}, 4), ({0: 4, 1: 3, 2: 9}, 4)])
def test_ranks_stop_after_the_same_run(tmp_path, due_runs, last_run):
    # What an earlier run has left says nothing.
    (tmp_path / 'stop.json').write_text('{"signal": 2, "last_run": 1}')
    for _ in range(20):
        made, stops = train(tmp_path, due_runs)
        assert set(made.values()) == {last_run}
        assert {stop.status for stop in stops.values()} == {preemption.INTERRUPTED}
        assert {stop.exit_code for stop in stops.values()} == {143}


def test_the_clock_of_one_of_several_ranks_decides_nothing_by_itself(tmp_path):
    stop = preemption.StopRequest(deadline=0, is_alone=False)
    assert stop.must_end() and stop.status is None
    stop.check()
    hook, context = preemption.StopHook(stop, str(tmp_path / 'new'), rank=1), Context()
    hook.begin()
    for expected in (False, True):
        hook.after_run(context, None)
        assert context.is_stopped == expected
    assert stop.status == preemption.OUT_OF_TIME and stop.exit_code == 0
    with pytest.raises(preemption.Stopped):
        stop.check()


def test_a_rank_that_others_wait_for_leaves_when_they_have_agreed():
    with preemption.StopRequest(is_alone=False) as stop:
        with stop.at_step_end():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()
        assert stop.status == preemption.INTERRUPTED and not stop.is_settled
        stop.accept({'signal': None})
        assert stop.is_settled
        stop.check()
        pytest.fail('went on')
    assert stop.exit_code == 143


@pytest.mark.parametrize('is_alone', [True, False])
@pytest.mark.parametrize('deadline', [None, 0])
def test_an_evaluation_between_two_steps_is_left(is_alone, deadline):
    """A rank that is alone ends with it; one of several makes a step, in which they agree."""
    reached = []
    with preemption.StopRequest(deadline, is_alone) as stop:
        with stop.at_step_end():
            with stop.between_steps():
                if deadline is None:
                    os.kill(os.getpid(), signal.SIGTERM)
                stop.check()
                reached.append('the next batch')
            reached.append('the next step')
            assert stop.must_end() and not stop.is_settled
    assert reached == ([] if is_alone else ['the next step'])


def test_an_evaluation_that_nobody_interrupts_goes_on():
    with preemption.StopRequest(is_alone=False) as stop, stop.at_step_end():
        with stop.between_steps():
            stop.check()
        assert not stop.must_end()


def test_a_rank_that_is_alone_stops_at_once():
    hook, context = preemption.StopHook(preemption.StopRequest(deadline=0)), Context()
    coordinator = tf.train.Coordinator()
    hook.after_create_session(None, coordinator)
    hook.after_run(context, None)
    assert coordinator.should_stop() and context.is_stopped


class Finalized:
    """Ends the run when it goes."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)


def lose_key():
    table, key = weakref.WeakKeyDictionary(), Finalized()
    table[key] = None
    del key


def lose_reference():
    key = threading.Event()
    reference = weakref.finalize(key, os.kill, os.getpid(), signal.SIGTERM)
    del key
    assert not reference.alive


@pytest.mark.parametrize('lose', [Finalized, lose_key, lose_reference])
def test_a_signal_in_a_finalizer_is_not_lost(lose, capfd):
    """Python prints what is raised there, and goes on."""
    handler = signal.getsignal(signal.SIGALRM)
    with preemption.StopRequest() as stop:
        with pytest.raises(preemption.Stopped):
            lose()
            for _ in range(100):
                time.sleep(0.05)
        assert stop.exit_code == 143
    assert 'Exception ignored' not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGALRM) == handler


class FailsToCleanUp:
    """As a variable scope does when left before it has been entered."""

    def __enter__(self):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            raise RuntimeError('Improper nesting')

    def __exit__(self, *_):
        pass


def test_what_fails_because_of_a_signal_is_no_error_of_its_own():
    with preemption.StopRequest() as stop:
        with FailsToCleanUp():
            pass
        pytest.fail('went on')
    assert stop.exit_code == 143


def test_what_fails_beside_a_signal_is_an_error():
    with pytest.raises(RuntimeError, match='of its own'), preemption.StopRequest() as stop:
        with stop.at_step_end():
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError('of its own')
    assert stop.exit_code == 143
