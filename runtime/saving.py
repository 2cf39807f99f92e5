"""Checkpoints in the course of a training session."""
import tensorflow.compat.v1 as tf


class CheckpointHook(tf.train.CheckpointSaverHook):
    """Saves as TensorFlow's own hook does, but begins sooner.

    That one first writes the graph as text, which takes seconds at thousands of nodes, however
    small the network; TensorBoard shows the graph from the event file, where it stays.
    """

    def after_create_session(self, session, coord):
        step = session.run(self._global_step_tensor)
        self._summary_writer.add_graph(tf.get_default_graph())
        self._save(session, step)
        self._timer.update_last_triggered_step(step)
