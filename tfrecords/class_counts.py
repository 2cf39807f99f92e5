"""Counts the records of each class."""
import dataclasses
import hashlib
import json
import os
from typing import List
from typing import Tuple

import numpy as np

from tfrecords import reader
from tfrecords import record_format


@dataclasses.dataclass(frozen=True)
class ClassCounter:
    """Counts the training images of each class of a model.

    Attributes:
        data_dir: str.
        paths: list of str, shards in data_dir.
        form: `record_format.RecordFormat`.
        first_label: int, the label of class 0.
        names: tuple of str, in which text labels are looked up.
        num_classes: int, of the model.
        class_map: tuple of int, the model's class for each class of the data; empty: the same.
    """
    data_dir: str
    paths: List[str]
    form: record_format.RecordFormat
    first_label: int
    names: Tuple[str, ...]
    num_classes: int
    class_map: Tuple[int, ...] = ()

    def count(self):
        """Returns the number of records of each class, int64 [num_classes].

        Reads all records once, and skips unreadable ones.

        Raises:
            UserError: the file system reports an error.
        """
        counts = np.zeros(len(self.class_map) or self.num_classes, np.int64)
        numbers = {name: self.first_label + number for number, name in enumerate(self.names)}
        for path in self.paths:
            for record, reason in reader.iterate_records(path, self.form.compression):
                label = None if reason else self._label(record)
                label = numbers.get(label) if isinstance(label, str) else label
                if label is not None and 0 <= label - self.first_label < len(counts):
                    counts[label - self.first_label] += 1
        return self.of_model(counts)

    def of_model(self, counts):
        """Converts counts of the data's classes to counts of the model's, int64 [num_classes]."""
        classes = self.class_map or range(self.num_classes - len(counts), self.num_classes)
        found = np.zeros(self.num_classes, np.int64)
        np.add.at(found, list(classes), counts)
        return found

    def fingerprint(self):
        """Returns a hash that is the same for the same data, on any machine.

        It covers the names of the shards, their sizes on local disks, and the meaning of labels.
        """
        sizes = [[os.path.relpath(path, self.data_dir),
                  None if '://' in path else os.path.getsize(path)] for path in self.paths]
        meaning = [dataclasses.asdict(self.form), self.first_label, self.names, self.num_classes,
                   self.class_map]
        return hashlib.sha256(json.dumps([sizes, meaning]).encode()).hexdigest()

    def _label(self, record):
        try:
            return self.form.parse(record)[1]
        except ValueError:
            return None
